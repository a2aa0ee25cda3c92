"""A repository of data sets: on the hub at one commit, or a local folder laid out like one, read by the same calls."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OTHERWISE = (
    "The repository's layout differs from what train/public_sets/table.py says; name another commit with --revision, "
    "or correct the table."
)
_HASH_CHUNK = 1 << 20  # bytes read at a time


class RepositoryError(ValueError):
    """A repository that cannot be reached or read, or is not laid out as expected."""


@dataclass(frozen=True)
class Repository:
    """A hub repository at a commit, or its local copy.

    `place` is what `datasets` opens: the hub id or the folder. `revision` is the commit's hash, or "files:" and a hash
    of the folder's files.
    """

    name: str
    place: str
    revision: str
    local: bool

    def splits(self, configuration: str) -> list[str]:
        """The splits of one configuration."""
        from datasets import get_dataset_split_names

        with _errors(self.name, f"the splits of configuration {configuration!r}"):
            return list(get_dataset_split_names(self.place, configuration, revision=self._commit))

    def configuration(self, *names: str) -> str:
        """The first of `names` that there is. Raises RepositoryError, which lists what there is."""
        from datasets import get_dataset_config_names

        with _errors(self.name, "its configurations"):
            there = get_dataset_config_names(self.place, revision=self._commit)
        for name in names:
            if name in there:
                return name
        raise RepositoryError(
            f"{self.name} at {self.revision}: expected a configuration {' or '.join(map(repr, names))}, found "
            f"{', '.join(map(repr, there))}. {OTHERWISE}"
        )

    def stream(self, configuration: str, split: str) -> Any:
        """The records as a `datasets.IterableDataset`: nothing is kept on disk, and its state can be saved."""
        from datasets import load_dataset

        with _errors(self.name, f"configuration {configuration!r}, split {split!r}"):
            return load_dataset(self.place, configuration, split=split, revision=self._commit, streaming=True)

    def columns(self, stream: Any, configuration: str) -> list[str]:
        """The names of a stream's columns."""
        with _errors(self.name, f"the columns of configuration {configuration!r}"):
            names = stream.column_names or [name for record in stream.take(1) for name in record]
        return list(names)

    def records(self, stream: Any, configuration: str) -> Iterator[dict[str, Any]]:
        """The records of a stream, from its state on."""
        with _errors(self.name, f"the records of configuration {configuration!r}"):
            yield from stream

    def licence(self) -> str:
        """The licence as the card states it, in the card's own words, or why none is known."""
        from huggingface_hub import DatasetCard

        path = self._card()
        if path is None:
            return "not stated: the repository has no card (README.md)"
        facts = DatasetCard.load(path, ignore_metadata_errors=True).data.to_dict()
        stated = [facts[key] for key in ("license", "license_name", "license_link") if facts.get(key)]
        words = [word for one in stated for word in (one if isinstance(one, list) else [one])]
        return ", ".join(map(str, words)) or "not stated: the card names no licence"

    def _card(self) -> Path | None:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import RemoteEntryNotFoundError

        if self.local:
            path = Path(self.place, "README.md")
            return path if path.is_file() else None
        with _errors(self.name, "its card (README.md)"):
            try:
                return Path(hf_hub_download(self.place, "README.md", repo_type="dataset", revision=self.revision))
            except RemoteEntryNotFoundError:
                return None

    @property
    def _commit(self) -> str | None:
        return None if self.local else self.revision


def open_repository(name: str, revision: str | None, folder: str | Path | None = None) -> Repository:
    """The repository `name` at `revision` (the newest without one), or its copy in `folder`.

    Raises FileNotFoundError for a folder that is not there, and RepositoryError where the hub cannot be reached.
    """
    if folder is not None:
        path = Path(folder)
        if not path.is_dir():
            raise FileNotFoundError(
                f"--from {str(folder)!r} does not exist or is not a folder; it is a copy of the hub's data set {name}, "
                f"as `hf download {name} --repo-type dataset --local-dir FOLDER` makes it."
            )
        return Repository(name, str(path.resolve()), f"files:{_hash(path)}", local=True)
    from huggingface_hub import HfApi

    with _errors(name, "its newest commit" if revision is None else f"commit {revision}"):
        commit = HfApi().dataset_info(name, revision=revision).sha
    if not commit:
        raise RepositoryError(f"The hub names no commit of {name}. Name one with --revision.")
    return Repository(name, name, commit, local=False)


def check_columns(place: str, found: Sequence[str], expected: Sequence[str], optional: Sequence[str] = ()) -> None:
    """Refuse columns that are missing, and columns that nobody expected: they may hold what must not be left out."""
    if set(expected) <= set(found) <= {*expected, *optional}:
        return
    beside = f" (and perhaps {', '.join(map(repr, optional))})" if optional else ""
    raise RepositoryError(
        f"{place}: expected the columns {', '.join(map(repr, expected))}{beside}, found "
        f"{', '.join(map(repr, found)) or 'none'}. {OTHERWISE}"
    )


@contextmanager
def _errors(name: str, what: str) -> Iterator[None]:
    """What the hub and `datasets` raise, as one error that says what to do."""
    from datasets.exceptions import DatasetsError
    from huggingface_hub import errors as hub

    try:
        yield
    except RepositoryError:
        raise
    except (OSError, hub.EntryNotFoundError, hub.HTTPError) as error:
        raise RepositoryError(
            f"{_said(name, what, error)} Nothing is lost: with a network, give the same command again and it goes on "
            f"where it stopped. Without one, run `hf download {name} --repo-type dataset --local-dir FOLDER` on a "
            "machine that has it, and give --from FOLDER here. A set that is gated needs `hf auth login` first."
        ) from error
    except (ValueError, DatasetsError) as error:  # pyarrow's errors are ValueErrors
        raise RepositoryError(f"{_said(name, what, error)} {OTHERWISE}") from error


def _said(name: str, what: str, error: Exception) -> str:
    said = " ".join(str(error).split())[:400].rstrip(".")
    return f"{name}: {what} could not be read ({type(error).__name__}: {said})."


def _hash(folder: Path) -> str:
    """SHA-256 of the names and contents of the files, hidden ones left out."""
    digest = hashlib.sha256()
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    for name in names:
        if any(part.startswith(".") for part in name.split("/")):
            continue
        size = 0
        with (folder / name).open("rb") as stream:
            while chunk := stream.read(_HASH_CHUNK):
                size += len(chunk)
                digest.update(chunk)
        digest.update(f"\0{name} {size}\0".encode())
    return digest.hexdigest()
