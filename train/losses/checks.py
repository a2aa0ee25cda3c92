"""Checks and conversions of the losses' tensors: finite values, enough digits, unit length, counts above 0."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


def unit(vectors: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
    """The vectors at length 1, in float32 or wider: bfloat16 cosines have too few digits for a temperature of 0.05."""
    return functional.normalize(at_least_float32(vectors), dim=-1)


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32, or as it is when it is wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def require_finite(**tensors: Tensor) -> None:
    """ValueError naming the first tensor that holds NaN or an infinity, and where."""
    for name, tensor in tensors.items():
        finite = torch.isfinite(tensor)
        if not bool(finite.all()):
            where = (~finite).nonzero()[0].tolist()
            raise ValueError(
                f"`{name}` {tuple(tensor.shape)} holds {float(tensor[tuple(where)].detach())} at {where} "
                f"({int((~finite).sum())} such values): a loss of it means nothing. "
                "Look at the batch, the learning rate and the dtype."
            )


def require_positive(**values: float) -> None:
    """ValueError naming the first value that is not above 0."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name}={value} must be above 0: scores are divided by it.")


def share(count: float | None, here: int) -> float:
    """The divisor of a sum: `count` where the caller knows the whole, else the number `here`. ValueError unless > 0."""
    count = here if count is None else count
    if not count > 0:
        raise ValueError(
            f"The loss would be divided by a count of {count}: there is nothing to average over. "
            "Leave this term out for this batch."
        )
    return count
