"""The sample of mutants, and the shares that are published of it."""

import importlib.util
import json
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def mutants():
    spec = importlib.util.spec_from_file_location("mutants", ROOT / "results" / "mutants" / "mutants.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_larger_sample_holds_the_smaller_one(mutants):
    names = [f"train.losses.grpo.x_loss__mutmut_{number}" for number in range(200)]
    few, many = mutants.drawn(names, 20, 0), mutants.drawn(names[::-1], 60, 0)
    assert few == many[:20]
    assert len(set(many)) == 60
    assert mutants.drawn(names, 20, 1) != few


def test_a_sample_s_share_has_an_interval(mutants):
    assert mutants.share(8, 10, sampled=False) == "80.0%"
    assert mutants.share(8, 10, sampled=True) == "80% (49% to 94%)"  # Wilson's: (0.992 +- 0.314) / 1.384
    assert mutants.share(0, 0, sampled=True) == "-"
    counts = Counter(mutants=40, run=10, killed=8, survived=2, equal=1)
    assert mutants.row("room", counts) == "| room | 40 | 10 | 8 | 2 | 1 | 80% (49% to 94%) | 89% (57% to 98%) |"


def test_rooms_and_their_tests_are_there(mutants):
    for room, tests in mutants.ROOMS.items():
        assert (ROOT / "train" / room).is_dir()
        assert all((ROOT / path).is_dir() for path in tests)


def test_a_smaller_run_does_not_replace_what_is_published(mutants, tmp_path, monkeypatch, capsys):
    """As mutmut leaves its results; two mutants ran and were killed, of a room that has 5 or 1 on record."""
    (tmp_path / "README.md").write_text("above\n<!-- table -->\n<!-- end of the table -->\nbelow\n")
    monkeypatch.setattr(mutants, "HERE", tmp_path)
    results = tmp_path / "runs/losses/mutants/train/losses/grpo.py.meta"
    results.parent.mkdir(parents=True)
    codes = {f"train.losses.grpo.x_loss__mutmut_{number}": code for number, code in enumerate([1, 1, None])}
    results.write_text(json.dumps({"exit_code_by_key": codes}))
    for ran, kept in ((5, True), (1, False)):
        module = {"mutants": 5, "run": ran, "killed": ran}
        published = {"commit": "abc", "modules": {"train.losses.grpo": module}, "survivors": []}
        (tmp_path / "mutants.json").write_text(json.dumps({"rooms": {"losses": published}}))
        mutants.report(tmp_path / "runs", ["losses"])
        found = json.loads((tmp_path / "mutants.json").read_text())["rooms"]["losses"]
        assert (found == published) is kept
        assert ("5 mutants that ran, and here 2" in capsys.readouterr().out) is kept
        assert f"| 5 | {ran} |" in (tmp_path / "README.md").read_text() or not kept
    assert found["modules"]["train.losses.grpo"] == {"mutants": 3, "run": 2, "killed": 2}
