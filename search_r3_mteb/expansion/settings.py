"""Settings of query expansion."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path
from types import NoneType
from typing import Any

from search_r3_mteb.encoder.checkpoints import Dtype
from search_r3_mteb.encoder.setting_types import (
    check_device_name,
    check_flag,
    check_kind,
    check_names,
    check_number,
    check_whole_number,
)
from search_r3_mteb.expansion.methods import CONTEXT, QUERY, Method


@dataclass(frozen=True)
class ExpansionSettings:
    """Settings of a writer and an encoder. Lengths are in tokens; None is the method's own value where it has one.

    `samples` texts are written per query, each of at most `max_reasoning_tokens`; `temperature` 0 is greedy. `weight`
    is that of the query against the texts within the method's rule, `anchor` (lambda) replaces the rule by
    normalise(query + lambda x expanded); see `rules.py`. `feedback_documents`: the nearest documents that feedback and
    Rocchio use. `prompt` takes the place of the method's, with the slot {query} (and {context} for feedback).
    `max_length`, `dtype` and `batch_tokens` are those of `EncoderSettings`, for a Search-R3 encoder; the last two also
    for the writer. `task_prompts`: an MTEB task's own instruction goes to a Search-R3 encoder and its writer.
    `verify`: weights are compared with the folders' manifests, where there are any.

    In float32 no text depends on the other queries. In bfloat16 and float16, the type of many folders, most texts do:
    the next token often hangs on the last digits, and every further one on it. `batch_invariant` True: a writer's words
    are the same whatever the other queries and `batch_tokens` (which it ignores), on one device with one number of
    threads, and so are a Search-R3 encoder's vectors; see `EncoderSettings`. A model that the decode loop refuses then
    writes for one query at a time. None: the writer's batches are not invariant, the encoder's are as its own default.
    """

    samples: int | None = None
    max_reasoning_tokens: int = 128  # query2doc's limit; HyDE's paper has 512
    temperature: float | None = None
    seed: int = 0
    weight: float | None = None
    anchor: float | None = None
    feedback_documents: int = 3
    prompt: str | None = None
    task_prompts: bool = True
    dtype: Dtype = "auto"
    device: str | None = None
    batch_tokens: int = 16384
    batch_invariant: bool | None = None
    max_length: int | None = None
    cache_folder: Path | str | None = None
    show_progress_bar: bool | None = None
    trust_remote_code: bool = False
    probe: bool = True
    verify: bool = False

    def __post_init__(self) -> None:
        for name in ("max_reasoning_tokens", "seed", "feedback_documents", "batch_tokens"):
            check_whole_number(name, getattr(self, name))
        for name in ("samples", "max_length"):
            check_whole_number(name, getattr(self, name), optional=True)
        for name in ("temperature", "weight", "anchor"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name))
        for name in ("task_prompts", "trust_remote_code", "probe", "verify"):
            check_flag(name, getattr(self, name))
        for name in ("show_progress_bar", "batch_invariant"):
            check_flag(name, getattr(self, name), optional=True)
        check_device_name(self.device)
        check_kind("cache_folder", self.cache_folder, (str, PathLike, NoneType), "a folder (str or Path), or None")
        check_kind("prompt", self.prompt, (str, NoneType), "a text with the slot {query}, or None")
        least = {"max_reasoning_tokens": 0, "feedback_documents": 1, "batch_tokens": 1, "samples": 1, "max_length": 1}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise ValueError(f"{name}={value} must be at least {bound}.")
        for name in ("temperature", "weight", "anchor"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise ValueError(f"{name}={value!r} must be 0 or a positive number.")

    def temperature_of(self, method: Method) -> float:
        """The temperature that is sampled at."""
        return float(method.temperature if self.temperature is None else self.temperature)

    def samples_of(self, method: Method) -> int:
        """Number of texts per query; at temperature 0 all would be the same, so there is one."""
        greedy = self.temperature_of(method) == 0
        if self.samples is None:
            return 1 if greedy else method.samples
        if greedy and self.samples > 1:
            raise ValueError(
                f"samples={self.samples} at temperature 0 would be the same text {self.samples} times. Set a "
                "temperature, such as 0.7, or samples=1."
            )
        return self.samples

    def check_method(self, method: Method, ordinary_encoder: bool = False) -> None:
        """Raises ValueError for settings that this method would not use, or uses in another form.

        `ordinary_encoder`: beside it stands a folder of sentence-transformers, which has settings of its own.
        """
        changed = {f.name for f in fields(self) if getattr(self, f.name) != f.default}
        if found := sorted(changed & unused_by(method)):
            raise ValueError(f"The method {method.name!r} does not use {', '.join(found)}. Leave it out.")
        if ordinary_encoder and (found := sorted(changed & unused_by(method, True))):
            raise ValueError(
                f"{', '.join(found)} would change nothing: an encoder of sentence-transformers runs as its folder "
                "says. Leave it out."
            )
        self.samples_of(method)
        if self.weight is not None and method.rule != "passages" and self.weight != int(self.weight):
            raise ValueError(
                f"weight={self.weight!r}: the method {method.name!r} repeats the query so many times before a text, so "
                "it must be a whole number. For another proportion set anchor."
            )
        if self.weight is not None and self.anchor is not None and method.rule == "passages":
            raise ValueError(
                f"weight={self.weight!r} and anchor={self.anchor!r} both say how much the query counts beside the "
                "passages. Give one of them."
            )
        if self.prompt is not None:
            slots = (QUERY, CONTEXT) if method.needs_corpus else (QUERY,)
            for slot in slots:
                if self.prompt.count(slot) != 1:
                    raise ValueError(f"prompt={self.prompt!r:.100} must hold {slot} exactly once: it is replaced.")

    @classmethod
    def from_keywords(cls, keywords: Mapping[str, Any]) -> "ExpansionSettings":
        """Settings from keyword arguments; TypeError for an unknown one, with the valid ones."""
        check_names(keywords, cls, "Query expansion")
        return cls(**keywords)


def unused_by(method: Method, ordinary_encoder: bool = False) -> set[str]:
    """Names of settings that change nothing under this method, and are refused.

    With an `ordinary_encoder`, a folder of sentence-transformers, so do those that only a Search-R3 encoder has.
    """
    found = set() if method.needs_corpus else {"feedback_documents"}
    if not method.needs_writer:
        found |= {"samples", "weight", "prompt", "temperature", "max_reasoning_tokens", "seed"}
    if ordinary_encoder:
        found |= {"max_length", "task_prompts"}
        found |= set() if method.needs_writer else {"dtype", "batch_tokens", "batch_invariant", "probe"}
    return found
