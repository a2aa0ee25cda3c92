"""Writers with encoders in `evaluate`: names, settings, texts and tokens in the files, resume, report."""

import json

import pytest

from search_r3_mteb.evaluation.evaluate import evaluate
from search_r3_mteb.evaluation.system_checks import check_settings
from search_r3_mteb.evaluation.systems import kind_of, split_label
from search_r3_mteb.expansion.names import parse_name
from search_r3_mteb.expansion.writer import Writer
from search_r3_mteb.expansion.writer_encoder import WriterEncoder
from search_r3_mteb.report.comparisons import table_rows
from search_r3_mteb.report.explorer import find_pairs
from search_r3_mteb.report.runs import read_runs
from tests.mteb_running import made_task

SETTINGS = {"max_reasoning_tokens": 4, "samples": 2, "temperature": 1.0}


@pytest.fixture
def names(models):
    """One of each kind."""
    writer, encoder = models / "smol", models / "minis"
    return [f"hyde:{writer}+{encoder}", f"fed=feedback:{writer}+{encoder}", f"rocchio:{encoder}"]


def task():
    documents = [{"id": f"d{n}", "title": f"title {n}", "text": f"document number {n}"} for n in range(8)]
    queries = [{"id": f"q{n}", "text": f"question {n}"} for n in range(4)]
    return made_task("TinyWriters", {"default": (documents, queries, {f"q{n}": {f"d{n}": 1} for n in range(4)})})


def records(output, row):
    return [json.loads(line) for line in (output / row["queries_file"]).open()]


def test_texts_and_tokens_are_in_files_and_rows(names, tmp_path):
    rows = evaluate(names, [task()], "both", tmp_path, settings=SETTINGS)
    assert [(row["model"], row["mode"]) for row in rows] == [
        ("hyde-smol+minis", "reason"),
        ("fed", "reason"),
        ("rocchio-minis", "direct"),
    ]
    for row in rows[:2]:
        found = records(tmp_path, row)
        assert len(found) == 4
        assert all(isinstance(each["reasoning"], str) for each in found)
        assert any(each["reasoning"] for each in found)
        # Two samples of at most four tokens and the token between them.
        assert all(0 < each["reasoning_tokens"] <= 9 for each in found)
        assert row["reasoning_tokens_per_query"] == pytest.approx(sum(e["reasoning_tokens"] for e in found) / 4)
        assert row["queries_per_second"] > 0
        assert row["documents_per_second"] > 0
        assert row["max_reasoning_tokens"] == 4
    assert records(tmp_path, rows[2])[0]["reasoning"] is None
    assert rows[2]["reasoning_tokens_per_query"] == 0
    assert len({row["fingerprint"] for row in rows}) == 3


def test_a_run_resumes_and_another_setting_is_another_row(names, tmp_path, monkeypatch):
    first = evaluate(names, [task()], "both", tmp_path, settings=SETTINGS)
    calls, original = [], Writer.write
    monkeypatch.setattr(Writer, "write", lambda *a, **k: calls.append(1) or original(*a, **k))
    assert evaluate(names, [task()], "both", tmp_path, settings=SETTINGS) == first
    # The same texts under an anchor: a row of its own, and nothing is written again.
    (anchored,) = evaluate(names[:1], [task()], "both", tmp_path, settings=SETTINGS | {"anchor": 1.0})
    assert anchored["model"].startswith("hyde-smol+minis@")
    assert calls == []
    evaluate(names[:1], [task()], "both", tmp_path, settings=SETTINGS | {"seed": 3})
    assert calls == [1]


def test_the_report_reads_it_and_the_command_line_runs_it(models, tmp_path, call):
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    rows = [{"_id": f"d{n}", "title": "", "text": f"document {n}"} for n in range(4)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": "document 2"}) + "\n")
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td2\t1\n")
    output = tmp_path / "out"
    code, out, err = call(
        "evaluate", "--model", f"w=query2doc:{models / 'smol'}+{models / 'minis'}", "--model", f"st={models / 'minis'}",
        "--model", f"rocchio:{models / 'minis'}", "--task", f"beir:{folder}", "--output", output,
        "--max-reasoning-tokens", "3", "--set", "anchor=0.5", "--set", "feedback_documents=1",
    )  # fmt: skip
    assert code == 0, err
    assert "reason" in out
    summary = json.loads((output / "summary.json").read_text())
    assert [row["model"] for row in summary] == ["w", "st", "rocchio-minis"]
    assert [row.get("encoder_fingerprint") for row in summary] == [
        summary[1]["fingerprint"],
        None,
        summary[1]["fingerprint"],
    ]
    pairs = find_pairs(table_rows(read_runs([output])))
    assert sorted(pair.title.partition(" · ")[2] for pair in pairs) == ["rocchio-minis against st", "w against st"]
    code, _, err = call("report", output, "--output", tmp_path / "report.html")
    assert code == 0, err
    assert "rocchio-minis" in (tmp_path / "report.html").read_text()


def test_a_search_r3_encoder_beside_a_writer_is_known_by_itself(models, tmp_path):
    rows = evaluate(
        [f"gar:{models / 'smol'}+nano", "nano"], [task()], "both", tmp_path, settings={"max_reasoning_tokens": 3}
    )
    direct = next(row for row in rows if (row["model"], row["mode"]) == ("nano", "direct"))
    assert rows[0]["encoder_fingerprint"] != rows[0]["fingerprint"]
    assert direct["fingerprint"] == rows[0]["encoder_fingerprint"]


def test_an_encoder_in_memory_is_evaluated_as_it_is(models, tmp_path):
    made = WriterEncoder(models / "smol", models / "minis", method="gar", max_reasoning_tokens=3)
    (row,) = evaluate([made], [task()], "both", tmp_path)
    assert (row["model"], row["mode"], row["max_reasoning_tokens"]) == ("gar-smol+minis", "reason", 3)


def test_names_are_read(models, tmp_path, monkeypatch):
    found = parse_name(f"hyde:{models / 'smol'}+{models / 'minis'}")
    assert (found.method.name, found.writer, found.encoder) == (
        "hyde",
        str(models / "smol"),
        str(models / "minis"),
    )
    assert parse_name("rocchio:mini").writer is None
    assert parse_name("mini") is None
    assert parse_name("bm25") is None
    assert kind_of(f"gar:{models / 'smol'}+mini") == "expansion"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a+b").symlink_to(models / "smol")
    assert parse_name("hyde:a+b+mini").writer == "a+b"
    (tmp_path / "hyde:x").mkdir()
    assert parse_name("hyde:x") is None  # a folder of that name is that folder
    (tmp_path / "n=1").symlink_to(models / "smol")
    assert split_label("hyde:n=1+mini") == (None, "hyde:n=1+mini")
    assert split_label("own=hyde:n=1+mini") == ("own", "hyde:n=1+mini")
    with pytest.raises(ValueError, match=r"write hyde:WRITER\+ENCODER"):
        parse_name("hyde:mini")
    with pytest.raises(ValueError, match="places of '\\+'"):
        parse_name("hyde:c+d+e")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        kind_of("hyde:./nowhere+mini")


def test_settings_that_nobody_would_use_are_refused_and_those_of_others_passed_over(names):
    check_settings([names[0], "mini"], {"samples": 2, "temperature": 0.5, "max_length": 64})
    with pytest.raises(ValueError, match=r"samples would change nothing.*writer with an encoder"):
        check_settings(["mini"], {"samples": 2})
    with pytest.raises(ValueError, match="feedback_documents would change nothing"):
        check_settings([names[0]], {"feedback_documents": 2})
    with pytest.raises(ValueError, match="same text"):
        check_settings([names[0]], {"samples": 2, "temperature": 0})
    with pytest.raises(ValueError, match="revision='main' would be that of the writer or of the encoder"):
        check_settings([names[0]], {"revision": "main"})
    check_settings([names[0], names[2]], {"samples": 2, "feedback_documents": 2})
    for unused in ({"temperature": 0.5}, {"max_reasoning_tokens": 8}, {"seed": 1}):  # Rocchio writes nothing
        with pytest.raises(ValueError, match=f"{next(iter(unused))} would change nothing"):
            check_settings(["rocchio:mini"], unused)
        check_settings(["rocchio:mini", names[0]], unused)


def test_an_expansion_in_memory_is_no_checkpoint_that_could_abstain(models):
    made = WriterEncoder(str(models / "smol"), str(models / "minis"), method="gar", max_reasoning_tokens=3)
    with pytest.raises(ValueError, match="abstain_margin would change nothing: none of the models"):
        check_settings([made], {"abstain_margin": 0.1})
