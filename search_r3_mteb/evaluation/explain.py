"""The explanation of one question: its reasoning, and the documents found without and with it."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32

from search_r3_mteb.encoder.documents import join_title
from search_r3_mteb.evaluation.readiness import load_task
from search_r3_mteb.evaluation.tasks import FORMS, LOCAL_TASKS, is_local, resolve_task
from search_r3_mteb.extensions import TASKS
from search_r3_mteb.files import READABLE, STANDARD_INPUT, Columns, iter_documents
from search_r3_mteb.indexing.results import Hit
from search_r3_mteb.terminal import beginning

if TYPE_CHECKING:
    from rich.table import Table

    from search_r3_mteb.encoder.encoder import SearchR3Encoder
    from search_r3_mteb.encoder.thoughts import Thought


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
    kept = {"max_length": encoder.max_length, "truncate_dim": encoder.truncate_dim, **encoder.batches}
    without = SearchR3Encoder(encoder.checkpoint, mode="direct", **kept)
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
                (f"{hit.score:z.3f} {beginning(hit.id)}", "dim" if hit.id in {each.id for each in others} else "bold"),
                "" if hit.id in {each.id for each in others} else " *",
                f"\n{beginning(hit.text)}",
            )
            for hit, others in ((left, second), (right, first))
        ]
        found.add_row(str(rank), *cells)
    found.caption = "* not among the top documents of the other column"
    return found


def read_documents(corpus: str | Path, columns: Columns | None = None) -> list[tuple[str, str]]:
    """(id, text) of the documents of whatever `files` reads, or of a task; the text begins with the title.

    Raises FileNotFoundError and ValueError, also for a name that means both a task and what is here, and for `columns`
    of a task, which has its own.
    """
    path = Path(corpus)
    if isinstance(corpus, str) and corpus in (*LOCAL_TASKS, *TASKS.names()) and path.exists():
        raise ValueError(
            f"--corpus {corpus} is both a task and a file or folder here. Write ./{corpus} for what is here; for the "
            "task, work in another folder."
        )
    if str(corpus) == STANDARD_INPUT or path.exists():
        return [(each.id, join_title(each.title, each.text)) for each in iter_documents(corpus, columns)]
    if isinstance(corpus, Path) or (not is_local(corpus) and (path.suffix or len(path.parts) > 1)):
        raise FileNotFoundError(f"There is no corpus {corpus}. Give {READABLE}, or a task: {FORMS}.")
    if columns not in (None, Columns()):
        raise ValueError(f"{corpus} is a task, whose documents have no columns to name. Leave the options out.")
    task = resolve_task(corpus)
    load_task(task)
    [splits] = task.dataset.values()
    return [(row["id"], join_title(row.get("title"), row["text"])) for row in next(iter(splits.values()))["corpus"]]


def _search(
    query: Float32[np.ndarray, " dim"],
    vectors: Float32[np.ndarray, "n dim"],
    documents: list[tuple[str, str]],
    top: int,
) -> list[Hit]:
    scores = vectors @ query
    best = np.argsort(-scores, kind="stable")[:top]
    return [Hit(documents[row][0], float(scores[row]), "", documents[row][1]) for row in best]
