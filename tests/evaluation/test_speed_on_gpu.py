"""results/speed/gpu.py: the same code in its dry run, on the CPU."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "results" / "speed" / "gpu.py"


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    spec = importlib.util.spec_from_file_location("speed_gpu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_dry_run_measures_all_kinds_of_work_and_writes_nothing(gpu, capsys):
    before = sorted(SCRIPT.parent.iterdir())
    gpu.main(["--dry-run"])
    page = capsys.readouterr().out
    for work in ("encode, ", "decode, batch 1", "decode, batch 4", "two passes, batch 4"):
        assert f"| {work}" in page
    assert "nano in float32" in page
    assert sorted(path for path in SCRIPT.parent.iterdir() if path.name != "__pycache__") == [
        path for path in before if path.name != "__pycache__"
    ]


def test_shares_of_the_limit_by_hand(gpu):
    from search_r3_mteb.evaluation import bench_models

    nano = bench_models.checkpoint("nano")
    body = gpu.body_parameters(nano.model)
    assert body == sum(p.numel() for p in nano.model.parameters()) - nano.model.get_input_embeddings().weight.numel()
    record = gpu.encode(nano, 4, 1, peak=1e12)
    tokens = int(record["work"].split()[1])
    assert record["share_of_limit"] == pytest.approx(record["rate"] * 2 * body * tokens / 1e12)
    ours, theirs = gpu.decode(nano, 2, 4, 1, bandwidth=1e9)
    assert ours["share_of_limit"] / ours["rate"] == pytest.approx(theirs["share_of_limit"] / theirs["rate"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(gpu):
    with pytest.raises(RuntimeError, match=r"There is no CUDA device.*--dry-run"):
        gpu.main([])


def test_unknown_chips_are_named(gpu):
    assert gpu.limits("NVIDIA H200")[1] == 4.8e12
    with pytest.raises(ValueError, match="peaks of 'Voodoo 2'"):
        gpu.limits("Voodoo 2")
