"""Rollouts of the model's own reasoning, by the package's engine, and their form as rows of the training forward."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from search_r3_mteb.encoder.anchoring import anchored
from search_r3_mteb.encoder.engine import Engine, Rollouts
from search_r3_mteb.encoder.prompts import Rendered, Renderer
from search_r3_mteb.encoder.sampling import Sampling
from train.config.grpo import RolloutSettings
from train.data.rows import TrainingRow
from train.model.model import embed, evaluating


@dataclass(frozen=True)
class Groups:
    """The rollouts of one step on this process.

    Rollout r belongs to prompt `prompt[r]`, whose id `group[r]` is unique over all processes. `vectors` (rollouts, dim)
    have unit length and are what is ranked: the reasoned ones, or with `reward.anchor` the anchored ones. `rendered[r]`
    is the whole sequence: prompt, reasoning, embed token, with its spans. `direct` (prompts, dim), of unit length, are
    the vectors of the same queries without reasoning, by the same weights; None where they were not computed.
    """

    rows: Sequence[TrainingRow]
    rollouts: Rollouts
    rendered: list[Rendered]
    vectors: Float[np.ndarray, "rollouts dim"]
    group: Int[Tensor, " rollouts"]
    direct: Float[np.ndarray, "prompts dim"] | None = None

    @property
    def prompt(self) -> list[int]:
        """For each rollout the number of its prompt."""
        return self.rollouts.prompt_index

    def query(self, rollout: int) -> TrainingRow:
        """The training row that a rollout is about."""
        return self.rows[self.prompt[rollout]]

    @property
    def reasoning_tokens(self) -> list[int]:
        """Tokens before the embed token."""
        return [len(ids) - 1 for ids in self.rollouts.token_ids]


def sample(
    model: Any,
    renderer: Renderer,
    engine: Engine,
    rows: Sequence[TrainingRow],
    settings: RolloutSettings,
    *,
    step: int,
    seed: int,
    process: int,
) -> Groups:
    """`group_size` rollouts per row, each prompt prefilled once; draws depend on seed, step and query alone."""
    prompts = [renderer.render(row.query, "reason") for row in rows]
    digest = hashlib.sha256(f"rollouts {seed} {step}".encode()).digest()
    sampling = Sampling(settings.max_reasoning_tokens, settings.temperature, int.from_bytes(digest[:6], "big"))
    with evaluating(model):
        rollouts = engine.reason([p.token_ids for p in prompts], sampling, group_size=settings.group_size)
        direct = embed(engine, renderer, [row.query for row in rows])
    vectors = rollouts.vectors.numpy()
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (np.isfinite(norms).all() and (norms > 0).all()):
        raise FloatingPointError(
            f"step {step}: the vector of a rollout is not finite or zero. Lower the learning rate."
        )
    index = torch.tensor(rollouts.prompt_index)
    return Groups(
        rows=rows,
        rollouts=rollouts,
        rendered=[
            _with_reply(prompts[p], ids) for p, ids in zip(rollouts.prompt_index, rollouts.token_ids, strict=True)
        ],
        vectors=(vectors / norms).astype(np.float32),
        group=index + process * len(rows),
        direct=direct,
    )


def anchored_groups(groups: Groups, anchor: float) -> Groups:
    """The same rollouts with the vectors normalise(direct + anchor x reasoned); at 0 the groups themselves.

    These are what is ranked. They are constants of the policy, whose loss takes no gradient through a vector.
    Raises ValueError where the direct vectors were not computed.
    """
    if not anchor:
        return groups
    if groups.direct is None:
        raise ValueError(f"anchor = {anchor} needs the prompts' direct vectors, which `sample` computes.")
    sums = anchored(groups.direct[groups.prompt], groups.vectors, anchor)
    unit = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    return replace(groups, vectors=unit.astype(np.float32))


def sampled_log_probs(
    rollouts: Rollouts, chosen: Sequence[int]
) -> tuple[Float[Tensor, "rollouts tokens"], Bool[Tensor, "rollouts tokens"]]:
    """The sampler's log-probabilities, right-padded, and which tokens the model chose: all but a forced embed token."""
    width = max(len(rollouts.token_ids[r]) for r in chosen)
    values, mask = torch.zeros(len(chosen), width), torch.zeros(len(chosen), width, dtype=torch.bool)
    for place, rollout in enumerate(chosen):
        length = len(rollouts.token_ids[rollout])
        values[place, :length] = torch.tensor(rollouts.log_probs[rollout])
        mask[place, : length if rollouts.finished[rollout] else length - 1] = True
    return values, mask


def padded(flat: Float[Tensor, " positions"], lengths: Sequence[int]) -> Float[Tensor, "rollouts tokens"]:
    """Values of consecutive rows as a right-padded matrix; gradients flow back."""
    return torch.nn.utils.rnn.pad_sequence(list(flat.split(list(lengths))), batch_first=True)


def _with_reply(prompt: Rendered, generated: Sequence[int]) -> Rendered:
    start, end = len(prompt.token_ids), len(prompt.token_ids) + len(generated)
    spans = prompt.spans | {"assistant": (start, end), "embed": (end - 1, end)}
    return Rendered([*prompt.token_ids, *generated], spans, prompt.truncated_tokens)
