"""Examination of a machine: versions, device, threads, the model, and one vector that is really computed."""

import platform
import time
from collections.abc import Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import search_r3_mteb
from search_r3_mteb.extensions import installed
from search_r3_mteb.threads import cores, thread_speeds

if TYPE_CHECKING:
    from search_r3_mteb.encoder.encoder import SearchR3Encoder

PACKAGES = (
    *("torch", "transformers", "sentence-transformers", "mteb", "beir"),
    *("faiss-cpu", "peft", "bm25s", "numpy", "pandas"),
)

WARNING = "warning"
BUDGET, LONGEST = 16, 256  # tokens; the second is the encoder's own default
QUESTIONS = (
    "What is the capital of the country of Oslo?",
    "how do vaccines protect against disease",
    "read a file line by line",
    "Who wrote the book about the harbor?",
)


def examine(model: str = "nano") -> Iterator[tuple[str, str]]:
    """Pairs of a name and what was found, one by one: the last ones load `model` and compute a vector.

    Raises what loading raises, after everything that was fine.
    """
    yield "search-r3-mteb", search_r3_mteb.__version__
    yield "Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    for package in PACKAGES:
        yield package, _installed(package)
    for kind, extension in installed():
        usable = ": cannot be used. " not in extension
        yield (kind, extension) if usable else (WARNING, f"{kind} {extension}")
    yield from _devices()
    yield from _model(model)


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing: install search-r3-mteb again"


def _devices() -> Iterator[tuple[str, str]]:
    import torch

    from search_r3_mteb.encoder.checkpoints import default_device

    yield "device", default_device()
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            memory = torch.cuda.get_device_properties(index).total_memory / 2**30
            yield f"cuda:{index}", f"{torch.cuda.get_device_name(index)}, {memory:.0f} GiB"
    yield "threads", f"{torch.get_num_threads()} of {cores()} cores"


def _model(name: str) -> Iterator[tuple[str, str]]:
    import numpy as np

    from search_r3_mteb.encoder.chat_templates import facts, has_template
    from search_r3_mteb.encoder.encoder import SearchR3Encoder
    from search_r3_mteb.encoder.profiles import DATE

    encoder = SearchR3Encoder(name)
    parameters = sum(parameter.numel() for parameter in encoder.model.parameters())
    yield "model", f"{encoder.name}, {parameters / 1e6:,.2f} million parameters, {encoder.settings['dtype']}"
    yield "embed token", f"{encoder.checkpoint.profile.embed_token}, id {encoder.checkpoint.embed_token_id}"
    if has_template(encoder.tokenizer, encoder.checkpoint.profile) and facts(encoder.tokenizer).prints_date:
        yield "date in the prompt", f"fixed to {encoder.checkpoint.profile.date or DATE}, so that vectors do not change"
    start = time.perf_counter()
    [thought] = encoder.think([QUESTIONS[0]], max_reasoning_tokens=BUDGET)
    seconds = time.perf_counter() - start
    yield (
        "one vector",
        f"{thought.vector.shape[0]} dimensions, length {np.linalg.norm(thought.vector):.4f}, {seconds:.2f} s",
    )
    if encoder.model.device.type == "cpu":
        yield "decoding", str(thread_speeds(partial(_tokens_per_second, encoder)))
    end = "ended by the model" if thought.finished else f"token forced at the budget of {BUDGET} tokens"
    yield "its reasoning", f"{thought.text.strip()!r}, {len(thought.token_ids)} tokens, {end}"
    if not thought.finished or not thought.text.strip():
        yield from _silence(encoder)


def _silence(encoder: "SearchR3Encoder") -> Iterator[tuple[str, str]]:
    """A warning where no query has a reasoning: none is written, or no reasoning ends."""
    thoughts = encoder.think(list(QUESTIONS), max_reasoning_tokens=LONGEST)
    if not any(thought.text.strip() for thought in thoughts):
        yield (
            WARNING,
            f"the model wrote no reasoning to any of {len(QUESTIONS)} questions: it says the embed token at once, so "
            "mode 'reason' gives what mode 'direct' gives, or worse. Train it (train/sft.py), or use --mode direct.",
        )
    elif not any(thought.finished for thought in thoughts):
        yield (
            WARNING,
            f"the model ended none of {len(QUESTIONS)} reasonings within {LONGEST} tokens: the embed token was forced, "
            "where the model would not have said it. It may never have learned to: train it (train/sft.py), or raise "
            "--max-reasoning-tokens where its reasonings are longer.",
        )


def _tokens_per_second(encoder: "SearchR3Encoder") -> float:
    """Of a short decode; those that the model ends early count what it wrote."""
    began = time.perf_counter()
    thoughts = encoder.think(list(QUESTIONS), max_reasoning_tokens=8)
    return sum(len(thought.token_ids) + 1 for thought in thoughts) / (time.perf_counter() - began)
