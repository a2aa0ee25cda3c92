"""The explanation of one question: its reasoning, and the documents found without and with it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32

from search_r3_mteb.encoder.documents import join_title
from search_r3_mteb.evaluation.tasks import FORMS, resolve_task
from search_r3_mteb.text_files import read_lines

if TYPE_CHECKING:
    from rich.table import Table

    from search_r3_mteb.encoder.encoder import SearchR3Encoder, Thought

_SHOWN = 300  # characters of a document


@dataclass(frozen=True)
class Hit:
    """One found document; `score` is the cosine."""

    id: str
    score: float
    text: str


@dataclass(frozen=True)
class Explanation:
    """A question's reasoning and its documents without and with it, best first."""

    thought: "Thought"
    without: list[Hit]
    with_reasoning: list[Hit]
    documents: int


def explain(encoder: "SearchR3Encoder", documents: list[tuple[str, str]], question: str, top: int = 5) -> Explanation:
    """Search `documents` (id, text) with the direct vector of `question` and with the one after reasoning.

    `encoder` must be in mode "reason". Raises ValueError for an empty corpus.
    """
    from search_r3_mteb.encoder.encoder import SearchR3Encoder

    if not documents:
        raise ValueError("The corpus holds no documents, so nothing can be found in it.")
    texts = [text for _, text in documents]
    vectors = encoder.encode_document(texts)
    [thought] = encoder.think([question])
    without = SearchR3Encoder(encoder.checkpoint, mode="direct", max_length=encoder.max_length)
    [direct] = without.encode_query([question])
    return Explanation(
        thought=thought,
        without=_search(direct, vectors, documents, top),
        with_reasoning=_search(thought.vector, vectors, documents, top),
        documents=len(documents),
    )


def side_by_side(explanation: Explanation) -> "Table":
    """Both rankings as one rich table, one row per rank; documents that only one of them has are marked."""
    from rich.table import Table
    from rich.text import Text

    found = Table(show_lines=True, title=f"Top documents of {explanation.documents:,}")
    found.add_column("", justify="right")
    found.add_column("without reasoning", overflow="fold", ratio=1)
    found.add_column("with reasoning", overflow="fold", ratio=1)
    first, second = explanation.without, explanation.with_reasoning
    for rank, (left, right) in enumerate(zip(first, second, strict=True), start=1):
        cells = [
            Text.assemble(
                (f"{hit.score:.3f} {hit.id}", "dim" if hit.id in {each.id for each in others} else "bold"),
                "" if hit.id in {each.id for each in others} else " *",
                f"\n{hit.text[:_SHOWN]}",
            )
            for hit, others in ((left, second), (right, first))
        ]
        found.add_row(str(rank), *cells)
    found.caption = "* not among the top documents of the other column"
    return found


def read_documents(corpus: str) -> list[tuple[str, str]]:
    """(id, text) of the documents in a BEIR folder, a corpus.jsonl, a text file with one document per line, or a task.

    The ids of lines are their numbers from 1; empty lines are left out. Raises FileNotFoundError and ValueError.
    """
    return list(_documents(corpus))


def _documents(corpus: str) -> Iterator[tuple[str, str]]:
    from search_r3_mteb.tasks.beir_folder import read_corpus

    path = Path(corpus)
    if path.is_dir() or path.name.endswith((".jsonl", ".jsonl.gz")):
        for document in read_corpus(path):
            yield document.id, join_title(document.title, document.text)
    elif path.exists():
        for number, line in enumerate(read_lines(path), start=1):
            if line.strip():
                yield str(number), line
    elif path.suffix or len(path.parts) > 1:
        raise FileNotFoundError(
            f"There is no corpus {corpus}. Give a BEIR folder, a corpus.jsonl, a text file, or {FORMS}."
        )
    else:
        task = resolve_task(corpus)
        task.load_data()
        [splits] = task.dataset.values()
        for row in next(iter(splits.values()))["corpus"]:
            yield row["id"], join_title(row.get("title"), row["text"])


def _search(
    query: Float32[np.ndarray, " dim"],
    vectors: Float32[np.ndarray, "n dim"],
    documents: list[tuple[str, str]],
    top: int,
) -> list[Hit]:
    scores = vectors @ query
    best = np.argsort(-scores, kind="stable")[:top]
    return [Hit(documents[row][0], float(scores[row]), documents[row][1]) for row in best]
