"""The peer vLLM in its own process: the same vectors as ours, and it stands still unless it is asked."""

import sys
import time
from pathlib import Path

import pytest

from search_r3_mteb.evaluation import bench as module
from search_r3_mteb.evaluation.bench_cases import cases
from search_r3_mteb.evaluation.bench_vllm import VllmPeer
from search_r3_mteb.evaluation.bench_work import RealModel, Subject
from tests.encoder.vllm.talkative import MARKS

pytestmark = MARKS


def ticks(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_it_does_the_same_work():
    subject = Subject.of(RealModel("nano", "float32", longest=16, vllm=Path(sys.executable)))
    for kind in ("reason", "encode"):
        timed = cases(kind, subject, quick=True)  # held: the peer ends with it
        one = next(each for each in timed if "vLLM" in each.peer)
        assert module.measure(one)["ratio"] > 0  # which compares vectors
        vectors, ids = one.theirs() if kind == "reason" else (one.theirs(), [])
        assert len(vectors) == one.items
        assert all(row[-1] == subject.checkpoint.embed_token_id for row in ids)


def test_it_stands_still_and_ends(tmp_path):
    folder = str(Path(module.__file__).parents[1] / "assets" / "nano")
    with VllmPeer(Path(sys.executable), folder, "float32", 4, 64, writes=False) as peer:
        pid = peer._process.pid
        first, _ = peer.ask([[5, 6, 7]], 3)
        before = ticks(pid)
        time.sleep(1)
        assert ticks(pid) == before
        for _ in range(500):  # a question takes less than a tick
            again, _ = peer.ask([[5, 6, 7]], 3)
            assert (first == again).all()
            if ticks(pid) > before:
                break
        assert ticks(pid) > before, "control: it computes where it is asked"
        with pytest.raises(ValueError, match="started to read only"):
            peer.ask([[5, 6, 7]], 3, [2])
    assert peer._process.returncode is not None
