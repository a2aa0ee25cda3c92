"""Every way a run folder can be broken: a message that names the file, and everything else still shown."""

import json
import re

import pytest

from search_r3_mteb.report import report
from search_r3_mteb.report.comparisons import reasoning_differences, table_rows
from search_r3_mteb.report.runs import read_runs


def said(evidence, *words):
    """The messages that hold all the words."""
    return [m for m in map(str, evidence.messages) if all(word in m for word in words)]


def test_missing_task(runs):
    folders = [runs.evaluate("a", models=("nano", "mini")), runs.evaluate("b", task="SciFact", models=("mini",))]
    evidence = read_runs(folders)
    assert said(evidence, "nano (reason)", "was not evaluated on SciFact", "not zero")
    assert not said(evidence, "mini")


def test_half_written_summary_is_rebuilt_from_the_queries(runs):
    folder = runs.evaluate("run")
    whole = {row.mode: row.ndcg_at_10 for row in read_runs([folder]).evaluations}
    text = (folder / "summary.json").read_text()
    (folder / "summary.json").write_text(text[:-40])
    evidence = read_runs([folder])
    assert said(evidence, "error", "summary.json", "not valid JSON", "half written")
    assert said(evidence, "has no entry in summary.json: its row is computed from its queries")
    assert len(evidence.evaluations) == 2  # MTEB's files hold the same two results
    assert {row.mode: row.ndcg_at_10 for row in evidence.evaluations} == pytest.approx(whole)


@pytest.mark.parametrize(
    "content",
    ["", "   \n", "[1, 2", '{"a": ' * 40, "\x00\xff", "[" * 200_000 + "]" * 200_000, f"[{'1' * 5000}]"],
    ids=["empty", "blank", "half", "nested half", "bytes", "deep", "long"],
)
def test_no_summary_content_crashes(runs, content):
    folder = runs.evaluate("run")
    (folder / "summary.json").write_text(content)
    evidence = read_runs([folder])
    assert said(evidence, "error", "summary.json")
    assert len({row.mode for row in evidence.evaluations}) == 2


def test_missing_summary(runs):
    folder = runs.evaluate("run")
    (folder / "summary.json").unlink()
    evidence = read_runs([folder])
    assert said(evidence, "summary.json", "is missing")
    assert {row.mode for row in evidence.evaluations if row.outcomes} == {"direct", "reason"}


@pytest.mark.parametrize("entry", [17, None, {}, {"task": "t"}, {"task": "t", "model": "", "mode": "direct"}, []])
def test_strange_summary_entries(runs, entry):
    folder = runs.evaluate("run", modes=("direct",))
    rows = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps([entry, *rows]))
    evidence = read_runs([folder])
    assert said(evidence, "summary.json: entry 1 has no")
    assert [row.mode for row in evidence.evaluations] == ["direct"]


def test_strange_values(runs):
    folder = runs.evaluate("run", modes=("direct",), recall_at_10="0.5", seconds=True, interval=[1])
    rows = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps([rows[0] | {"queries": 2.5}]))
    evidence = read_runs([folder])
    for words in (("recall_at_10", "'0.5'"), ("seconds", "True"), ("interval", "[1]"), ("queries is 2.5",)):
        assert said(evidence, *words), words
    [row] = evidence.evaluations
    assert (row.seconds, row.interval) == (None, None)
    assert row.recall_at_10 is not None  # the queries have it


def test_half_written_query_file_keeps_its_whole_lines(runs):
    folder = runs.evaluate("run")
    path = next((folder / "queries").glob("*reason*"))
    path.write_text(path.read_text()[:-100])
    evidence = read_runs([folder])
    assert said(evidence, path.name, "1 of 60 lines cannot be read", "line 60", "half written")
    assert said(evidence, "the summary counts 60 queries", "holds 59")
    [difference] = [d for d in reasoning_differences(table_rows(evidence)) if d.reason.first.hops is None]
    assert difference.result.queries == 59
    assert difference.left_out == 1


def test_strange_query_records(runs):
    folder = runs.evaluate("run", modes=("direct",))
    path = next((folder / "queries").iterdir())
    lines = path.read_text().splitlines()
    first = json.loads(lines[0])
    extra = [
        first,
        {"query": "no id"},
        {"query_id": "x1", "ndcg_at_10": "high", "top": "d1", "judged": [{"text": "no id"}]},
        {"query_id": "x2", "ndcg_at_10": 0.5, "top": None, "judged": None, "reasoning_tokens": "many", "hops": "two"},
    ]
    path.write_text("\n".join([*lines, *map(json.dumps, extra), "[]", "17"]) + "\n")
    evidence = read_runs([folder])
    assert said(evidence, "2 of 66 lines cannot be read")
    assert said(evidence, "1 records have no query_id")
    assert said(evidence, "1 records repeat a query_id")
    assert said(evidence, "2 records hold fields of an unexpected type")
    [row] = evidence.evaluations
    assert len(row.outcomes) == 62
    assert row.outcomes["x1"].ndcg_at_10 is None
    assert row.values()["x2"] == 0.5


def test_nan_in_summary_and_queries(runs):
    folder = runs.evaluate("run", ndcg_at_10=float("nan"))
    path = next((folder / "queries").glob("*reason*"))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["ndcg_at_10"] = float("nan")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    evidence = read_runs([folder])
    assert said(evidence, "summary.json entry 1", "NaN", "ndcg_at_10")
    assert said(evidence, path.name, "NaN for 1 of 60 queries")
    shown = [row for row in table_rows(evidence) if row.first.hops is None]
    assert all(str(row.ndcg_at_10) == "nan" and not row.best for row in shown)
    [difference] = [d for d in reasoning_differences(shown) if d.reason.first.hops is None]
    assert difference.result.queries == 59


def test_the_same_result_twice_is_one(runs):
    evidence = read_runs([runs.evaluate("a"), runs.evaluate("b")])
    assert len(said(evidence, "note", "evaluated twice with the same result")) == 2
    assert len(evidence.evaluations) == 2


def test_one_model_with_two_results_is_shown_twice(runs):
    first = runs.evaluate("runs/a")
    runs.gains = {"nano": -0.3}
    second = runs.evaluate("runs/b")
    evidence = read_runs([first, second])
    assert said(evidence, "warning", "nano (reason) was evaluated 2 times on hopworld", "different results")
    labels = [row.label for row in evidence.evaluations if row.mode == "reason"]
    assert len(set(labels)) == 2
    # Both are compared with direct embedding, each under its own name.
    differences = [d for d in reasoning_differences(table_rows(evidence)) if d.reason.first.hops is None]
    assert sorted(d.result.difference > 0 for d in differences) == [False, True]


def test_an_entry_twice_in_one_summary(runs):
    folder = runs.evaluate("run", modes=("direct",))
    rows = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(rows * 2))
    evidence = read_runs([folder])
    assert said(evidence, "evaluated twice with the same result")
    assert len(evidence.evaluations) == 1


def test_missing_and_foreign_query_files(runs):
    folder = runs.evaluate("run")
    next((folder / "queries").glob("*direct*")).unlink()
    (folder / "queries" / "notes.jsonl").write_text("{}\n")
    evidence = read_runs([folder])
    assert said(evidence, "no per-query file for hopworld (nano, direct)")
    assert said(evidence, "notes.jsonl", "is not named TASK__MODEL__MODE.jsonl")


@pytest.mark.parametrize("digits", [400, 5000])
def test_integers_that_no_number_holds(runs, digits):
    """Each number of each file in turn: not a number, as 1e999 is, or a line that cannot be read; never a crash."""
    for file in ("summary.json", "queries", "mteb"):
        folder = runs.evaluate(f"run-{file}", modes=("direct",))
        for path in [folder / file] if file == "summary.json" else sorted((folder / file).rglob("*.json*")):
            path.write_text(re.sub(r"(?<=: )\d+(\.\d+)?(?=[,}\n])", "1" * digits, path.read_text()))
            assert "1" * digits in path.read_text() or "model_meta" in path.name
        evidence = read_runs([folder])
        assert evidence.messages
        assert all(each.ndcg_at_10 is None or not each.ndcg_at_10 > 1 for each in evidence.evaluations)


def test_summary_and_queries_that_disagree(runs):
    evidence = read_runs([runs.evaluate("run", modes=("direct",), ndcg_at_10=0.99)])
    assert said(evidence, "the summary says nDCG@10 0.9900", "Both cannot be right")


def test_broken_mteb_files(runs):
    folder = runs.evaluate("run", models=("nano", "mini"))
    results = sorted((folder / "mteb").rglob("hopworld.json"))
    results[0].write_text(results[0].read_text()[:50])
    results[1].write_text(json.dumps({"task_name": "hopworld", "scores": {}}))
    results[2].write_text(json.dumps(["not a result"]))
    evidence = read_runs([folder / "mteb"])
    assert said(evidence, "not valid JSON")
    assert said(evidence, "holds no scores for hopworld")
    assert said(evidence, "is not an MTEB result file")
    assert len(evidence.evaluations) == 1


def test_a_task_that_only_mteb_has(runs):
    folder = runs.evaluate("run", modes=("direct",))
    runs._mteb(folder, "SciFact", "nano", "direct", 0.5)
    evidence = read_runs([folder])
    assert said(evidence, "SciFact", "is not in the run's summary.json")
    assert {row.task for row in evidence.evaluations} == {"hopworld", "SciFact"}


def test_broken_training_logs(runs):
    folder = runs.training("rl", "rl")
    lines = (folder / "log.jsonl").read_text().splitlines()
    lines[3] = json.dumps({"event": "step", "step": 4, "loss": float("nan"), "reward_mean": 0.1})
    lines += [json.dumps({"event": "step", "step": 80, "loss": 9.0, "reward_mean": 0.2}), '{"event": "step", "st']
    lines += [json.dumps({"event": "step", "step": "soon"}), json.dumps({"event": "started"})]
    (folder / "log.jsonl").write_text("\n".join(lines))
    evidence = read_runs([folder])
    assert said(evidence, "loss is not a finite number from step 4 on")
    assert said(evidence, "1 steps were logged twice")
    assert said(evidence, "1 events have no whole-numbered step")
    assert said(evidence, "lines cannot be read")
    [log] = evidence.logs
    assert log.steps[-1]["loss"] == 9.0
    (folder / "log.jsonl").write_text("")
    assert said(read_runs([folder]), "nothing to draw")


def test_a_folder_without_results(runs):
    (runs.root / "empty").mkdir()
    assert said(read_runs([runs.root / "empty"]), "error", "holds no summary.json")


@pytest.mark.parametrize("form", ["html", "md", "csv", "latex"])
def test_everything_broken_at_once_still_gives_a_report(runs, form):
    output = runs.root / "out" / f"report.{form}"
    messages = report(runs.broken(), output, form)
    assert output.stat().st_size > 1000
    levels = {message.level for message in messages}
    assert levels == {"error", "warning", "note"}
    if form in ("html", "md"):
        text = output.read_text(encoding="utf-8")
        assert "half written" in text
        assert "NaN" in text
