"""The benchmark's runner: ratios from turns, and no ratio for work that is not the same."""

import json
import time

import numpy as np
import pytest

from search_r3_mteb.evaluation import bench as module
from search_r3_mteb.evaluation.bench_cases import Case


def case(ours=0.002, theirs=0.006, difference=0.0):
    def side(seconds, vector):
        def work():
            time.sleep(seconds)
            return np.full((2, 3), vector)

        return work

    return Case("c", "p", "items/s", 10, 5, side(ours, 1.0), side(theirs, 1.0 + difference))


def test_the_ratio_is_how_much_faster_we_are():
    record = module.measure(case())
    assert 1.5 < record["ratio"] < 4.5
    assert record["ours"] > record["theirs"]
    assert record["runs"] == 5
    assert set(record) == {"case", "peer", "ratio", "ours", "theirs", "unit", "runs"}


def test_work_that_is_not_the_same_has_no_ratio():
    with pytest.raises(ValueError, match="this is not the same work"):
        module.measure(case(difference=0.01))


def test_unknown_kind():
    with pytest.raises(ValueError, match="There is no benchmark speed; there are reason, encode, rollout"):
        module.bench(["speed"])


def test_records_are_written_as_they_come(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "Subject", lambda size: size)
    monkeypatch.setattr(module, "cases", lambda kind, subject, quick: iter([case(), case()]))
    told = []
    records = module.bench(["encode"], quick=True, output=tmp_path / "bench.json", tell=told.append)
    assert records == told == json.loads((tmp_path / "bench.json").read_text())
    assert len(records) == 2
