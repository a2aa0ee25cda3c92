"""AdamW and its learning-rate schedule, as the configuration's [optimization] section says."""

import math
from typing import Any

import torch

from train.settings import Optimization


def make_optimizer(model: Any, settings: Optimization) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101) over what is trainable; weight decay on matrices only, not on norms and biases."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.epsilon,
    )


def learning_rate(step: int, settings: Optimization) -> float:
    """The rate of optimizer step `step` (from 1): linear warm-up, then the schedule down to `final_share` at the last step."""
    if step <= settings.warmup_steps:
        return settings.learning_rate * step / settings.warmup_steps
    if settings.schedule == "constant":
        return settings.learning_rate
    done = (step - settings.warmup_steps) / max(settings.steps - settings.warmup_steps, 1)
    left = 1 - done if settings.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return settings.learning_rate * (settings.final_share + (1 - settings.final_share) * left)


def set_learning_rate(optimizer: Any, rate: float) -> None:
    """Give every parameter group this rate; the schedule is a function of the step, so it has no state to save."""
    for group in optimizer.param_groups:
        group["lr"] = rate
