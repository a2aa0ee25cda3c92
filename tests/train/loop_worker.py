"""Runs of both stages that are killed, and runs on two processes. Torch is imported once, then every life is a fork.

python loop_worker.py kills STAGE FOLDER MODEL COUNT     killed COUNT times at random moments, resumed, compared
python loop_worker.py processes STAGE FOLDER MODEL       two gloo processes, one, and one that takes over from two
"""

import contextlib
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch

from tests.programs import free_port, launched
from tests.train.forking import forked, kill_and_resume, together, wait
from tests.train.loops import (
    StoppedError,
    cache_arrays,
    events,
    largest_difference,
    recording,
    rl_config,
    same_weights,
    sft_config,
    stop_after,
    weights,
)
from train import rl, sft
from train.run.run import Run

STEPS = 6


def settings(stage, folder, model, *overrides):
    """A small run that evaluates and audits; every random number that the loops draw is drawn in it."""
    steps = f"optimization.steps={STEPS}"
    if stage == "sft":
        return sft_config(folder, steps, *overrides, evaluation=True)
    return rl_config(folder, model, steps, "rollout.max_reasoning_tokens=5", *overrides, evaluation=True)


def train(stage, config):
    return (sft if stage == "sft" else rl).train(config)


def life(stage, folder, model):
    nothing = Path(os.devnull)
    with nothing.open("w") as sink, contextlib.redirect_stderr(sink), contextlib.redirect_stdout(sink):
        train(stage, settings(stage, folder, model))


def same(stage, a, b):
    """Which of the things that a run leaves behind are equal, bit for bit."""
    found = {
        "weights": same_weights(a / "last", b / "last"),
        "best": same_weights(a / "best", b / "best"),
        "log": events(a) == events(b),
    }
    if stage == "rl":
        (arrays, scalars), (others, other_scalars) = (cache_arrays(folder, STEPS) for folder in (a, b))
        found["cache"] = scalars == other_scalars and all(np.array_equal(arrays[n], others[n]) for n in others)
        found["rollouts"] = (a / "rollouts.jsonl").read_text() == (b / "rollouts.jsonl").read_text()
    return found


def kills(stage, folder, model, count):
    began = time.perf_counter()
    if wait(forked(lambda: life(stage, folder / "whole", model))):
        raise SystemExit("the uninterrupted run failed")
    whole = time.perf_counter() - began
    at, runs = kill_and_resume(
        lambda run: life(stage, folder / f"killed-{run}", model),
        count, 0.8 * whole, lambda run: folder / f"killed-{run}/checkpoints", seed=7,
    )  # fmt: skip
    equal = [same(stage, folder / f"killed-{run}", folder / "whole") for run in range(runs)]
    print(json.dumps({"kills": len(at), "steps_at_death": at, "runs": runs, "equal": equal}))


def member(rank, size, port, action):
    """Set the environment of torchrun in this process, then act."""
    if size > 1:
        os.environ |= launched(rank, size, port)
    with Path(os.devnull).open("w") as sink, contextlib.redirect_stdout(sink):
        action(rank)
    if size > 1:
        torch.distributed.destroy_process_group()


def launch(size, action):
    port = free_port()
    together(size, lambda rank: member(rank, size, port, action))


def processes(stage, folder, model):
    # AdamW divides by the gradient's own size: where that is 0, rounding decides the sign, unless epsilon is large.
    stable = ["optimization.epsilon=1e-3", "optimization.max_gradient_norm=0"]

    def run(name, until=None):
        def action(rank):
            gradients = []
            Run.reduce_gradients = recording(gradients)
            if until is not None:
                Run.after_step = stop_after(until)
            with contextlib.suppress(StoppedError):
                train(stage, settings(stage, folder / name, model, *stable))
            torch.save(gradients, folder / f"{name}-{rank}.pt")

        return action

    launch(1, run("one"))
    launch(2, run("two"))
    launch(2, run("taken", until=2))
    launch(1, run("taken"))
    gradients = {name: torch.load(folder / f"{name}.pt", weights_only=True) for name in ("one-0", "two-0", "two-1")}
    numbers = ("loss", "infonce", "reply", "policy", "contrastive", "reward", "entropy", "length", "gradient_norm")
    logs = {name: events(folder / name, "step") for name in ("one", "two", "taken")}
    print(
        json.dumps(
            {
                "gradient": largest_difference(gradients["one-0"][0], gradients["two-0"][0]),
                "ranks": max(
                    largest_difference(*pair) for pair in zip(gradients["two-0"], gradients["two-1"], strict=True)
                ),
                "scale": max(float(g.abs().max()) for g in gradients["one-0"][0].values()),
                "first": {n: [logs[k][0][n] for k in ("one", "two")] for n in numbers if n in logs["one"][0]},
                "weights": largest_difference(weights(folder / "one/last"), weights(folder / "two/last")),
                "taken": largest_difference(weights(folder / "one/last"), weights(folder / "taken/last")),
                "moved": largest_difference(weights(folder / "one/last"), weights(folder / "one/best")),
                "steps": {name: [event["step"] for event in log] for name, log in logs.items()},
                "scores": {
                    name: [event["ndcg_at_10"] for event in events(folder / name, "evaluate")]
                    for name in ("one", "two")
                },
                "finished": (folder / "two/last").exists(),
            }
        )
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    what, which, where, start = sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4]
    where.mkdir(parents=True, exist_ok=True)
    settings(which, where / "unused", start)  # imports, before the forks
    import pytrec_eval  # noqa: F401
    import transformers.models.qwen2.modeling_qwen2  # noqa: F401
    from accelerate import Accelerator  # noqa: F401

    import search_r3_mteb.encoder.encoder
    import search_r3_mteb.tasks.hopworld  # noqa: F401

    if what == "kills":
        kills(which, where, start, int(sys.argv[5]))
    else:
        processes(which, where, start)
