"""The encoder beside a writer: a Search-R3 checkpoint in direct mode, or an ordinary sentence-transformers model."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from search_r3_mteb.encoder.arithmetic import is_half
from search_r3_mteb.encoder.checkpoints import Checkpoint
from search_r3_mteb.encoder.chunks import CHUNK
from search_r3_mteb.encoder.encoder import SearchR3Encoder
from search_r3_mteb.encoder.folders import is_export, is_sentence_transformer
from search_r3_mteb.encoder.identity import name_for_mteb
from search_r3_mteb.encoder.manifest import MANIFEST_FILE
from search_r3_mteb.encoder.model_names import display_name, resolve
from search_r3_mteb.encoder.processes import process_device
from search_r3_mteb.encoder.store import Store, fingerprint_of
from search_r3_mteb.expansion.chunked import chunked
from search_r3_mteb.expansion.settings import ExpansionSettings
from search_r3_mteb.search.arrays import Vectors

VectorRole = Literal["query", "document"]
_UNIT = 1e-3  # by which the length of a vector may differ from 1


class BesideWriter(ABC):
    """Vectors of unit length of queries and documents, kept in the store.

    `takes_task_prompts`: a task's instruction has a place of its own. `separator` stands between query and text.
    """

    name: str
    dim: int
    takes_task_prompts: bool
    separator: str

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hex digest over everything that decides a vector."""

    @property
    @abstractmethod
    def parameters(self) -> int:
        """Number of parameters."""

    @abstractmethod
    def vectors(
        self, texts: Sequence[str], role: VectorRole, instructions: Sequence[str | None] | None, show: bool | None
    ) -> tuple[Vectors, float]:
        """Vectors (n, dim) and the seconds that computing them took, in whichever run."""


class DirectEncoder(BesideWriter):
    """A Search-R3 checkpoint that embeds directly."""

    separator = " "  # control tokens in a text stay text, so there is no other (our choice)
    takes_task_prompts = True

    def __init__(self, model: str | Path | Checkpoint, settings: ExpansionSettings) -> None:
        names = (
            "dtype",
            "device",
            "batch_tokens",
            "batch_invariant",
            "max_length",
            "cache_folder",
            "trust_remote_code",
            "probe",
            "verify",
        )
        chosen = {name: getattr(settings, name) for name in names}
        self.encoder = SearchR3Encoder(model, mode="direct", **chosen)
        self.name, self.dim = self.encoder.name, self.encoder.dim

    @property
    def fingerprint(self) -> str:
        """Hex digest over everything that decides a direct vector."""
        return self.encoder.fingerprint

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(each.numel() for each in self.encoder.model.parameters())

    def vectors(
        self, texts: Sequence[str], role: VectorRole, instructions: Sequence[str | None] | None, show: bool | None
    ) -> tuple[Vectors, float]:
        """Vectors (n, dim) and seconds."""
        done, encoder = self.encoder.statistics, self.encoder
        before = done.query_seconds + done.document_seconds
        encode = encoder.encode_query if role == "query" else encoder.encode_document
        vectors: Vectors = encode(list(texts), instruction=instructions, show_progress_bar=show)
        return vectors, done.query_seconds + done.document_seconds - before


class SentenceEncoder(BesideWriter):
    """An ordinary sentence-transformers folder, with its own prompts for queries and documents.

    Raises ValueError for an exported Search-R3 checkpoint, which would reason, and for a model whose similarity is not
    the cosine: vectors are added here, and lengths that mean something would be lost.
    """

    takes_task_prompts = False  # MTEB gives none to such a model either

    def __init__(self, path: str | Path, settings: ExpansionSettings) -> None:
        folder, self.model, exported, self._fingerprint = open_sentence_transformer(
            path,
            device=settings.device or process_device(),
            trust_remote_code=settings.trust_remote_code,
            verify=settings.verify,
        )
        if exported:
            raise ValueError(
                f"{folder.name} is an exported Search-R3 checkpoint, which reasons about queries itself. Name the "
                "checkpoint that it was exported from: it embeds directly here."
            )
        self.name = name_for_mteb(display_name(str(path), folder))
        self.settings = settings
        self.dim = int(self.model.get_embedding_dimension())
        self._stores: dict[VectorRole, Store | None] = {}
        self._check_cosine()
        special = getattr(self.model.tokenizer, "sep_token", None)
        self.separator = f" {special} " if special else " "

    @property
    def fingerprint(self) -> str:
        """Hex digest over the folder's files and the library's version."""
        return self._fingerprint

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(each.numel() for each in self.model.parameters())

    def vectors(
        self, texts: Sequence[str], role: VectorRole, instructions: Sequence[str | None] | None, show: bool | None
    ) -> tuple[Vectors, float]:
        """Vectors (n, dim) and seconds. An instruction follows the query after a space, as MTEB joins them."""
        given = list(instructions) if instructions is not None else [None] * len(texts)
        encode = self.model.encode_query if role == "query" else self.model.encode_document

        def compute(rows: Sequence[int]) -> Vectors:
            joined = [f"{texts[i]} {given[i]}" if given[i] else texts[i] for i in rows]
            return self._encoded(encode, joined)

        if not texts:
            return np.empty((0, self.dim), np.float32), 0.0
        store = self._store(role)
        found, seconds = chunked(texts, given, store, CHUNK[role], compute, what="encoding", show=show)
        return np.stack(found) if store is None else store.lookup(texts, given), seconds

    def _encoded(self, encode: Any, texts: list[str]) -> Vectors:
        if not texts:
            return np.empty((0, self.dim), np.float32)
        rows = encode(texts, normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False)
        rows = np.asarray(rows, np.float32)
        norms = np.linalg.norm(rows.astype(np.float64), axis=1)
        bad = np.flatnonzero(~(np.abs(norms - 1) < _UNIT))
        if len(bad):
            raise ValueError(
                f"{self.name}: the vector of text {texts[bad[0]]!r:.60} (and {len(bad) - 1} more) is not finite or "
                "zero, so it has no direction."
            )
        return (rows / norms[:, None]).astype(np.float32)

    def _check_cosine(self) -> None:
        kind = self.model.similarity_fn_name
        plain = self.model.encode_query(["a"], convert_to_numpy=True, show_progress_bar=False)
        if kind == "cosine" or (kind == "dot" and abs(float(np.linalg.norm(plain)) - 1) < _UNIT):
            return
        raise ValueError(
            f"{self.name} compares vectors by {kind!r}, and they are not of unit length: what is added here are "
            "directions, so its own ranking would be lost. Use an encoder that compares by cosine."
        )

    def _store(self, role: VectorRole) -> Store | None:
        if self.settings.cache_folder is None:
            return None
        if role not in self._stores:
            parts = {"encoder": self._fingerprint, "role": role, "normalised": True}
            if is_half(self.model):
                parts["device"] = str(self.model.device)
            key = fingerprint_of(parts)
            self._stores[role] = Store(self.settings.cache_folder, key, role, self.dim)
        return self._stores[role]


def open_encoder(model: str | Path | Checkpoint, settings: ExpansionSettings) -> BesideWriter:
    """The encoder that a name stands for: a folder of sentence-transformers without a profile of ours, else ours."""
    if not isinstance(model, Checkpoint) and is_sentence_transformer(resolve(model)):
        return SentenceEncoder(model, settings)
    return DirectEncoder(model, settings)


def open_sentence_transformer(
    path: str | Path, *, revision: str | None = None, **settings: Any
) -> tuple[Path, Any, bool, str]:
    """Folder, model, whether it is an export of ours, and a digest of what decides its vectors.

    `settings` and errors: see `load_library_model`.
    """
    from search_r3_mteb.integrations.sentence_transformers import load_library_model

    folder = resolve(path, revision)
    library = version("sentence-transformers")
    fingerprint = fingerprint_of({"files": _content_hash(folder), "sentence-transformers": library})
    return folder, load_library_model(folder, **settings), is_export(folder), fingerprint


def _content_hash(folder: Path) -> str:
    """sha256 over the names and contents of all files that decide what the model computes; not of their manifest."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if (
            path.name != MANIFEST_FILE
            and path.is_file()
            and path.suffix in (".json", ".safetensors", ".txt", ".model", ".tiktoken", ".py", ".jinja")
        ):
            digest.update(json.dumps([str(path.relative_to(folder)), path.stat().st_size]).encode())
            with path.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()
