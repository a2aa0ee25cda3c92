"""Cosine similarity of vectors, refused where it would be NaN, of other models' vectors, or of something else."""

from typing import Any


def cosines(first: Any, second: Any) -> Any:
    """Cosine similarities (n, m) of rows (n, dim) and (m, dim), as a float32 tensor; one vector (dim,) is one row.

    Raises TypeError for what are not numbers and ValueError for other shapes, for dimensions that differ, and for a row
    that is not finite or is zero and so has no direction.
    """
    one, other = _pair(first, second)
    return one @ other.T


def paired_cosines(first: Any, second: Any) -> Any:
    """Cosine similarities (n,) of rows (n, dim) with rows (n, dim), as a float32 tensor; errors as for `cosines`."""
    one, other = _pair(first, second)
    if len(one) != len(other):
        raise ValueError(
            f"Pairs need as many rows on both sides, got {len(one)} and {len(other)}. For each row with every other, "
            "call similarity."
        )
    return (one * other).sum(dim=-1)


def _pair(first: Any, second: Any) -> tuple[Any, Any]:
    one, other = _unit_rows(first, "first"), _unit_rows(second, "second")
    if one.shape[1] != other.shape[1]:
        raise ValueError(
            f"The first vectors have {one.shape[1]} dimensions, the second {other.shape[1]}: they are from different "
            "models, or one of them was cut. Encode both with one model."
        )
    return one, other


def _unit_rows(vectors: Any, place: str) -> Any:
    """Rows (n, dim) of unit length as a float32 tensor."""
    import numpy as np
    import torch

    try:
        if isinstance(vectors, list | tuple) and vectors and all(isinstance(row, np.ndarray) for row in vectors):
            vectors = np.stack(vectors)
        rows = torch.as_tensor(vectors)
        if rows.dtype == torch.bool or rows.is_complex():
            raise TypeError(f"{rows.dtype} is not a number with a size")
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise TypeError(
            f"The {place} of the two to compare must be vectors, numbers of shape (rows, dim) or (dim,), got "
            f"{type(vectors).__name__}: {vectors!s:.60} ({error!s:.100}). Encode texts first: "
            "similarity(encode_query([...]), encode_document([...]))."
        ) from error
    if rows.ndim not in (1, 2) or rows.shape[-1] == 0:
        raise ValueError(
            f"The {place} of the two to compare has the shape {tuple(rows.shape)}; vectors have (rows, dim) or (dim,)."
        )
    rows = torch.atleast_2d(rows.to(torch.float32))
    norms = rows.double().norm(dim=-1)
    bad = (~(norms.isfinite() & (norms > 0))).nonzero().flatten()
    if len(bad):
        raise ValueError(
            f"Row {int(bad[0])} of the {place} vectors (and {len(bad) - 1} more) is not finite or zero, so it has no "
            "direction and no similarity. Drop these rows, or encode their texts again."
        )
    return torch.nn.functional.normalize(rows, dim=-1)
