"""Both stages in a process group of one, on one GPU: what several GPUs do, where only one is at hand.

    python results/processes/nccl.py                        # everything, under torchrun with one process per part
    python results/processes/nccl.py --parts nano-sft nano-rl --steps 200 20
    python results/processes/nccl.py --dry-run              # the same programs on a CPU under gloo, in two minutes

Plain nccl has no collectives for CPU tensors, and a group of one runs every collective that a larger one does: what
lies on the wrong device fails here as it does on eight GPUs. The parts, each a process of its own:

    build       a folder with random weights of Qwen2.5-1.5B's published shape
    nano-sft    train/configs/nano.toml            nano-rl    train/configs/rl_nano.toml, from nano-sft's model
    lora-sft, lora-rl, full-sft, full-rl           two steps of the 1.5B shape: bf16 compute over float32 weights

Each part adds its times, memory and losses to OUTPUT/nccl.json, which is printed at the end. A part that fails is
written down with its error, and the others run. OUTPUT needs 40 GB while the 1.5B parts run. With --dry-run nano takes
four steps and the 1.5B shape two layers.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from results.measure import commit  # noqa: E402
from results.one_step import PUBLISHED_SHAPE, build  # noqa: E402

PARTS = ("build", "nano-sft", "nano-rl", "lora-sft", "lora-rl", "full-sft", "full-rl")
SMALL_SHAPE = {"num_hidden_layers": 2, "hidden_size": 48, "intermediate_size": 96, "vocab_size": 1024}
ADAPTER = ["model.lora.rank=16", "model.lora.alpha=32.0"]
COMMON = [
    "data.evaluation=[]",
    "data.max_length=256",
    "optimization.steps=2",
    "optimization.warmup_steps=0",
    "optimization.schedule=constant",
    "output.tensorboard=false",
]
DOCUMENTS = 20_000


def settings(part: str, given: argparse.Namespace) -> list[str]:
    """What is overridden of a part's shipped configuration."""
    model, stage = part.split("-")
    folder = [f"output.folder={given.output / part}", "checkpoint.resume=never"]
    if model == "nano":
        steps = [4, 2] if given.dry_run else given.steps
        cut = [f"optimization.steps={steps[stage == 'rl']}", "output.tensorboard=false", "output.log_every=1"]
        if steps[0] <= 50 and stage == "sft":
            cut.append("optimization.warmup_steps=0")
        if given.dry_run:
            cut += ["evaluate.max_queries=4"] + ["rollout.max_reasoning_tokens=4"] * (stage == "rl")
        if find_spec("pytrec_eval") is None:
            cut.append("data.evaluation=[]")
        return [*folder, *cut, *([f"model.path={given.output / 'nano-sft/last'}"] if stage == "rl" else [])]
    documents = 500 if given.dry_run else DOCUMENTS
    source = f'{{kind = "hopworld", documents = {documents}, hops = [2]}}'
    found = [*folder, *COMMON, f"model.path={given.output / 'model'}", f"data.sources=[{source}]"]
    found += ADAPTER if model == "lora" else []
    if stage == "sft":
        # A fully trained model's KL needs a copy of it; the adapter's base is the model itself.
        batch = ["optimization.batch_size=4", "optimization.mini_batch_size=2"]
        return [*found, "data.mixing=rows", *(batch if given.dry_run else []), f"loss.kl={float(model == 'lora')}"]
    sampled = ["rollout.prompts_per_step=16", "rollout.max_reasoning_tokens=128"]
    if given.dry_run:
        sampled = ["rollout.prompts_per_step=2", "rollout.group_size=2", "rollout.max_reasoning_tokens=4"]
    cache = ["corpus_cache.budget_tokens=65536", "corpus_cache.audit_every=1", "corpus_cache.audit_rows=64"]
    return [*found, *sampled, *cache, "output.rollouts_every=0"]


def work(part: str, given: argparse.Namespace) -> dict[str, Any]:
    """Run one part in this process, which torchrun has started; what it took."""
    began = perf_counter()
    if part == "build":
        build(given.output / "model", PUBLISHED_SHAPE | (SMALL_SHAPE if given.dry_run else {}))
        return {"seconds": round(perf_counter() - began, 2)}
    from train import rl, sft

    program = rl if part.endswith("rl") else sft
    name = "nano" if part.startswith("nano") else "qwen2.5-1.5b"
    config = ROOT / f"train/configs/{'rl_' if program is rl else ''}{name}.toml"
    overrides = settings(part, given)
    program.main(["--config", str(config), *(word for one in overrides for word in ("--set", one))])
    facts = {"seconds": round(perf_counter() - began, 2), "settings": overrides} | group() | memory()
    events = [json.loads(line) for line in (given.output / part / "log.jsonl").open(encoding="utf-8")]
    steps = [event for event in events if event["event"] == "step"]
    kept = steps if len(steps) <= 4 else [steps[0], steps[-1]]
    if len(steps) > 1:
        facts["seconds_per_step"] = round(
            (steps[-1]["seconds"] - steps[0]["seconds"]) / (steps[-1]["step"] - steps[0]["step"]), 4
        )
    scores = {
        f"{e['task']} {e['mode']} {e['hops'] or 'all'}": e["ndcg_at_10"] for e in events if e["event"] == "evaluate"
    }
    if not part.startswith("nano"):  # tens of gigabytes that nobody reads
        for folder in ("checkpoints", "last", "cache"):
            shutil.rmtree(given.output / part / folder, ignore_errors=True)
    return facts | {"steps": kept, "ndcg_at_10": scores}


def group() -> dict[str, Any]:
    """The process group, and what it says to a tensor of the CPU: under nccl an error."""
    import torch
    import torch.distributed as dist

    try:
        dist.all_reduce(torch.ones(1))
        said = "sums it"
    except RuntimeError as error:
        said = str(error).splitlines()[0]
    return {"backend": dist.get_backend_config(), "processes": dist.get_world_size(), "to_a_cpu_tensor": said}


def memory() -> dict[str, Any]:
    """Peak memory in GiB of the process, and of the GPU by torch's allocator."""
    import torch

    found = {"host_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)}
    if torch.cuda.is_available():
        found["gpu_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        found["gpu_reserved_gib"] = round(torch.cuda.max_memory_reserved() / 2**30, 2)
    return found


def machine() -> dict[str, Any]:
    """Versions and devices."""
    import torch

    found: dict[str, Any] = {"commit": commit(), "python": platform.python_version(), "cores": os.cpu_count()}
    for name in ("torch", "transformers", "accelerate", "peft", "sentence-transformers", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    if torch.cuda.is_available():
        found |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
        found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    return found


def launch(part: str, given: argparse.Namespace, limit: float | None) -> dict[str, Any]:
    """One part under torchrun with one process; its own report, or how it failed."""
    report = given.output / f"{part}.json"
    report.unlink(missing_ok=True)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "1",
        str(Path(__file__)),
    ]
    command += ["--part", part, "--output", str(given.output), "--steps", *map(str, given.steps)]
    command += ["--dry-run"] * given.dry_run
    try:
        code = subprocess.run(
            command, check=False, timeout=limit, env=os.environ | {"PYTHONPATH": str(ROOT)}
        ).returncode
    except subprocess.TimeoutExpired:
        code = 124
    return json.loads(report.read_text()) if report.exists() else {"error": f"ended with code {code} and no report"}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--output", type=Path, default=Path("runs/nccl"), help="folder for the runs and nccl.json")
    parser.add_argument("--steps", nargs=2, type=int, default=[1300, 250], metavar=("SFT", "RL"), help="of nano")
    parser.add_argument("--limit", type=float, help="seconds of one part, after which it is ended")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, cut down")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)  # a process that torchrun started
    given = parser.parse_args(arguments)
    given.output = given.output.resolve()
    given.output.mkdir(parents=True, exist_ok=True)
    if given.part is not None:
        try:
            found = work(given.part, given)
        except Exception as error:  # noqa: BLE001  every failure is written down
            traceback.print_exc()
            found = {"error": f"{type(error).__name__}: {error}"[:2000]}
        (given.output / f"{given.part}.json").write_text(json.dumps(found))
        raise SystemExit("error" in found)
    whole: dict[str, Any] = {"command": "results/processes/nccl.py", "dry_run": given.dry_run, "machine": machine()}
    page = given.output / "nccl.json"
    whole["parts"] = json.loads(page.read_text())["parts"] if page.exists() else {}  # of an earlier command
    for part in given.parts:
        whole["parts"][part] = launch(part, given, given.limit)
        page.write_text(json.dumps(whole, indent=1) + "\n")
    print(json.dumps(whole, indent=1))


if __name__ == "__main__":
    main()
