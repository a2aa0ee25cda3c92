"""The load of results/serving/load.py on a small scale: no answer is lost, none is another's."""

import dataclasses

import pytest

from results.serving.load import expected, load, page, pool
from search_r3_mteb.encoder.encoder import SearchR3Encoder
from search_r3_mteb.indexing.index import SearchIndex
from tests.serving.conftest import serving

pytest.importorskip("openai", reason="OpenAI's client is not installed")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    queries, documents = (texts[:16] for texts in pool("nano"))
    encoder = SearchR3Encoder("nano", max_length=128, max_reasoning_tokens=16)
    folder = tmp_path_factory.mktemp("load") / "index"
    rows = [{"id": str(place), "title": "", "text": text} for place, text in enumerate(documents)]
    index = SearchIndex.build(rows, encoder, folder)
    with serving("nano", [folder]) as server:
        yield server, expected(encoder, queries, documents, index)


def test_many_clients_at_once(loaded):
    server, want = loaded
    counts = load(server.url, "nano", want, 8, lambda asked: asked < 3)
    assert counts.failed == []
    assert counts.answered == 24
    assert all(counts.seconds.values())
    assert (counts.swapped, counts.different) == (0, 0)
    assert counts.largest < 1e-6
    assert server.service.held == 0


def test_swapped_answers_would_be_counted(loaded):
    server, want = loaded
    turned = dataclasses.replace(
        want,
        query_vectors=want.query_vectors[::-1],
        document_vectors=want.document_vectors[::-1],
        hits=want.hits[::-1],
    )
    counts = load(server.url, "nano", turned, 2, lambda asked: asked < 6)
    assert counts.swapped >= 10
    assert counts.different == 12


def test_the_page_says_what_was_counted():
    latency = {kind: {"requests": 3, "p50": 0.1, "p95": 0.25, "p99": 0.5} for kind in ("query", "documents", "search")}
    server = {
        "model": "nano", "dtype": "float32", "settings": {"max_reasoning_tokens": 32}, "requests": 9, "clients": 32,
        "seconds": 60.0, "requests_per_second": 0.2, "texts_per_second": 0.4, "lost": 1, "swapped": 2, "different": 3,
        "largest_difference": 1e-7, "peak_memory_mib": 1500, "latency": latency, "latency_of_one_client": latency,
    }  # fmt: skip
    found = {"command": "python load.py", "commit": "0" * 40, "machine": "here", "clients": 32, "servers": [server]}
    text = "\n".join(page(found))
    assert "**1 lost, 2 swapped, 3 with other numbers**" in text
    assert "| nano | search | 3 | 0.10 | 0.25 | 0.10 | 0.25 | 0.50 |" in text
