"""An encoder as frameworks call it: lists of floats by role, loaded at first use, one call at a time.

The classes for LangChain, LlamaIndex and Haystack hold one of these and add nothing but their framework's names. What
decides a vector is written down as a model's name, an instruction and the settings of `EncoderSettings`; weights never
are. Frameworks call from several threads, and an engine runs one batch at a time, so calls on one encoder wait for each
other, also those of two embedders that share it.
"""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from search_r3_mteb.encoder.encoder import SearchR3Encoder

_LOCKS: "WeakKeyDictionary[SearchR3Encoder, threading.RLock]" = WeakKeyDictionary()
_LOCKS_LOCK = threading.Lock()


class Embedder:
    """Queries and documents to lists of floats, of unit length, by one model.

    `model` is what `SearchR3Encoder` takes, or an encoder, which is then shared. `settings` are those of
    `EncoderSettings`; an unknown one is a TypeError at once, before a model is loaded. `instruction` goes before every
    query. Raises ValueError for settings beside an encoder, which has its own.
    """

    def __init__(
        self,
        model: "str | Path | SearchR3Encoder" = "nano",
        settings: Mapping[str, Any] | None = None,
        instruction: str | None = None,
    ) -> None:
        from search_r3_mteb.encoder.encoder import SearchR3Encoder
        from search_r3_mteb.encoder.setting_types import check_kind
        from search_r3_mteb.encoder.settings import EncoderSettings

        check_kind("model", model, (str, Path, SearchR3Encoder), "a bundled name, a folder, a hub id, or an encoder")
        check_kind("instruction", instruction, (str, type(None)), "a text that goes before every query, or None")
        self.instruction = instruction
        self.settings = {
            name: str(value) if isinstance(value, Path) else value for name, value in (settings or {}).items()
        }
        self._encoder = model if isinstance(model, SearchR3Encoder) else None
        self._named = self._encoder is None
        self.model = model.name if isinstance(model, SearchR3Encoder) else _as_text(model)
        if self.settings and not self._named:
            raise ValueError(
                f"{', '.join(self.settings)} was given beside an encoder, which has settings already. Make the encoder "
                "with these settings, or give the model's name in its place."
            )
        EncoderSettings.from_keywords({name: self.settings[name] for name in self.settings if name != "revision"})
        self._loading = threading.Lock()

    @property
    def encoder(self) -> "SearchR3Encoder":
        """The encoder, loaded now if it was not."""
        with self._loading:
            if self._encoder is None:
                from search_r3_mteb.encoder.encoder import SearchR3Encoder

                self._encoder = SearchR3Encoder(self.model, **self.settings)
            return self._encoder

    def queries(self, texts: Sequence[str]) -> list[list[float]]:
        """One vector (dim floats) per query, after reasoning unless the encoder's mode is "direct"."""
        encoder = self.encoder
        with _lock(encoder):
            found: list[list[float]] = encoder.encode_query(list(texts), instruction=self.instruction).tolist()
        return found

    def documents(self, documents: Sequence[str | Mapping[str, Any]]) -> list[list[float]]:
        """One vector (dim floats) per document, embedded directly; a document is a text, or {"text", "title"?}."""
        encoder = self.encoder
        with _lock(encoder):
            found: list[list[float]] = encoder.encode_document(list(documents)).tolist()
        return found

    def described(self, owner: str) -> dict[str, Any]:
        """Model, settings and instruction, as JSON; ValueError for an encoder in memory, which no file can name."""
        if not self._named:
            raise ValueError(
                f"This {owner} holds an encoder that was made in memory ({self.model}), which a file cannot name: what "
                "is read back would be another one. Make it with a model's name and settings, "
                f"{owner}(model=..., max_reasoning_tokens=...), to write it down."
            )
        return {"model": self.model, "settings": dict(self.settings), "instruction": self.instruction}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by name: a copy in another process loads the model again."""
        given = self.described("embedder")
        return Embedder, (given["model"], given["settings"], given["instruction"])

    def __deepcopy__(self, memo: Any) -> "Embedder":
        return self  # nothing in it changes but the encoder, which is loaded once


def _as_text(model: str | Path) -> str:
    """The model as a text that means the same: a Path is always the folder, also where a bundled model is called so."""
    if isinstance(model, str):
        return model
    return str(model) if model.is_absolute() else f"./{model}"


def _lock(encoder: "SearchR3Encoder") -> "threading.RLock":
    with _LOCKS_LOCK:
        return _LOCKS.setdefault(encoder, threading.RLock())


def split_settings(keywords: Mapping[str, Any], own: Sequence[str]) -> dict[str, Any]:
    """Keyword arguments of a framework's class, with those that are settings of the encoder under "settings"."""
    kept = {name: value for name, value in keywords.items() if name in own}
    more = {name: value for name, value in keywords.items() if name not in own}
    twice = sorted(set(more) & set(kept.get("settings") or {}))
    if twice:
        raise TypeError(f"{', '.join(twice)} was given twice, as a keyword and in settings. Give it once.")
    if more:
        kept["settings"] = {**(kept.get("settings") or {}), **more}
    return kept
