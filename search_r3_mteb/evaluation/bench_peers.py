"""The benchmark's peers: what a user would otherwise run, written well, on the same weights, prompts and lengths.

(i)   two passes, as in the released example: `generate`, then the prompt and the reply through the model again;
(ii)  one pass that keeps all states: `generate(output_hidden_states=True)`;
(iii) sentence-transformers' own Transformer and Pooling on the backbone, with the prompt written into the text;
(iv)  MTEB's wrapper around (iii);
(v)   and (vi) are vLLM: `bench_vllm.py`.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor

from search_r3_mteb.encoder.architecture import Architecture
from search_r3_mteb.encoder.backbone import unwrap
from search_r3_mteb.encoder.chat_templates import SLOT, trimmed, wrap
from search_r3_mteb.encoder.checkpoints import Checkpoint
from search_r3_mteb.encoder.decode import Decode
from search_r3_mteb.encoder.engine import Engine

_CERTAIN = 1e9


class AtLength(LogitsProcessor):
    """Makes `generate` say the embed token after exactly `lengths[row]` tokens, and then `end` if it is given."""

    def __init__(self, lengths: Sequence[int], width: int, embed: int, end: int | None = None) -> None:
        self.lengths, self.width, self.embed, self.end = torch.tensor(lengths), width, embed, end

    def __call__(self, input_ids: Int[Tensor, "rows tokens"], scores: Float[Tensor, "rows vocabulary"]) -> Tensor:
        """The scores, with the embed token certain where it is due and impossible elsewhere."""
        step = input_ids.shape[1] - self.width
        lengths = self.lengths.to(scores.device)
        scores[:, self.embed] = torch.where(lengths == step, _CERTAIN, -_CERTAIN)
        if self.end is not None:
            scores[:, self.end] = torch.where(lengths + 1 == step, 2 * _CERTAIN, -_CERTAIN)
        return scores


class FixedLengths(Decode):
    """Our decode loop with given lengths: tokens are sampled as always, and the embed token comes where it is due."""

    def __init__(self, engine: "FixedLengthEngine", *given: Any) -> None:
        super().__init__(engine, *given)
        self.wanted = torch.tensor(engine.wanted, device=engine.device)

    def _said(self, token: Tensor, rows: int) -> Tensor:
        embed = self.backbone.embed_token_id
        due = self.slots.steps[:rows] == self.wanted[self.slots.row[:rows]]
        return token.masked_fill(due, embed)


class FixedLengthEngine(Engine):
    """An engine whose rows reason for `wanted[row]` tokens."""

    decoder = FixedLengths
    wanted: Sequence[int]

    def logits(self, hidden: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows vocabulary"]:
        """The model's logits, with the embed token impossible: `FixedLengths` alone says it."""
        logits = super().logits(hidden)
        logits[:, self.embed_token_id] = -_CERTAIN
        return logits


def two_passes(
    checkpoint: Checkpoint, prompts: Sequence[Sequence[int]], lengths: Sequence[int], batch: int
) -> tuple[Tensor, list[list[int]]]:
    """Vectors and ids by `generate` and a second forward pass, `batch` prompts at a time in the given order."""
    vectors, replies = [], []
    for start in range(0, len(prompts), batch):
        rows, due = prompts[start : start + batch], lengths[start : start + batch]
        generated, _ = _generated(checkpoint, rows, due)
        said = [row[: n + 1] for row, n in zip(generated, due, strict=True)]
        vectors.append(read(checkpoint, [[*row, *reply] for row, reply in zip(rows, said, strict=True)]))
        replies += said
    return torch.cat(vectors), replies


def keeping_hidden_states(
    checkpoint: Checkpoint, prompts: Sequence[Sequence[int]], lengths: Sequence[int], batch: int
) -> tuple[Tensor, list[list[int]]]:
    """The same by `generate(output_hidden_states=True)`, with one more token, so that the embed token is read."""
    end = int(checkpoint.tokenizer.eos_token_id)
    vectors, replies = [], []
    for start in range(0, len(prompts), batch):
        due = lengths[start : start + batch]
        said, states = _generated(checkpoint, prompts[start : start + batch], due, end, output_hidden_states=True)
        # The states of generation step t are those of the token that step t - 1 said.
        vectors += [states[n + 1][-1][row, -1] for row, n in enumerate(due)]
        replies += [row[: n + 1] for row, n in zip(said, due, strict=True)]
    return torch.stack(vectors).float(), replies


def separate_rollouts(
    checkpoint: Checkpoint, prompts: Sequence[Sequence[int]], tokens: int, group: int
) -> tuple[Tensor, list[list[int]]]:
    """Sampled rollouts of every prompt, prefilled `group` times (as `num_return_sequences` does) and read again."""
    repeated = [prompt for prompt in prompts for _ in range(group)]
    due = [tokens] * len(repeated)
    said, _ = _generated(checkpoint, repeated, due, do_sample=True, temperature=1.0, top_k=0)
    vectors = read(checkpoint, [[*row, *reply] for row, reply in zip(repeated, said, strict=True)])
    return vectors, said


@torch.no_grad()
def read(checkpoint: Checkpoint, sequences: Sequence[Sequence[int]]) -> Float[Tensor, "rows dim"]:
    """Last states of whole sequences in one left-padded batch, without the head, as float32."""
    ids, mask = left_padded(sequences, checkpoint)
    architecture = Architecture(unwrap(checkpoint.model))
    inputs = architecture.inputs((mask.cumsum(1) - 1).clamp(min=0))
    output = architecture.backbone(input_ids=ids, attention_mask=mask, use_cache=False, **inputs)
    states: Tensor = output.last_hidden_state[:, -1]
    return states.float()


def left_padded(sequences: Sequence[Sequence[int]], checkpoint: Checkpoint) -> tuple[Tensor, Tensor]:
    """Ids and mask (rows, longest), on the model's device."""
    width, pad, device = max(map(len, sequences)), _pad(checkpoint), checkpoint.model.device
    ids = torch.tensor([[*[pad] * (width - len(row)), *row] for row in sequences], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in sequences], device=device)
    return ids, mask


def sentence_transformer(checkpoint: Checkpoint, folder: Path, max_length: int) -> Any:
    """sentence-transformers' Transformer, last-token Pooling and Normalize on the checkpoint's backbone."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    tokenizer = deepcopy(checkpoint.tokenizer)
    tokenizer.chat_template = None  # sentence-transformers would put it around the prompt
    tokenizer.model_max_length = max_length
    checkpoint.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    backbone = Transformer(str(folder), model_kwargs={"dtype": checkpoint.model.dtype})
    # AutoTokenizer exchanges the pre-tokenizer of folders of this architecture; the same ids are wanted here.
    backbone.processor = tokenizer
    pooling = Pooling(backbone.get_embedding_dimension(), pooling_mode="lasttoken")
    return SentenceTransformer(modules=[backbone, pooling, Normalize()], device="cpu")


def mteb_encode(model: Any, task: Any) -> Callable[[Any], Any]:
    """MTEB's encoding of documents with a sentence-transformers model, as a function of a DataLoader."""
    from mteb.models import SentenceTransformerEncoderWrapper
    from mteb.types import PromptType

    wrapped = SentenceTransformerEncoderWrapper(model)

    def encode(loader: Any) -> Any:
        return wrapped.encode(
            loader,
            task_metadata=task,
            hf_split="test",
            hf_subset="default",
            prompt_type=PromptType.document,
            show_progress_bar=False,
        )

    return encode


def prompt_texts(checkpoint: Checkpoint, documents: Sequence[str]) -> list[str]:
    """The direct prompts of these documents as text, as a user of sentence-transformers would write them.

    Date and thinking are those of the profile, and what the template trims is trimmed.
    """
    tokenizer, profile = checkpoint.tokenizer, checkpoint.profile
    system, reply = (
        part.replace("{embed_token}", profile.embed_token) for part in (profile.direct.system, profile.direct.reply)
    )
    before, after = wrap(tokenizer, profile, system).split(SLOT)
    left, right = trimmed(tokenizer, profile, system)
    return [f"{before}{document.lstrip(left).rstrip(right)}{after}{reply}" for document in documents]


def _generated(
    checkpoint: Checkpoint,
    prompts: Sequence[Sequence[int]],
    due: Sequence[int],
    end: int | None = None,
    **settings: Any,
) -> tuple[list[list[int]], Any]:
    """What `generate` says after each prompt, with the embed token where it is due, and its hidden states, if kept."""
    ids, mask = left_padded(prompts, checkpoint)
    embed = checkpoint.embed_token_id
    configuration = GenerationConfig(
        max_new_tokens=max(due) + (1 if end is None else 2),
        eos_token_id=embed if end is None else end,
        pad_token_id=_pad(checkpoint),
        return_dict_in_generate=True,
        **{"do_sample": False, "use_cache": True} | settings,
    )
    model = unwrap(checkpoint.model)
    # `generate` takes what the configuration leaves open from the checkpoint: penalties, of which we have none.
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        output = checkpoint.model.generate(
            input_ids=ids,
            attention_mask=mask,
            logits_processor=[AtLength(due, ids.shape[1], embed, end)],
            generation_config=configuration,
        )
    finally:
        model.generation_config = own
    return output.sequences[:, ids.shape[1] :].tolist(), output.hidden_states


def _pad(checkpoint: Checkpoint) -> int:
    pad = checkpoint.tokenizer.pad_token_id
    return int(checkpoint.embed_token_id if pad is None else pad)  # it is masked: any id will do
