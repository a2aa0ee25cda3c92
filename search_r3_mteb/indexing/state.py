"""What an index consists of, in one small file: which parts, which of their rows are removed, and the checksums of all.

    FOLDER/index.json                      this state, with a checksum of itself
    FOLDER/part-000001/vectors.npy         float32 (rows, dim), unit length
    FOLDER/part-000001/documents.sqlite    row, id, title, text
    FOLDER/part-000001/index.faiss         of an IVF or HNSW part
    FOLDER/part-000001.removed-000004.npy  the rows that are removed, one bit each
    FOLDER/building/                       vectors of an unfinished build or addition, by text, from which it resumes

Parts and files of removed rows are never changed. A change writes new ones, then replaces `index.json` by one rename:
whoever has read the old one goes on with what that names. Files that no state names are removed by the next change.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from search_r3_mteb.atomic import write_text
from search_r3_mteb.checksums import difference
from search_r3_mteb.encoder.stored_chunks import DamagedError, sealed, unsealed
from search_r3_mteb.indexing.settings import IndexKind, IndexSettings

STATE_FILE = "index.json"
BUILDING = "building"
_FORMAT, _VERSION = "search-r3 index", 1
_REMEDY = "Copy the index again, or build it again from its documents."


@dataclass(frozen=True)
class PartRecord:
    """One part: its folder's name, its rows, how it is searched, and size and sha256 of its files.

    `removed` is the number of rows that are removed, `removed_file` says which.
    """

    name: str
    rows: int
    kind: IndexKind
    files: dict[str, dict[str, Any]]
    removed: int = 0
    removed_file: str | None = None

    @property
    def living(self) -> int:
        """Rows that can be found."""
        return self.rows - self.removed


@dataclass(frozen=True)
class IndexState:
    """All of an index; `generation` counts its changes, and `next_part` the parts that it has had.

    `encoding` is what decides a document's vector, `model` from where the model can be loaded.
    """

    encoding: dict[str, Any]
    model: dict[str, Any]
    settings: IndexSettings
    parts: tuple[PartRecord, ...] = ()
    generation: int = 1
    next_part: int = 1

    @property
    def living(self) -> int:
        """Documents that can be found."""
        return sum(part.living for part in self.parts)

    def changed(self, parts: tuple[PartRecord, ...], next_part: int) -> "IndexState":
        """The next state, with these parts."""
        return replace(self, parts=parts, generation=self.generation + 1, next_part=next_part)


def is_index(folder: Path) -> bool:
    """Whether a complete index is there."""
    return (folder / STATE_FILE).exists()


def version_of(folder: Path) -> tuple[int, int] | None:
    """What changes with every state: the file's number and time; None where there is no index."""
    try:
        found = (folder / STATE_FILE).stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_ino, found.st_mtime_ns


def read_state(folder: Path) -> IndexState:
    """The state of an index.

    Raises FileNotFoundError where there is none, ValueError for one that is damaged or of another format.
    """
    path = folder / STATE_FILE
    if folder.is_file():
        raise FileNotFoundError(
            f"{folder} is a file, not an index. If it holds documents, build one of it: search-r3 index {folder} "
            "--model MODEL --output FOLDER."
        )
    if not path.exists():
        unfinished = (folder / BUILDING).is_dir()
        raise FileNotFoundError(
            f"{folder}: there is no {STATE_FILE}, so this is not an index"
            + (", but one whose building was stopped. Start the same `search-r3 index` again; it goes on from there."
               if unfinished else ". Build one: search-r3 index CORPUS --model MODEL --output FOLDER.")
        )  # fmt: skip
    try:
        found = unsealed(path)
    except DamagedError as error:
        said = str(error).removeprefix(f"{STATE_FILE}: ").rstrip(". ")  # what cannot be read names the file itself
        raise ValueError(f"{folder}: {said}. {_REMEDY}") from error
    if found.get("format") != _FORMAT:
        raise ValueError(f"{path} is not the state of a {_FORMAT}. Name the folder of an index.")
    if found.get("version") != _VERSION:
        raise ValueError(
            f"{path} has format version {found.get('version')!r:.20}, not {_VERSION}. Install a newer search-r3-mteb, "
            "or build the index again."
        )
    return IndexState(
        encoding=found["encoding"],
        model=found["model"],
        settings=IndexSettings(**found["settings"]),
        parts=tuple(PartRecord(**part) for part in found["parts"]),
        generation=found["generation"],
        next_part=found["next_part"],
    )


def write_state(folder: Path, state: IndexState) -> None:
    """Replace the state, in one step."""
    write_text(folder / STATE_FILE, sealed({"format": _FORMAT, "version": _VERSION, **asdict(state)}))


def check_part(folder: Path, record: PartRecord, *, contents: bool, known: set[str]) -> None:
    """ValueError, by the file's name, for a part that is not what was written; without `contents` only sizes count.

    `known` are files that have been compared before; those of this part are added.
    """
    for name, wanted in record.files.items():
        path = folder / name
        how = difference(path, wanted) if contents and name not in known else _size_difference(path, wanted)
        if how is not None:
            raise ValueError(f"{folder} is damaged: {name} {how}. {_REMEDY}")
        if contents:
            known.add(name)


def _size_difference(path: Path, wanted: Mapping[str, Any]) -> str | None:
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    return None if size == wanted["bytes"] else f"has {size} bytes instead of {wanted['bytes']}"
