"""A task: questions and answers from a CSV file with the columns question and answer, as `--task faq:FILE.csv`."""

import csv
from pathlib import Path
from typing import Any

from search_r3_mteb.extensions import TASKS


@TASKS.register("faq")
def faq(argument: str, split: str | None) -> Any:
    """Each question finds its answer; equal answers are one document."""
    from search_r3_mteb.tasks.mteb_tasks import MemoryTask  # imports mteb, so here and not above

    with Path(argument).open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    documents = {text: f"answer-{number}" for number, text in enumerate(dict.fromkeys(row["answer"] for row in rows))}
    return MemoryTask(
        f"faq-{Path(argument).stem}",
        corpus={id_: text for text, id_ in documents.items()},
        queries={f"question-{number}": row["question"] for number, row in enumerate(rows)},
        relevant={f"question-{number}": {documents[row["answer"]]: 1} for number, row in enumerate(rows)},
        split=split or "test",
    )
