"""The sample of mutants, and the shares that are published of it."""

import importlib.util
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
