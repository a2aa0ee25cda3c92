"""Both stages on a process group that has no backend for CPU tensors, as nccl has none. Every life is a fork.

python device_group_worker.py STAGE FOLDER MODEL SIZE ...    one process without a group; then SIZE, resumed once
python device_group_worker.py STAGE-sharded FOLDER MODEL 2   with FSDP2, which needs a group of its own device
python device_group_worker.py lost FOLDER MODEL              one of two processes fails in the middle of a step

On this machine the run's own device is the CPU too, so here each tensor of the run and each array of the host is one
that the group refuses: "No backend type associated with device type cpu", the error of several GPUs under nccl.
"""

import contextlib
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from tests.programs import free_port, launched
from tests.train.forking import forked, wait
from tests.train.loop_worker import launch, member, train
from tests.train.loops import (
    StoppedError,
    cache_arrays,
    events,
    largest_difference,
    rl_config,
    sft_config,
    stop_after,
    weights,
)
from train import rl
from train.checkpoint.trees import read_tensors
from train.processes.errors import OtherProcessError
from train.run.run import Run
from train.stage1.step import SupervisedStep
from train.stage2.environment import Environment

STEPS = 3
# Rows with a trace and rows without: processes differ in how many reasoned queries they have.
SOURCES = """
[[data.sources]]
kind = "hopworld"
name = "untraced"
documents = 500
hops = [1]
traces = false
[[data.sources]]
kind = "hopworld"
name = "traced"
documents = 500
hops = [2]
"""
# A large epsilon: AdamW divides by the gradient's own size, and where that is 0 rounding would decide the sign.
STABLE = ["optimization.epsilon=1.0", "optimization.learning_rate=0.05", "optimization.max_gradient_norm=0"]


def settings(stage, folder, model, *overrides):
    """Batches that two and three processes can share; two kinds of forwards, mini-batches, evaluation, an audit."""
    common = [f"optimization.steps={STEPS}", *STABLE, *overrides]
    if stage == "sft":
        return sft_config(
            folder, "optimization.batch_size=6", "loss.reading=0.5", "loss.reading_documents=2", *common,
            evaluation=True, sources=SOURCES,
        )  # fmt: skip
    return rl_config(
        folder, model, "rollout.prompts_per_step=6", "rollout.max_reasoning_tokens=5", *common, evaluation=True
    )


def refuses_the_cpu():
    """The control: what the group says to a tensor of the CPU."""
    try:
        dist.all_reduce(torch.ones(1))
    except RuntimeError as error:
        return str(error)
    return "nothing"


SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


def run(stage, folder, model, name, overrides, *, backend=None, until=None, environment=None):
    """The life of one process; `backend` initialises the group before accelerate does."""
    config = settings(stage, folder / name, model, *overrides)

    def action(rank):
        said, idle, original = "no group", [], SupervisedStep._idle_loss
        SupervisedStep._idle_loss = lambda self, own: idle.append(1) or original(self, own)
        if environment is not None:
            os.environ |= environment
            said, update = "no shards", Run.update

            def updated(self):
                nonlocal said
                said = type(next(self.model.parameters())).__name__
                update(self)

            Run.update = updated
        if backend is not None:
            if "RANK" not in os.environ:  # torchrun with one process
                os.environ |= launched(0, 1, free_port())
            dist.init_process_group(backend)
            said = refuses_the_cpu()
        if until is not None:
            Run.after_step = stop_after(until)
        with contextlib.suppress(StoppedError):
            train(stage, config)
        (folder / f"{name}-{rank}.json").write_text(json.dumps([said, len(idle)]))

    return action


def taught_on_one_side(folder, model):
    """`contrastive.min_reward` between the best rewards of the two halves of the first step's prompts."""

    def action(rank):
        original = Environment.judge

        def judge(self, groups, step):
            judged = original(self, groups, step)
            best = [max(judged.rewards.total[r] for r, p in enumerate(groups.prompt) if p // 3 == half)
                    for half in (0, 1)]  # fmt: skip
            (folder / "bound.json").write_text(json.dumps(best))
            raise StoppedError

        Environment.judge = judge
        with contextlib.suppress(StoppedError):
            train("rl", settings("rl", folder / "first", model))

    launch(1, action)
    best = json.loads((folder / "bound.json").read_text())
    return best, sum(best) / 2


def exported_difference(one, other):
    """The largest difference of states and logits of two exported models, as exports are compared with their source."""
    from search_r3_mteb.encoder.checkpoints import load
    from search_r3_mteb.encoder.merging import outputs_of

    a, b = outputs_of(load(one, device="cpu")), outputs_of(load(other, device="cpu"))
    return max(float((a.vectors - b.vectors).abs().max()), float((a.logits - b.logits).abs().max()))


def with_a_gap(rank):
    """One token of this process's rollouts has a log-probability that is not the trainer's."""
    original = rl.sample

    def sample(run, engine, rows, number):
        groups = original(run, engine, rows, number)
        groups.rollouts.log_probs[0][0] -= 0.25 * (rank + 1)
        return groups

    rl.sample = sample


def gaps(folder, model):
    """What two processes log, when their largest gaps are 0.25 and 0.5."""
    config = settings("rl", folder / "gaps", model, "policy.max_gap=1.0", "optimization.steps=1")

    def action(rank):
        with_a_gap(rank)
        train("rl", config)

    launch(2, action)
    return events(folder / "gaps", "step")[0]["gap_max"]


def lost(folder, model):
    """Process 1 of 2 fails where it judges its rollouts; what each of them raises."""
    config, port = settings("rl", folder / "lost", model), free_port()

    def action(rank):
        original = Environment.judge

        def judge(self, groups, step):
            if rank == 1 and step == 2:
                raise ValueError("no document is judged")
            return original(self, groups, step)

        Environment.judge = judge
        try:
            train("rl", config)
        except Exception as error:  # noqa: BLE001  whatever it is, it is what the test looks at
            (folder / f"lost-{rank}.json").write_text(json.dumps([type(error).__name__, str(error)]))
            os._exit(3)

    members = [forked(lambda rank=rank: member(rank, 2, port, action)) for rank in range(2)]
    codes = [wait(pid) for pid in members]
    said = [json.loads((folder / f"lost-{rank}.json").read_text()) for rank in range(2)]
    written = sorted(path.name for path in (folder / "lost").glob("failed-batch-*"))
    print(json.dumps({"codes": codes, "said": said, "expected": OtherProcessError.__name__, "written": written}))


def compare(stage, folder, model, sizes, *, sharded=False):
    # Mini-batches, of which a process may have fewer than another: shards need passes that count for nothing.
    overrides, found = ["optimization.mini_batch_size=2"] if sharded else [], {}
    how = {"environment": SHARDED} if sharded else {"backend": "cuda:gloo"}
    if stage == "rl":
        found["best"], bound = taught_on_one_side(folder, model)
        overrides += [f"contrastive.min_reward={bound}", "corpus_cache.audit_every=1"]
    launch(1, run(stage, folder, model, "one", overrides))
    for size in sizes:
        name = f"of-{size}"
        launch(size, run(stage, folder, model, name, overrides, **how, until=2))
        launch(size, run(stage, folder, model, name, overrides, **how))
        said = [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(size)]
        found[name] = {
            "said": [one for one, _ in said],
            "idle": sum(passes for _, passes in said),
            "outputs": exported_difference(folder / "one/last", folder / name / "last"),
            "weights": largest_difference(weights(folder / "one/last"), weights(folder / name / "last")),
            "steps": [event["step"] for event in events(folder / name, "step")],
            "losses": [[event["loss"] for event in events(folder / n, "step")] for n in ("one", name)],
            "reading": [[event.get("reading", 0) for event in events(folder / n, "step")] for n in ("one", name)],
        }
        if stage == "rl":
            (arrays, _), (others, _) = cache_arrays(folder / "one", STEPS), cache_arrays(folder / name, STEPS)
            found[name]["cache"] = float(np.abs(arrays["vectors"] - others["vectors"]).max())
    saved = [read_tensors(folder / f"one/checkpoints/step-00000{step}/weights.safetensors") for step in (1, STEPS)]
    found["moved"] = largest_difference(*saved)
    if stage == "rl" and not sharded:
        found["gap_max"] = gaps(folder, model)
    print(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    which, where, start = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    where.mkdir(parents=True, exist_ok=True)
    settings("rl", where / "unused", start)  # imports, before the forks
    import pytrec_eval  # noqa: F401
    import transformers.models.qwen2.modeling_qwen2  # noqa: F401
    from accelerate import Accelerator  # noqa: F401

    import search_r3_mteb.encoder.encoder
    import search_r3_mteb.tasks.hopworld  # noqa: F401

    if which == "lost":
        lost(where, start)
    else:
        sizes = [int(size) for size in sys.argv[4:]]
        compare(which.removesuffix("-sharded"), where, start, sizes, sharded=which.endswith("-sharded"))
