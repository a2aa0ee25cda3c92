"""The manifest beside a prepared set: where it comes from, its licence, and a checksum of each file."""

import hashlib
from pathlib import Path
from typing import Any

from search_r3_mteb.atomic import write_json
from search_r3_mteb.json_files import read_json

MANIFEST = "manifest.json"
_CHUNK = 1 << 20  # bytes read at a time


def write_manifest(folder: Path, identity: dict[str, Any], licence: str, counts: dict[str, dict[str, int]]) -> None:
    """Write manifest.json over the files of `folder`: {"identity", "licence", "files": {name: sha256, bytes, counts}}.

    It holds no time and no path, so that the same command writes the same bytes.
    """
    files = {name: _described(folder / name) | {"counts": counts.get(name, {})} for name in _names(folder)}
    write_json(folder / MANIFEST, {**identity, "licence": licence, "files": files})


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a prepared set. Raises FileNotFoundError, and ValueError for a damaged one."""
    path = folder / MANIFEST
    if not folder.is_dir():
        raise FileNotFoundError(
            f"There is no folder {str(folder)!r}. `python -m train.prepare {folder.name}` makes it, or name its place "
            "with --output."
        )
    if not path.is_file():
        raise FileNotFoundError(
            f"{str(folder)!r} has no {MANIFEST}, so it was not made by `python -m train.prepare`. Give --output "
            "FOLDER for another place, or move the folder away."
        )
    manifest = read_json(path, "It is damaged: remove the folder and prepare the set again.")
    if not isinstance(manifest, dict) or not {"set", "repository", "revision", "licence", "files"} <= set(manifest):
        raise ValueError(f"{path} is not a manifest of `python -m train.prepare`. Move the folder away.")
    return manifest


def faults(folder: Path) -> list[str]:
    """How the files differ from the manifest, one sentence each; empty where they do not."""
    files, there = read_manifest(folder)["files"], _names(folder)
    found = [f"{name} is missing" for name in files if name not in there]
    found += [f"{name} is not in the manifest" for name in there if name not in files]
    for name in there:
        if name not in files:
            continue
        size, wanted = (folder / name).stat().st_size, files[name]["bytes"]
        if size != wanted:
            found.append(f"{name} has {size} bytes, the manifest says {wanted}")
        elif (sha256 := _described(folder / name)["sha256"]) != files[name]["sha256"]:
            found.append(f"{name} has the SHA-256 {sha256}, the manifest says {files[name]['sha256']}")
    return found


def _names(folder: Path) -> list[str]:
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if name != MANIFEST and not name.rpartition("/")[2].startswith("."))


def _described(path: Path) -> dict[str, Any]:
    digest, size, lines = hashlib.sha256(), 0, 0
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            size, lines = size + len(chunk), lines + chunk.count(b"\n")
    return {"sha256": digest.hexdigest(), "bytes": size, "lines": lines}
