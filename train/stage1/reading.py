"""Reading: the model learns to say the documents' own text, so that its reasoning has facts to recall.

Documents are packed, several to a sequence, as language models are pretrained: a fact is then learned after any other text,
and not as the first words of a prompt alone. It is recalled in the middle of a reasoning, where other names stand before it.
Each stands twice in its sequence, in a random order: read once alone, names are learned as pairs of words and never as
something to copy, and a chain whose last fact ended in "Hilda Laurent" goes on with the Hilda who is known best.
"""

from collections.abc import Sequence
from typing import Any

import torch

from search_r3_mteb.encoder.checkpoints import Checkpoint
from search_r3_mteb.encoder.prompts import Renderer
from train.data.order import uniform
from train.losses.stage1 import reply_cross_entropy, select_reply
from train.model import model as models
from train.model.batches import collate, mini_batches
from train.processes import collectives


def packed(documents: Sequence[str], size: int) -> list[str]:
    """Texts of `size` documents each, in the order given, every document twice; the order inside depends on the documents alone."""
    once = list(dict.fromkeys(documents))
    texts = []
    for start in range(0, len(once), size):
        twice = once[start : start + size] * 2
        order = sorted(range(len(twice)), key=lambda place: uniform("reading", place, *twice))
        texts.append(" ".join(twice[place] for place in order))
    return texts


def reading_backward(
    model: Any,
    checkpoint: Checkpoint,
    renderer: Renderer,
    texts: Sequence[str],
    *,
    weight: float,
    mini_batch_size: int | None,
    accelerator: Any,
    device: torch.device,
) -> float:
    """Add the gradient of `weight` times the cross-entropy on the texts' own tokens; returns the cross-entropy.

    The texts stand where a query stands in the reasoning prompt (our choice: what is read there is recalled there). The mean
    is over the tokens of all processes.
    """
    rendered = renderer.render_batch(texts, "reason")
    count = collectives.shared_count(sum(end - start for start, end in (row.spans["user"] for row in rendered)), device)
    total = 0.0
    for part in mini_batches(rendered, mini_batch_size):
        rows = collate(part, checkpoint.embed_token_id, device, "user")
        hidden = models.forward(model, rows.token_ids, rows.lengths)
        text = select_reply(hidden.states, rows.token_ids, rows.reply)
        loss = reply_cross_entropy(text.hidden, models.head_of(model), text.targets, count=count)
        accelerator.backward(weight * loss)
        total += float(loss.detach())
    return total
