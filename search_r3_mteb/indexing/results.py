"""What a search finds."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from search_r3_mteb.encoder.thoughts import Thought


@dataclass(frozen=True)
class Hit:
    """One found document; `score` is the cosine of its vector with the query's. The title is "" where it has none."""

    id: str
    score: float
    title: str
    text: str


@dataclass(frozen=True)
class SearchResult:
    """One query, its reasoning (None in mode "direct"), and the documents that it finds, best first."""

    query: str
    thought: "Thought | None"
    hits: list[Hit]
