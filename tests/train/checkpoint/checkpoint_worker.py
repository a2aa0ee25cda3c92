"""A tiny run that saves at every step, for tests that kill it. Torch is imported once, then every life is a fork.

python checkpoint_worker.py kills FOLDER COUNT     killed COUNT times at random moments, resumed, compared
python checkpoint_worker.py processes FOLDER       two gloo processes save; one and two resume
"""

import json
import random
import sys
import time
from pathlib import Path

import numpy as np
import safetensors.torch  # noqa: F401  once here, not once in every life
import torch
import torch.distributed as dist
from torch import nn

from tests.train.forking import forked, kill_and_resume, together, wait
from train.checkpoint.save_load import TrainingState, load_latest, save

STEPS = 12
CONFIG = {"loss.kl": 1.0}


class Draws:
    """A random generator of its own, as a stream."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def state_dict(self):
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state):
        self.generator.set_state(state["generator"])


class Numbers:
    """A data stream: its position is its state."""

    def __init__(self):
        self.position = 0

    def next(self):
        self.position += 1
        return torch.full((4, 8), 1.0 / self.position)

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


def new_state(seed=0):
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  the global generator is part of the state
    model = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.3), nn.BatchNorm1d(16), nn.GELU(), nn.Linear(16, 8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    streams = {"schedule": schedule, "data": Numbers(), "rollouts": Draws(seed + 1)}
    return TrainingState(model, optimizer, streams, notes={"drawn": []})


def one_step(state):
    """Draws from every generator there is, so that a resume that forgets one shows."""
    drawn = random.random() + float(np.random.rand())  # noqa: NPY002
    noise = torch.rand(4, 8, generator=state.streams["rollouts"].generator) + drawn
    loss = (state.model(state.streams["data"].next() + noise) ** 2).mean()
    state.optimizer.zero_grad()
    loss.backward()
    state.optimizer.step()
    state.streams["schedule"].step()
    state.notes["drawn"].append(loss.item())


def everything(state):
    """All that must be equal, as one list of tensors."""
    moments = [v for s in state.optimizer.state_dict()["state"].values() for v in s.values()]
    draws = [torch.rand(3), torch.tensor([random.random(), float(np.random.rand())])]  # noqa: NPY002
    return [
        *state.model.state_dict().values(),
        *moments,
        torch.tensor(state.notes["drawn"], dtype=torch.float64),
        *draws,
    ]


def life(folder, result=None):
    """One process: resume, go on to the end, saving at every step, with a payload that names the step."""
    state = new_state()
    found = load_latest(folder, state, config=CONFIG)
    step = 0
    if found is not None:
        step = found.step
        payload = (found.extra / "cache" / "step.txt").read_text()
        if payload != str(step) * 1000:
            raise RuntimeError(f"step {step} came with another payload")
    while step < STEPS:
        one_step(state)
        step += 1

        def payload(path, step=step):
            (path / "cache").mkdir()
            (path / "cache" / "step.txt").write_text(str(step) * 1000)

        save(folder, step, state, config=CONFIG, score=float(step % 7), extra=payload)
    if result is not None:
        torch.save(everything(state), result)


def warm(folder):
    """First uses are slow: here once, not once in every life."""
    state = new_state()
    one_step(state)
    save(folder / "warm", 1, state, config=CONFIG)
    load_latest(folder / "warm", state, config=CONFIG)


def kills(folder, count):
    began = time.perf_counter()
    if wait(forked(lambda: life(folder / "whole", folder / "whole.pt"))):
        raise SystemExit("the uninterrupted run failed")
    whole = time.perf_counter() - began
    at, runs = kill_and_resume(
        lambda run: life(folder / f"killed-{run}", folder / f"killed-{run}.pt"),
        count, 2.5 * whole / count, lambda run: folder / f"killed-{run}", seed=5,
    )  # fmt: skip
    names = ["whole", *(f"killed-{run}" for run in range(runs))]
    expected, *found = (torch.load(folder / f"{name}.pt", weights_only=True) for name in names)
    equal = all(torch.equal(x, y) for one in found for x, y in zip(one, expected, strict=True))
    left = sorted(path.name for path in (folder / f"killed-{runs - 1}").iterdir())
    known = "accelerate" in sys.modules
    print(json.dumps({"accelerate": known, "kills": len(at), "equal": equal, "steps_at_death": at, "left": left}))


def member(folder, number, size, action):
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous-{size}-{action}", rank=number, world_size=size
    )
    state = new_state(seed=number)
    out = {}
    if action == "save":
        torch.rand(number + 1)  # so that the processes' generators differ
        for name, tensor in state.model.state_dict().items():
            dist.broadcast(tensor, 0) if tensor.is_floating_point() else None
            assert name
        save(folder / "run", 1, state, config=CONFIG)
        out["next"] = torch.rand(2).tolist()
    elif action == "fail":
        try:
            save(folder / "run", 2, state, config=CONFIG, extra=lambda path: 1 / 0)
        except ZeroDivisionError:
            out["error"] = "ZeroDivisionError"
        try:
            load_latest(folder / "run", state, config={"loss.kl": 2.0})
        except ValueError as error:
            out["refused"] = str(error)
    else:
        found = load_latest(folder / "run", state, config=CONFIG)
        out = {"step": found.step, "weight": state.model[0].weight.sum().item(), "next": torch.rand(2).tolist()}
    (folder / f"{action}-{size}-{number}.json").write_text(json.dumps(out))
    dist.destroy_process_group()


def processes(folder):
    for size, action in ((2, "save"), (2, "resume"), (1, "resume"), (3, "resume"), (2, "fail")):
        together(size, lambda number, size=size, action=action: member(folder, number, size, action))
    print(json.dumps({p.stem: json.loads(p.read_text()) for p in folder.glob("*-*-*.json")}))


def shard(folder, number, size, action):
    """FSDP2 over gloo: two steps, a checkpoint, two more; or resume and two more; or resume unsharded."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous-{action}", rank=number, world_size=size)
    torch.manual_seed(0 if action == "whole" else 1)
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
    torch.manual_seed(2)
    nn.init.normal_(model[0].bias.requires_grad_(False))  # frozen, as a base under an adapter
    if size > 1:
        mesh = init_device_mesh("cpu", (size,))
        for part in (model[0], model[2], model):
            fully_shard(part, mesh=mesh)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    state = TrainingState(model, optimizer)

    def steps(first):
        for step in range(first, first + 2):
            (model(torch.full((2, 8), step + number * 0.5)) ** 2).mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    def whole():
        return [getattr(p, "full_tensor", lambda p=p: p)().tolist() for p in model.parameters()]

    out = {}
    if action == "whole":
        steps(1)
        save(folder / "run", 2, state, config=CONFIG)
        out["saved"] = whole()
    else:
        assert load_latest(folder / "run", state, config=CONFIG).step == 2
        out["alone"] = whole()
    if size > 1:
        steps(3)
        out[action] = whole()
    if number == 0:
        (folder / f"{action}.json").write_text(json.dumps(out))
    dist.destroy_process_group()


def sharded(folder):
    out = {}
    for size, action in ((2, "whole"), (2, "resumed"), (1, "alone")):
        together(size, lambda number, size=size, action=action: shard(folder, number, size, action))
        out |= json.loads((folder / f"{action}.json").read_text())
    print(json.dumps(out))


if __name__ == "__main__":
    torch.set_num_threads(1)
    where = Path(sys.argv[2])
    warm(where)
    if sys.argv[1] == "kills":
        kills(where, int(sys.argv[3]))
    elif sys.argv[1] == "sharded":
        sharded(where)
    else:
        processes(where)
