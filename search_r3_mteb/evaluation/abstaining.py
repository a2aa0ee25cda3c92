"""Reasoning only where the direct ranking is unsure: a search model for MTEB around a SearchR3Encoder.

A query is searched with its direct vector first. Where the margin, the cosine of the nearest document minus that of the
second, is below `abstain_margin`, it reasons and is searched again with the vector of that; the others keep their
direct ranking and cost no token. Our choice, to be measured: `search-r3 tune` chooses the margin on a development
split. It belongs to a corpus as much as to a model, so no profile recommends one.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from search_r3_mteb.encoder.inputs import documents_of, read_queries
from search_r3_mteb.encoder.setting_types import check_number
from search_r3_mteb.encoder.thoughts import Thought
from search_r3_mteb.search.arrays import Vectors
from search_r3_mteb.search.candidates import candidate_rows, ranked_scores

if TYPE_CHECKING:
    from search_r3_mteb.encoder.encoder import SearchR3Encoder
    from search_r3_mteb.encoder.settings import Mode, Statistics
    from search_r3_mteb.evaluation.queries import DocumentScores

_NEEDED = 4
"""Documents that a margin is read from: two, after the query itself and the first were left out, where they are."""


@dataclass(frozen=True)
class SearchSettings:
    """Settings of a search that an encoder alone cannot have. `abstain_margin` (a cosine) None: every query reasons."""

    abstain_margin: float | None = None

    def __post_init__(self) -> None:
        if self.abstain_margin is not None:
            check_number("abstain_margin", self.abstain_margin)
            if not self.abstain_margin >= 0:
                raise ValueError(
                    f"abstain_margin={self.abstain_margin!r} must be 0 (no query reasons) or a positive number: the "
                    "cosine of the nearest document minus that of the second, below which a query reasons."
                )


def top_margins(rankings: Sequence[Mapping[str, float]]) -> Float[np.ndarray, " queries"]:
    """For each ranking the score of the first document minus that of the second; infinite where there is no second."""
    firsts = [sorted(ranking.values(), reverse=True)[:2] for ranking in rankings]
    return np.array([first[0] - first[1] if len(first) == 2 else np.inf for first in firsts], np.float64)


def is_unsure(margins: Float[np.ndarray, " queries"], bound: float) -> Bool[np.ndarray, " queries"]:
    """Which queries reason: those whose margin is below the bound."""
    unsure: Bool[np.ndarray, " queries"] = margins < bound
    return unsure


class AbstainingSearch:
    """MTEB's search model, in which a query reasons only where its direct ranking is unsure.

    `encoder` is of mode "reason"; what it reasons, and its anchor, are its own. All vectors of the documents stay in
    memory. `as_scored` takes from a ranking what the task does not score (the query itself, the first document): that
    does not count for the margin either.
    """

    def __init__(self, encoder: "SearchR3Encoder", direct: "SearchR3Encoder", abstain_margin: float) -> None:
        if (encoder.mode, direct.mode) != ("reason", "direct"):
            raise ValueError(f"An encoder of each mode is needed, got {encoder.mode!r} and {direct.mode!r}.")
        SearchSettings(abstain_margin)
        self.encoder, self.direct, self.abstain_margin = encoder, direct, abstain_margin
        self.as_scored: Callable[[DocumentScores], DocumentScores] = lambda ranking: ranking
        direct.statistics = encoder.statistics  # one count of both
        self._ids: list[str] = []
        self._vectors: Vectors | None = None

    @property
    def mteb_model_meta(self) -> Any:
        """MTEB's description of the encoder, with the margin in its identity."""
        meta = self.encoder.mteb_model_meta
        experiment = {**(meta.experiment_kwargs or {}), "abstain_margin": self.abstain_margin}
        return meta.model_copy(update={"experiment_kwargs": experiment})

    @property
    def statistics(self) -> "Statistics":
        """What both encoders have done."""
        return self.encoder.statistics

    @property
    def mode(self) -> "Mode":
        """As `RecordedSearch` reads it: there are thoughts to be kept."""
        return "reason"

    @property
    def task_prompts(self) -> bool:
        """Whether an MTEB task's own instruction is put before the query."""
        return self.encoder.task_prompts

    def think(self, texts: Sequence[str], **keywords: Any) -> Sequence[Thought]:
        """The encoder's own thoughts, about every text."""
        return self.encoder.think(texts, **keywords)

    def index(self, corpus: Any, *, encode_kwargs: Any = None, **place: Any) -> None:
        """MTEB's index: embed the documents and keep them. Nothing depends on `place`."""
        texts, _ = documents_of(corpus)
        show = (encode_kwargs or {}).get("show_progress_bar")
        self._ids = [str(each) for each in corpus["id"]]
        self._vectors = self.direct.encode_document(texts, show_progress_bar=show)

    def search(
        self,
        queries: Any,
        *,
        top_k: int,
        task_metadata: Any = None,
        encode_kwargs: Any = None,
        top_ranked: Mapping[str, Sequence[str]] | None = None,
        on_thoughts: Callable[[Sequence[Thought]], Any] | None = None,
        **place: Any,
    ) -> dict[str, dict[str, float]]:
        """MTEB's search: by query id the cosines of the `top_k` nearest documents, or candidates.

        Where `top_ranked` names candidates, no other document counts, neither for the margin nor in the ranking.
        `on_thoughts` is called with the queries' thoughts; that of a query that did not reason `abstained`.
        """
        from mteb._create_dataloaders import create_dataloader
        from mteb.types import PromptType

        batches = create_dataloader(queries, task_metadata=task_metadata, prompt_type=PromptType.query, batch_size=32)
        texts, instructions = read_queries(batches, task_metadata if self.task_prompts else None)
        ids, show = [str(each) for each in queries["id"]], (encode_kwargs or {}).get("show_progress_bar")
        vectors = self.direct.encode_query(texts, instruction=instructions, show_progress_bar=show)
        began = time.perf_counter()
        unsure = np.flatnonzero(is_unsure(self._margins(ids, vectors, top_ranked), self.abstain_margin))
        self.statistics.query_seconds += time.perf_counter() - began  # a search that other systems do not need
        found = self.encoder.think(
            [texts[row] for row in unsure],
            instruction=[instructions[row] for row in unsure],
            show_progress_bar=show,
        )
        self.statistics.queries -= len(unsure)  # counted with their direct vectors already
        thoughts = [Thought("", [], True, vector, direct=vector) for vector in vectors]
        for row, thought in zip(unsure, found, strict=True):
            thoughts[row] = thought
        if on_thoughts is not None:
            on_thoughts(thoughts)
        final = np.array([thought.vector for thought in thoughts], np.float32).reshape(-1, self.encoder.dim)
        rankings = self._ranked(ids, final, top_k, top_ranked)
        return {query: ranking for query, ranking in zip(ids, rankings, strict=True) if ranking}

    def _margins(
        self, ids: Sequence[str], vectors: Vectors, top_ranked: Mapping[str, Sequence[str]] | None
    ) -> Float[np.ndarray, " queries"]:
        rankings = self._ranked(ids, vectors, _NEEDED, top_ranked)
        scored = self.as_scored(dict(zip(ids, rankings, strict=True)))
        return top_margins([scored[each] for each in ids])

    def _ranked(
        self, ids: Sequence[str], vectors: Vectors, top_k: int, top_ranked: Mapping[str, Sequence[str]] | None
    ) -> list[dict[str, float]]:
        """For each query, in order, the scores of its nearest documents, among its candidates where it has some."""
        if self._vectors is None:
            raise ValueError(
                f"{self.encoder.name}: whether a query reasons depends on the documents, and there are none yet. Call "
                "index(documents) first."
            )
        allowed = None
        if top_ranked is not None:
            rows_of = candidate_rows(top_ranked, ids, self._ids)
            allowed = [rows_of[each] for each in ids]
        return ranked_scores(vectors, self._vectors, self._ids, top_k, allowed)
