"""Threads: how they wait, what doctor advises from given speeds, and the hint of work that has become slow."""

import logging
import os
from dataclasses import replace

import pytest
import torch

from search_r3_mteb import threads
from search_r3_mteb.cli.shared import long_work
from search_r3_mteb.encoder import encoder as encoder_module
from search_r3_mteb.encoder.encoder import SearchR3Encoder
from search_r3_mteb.encoder.vllm import engine as vllm_engine
from search_r3_mteb.encoder.vllm.engine import VllmEngine
from search_r3_mteb.threads import SPINS, WAIT_POLICY, SpeedWatch, ThreadSpeeds, thread_speeds
from tests.programs import python

PROGRAM = """
import os, sys
for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
    os.environ.pop(name, None)
os.environ.update(pair.split("=") for pair in sys.argv[1:])
from search_r3_mteb import __main__ as program
assert "torch" not in sys.modules
sys.argv = ["search-r3", "--help"]
try:
    program.main()
except SystemExit:
    print("spins", os.environ.get("GOMP_SPINCOUNT"))
"""


@pytest.mark.parametrize(
    ("given", "spins"), [((), "10000"), (("OMP_WAIT_POLICY=ACTIVE",), "None"), (("GOMP_SPINCOUNT=7",), "7")]
)
def test_programs_let_threads_spin_briefly_unless_the_user_has_decided(given, spins):
    assert python("-c", PROGRAM, *given).endswith(f"spins {spins}\n")


def test_after_torch_it_is_too_late(monkeypatch):
    for name in (WAIT_POLICY, *SPINS):
        monkeypatch.delenv(name, raising=False)
    threads.spin_briefly()
    assert not {WAIT_POLICY, *SPINS} & set(os.environ)


class Work:
    """Takes so many seconds with so many threads, by a clock of its own."""

    def __init__(self, seconds, monkeypatch):
        self.seconds, self.now, self.seen = seconds, 0.0, []
        monkeypatch.setattr(threads.time, "perf_counter", lambda: self.now)

    def __call__(self):
        self.seen.append(torch.get_num_threads())
        self.now += self.seconds[torch.get_num_threads()].pop(0)


@pytest.fixture
def four_threads(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("seconds", "best"), [({1: [3, 3], 2: [9, 2], 4: [4, 8]}, 2), ({1: [2, 9], 2: [3, 3], 4: [9, 9]}, 1)]
)
def test_the_fastest_number_of_threads_is_used(four_threads, monkeypatch, seconds, best):
    work = Work(seconds, monkeypatch)
    with threads.chosen_by_measurement():
        threads.settle(work)
        assert work.seen == [1, 2, 4] * 2
        assert torch.get_num_threads() == best
        again = Work({1: [1, 1], 2: [2, 2], 4: [0.5, 0.5]}, monkeypatch)  # all of them are tried again
        threads.settle(again)
        assert torch.get_num_threads() == 4
        threads.settle(Work({1: [1, 1], 2: [2, 2], 4: [3, 3]}, monkeypatch))
    assert torch.get_num_threads() == 4


def test_long_commands_choose(four_threads, monkeypatch):
    work = Work({1: [1, 1], 2: [2, 2], 4: [3, 3]}, monkeypatch)
    with long_work():
        threads.settle(work)
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 4


def test_threads_are_left_alone_outside_of_programs_and_where_the_user_has_set_them(four_threads, monkeypatch):
    work = Work({}, monkeypatch)
    threads.settle(work)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    with threads.chosen_by_measurement():
        threads.settle(work)
    assert not work.seen
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize("mode", ["reason", "direct"])
def test_long_encoding_measures_on_a_few_texts_and_changes_no_vector(tiny_checkpoint, monkeypatch, mode):
    texts = [f"what is number {number}" for number in range(70)]
    encoder = SearchR3Encoder(tiny_checkpoint, mode=mode, max_reasoning_tokens=12, show_progress_bar=False)
    alone = encoder.encode_query(texts)
    seen, real = [], {name: getattr(encoder.engine, name) for name in ("embed", "reason")}
    for name, method in real.items():

        def watched(prompts, *rest, method=method, **named):
            seen.append(len(prompts))
            return method(prompts, *rest, **named)

        monkeypatch.setattr(encoder.engine, name, watched)
    monkeypatch.setattr(encoder_module, "settle", lambda work: work())
    assert encoder.encode_query(texts).tolist() == alone.tolist()
    assert seen == [2, 70]
    seen.clear()
    encoder.encode_query(texts[:63])
    assert seen == [63]


def test_a_run_in_half_precision_finds_its_rows_again_whatever_was_chosen(four_threads, tiny_checkpoint, tmp_path):
    """The number of threads is part of such a row's identity; the first documents' choice moved the queries' rows."""
    half = replace(tiny_checkpoint, model=tiny_checkpoint.model.to(torch.bfloat16))

    def computed(best):
        torch.set_num_threads(4)
        encoder = SearchR3Encoder(half, max_reasoning_tokens=2, show_progress_bar=False, cache_folder=tmp_path)
        with pytest.MonkeyPatch.context() as patch, threads.chosen_by_measurement():
            names = [encoder.fingerprint]
            for encode in (encoder.encode_document, encoder.encode_query):
                work = Work({1: [best, best], 2: [2, 2], 4: [4, 4]}, patch)
                threads.settle(work)
                encode(["the query", "and the document"])
            names.append(encoder.fingerprint)
        assert names[0] == names[1]
        return encoder.engine.forward_tokens, names[0]

    tokens, name = computed(1)
    assert tokens > 0
    assert computed(3) == (0, name)
    fixed = SearchR3Encoder(half, max_reasoning_tokens=2, show_progress_bar=False)
    assert fixed.fingerprint != name  # of 4 threads for certain


def test_no_threads_are_measured_with_an_engine_that_has_its_own(tiny_checkpoint, monkeypatch):
    monkeypatch.setattr(vllm_engine, "installed_version", lambda: "0.32.0")
    monkeypatch.setattr(VllmEngine, "embeds", False)
    measured = []
    monkeypatch.setattr(encoder_module, "settle", measured.append)
    for engine in ("vllm", "own"):
        encoder = SearchR3Encoder(tiny_checkpoint, engine=engine, max_reasoning_tokens=2, show_progress_bar=False)
        encoder.encode_document(["a document"] * 64)
        assert len(measured) == (engine == "own")


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


def test_cores_that_this_process_may_not_use_are_not_counted(monkeypatch):
    """Under taskset, or in a container: more threads than these would only wait for each other."""
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {5}, raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: seen.append(count))
    seen: list[int] = []
    assert str(thread_speeds(lambda: 7.0, rounds=1)) == "1 thread 7 tokens/s"
    assert set(seen) == {1}
    monkeypatch.delattr(os, "sched_getaffinity")  # macOS, Windows
    assert threads.cores() == 64


def test_speeds_are_medians_of_turns_and_threads_are_put_back():
    used, seen = torch.get_num_threads(), []

    def decode():
        seen.append(torch.get_num_threads())
        return {1: 5.0}.get(torch.get_num_threads(), 7.0) + len(seen)

    most = max(used, threads.cores())
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
