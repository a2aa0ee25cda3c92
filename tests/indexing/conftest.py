"""A tiny encoder, documents, and the answers that a search without an index gives."""

import numpy as np
import pytest

from search_r3_mteb import SearchIndex, SearchR3Encoder
from search_r3_mteb.encoder.documents import join_title

WORDS = ["sea", "moon", "tree", "road", "king", "bird", "fish", "rain", "door", "song"]


@pytest.fixture(scope="session")
def encoder(tiny_tokenizer):
    from search_r3_mteb.encoder.checkpoints import Checkpoint
    from search_r3_mteb.encoder.profiles import Profile
    from tests.conftest import build_model

    checkpoint = Checkpoint(build_model(), tiny_tokenizer, Profile.default(), "tests/tiny")
    return SearchR3Encoder(checkpoint, max_length=512, max_reasoning_tokens=3)


@pytest.fixture(scope="session")
def documents():
    """Thirty of them; every third has a title."""
    return made(30)


def made(count, first=0):
    return [
        {
            "id": f"d{n}",
            "title": f"{WORDS[n % 7]} {n}" if n % 3 == 0 else "",
            "text": f"{WORDS[n % 10]} {WORDS[(n // 10) % 10]} {n}",
        }
        for n in range(first, first + count)
    ]


@pytest.fixture
def built(documents, encoder, tmp_path):
    return SearchIndex.build(documents, encoder, tmp_path / "index")


def expected(encoder, documents, queries, mode, k):
    """Ids and scores by the encoder's own vectors."""
    vectors = encoder.encode_document([join_title(each["title"], each["text"]) for each in documents])
    if mode == "reason":
        asked = np.stack([thought.vector for thought in encoder.think(queries)])
    else:
        asked = SearchR3Encoder(encoder.checkpoint, mode="direct", max_length=512).encode_query(queries)
    scores = asked.astype(np.float64) @ vectors.astype(np.float64).T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return [[(documents[row]["id"], score[row]) for row in rows] for score, rows in zip(scores, order, strict=True)]


def pairs(results):
    return [[(hit.id, hit.score) for hit in result.hits] for result in results]


def same(found, wanted):
    assert [[id_ for id_, _ in hits] for hits in found] == [[id_ for id_, _ in hits] for hits in wanted]
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose([score for _, score in one], [score for _, score in other], atol=1e-6)
