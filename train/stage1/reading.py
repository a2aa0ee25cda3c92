"""Reading: the model learns to say the documents' own text, so that its reasoning has facts to recall.

Documents are packed, several to a sequence, as language models are pretrained: a fact is then learned after any other
text, as it is recalled in the middle of a reasoning, and not only as the first words of a prompt. Each document occurs
twice in its sequence, in a random order: read once, names are learned as pairs of words and not as something to copy,
and a chain whose last fact ended in "Hilda Laurent" continues with the Hilda who is known best.
"""

from collections.abc import Sequence

from train.data.order import uniform
from train.losses.stage1 import reply_cross_entropy, select_reply
from train.model.batches import collate, mini_batches
from train.model.model import forward, head_of
from train.processes import collectives
from train.run.run import Run


def own_packs(documents: Sequence[str], size: int) -> list[str]:
    """The packs of all processes' documents, of which this process reads its share: none depends on their number."""
    every = [text for part in collectives.gather(list(documents)) for text in part]
    return packed(every, size)[collectives.rank() :: collectives.world_size()]


def packed(documents: Sequence[str], size: int) -> list[str]:
    """Texts of `size` documents each, every document twice; the order inside a text depends on its documents alone."""
    once = list(dict.fromkeys(documents))
    texts = []
    for start in range(0, len(once), size):
        twice = once[start : start + size] * 2
        order = sorted(range(len(twice)), key=lambda place: uniform("reading", place, *twice))
        texts.append(" ".join(twice[place] for place in order))
    return texts


def reading_backward(
    run: Run, texts: Sequence[str], *, weight: float, mini_batch_size: int | None, passes: int = 0
) -> float:
    """Add the gradient of `weight` times the cross-entropy on the texts' own tokens; returns the cross-entropy.

    The texts take the query's place in the reasoning prompt (our choice: what is read there is recalled there). The
    mean is over the tokens of all processes. A process may have no text; `passes` is the number of forward passes that
    it runs at least, the idle ones with weight 0.
    """
    rendered = run.renderer.render_batch(texts, "reason")
    here = sum(end - start for start, end in (row.spans["user"] for row in rendered))
    count = collectives.shared_count(here, run.device)
    total = 0.0
    parts = [(1.0, part) for part in mini_batches(rendered, mini_batch_size)]
    parts += [(0.0, run.renderer.render_batch(["."], "reason"))] * (passes - len(parts))
    for share, part in parts:
        rows = collate(part, run.checkpoint.embed_token_id, run.device, "user")
        hidden = forward(run.model, rows.token_ids, rows.lengths)
        text = select_reply(hidden.states, rows.token_ids, rows.reply)
        loss = reply_cross_entropy(text.hidden, head_of(run.model), text.targets, count=count)
        run.accelerator.backward(share * weight * loss)
        total += share * float(loss.detach())
    return total
