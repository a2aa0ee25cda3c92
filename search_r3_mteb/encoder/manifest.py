"""The manifest of a model folder: size and sha256 of every file that decides a vector.

Without some files a folder still loads, and as another model: no chat template, another end of a turn, the default
profile. `search_r3_manifest.json` is written last by whatever saves a checkpoint. Loading compares it: sizes of all
files, and checksums of all but weights, which are read on request (`verify=True`, `search-r3 verify`). Model cards,
records and notes are not in it; a folder without a manifest loads as it is. It finds accidents. Whoever changes files
on purpose can also change the manifest.
"""

import json
import os
import shlex
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from search_r3_mteb.atomic import write_text
from search_r3_mteb.checksums import described, difference
from search_r3_mteb.json_files import read_object

MANIFEST_FILE = "search_r3_manifest.json"
_FORMAT = "search-r3 model folder"
_VERSION = 1
_WEIGHTS = ".safetensors"
# What transformers, peft, sentence-transformers and this package look for in a folder, so that its coming matters, too.
_SOUGHT = (
    *("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "*.model", "*.tiktoken"),
    *("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja"),
    *("search_r3.json", "adapter_config.json", "base_model.json"),
    *("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"),
    *("processor_config.json", "preprocessor_config.json"),
)
# What other files name: code (by "auto_map"), and the folders of sentence-transformers' modules ("1_Pooling"). New ones
# change nothing.
_NAMED = ("*.py", "[0-9]*_*/*.json", "[0-9]*_*/*.safetensors")


class ManifestError(ValueError):
    """A folder that cannot be compared: it has no manifest, or one that says nothing."""


def write_manifest(folder: Path) -> None:
    """Write the manifest of the files that are in `folder` now; the last step of saving."""
    files = {name: described(folder / name) for name in deciding_files(folder)}
    write_text(folder / MANIFEST_FILE, _text({"format": _FORMAT, "version": _VERSION, "files": files}))


def deciding_files(folder: Path) -> list[str]:
    """Names of the files in a model folder that decide its vectors, as the manifest has them."""
    names = _matching(folder, (*_SOUGHT, *_NAMED))
    configs = [folder / name for name in ("config.json", "tokenizer_config.json") if name in names]
    coded = any(b'"auto_map"' in path.read_bytes() for path in configs)
    return [name for name in names if coded or not name.endswith(".py")]


def check_files(folder: Path, *, verify: bool = False, partial: bool = False) -> None:
    """ValueError for a model folder with a file that cannot be read, or that differs from its manifest, if it has one.

    `verify`: weights are read, too, and a folder without a manifest is refused. `partial`: files may be missing.
    """
    if not (folder / MANIFEST_FILE).exists() and not (folder / MANIFEST_FILE).is_symlink():
        _refuse_unreadable(folder)
        if not verify:
            return
    found = differences(folder, weights=verify, partial=partial)
    if found:
        listed = "; ".join(f"{name} {how}" for name, how in found.items())
        raise ValueError(
            f"{folder.resolve().name}: {listed}. Such files decide vectors, so this is another model than the one that "
            f"was saved ({MANIFEST_FILE}). Restore what differs, or, if that was meant, accept it: {accepting(folder)}"
        )


def accepting(folder: Path) -> str:
    """The command that writes a new manifest."""
    return f"search-r3 verify {shlex.quote(str(folder))} --accept"


def differences(folder: Path, *, weights: bool = True, partial: bool = False) -> dict[str, str]:
    """What differs from the manifest: how, by the file's name in the folder. Without `weights` only their sizes count.

    Raises ManifestError where there is no manifest to compare with.
    """
    wanted = read_manifest(folder)
    found = {}
    for name, entry in wanted.items():
        path = folder / name
        if partial and not path.exists():
            continue
        how = _difference(path, entry, size_only=path.suffix == _WEIGHTS and not weights)
        if how is not None:
            found[name] = how
    return found | {name: "was added" for name in _matching(folder, _SOUGHT) if name not in wanted}


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and sha256 of each file in the manifest of `folder`. Raises ManifestError."""
    path = folder / MANIFEST_FILE
    write = f"`{accepting(folder)}` writes one of the files as they are now."
    if not path.is_file():
        raise ManifestError(
            f"{folder.resolve().name}: there is no {MANIFEST_FILE}, so nothing says how the files should be. {write}"
        )
    try:
        manifest = read_object(path, "")
    except (ValueError, OSError) as error:
        raise ManifestError(f"{str(error).rstrip('. ')}. Restore the file. {write}") from error
    files = manifest.get("files")
    if manifest.get("format") != _FORMAT or not isinstance(files, dict) or not all(map(_is_entry, files.items())):
        raise ManifestError(f"{path} is not the manifest of a {_FORMAT}, or damaged. Restore the file. {write}")
    if manifest.get("version") != _VERSION:
        raise ManifestError(
            f"{path} has format version {manifest.get('version')!r:.20}, not {_VERSION}. Install a newer "
            f"search-r3-mteb. {write}"
        )
    if path.read_bytes().replace(b"\r\n", b"\n") != _text(manifest).encode():  # other ends of lines are not damage
        raise ManifestError(f"{path} is not as it was written. Restore the file. {write}")
    return files


def _text(manifest: Mapping[str, Any]) -> str:
    return json.dumps(manifest, indent=2, allow_nan=False) + "\n"


def _refuse_unreadable(folder: Path) -> None:
    """ValueError for a file that the libraries would pass over, as if it were not there, because it cannot be read."""
    for path in sorted(folder.iterdir()):
        if any(_matches(path.name, pattern) for pattern in _SOUGHT) and (how := _unreadable(path)) is not None:
            raise ValueError(f"{folder.resolve().name}: {path.name} {how}. Copy or download it again.")


def _unreadable(path: Path) -> str | None:
    if path.is_dir():
        return "is a folder, not a file"
    if not path.is_file():  # links too: iterdir has seen the name
        return "is a broken link" if path.is_symlink() else "is not a file"
    return None if os.access(path, os.R_OK) else "cannot be read (permission denied)"


def _difference(path: Path, entry: dict[str, Any], *, size_only: bool) -> str | None:
    try:
        if path.is_dir():
            return "is a folder, not a file"
        if size_only and path.is_file() and path.stat().st_size == entry["bytes"]:
            return None
        return difference(path, entry)
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"


def _matching(folder: Path, patterns: tuple[str, ...]) -> list[str]:
    # Links to files, as the hub's cache has them, are files.
    paths = [*folder.glob("*"), *folder.glob("*/*")]
    # Hidden files, such as macOS' ._model.safetensors, are read by nobody.
    names = {p.relative_to(folder).as_posix() for p in paths if p.is_file() and not p.name.startswith(".")}
    return sorted(name for name in names if any(_matches(name, pattern) for pattern in patterns))


def _matches(name: str, pattern: str) -> bool:
    return name.count("/") == pattern.count("/") and fnmatchcase(name, pattern)


def _is_entry(item: tuple[str, Any]) -> bool:
    name, entry = item
    place = PurePosixPath(name)
    if place.is_absolute() or ".." in place.parts or not isinstance(entry, dict):
        return False
    size, digest = entry.get("bytes"), entry.get("sha256")
    return set(entry) == {"bytes", "sha256"} and type(size) is int and isinstance(digest, str)
