"""A hundred real training steps, kept: the weights before each update, and what the rollouts of that step were.

The loop is `train/rl.py` itself; only its environment is replaced by one that writes down what passes through it. So the same
steps can be measured on corpora of any size, for any policy, and the measurement does not disturb the training.
"""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from train import rl
from train.config.loading import load_config
from train.config.stages import RlConfig
from train.stage2.environment import Environment


class Trajectory:
    """`weights(t)` after t updates, and `batch(t)`, the rollouts that were sampled with them, for t = 0 .. `last`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        described = json.loads((folder / "trajectory.json").read_text())
        self.last, self.model = int(described["last"]), Path(described["model"])

    def load_weights(self, model: torch.nn.Module, step: int) -> None:
        """Put the weights after `step` updates into the model."""
        saved = load_file(self.folder / f"weights-{step:04}.safetensors")
        for name, parameter in model.named_parameters():
            parameter.data.copy_(saved[name])

    def batch(self, step: int) -> tuple[np.ndarray, list[list[str]]]:
        """Query vectors (rollouts, dim) and the ids of each rollout's relevant documents."""
        with np.load(self.folder / f"batch-{step:04}.npz") as saved:
            return saved["queries"], [str(ids).split("\n") for ids in saved["positives"]]


def record(config: Path, model: Path, steps: int, folder: Path, overrides: list[str]) -> Trajectory:
    """Train for `steps` updates with `config`, from `model`, and keep every step."""
    folder.mkdir(parents=True, exist_ok=True)

    class Recording(Environment):
        def judge(self, groups, step):
            weights = {n: p.detach().cpu().contiguous() for n, p in self.encoder.model.named_parameters()}
            save_file(weights, folder / f"weights-{step - 1:04}.safetensors")
            relevant = ["\n".join(self.corpus.relevance(groups.query(r))) for r in range(len(groups.prompt))]
            np.savez(folder / f"batch-{step - 1:04}.npz", queries=groups.vectors, positives=np.array(relevant))
            return super().judge(groups, step)

    settings = load_config(
        config,
        [
            f'model.path="{model}"',
            f"optimization.steps={steps + 1}",  # the rollouts of the last one are sampled after `steps` updates
            f"evaluate.every={steps + 1}",
            f"checkpoint.every={steps + 1}",
            f'output.folder="{folder / "run"}"',
            *overrides,
        ],
        RlConfig,
    )
    original, rl.Environment = rl.Environment, Recording
    try:
        rl.train(settings)
    finally:
        rl.Environment = original
    (folder / "trajectory.json").write_text(json.dumps({"last": steps, "model": str(model)}))
    return Trajectory(folder)
