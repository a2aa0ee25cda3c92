"""Checkpoints of a training run: complete or not there, checked before they are believed, without pickle.

    save(folder, step, state, config=flatten(config), score=0.93, extra=cache.save)
    found = load_latest(folder, state, config=flatten(config))      # None: nothing there yet, begin anew

    FOLDER/step-000100/  weights.safetensors   what is trained, and buffers; frozen weights come from model.path again
                         optimizer.{json,safetensors}  the optimizer's moments
                         state.json            schedule, data position, the loop's notes
                         random-00000.{json,safetensors}  generators of each process
                         extra/                whatever the loop adds, for example the corpus cache
                         manifest.json         written last: step, score, settings, size and SHA-256 of every file

A checkpoint is written under a hidden name, flushed to the disk, and renamed: whenever the process dies, a `step-` folder is
whole. What is there all the same and not whole (a bad disk, a copy that was cut off, another run's folder) is refused by name
and reason, and the newest good one before it is named.

On several processes all of them call `save` and `load_latest`. The main process writes and judges, the others wait for its
verdict, an error included. The state of the random generators is kept for each process; with another number of processes
the ones without a saved state are seeded from the step and their rank.
"""

import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from search_r3_mteb.atomic import replaced_folder
from train.checkpoint.folders import (
    EXTRA,
    CheckpointError,
    TrainingCheckpoint,
    best,
    checkpoints,
    folder_of,
    prune,
    read,
    recover_all,
    write_manifest,
)
from train.checkpoint.trees import (
    capture_random_state,
    read_tensors,
    read_tree,
    restore_random_state,
    seed_random_state,
    write_tensors,
    write_tree,
)
from train.checkpoint.weights import ModelState, apply, collect, frozen_digest, optimized_names, trained_tensors
from train.config.loading import differences
from train.processes.collectives import gather, on_main, rank, world_size

__all__ = [
    "CheckpointError",
    "TrainingCheckpoint",
    "TrainingState",
    "best",
    "checkpoints",
    "load_latest",
    "read",
    "save",
]

log = logging.getLogger(__name__)

_DTYPES = {  # safetensors' names
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.bool: "BOOL",
    torch.uint8: "U8",
}


class Stateful(Protocol):
    """What can be saved and continued: a data stream, a learning-rate schedule."""

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Continue from there."""


@dataclass
class TrainingState:
    """The live objects of a run. `notes` are JSON values that the loop wants back, such as the best score so far."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Stateful | None = None
    data: Stateful | None = None
    generators: dict[str, torch.Generator] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    _frozen: list[str | None] = field(default_factory=list, init=False, repr=False)

    def frozen(self) -> str | None:
        """The digest of the frozen weights, taken once: they do not change."""
        if not self._frozen:
            self._frozen.append(frozen_digest(self.model))
        return self._frozen[0]


def save(
    folder: str | Path,
    step: int,
    state: TrainingState,
    *,
    config: Mapping[str, Any],
    score: float | None = None,
    keep: int = 2,
    extra: Callable[[Path], Any] | None = None,
) -> Path:
    """Write the checkpoint of `step` and remove all but the newest `keep` and the one with the highest `score`.

    `config` is the flattened configuration; a later run under other settings is refused. `extra` is called on the main
    process with an empty folder inside the unfinished checkpoint. Returns the finished folder. Raises on every process what
    fails on the main one; an unfinished checkpoint never replaces a finished one.
    """
    folder = Path(folder)
    if keep < 1 or (score is not None and not math.isfinite(score)):
        raise ValueError(
            f"keep = {keep}, score = {score}: at least one checkpoint stays, and a score is a finite number."
        )
    random_states = gather(capture_random_state(state.generators))
    collected = collect(state.model, state.optimizer)
    state.frozen()  # with shards all processes must take part, so before only one of them goes on

    def write() -> Path:
        recover_all(folder)
        with replaced_folder(folder_of(folder, step)) as unfinished:
            _write_state(unfinished, state, collected, random_states)
            if extra is not None:
                (unfinished / EXTRA).mkdir()
                extra(unfinished / EXTRA)
            write_manifest(unfinished, step, score=score, processes=world_size(), config=dict(config))
        prune(folder, keep)
        return folder_of(folder, step)

    return on_main(write)


def load_latest(
    folder: str | Path, state: TrainingState, *, config: Mapping[str, Any], fallback: bool = False
) -> TrainingCheckpoint | None:
    """Put the newest checkpoint into `state`; None where there is none.

    Raises CheckpointError where it is damaged, or of another model or other settings; nothing of it has been loaded then. The
    error names the newest good one before it. With `fallback` that one is taken, and `refused` says what was passed over.
    """
    state.frozen()
    found = on_main(lambda: _choose(Path(folder), state, config, fallback))
    if found is not None:
        for refusal in found.refused:
            log.warning("%s", refusal)
        _restore(found, state)
    return found


def _choose(folder: Path, state: TrainingState, config: Mapping[str, Any], fallback: bool) -> TrainingCheckpoint | None:
    recover_all(folder)
    refusals: list[CheckpointError] = []
    for path in reversed(checkpoints(folder)):
        try:
            found = read(path)
            _check_settings(found, config)
            _check_tensors(found, state)
        except CheckpointError as refusal:
            refusals.append(refusal)
            continue
        if refusals and not fallback:
            advice = f' The newest good one before it is {path.name}: set checkpoint.resume = "fallback" to go on from there.'
            raise CheckpointError(refusals[0].checkpoint, refusals[0].reason, path, advice)
        return replace(found, refused=tuple(str(refusal) for refusal in refusals))
    if refusals:
        advice = " There is no good one before it. Set another output.folder to begin anew."
        raise CheckpointError(refusals[0].checkpoint, refusals[0].reason, None, advice)
    return None


# --- writing -----------------------------------------------------------------------------------------------------------


def _write_state(folder: Path, state: TrainingState, collected: ModelState, random_states: list[Any]) -> None:
    write_tensors(collected.weights, folder / "weights.safetensors")
    write_tree(collected.optimizer, folder, "optimizer")
    rest = {
        "frozen": state.frozen(),
        "parameters": optimized_names(state.model, state.optimizer),
        "schedule": None if state.schedule is None else state.schedule.state_dict(),
        "data": None if state.data is None else state.data.state_dict(),
        "notes": state.notes,
    }
    write_tree(rest, folder, "state")
    for process, random_state in enumerate(random_states):
        write_tree(random_state, folder, f"random-{process:05d}")


# --- checking and restoring --------------------------------------------------------------------------------------------


def _check_settings(found: TrainingCheckpoint, config: Mapping[str, Any]) -> None:
    changed = differences(found.config, json.loads(json.dumps(dict(config))))
    if changed:
        shown = "; ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
        raise CheckpointError(found.folder, f"it was written under other settings ({shown})")


def _check_tensors(found: TrainingCheckpoint, state: TrainingState) -> None:
    """Names, shapes and types against the live model, from the file's header alone."""
    from safetensors import safe_open

    rest = read_tree(found.folder, "state")
    if rest["frozen"] != state.frozen():
        raise CheckpointError(found.folder, "its frozen weights were others, so what was trained on them does not fit")
    live = trained_tensors(state.model)
    with safe_open(found.folder / "weights.safetensors", framework="pt") as file:
        names = set(file.keys())
        if names != live.keys():
            odd = sorted(names ^ live.keys())[0]
            whose = (
                "the checkpoint has, the model does not" if odd in names else "the model has, the checkpoint does not"
            )
            raise CheckpointError(found.folder, f"it is of another model: {whose}, the tensor {odd}")
        for name, tensor in live.items():
            there, here = file.get_slice(name), (list(tensor.shape), _DTYPES.get(tensor.dtype))
            if (there.get_shape(), there.get_dtype()) != here:
                raise CheckpointError(
                    found.folder,
                    f"it is of another model: {name} is {there.get_dtype()} {there.get_shape()} there, {here[1]} {here[0]} here",
                )
    if rest["parameters"] != optimized_names(state.model, state.optimizer):
        raise CheckpointError(found.folder, "its optimizer holds other parameters, or the same in another order")


def _restore(found: TrainingCheckpoint, state: TrainingState) -> None:
    rest = read_tree(found.folder, "state")
    for name, part in (("data", state.data), ("schedule", state.schedule)):
        if (part is None) != (rest[name] is None):
            raise CheckpointError(
                found.folder, f"it was written {'without' if part is not None else 'with'} a {name} state"
            )
        if part is not None:
            try:
                part.load_state_dict(rest[name])
            except (ValueError, KeyError) as error:
                raise CheckpointError(found.folder, f"its {name} state does not fit this run: {error}") from error
    weights = read_tensors(found.folder / "weights.safetensors")
    apply(ModelState(weights, read_tree(found.folder, "optimizer")), state.model, state.optimizer)
    state.notes.clear()
    state.notes.update(rest["notes"])
    if rank() < found.processes:
        restore_random_state(read_tree(found.folder, f"random-{rank():05d}"), state.generators)
    else:
        seed_random_state(("resumed", found.step, rank()), state.generators)
