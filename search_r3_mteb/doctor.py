"""Examination of a machine: versions, device, threads, the model, and one vector that is really computed."""

import os
import platform
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import search_r3_mteb
from search_r3_mteb.extensions import installed

PACKAGES = (
    *("torch", "transformers", "sentence-transformers", "mteb", "beir"),
    *("faiss-cpu", "peft", "bm25s", "numpy", "pandas"),
)


def examine(model: str = "nano") -> Iterator[tuple[str, str]]:
    """Pairs of a name and what was found, one by one: the last ones load `model` and compute a vector.

    Raises what loading raises, after everything that was fine.
    """
    yield "search-r3-mteb", search_r3_mteb.__version__
    yield "Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    for package in PACKAGES:
        yield package, _installed(package)
    yield from installed()
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
    yield "threads", f"{torch.get_num_threads()} of {os.cpu_count()} cores"


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
    [thought] = encoder.think(["What is the capital of the country of Oslo?"], max_reasoning_tokens=16)
    seconds = time.perf_counter() - start
    yield (
        "one vector",
        f"{thought.vector.shape[0]} dimensions, length {np.linalg.norm(thought.vector):.4f}, {seconds:.2f} s",
    )
    end = "ended by the model" if thought.finished else "token forced at the budget of 16 tokens"
    yield "its reasoning", f"{thought.text.strip()!r}, {len(thought.token_ids)} tokens, {end}"
