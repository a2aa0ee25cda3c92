"""README.md is true: its Python prints what it says; tables, picture and links are those of the repository."""

import contextlib
import importlib.util
import io
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from search_r3_mteb.encoder.model_names import ASSETS
from search_r3_mteb.tasks.beir_folder import write_beir

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)


def script(path, monkeypatch):
    """A script of results/ as a module, which finds its neighbours."""
    monkeypatch.syspath_prepend(ROOT / "results")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def broken(text, folder):
    """The relative links and pictures of a page that lead nowhere."""
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    headings = {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in re.findall(r"^#+ (.*)$", text, re.M)}
    return {
        target
        for target in targets
        if not target.startswith(("http:", "https:"))
        and (target[1:] not in headings if target[0] == "#" else not (folder / target.partition("#")[0]).exists())
    }


def test_it_is_short_enough_to_be_read():
    assert len(README.splitlines()) <= 200


def test_every_link_leads_somewhere():
    assert broken(README, ROOT) == set()
    assert len(re.findall(r"\]\((?!http)", README)) > 20
    assert broken("[a](docs/none.md) [b](#nowhere) [c](README.md)\n# Here", ROOT) == {"docs/none.md", "#nowhere"}


def test_the_ten_lines_run_and_print_what_stands_below_them():
    blocks = BLOCK.findall(README)
    (number,) = [number for number, (kind, text) in enumerate(blocks) if kind == "python" and "HopWorld" in text]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(blocks[number][1], "README.md", "exec"), {})
    assert printed.getvalue() == blocks[number + 1][1]
    lines = [line for line in blocks[number][1].splitlines() if line.strip() and not line.startswith("from ")]
    assert len(lines) <= 10


def test_its_other_python_runs_too(tmp_path, monkeypatch):
    """In a folder with what the README says is there: data/own, a BEIR folder."""
    corpus = [("a", "", "Cats purr when they are content."), ("b", "", "Glaciers are rivers of ice.")]
    write_beir(tmp_path / "data" / "own", corpus=corpus, queries=[("q", "which animals purr?")],
               qrels={"test": [("q", "a", 1)]})  # fmt: skip
    monkeypatch.chdir(tmp_path)
    others = [text for kind, text in BLOCK.findall(README) if kind == "python" and "HopWorld" not in text]
    assert len(others) == 1
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(others[0], "README.md", "exec"), {})
    assert printed.getvalue().split()[-1] == "1.0"


def test_what_make_is_asked_for_exists():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    named = set(re.findall(r"\bmake ([a-z][\w-]+)", README))
    assert {"evaluate", "test", "install"} <= named
    assert named - {"docs"} <= targets


def test_its_tables_are_those_of_the_results(monkeypatch, tmp_path):
    page = script(ROOT / "results" / "front_page.py", monkeypatch)
    files = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in (ROOT / "results").glob("*.json")}
    assert page.filled(README, files) == README
    [row] = [row for row in files["nano.json"]["rows"] if row["mode"] == "reason" and row.get("hops") == 4]
    row["ndcg_at_10"] = 0.9
    assert page.filled(README, files) != README, "the control"
    with pytest.raises(ValueError, match="needs the lines '<!-- hopworld"):
        page.filled(README.replace(page.BEGIN.format("hopworld"), ""), files)


def test_its_picture_is_what_nano_says(monkeypatch):
    picture = script(ROOT / "results" / "picture" / "picture.py", monkeypatch)
    data = json.loads(picture.DATA.read_text(encoding="utf-8"))
    assert picture.drawn(data) == picture.PICTURE.read_text(encoding="utf-8")
    now = picture.asked()
    for mode in ("direct", "reason"):  # cosines are shown with two digits, which another machine may round otherwise
        for each, kept in zip(now[mode]["top"], data[mode]["top"], strict=True):
            assert each.pop("cosine") == pytest.approx(kept.pop("cosine"), abs=0.011)
    assert now == data
    assert data["direct"]["rank"] > 1 == data["reason"]["rank"]


def test_the_picture_fits_its_page(monkeypatch):
    """No line of text, in a wide font of 0.6 em on average, ends beyond the page or below it."""
    picture = script(ROOT / "results" / "picture" / "picture.py", monkeypatch)
    root = ElementTree.fromstring(picture.PICTURE.read_text(encoding="utf-8"))
    width, height = (float(root.attrib[key]) for key in ("width", "height"))
    texts = list(root.iter("{http://www.w3.org/2000/svg}text"))
    assert len(texts) > 12
    for text in texts:
        size = 14 if text.get("class") == "quiet" else 16
        assert float(text.get("x")) + len(text.text) * size * 0.52 < width, text.text
        assert float(text.get("y")) < height - 6


def test_the_cards_of_the_bundled_models_say_what_was_measured(monkeypatch, tmp_path):
    cards = script(ROOT / "results" / "cards.py", monkeypatch)
    assert cards.main(["--check"]) == 0
    rows = {row["hops"]: row for row in json.loads((ASSETS / "nano" / "model_card.json").read_text())["results"]
            if row["mode"] == "reason" and "hops" in row}  # fmt: skip
    tokens = [rows[hops]["reasoning_tokens_per_query"] for hops in (1, 2, 3)]
    assert tokens == sorted(set(tokens)), "each hop count has its own cost"
    for name in cards.MODELS:
        text = (ASSETS / name / "README.md").read_text(encoding="utf-8")
        assert "`pip install .` in a checkout" in text
    changed = cards.facts_of("nano")
    monkeypatch.setattr(cards, "facts_of", lambda name: changed if name == "mini" else cards.Facts("x", "MIT", "sft"))
    assert cards.main(["--check"]) == 1, "the control"
