"""The page without a browser: size, completeness, what is cut and said. `test_browser.py` opens it."""

import base64
import gzip
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from search_r3_mteb.report import report
from search_r3_mteb.report.comparisons import reasoning_differences, table_rows
from search_r3_mteb.report.explorer import LADDER, build_payload, find_pairs
from search_r3_mteb.report.figures import (
    cost_figure,
    difference_figure,
    forced_figure,
    hops_figure,
    length_figure,
    time_figure,
)
from search_r3_mteb.report.page import Content, write_page
from search_r3_mteb.report.plot import LeftOut
from search_r3_mteb.report.runs import read_runs
from search_r3_mteb.report.training_figures import training_figures


def unpacked(text, name="data"):
    found = re.search(rf'<script type="text/plain" id="{name}">([^<]+)</script>', text)
    return gzip.decompress(base64.b64decode(found.group(1))).decode()


def page_of(runs, *folders):
    path = runs.root / "report.html"
    report(folders, path)
    return path.read_text(encoding="utf-8")


class Balance(HTMLParser):
    """Counts tags that were opened and not closed."""

    void = frozenset({"meta", "link", "input", "br"})

    def __init__(self):
        super().__init__()
        self.open, self.wrong = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def test_the_page_is_whole_small_and_closed(runs):
    text = page_of(runs, runs.evaluate("run"), runs.training("rl"))
    assert len(text.encode()) < 5_000_000
    balance = Balance()
    balance.feed(text)
    assert (balance.open, balance.wrong) == ([], [])
    assert "default-src 'none'" in text
    without_data = re.sub(r'<script type="text/plain".*?</script>', "", text, flags=re.DOTALL)
    assert not re.search(r"https?://", without_data)
    assert "plotly.js v" in unpacked(text, "plotly")[:200]


def test_the_same_runs_give_the_same_bytes(runs):
    folders = [runs.evaluate("run"), runs.training("rl")]
    assert page_of(runs, *folders) == page_of(runs, *folders)


def test_explorer_data_is_what_was_run(runs):
    data = json.loads(unpacked(page_of(runs, runs.evaluate("run"))))
    [pair] = data["pairs"]
    at = pair["ids"].index("q7")
    assert "violin" in pair["texts"][at]
    assert pair["hops"][at] == 4
    documents = data["documents"]["ids"]
    [[judged, relevance]] = pair["judged"][at]
    assert (documents[judged], relevance) == ("d7", 1)
    records = list(runs.records("nano", "reason", 60, 0, 64, True, 1000))
    assert pair["reason"]["ndcg"][at] == records[7]["ndcg_at_10"]
    assert [documents[number] for number in pair["reason"]["top"][at]] == [item["id"] for item in records[7]["top"]]
    assert pair["reason"]["forced"][at] == int(not records[7]["finished"])
    assert data["documents"]["texts"][judged] == runs.text("d7")


def test_texts_that_are_no_unicode_do_not_stop_the_page(runs):
    folder = runs.evaluate("run", models=("nano",))
    for path in (folder / "queries").iterdir():
        path.write_text(path.read_text().replace("What is", "\\ud800What is"))
    text = page_of(runs, folder)
    assert "?What is the country" in json.loads(unpacked(text))["pairs"][0]["texts"][0]
    for form in ("md", "csv", "latex"):
        report([folder], runs.root / f"out.{form}", form)


def test_seeds_are_averaged_in_the_explorer(runs):
    folders = [runs.evaluate(f"s{seed}", seed=seed, hops=False) for seed in (0, 1)]
    [pair] = json.loads(unpacked(page_of(runs, *folders)))["pairs"]
    values = [list(runs.records("nano", "reason", 60, seed, 64, False, 1000))[3]["ndcg_at_10"] for seed in (0, 1)]
    assert pair["reason"]["ndcg"][3] == pytest.approx(sum(values) / 2)
    assert pair["seeds"]["reason"] == [0, 1]


def test_the_largest_budget_is_explored(runs):
    folders = [runs.evaluate(f"b{budget}", budget=budget, hops=False) for budget in (16, 64, 32)]
    [pair] = find_pairs(table_rows(read_runs(folders)))
    assert pair.reason.first.max_reasoning_tokens == 64
    assert pair.direct is not None


def test_texts_are_cut_only_as_far_as_needed_and_it_is_said(runs):
    evidence = read_runs([runs.evaluate("run", queries=400)])
    pairs = find_pairs(table_rows(evidence))
    whole = build_payload(pairs, evidence.texts, {}, 10**9)
    assert whole.notes == ()
    sizes = [len(whole.encoded)]
    for factor in (0.9, 0.6, 0.4):
        part = build_payload(pairs, evidence.texts, {}, int(len(whole.encoded) * factor))
        assert len(part.encoded) <= len(whole.encoded) * factor
        assert "is cut after" in part.notes[0]
        sizes.append(len(part.encoded))
    assert sizes == sorted(sizes, reverse=True)
    # Thinned queries are spread over all differences, best and worst included.
    deltas = {i: r - d for i, r, d in zip(whole.data["pairs"][0]["ids"], whole.data["pairs"][0]["reason"]["ndcg"],
                                          whole.data["pairs"][0]["direct"]["ndcg"], strict=True)}  # fmt: skip
    least = build_payload(pairs, evidence.texts, {}, int(len(whole.encoded) * 0.2))
    kept = least.data["pairs"][0]["ids"]
    assert len(kept) == LADDER[-1].queries < 400
    assert least.data["pairs"][0]["total"] == 400
    assert {max(deltas.values()), min(deltas.values())} <= {deltas[key] for key in kept}
    assert "evenly spaced" in least.notes[1]
    with pytest.raises(ValueError, match="too many for one page"):
        build_payload(pairs, evidence.texts, {}, 100)


def test_the_page_says_what_was_cut(runs):
    evidence = read_runs([runs.evaluate("run", queries=300)])
    rows = table_rows(evidence)
    size = write_page(Content(evidence, rows, reasoning_differences(rows)), runs.root / "whole.html")
    less = write_page(Content(evidence, rows, reasoning_differences(rows)), runs.root / "cut.html", size - 3_000)
    assert less <= size - 3_000
    assert "is cut after" in (runs.root / "cut.html").read_text()
    assert "is cut after" not in (runs.root / "whole.html").read_text()


def test_verdicts_name_difference_interval_and_queries(runs):
    text = page_of(runs, runs.evaluate("run", models=("nano", "mini")))
    verdicts = re.findall(r"<li>(\w+ on hopworld.*?)</li>", text)
    assert len(verdicts) == 2
    assert re.search(r"nano.*reasoning helps: nDCG@10 \+0\.\d+ \(95 % interval \+0\.\d+ to \+0\.\d+, p = ", verdicts[0])
    assert "mini" in verdicts[1]
    assert "changes nothing that can be told apart from chance" in verdicts[1]


def test_runs_without_evaluations_or_without_training(runs):
    assert "No evaluation was found" in page_of(runs, runs.training("sft", "sft"))
    assert "Quality while training" in page_of(runs, runs.root / "sft")
    assert "Training runs" not in page_of(runs, runs.evaluate("run"))


def test_difference_figure_by_hand():
    figure = difference_figure("f", [("a", 0.5), ("b", -0.25), ("c", 0.0), ("d", 0.5)])
    assert "helped 50%, unchanged 25%, hurt 25%" in figure.caption
    assert "largest gain +0.50, largest loss -0.25" in figure.alt
    [points] = [trace for trace in figure.plot["data"] if "customdata" in trace]
    assert points["customdata"] == ["a", "d", "c", "b"]


def test_length_figure_counts_forced_rows_apart(runs):
    [row] = read_runs([runs.evaluate("run", modes=("reason",))]).evaluations
    figure = length_figure("f", row.outcomes)
    _, forced = figure.plot["data"]
    total = sum(item.finished is False for item in row.outcomes.values())
    assert forced["name"] == "forced"
    assert figure.plot["layout"]["barmode"] == "stack"
    assert f"{total / 60:.0%} forced" in figure.caption
    assert length_figure("f", {}) is None


def test_cost_figure_has_one_point_per_budget(runs):
    rows = table_rows(read_runs([runs.evaluate(f"b{budget}", budget=budget, hops=False) for budget in (4, 16, 64)]))
    [line] = cost_figure("f", "hopworld", rows).plot["data"]
    assert line["x"][0] == 0
    assert line["x"] == sorted(line["x"])
    assert [text.split()[-1] for text in line["text"]] == ["direct", "4", "16", "64"]
    assert cost_figure("f", "hopworld", [row for row in rows if row.first.mode == "direct"]) is None


def test_time_figure_has_one_point_per_method_and_budget(runs):
    folders = [runs.evaluate(f"b{budget}", budget=budget, hops=False) for budget in (4, 16, 64)]
    rows = table_rows(read_runs([*folders, runs.evaluate("more", models=("bm25",), modes=("direct",), hops=False)]))
    figure = time_figure("f", "hopworld", rows)
    lines = {trace["name"]: trace for trace in figure.plot["data"]}
    assert {name: len(trace["x"]) for name, trace in lines.items()} == {"nano": 4, "bm25": 1}
    assert lines["nano"]["x"] == [pytest.approx(1000 / 120), 125.0, 125.0, 125.0]  # 120 and 8 queries per second
    assert sorted(text.split()[-1] for text in lines["nano"]["text"]) == ["16", "4", "64", "direct"]
    layout = figure.plot["layout"]
    assert layout["xaxis"]["type"] == "log"
    assert "(ms, logarithmic)" in layout["xaxis"]["title"]["text"]
    assert (layout["legend"]["y"], layout["legend"]["yanchor"]) == (1.0, "bottom")  # above the data, not over them
    untimed = table_rows(read_runs([runs.evaluate("untimed", queries_per_second=None, hops=False)]))
    assert time_figure("f", "hopworld", untimed) is None


def test_every_point_of_quality_against_cost_bears_its_method_and_budget(runs):
    folders = [runs.evaluate(f"b{budget}", budget=budget, hops=False) for budget in (4, 16, 64)]
    rows = table_rows(read_runs([*folders, runs.evaluate("more", models=("bm25",), modes=("direct",), hops=False)]))
    for figure in (time_figure("f", "hopworld", rows), cost_figure("f", "hopworld", rows)):
        lines = {trace["name"]: trace for trace in figure.plot["data"]}
        assert {name: trace["mode"] for name, trace in lines.items()} == dict.fromkeys(lines, "lines+markers+text")
        assert set(lines["nano"]["text"]) == {"direct", "reasoning ≤ 4", "reasoning ≤ 16", "reasoning ≤ 64"}
        assert lines["bm25"]["text"] == ["direct"]
        # Towards the middle, and on the side of the point where its line is not.
        positions = dict(zip(lines["nano"]["text"], lines["nano"]["textposition"], strict=True))
        assert (positions["direct"], positions["reasoning ≤ 64"]) == ("bottom right", "top left")
        assert figure.plot["layout"]["showlegend"]
        for axis in ("xaxis", "yaxis"):
            assert figure.plot["layout"][axis]["title"]["text"]
    many = [runs.evaluate(f"m{budget}", budget=budget, hops=False) for budget in range(1, 14)]
    [line] = cost_figure("f", "hopworld", table_rows(read_runs(many))).plot["data"]
    assert line["mode"] == "lines+markers", "so many labels would cover each other"


def test_labels_of_points_that_lie_on_each_other_are_apart(runs):
    """Regression: with equal scores at (nearly) no tokens, "direct" stood on "reasoning ≤ 64"."""
    rows = [replace(row, ndcg_at_10=0.5) for row in table_rows(read_runs([runs.evaluate("same", hops=False)]))]
    near = [
        replace(row, runs=tuple(replace(run, reasoning_tokens_per_query=0.0) for run in row.runs))
        if row.first.mode == "reason"
        else row
        for row in rows
    ]
    [line] = cost_figure("f", "hopworld", near).plot["data"]
    assert line["x"] == [0.0, 0.0]
    assert sorted(line["text"])[0] == "direct"
    assert line["textposition"] == ["top right", "bottom right"]


def test_a_control_is_not_what_the_explorer_shows_first(runs):
    rows = table_rows(read_runs([runs.evaluate("two", models=("nano", "bm25"), hops=False)]))
    names = [pair.row.first.model for pair in find_pairs(rows)]
    assert set(names) == {"nano", "bm25"}
    for control in names:
        first, last = find_pairs(rows, controls={control})
        assert (first.row.first.model == control, last.row.first.model) == (False, control)


def flat(runs, **changed):
    """A run whose every query has the same value of these fields in both modes."""
    folder = runs.evaluate("flat", hops=False)
    for path in (folder / "queries").iterdir():
        rows = [json.loads(line) | changed for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_figures_that_would_show_nothing_are_left_out_with_a_sentence(runs):
    assert difference_figure("f", [("a", 0.0), ("b", 0.0)]).why.startswith("nDCG@10 of all 2 queries is the same")
    folder = flat(runs, ndcg_at_10=0.5, reasoning_tokens=64, finished=True)
    data = json.loads((folder / "summary.json").read_text())
    for row in data:
        row |= {"ndcg_at_10": 0.5, "forced_share": 0.0}
    (folder / "summary.json").write_text(json.dumps(data))
    text = page_of(runs, folder)
    figures = json.loads(unpacked(text))["figures"]
    assert figures["difference-0"]["plot"] is figures["length-0"]["plot"] is None
    assert figures["difference-0"]["caption"] == (
        "Not drawn: nDCG@10 of all 60 queries is the same with and without reasoning."
    )
    assert figures["length-0"]["caption"] == "Not drawn: all 60 reasonings have 64 tokens; 0% forced."
    assert "<li>Share of forced rows: no query was cut at its budget in any of the 1 rows that reason.</li>" in text
    assert "forced" not in figures
    # Control: what varies is drawn, and no sentence stands in its place.
    varied = page_of(runs, runs.evaluate("varied"))
    assert all(each["plot"] for each in json.loads(unpacked(varied))["figures"].values())
    assert "Not drawn" not in varied


def test_one_hop_count_and_a_curve_without_a_change_are_left_out(runs):
    rows = [row for row in table_rows(read_runs([runs.evaluate("run")])) if row.first.hops in (None, 2)]
    assert hops_figure("f", "hopworld", rows) == LeftOut(
        "f", "Quality by hop count: hopworld", "all queries have 2 hops."
    )
    drawn = {each.title: each for each in training_figures(read_runs([runs.training("rl")]).logs[0], 0)}
    assert drawn["Share forced: rl"].why == "forced share is 0.2 at each of the 80 steps logged."
    assert drawn["Loss: rl"].plot["layout"]["xaxis"]["rangemode"] == "tozero"
    assert all(isinstance(each, LeftOut) or each.plot["layout"]["yaxis"]["title"]["text"] for each in drawn.values())


def test_forced_figure_tells_the_share_of_every_budget(runs):
    evidence = read_runs([runs.evaluate(f"b{budget}", budget=budget) for budget in (4, 64)])
    shares = {row.max_reasoning_tokens: row.forced_share for row in evidence.evaluations if row.mode == "reason"}
    figure = forced_figure("f", table_rows(evidence))
    for budget, share in shares.items():
        assert f"hopworld, nano ≤ {budget}: {share:.1%}" in figure.alt
    [bars] = figure.plot["data"]
    low = [value - error for value, error in zip(bars["x"], bars["error_x"]["arrayminus"], strict=True)]
    assert all(0 <= value < share for value, share in zip(low, bars["x"], strict=True))


def test_training_figures_cover_losses_quality_and_cache(runs):
    log = read_runs([runs.training("rl")]).logs[0]
    titles = [figure.title.split(":")[0] for figure in training_figures(log, 0)]
    cache = ["Age of the cached vectors (optimizer steps)", "Error of the cached vectors"]
    assert titles == ["Loss", "Reward", "Rollouts", "Share forced", *cache, "Quality while training"]
    quality = training_figures(log, 0)[-1]
    assert {trace["name"] for trace in quality.plot["data"]} == {"reason", "direct"}


def test_long_curves_are_thinned_and_it_is_said(runs):
    log = read_runs([runs.training("sft", "sft", steps=4000)]).logs[0]
    loss = training_figures(log, 0)[0]
    assert "One step in 3 is drawn" in loss.caption
    assert max(len(trace["x"]) for trace in loss.plot["data"] if isinstance(trace["x"], list)) <= 1501
    assert all(trace["x"][-1] == 4000 for trace in loss.plot["data"])


def test_variants_of_one_model_are_lines_of_their_own(runs):
    first = runs.evaluate("a", hops=False)
    runs.gains = {"nano": -0.3}
    rows = table_rows(read_runs([first, runs.evaluate("b", hops=False)]))
    lines = {trace["name"]: trace for trace in cost_figure("f", "hopworld", rows).plot["data"]}
    # The direct run is the same in both, so it belongs to both lines.
    assert {len(trace["x"]) for name, trace in lines.items() if name != "nano"} == {2}
    assert sum(name.startswith("nano (") for name in lines) == 2


def test_hops_figure_shows_the_largest_budget(runs):
    rows = table_rows(read_runs([runs.evaluate(f"b{budget}", budget=budget) for budget in (16, 64)]))
    figure = hops_figure("f", "hopworld", rows)
    assert {trace["name"] for trace in figure.plot["data"]} == {"nano, direct", "nano, reasoning ≤ 64"}
    assert all(list(trace["x"]) == [1, 2, 3, 4] for trace in figure.plot["data"])
