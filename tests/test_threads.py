"""Threads: how they wait, what doctor advises from given speeds, and the hint of work that has become slow."""

import logging
import os

import pytest
import torch

from search_r3_mteb import threads
from search_r3_mteb.encoder import encoder as encoder_module
from search_r3_mteb.encoder.encoder import SearchR3Encoder
from search_r3_mteb.threads import WAIT_POLICY, SpeedWatch, ThreadSpeeds, thread_speeds
from tests.programs import python

PROGRAM = """
import os, sys
name, *given = sys.argv[1:]
os.environ.pop(name, None)
if given:
    os.environ[name] = given[0]
from search_r3_mteb import __main__ as program
assert "torch" not in sys.modules
sys.argv = ["search-r3", "--help"]
try:
    program.main()
except SystemExit:
    print("policy", os.environ.get(name))
"""


@pytest.mark.parametrize(("given", "kept"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_programs_let_threads_sleep_unless_the_user_has_decided(given, kept):
    said = python("-c", PROGRAM, WAIT_POLICY, *([] if given is None else [given]))
    assert said.endswith(f"policy {kept}\n")


def test_after_torch_it_is_too_late(monkeypatch):
    monkeypatch.delenv(WAIT_POLICY, raising=False)
    threads.sleep_while_waiting()
    assert WAIT_POLICY not in os.environ


@pytest.mark.parametrize(
    ("speeds", "policy", "said"),
    [
        (ThreadSpeeds(100, 10, 2, 2), "", "set OMP_NUM_THREADS=1 or OMP_WAIT_POLICY=PASSIVE; another program"),
        (ThreadSpeeds(100, 10, 2, 2), "passive", "set OMP_NUM_THREADS=1; another program"),
        (ThreadSpeeds(100, 190, 2, 1), "", "set OMP_NUM_THREADS=2 where nothing else runs"),
        (ThreadSpeeds(100, 190, 2, 2), "", None),
        (ThreadSpeeds(100, 90, 2, 2), "", None),
        (ThreadSpeeds(100, 10, 2, 1), "", None),
    ],
)
def test_advice(monkeypatch, speeds, policy, said):
    monkeypatch.setenv(WAIT_POLICY, policy)
    found = str(speeds)
    assert found.startswith(f"1 thread 100, 2 threads {speeds.all} tokens/s")
    assert ("set" not in found) if said is None else (said in found)


def test_speeds_are_medians_of_turns_and_threads_are_put_back():
    used, seen = torch.get_num_threads(), []

    def decode():
        seen.append(torch.get_num_threads())
        return {1: 5.0}.get(torch.get_num_threads(), 7.0) + len(seen)

    most = max(used, os.cpu_count() or 1)
    if most == 1:
        pytest.skip("needs two cores")
    found = thread_speeds(decode, rounds=2)
    assert seen == [1, most, 1, most]
    assert (found.one, found.all, found.threads, found.used) == (7.0, 10.0, most, used)
    assert torch.get_num_threads() == used

    def fails():
        raise RuntimeError("x")

    with pytest.raises(RuntimeError):
        thread_speeds(fails)
    assert torch.get_num_threads() == used


def test_the_hint_comes_once_when_two_parts_in_a_row_are_slow():
    pace = SpeedWatch()
    assert [pace.hint(1000, seconds) for seconds in (1, 0.5, 1)] == [None] * 3  # the best: 2,000 tokens/s
    assert pace.hint(1000, 2.1) is None  # slow once
    assert pace.hint(1000, 1) is None  # and not twice
    assert pace.hint(1000, 2.1) is None
    said = pace.hint(1000, 2.5)
    assert said.startswith("400 tokens/s, and 2,000 at the start")
    assert pace.hint(1000, 9) is None
    steady = SpeedWatch()
    assert [steady.hint(1000, seconds) for seconds in (1, 2, 3.9, 3.9, 3.9)] == [None] * 5
    assert SpeedWatch().hint(0, 1) is None


def test_an_encoder_says_it(tiny_checkpoint, monkeypatch, caplog):
    """With a clock of its own: the last chunks take ten times as long."""
    times = iter([0, *(now for chunk in range(8) for now in [chunk + 1 if chunk < 4 else 4 + 10 * (chunk - 3)] * 2)])
    monkeypatch.setattr(encoder_module.time, "perf_counter", lambda: next(times))
    monkeypatch.setitem(encoder_module.CHUNK, "document", 2)
    encoder = SearchR3Encoder(tiny_checkpoint, show_progress_bar=False)
    with caplog.at_level(logging.WARNING):
        encoder.encode_document(["a document"] * 16)
    assert caplog.text.count("tokens/s, and") == 1
