"""The explanation of one question: its reasoning, and the documents found without and with it."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32

from search_r3_mteb.encoder.documents import join_title
from search_r3_mteb.evaluation.readiness import load_task
from search_r3_mteb.evaluation.tasks import FORMS, LOCAL_TASKS, is_local, resolve_task
from search_r3_mteb.text_files import read_rows

if TYPE_CHECKING:
    from rich.table import Table

    from search_r3_mteb.encoder.encoder import SearchR3Encoder
    from search_r3_mteb.encoder.thoughts import Thought

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

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        thought = {"reasoning": self.thought.text, "finished": self.thought.finished, "given": self.thought.given}
        hits = {"without": self.without, "with_reasoning": self.with_reasoning}
        found = {name: [{**asdict(hit), "score": float(hit.score)} for hit in part] for name, part in hits.items()}
        return {**thought, "tokens": len(self.thought.token_ids), "documents": self.documents, **found}


def explain(
    encoder: "SearchR3Encoder",
    documents: list[tuple[str, str]],
    question: str,
    top: int = 5,
    reasoning: str | None = None,
) -> Explanation:
    """Search `documents` (id, text) with the direct vector of `question` and with the one after reasoning.

    `encoder` must be in mode "reason"; `reasoning` stands for its own. Raises ValueError for an empty corpus.
    """
    from search_r3_mteb.encoder.encoder import SearchR3Encoder

    if not documents:
        raise ValueError("The corpus holds no documents, so nothing can be found in it.")
    texts = [text for _, text in documents]
    vectors = encoder.encode_document(texts)
    [thought] = encoder.think([question], reasoning=[reasoning])
    without = SearchR3Encoder(encoder.checkpoint, mode="direct", max_length=encoder.max_length, **encoder.batches)
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


def read_documents(corpus: str | Path) -> list[tuple[str, str]]:
    """(id, text) of the documents in a BEIR folder, a file (see `text_files`), or a task.

    A document without an "_id" is known by its line's number from 1; empty lines are left out. Raises
    FileNotFoundError and ValueError, also for a name that means both a task and what is here.
    """
    path = Path(corpus)
    if isinstance(corpus, str) and corpus in LOCAL_TASKS and path.exists():
        raise ValueError(
            f"--corpus {corpus} is both a task and a file or folder here. Write ./{corpus} for what is here; for the "
            "task, work in another folder."
        )
    if path.exists():
        return _unique(corpus, _files(path))
    if isinstance(corpus, Path) or (not is_local(corpus) and (path.suffix or len(path.parts) > 1)):
        raise FileNotFoundError(
            f"There is no corpus {corpus}. Give a BEIR folder, a corpus.jsonl, a text file, or {FORMS}."
        )
    task = resolve_task(corpus)
    load_task(task)
    [splits] = task.dataset.values()
    return [(row["id"], join_title(row.get("title"), row["text"])) for row in next(iter(splits.values()))["corpus"]]


def _files(path: Path) -> Iterator[tuple[str, str]]:
    if path.is_dir():
        from search_r3_mteb.tasks.beir_folder import read_corpus

        yield from ((document.id, join_title(document.title, document.text)) for document in read_corpus(path))
    else:
        yield from ((row.id or str(row.number), row.text) for row in read_rows(path) if row.id or row.text.strip())


def _unique(corpus: str | Path, documents: Iterator[tuple[str, str]]) -> list[tuple[str, str]]:
    found: dict[str, str] = {}
    for id_, text in documents:
        if id_ in found:
            raise ValueError(f"{corpus}: two documents have the id {id_!r}. Give each its own.")
        found[id_] = text
    return list(found.items())


def _search(
    query: Float32[np.ndarray, " dim"],
    vectors: Float32[np.ndarray, "n dim"],
    documents: list[tuple[str, str]],
    top: int,
) -> list[Hit]:
    scores = vectors @ query
    best = np.argsort(-scores, kind="stable")[:top]
    return [Hit(documents[row][0], float(scores[row]), documents[row][1]) for row in best]
