"""A few trials of every attack, with fixed seeds, so that it cannot rot; `make attack` does it in earnest.

At least one of each kind is done once more with a planted fault (tests/attack/rehearsal.py), which it must notice.
Failures that were found are kept in `found/` as cases, and must stay mended.
"""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.attack import rehearsal
from tests.attack.attacks import every
from tests.attack.subjects import ended, subject
from tests.attack.trials import Outcome, Tally, again, run, save_failures
from tests.programs import python

ROOT = Path(__file__).resolve().parents[2]
FOUND = sorted((Path(__file__).parent / "found").glob("*.json"))
LIGHT = (
    "kills/store",
    "kills/cache",
    "flips/store",
    "flips/cache",
    "full disk/store",
    "writers/store",
)  # without torch
HERE = (
    "fuzz/texts, tiny",
    "fuzz/types",
    "fuzz/settings",
    "fuzz/configs",
    "fuzz/BEIR folders",
    "fuzz/model folders",
    "fuzz/command lines",
    "browser/report page",
)
HEAVY = (
    "kills/evaluation",
    "kills/stage 1",
    "kills/stage 2",
    "kills/export",
    "kills/embed",
    "flips/evaluation",
    "flips/stage 1",
    "flips/stage 2",
    "flips/export",
    "flips/model",
    "full disk/evaluation",
    "full disk/stage 1",
    "full disk/stage 2",
    "full disk/cache",
    "full disk/export",
    "full disk/embed",
    "writers/summary rows",
    "fuzz/texts, nano",
)
forks = pytest.mark.skipif(os.name != "posix", reason="processes are forked")


def rehearsed(*names):
    """What a program that forks says of these attacks."""
    return json.loads(python("-m", "tests.attack.rehearsal", *names).splitlines()[-1])


@pytest.fixture(scope="module")
def light():
    return rehearsed(*LIGHT)


@pytest.fixture(scope="module")
def heavy():
    return rehearsed(*HEAVY)


def check(found):
    if "absent" in found:
        pytest.skip(found["absent"])
    assert found["failures"] == []
    return found


def attacked(name, found):
    """Whether at least one trial did what it is for: a kill that landed, a damage, a disk without room."""
    idle = {"kills": {"never killed"}, "full disk": {"enough room"}, "flips": set()}.get(name.split("/")[0], set())
    return set(found["right"]) - idle


@forks
@pytest.mark.parametrize("name", LIGHT)
def test_kills_damages_full_disks_and_writers(light, name):
    assert attacked(name, check(light[name]))


@forks
@pytest.mark.parametrize("name", ["kills/store", "flips/store", "flips/cache", "full disk/store", "writers/store"])
def test_a_planted_fault_is_noticed(light, name):
    assert check(light[name])["planted"]


def test_two_undisturbed_evaluations_end_alike(tmp_path, monkeypatch):
    """A column that holds a time, and is not in TIMES, would call every killed evaluation another one."""
    from search_r3_mteb.encoder import chunks

    for name, size in chunks.CHUNK.items():
        monkeypatch.setitem(chunks.CHUNK, name, size)  # the work makes them small
    one = subject("evaluation", tmp_path)
    ends = []
    for place in (tmp_path / "first", tmp_path / "second"):
        place.mkdir()
        with pytest.raises(SystemExit, match="0"):  # of the command line
            one.work(place)
        ends.append(ended(one, place))
    assert ends[0] == ends[1]
    assert "cannot be read" not in ends[0]


@pytest.mark.slow
@forks
@pytest.mark.parametrize("name", HEAVY)
def test_with_models_and_trainings(heavy, name):
    assert attacked(name, check(heavy[name]))


@pytest.mark.slow
@forks
@pytest.mark.parametrize("name", ["flips/evaluation", "flips/export", "flips/model", "writers/summary rows"])
def test_a_planted_fault_of_an_evaluation_is_noticed(heavy, name):
    assert check(heavy[name])["planted"]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name.startswith("browser") else name for name in HERE]
)
def test_fuzzed_inputs_and_that_a_planted_fault_is_noticed(tmp_path, name):
    [attack] = every(tmp_path / "shared", lambda each: each == name)
    found = check(rehearsal.rehearse(attack, tmp_path / "attack"))
    assert set(found["right"]) <= {"right", "refused", "kept", "read", "loaded", "done", "stayed text"}
    assert found["planted"]


def test_every_attack_is_in_the_suite(tmp_path):
    names = {attack.name for attack in every(tmp_path)}
    assert names == {*LIGHT, *HERE, *HEAVY}
    full = {
        kind: sum(a.counts["full"] for a in every(tmp_path) if a.name.startswith(kind))
        for kind in ("kills", "flips", "fuzz")
    }
    assert full["kills"] >= 1000
    assert full["flips"] >= 5000
    assert full["fuzz"] >= 20_000


class Coin:
    """An attack that fails on some of its trials, and takes its process with it on others."""

    name, counts = "test/coin", {}

    def absent(self):
        return ""

    def prepare(self, folder):
        pass

    def draw(self, rng):
        return {"side": rng.choice(["head", "tail", "death"])}

    def attempt(self, case, place):
        if case["side"] == "death":
            os._exit(3)
        return Outcome(case["side"], failed=case["side"] == "tail")


@forks
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_trials_are_counted_whatever_they_do_to_their_process(tmp_path):
    tally = run(Coin(), 5, range(30), 2, tmp_path / "run")
    assert tally.trials == 30
    assert set(tally.outcomes) == {"head", "tail", "death"}
    assert sum(tally.outcomes.values()) == 30
    assert len(tally.failures) == tally.outcomes["tail"] + tally.outcomes["death"]
    assert (
        run(Coin(), 5, range(30), 1, tmp_path / "run").outcomes == tally.outcomes
    )  # the seed decides, not the processes
    assert run(Coin(), 6, range(30), 2, tmp_path / "run").outcomes != tally.outcomes


def test_a_failure_is_a_file_that_can_be_tried_again(tmp_path):
    one = {"attack": "test/coin", "seed": 1, "number": 4, "what": "tail", "detail": "", "case": {"side": "tail"}}
    [path] = save_failures(Tally("test/coin", 1, failures=[one]), tmp_path)
    assert path.name == "test-coin-1-4.json"
    assert again(path, [Coin()], tmp_path / "again") == Outcome("tail", failed=True)
    with pytest.raises(ValueError, match="there is no attack 'test/coin'"):
        again(path, [], tmp_path / "again")


def attack_of(path):
    return json.loads(path.read_text(encoding="utf-8"))["attack"]


def test_inputs_that_were_found_stay_mended(tmp_path):
    paths = [path for path in FOUND if attack_of(path) in HERE]
    assert paths
    for number, path in enumerate(paths):
        attacks = every(tmp_path / "shared", lambda name, path=path: name == attack_of(path))
        outcome = again(path, attacks, tmp_path / str(number))
        assert not outcome.failed, (path, outcome)


@forks
def test_damages_and_full_disks_that_were_found_stay_mended():
    paths = [path for path in FOUND if attack_of(path) in LIGHT]
    assert paths
    assert {attack_of(path) for path in FOUND} <= {*LIGHT, *HERE, *HEAVY}
    said = python("-m", "tests.attack", "--case", *paths)
    assert all(path.name in said for path in paths)


@pytest.mark.slow
@forks
def test_what_was_found_with_models_and_trainings_stays_mended():
    paths = [path for path in FOUND if attack_of(path) in HEAVY]
    said = python("-m", "tests.attack", "--case", *paths)
    assert all(path.name in said for path in paths)


def test_make_attack_runs_it():
    done = subprocess.run(
        ["make", "--dry-run", "attack", "ATTACK=full", "ONLY=flips", "SEED=7", "VENV=x"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={"PATH": os.environ["PATH"]},
    )
    words = " ".join(done.stdout.replace("\\\n", " ").split())
    assert re.search(r'x/bin/python -m tests.attack --size "full" --jobs "2" --only "flips" --seed "7"', words)
