"""Names of a unit's files: no two units have one file, however alike their names are; earlier outputs stay whole."""

import json

import pytest

from search_r3_mteb.evaluation.evaluate import evaluate
from search_r3_mteb.evaluation.summary import read_summary
from search_r3_mteb.evaluation.unit_files import file_name, queries_file
from search_r3_mteb.report.runs import read_runs
from tests.evaluation.conftest import write_little

WORDS = ["silver", "river", "garden", "stone"]


class Task:
    """What a name is made of."""

    def __init__(self, name, *splits):
        self.metadata, self.eval_splits = self, list(splits)
        self.name = name


def row(task, split, model, mode, file):
    return {"task": task, "split": split, "model": model, "mode": mode, "queries_file": file, "files": {file: {}}}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("T", "a/b"), ("T", "a__b")),
        (("T", "Mini"), ("T", "mini")),  # one file where case does not count
        (("T", "Caf\u00e9"), ("T", "cafe\u0301")),  # and where an accent is written in two ways
        (("T", "stra\u00dfe"), ("T", "STRASSE")),
        (("T", "b__c"), ("T__b", "c")),
        (("T.dev", "m"), ("T", "m")),
    ],
)
def test_two_names_never_share_a_file(first, second):
    rows = []
    for (name, label), splits in ((first, ["dev"]), (second, ["dev"])):
        file = queries_file(Task(name, *splits), "dev", label, "direct", rows).as_posix()
        rows.append(row(name, "dev", label, "direct", file))
    one, other = (each["queries_file"] for each in rows)
    assert one == f"queries/{first[0]}__{file_name(first[1])}__direct.jsonl"  # where nothing is in the way, as ever
    assert one.casefold() != other.casefold()
    again = queries_file(Task(first[0], "dev"), "dev", first[1], "direct", rows).as_posix()
    assert again == one  # its own file is not in its way
    assert queries_file(Task(second[0], "dev"), "dev", second[1], "direct", rows).as_posix() == other


def test_a_further_split_has_its_own_name():
    task, rows = Task("T", "dev", "test"), []
    for split in ("dev", "test"):
        rows.append(row("T", split, "m", "direct", queries_file(task, split, "m", "direct", rows).as_posix()))
    assert [each["queries_file"] for each in rows] == [
        "queries/T__m__direct.jsonl",
        "queries/T.test__m__direct.jsonl",
    ]


def test_long_labels_are_cut_and_stay_apart():
    long = "x" * 300
    names = {file_name(f"{long}{end}") for end in "ab"}
    assert len(names) == 2
    assert max(len(each.encode()) for each in names) == 120
    assert len(file_name("\u6771" * 100).encode()) <= 120
    assert file_name("org/model") == "org__model"


def test_models_of_such_names_keep_their_results(tmp_path, caplog):
    folder, output = write_little(tmp_path / "little", WORDS, 16), tmp_path / "out"
    models, tasks = ["a/b=bm25", "A__b=nano"], [f"beir:{folder}"]
    first = evaluate(models, tasks, "direct", output)
    assert first[0]["ndcg_at_10"] != first[1]["ndcg_at_10"]
    for each in first:
        lines = [json.loads(line) for line in (output / each["queries_file"]).read_text().splitlines()]
        assert sum(line["ndcg_at_10"] for line in lines) / len(lines) == pytest.approx(each["ndcg_at_10"], abs=1e-6)
    stored = read_summary(output / "summary.json")
    assert evaluate(models, tasks, "direct", output) == stored  # complete: nothing is damaged, nothing is run again
    assert "damaged" not in caplog.text
    evidence = read_runs([output])
    assert sorted(each.label for each in evidence.evaluations) == ["A__b", "a/b"]
    assert not [each for each in evidence.messages if each.level != "note"]
    # An output whose files have other names, as another version may give them, is complete all the same.
    moved = first[0]["queries_file"]
    (output / moved).rename(output / "queries" / "older.jsonl")
    text = (output / "summary.json").read_text().replace(moved, "queries/older.jsonl")
    rows = json.loads(text)
    from search_r3_mteb.evaluation.summary import with_checksum

    (output / "summary.json").write_text(json.dumps([each for one in rows for each in with_checksum([one])]))
    assert evaluate(models[:1], tasks, "direct", output)[0]["queries_file"] == "queries/older.jsonl"
    assert len(read_summary(output / "summary.json")) == 2
    assert "damaged" not in caplog.text
