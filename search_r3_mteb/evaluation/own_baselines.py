"""Baselines of other packages: an encoder of texts, or a model that MTEB takes, behind a name on the command line.

    @BASELINES.register("hashing")
    def hashing(argument):             # what stands behind the name: "256" of hashing:256, "" of hashing
        return HashingEncoder(int(argument or 256))

The object that is returned has `encode_query(texts)` and `encode_document(texts)`, each (texts, dim) numbers without
zero rows, compared by their cosine; or it has `mteb_model_meta` and is an encoder or a search model of MTEB's. If it
reads files, `fingerprint` (a text) must stand for what they hold: results are kept under it.
"""

import hashlib
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from search_r3_mteb.encoder.folders import is_there
from search_r3_mteb.encoder.identity import local_meta
from search_r3_mteb.encoder.inputs import is_query, read_batches
from search_r3_mteb.encoder.similarity import cosines, paired_cosines
from search_r3_mteb.encoder.store import fingerprint_of
from search_r3_mteb.extensions import BASELINES, Extension, ExtensionError
from search_r3_mteb.search.arrays import Vectors


@dataclass(frozen=True)
class OwnBaseline:
    """A name of the form BASELINE or BASELINE:ARGUMENT."""

    name: str
    argument: str

    @property
    def label(self) -> str:
        """A name that may be a part of file names."""
        last = Path(self.argument).name
        return f"{self.name}-{last}" if last else self.name

    def open(self) -> tuple[Any, str]:
        """The model for MTEB, and the fingerprint of its results. Raises ExtensionError for one that cannot be used."""
        extension = BASELINES.find(self.name)
        model = extension(self.argument)
        parts = {"baseline": self.name, "argument": self.argument, "of": extension.origin, "code": _code(extension)}
        stated = getattr(model, "fingerprint", None)
        fingerprint = fingerprint_of({**parts, "holds": None if stated is None else str(stated)})
        identity = {"name": f"local/{self.label}", "revision": fingerprint[:16]}
        experiment = {"fingerprint": fingerprint[:16]}
        if hasattr(model, "mteb_model_meta"):
            meta = model.mteb_model_meta.model_copy(update={**identity, "experiment_kwargs": experiment})
            return _WithMeta(model, meta), fingerprint
        if not (hasattr(model, "encode_query") and hasattr(model, "encode_document")):
            raise extension.error(
                f"gave {type(model).__name__}, which has neither encode_query and encode_document nor mteb_model_meta"
            )
        return _TextEncoder(extension, model, identity, experiment), fingerprint


def own_baseline(text: Any) -> OwnBaseline | None:
    """The baseline that a model's name stands for, None for any other name.

    Raises ValueError where a folder here has the same name.
    """
    if not isinstance(text, str):
        return None
    name, _, argument = text.partition(":")
    if name not in BASELINES.names():
        return None
    if is_there(text):
        raise ValueError(f"{text!r} is both a {BASELINES.find(name)} and a folder here. Write ./{text} for the folder.")
    return OwnBaseline(name, argument)


def _code(extension: Extension) -> str:
    """Digest of the file in which the function stands: results of an older version of it are not taken for its own."""
    function = inspect.unwrap(extension.function)
    try:
        file = inspect.getsourcefile(function)
        held = Path(file).read_bytes() if file else b""
    except (TypeError, OSError):
        held = b""
    code = getattr(function, "__code__", None)
    held = held or (repr((code.co_code, code.co_consts)).encode() if code is not None else b"")
    if not held:
        raise extension.error("is neither a function nor in a file, so that nothing tells its versions apart")
    return hashlib.sha256(held).hexdigest()


class _WithMeta:
    """A model for MTEB under an identity that no other version of it shares."""

    def __init__(self, model: Any, mteb_model_meta: Any) -> None:
        self.model, self.mteb_model_meta = model, mteb_model_meta

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


class _TextEncoder:
    """An encoder of texts, for MTEB."""

    def __init__(self, extension: Extension, model: Any, identity: dict[str, str], experiment: dict[str, str]) -> None:
        self.extension, self.model = extension, model
        self._identity, self._experiment, self._dim = identity, experiment, 0

    @property
    def mteb_model_meta(self) -> Any:
        """MTEB's description; the dimension is known once something was encoded."""
        identity = dict(self._identity)
        return local_meta(
            identity.pop("name"), self._dim, self._experiment, n_parameters=None, use_instructions=False, **identity
        )

    def encode(self, inputs: Any, *, prompt_type: Any = None, **keywords: Any) -> Vectors:
        """MTEB's encode; instructions of tasks are not read."""
        query = is_query(prompt_type)
        texts, _ = read_batches(inputs, is_query=query)
        method = self.model.encode_query if query else self.model.encode_document
        try:
            found = np.asarray(method(texts), dtype=np.float32)
        except ExtensionError:
            raise
        except Exception as error:
            raise self.extension.error(f"failed to encode with {type(error).__name__}: {error}") from error
        if found.ndim != 2 or len(found) != len(texts) or not np.isfinite(found).all():
            raise self.extension.error(
                f"gave vectors of shape {found.shape} for {len(texts)} texts; finite numbers (texts, dim) are needed"
            )
        zero = np.flatnonzero(~found.any(axis=1))
        if len(zero):
            raise self.extension.error(
                f"gave a vector of zeros, which has no direction, for the text {texts[int(zero[0])]!r:.80}"
            )
        self._dim = found.shape[1]
        return found

    def similarity(self, first: Any, second: Any) -> Any:
        """Cosines (n, m)."""
        return cosines(first, second)

    def similarity_pairwise(self, first: Any, second: Any) -> Any:
        """Cosines (n,)."""
        return paired_cosines(first, second)
