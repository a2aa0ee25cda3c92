import importlib.util
import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "results"


@pytest.fixture
def scripts(monkeypatch):
    """make_readme and collect, imported as their own folder imports them, after what they import from there."""
    loaded = []
    for name in ("front_page", "make_readme", "collect"):
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        loaded.append(module)
    return loaded[1:]


def test_runs_become_a_page_with_provenance(runs, scripts, tmp_path):
    make_readme, collect = scripts
    folders = [runs.evaluate("a", models=("nano", "mini")), runs.evaluate("b", seed=1)]
    output = tmp_path / "nano.json"
    assert collect.main([*map(str, folders), "--title", "nano on hopworld", "--output", str(output)]) == 0
    assert make_readme.main(["--folder", str(tmp_path)]) == 0
    text = (tmp_path / "README.md").read_text()
    assert "## nano on hopworld" in text
    assert "`search-r3 evaluate --model nano --task hopworld --mode reason --seed 1` at commit 0123456789abcdef" in text
    row = next(line for line in text.splitlines() if line.startswith("| hopworld | nano | reason ≤ 64"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[3].startswith("**0.")
    assert cells[4].startswith("[0.")
    assert cells[8:11] == ["125.0", "60", "0, 1"]  # no documents per second were measured
    assert "| hopworld, 3 hops | nano |" in text
    assert make_readme.main(["--folder", str(tmp_path), "--check"]) == 0
    (tmp_path / "README.md").write_text(text + "by hand")
    assert make_readme.main(["--folder", str(tmp_path), "--check"]) == 1


def test_a_folder_is_called_by_its_name(scripts):
    make_readme, _ = scripts
    named = {"beir-scifact-f3642f75": "scifact", "beir-my-own-00000000": "my-own", "beir-me": "beir-me"}
    assert {task: make_readme._task({"task": task}) for task in named} == named
    assert make_readme._task({"task": "HopWorld-v1", "split": "dev", "hops": 2}) == "HopWorld-v1, dev, 2 hops"


def test_a_column_in_which_nothing_was_measured_is_left_out(scripts):
    make_readme, _ = scripts
    assert make_readme._table(["Task", "p", "ratio"], [["–", "–", "2"], ["–", "–", "–"]], 1).splitlines() == [
        "| Task | ratio |", "| :--- | ---: |", "| – | 2 |", "| – | – |",
    ]  # fmt: skip


@pytest.mark.parametrize("key", ["command", "commit"])
def test_a_row_without_provenance_is_refused(runs, scripts, tmp_path, capsys, key):
    _, collect = scripts
    folder = runs.evaluate("a", hops=False, **{key: None})
    assert collect.main([str(folder), "--title", "t", "--output", str(tmp_path / "x.json")]) == 1
    assert f"hopworld nano reason: no {key}" in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()


def test_rows_without_interval_are_refused(runs, scripts, tmp_path, capsys):
    _, collect = scripts
    folder = runs.evaluate("a", hops=False)
    for path in (folder / "queries").iterdir():
        path.unlink()
    assert collect.main([str(folder), "--title", "t", "--output", str(tmp_path / "x.json")]) == 1
    assert "no interval" in capsys.readouterr().err


def test_other_measurements(scripts, tmp_path, capsys):
    make_readme, _ = scripts
    content = {"title": "Speed", "command": "make bench", "commit": "abc", "table": [{"job": "a|b", "ratio": 1.23456}]}
    (tmp_path / "bench.json").write_text(json.dumps(content))
    assert make_readme.main(["--folder", str(tmp_path)]) == 0
    text = (tmp_path / "README.md").read_text()
    assert "| a\\|b | 1.235 |" in text
    assert "`make bench` at commit abc" in text
    (tmp_path / "bad.json").write_text("[1]")
    (tmp_path / "half.json").write_text('{"title"')
    (tmp_path / "bare.json").write_text('{"title": "t", "table": [{"a": 1}]}')
    assert make_readme.main(["--folder", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    bare = ["bare.json: has no command", "bare.json: has no commit"]
    for expected in ("bad.json: is not an object", "half.json: Expecting", *bare):
        assert expected in said


def test_the_committed_page_is_up_to_date(scripts):
    make_readme, _ = scripts
    assert make_readme.main(["--check"]) == 0
