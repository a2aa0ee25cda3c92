"""The scripts of results/corpus_cache that measure run to their end, also where their device is missing."""

import json

import pytest
import torch

from tests.programs import python, started


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here, which the script would use")
def test_cost_on_a_missing_gpu_runs_its_blocks_and_says_so():
    arguments = ("--dim", "8", "--documents", "300", "--rounds", "1", "--device", "cuda")
    process = started("results/corpus_cache/cost.py", *arguments, "--device-gigabytes", "0", "0.001")
    printed, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "there is no CUDA device here. The same blocks go through the processor's torch" in said
    found = json.loads(printed)
    assert found["machine"].startswith("no CUDA device: blocks on the processor's torch")
    assert [case["gigabytes_on_device"] for case in found["cases"]] == [0.0, 0.001, 0.0, 0.001]
    assert all(case["map_seconds"] > 0 for case in found["cases"])


@pytest.mark.slow
def test_cost_of_checksums():
    found = json.loads(python("results/corpus_cache/checksums.py", "--rows", "500", "--rounds", "2"))
    assert [case["policy"] for case in found["cases"]] == ["local", "local+map"]
    for case in found["cases"]:
        assert 0 < case["share_of_checksums"] <= case["largest_share_of_checksums"] < 1
        assert 0 < case["load_seconds_in_checksums"] < case["load_seconds"]
        assert 0 < case["save_seconds_in_checksums"] < case["save_seconds"], "the values of the map's cache"
