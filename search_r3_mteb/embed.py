"""Embedding of documents or queries into a file of vectors, part by part."""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from search_r3_mteb.atomic import write_array
from search_r3_mteb.disk import naming
from search_r3_mteb.encoder.chunks import CHUNK
from search_r3_mteb.encoder.documents import join_title
from search_r3_mteb.files import Columns, iter_documents, iter_queries
from search_r3_mteb.files.precisions import (
    Precision,
    Ranges,
    RunningRanges,
    dtype_of,
    needs_ranges,
    quantised,
    read_ranges,
    width_of,
)
from search_r3_mteb.files.vectors import VectorFile, check_output, ranges_file, written_vectors
from search_r3_mteb.search.arrays import Vectors

if TYPE_CHECKING:
    from search_r3_mteb.encoder.encoder import SearchR3Encoder
    from search_r3_mteb.encoder.thoughts import Thought

Named: TypeAlias = tuple[list[str], list[str]]  # ids and texts
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EmbedPlan:
    """What is embedded, and how it is written.

    `role` queries reason in mode "reason", documents never. `dim` keeps the first `dim` dimensions, normalised again.
    `calibration` is a .npy of float vectors, or a .ranges.npy, for precisions "int8" and "uint8" alone: without it the
    ranges are those of the vectors themselves. `think` collects the thoughts, for display.
    """

    source: str | Path
    output: Path
    role: Literal["query", "document"] = "query"
    columns: Columns | None = None
    precision: Precision = "float32"
    dim: int | None = None
    calibration: Path | None = None
    think: bool = False

    def check(self, settings: Mapping[str, Any]) -> None:
        """Raise ValueError and OSError for what cannot be done or written, before any work."""
        if self.think and not self.reasons(settings):
            raise ValueError(
                f"--show-reasoning was given, but role {self.role!r} in mode {settings.get('mode')!r} does not reason. "
                "Use --role query --mode reason, or leave the option out."
            )
        if self.calibration is not None and not needs_ranges(self.precision):
            raise ValueError(
                f"--calibration {self.calibration} is for int8 and uint8, whose ranges it gives, and would change "
                f"nothing in {self.precision}. Leave it out."
            )
        if self.dim is not None and settings.get("truncate_dim") is not None:
            raise ValueError(
                f"--dim {self.dim} and truncate_dim={settings['truncate_dim']} say the same thing twice. Leave one out."
            )
        check_output(self.output, self.source)
        if self.calibration is not None and not self.calibration.is_file():
            raise FileNotFoundError(f"--calibration {self.calibration}: there is no such file.")

    def reasons(self, settings: Mapping[str, Any]) -> bool:
        """Whether there are thoughts."""
        return self.role == "query" and settings.get("mode", "reason") == "reason"


@dataclass(frozen=True)
class Embedded:
    """The shape that was written, the seconds it took, and each query with its thought where they were asked for."""

    shape: tuple[int, int]
    seconds: float
    thoughts: list[tuple[str, "Thought"]] = field(default_factory=list)


def embed_file(model: str, plan: EmbedPlan, settings: Mapping[str, Any]) -> Embedded:
    """Embed the texts of a file, pipe or folder into a file of vectors (see `files.vectors`).

    `settings` are those of SearchR3Encoder. Vectors are written part by part: neither they nor the texts need room in
    memory, ids do. Raises ValueError and OSError, before the model is loaded where possible.
    """
    plan.check(settings)
    parts = _parts(plan)
    first = next(parts)  # what is wrong with the beginning shows now, and so does a place that cannot be written to
    with written_vectors(plan.output) as file:
        from search_r3_mteb.encoder.encoder import SearchR3Encoder

        encoder = SearchR3Encoder(model, **{**settings, **({} if plan.dim is None else {"truncate_dim": plan.dim})})
        ranges = None if plan.calibration is None else read_ranges(plan.calibration, encoder.dim, plan.precision)
        if ranges is not None:
            logger.info("The ranges of %s are those of %s.", plan.precision, plan.calibration)
        file.begin(dtype_of(plan.precision), width_of(plan.precision, encoder.dim))
        start = time.perf_counter()
        work = _Work(encoder, plan, plan.reasons(settings))
        if needs_ranges(plan.precision) and ranges is None:
            ranges = work.write_twice(file, chain([first], parts))
        else:
            work.write(file, chain([first], parts), ranges)
    if ranges is not None:
        write_array(ranges_file(plan.output), ranges)
    shape = (work.rows, width_of(plan.precision, encoder.dim))
    return Embedded(shape, time.perf_counter() - start, work.thoughts)


def _parts(plan: EmbedPlan) -> Iterator[Named]:
    """Ids and texts of the input, some at a time."""
    texts: Iterator[tuple[str, str]]
    if plan.role == "query":
        texts = iter(iter_queries(plan.source, plan.columns))
    else:
        documents = iter_documents(plan.source, plan.columns)
        texts = ((each.id, join_title(each.title, each.text)) for each in documents)
    while part := list(islice(texts, CHUNK[plan.role])):
        yield [id_ for id_, _ in part], [text for _, text in part]


class _Work:
    """The encoding of parts, and what it leaves."""

    def __init__(self, encoder: "SearchR3Encoder", plan: EmbedPlan, reasons: bool) -> None:
        self.encoder, self.plan, self.reasons = encoder, plan, reasons
        self.rows = 0
        self.thoughts: list[tuple[str, Thought]] = []

    def write(self, file: VectorFile, parts: Iterable[Named], ranges: Ranges | None) -> None:
        """Encode and write part by part."""
        for ids, texts in parts:
            vectors, reasonings = self._encoded(texts)
            file.write(ids, quantised(vectors, self.plan.precision, ranges), reasonings)

    def write_twice(self, file: VectorFile, parts: Iterable[Named]) -> Ranges:
        """Encode all parts into a temporary file beside the output, and write them by their own ranges."""
        running, precision, kept = RunningRanges(), self.plan.precision, []
        with naming(self.plan.output), TemporaryFile(dir=self.plan.output.parent) as whole:
            for ids, texts in parts:
                vectors, reasonings = self._encoded(texts)
                running.add(vectors)
                whole.write(vectors.tobytes())
                kept.append((ids, reasonings))
            ranges = running.ranges(precision, str(self.plan.output))
            whole.seek(0)
            for ids, reasonings in kept:
                data = whole.read(len(ids) * self.encoder.dim * 4)
                vectors = np.frombuffer(data, np.float32).reshape(len(ids), self.encoder.dim)
                file.write(ids, quantised(vectors, precision, ranges), reasonings)
        logger.info("The ranges of %s are those of the %d vectors themselves.", precision, running.count)
        return ranges

    def _encoded(self, texts: list[str]) -> tuple[Vectors, list[str] | None]:
        self.rows += len(texts)
        if self.reasons:
            thoughts = self.encoder.think(texts)
            if self.plan.think:
                self.thoughts += zip(texts, thoughts, strict=True)
            return np.stack([each.vector for each in thoughts]), [each.text for each in thoughts]
        encode = self.encoder.encode_query if self.plan.role == "query" else self.encoder.encode_document
        return encode(texts), None
