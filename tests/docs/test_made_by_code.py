"""Diagrams and tables are what their scripts make; both can be read on a light and on a dark page."""

import importlib.util
import json
import re
import xml.etree.ElementTree as ElementTree

import pytest

from tests.docs.pages import DOCS, PAGES, read

LIGHT, DARK = "#ffffff", "#1e2129"  # the site's two backgrounds


def script(name):
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


diagrams, tables = script("diagrams"), script("tables")


def luminance(colour):
    """WCAG 2.2, relative luminance."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    """WCAG 2.2, contrast ratio: 1 to 21."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_diagrams_are_those_that_the_script_draws(tmp_path, monkeypatch, capsys):
    assert diagrams.main(["--check"]) == 0
    monkeypatch.setattr(diagrams, "IMAGES", tmp_path)
    assert diagrams.main(["--check"]) == 1
    assert "one_pass.svg" in capsys.readouterr().err
    assert diagrams.REASONING in read("index.md"), "which a test compares with what nano says"
    drawn = {path.stem for path in (DOCS / "images").iterdir()}
    shown = {name for page in PAGES for name in re.findall(r"images/(\w+)\.svg\)", read(page))}
    assert drawn == shown == set(diagrams.DIAGRAMS)


def test_diagrams_can_be_read_on_both_backgrounds():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for fill in diagrams.FILLS.values():
        assert contrast(fill, diagrams.INK) >= 4.5
    for page in (LIGHT, DARK):
        assert contrast(diagrams.ARROW, page) >= 3
    assert contrast("#c0c0c0", LIGHT) < 3, "the control"


@pytest.mark.parametrize("name", sorted(diagrams.DIAGRAMS))
def test_no_text_leaves_its_box_or_the_drawing(name):
    """Widths by 0.56 of the size per letter, more than the mean of the fonts that are asked for."""
    title, rows = diagrams.DIAGRAMS[name]
    root = ElementTree.fromstring(diagrams.drawn(title, rows))
    space = "{http://www.w3.org/2000/svg}"
    boxes = [{key: float(box.get(key)) for key in ("x", "y", "width", "height")} for box in root.iter(f"{space}rect")]
    assert root.find(f"{space}title").text == title
    for text in root.iter(f"{space}text"):
        x, y = float(text.get("x")), float(text.get("y"))
        (box,) = [b for b in boxes if b["x"] <= x <= b["x"] + b["width"] and b["y"] <= y <= b["y"] + b["height"]]
        assert len(text.text or "") * 0.56 * diagrams.SIZE <= box["width"] - 8, f"{text.text!r} is too wide"


def test_the_tables_of_results_are_those_of_the_data(monkeypatch):
    page = read("results.md")
    assert tables.written(page, "results.md") == page, "run python docs/tables.py"
    read_file = tables.read

    def changed(name):
        data = json.loads(json.dumps(read_file(name)))
        if name == "nano.json":
            data["rows"][0]["ndcg_at_10"] += 0.1
        return data

    monkeypatch.setattr(tables, "read", changed)
    assert tables.written(page, "results.md") != page


def test_a_part_that_is_missing_is_named():
    with pytest.raises(ValueError, match=r"results.md needs <!-- begin: docs/tables.py nano -->"):
        tables.written(read("results.md").replace("begin: docs/tables.py nano -->", "-->"), "results.md")


@pytest.mark.slow
def test_the_estimates_are_those_of_the_dry_run():
    page = read("paper.md")
    assert tables.written(page, "paper.md") == page, "run python docs/tables.py"


def test_the_first_estimate_is_that_of_the_dry_run(monkeypatch):
    """The others, and their shapes, are slow."""
    monkeypatch.setattr(tables, "RUNS", tables.RUNS[:1])
    *_, row = tables.estimates().splitlines()
    assert row in read("paper.md")
