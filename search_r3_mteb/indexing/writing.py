"""Changes of an index: building, adding, removing, compacting. Each is there completely or not at all.

One process writes at a time. A new part is written under a hidden name and renamed, then the state is replaced. What a
killed change left is removed by the next one; vectors that it had computed are kept by text in FOLDER/building, so that
the same command goes on from there.
"""

import logging
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float

from search_r3_mteb.atomic import clean, flush, flush_one, temporary_folder, write_array
from search_r3_mteb.checksums import described
from search_r3_mteb.encoder.arithmetic import arithmetic
from search_r3_mteb.encoder.documents import join_title
from search_r3_mteb.encoder.encoder import SearchR3Encoder
from search_r3_mteb.encoder.processes import process_count
from search_r3_mteb.encoder.store import Store, fingerprint_of
from search_r3_mteb.indexing.documents import DocumentRow, row_of
from search_r3_mteb.indexing.encoding import encoding_of
from search_r3_mteb.indexing.parts import write_rows
from search_r3_mteb.indexing.settings import IndexKind
from search_r3_mteb.indexing.snapshot import Place, Snapshot, open_snapshot
from search_r3_mteb.indexing.state import BUILDING, STATE_FILE, IndexState, PartRecord, is_index, write_state
from search_r3_mteb.locks import LOCK_FILE, leave, locked, occupy

Block: TypeAlias = tuple[list[DocumentRow], Float[np.ndarray, "block dim"]]
"""Some documents and their vectors."""
Look: TypeAlias = Callable[[list[DocumentRow]], None]
EMBEDDED_AT_ONCE = 4096  # documents per chunk of the store: what a kill costs
_WHAT = "indexing"
_log = logging.getLogger(__name__)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """In the block no other process, and no other thread of this one, changes the index.

    Raises OccupiedError, which names the other process. Threads of this process wait for each other.
    """
    occupy(folder, _WHAT)
    try:
        with locked(folder):
            clean(folder)
            yield
    finally:
        leave(folder, _WHAT)


def check_new(folder: Path) -> None:
    """FileExistsError for a folder that holds an index, or anything that an unfinished build of one has not left."""
    if is_index(folder):
        raise FileExistsError(
            f"{folder} holds an index already. Add to it (search-r3 index {folder} --add FILE), or name another folder."
        )
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; an index is a folder. Name another place.")
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    foreign = [name for name in names if not _is_ours(name)]
    if foreign:
        raise FileExistsError(f"{folder} holds {foreign[0]!r}, which is not of an index. Name a new or empty folder.")


def check_place(folder: Path) -> None:
    """OSError where a new index cannot be written, before any work; a folder is made and removed to find it out."""
    place = next(each for each in (folder, *folder.absolute().parents) if each.is_dir())
    try:
        with temporary_folder(place / folder.absolute().name):
            pass
    except OSError as error:
        raise OSError(
            f"{folder}: nothing can be written in {place} ({error.strerror}). Name a folder where you may write."
        ) from error


def write_new(folder: Path, state: IndexState, blocks: Iterable[Block]) -> None:
    """Write a new index of documents and their vectors. Raises ValueError where there are none."""
    check_new(folder)
    with writing(folder):
        check_new(folder)  # another process may have finished one meanwhile
        _sweep(folder, state)
        with _kept_for_the_next(folder):
            record = _write_part(folder, state, blocks, lambda rows: state.settings.kind_of(rows))
            if record is None:
                raise ValueError("There are no documents, so nothing could be found in such an index.")
        write_state(folder, replace(state, parts=(record,), next_part=state.next_part + 1))
        shutil.rmtree(folder / BUILDING, ignore_errors=True)


def write_more(
    folder: Path, blocks: Callable[[Look], Iterable[Block]], *, replacing: bool, checked: set[str] | None = None
) -> tuple[int, int]:
    """Add documents as a part of their own, and merge it with smaller ones beside it.

    Returns the number of documents, and of those among them that have replaced one.
    `blocks` gets a function that has to see the documents of each block before anything is computed. Raises ValueError
    for an id that is there already, unless `replacing` it. `checked`, here and below, are files whose checksums have
    been compared; all others are compared first, for what is copied from a damaged file would pass for intact.
    """
    checked = set() if checked is None else checked
    with writing(folder):
        snapshot = open_snapshot(folder, checked, verify=True)
        _sweep(folder, snapshot.state)
        replaced: list[Place] = []

        def look(rows: list[DocumentRow]) -> None:
            found = snapshot.places_of(id_ for id_, *_ in rows)
            if found and not replacing:
                raise ValueError(
                    f"The index has a document {next(iter(found))!r:.80} already ({len(found):,} of the {len(rows):,} "
                    "that were looked at). Remove them first, or replace them: --replace, add(..., replace=True)."
                )
            replaced.extend(found.values())

        state = snapshot.state
        with _kept_for_the_next(folder):
            record = _write_part(folder, state, blocks(look), lambda rows: state.settings.kind_of(rows, added=True))
        if record is None:
            return 0, 0
        parts = (*_without(folder, snapshot, replaced), record)
        write_state(folder, state.changed(parts, state.next_part + 1))
        shutil.rmtree(folder / BUILDING, ignore_errors=True)
        _merge_small(folder, checked)
        return record.rows, len(replaced)


def remove(folder: Path, ids: Iterable[str], *, missing_ok: bool, checked: set[str] | None = None) -> int:
    """Remove documents; their number. Raises ValueError for ids that are not there, unless `missing_ok`."""
    checked = set() if checked is None else checked
    wanted = dict.fromkeys(ids)
    with writing(folder):
        snapshot = open_snapshot(folder, checked, verify=True)
        _sweep(folder, snapshot.state)
        found = snapshot.places_of(wanted)
        absent = [id_ for id_ in wanted if id_ not in found]
        if absent and not missing_ok:
            raise ValueError(
                f"{len(absent)} of {len(wanted)} ids are not in the index, the first is {absent[0]!r:.80}. Nothing was "
                "removed. Correct them, or leave out what is not there: --missing-ok, remove(..., missing_ok=True)."
            )
        if found:
            after = snapshot.state.changed(_without(folder, snapshot, found.values()), snapshot.state.next_part)
            write_state(folder, after)
            _sweep(folder, after)
            _fill_hollow(folder, checked)
        return len(found)


def compact(folder: Path, *, checked: set[str] | None = None) -> None:
    """Write all documents that are left into one part, which is searched as its size asks for."""
    checked = set() if checked is None else checked
    with writing(folder):
        snapshot = open_snapshot(folder, checked, verify=True)
        _sweep(folder, snapshot.state)
        if len(snapshot.parts) > 1 or any(record.removed for record in snapshot.state.parts):
            _rewrite(folder, snapshot, 0)


def embedded(folder: Path, documents: Iterable[Any], encoder: SearchR3Encoder, look: Look) -> Iterator[Block]:
    """Documents and their vectors, which are kept in FOLDER/building until they are part of the index."""
    if process_count() > 1:
        raise ValueError(
            f"{process_count()} processes were started together (WORLD_SIZE), and an index is written by one. Start it "
            "without a launcher."
        )
    encoding = encoding_of(encoder)
    fingerprint, store = fingerprint_of(encoding | arithmetic(encoder.engine)), None
    stream = (row_of(document, position) for position, document in enumerate(documents))
    done = kept = 0
    while rows := list(islice(stream, EMBEDDED_AT_ONCE)):
        look(rows)
        if store is None:  # only now: what is refused leaves nothing behind
            store = Store(folder / BUILDING, fingerprint, "document", encoder.dim)
        texts = [join_title(title, text) for _, title, text in rows]
        missing = [texts[position] for position in store.missing(texts)]
        if missing:
            store.append(missing, encoder.encode_document(missing))
        done, kept = done + len(rows), kept + len(rows) - len(missing)
        yield rows, store.lookup(texts)
        said = f" ({kept:,} of them known: stored before, or equal texts)" if kept else ""
        _log.info("%s document%s embedded%s.", f"{done:,}", "" if done == 1 else "s", said)


@contextmanager
def _kept_for_the_next(folder: Path) -> Iterator[None]:
    """After an error in the block, vectors that were computed stay, and that is said; without any, nothing stays."""
    try:
        yield
    except Exception:
        building = folder / BUILDING
        if any(building.glob("*/chunk-*")):
            _log.warning(
                "%s keeps the vectors that were computed. The same command, of corrected documents too, goes on from "
                "there; if you do not want that, remove it.",
                building,
            )
        else:
            shutil.rmtree(building, ignore_errors=True)
        raise


# ---- parts ---------------------------------------------------------------------------------------------------------


def _write_part(
    folder: Path, state: IndexState, blocks: Iterable[Block], kind_of: Callable[[int], IndexKind]
) -> PartRecord | None:
    """Write a part of these blocks; None where there are none."""
    name = f"part-{state.next_part:06d}"

    def said(rows: int) -> IndexKind:
        kind = kind_of(rows)
        _log.info("%s document%s in %s, searched by: %s.", f"{rows:,}", "" if rows == 1 else "s", name, kind)
        return kind

    with temporary_folder(folder / "part") as temporary:
        rows, kind = write_rows(temporary, blocks, state.encoding["dim"], said, state.settings)
        if rows == 0:
            return None
        files = {f"{name}/{path.name}": described(path) for path in sorted(temporary.iterdir())}
        flush(temporary)
        temporary.rename(folder / name)
    flush_one(folder)
    return PartRecord(name, rows, kind, files)


def _without(folder: Path, snapshot: Snapshot, places: Iterable[Place]) -> tuple[PartRecord, ...]:
    """The records of all parts, with these places removed; a part in which nothing is left is not among them."""
    by_part: dict[int, list[int]] = {}
    for place in places:
        by_part.setdefault(place.part, []).append(place.row)
    return tuple(
        record
        for number, part in enumerate(snapshot.parts)
        if (record := _removed(folder, snapshot, number, by_part.get(number, []))).living
    )


def _removed(folder: Path, snapshot: Snapshot, number: int, rows: list[int]) -> PartRecord:
    part, record = snapshot.parts[number], snapshot.parts[number].record
    if not rows:
        return record
    removed = np.zeros(record.rows, bool) if part.living is None else ~part.living
    removed[rows] = True
    name = f"{record.name}.removed-{snapshot.state.generation + 1:06d}.npy"
    write_array(folder / name, np.packbits(removed, bitorder="little"))
    files = {file: entry for file, entry in record.files.items() if file != record.removed_file}
    return replace(
        record,
        files=files | {name: described(folder / name)},
        removed=int(np.count_nonzero(removed)),
        removed_file=name,
    )


def _merge_small(folder: Path, checked: set[str]) -> None:
    """Merge the last flat parts as long as each is at most twice as large as those behind it together.

    So their number stays below the logarithm of the documents, and a document is copied as often at most.
    """
    snapshot = open_snapshot(folder, checked, verify=True)
    records = snapshot.state.parts
    first, together = len(records) - 1, records[-1].living
    while first > 0 and records[first - 1].kind == "flat" and records[first - 1].living <= 2 * together:
        first -= 1
        together += records[first].living
    if first < len(records) - 1:
        _rewrite(folder, snapshot, first)
    else:
        _sweep(folder, snapshot.state)


def _fill_hollow(folder: Path, checked: set[str]) -> None:
    """Rewrite flat parts of which less than half is left, and those behind them; say so of others."""
    snapshot = open_snapshot(folder, checked, verify=True)
    records = snapshot.state.parts
    hollow = [number for number, record in enumerate(records) if 2 * record.living < record.rows]
    flat = [number for number in hollow if all(record.kind == "flat" for record in records[number:])]
    if flat:
        _rewrite(folder, snapshot, flat[0])
    elif hollow:
        _log.warning(
            "More than half of %s is removed. `search-r3 index %s --compact` frees its space and builds it again.",
            ", ".join(records[number].name for number in hollow),
            folder,
        )


def _rewrite(folder: Path, snapshot: Snapshot, first: int) -> None:
    """Replace the parts from number `first` on by one part with what is left in them."""
    state = snapshot.state
    blocks = snapshot.living_blocks(first, EMBEDDED_AT_ONCE)
    record = _write_part(folder, state, blocks, lambda rows: state.settings.kind_of(rows, added=first > 0))
    after = state.changed((*state.parts[:first], *([] if record is None else [record])), state.next_part + 1)
    write_state(folder, after)
    _sweep(folder, after)


def _sweep(folder: Path, state: IndexState) -> None:
    """Remove what no state names any more, or a killed change has left."""
    named = {name.partition("/")[0] for record in state.parts for name in record.files}
    for path in folder.glob("part-*"):
        if path.name in named:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _is_ours(name: str) -> bool:
    return name in (STATE_FILE, BUILDING, LOCK_FILE) or name.startswith(
        ("part-", ".part.", f".{_WHAT}", f".{STATE_FILE}")
    )
