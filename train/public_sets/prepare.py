"""One set from its repository to its folder: every file, the judgements that belong to it, the manifest."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from search_r3_mteb.disk import naming
from search_r3_mteb.json_files import parse_json
from train.public_sets.convert import BeirTexts, Pairs, judgements
from train.public_sets.manifest import MANIFEST, faults, read_manifest, write_manifest
from train.public_sets.source import OTHERWISE, Repository, RepositoryError, check_columns, open_repository
from train.public_sets.table import ROWS_FILE, JudgedLayout, PublicSet, RowLayout
from train.public_sets.writing import Workplace, begun_revision, forget_progress

_CONVERSION = 1  # raised when the same records become other files


@dataclass(frozen=True)
class Wish:
    """What the command asks for beside the set's name."""

    output: Path = Path("data")
    """The set's folder is made here."""
    copy: Path | None = None
    """A local copy of the repository, instead of the hub."""
    revision: str | None = None
    """Another commit than the table's."""
    rows: int | None = None
    """The first records of a file of pairs, at most that many."""
    every: int = 50_000
    """Records between two states on disk: what a killed command reads again at most."""


def prepare(one: PublicSet, wish: Wish, tell: Callable[[str], None] = lambda _: None) -> Path:
    """Make the folder of a set, or go on with one that was begun; a complete one is verified and left alone.

    Raises RepositoryError where the repository cannot be read or is laid out otherwise, FileNotFoundError,
    FileExistsError and ValueError for a folder that is in the way.
    """
    if wish.rows is not None and isinstance(one.layout, JudgedLayout):
        raise ValueError(
            f"--rows {wish.rows}: {one.name} is a corpus with judgements, and a part of it would judge documents that "
            "are not there. Leave --rows out."
        )
    folder = wish.output / one.name
    if folder.is_dir() and any(folder.iterdir()):
        _check_same(folder, one, wish)
        forget_progress(folder)
        tell(f"{folder}: already there, as its {MANIFEST} says")
        return folder
    revision = wish.revision or one.revision or begun_revision(folder)
    repository = open_repository(one.repository, revision, wish.copy)
    identity = _identity(one, wish) | {"revision": repository.revision}
    with naming(folder), Workplace(folder, identity, wish.every).locked() as place:
        if isinstance(one.layout, JudgedLayout):
            counts = _judged_set(place, repository, one.layout, tell)
        else:
            counts = _row_set(place, repository, one.layout, wish.rows, tell)
        write_manifest(place.folder, identity, repository.licence(), counts)
        place.finish()
    return folder


def _identity(one: PublicSet, wish: Wish) -> dict[str, Any]:
    layout = parse_json(json.dumps(asdict(one.layout)), "the layout")
    return {
        "set": one.name,
        "repository": one.repository,
        "layout": layout,
        "records_at_most": wish.rows,
        "conversion": _CONVERSION,
    }


def _check_same(folder: Path, one: PublicSet, wish: Wish) -> None:
    """Raise ValueError unless the folder holds what is wished, unchanged."""
    manifest, wanted = read_manifest(folder), _identity(one, wish)
    if wish.copy is None and (wish.revision or one.revision):
        wanted["revision"] = wish.revision or one.revision
    elif wish.copy is not None:
        wanted["revision"] = open_repository(one.repository, None, wish.copy).revision
    for key, value in wanted.items():
        if manifest.get(key) != value:
            raise FileExistsError(
                f"{folder} was made with {key} = {manifest.get(key)!r}, and {value!r} is wanted now. Remove the "
                "folder, or give --output FOLDER for another place."
            )
    if wrong := faults(folder):
        raise ValueError(f"{folder}: {'; '.join(wrong)}. Remove the folder and prepare the set again.")


def _row_set(
    place: Workplace, repository: Repository, layout: RowLayout, limit: int | None, tell: Callable[[str], None]
) -> dict[str, dict[str, int]]:
    configuration = repository.configuration(layout.configuration)
    where = _place(repository, configuration, layout.split)
    _check_splits(repository, configuration, (layout.split,))
    stream = repository.stream(configuration, layout.split)
    check_columns(where, repository.columns(stream, configuration), layout.columns)
    parts = (configuration, layout.split)
    return {ROWS_FILE: place.write(ROWS_FILE, repository, parts, Pairs(where, layout), limit, tell)}


def _judged_set(
    place: Workplace, repository: Repository, layout: JudgedLayout, tell: Callable[[str], None]
) -> dict[str, dict[str, int]]:
    corpus, queries, names = layout.configurations()
    judged = repository.configuration(*names)
    splits = _check_splits(repository, judged, layout.splits)
    for split in splits:  # before anything long
        columns = repository.columns(repository.stream(judged, split), judged)
        check_columns(_place(repository, judged, split), columns, ("query-id", "corpus-id", "score"))
    counts = {}
    for name, configuration in (("queries.jsonl", queries), ("corpus.jsonl", corpus)):
        repository.configuration(configuration)
        split = _only_split(repository, configuration, layout)
        where = _place(repository, configuration, split)
        found = repository.columns(repository.stream(configuration, split), configuration)
        id_column = "id" if "id" in found and "_id" not in found else "_id"
        check_columns(where, found, (id_column, "text"), ("title", "metadata"))
        conversion = BeirTexts(where, id_column, titles=name == "corpus.jsonl")
        counts[name] = place.write(name, repository, (configuration, split), conversion, None, tell)
    known = [set(_ids(place.folder / name)) for name in ("queries.jsonl", "corpus.jsonl")]
    (place.folder / "qrels").mkdir(exist_ok=True)
    for split in splits:
        records = repository.records(repository.stream(judged, split), judged)
        rows, said = judgements(records, _place(repository, judged, split), *known)
        with (place.folder / "qrels" / f"{split}.tsv").open("w", encoding="utf-8", newline="\n") as stream:
            stream.write("query-id\tcorpus-id\tscore\n")
            stream.writelines(f"{query}\t{document}\t{grade}\n" for query, document, grade in rows)
        counts[f"qrels/{split}.tsv"] = {what: count for what, count in sorted(said.items()) if count}
    return counts


def _place(repository: Repository, configuration: str, split: str) -> str:
    return f"{repository.name} at {repository.revision[:18]}, configuration {configuration!r}, split {split!r}"


def _check_splits(repository: Repository, configuration: str, expected: tuple[str, ...]) -> list[str]:
    there = repository.splits(configuration)
    if missing := sorted(set(expected) - set(there)):
        raise RepositoryError(
            f"{repository.name} at {repository.revision}, configuration {configuration!r}: expected the splits "
            f"{', '.join(expected)}, found {', '.join(there)}; {', '.join(missing)} is missing. {OTHERWISE}"
        )
    return there


def _only_split(repository: Repository, configuration: str, layout: JudgedLayout) -> str:
    """The one split of texts: of the configuration, or the one of the same name as the only split of judgements."""
    there = repository.splits(configuration)
    if len(there) == 1:
        return there[0]
    if len(layout.splits) == 1 and layout.splits[0] in there:
        return layout.splits[0]
    raise RepositoryError(
        f"{repository.name} at {repository.revision}, configuration {configuration!r}: expected one split, found "
        f"{', '.join(there)}. {OTHERWISE}"
    )


def _ids(path: Path) -> Iterator[str]:
    """The ids of a file that was written. Raises RepositoryError for one that was used twice."""
    seen: set[str] = set()
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            id_: str = parse_json(line, path, number)["_id"]
            if id_ in seen:
                raise RepositoryError(f"{path.name}, line {number}: id {id_!r} was already used; ids are unique.")
            seen.add(id_)
            yield id_
