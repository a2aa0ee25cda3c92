"""Fuzzed types: every entry point gives the vectors of the texts that were meant, or an error."""

import collections
import contextlib
import io
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np

from tests.attack.fuzzing import OnModel, ask, text, value
from tests.attack.trials import Case, Outcome, failure

_CLOSE = 2e-5
Row = collections.namedtuple("Row", ["id", "text"])


def _pandas(texts: list[str]) -> Any:
    import pandas

    return pandas.Series(texts, dtype=object)


def _frame(texts: list[str]) -> Any:
    import pandas

    return pandas.DataFrame({"id": range(len(texts)), "text": texts})


def _polars(texts: list[str]) -> Any:
    import polars

    return polars.Series("text", texts, dtype=polars.String)


def _arrow(texts: list[str]) -> Any:
    import pyarrow

    return pyarrow.table({"text": pyarrow.array(texts, pyarrow.string())})


def _dataset(texts: list[str]) -> Any:
    from datasets import Dataset, Features, Value

    return Dataset.from_dict({"text": texts}, features=Features({"text": Value("string")}))


LISTS: dict[str, Any] = {
    "list": list,
    "tuple": tuple,
    "generator": lambda t: (one for one in t),
    "array": lambda t: np.array(t, dtype=object),
    "series": _pandas,
    "polars": _polars,
    "deque": collections.deque,
    "values": lambda t: dict(enumerate(t)).values(),
    "iterator": lambda t: iter(list(t)),
}
"""What queries and documents may be."""
TABLES: dict[str, Any] = {
    "records": lambda t: [{"text": one} for one in t],
    "titled": lambda t: [{"title": "", "text": one} for one in t],
    "columns": lambda t: {"text": list(t)},
    "corpus": lambda t: {f"d{n}": {"text": one} for n, one in enumerate(t)},
    "frame": _frame,
    "arrow": _arrow,
    "dataset": _dataset,
}
"""What documents may be; as queries an error."""
NEVER: dict[str, Any] = {
    "set": lambda t: set(t) | {"x", "y"},
    "bytes": lambda t: "".join(t).encode("utf-8", "replace"),
    "file": lambda t: io.StringIO("\n".join(t)),
    "path": lambda t: Path("texts.txt"),
    "number": lambda t: len(t),
    "none": lambda t: None,
    "nested": lambda t: [list(t)],
    "row": lambda t: Row("a", "".join(t)),
    "bytes in a list": lambda t: [one.encode("utf-8", "replace") for one in t] or [b""],
    "matrix": lambda t: np.array([[*t, "a"]], dtype=object),
    "missing": lambda t: [*t, None],
    "not a number": lambda t: [float("nan"), *t],
    "integer among texts": lambda t: [*t, 3],
    "a type": lambda t: str,
    "a function": lambda t: len,
    "texts by id": lambda t: {"a": "one", "b": "two"},
    "0-d": lambda t: np.array("".join(t)),
    "mapping in a tuple": lambda t: ({"body": "x"}, *t),
    "true": lambda t: True,
}
"""What is an error everywhere."""
QUERIES, DOCUMENTS = ("encode_query", "encode_queries", "think"), ("encode_document", "encode_corpus")


class FuzzedTypes:
    """Texts in containers of every kind, at every entry point."""

    def __init__(self, counts: dict[str, int]) -> None:
        self.name, self.counts = "fuzz/types", counts
        self.encoder: Any = None

    def absent(self) -> str:
        return ""

    def prepare(self, folder: Path) -> None:
        from search_r3_mteb import SearchR3Encoder
        from tests.train.loops import byte_folder

        settings = {"max_reasoning_tokens": 2, "mode": "direct", "show_progress_bar": False}
        self.encoder = SearchR3Encoder(str(byte_folder(folder / "model")), **settings)

    def draw(self, rng: random.Random) -> Case:
        kind = rng.choice([*LISTS, *TABLES, *NEVER])
        texts = [text(rng, surrogates=False)[:80] for _ in range(rng.randrange(1, 5))]
        return {"kind": kind, "texts": texts, "entry": rng.choice([*QUERIES, *DOCUMENTS])}

    def attempt(self, case: Case, place: Path) -> Outcome:
        kind, texts, entry = case["kind"], case["texts"], case["entry"]
        make = (LISTS | TABLES | NEVER)[kind]
        call = getattr(self.encoder, entry)
        answer = ask(lambda: call(make(texts)))
        if answer.failed is not None:
            return answer.failed
        meant = kind in LISTS or (kind in TABLES and entry in DOCUMENTS)
        if answer.message is not None:
            return failure("refused", f"{entry}({kind}): {answer.message}") if meant else Outcome("refused")
        if not meant:
            return failure("silent", f"{entry}({kind}) gave {np.shape(answer.value)} for {texts}")
        found = np.array([one.vector for one in answer.value]) if entry == "think" else np.asarray(answer.value)
        texts = (
            [one.strip() for one in texts] if kind in TABLES else texts
        )  # a title or none is joined with white space
        wanted = np.array([self._one(one, entry) for one in texts])
        if found.shape != wanted.shape or not np.allclose(found, wanted, atol=_CLOSE):
            return failure("silent", f"{entry}({kind}) gave other vectors for {texts}")
        return Outcome("right")

    def _one(self, given: str, entry: str) -> Any:
        if entry == "think":
            return self.encoder.think([given])[0].vector
        return self.encoder.encode_document(given) if entry in DOCUMENTS else self.encoder.encode_query(given)


class FuzzedSettings(OnModel):
    """Values of every type for the encoder's settings: kept as they are, or an error."""

    def __init__(self, counts: dict[str, int]) -> None:
        super().__init__("fuzz/settings", counts)

    def draw(self, rng: random.Random) -> Case:
        from search_r3_mteb.encoder.settings import EncoderSettings

        names = [*get_type_hints(EncoderSettings), "revision", "no_such_setting"]
        given = value(rng) if rng.random() < 0.9 else None
        return {"name": rng.choice(names), "value": given.replace("/", "_") if isinstance(given, str) else given}

    def attempt(self, case: Case, place: Path) -> Outcome:
        from search_r3_mteb import SearchR3Encoder
        from search_r3_mteb.encoder.settings import EncoderSettings

        name, given = case["name"], case["value"]
        with contextlib.chdir(place):  # a folder may be named
            answer = ask(lambda: SearchR3Encoder(self.model, **{name: given}))
        if answer.failed is not None:
            return answer.failed
        if answer.message is not None:
            named = any(word in answer.message for word in (name, str(given)))
            return Outcome("refused") if named else failure("unnamed", f"{name}={given!r}: {answer.message}")
        hints = get_type_hints(EncoderSettings) | {"revision": str | None}
        if name not in hints:
            return failure("silent", "an unknown setting was taken")
        kinds = [get_origin(kind) or kind for kind in (get_args(hints[name]) or (hints[name],))]
        words = [
            word for kind in (hints[name], *get_args(hints[name])) for word in get_args(kind) if isinstance(word, str)
        ]
        fits = any(type(given) is kind for kind in kinds) or given in words or (float in kinds and type(given) is int)
        fits |= Mapping in kinds and isinstance(given, Mapping)
        kept = getattr(answer.value._settings, name, given)
        return Outcome("kept") if fits and kept == given else failure("silent", f"{name}: {given!r} became {kept!r}")
