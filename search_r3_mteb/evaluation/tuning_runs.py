"""One run of a system over a split: the two vectors of each query from which every anchor's row is computed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from jaxtyping import Float

from search_r3_mteb.encoder.anchoring import anchored
from search_r3_mteb.evaluation.diagnosis_runs import again
from search_r3_mteb.evaluation.movement import PerQuery
from search_r3_mteb.evaluation.query_scorer import QueryScorer
from search_r3_mteb.expansion.names import ExpansionName, open_expansion
from search_r3_mteb.expansion.rules import unit_rows
from search_r3_mteb.search.arrays import Vectors

if TYPE_CHECKING:
    from search_r3_mteb.encoder.encoder import SearchR3Encoder
    from search_r3_mteb.expansion.feedback import FeedbackEncoder
    from search_r3_mteb.expansion.writer_encoder import WriterEncoder

OpenScorer = Callable[[Any], QueryScorer]
"""Makes the scorer of a split's queries, whose documents the given encoder embeds."""


@dataclass(frozen=True)
class Cost:
    """Tokens of each query's reasoning, and milliseconds per query without it and of it.

    `always_direct`: the direct vector is computed under every rule, as a writer's encoder does.
    """

    tokens: PerQuery
    direct: float
    reasoned: float
    always_direct: bool = False

    def of(self, unsure: Any, anchor: float | None) -> dict[str, float]:
        """Tokens and milliseconds per query when these queries reason; all of them alone need no direct vector."""
        needs_direct = self.always_direct or anchor is not None or not unsure.all()
        return {
            "tokens_per_query": round(float((self.tokens * unsure).mean()), 3),
            "milliseconds_per_query": round(self.direct * needs_direct + self.reasoned * float(unsure.mean()), 3),
        }


@dataclass(frozen=True)
class SystemRun:
    """What was run. `direct` (queries, dim) are the vectors without reasoning, `own` those without an anchor.

    `own` is None where the anchor has no alternative (Rocchio). `at(anchor)` gives the anchored vectors.
    """

    settings: Mapping[str, Any]
    fingerprint: str
    scorer: QueryScorer
    direct: Vectors
    own: Vectors | None
    at: Callable[[float], Vectors]
    cost: Cost


def run_search_r3(encoder: "SearchR3Encoder", store: Path, scorer_of: OpenScorer) -> SystemRun:
    """A Search-R3 checkpoint: its direct vectors, and those after its reasoning."""
    direct = again(encoder, store, mode="direct", anchor=None)
    reason = again(encoder, store, anchor=None)
    scorer = scorer_of(direct)
    first = direct.encode_query(scorer.texts, instruction=scorer.instructions)
    thoughts = reason.think(scorer.texts, instruction=scorer.instructions)
    second = np.stack([thought.vector for thought in thoughts])
    return SystemRun(
        encoder.settings,
        encoder.fingerprint,
        scorer,
        first,
        second,
        lambda anchor: encoder.unit(anchored(first, second, anchor), scorer.texts),
        Cost(
            _tokens(thoughts),
            1000 * direct.statistics.query_seconds / len(scorer),
            1000 * reason.statistics.query_seconds / len(scorer),
        ),
    )


def run_expansion(name: ExpansionName, settings: Mapping[str, Any], store: Path, scorer_of: OpenScorer) -> SystemRun:
    """A writer with an encoder: the query's own vectors, those of the method's rule, and those of the texts alone.

    Rocchio's texts are the nearest documents. What looks at the corpus is shown each subset's own.
    """
    encoder: WriterEncoder = open_expansion(name, {**settings, "cache_folder": store})
    scorer = scorer_of(encoder)
    thoughts: list[Any] = [None] * len(scorer)
    for rows, corpus in scorer.corpora():
        if name.method.needs_corpus:
            cast("FeedbackEncoder", encoder).index(corpus)
        texts, instructions = [scorer.texts[row] for row in rows], [scorer.instructions[row] for row in rows]
        for row, thought in zip(rows, encoder.think(texts, instruction=instructions), strict=True):
            thoughts[row] = thought
    first, alone = (np.stack([getattr(each, part) for each in thoughts]) for part in ("direct", "reasoned"))
    _, seconds = encoder.encoder.vectors(scorer.texts, "query", scorer.instructions, None)
    return SystemRun(
        encoder.settings,
        encoder.fingerprint,
        scorer,
        first,
        np.stack([each.vector for each in thoughts]) if name.method.needs_writer else None,
        lambda anchor: unit_rows(anchored(first, alone, anchor)),
        Cost(
            _tokens(thoughts),
            1000 * seconds / len(scorer),
            1000 * (encoder.statistics.query_seconds - seconds) / len(scorer),
            always_direct=True,
        ),
    )


def _tokens(thoughts: Any) -> Float[np.ndarray, " queries"]:
    return np.array([float(len(thought.token_ids)) for thought in thoughts])
