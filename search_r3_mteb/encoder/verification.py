"""`search-r3 verify`: what differs from a model folder's manifest, file by file, and a new one where that was meant."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search_r3_mteb.atomic import put_back
from search_r3_mteb.encoder.adapters import ADAPTER_CONFIG
from search_r3_mteb.encoder.manifest import (
    MANIFEST_FILE,
    ManifestError,
    accepting,
    differences,
    read_manifest,
    write_manifest,
)
from search_r3_mteb.encoder.model_names import is_bundled, resolve


@dataclass(frozen=True)
class Verification:
    """A folder, how each file that differs does, how many files were compared, and whether that was accepted."""

    folder: Path
    differences: dict[str, str]
    files: int
    accepted: bool = False

    @property
    def differs(self) -> bool:
        """Whether the folder is not as its manifest says."""
        return bool(self.differences) and not self.accepted

    def lines(self) -> Iterator[str]:
        """For people: a line for each file that differs, and one that says what that means."""
        for name, how in self.differences.items():
            yield f"{name} {how}"
        if self.accepted:
            yield f"{self.folder / MANIFEST_FILE} was written: {self.files} files as they are now."
        elif not self.differences:
            yield f"{self.folder}: {self.files} files are as they were saved."
        else:
            yield (
                f"{self.folder} is not the model that was saved. Restore what differs, or, if that was meant: "
                f"{accepting(self.folder)}"
            )
        if (self.folder / ADAPTER_CONFIG).is_file():
            yield "This is an adapter. Its base has a folder of its own, which this command compares by itself."

    def to_dict(self) -> dict[str, Any]:
        """The same for programs."""
        return {
            "folder": str(self.folder),
            "same": not self.differences,
            "accepted": self.accepted,
            "files": self.files,
            "differences": self.differences,
        }


def verify(model: str | Path) -> Verification:
    """Compare every file of a model, a folder or the name of one, with its manifest; weights are read whole.

    Raises FileNotFoundError where there is no such model, ValueError where it has no manifest.
    """
    folder = _folder(model)
    return Verification(folder, differences(folder), len(read_manifest(folder)))


def accept(model: str | Path) -> Verification:
    """Write a manifest of a folder's files as they are; what differed from the one before is in the result.

    Raises ValueError for what is not a model folder, and for a bundled model, which is as the package has it.
    """
    folder = _folder(model)
    if is_bundled(folder):
        raise ValueError(
            f"{folder.name} is bundled, and a changed one is not it any more. Install search-r3-mteb again, or copy "
            f"the folder {folder} and accept the change there."
        )
    if not any((folder / name).is_file() for name in ("config.json", ADAPTER_CONFIG)):
        raise ValueError(
            f"{folder} holds no config.json and no {ADAPTER_CONFIG}, so it is not a model folder. Check the path."
        )
    try:
        found = differences(folder)
    except ManifestError:  # there was none, or a damaged one
        found = {}
    write_manifest(folder)
    return Verification(folder, found, len(read_manifest(folder)), accepted=True)


def _folder(model: str | Path) -> Path:
    put_back(Path(model))
    return resolve(model)
