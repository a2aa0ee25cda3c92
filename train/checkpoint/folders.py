"""Folders of checkpoints, whatever is inside: named, recovered, checked against their manifest, and pruned.

A finished checkpoint is a folder `step-000100` with a manifest of its files. While it is written, replaced or removed
it has a hidden name (search_r3_mteb/atomic.py), so that a killed process leaves no incomplete `step-` folder.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search_r3_mteb.atomic import left_behind, recover, removed_folder, write_json
from search_r3_mteb.json_files import NotJsonError, read_json

EXTRA = "extra"
_FORMAT = "search-r3 training checkpoint"
_VERSION = 1
_MANIFEST = "manifest.json"
_FIELDS = {"step": int, "processes": int, "config": dict, "files": dict}
_BYTES_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class TrainingCheckpoint:
    """A checkpoint whose files were checked. `refused` are the messages of newer ones that were skipped."""

    folder: Path
    step: int
    score: float | None
    config: Mapping[str, Any]
    processes: int
    refused: tuple[str, ...] = ()

    @property
    def extra(self) -> Path:
        """The folder that `save`'s `extra` filled; it may be missing."""
        return self.folder / EXTRA


class CheckpointError(ValueError):
    """A checkpoint that must not be used: `checkpoint`, the `reason`, and the newest good one before it (or None)."""

    def __init__(self, checkpoint: Path, reason: str, previous: Path | None = None, advice: str = "") -> None:
        super().__init__(checkpoint, reason, previous, advice)  # its arguments, so that it can travel between processes
        self.checkpoint, self.reason, self.previous, self.advice = checkpoint, reason, previous, advice

    def __str__(self) -> str:
        """Which one, why, and what to do."""
        return f"Checkpoint {self.checkpoint.name} is refused: {self.reason}.{self.advice}"


def folder_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"step-{step:06d}"


def write_manifest(unfinished: Path, step: int, **manifest: Any) -> None:
    """Write the manifest of the files in a folder that is to become the checkpoint of `step`."""
    files = {name: _digest(path) for name, path in _files(unfinished)}
    header = {"format": _FORMAT, "version": _VERSION, "step": step}
    write_json(unfinished / _MANIFEST, {**header, **manifest, "files": files})


def recover_all(folder: Path) -> None:
    """`recover` every checkpoint that a killed process was replacing or removing."""
    for checkpoint in left_behind(folder, "step-*"):
        recover(checkpoint)


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` and the best."""
    kept = {*checkpoints(folder)[-keep:], best(folder)}
    for path in checkpoints(folder):
        if path not in kept:
            removed_folder(path)


def checkpoints(folder: str | Path) -> list[Path]:
    """The finished checkpoints in `folder`, by step. They are not checked."""
    found = [path for path in Path(folder).glob("step-*") if path.is_dir() and path.name[5:].isdigit()]
    return sorted(found, key=step_of)


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    return int(path.name[5:])


def best(folder: str | Path) -> Path | None:
    """The checkpoint with the highest score, the earliest of equals; None where none has a score."""
    scored = [(score, -step_of(path), path) for path in checkpoints(folder) if (score := _score(path)) is not None]
    return max(scored)[2] if scored else None


def read(path: str | Path) -> TrainingCheckpoint:
    """Check every file of one checkpoint against its manifest. Raises CheckpointError with the reason."""
    path = Path(path)
    manifest = _manifest(path)
    if manifest["step"] != step_of(path):
        raise CheckpointError(path, f"its manifest is of step {manifest['step']}, so the folder was renamed")
    expected, present = manifest["files"], dict(_files(path))
    missing, strange = sorted(expected.keys() - present), sorted(present.keys() - expected)
    if missing:
        raise CheckpointError(path, f"{missing[0]} is missing")
    if strange:
        raise CheckpointError(path, f"{strange[0]} is not in its manifest, so something else wrote into it")
    for name, file in sorted(present.items(), key=lambda item: item[1].stat().st_size):
        size = file.stat().st_size
        if size != expected[name]["bytes"]:
            raise CheckpointError(
                path,
                f"{name} has {size} bytes, its manifest says {expected[name]['bytes']}, so it was cut off or changed",
            )
        if _digest(file) != expected[name]:
            raise CheckpointError(path, f"{name} does not have the SHA-256 of its manifest, so its content changed")
    return TrainingCheckpoint(path, manifest["step"], manifest["score"], manifest["config"], manifest["processes"])


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every file but the manifest, with its name as the manifest has it."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / _MANIFEST:
            yield path.relative_to(folder).as_posix(), path


def _digest(path: Path) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as stream:
        while chunk := stream.read(_BYTES_AT_ONCE):
            digest.update(chunk)
            size += len(chunk)
    return {"bytes": size, "sha256": digest.hexdigest()}


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest: Any = read_json(path / _MANIFEST)
    except FileNotFoundError:
        raise CheckpointError(path, f"there is no {_MANIFEST}, so it is not complete, or not a checkpoint") from None
    except NotJsonError as error:
        raise CheckpointError(path, f"{_MANIFEST} is damaged ({error})") from None
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise CheckpointError(path, f"{_MANIFEST} is not that of a {_FORMAT}")
    if manifest.get("version") != _VERSION:
        raise CheckpointError(path, f"it has format version {manifest.get('version')!r}, this program reads {_VERSION}")
    for name, kind in _FIELDS.items():
        if not isinstance(manifest.get(name), kind):
            raise CheckpointError(path, f"{_MANIFEST} is damaged ({name} = {manifest.get(name)!r:.60})")
    return manifest


def _score(path: Path) -> float | None:
    try:
        score = _manifest(path).get("score")
    except CheckpointError:  # a damaged checkpoint is never the best; a resume says why
        return None
    return float(score) if score is not None else None
