"""A small world whose questions only reasoning answers, ranked exactly: what a framework's store must find."""

import asyncio
import importlib
import os
from functools import cache

import numpy as np
import pytest

from search_r3_mteb import HopWorld, SearchR3Encoder
from search_r3_mteb.integrations.embedder import _lock


def needs(*modules):
    """Skip what needs a module that is not installed, and say so; `make test-frameworks` lets nothing be skipped."""
    for module in modules:
        if os.environ.get("SEARCH_R3_FRAMEWORKS"):
            importlib.import_module(module)
        else:
            pytest.importorskip(module, reason=f"{module} is not installed; `make test-frameworks` runs this")


def of_model(kind, **more):
    """A framework's object, or an encoder, over the model of these tests with its settings."""
    return kind("nano", max_reasoning_tokens=48, max_length=128, **more)


@cache
def encoder(mode="reason"):
    return of_model(SearchR3Encoder, mode=mode)


@cache
def world(documents=1000, questions=4):
    """Texts of documents by id, and questions of two hops, which nano answers with its reasoning alone."""
    made = HopWorld(documents)
    asked = [query.text for query in made.queries("test") if query.hops == 2]
    return {key: each["text"] for key, each in made.corpus.items()}, asked[:questions]


@cache
def exact(mode="reason", documents=1000, k=10):
    """For each question the ids of the k nearest documents, by numpy, in float64; and their cosines."""
    corpus, questions = world(documents)
    found = encoder().encode_document(list(corpus.values())).astype(np.float64)
    scores = encoder(mode).encode_query(questions).astype(np.float64) @ found.T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    ids = list(corpus)
    return [[ids[i] for i in row] for row in order], np.take_along_axis(scores, order, axis=1)


def assert_found(ids, documents=1000):
    """`ids` (questions x k) are those of exact search with reasoning, and not those without; no two scores tie."""
    expected, scores = exact("reason", documents)
    assert (np.diff(scores) < -1e-6).all(), "a tie at the tested depth: another world is needed"
    assert ids == expected
    assert ids != exact("direct", documents)[0]


def assert_waits_elsewhere(embed, embedder):
    """The coroutine function `embed` leaves the event loop free while its work has to wait in another thread."""

    async def tried():
        with _lock(embedder.encoder):  # held by this thread: a call in it would go through, one in another waits
            task = asyncio.create_task(embed())
            for _ in range(20):
                await asyncio.sleep(0.005)
            waited = not task.done()
        return waited, await task

    waited, result = asyncio.run(tried())
    assert waited, "it ran in the event loop's own thread, which nothing else can use meanwhile"
    return result
