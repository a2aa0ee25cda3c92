"""How much of a task's test data a training set holds: exactly, nearly, and by id; `search-r3 contamination`.

Exact: equal but for case, white space, punctuation and compatibility forms. Near: a Jaccard of word shingles at or
above the threshold (`near_duplicates`; computed, not estimated). Every text of the training set is compared with every
query and every document of the task, and the report says which part of the test data was found in which part of the
training data. A part that is only contained in a longer text is not found.

By id: a training text has the id of a test text of its kind. Ids such as "17" are equal by chance, so it is counted
apart whether the texts agree too; it counts as found where the training set holds ids alone.

Memory: an index of the test data, measured with 83 bytes for each distinct shingle of each text while it is made and 28
from then on (a document of 100 words has about 100 shingles, and has them twice if it has a title): 0.8 and 0.3 GB for
100,000 such documents. The training set is streamed, once for each task and split; of it only examples are kept.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from search_r3_mteb.atomic import write_json
from search_r3_mteb.column_roles import ColumnRole
from search_r3_mteb.encoder.documents import join_title
from search_r3_mteb.evaluation.queries import query_text
from search_r3_mteb.evaluation.readiness import load_task
from search_r3_mteb.evaluation.tasks import TaskSpec, resolve_tasks
from search_r3_mteb.evaluation.training_texts import TrainingText, read_training
from search_r3_mteb.near_duplicates import DuplicateIndex, Signature, Signer

if TYPE_CHECKING:
    from mteb.abstasks.retrieval import AbsTaskRetrieval

    from search_r3_mteb.narrow_tables import NarrowTable

TestPart: TypeAlias = Literal["queries", "relevant documents", "other documents"]
TEST_PARTS: tuple[TestPart, ...] = ("queries", "relevant documents", "other documents")
ROLES: tuple[ColumnRole, ...] = ("query", "positive", "negative")
THRESHOLD = 0.8  # as in Lee et al. 2022, arXiv 2107.06499, 4.2
SHINGLE_WORDS = 3  # our choice: queries are short (Lee et al. use 5 on documents)
_SHOWN = 200  # characters of a text in the report
_NEAR, _EXACT = 1, 2
_ID_TEXT, _ID_OTHER, _ID_ONLY, _ID_NEGATIVE = 1, 2, 4, 8  # the last two: the training set holds the id alone


@dataclass
class PartCounts:
    """One part of the test data: `texts` of it, and how many of them the training set holds.

    `exact` and `near` count, for each kind of training text, the test texts found there; one that is both is exact.
    `found` are those in training queries or positives, of either sort, or by their ids where those come without texts.
    """

    texts: int = 0
    found: int = 0
    exact: dict[ColumnRole, int] = field(default_factory=lambda: dict.fromkeys(ROLES, 0))
    near: dict[ColumnRole, int] = field(default_factory=lambda: dict.fromkeys(ROLES, 0))
    same_id_and_text: int = 0
    same_id_other_text: int = 0
    same_id_no_text: int = 0

    @property
    def share(self) -> float:
        """`found` of `texts`, from 0 to 1."""
        return self.found / self.texts if self.texts else 0.0


@dataclass
class TaskContamination:
    """The report on one task. `rows` counts the training set's, `touched` those of which some text was found."""

    task: str
    split: str
    rows: int = 0
    touched: int = 0
    parts: dict[TestPart, PartCounts] = field(default_factory=lambda: {part: PartCounts() for part in TEST_PARTS})
    examples: list[dict[str, Any]] = field(default_factory=list)

    @property
    def share(self) -> float:
        """The larger share of the two parts that decide a score: queries, and relevant documents."""
        return max(self.parts["queries"].share, self.parts["relevant documents"].share)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        parts = {name: {**vars(part), "share": round(part.share, 6)} for name, part in self.parts.items()}
        return {
            "task": self.task, "split": self.split, "rows": self.rows, "touched": self.touched,
            "share": round(self.share, 6), "parts": parts, "examples": self.examples,
        }  # fmt: skip


def contamination(
    train: Path | str,
    tasks: Sequence[TaskSpec],
    *,
    split: str | None = None,
    train_split: str | None = None,
    threshold: float = THRESHOLD,
    examples: int = 3,
    output: Path | str | None = None,
) -> list[TaskContamination]:
    """Compare a training set with every task and split; the reports, also written to `output` as JSON.

    `train`: see `read_training`; `tasks`: see `resolve_tasks`. `examples` are shown per part and sort. Raises
    ValueError and FileNotFoundError for files and tasks that do not exist or cannot be read.
    """
    train = Path(train)
    read_training(train, train_split)  # raises at once for a mistake in the options
    if not train.exists():
        raise FileNotFoundError(f"--train {train}: no such file or folder.")
    reports = []
    for task in resolve_tasks(tasks, split):
        load_task(task)
        task.convert_v1_dataset_format_to_v2(num_proc=None)
        for each in task.eval_splits:
            test = _TestData(task, each, threshold)
            reports.append(_compare(task.metadata.name, each, test, read_training(train, train_split), examples))
        task.unload_data()
    if output is not None:
        settings = {"train": str(train), "threshold": threshold, "shingle_words": SHINGLE_WORDS}
        write_json(Path(output), {**settings, "tasks": [report.to_dict() for report in reports]})
    return reports


def table(reports: Sequence[TaskContamination]) -> "NarrowTable":
    """The reports as a table that fits its terminal, a row for each part of the test data."""
    from search_r3_mteb.narrow_tables import NarrowColumn, NarrowTable

    columns = [("texts", 6), ("found", 0), ("share", 0), ("exact", 5), ("near", 4), ("in nega-\ntives", 3)]
    columns += [("same id\nand text", 2), ("same id,\nother text", 1)]
    made = NarrowTable(
        [
            *(NarrowColumn(name, name=True) for name in ("task", "test data")),
            *(NarrowColumn(name, leaves=order) for name, order in columns),
        ]
    )
    for report in reports:
        for name, part in report.parts.items():
            trained = [sum(counts[role] for role in ("query", "positive")) for counts in (part.exact, part.near)]
            negatives = part.exact["negative"] + part.near["negative"]
            ids = (part.same_id_and_text, part.same_id_other_text)
            numbers: list[int | str] = [part.texts, part.found, f"{part.share:.2%}", *trained, negatives, *ids]
            shown = [each if isinstance(each, str) else f"{each:,}" for each in numbers]
            made.add_row(report.task if name == "queries" else "", name, *shown)
    return made


def sentences(reports: Sequence[TaskContamination]) -> Iterator[str]:
    """What the numbers say, and the examples."""
    for report in reports:
        yield (
            f"{report.task} ({report.split}): {report.touched:,} of {report.rows:,} training rows hold a text of it; "
            f"{report.parts['queries'].share:.2%} of its queries and "
            f"{report.parts['relevant documents'].share:.2%} of its relevant documents are trained on."
        )
        alone = sum(part.same_id_other_text for part in report.parts.values())
        if alone:
            yield f"  {alone:,} ids are equal where the texts are not: probably by chance, and not counted as found."
        for each in report.examples:
            how = each["sort"] if each["sort"] != "near" else f"near, Jaccard {each['similarity']:.2f}"
            yield (
                f"  {how}: line {each['line']}, {each['role']} {each['text']!r:.100} = {each['part']} {each['id']}: "
                f"{each['test_text']!r:.100}"
            )


class _TestData:
    """The test texts of one split, numbered, with what has been found of each."""

    def __init__(self, task: "AbsTaskRetrieval", split: str, threshold: float) -> None:
        self.part_of: list[int] = []
        self.ids: list[str] = []
        self.by_id: dict[tuple[bool, str], list[int]] = {}  # (a query's?, id) -> numbers
        self.beginnings: list[str] = []
        self._owners: list[int] = []  # of each indexed form
        self.signer = Signer(SHINGLE_WORDS)
        self.index = DuplicateIndex(self._signatures(task, split), threshold)
        self.seen = {role: np.zeros(len(self.ids), np.int8) for role in ROLES}
        self.by_ids = np.zeros(len(self.ids), np.int8)

    def find(self, text: TrainingText) -> dict[int, float]:
        """Numbers of the test texts that it repeats; the similarity, or 2.0 where they are equal."""
        found: dict[int, float] = {}
        for form in text.forms:
            for twin in self.index.all(self.signer.sign(form)):
                number = self._owners[twin.number]
                found[number] = max(found.get(number, 0.0), 2.0 if twin.exact else twin.similarity)
        return found

    def _signatures(self, task: "AbsTaskRetrieval", split: str) -> Iterator[Signature]:
        several = len(task.dataset) > 1
        for subset, splits in task.dataset.items():
            if split not in splits:
                continue
            data, prefix = splits[split], f"{subset}/" if several else ""
            judged = {query for query, documents in data["relevant_docs"].items() if documents}
            relevant = {
                document for query in judged for document, grade in data["relevant_docs"][query].items() if grade > 0
            }
            for row in data["queries"]:
                if row["id"] in judged:
                    yield from self._add(0, prefix, row["id"], (query_text(row["text"]),))
            for row in data["corpus"]:
                title, text = row.get("title") or "", row["text"] or ""
                forms = tuple(dict.fromkeys(each for each in (join_title(title, text), text) if each.strip()))
                yield from self._add(1 if row["id"] in relevant else 2, prefix, row["id"], forms)

    def _add(self, part: int, prefix: str, id_: str, forms: Sequence[str]) -> Iterator[Signature]:
        number = len(self.ids)
        self.part_of.append(part)
        self.ids.append(prefix + id_)
        self.by_id.setdefault((part == 0, id_), []).append(number)
        self.beginnings.append(forms[0][:_SHOWN] if forms else "")
        for form in forms:
            if form.strip():
                self._owners.append(number)
                yield self.signer.sign(form)


def _compare(
    task: str, split: str, test: _TestData, rows: Iterator[list[TrainingText]], examples: int
) -> TaskContamination:
    report = TaskContamination(task, split)
    for row in rows:
        report.rows += 1
        touched = False
        for text in row:
            found = test.find(text)
            for number, similarity in found.items():
                sort = _EXACT if similarity > 1 else _NEAR
                test.seen[text.role][number] = max(int(test.seen[text.role][number]), sort)
                _show(report, test, text, number, "exact" if sort == _EXACT else "near", min(similarity, 1.0), examples)
            same = test.by_id.get((text.role == "query", text.id), ()) if text.id is not None else ()
            for number in same:
                alone = _ID_NEGATIVE if text.role == "negative" else _ID_ONLY
                test.by_ids[number] |= alone if not text.forms else _ID_TEXT if number in found else _ID_OTHER
                if not text.forms:
                    _show(report, test, text, number, "id", 0.0, examples)
            touched = touched or bool(found) or (bool(same) and not text.forms)
        report.touched += touched
    _count(report, test)
    return report


def _show(
    report: TaskContamination, test: _TestData, text: TrainingText, number: int, sort: str, similarity: float, most: int
) -> None:
    part = TEST_PARTS[test.part_of[number]]
    if sum((each["part"], each["sort"]) == (part, sort) for each in report.examples) < most:
        report.examples.append({
            "part": part, "id": test.ids[number], "sort": sort, "similarity": round(similarity, 4),
            "line": text.number, "role": text.role, "text": text.forms[0][:_SHOWN] if text.forms else f"id {text.id}",
            "test_text": test.beginnings[number],
        })  # fmt: skip


def _count(report: TaskContamination, test: _TestData) -> None:
    part_of = np.array(test.part_of, np.int8)
    ids: Mapping[str, int] = {
        "same_id_and_text": _ID_TEXT, "same_id_other_text": _ID_OTHER, "same_id_no_text": _ID_ONLY | _ID_NEGATIVE,
    }  # fmt: skip
    trained = (test.seen["query"] > 0) | (test.seen["positive"] > 0) | (test.by_ids & _ID_ONLY > 0)
    for number, name in enumerate(TEST_PARTS):
        own, counts = part_of == number, report.parts[name]
        counts.texts, counts.found = int(own.sum()), int((own & trained).sum())
        for role in ROLES:
            counts.exact[role] = int((own & (test.seen[role] == _EXACT)).sum())
            counts.near[role] = int((own & (test.seen[role] == _NEAR)).sum())
        for field_name, flag in ids.items():
            setattr(counts, field_name, int((own & (test.by_ids & flag > 0)).sum()))
