"""The figures of results/: drawn again from the committed files, and readable by somebody who has not read the page."""

import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")
from results import figures
from results.figures import drawn, faults

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def chart():
    """A figure that breaks no rule, and its axes."""
    from matplotlib.figure import Figure

    chart = Figure(figsize=(6, 4), layout="constrained", dpi=100)
    axes = chart.subplots()
    axes.plot([0, 1, 2], [0, 1, 4], label="squares")
    axes.plot([0, 1, 2], [4, 3, 2], label="falling")
    axes.set(xlabel="step (count)", ylabel="loss (nats)")
    return chart, axes


def test_a_good_figure_has_no_fault(chart):
    chart[0].legend(loc="outside upper left")
    assert faults(chart[0]) == []


def legend_over_data(axes):
    axes.legend(loc="lower left")


def label_over_data(axes):
    axes.text(0.9, 0.8, "a peak", transform=axes.transData)


def no_unit(axes):
    axes.set_ylabel("loss")


def no_name(axes):
    axes.set_xlabel("")


def cut_off(axes):
    axes.text(-0.5, 5, "far to the left", transform=axes.transData, ha="right").set_in_layout(False)


def texts_on_each_other(axes):
    axes.text(1.2, 3.6, "first", transform=axes.transData)
    axes.text(1.22, 3.62, "second", transform=axes.transData)


def hidden_line(axes):
    axes.plot([0, 1, 2], [0, 1, 4], label="the same again")


def point_outside(axes):
    axes.set_ylim(0, 3)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (legend_over_data, "covers data"),
        (label_over_data, "the label 'a peak' covers data"),
        (no_unit, "'loss', without a unit"),
        (no_name, "x is called '', without a unit"),
        (cut_off, "cut off at the edge"),
        (texts_on_each_other, "'first' and 'second' overlap"),
        (hidden_line, "'the same again' hides 'squares'"),
        (point_outside, "'squares' has points outside of the axes"),
    ],
)
def test_each_fault_is_found(chart, spoil, said):
    spoil(chart[1])
    assert any(said in fault for fault in faults(chart[0])), faults(chart[0])


def test_a_figure_with_a_fault_is_not_written(tmp_path):
    def draw(unit):
        with drawn(tmp_path / "f.png", [], (6, 4)) as (_, grid):
            grid[0, 0].plot([0, 1, 2], [0, 1, 4])
            grid[0, 0].set(xlabel="step (count)", ylabel=f"loss{unit}")

    with pytest.raises(ValueError, match="'loss', without a unit"):
        draw("")
    assert not (tmp_path / "f.png").exists()
    draw(" (nats)")
    assert (tmp_path / "f.png").exists()


def test_dots_of_another_size_show_what_is_under_them(chart):
    for size in (12, 6):
        chart[1].plot([1], [3.5], "o", markersize=size, label=f"size {size}")
    assert faults(chart[0]) == []
    chart[1].plot([1], [3.5], "o", markersize=6, label="again")
    assert faults(chart[0]) == ["panel 1: 'again' hides 'size 6'"]


@pytest.fixture(scope="module")
def charts(tmp_path_factory):
    """Every figure of the pages, drawn from the committed files: by its name, the chart and the written PNG."""
    from matplotlib.figure import Figure

    kept, save, found = [], Figure.savefig, {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda self, *args, **how: (kept.append(self), save(self, *args, **how)))
        for path, draw in figures.all_figures().items():
            target = tmp_path_factory.mktemp("figures") / path.name
            draw(target)
            found[path.relative_to(ROOT).as_posix()] = (kept[-1], target)
    return found


def test_every_figure_is_among_them(charts):
    pictures = {path.relative_to(ROOT).as_posix() for path in (ROOT / "results").rglob("*.png")}
    assert pictures == set(charts)
    drawing = {path for path in (ROOT / "results").rglob("*.py") if "savefig" in path.read_text(encoding="utf-8")}
    assert drawing == {ROOT / "results" / "figures.py"}, "one module saves figures, so that its rules hold for all"


def test_curves_begin_at_step_0(charts):
    for name in ("results/rl/curves.png", "results/mini/curves.png"):
        for axes in charts[name][0].axes:
            assert axes.get_xlim()[0] == 0, name
    rises = [line for line in charts["results/rl/curves.png"][0].axes[0].lines if line.get_label() == "3 hops"]
    [rise] = rises
    assert rise.get_xdata()[0] == 0
    assert rise.get_ydata()[-1] - rise.get_ydata()[0] > 0.4, "what stage 2 adds is in view"


def test_names_are_written_out(charts):
    from matplotlib.text import Text

    short = re.compile(r"\(i+v?\)|\bst\b|\bhf\b|_")
    for name, (chart, _) in charts.items():
        texts = [each.get_text() for each in chart.findobj(Text)]
        assert [
            text for text in texts if short.search(text) and "hidden_states" not in text and "$" not in text
        ] == [], name
    assert any(
        "sentence-transformers" in each.get_title(loc="left") for each in charts["results/speed/figure.png"][0].axes
    )
    assert short.search("encode nano, (iii)")


def test_the_committed_figures_are_those_of_the_committed_numbers(charts):
    from PIL import Image

    for name, (_, target) in charts.items():
        with Image.open(ROOT / name) as committed, Image.open(target) as again:
            assert committed.text[figures.SOURCES] == again.text[figures.SOURCES], f"python results/figures.py: {name}"
            assert np.allclose(committed.size, again.size, rtol=0.02), name


def test_the_pages_of_curves_are_those_of_their_scripts():
    from results.mini import page as mini
    from results.rl import page as rl

    for page, text in ((rl, rl.page()), (mini, mini.page() + "\n")):
        assert (page.HERE / "README.md").read_text(encoding="utf-8") == text
        assert f"]({page.FIGURE.name})" in text


def test_another_number_is_another_figure(tmp_path):
    (tmp_path / "a.json").write_text("[1]")
    before = figures.checksums([tmp_path / "a.json"])
    (tmp_path / "a.json").write_text("[2]")
    assert figures.checksums([tmp_path / "a.json"]) != before


def test_a_proof_leaves_the_points_that_its_curves_are_drawn_from(tmp_path, monkeypatch):
    """Logs of a run are not committed: a figure that needs them cannot be drawn again."""
    import json

    from results.rl import page, proof

    monkeypatch.setattr(proof, "RUNS", tmp_path)
    monkeypatch.setattr(proof, "dev_scores", lambda model, seed: [{"hops": 3, "ndcg_at_10": 0.25, "queries": 50}])
    for seed in proof.SEEDS:
        (tmp_path / f"rl-{seed}").mkdir()
        events = [
            {"event": "step", "step": 50, "reward": 1},
            {"event": "evaluate", "step": 50, "mode": "direct", "hops": 3, "ndcg_at_10": 0.1, "queries": 50},
            {"event": "evaluate", "step": 50, "mode": "reason", "hops": 3, "ndcg_at_10": 0.5, "queries": 50},
            {"event": "evaluate", "step": 50, "mode": "reason", "hops": None, "ndcg_at_10": 0.4, "queries": 200},
        ]
        (tmp_path / f"rl-{seed}" / "log.jsonl").write_text("".join(json.dumps(one) + "\n" for one in events))
    found = proof.curves()
    assert [(one["seed"], one["step"], one["ndcg_at_10"]) for one in found] == [
        (seed, step, value) for seed in proof.SEEDS for step, value in ((0, 0.25), (50, 0.5))
    ]
    assert page.curves(found) == [[(0, 0.25), (50, 0.5)]] * 3


@pytest.mark.slow
def test_step_0_is_measured_as_training_measures(tmp_path):
    from results.rl.proof import dev_scores

    small = ["data.evaluation=[{kind='hopworld', split='dev', documents=500, hops=[1, 2]}]", "evaluate.max_queries=4"]
    found = dev_scores("nano", 0, small)
    assert {one["hops"] for one in found} == {1, 2}
    assert sum(one["queries"] for one in found) == 4
    assert all(0 <= one["ndcg_at_10"] <= 1 for one in found)
