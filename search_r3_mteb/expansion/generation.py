"""Texts by transformers' own `generate`, for causal LMs that the decode loop refuses."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from search_r3_mteb.encoder.backbone import unwrap
from search_r3_mteb.encoder.sampling import Sampling


def generated(
    model: Any,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    samples: int,
    stop_ids: Sequence[int],
    batch_tokens: int,
    on_rows: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """The ids written for each prompt, `samples` rows per prompt, the ending one of `stop_ids` included.

    A batch holds prompts of one length, so nothing is padded and no state sees another row's padding. The draws of a
    row are those of `Sampling`: they depend on seed, prompt and place only.
    """
    causal = unwrap(model)
    found: list[list[int]] = [[] for _ in range(len(prompts) * samples)]
    if sampling.max_reasoning_tokens == 0 or not prompts:
        return found
    for batch in _one_length_each(prompts, samples, sampling.max_reasoning_tokens, batch_tokens):
        rows = [prompt * samples + place for prompt in batch for place in range(samples)]
        ids = torch.tensor([list(prompts[row // samples]) for row in rows], device=causal.device)
        draws = sampling.draws([prompts[i] for i in batch], samples) if sampling.temperature > 0 else None
        with torch.no_grad():
            output = causal.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                num_beams=1,
                max_new_tokens=sampling.max_reasoning_tokens,
                eos_token_id=list(stop_ids),
                pad_token_id=stop_ids[0],
                repetition_penalty=1.0,
                logits_processor=[] if draws is None else [_Drawn(draws, sampling.temperature, ids.shape[1])],
            )
        for row, new in zip(rows, output[:, ids.shape[1] :].tolist(), strict=True):
            end = next((place for place, each in enumerate(new) if each in stop_ids), len(new) - 1)
            found[row] = new[: end + 1]
        if on_rows is not None:
            on_rows(len(rows))
    return found


def _one_length_each(prompts: Sequence[Sequence[int]], samples: int, budget: int, batch_tokens: int) -> list[list[int]]:
    """Positions of prompts of equal length, as many together as the token budget holds."""
    batches: list[list[int]] = []
    for position in sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i)):
        length = len(prompts[position])
        same = bool(batches) and len(prompts[batches[-1][0]]) == length
        if same and (len(batches[-1]) + 1) * samples * (length + budget) <= batch_tokens:
            batches[-1].append(position)
        else:
            batches.append([position])
    return batches


class _Drawn:
    """Leaves one token per row: the inverse of the cumulative distribution at the row's own draw, as `decode.py`."""

    def __init__(self, draws: Float64[Tensor, "rows steps"], temperature: float, prompt_length: int) -> None:
        self.draws, self.temperature, self.prompt_length = draws, temperature, prompt_length

    def __call__(
        self, ids: Int[Tensor, "rows length"], scores: Float[Tensor, "rows vocabulary"]
    ) -> Float[Tensor, "rows vocabulary"]:
        """Scores of -inf but for the drawn token."""
        draw = self.draws[:, ids.shape[1] - self.prompt_length].to(scores.device)
        cumulative = (scores.float() / self.temperature).double().softmax(dim=-1).cumsum(dim=-1)
        token = torch.searchsorted(cumulative, (draw * cumulative[:, -1])[:, None], right=True)
        token = token.clamp_(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter_(1, token, 0.0)
