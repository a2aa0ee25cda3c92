"""Checkpoints of a training run, without pickle: complete or absent, and checked before they are loaded.

    save(folder, step, state, config=flatten(config), score=0.93, extra=cache.save)
    found = load_latest(folder, state, config=flatten(config))      # None: there is no checkpoint yet

    FOLDER/step-000100/  weights.safetensors   trained weights and buffers; frozen weights come from model.path again
                         optimizer.{json,safetensors}  the optimizer's moments
                         state.json            positions of the streams, the loop's notes
                         random-00000.{json,safetensors}  random generators of each process
                         extra/                whatever the loop adds, for example the corpus cache
                         manifest.json         written last: step, score, settings, size and SHA-256 of every file

A damaged checkpoint (a bad disk, an incomplete copy, another run's folder) is refused by name and reason, and the error
names the newest good one before it.

All processes call `save` and `load_latest`. The main process writes and checks; the others wait for its result or its
error. Each process keeps the state of its random generators; when a run resumes on more processes, those without a
saved state are seeded from the step and their rank.
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
    checkpoints,
    folder_of,
    prune,
    read,
    recover_all,
    write_manifest,
)
from train.checkpoint.random_state import capture_random_state, restore_random_state, seed_random_state
from train.checkpoint.trees import read_tensors, read_tree, write_tensors, write_tree
from train.checkpoint.weights import ModelState, apply, collect, frozen_digest, optimized_names, trained_tensors
from train.config.loading import differences
from train.processes.collectives import gather, on_main, rank, world_size

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
    """A stream that continues from a saved position: training data, a learning-rate schedule."""

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Continue from there."""


@dataclass
class TrainingState:
    """The live objects of a run; with shards every process must make one.

    `streams` are saved by name. `notes` are JSON values that the loop wants back, such as the best score so far.
    """

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    streams: Mapping[str, Stateful] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.frozen = frozen_digest(self.model)


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
    process with an empty folder inside the unfinished checkpoint. Returns the finished folder. An error of the main
    process is raised on every process; an unfinished checkpoint never replaces a finished one.
    """
    folder = Path(folder)
    if keep < 1 or (score is not None and not math.isfinite(score)):
        raise ValueError(
            f"keep = {keep}, score = {score}: at least one checkpoint stays, and a score is a finite number."
        )
    random_states = gather(capture_random_state())
    collected = collect(state.model, state.optimizer)

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

    Raises CheckpointError where it is damaged, or of another model or other settings; nothing of it has been loaded
    then. The error names the newest good one before it. With `fallback` that one is loaded, and `refused` holds the
    messages of those that were skipped.
    """
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
            advice = f' The newest good one before it is {path.name}: set checkpoint.resume = "fallback" to use it.'
            raise CheckpointError(refusals[0].checkpoint, refusals[0].reason, path, advice)
        return replace(found, refused=tuple(str(refusal) for refusal in refusals))
    if refusals:
        advice = " There is no good one before it. Set another output.folder to begin again."
        raise CheckpointError(refusals[0].checkpoint, refusals[0].reason, None, advice)
    return None


def _write_state(folder: Path, state: TrainingState, collected: ModelState, random_states: list[Any]) -> None:
    write_tensors(collected.weights, folder / "weights.safetensors")
    write_tree(collected.optimizer, folder, "optimizer")
    rest = {
        "frozen": state.frozen,
        "parameters": optimized_names(state.model, state.optimizer),
        "data": {name: stream.state_dict() for name, stream in state.streams.items()},
        "notes": state.notes,
    }
    write_tree(rest, folder, "state")
    for process, random_state in enumerate(random_states):
        write_tree(random_state, folder, f"random-{process:05d}")


def _check_settings(found: TrainingCheckpoint, config: Mapping[str, Any]) -> None:
    changed = differences(found.config, json.loads(json.dumps(dict(config))))
    if changed:
        shown = "; ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
        raise CheckpointError(found.folder, f"it was written under other settings ({shown})")


def _check_tensors(found: TrainingCheckpoint, state: TrainingState) -> None:
    """Compare names, shapes and types with the live model, from the file's header alone."""
    from safetensors import safe_open

    rest = read_tree(found.folder, "state")
    if rest["frozen"] != state.frozen:
        raise CheckpointError(found.folder, "its frozen weights were others, so the trained ones do not fit")
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
            saved = file.get_slice(name)
            there = f"{saved.get_dtype()} {saved.get_shape()}"
            here = f"{_DTYPES.get(tensor.dtype)} {list(tensor.shape)}"
            if there != here:
                reason = f"it is of another model: {name} is {there} there, {here} here"
                raise CheckpointError(found.folder, reason)
    if rest["parameters"] != optimized_names(state.model, state.optimizer):
        raise CheckpointError(found.folder, "its optimizer holds other parameters, or the same in another order")


def _restore(found: TrainingCheckpoint, state: TrainingState) -> None:
    rest = read_tree(found.folder, "state")
    for name in sorted(rest["data"].keys() ^ state.streams.keys()):
        given = "without" if name in state.streams else "with"
        raise CheckpointError(found.folder, f"it was written {given} a {name} state")
    for name, stream in state.streams.items():
        try:
            stream.load_state_dict(rest["data"][name])
        except (ValueError, KeyError) as error:
            raise CheckpointError(found.folder, f"its {name} state does not fit this run: {error}") from error
    weights = read_tensors(found.folder / "weights.safetensors")
    apply(ModelState(weights, read_tree(found.folder, "optimizer")), state.model, state.optimizer)
    state.notes.clear()
    state.notes.update(rest["notes"])
    if rank() < found.processes:
        restore_random_state(read_tree(found.folder, f"random-{rank():05d}"))
    else:
        seed_random_state("resumed", found.step, rank())
