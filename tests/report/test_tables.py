import csv
import io

import pytest

from search_r3_mteb.report import report
from search_r3_mteb.report.comparisons import reasoning_differences, table_rows
from search_r3_mteb.report.records import Message
from search_r3_mteb.report.runs import read_runs
from search_r3_mteb.report.tables import difference_frame, render, score_frame
from tests.programs import loaded_after


def of(folders):
    rows = table_rows(read_runs(folders))
    return rows, reasoning_differences(rows)


def test_bold_only_where_the_bootstrap_says_so(runs):
    rows, differences = of([runs.evaluate("run", models=("nano", "mini"), hops=False)])
    text = render(rows, differences, [], [], "md")[""]
    [bold] = [line for line in text.splitlines() if "**" in line and "| this run" in line]
    assert "| nano" in bold
    assert "reason" in bold
    # mini gains nothing, so its difference is not bold; nano's is.
    lines = [line for line in text.splitlines() if line.startswith("| hopworld") and "this run" not in line]
    assert {model: "**" in line for line in lines for model in ("nano", "mini") if f"| {model} " in line} == {
        "nano": True,
        "mini": False,
    }


def test_no_bold_without_per_query_results(runs):
    folder = runs.evaluate("run", models=("nano", "mini"), hops=False)
    for path in (folder / "queries").iterdir():
        path.unlink()
    rows, differences = of([folder])
    text = render(rows, differences, [], [], "md")[""]
    assert "**" not in text
    assert "+0." in text  # the plain difference is still there
    frame = difference_frame(differences)
    assert set(frame["p"]) == {None}
    assert set(frame["note"]) == {"no per-query results for both modes"}


def test_no_bold_for_one_row_alone_or_for_equals(runs):
    rows, _ = of([runs.evaluate("run", models=("mini",), modes=("direct",), hops=False)])
    assert not any(row.best for row in rows)
    rows, _ = of([runs.evaluate("other", models=("mini", "maxi"), modes=("direct",), hops=False)])
    assert not any(row.best for row in rows)


def test_one_row_without_queries_forbids_bold(runs):
    # It scores lower, but whether by chance cannot be tested.
    folder = runs.evaluate("run", models=("nano", "mini"), modes=("reason",), hops=False)
    assert any(row.best for row in of([folder])[0])
    next((folder / "queries").glob("*mini*")).unlink()
    assert not any(row.best for row in of([folder])[0])


def test_csv_holds_numbers(runs):
    runs.evaluate("run", hops=False)
    runs.evaluate("run", models=('odd,"name"\n|',), modes=("direct",), hops=False, ndcg_at_10=float("nan"))
    output = runs.root / "scores.csv"
    report([runs.root / "run"], output, "csv")
    table = list(csv.DictReader(io.StringIO(output.read_text())))
    assert {row["model"] for row in table} == {"nano", 'odd,"name"\n|'}
    reason = next(row for row in table if row["mode"] == "reason")
    assert float(reason["low"]) < float(reason["ndcg_at_10"]) < float(reason["high"])
    assert (reason["queries"], reason["max_reasoning_tokens"], reason["best"]) == ("60", "64", "True")
    assert next(row for row in table if row["model"] != "nano")["ndcg_at_10"] == "NaN"
    assert next(row for row in table if row["mode"] == "direct")["max_reasoning_tokens"] == ""
    deltas = list(csv.DictReader(io.StringIO((runs.root / "scores-differences.csv").read_text())))
    assert float(deltas[0]["difference"]) == pytest.approx(
        float(reason["ndcg_at_10"]) - float(next(r for r in table if r["mode"] == "direct")["ndcg_at_10"]), abs=1e-9
    )


def test_latex_escapes_and_balances(runs):
    rows, differences = of([runs.evaluate("run", models=("na_no&co",), hops=False)])
    text = render(rows, differences, [], [Message("note", "a%b", "line\nbreak")], "latex")[""]
    assert "na\\_no\\&co" in text
    assert "\\textbf{+0." in text or "\\textbf{0." in text or "$-$" in text
    assert "% note: a%b: line break" in text
    for environment in ("table", "tabular"):
        assert text.count(f"\\begin{{{environment}}}") == text.count(f"\\end{{{environment}}}") == 2
    for line in text.splitlines():
        if line.endswith("\\\\"):
            assert line.replace("\\&", "").count("&") in (10, 12)


def test_markdown_table_survives_odd_names(runs):
    rows, differences = of([runs.evaluate("run", models=("a|b",), hops=False)])
    text = render(rows, differences, [], [], "md")[""]
    widths = {line.replace("\\|", "").count("|") for line in text.splitlines() if line.startswith("|")}
    assert widths == {14, 12}
    assert "a\\|b" in text


def test_messages_are_in_the_text(runs):
    output = runs.root / "report.md"
    messages = report(runs.broken(), output, "md")
    assert all(str(message) in output.read_text() for message in messages)


def test_frames_are_typed(runs):
    rows, _ = of([runs.evaluate("run", hops=False)])
    frame = score_frame(rows)
    assert list(frame["queries"]) == [60, 60]
    assert list(frame["max_reasoning_tokens"]) == [64, None]
    assert [type(value) for value in frame["ndcg_at_10"]] == [float, float]
    assert score_frame([]).empty
    assert render([], [], [], [], "md")[""].count("None.") == 2


def test_unknown_format(runs):
    with pytest.raises(ValueError, match="'pdf' is not one of html, md, csv, latex"):
        report([runs.evaluate("run")], runs.root / "x", "pdf")


def test_importing_the_report_is_light():
    heavy = ["torch", "transformers", "mteb", "pandas", "plotly", "scipy", "jinja2"]
    report_modules = "search_r3_mteb.report, search_r3_mteb.report.runs, search_r3_mteb.report.page"
    assert not loaded_after(f"import {report_modules}", heavy)
