"""Settings of an encoder, and statistics of what it has done."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args

from search_r3_mteb.encoder.anchoring import Anchor, check_anchor
from search_r3_mteb.encoder.checkpoints import Checkpoint, Dtype
from search_r3_mteb.encoder.setting_types import (
    check_device_name,
    check_flag,
    check_kind,
    check_names,
    check_number,
    check_whole_number,
)
from search_r3_mteb.encoder.thoughts import Thought

Mode = Literal["reason", "direct"]
EngineName = Literal["own", "vllm"]
_DEFAULT_MAX_LENGTH = 512


@dataclass(frozen=True)
class EncoderSettings:
    """Settings of an encoder. Lengths are in tokens.

    `mode` "reason" lets queries reason first, "direct" embeds them as documents are. `max_length` covers a whole prompt
    (default 512, or what the model's window leaves beside the budget); `max_reasoning_tokens` is the budget, 0 for
    none. `temperature` 0 is greedy. `batch_tokens` bounds rows x length of what runs at once.

    What runs together decides in which order sums are taken. In float32 that moves a vector by less than 1e-6, and a
    row says other words only where two tokens tie to that digit. In bfloat16 and float16 it moves vectors by some 1e-3,
    and now and then changes words, with `batch_tokens`, the texts beside a text, the number of threads and the device.
    `batch_invariant` True: a row gets the same words and the same bits whatever the other texts and `batch_tokens`
    (which it ignores), on one device with one number of threads; it takes some two times as long (results/batches).
    None: for the bundled models in half precision, else not. Mixtures of experts cannot have it: ValueError.

    `task_prompts`: an MTEB task's own instruction is put before the query. `cache_folder`: thoughts and vectors are
    kept there and a killed run resumes (off by default). `show_progress_bar` None: on a terminal only. `probe`: a
    checkpoint that is loaded is first run on a few tokens, and refused where the result is not the model's own.
    `verify`: its weights are compared with its manifest, too (`manifest.py`), which reads them twice.

    `engine`: "own", or "vllm", where queries reason in vLLM (docs/vllm.md); `engine_options` are vLLM's `EngineArgs`,
    such as {"tensor_parallel_size": 2}. vLLM forms batches of its own and runs where its build says, so that
    `batch_invariant` and `device` are ValueErrors there.

    `anchor`: the weight of the reasoned vector in a query's normalise(direct + anchor x reasoned) (see `anchoring`),
    None for the reasoned vector alone, "auto" for what the checkpoint's profile recommends: None unless it says more.

    `truncate_dim`: vectors are cut to their first `truncate_dim` dimensions, normalised again (Matryoshka, arXiv
    2205.13147); None for all of them. With an `anchor` both parts are cut and normalised first, and then added. What
    is kept in `cache_folder` is whole, so that every size reads the same rows.
    """

    mode: Mode = "reason"
    dtype: Dtype = "auto"
    device: str | None = None
    batch_tokens: int = 16384
    batch_invariant: bool | None = None
    max_length: int | None = None
    max_reasoning_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0
    anchor: Anchor = "auto"
    truncate_dim: int | None = None
    task_prompts: bool = True
    cache_folder: Path | str | None = None
    show_progress_bar: bool | None = None
    trust_remote_code: bool = False
    probe: bool = True
    verify: bool = False
    engine: EngineName = "own"
    engine_options: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.mode not in ("reason", "direct"):
            raise ValueError(f"mode={self.mode!r} does not exist; it is 'reason' or 'direct'.")
        for name in ("batch_tokens", "max_reasoning_tokens", "seed"):
            check_whole_number(name, getattr(self, name))
        for name in ("max_length", "truncate_dim"):
            check_whole_number(name, getattr(self, name), optional=True)
        check_number("temperature", self.temperature)
        if self.anchor not in ("auto", None):
            check_anchor("anchor", self.anchor)
        for name in ("task_prompts", "trust_remote_code", "probe", "verify"):
            check_flag(name, getattr(self, name))
        for name in ("show_progress_bar", "batch_invariant"):
            check_flag(name, getattr(self, name), optional=True)
        check_device_name(self.device)
        check_kind("cache_folder", self.cache_folder, (str, PathLike, NoneType), "a folder (str or Path), or None")
        if self.max_reasoning_tokens < 0:
            raise ValueError(f"max_reasoning_tokens={self.max_reasoning_tokens} is negative; 0 means no reasoning.")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature!r} must be 0 (greedy) or a positive number.")
        self._check_engine()
        if self.batch_tokens < 1:
            raise ValueError(f"batch_tokens={self.batch_tokens} must be at least 1 token.")

    def _check_engine(self) -> None:
        """Raises ValueError for an engine that does not exist, and for settings that it does not have."""
        check_kind("engine_options", self.engine_options, (Mapping, NoneType), "a mapping of vLLM's options, or None")
        if self.engine not in get_args(EngineName):
            raise ValueError(f"engine={self.engine!r} does not exist; it is one of {', '.join(get_args(EngineName))}.")
        if self.engine == "own" and self.engine_options:
            raise ValueError(
                f"engine_options={dict(self.engine_options)} would change nothing: they are vLLM's, and engine is "
                "'own'. Leave them out, or give engine='vllm'."
            )
        if self.engine == "vllm" and self.device is not None:
            raise ValueError(
                f"device={str(self.device)!r} was given with engine='vllm', whose build decides what it runs on. Leave "
                "device out; CUDA_VISIBLE_DEVICES says which GPUs there are."
            )
        if self.engine == "vllm" and self.batch_invariant:
            raise ValueError(
                "batch_invariant=True was given with engine='vllm', which forms batches of its own, so that a vector "
                "depends on the texts beside it. Use engine='own', or leave batch_invariant out."
            )

    def check_fits(self, checkpoint: Checkpoint, revision: str | None) -> None:
        """Raises ValueError for settings that a checkpoint in memory, which is used as it is, does not have."""
        import torch

        dtype, device = str(checkpoint.model.dtype).removeprefix("torch."), checkpoint.model.device
        wanted = None if self.device is None else torch.device(self.device)
        asked = {
            "revision": (revision, checkpoint.revision, revision in (None, checkpoint.revision)),
            "dtype": (self.dtype, dtype, self.dtype in ("auto", dtype)),
            "device": (self.device, str(device), wanted in (None, device, torch.device(device.type))),
        }
        for name, (given, has, fits) in asked.items():
            if not fits:
                raise ValueError(
                    f"{name}={given!r} was given, but the checkpoint in memory has {has!r}. Load it with "
                    f"search_r3_mteb.encoder.checkpoints.load(..., {name}={given!r}), or leave {name} out."
                )
        if self.verify and not checkpoint.verified:
            raise ValueError(
                "verify=True was given, but the checkpoint in memory was loaded without it. Load it with "
                "search_r3_mteb.encoder.checkpoints.load(..., verify=True), or leave verify out."
            )

    def fit_batch_invariant(self, checkpoint: Checkpoint) -> bool:
        """Whether batches are invariant: as given, or for the bundled models, small as they are, in half precision."""
        if self.batch_invariant is not None:
            return self.batch_invariant
        if self.engine == "vllm":  # forms batches of its own
            return False
        return checkpoint.bundled and bool(checkpoint.model.dtype.itemsize < 4)

    def anchor_of(self, checkpoint: Checkpoint) -> float | None:
        """The anchor of this checkpoint's queries, None for none."""
        return checkpoint.profile.anchor if self.anchor == "auto" else self.anchor

    def fit_dim(self, dim: int) -> int:
        """The length of the vectors of a model that has `dim` dimensions. Raises ValueError for more than it has."""
        if self.truncate_dim is None:
            return dim
        if not 1 <= self.truncate_dim <= dim:
            raise ValueError(
                f"truncate_dim={self.truncate_dim} must be from 1 to {dim}, the dimensions that this model has."
            )
        return self.truncate_dim

    def fit_max_length(self, checkpoint: Checkpoint) -> int:
        """The prompt's length in tokens: the given one, or what fits; both modes have one, as they share documents."""
        # The embed token, and in vLLM the position behind it.
        budget = self.max_reasoning_tokens + (2 if self.engine == "vllm" else 1)
        if self.max_length is not None:
            check_window(
                checkpoint, self.max_length + (budget if self.mode == "reason" else 0), self.max_reasoning_tokens
            )
            return self.max_length
        if checkpoint.window is None:
            return _DEFAULT_MAX_LENGTH
        if checkpoint.window > budget:
            return min(_DEFAULT_MAX_LENGTH, checkpoint.window - budget)
        if self.mode == "reason":
            check_window(checkpoint, 1 + budget, self.max_reasoning_tokens)
        return min(_DEFAULT_MAX_LENGTH, checkpoint.window)

    @classmethod
    def from_keywords(cls, keywords: Mapping[str, Any]) -> "EncoderSettings":
        """Settings from keyword arguments; TypeError for an unknown one, with the valid ones."""
        check_names(keywords, cls, "SearchR3Encoder")
        return cls(**keywords)


def check_window(checkpoint: Checkpoint, needed: int, budget: int) -> None:
    """Raises ValueError when the model was made for fewer than `needed` positions; `budget` is the reasoning's."""
    if checkpoint.window is not None and needed > checkpoint.window:
        raise ValueError(
            f"{needed} positions are needed for the prompt (max_length), the reasoning (max_reasoning_tokens={budget}) "
            f"and the embed token, but {checkpoint.name} was made for {checkpoint.window}. Lower max_length or "
            "max_reasoning_tokens."
        )


@dataclass
class Statistics:
    """What an encoder has done since `reset`. Times are seconds of the model's work, tokenisation included.

    `reasoning_tokens` were generated, `given_tokens` are those of the reasonings that were `given`.
    """

    queries: int = 0
    reasoning_tokens: int = 0
    forced: int = 0
    given: int = 0
    given_tokens: int = 0
    documents: int = 0
    query_seconds: float = 0.0
    document_seconds: float = 0.0

    @property
    def forced_share(self) -> float:
        """Share of the queries, those that did not reason among them, whose embed token was forced; 0 of none."""
        return self.forced / self.queries if self.queries else 0.0

    def count(self, thoughts: Sequence[Thought]) -> None:
        """Add queries that were reasoned about."""
        given = [thought for thought in thoughts if thought.given]
        self.queries += len(thoughts)
        self.forced += sum(not thought.finished for thought in thoughts)
        self.given += len(given)
        self.given_tokens += sum(len(thought.token_ids) for thought in given)
        self.reasoning_tokens += sum(len(thought.token_ids) for thought in thoughts if not thought.given)

    def reset(self) -> None:
        """Set all counts to zero."""
        self.__init__()  # type: ignore[misc]
