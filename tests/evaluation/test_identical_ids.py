"""Queries that are documents: a warning for near copies, and `--ignore-identical-ids` on the command line."""

import json

import pytest

from search_r3_mteb.evaluation.tasks import with_identical_ids_ignored
from search_r3_mteb.tasks.mteb_tasks import BeirFolder


@pytest.fixture
def make(tmp_path):
    """`make(queries)` writes a folder whose queries q1 and q2 have the ids of documents, each with an answer."""

    def write(first="trains are cleaner than cars", second="homework teaches discipline"):
        folder = tmp_path / "arguana"
        (folder / "qrels").mkdir(parents=True)
        texts = {"q1": "trains are cleaner than cars", "q2": "homework teaches discipline"}
        corpus = [{"_id": id_, "title": "", "text": text} for id_, text in texts.items()]
        corpus += [{"_id": f"{id_}-con", "title": "", "text": f"against that {text}"} for id_, text in texts.items()]
        for name, rows in (
            ("corpus", corpus),
            ("queries", [{"_id": "q1", "text": first}, {"_id": "q2", "text": second}]),
        ):
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\tq1-con\t1\nq2\tq2-con\t1\n")
        return folder

    return write


@pytest.mark.parametrize(
    "copy",
    [
        "trains are cleaner than cars",
        "Trains are cleaner than CARS",
        "trains are cleaner than cars.",
        "  trains are  cleaner\nthan cars ?!",
        "Trains are cleaner than cars…",
    ],
)
def test_near_copies_bring_the_warning(make, caplog, copy):
    BeirFolder(make(copy, "something else")).load_data()
    [message] = [record.getMessage() for record in caplog.records]
    assert "1 of 2 queries are documents of the same id and text" in message
    assert "--ignore-identical-ids" in message


@pytest.mark.parametrize("other", ["trains are cleaner than bars", "trains are, cleaner than cars", "train are", "?"])
def test_other_texts_bring_none(make, caplog, other):
    BeirFolder(make(other, "something else")).load_data()
    assert caplog.records == []


def test_evaluate_leaves_out_the_querys_own_document(make, call, tmp_path):
    folder = make()

    def score(name, *options, suffix=""):
        arguments = ("--model", "bm25", "--task", f"beir:{folder}{suffix}", "--output", tmp_path / name)
        code, _, err = call("evaluate", *arguments, *options)
        assert code == 0, err
        [row] = json.loads((tmp_path / name / "summary.json").read_text())
        return row["task"], row["ndcg_at_10"]

    plain, by_option = score("plain"), score("option", "--ignore-identical-ids")
    by_suffix = score("suffix", suffix=":ignore_identical_ids")
    both = score("both", "--ignore-identical-ids", suffix=":ignore_identical_ids")
    assert by_option == by_suffix == both
    assert plain[1] < by_option[1] == 1
    assert by_option[0] == f"{plain[0]}-ignore_identical_ids"


def test_diagnose_leaves_it_out_too(make, call, tmp_path, tiny_folder):
    settings = ("--model", tiny_folder, "--rollouts", 2, "--max-reasoning-tokens", 2)
    found, folder = {}, make()
    for name, options in (("plain", ()), ("option", ("--ignore-identical-ids",))):
        code, _, err = call("diagnose", "--task", f"beir:{folder}", "--output", tmp_path / name, *settings, *options)
        assert code == 0, err
        found[name] = json.loads((tmp_path / name / "diagnose.json").read_text())
    assert found["option"]["task"] == f"{found['plain']['task']}-ignore_identical_ids"


def test_the_option_alone_is_refused(call, tmp_path):
    with pytest.raises(ValueError, match=r"is for BEIR folders \(beir:FOLDER\), got hopworld, stdlib"):
        with_identical_ids_ignored(["hopworld", "stdlib"])
    assert with_identical_ids_ignored(["hopworld", "beir:a"]) == ["hopworld", "beir:a:ignore_identical_ids"]
    output = tmp_path / "out"
    for command in (("evaluate", "--model", "bm25"), ("diagnose",)):
        code, _, err = call(*command, "--task", "hopworld:500", "--output", output, "--ignore-identical-ids")
        assert code == 2
        assert "--ignore-identical-ids is for BEIR folders" in err
    assert not output.exists()
