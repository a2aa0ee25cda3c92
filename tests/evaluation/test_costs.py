"""Cost beside quality: the ratio of times, the sentence on each pair, and a table that a terminal can hold."""

import io

import pytest

from search_r3_mteb.evaluation.costs import (
    SystemScores,
    compared,
    cost_sentences,
    pairs,
    ratio_text,
    scores_of,
    times_text,
)
from search_r3_mteb.evaluation.summary import milliseconds, table
from search_r3_mteb.report.number_text import signed
from search_r3_mteb.terminal import SafeConsole

ROW = {
    "task": "SciFact", "split": "test", "model": "mini", "mode": "direct", "ndcg_at_10": 0.5, "recall_at_10": 0.75,
    "interval": [0.4, 0.6], "queries": 4000, "reasoning_tokens_per_query": 0.0, "milliseconds_per_query": 2.0,
    "documents_per_second": 300.0, "queries_file": "direct.jsonl",
}  # fmt: skip
REASON = ROW | {
    "mode": "reason", "ndcg_at_10": 0.6, "reasoning_tokens_per_query": 40.0, "milliseconds_per_query": 42.0,
    "queries_file": "reason.jsonl",
}  # fmt: skip
BM25 = ROW | {"model": "bm25", "ndcg_at_10": 0.4, "milliseconds_per_query": 0.5, "queries_file": "bm25.jsonl"}


def scores(name, mode, values, milliseconds):
    by_query = {f"q{number}": value for number, value in enumerate(values)}
    return SystemScores(name, mode, sum(values) / len(values), by_query, milliseconds)


@pytest.fixture
def output(tmp_path):
    values = {"direct": [0.5, 0.5, 0.5, 0.5], "reason": [0.6, 0.6, 0.6, 0.6], "bm25": [0.3, 0.5, 0.4, 0.4]}
    for name, each in values.items():
        lines = [f'{{"query_id": "q{number}", "ndcg_at_10": {value}}}\n' for number, value in enumerate(each)]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    return tmp_path


# Of four draws from -0.2, 0, -0.1, -0.1 the sum is -0.8 with 1/256 and -0.7 with 8/256: the lower end is -0.7 / 4.
def test_one_sentence_for_each_pair_with_difference_interval_and_cost(output):
    assert cost_sentences([REASON, ROW, BM25], output) == [
        "SciFact, mini: reasoning +0.100 (+0.100 to +0.100) at 21 times the time per query.",
        "SciFact: bm25 (direct) against mini (direct) -0.100 (-0.175 to -0.025) at 0.25 times the time per query.",
    ]


def test_tasks_are_not_mixed_and_hop_rows_are_no_systems(output):
    dev = [row | {"split": "dev"} for row in (ROW, BM25)]
    found = cost_sentences([ROW, ROW | {"hops": 1}, *dev], output)
    assert [each.split(":")[0] for each in found] == ["SciFact (dev)"]
    assert cost_sentences([], output) == []


def test_a_given_reasoning_is_said_to_be_one(output):
    assert cost_sentences([REASON | {"mode": "given"}, ROW], output) == [
        "SciFact, mini: given reasoning, whose writing is not timed, +0.100 (+0.100 to +0.100) at 21 times the time "
        "per query."
    ]


def test_a_mean_over_subsets_has_no_interval_over_queries(output):
    pooled = {key: value for key, value in REASON.items() if key != "interval"}
    assert cost_sentences([pooled, ROW], output) == [
        "SciFact, mini: reasoning +0.100 (no interval) at 21 times the time per query."
    ]


def test_the_difference_is_paired_over_the_queries_of_both():
    first = scores("a", "direct", [0.9, 0.1, 0.6], 3.0)
    second = SystemScores("b", "direct", 0.3, {"q0": 0.8, "q1": 0.0}, 2.0)
    pair = compared(first, second)
    assert pair.result.queries == 2
    assert pair.difference == pytest.approx(0.1)  # not 0.533 - 0.3: the third query has no partner
    assert (pair.result.low, pair.result.high) == (pytest.approx(0.1), pytest.approx(0.1))
    unpaired = compared(first, SystemScores("b", "direct", 0.3, {"q0": 0.0, "q1": 0.8}, 2.0))
    assert unpaired.result.low < 0 < unpaired.result.high  # negative control: the same values, other partners
    assert pair.times == 1.5


def test_the_baseline_is_the_first_model_without_reasoning():
    runs = [scores(name, mode, [0.5, 0.6], 1.0) for name in "ab" for mode in ("reason", "direct")]
    assert [(pair.first.label, pair.second.label) for pair in pairs(runs)] == [
        ("a (reason)", "a (direct)"),
        ("b (reason)", "b (direct)"),
        ("b (reason)", "a (direct)"),
        ("b (direct)", "a (direct)"),
    ]
    assert [(pair.first.label, pair.second.label) for pair in pairs(runs[0:1] + runs[2:3])] == [
        ("b (reason)", "a (reason)")
    ]


def test_nothing_is_said_to_be_less_than_zero_by_nothing():
    pair = compared(scores("a", "direct", [0.1] * 9, 1.0), scores("b", "direct", [0.10004] * 9, 1.0))
    assert pair.difference < 0
    assert "b (direct) +0.000 (+0.000 to +0.000) at" in pair.sentence("T")
    assert signed(-0.00004) == "+0.000"
    assert signed(-0.0006) == "−0.001"


def test_ratios_have_two_digits_and_what_was_not_measured_is_said():
    assert [ratio_text(each) for each in (21.4, 1234.0, 9.96, 2.25, 1.0, 0.25, 0.0123)] == [
        *("21", "1,234", "10", "2.2", "1.0", "0.25", "0.012")
    ]
    assert times_text(None) == "at a time per query that was not measured"
    assert scores("a", "direct", [0.1], None).milliseconds is None
    assert compared(scores("a", "reason", [0.1], 3.0), scores("a", "direct", [0.1], None)).times is None


def test_rows_of_older_versions_have_only_the_rate(output):
    old = {key: value for key, value in ROW.items() if key != "milliseconds_per_query"} | {"queries_per_second": 8.0}
    assert milliseconds(old) == 125.0
    assert scores_of(old, output).milliseconds == 125.0
    assert milliseconds(old | {"milliseconds_per_query": None}) is None
    assert milliseconds({"queries_per_second": None}) is None


def test_the_table_fits_a_terminal_of_80_columns():
    wide = REASON | {
        "task": "A-Long-Name-NFCorpus", "model": "hyde:SmolLM2-135M-Instruct+MiniLM", "split": "dev",
        "reasoning_tokens_per_query": 1234.5, "milliseconds_per_query": 98765.4, "documents_per_second": 54321.0,
    }  # fmt: skip
    shown = io.StringIO()
    SafeConsole(file=shown, width=80).print(table([ROW, wide, BM25]))
    lines = shown.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    for number in ("0.400-0.600", "1,234", "98,765", "54,321", "2.0", "0.50", "300"):
        assert sum(number in line.split() for line in lines) >= 1, number
    narrow = io.StringIO()
    SafeConsole(file=narrow, width=40).print(table([wide]))
    assert "98,765" not in narrow.getvalue().split()  # negative control: at 40 the numbers are cut
