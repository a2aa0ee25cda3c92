import json

import numpy as np
import pytest

from search_r3_mteb.report.comparisons import reasoning_differences, table_rows
from search_r3_mteb.report.runs import read_runs


def texts(evidence):
    return [str(message) for message in evidence.messages]


def rows_by_mode(evidence, hops=None):
    return {row.first.mode: row for row in table_rows(evidence) if row.first.hops == hops}


def test_a_whole_run_is_read_without_a_message(runs):
    evidence = read_runs([runs.evaluate("run")])
    assert texts(evidence) == []
    assert {(row.task, row.model, row.mode) for row in evidence.evaluations} == {
        ("hopworld", "nano", "direct"),
        ("hopworld", "nano", "reason"),
    }
    reason = next(row for row in evidence.evaluations if row.mode == "reason")
    assert len(reason.outcomes) == 60
    assert reason.outcomes["q5"].reasoning.startswith("The enzyme company") or reason.outcomes["q5"].reasoning
    assert len(reason.outcomes["q5"].top) == 10
    assert dict(reason.outcomes["q5"].judged) == {"d5": 1.0}
    assert evidence.texts["hopworld", "d5"].startswith("Document 5.")


@pytest.mark.parametrize("pick", ["summary.json", "."])
def test_a_run_may_be_named_by_folder_or_summary(runs, pick):
    folder = runs.evaluate("run")
    assert len(read_runs([folder / pick]).evaluations) == 2


def test_a_folder_of_runs_is_searched(runs):
    runs.evaluate("many/a")
    runs.evaluate("many/deep/b", task="other")
    runs.training("many/train", "rl")
    (runs.root / "many" / "config.json").write_text("{}")
    evidence = read_runs([runs.root / "many"])
    assert {row.task for row in evidence.evaluations} == {"hopworld", "other"}
    assert [log.kind for log in evidence.logs] == ["rl"]


def test_seeds_are_merged_and_their_interval_is_wider(runs):
    folders = [runs.evaluate(f"seed{seed}", seed=seed, hops=False) for seed in range(3)]
    row = rows_by_mode(read_runs(folders))["reason"]
    assert [run.seed for run in row.runs] == [0, 1, 2]
    means = [run.ndcg_at_10 for run in row.runs]
    assert row.ndcg_at_10 == pytest.approx(np.mean(means))
    assert row.interval[0] < row.ndcg_at_10 < row.interval[1]


def test_budgets_stay_apart(runs):
    folders = [runs.evaluate(f"b{budget}", budget=budget, hops=False) for budget in (16, 64)]
    evidence = read_runs(folders)
    found = [row for row in table_rows(evidence) if row.first.mode == "reason"]
    assert sorted(row.first.max_reasoning_tokens for row in found) == [16, 64]
    assert {d.reason.first.max_reasoning_tokens for d in reasoning_differences(table_rows(evidence))} == {16, 64}
    # Direct embedding has no budget: its two runs are one result.
    assert sum("evaluated twice with the same result" in text for text in texts(evidence)) == 1
    assert [row.first.label for row in table_rows(evidence) if row.first.mode == "direct"] == ["nano"]


def test_a_second_budget_in_one_folder_keeps_its_model(runs):
    # `evaluate` writes the second budget of one folder as NAME@FINGERPRINT.
    folder = runs.evaluate("run", hops=False)
    other = runs.evaluate("other", modes=("reason",), budget=16, hops=False)
    file = next((other / "queries").iterdir())
    (folder / "queries" / "hopworld__nano@0123abcd__reason.jsonl").write_text(file.read_text())
    summary = json.loads((folder / "summary.json").read_text())
    [row] = json.loads((other / "summary.json").read_text())
    summary.append(row | {"model": "nano@0123abcd", "queries_file": "queries/hopworld__nano@0123abcd__reason.jsonl"})
    (folder / "summary.json").write_text(json.dumps(summary))
    evidence = read_runs([folder])
    assert texts(evidence) == []
    assert {row.model for row in evidence.evaluations} == {"nano"}
    assert all(row.outcomes for row in evidence.evaluations)
    assert len(reasoning_differences(table_rows(evidence))) == 2


def test_hop_counts_come_from_the_queries(runs):
    evidence = read_runs([runs.evaluate("run")])
    for hops in (1, 2, 3, 4):
        row = rows_by_mode(evidence, hops)["reason"]
        members = list(row.first.outcomes.values())
        assert {item.hops for item in members} == {hops}
        assert row.ndcg_at_10 == pytest.approx(np.mean([item.ndcg_at_10 for item in members]))


def test_hop_rows_of_a_summary_are_not_doubled(runs):
    folder = runs.evaluate("run", modes=("direct",))
    [row] = json.loads((folder / "summary.json").read_text())
    values = [json.loads(line) for line in next((folder / "queries").iterdir()).read_text().splitlines()]
    part = [item["ndcg_at_10"] for item in values if item["hops"] == 2]
    hop_row = row | {"hops": 2, "ndcg_at_10": float(np.mean(part)), "queries": len(part)}
    (folder / "summary.json").write_text(json.dumps([row, hop_row]))
    evidence = read_runs([folder])
    assert texts(evidence) == []
    found = [item for item in table_rows(evidence) if item.first.hops == 2]
    assert len(found) == 1
    assert len(found[0].first.outcomes) == len(part)


def test_mteb_results_alone(runs):
    folder = runs.evaluate("run")
    evidence = read_runs([folder / "mteb"])
    assert {(row.model, row.mode, row.origin) for row in evidence.evaluations} == {
        ("search-r3/nano", "direct", "mteb"),
        ("search-r3/nano", "reason", "mteb"),
    }
    [difference] = reasoning_differences(table_rows(evidence))
    assert difference.result is None
    assert difference.plain_difference > 0
    assert "no per-query results" in difference.why_untested


def test_mteb_results_of_a_plain_folder_name_their_model(runs):
    place = runs.root / "results" / "sentence-transformers__all-MiniLM-L6-v2" / "abc123"
    place.mkdir(parents=True)
    (place / "SciFact.json").write_text(json.dumps(runs.mteb_result("SciFact", 0.645)))
    (place / "model_meta.json").write_text("{half")
    evidence = read_runs([runs.root / "results"])
    [row] = evidence.evaluations
    assert (row.model, row.mode, row.task, row.ndcg_at_10) == (
        "sentence-transformers/all-MiniLM-L6-v2",
        "direct",
        "SciFact",
        0.645,
    )
    assert len(read_runs([place / "SciFact.json"]).evaluations) == 1


def write_predictions(runs, name="predictions/nano/reason"):
    """The ranking of a run as MTEB's prediction file, with ranks that give known values."""
    place = runs.root / name
    place.mkdir(parents=True)
    rankings = {f"q{i}": {f"d{i}": 0.9 - i / 10, "dx": 0.85, "dy": 0.1} for i in range(3)}
    data = {"mteb_model_meta": {"model_name": "local/nano", "revision": "r"}, "default": {"test": rankings}}
    (place / "hopworld_predictions.json").write_text(json.dumps(data))
    return place


def test_prediction_files_are_scored_with_the_judgements_of_another_run(runs):
    place = write_predictions(runs)
    evidence = read_runs([place, runs.evaluate("run", modes=("direct",))])
    [row] = [row for row in evidence.evaluations if row.origin == "predictions"]
    assert row.mode == "reason"
    # q0 has its document first; q1 and q2 have it second, after dx: 1 / log2(3).
    second = 1 / np.log2(3)
    assert [row.outcomes[f"q{i}"].ndcg_at_10 for i in range(3)] == pytest.approx([1, second, second], abs=1e-6)
    assert row.ndcg_at_10 == pytest.approx((1 + 2 * second) / 3, abs=1e-6)


def test_prediction_files_alone_are_shown_without_quality(runs):
    evidence = read_runs([write_predictions(runs)])
    [row] = evidence.evaluations
    assert row.ndcg_at_10 is None
    assert row.outcomes["q1"].top[0][0] == "dx"
    assert any("no run holds judgements for hopworld" in text for text in texts(evidence))


def test_predictions_fill_in_for_missing_query_files(runs):
    folder = runs.evaluate("run", modes=("direct", "reason"))
    next((folder / "queries").glob("*reason*")).unlink()
    write_predictions(runs, "run/predictions/nano/reason")
    evidence = read_runs([folder])
    row = next(row for row in evidence.evaluations if row.mode == "reason")
    assert row.origin == "summary"
    assert row.outcomes["q0"].ndcg_at_10 == pytest.approx(1.0)


def test_training_logs(runs):
    evidence = read_runs([runs.training("rl", "rl"), runs.training("sft", "sft") / "log.jsonl"])
    rl, sft = evidence.logs
    assert (rl.kind, len(rl.steps), len(rl.audits)) == ("rl", 80, 4)
    assert (sft.kind, len(sft.steps), len(sft.audits)) == ("sft", 80, 0)
    assert len(rl.evaluations) == 8


def test_what_the_user_got_wrong(runs):
    with pytest.raises(FileNotFoundError, match=r"no such file or folder: .*nowhere"):
        read_runs([runs.evaluate("run"), runs.root / "nowhere"])
    with pytest.raises(ValueError, match="at least one run folder"):
        read_runs([])
