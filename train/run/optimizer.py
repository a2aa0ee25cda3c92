"""The optimizer and its learning-rate schedule, as the configuration's [optimization] section says."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from train.config.run import OptimizationSettings


def make_optimizer(model: nn.Module, settings: OptimizationSettings, *, sharded: bool = False) -> torch.optim.Optimizer:
    """AdamW (arXiv 1711.05101) over the trainable weights, or Muon for hidden matrices and AdamW for the rest.

    Weight decay is for matrices only, not for norms and biases. `sharded`: the weights will be split over processes.
    Raises ValueError for Muon with an adapter or with shards.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if settings.optimizer == "adamw":
        return _adamw(parameters, settings)
    if sharded:
        raise ValueError(
            'optimizer = "muon" orthogonalizes whole matrices, and here they would lie in shards. Use "adamw" or DDP.'
        )
    hidden = {id(p) for p in _hidden_matrices(model)}
    return MuonAndAdamW(
        torch.optim.Muon(
            [p for p in parameters if id(p) in hidden],
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            adjust_lr_fn="match_rms_adamw",  # updates as large as AdamW's, so that one rate serves both
        ),
        _adamw([p for p in parameters if id(p) not in hidden], settings),
    )


class MuonAndAdamW(torch.optim.Optimizer):
    """torch's Muon and AdamW over different parameters as one optimizer, with one list of groups and one state."""

    def __init__(self, muon: torch.optim.Muon, adamw: torch.optim.AdamW) -> None:
        self.parts: tuple[torch.optim.Optimizer, ...] = (muon, adamw)
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share()

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update every parameter that has a gradient."""
        if closure is not None:
            raise ValueError("MuonAndAdamW takes no closure: each part would evaluate it again.")
        for part in self.parts:
            part.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a saved state, for both parts."""
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        groups = iter(self.param_groups)
        for part in self.parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state


def _adamw(parameters: Iterable[nn.Parameter], settings: OptimizationSettings) -> torch.optim.AdamW:
    parameters = list(parameters)
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


def _hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The matrices that map hidden states to hidden states: neither embeddings nor the language-model head."""
    if not all(p.requires_grad for p in model.parameters()):
        raise ValueError(
            'optimizer = "muon" is for full fine-tuning, and some weights are frozen: Muon orthogonalizes whole '
            'matrices, not the factors of an adapter. Use optimizer = "adamw".'
        )
    # The weight of a tied head is one of them.
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    head = getattr(model, "get_output_embeddings", lambda: None)()
    embeddings |= {id(p) for p in head.parameters()} if head is not None else set()
    return [p for p in model.parameters() if p.ndim == 2 and id(p) not in embeddings]


def learning_rate(step: int, settings: OptimizationSettings) -> float:
    """The rate of step `step` (from 1): linear warm-up, then the schedule down towards `final_share`.

    As in transformers, `final_share` would be reached by the step after the last one: every step learns.
    """
    if step <= settings.warmup_steps:
        return settings.learning_rate * step / settings.warmup_steps
    if settings.schedule == "constant":
        return settings.learning_rate
    done = (step - 1 - settings.warmup_steps) / (settings.steps - settings.warmup_steps)
    left = 1 - done if settings.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return settings.learning_rate * (settings.final_share + (1 - settings.final_share) * left)


def set_learning_rate(optimizer: Any, rate: float) -> None:
    """Give every parameter group this rate; the schedule is a function of the step, so it has no state to save."""
    for group in optimizer.param_groups:
        group["lr"] = rate
