"""How a query and the texts written for it become one vector: pure functions.

passages   v = normalise(weight x q + sum of d_k)   d_k: the passages' vectors as documents (HyDE, equation 8)
appended   v = normalise(mean of f(query + text))   f: the vector as a query; the query `weight` times before the text
together   v = f(query + all texts)                 the query `weight` times; None: by the texts' length, as MuGI does
anchored   v = normalise(q + anchor x normalise(e)) e: the mean of the d_k or f above; whatever the rule
"""

import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from search_r3_mteb.expansion.methods import Rule
from search_r3_mteb.search.arrays import Vectors

_ADAPTIVE = 6  # characters of the texts per character of repeated query: `adaptive_times` of MuGI's code
# A sign that belongs to a word or a number ("2.5 mg", "-5 degrees", "*args") is not a bullet, which a space follows.
_BULLET = re.compile(r"^[^\S\n]*(?:\u2022[^\S\n]*|(?:[-*]|\d{1,3}[.)])(?:[^\S\n]+|$))", re.MULTILINE)


def embedded_texts(rule: Rule, query: str, written: Sequence[str], weight: float | None, separator: str) -> list[str]:
    """The texts whose vectors make the expanded vector; empty ones are left out, and none may be left.

    `weight` is the number of times that the query stands before a text (0: the text alone); `separator` between them.
    """
    texts = [text.strip() for text in written if text.strip()]
    if rule == "passages" or not texts:
        return texts
    if rule == "together":
        joined = " ".join(texts)
        # The code's rule gives 0 for short texts; at least once is our choice.
        times = max(1, len(joined) // max(1, len(query)) // _ADAPTIVE) if weight is None else int(weight)
        return [" ".join([*[query] * times, joined])]
    times = 1 if weight is None else int(weight)
    return [f"{' '.join([query] * times)}{separator if times else ''}{text}" for text in texts]


def keywords_of(text: str) -> str:
    """A list of keywords on one line: bullets and numbers are taken off, and lines are joined by commas."""
    lines = [line.strip(" ,;") for line in _BULLET.sub("", text).splitlines()]
    return ", ".join(line for line in lines if line)


def combined(
    rule: Rule,
    query: Float[np.ndarray, " dim"],
    expanded: Float[np.ndarray, "texts dim"],
    weight: float | None,
    anchor: float | None,
) -> Float[np.ndarray, " dim"]:
    """The vector of unit length of one query; `query` and the rows of `expanded` are of unit length.

    Without texts it is the query's own. Raises ValueError where the vectors cancel each other out.
    """
    own, rows = query.astype(np.float64), expanded.astype(np.float64)
    if len(rows) == 0:
        return query.astype(np.float32)
    if anchor is not None:
        return _unit(own + anchor * mean_direction(query, expanded).astype(np.float64))
    if rule == "passages":
        return _unit((1.0 if weight is None else weight) * own + rows.sum(axis=0))
    return _unit(rows.mean(axis=0))


def mean_direction(
    query: Float[np.ndarray, " dim"], expanded: Float[np.ndarray, "texts dim"]
) -> Float[np.ndarray, " dim"]:
    """The e of the anchored rule, of unit length; without texts the query's own vector."""
    return query.astype(np.float32) if len(expanded) == 0 else _unit(expanded.astype(np.float64).mean(axis=0))


def rocchio(
    query: Float[np.ndarray, " dim"], documents: Float[np.ndarray, "hits dim"], anchor: float
) -> Float[np.ndarray, " dim"]:
    """normalise(q + anchor x mean of the documents), the mean as it is; without documents the query's own vector."""
    if len(documents) == 0:
        return query.astype(np.float32)
    return _unit(query.astype(np.float64) + anchor * documents.astype(np.float64).mean(axis=0))


def unit_rows(vectors: Float[np.ndarray, "rows dim"]) -> Vectors:
    """The rows at unit length, as float32. Raises ValueError for one without a direction."""
    return np.stack([_unit(vector) for vector in vectors])


def _unit(vector: Float[np.ndarray, " dim"]) -> Vectors:
    norm = float(np.linalg.norm(vector))
    if not np.isfinite(norm) or norm < 1e-12:
        raise ValueError(
            "The query's vector and those of its texts cancel each other out, so their sum has no direction. Change "
            "`weight` or `anchor`."
        )
    unit: Vectors = (vector / norm).astype(np.float32)
    return unit
