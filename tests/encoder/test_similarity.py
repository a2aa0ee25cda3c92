"""Similarities are cosines of vectors of one model, or an error: never NaN, never broadcast."""

import numpy as np
import pytest
import torch

from search_r3_mteb.encoder.encoder import SearchR3Encoder

ROWS = np.array([[3.0, 4.0], [0.0, 2.0]], np.float32)
BAD = {
    "not a number": np.array([[1.0, np.nan]]),
    "infinite": np.array([[1.0, np.inf]]),
    "zero": np.zeros((1, 2)),
    "overflow": np.array([[1e300, 1.0]]),
}
WRONG = {
    "text": "one",
    "texts": ["one", "two"],
    "array of texts": np.array(["one"]),
    "documents": [{"text": "one"}],
    "None": None,
    "bytes": b"one",
    "set": {1.0, 2.0},
    "mapping": {"a": [1.0, 2.0]},
    "ragged": [[1.0, 2.0], [1.0]],
    "flags": np.array([[True, False]]),
    "complex": np.array([[1j, 0]]),
}


@pytest.fixture(params=["similarity", "similarity_pairwise"])
def similarity(request, tiny_checkpoint):
    return getattr(SearchR3Encoder(tiny_checkpoint, mode="direct"), request.param)


@pytest.mark.parametrize("kind", [np.array, torch.tensor, lambda rows: [list(map(float, row)) for row in rows], list])
def test_every_form_of_vectors(tiny_checkpoint, kind):
    encoder = SearchR3Encoder(tiny_checkpoint, mode="direct")
    expected = [[1.0, 0.8], [0.8, 1.0]]
    np.testing.assert_allclose(encoder.similarity(kind(ROWS), ROWS).numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(encoder.similarity_pairwise(kind(ROWS), ROWS[::-1].copy()).numpy(), [0.8, 0.8])
    assert encoder.similarity(ROWS[0], ROWS).shape == (1, 2)
    assert encoder.similarity(ROWS[:0], ROWS).shape == (0, 2)


@pytest.mark.parametrize("name", BAD)
def test_a_row_without_direction_is_named(similarity, name):
    for pair, place in (((BAD[name], ROWS[:1]), "first"), ((ROWS[:1], BAD[name]), "second")):
        with pytest.raises(ValueError, match=f"Row 0 of the {place} vectors .* is not finite or zero"):
            similarity(*pair)


@pytest.mark.parametrize("name", WRONG)
def test_what_are_no_vectors(similarity, name):
    for pair in ((WRONG[name], ROWS), (ROWS, WRONG[name])):
        with pytest.raises(TypeError, match="must be vectors, numbers of shape"):
            similarity(*pair)


def test_other_shapes(similarity):
    with pytest.raises(ValueError, match="first vectors have 2 dimensions, the second 3"):
        similarity(ROWS, np.ones((2, 3)))
    for wrong in (np.ones((2, 2, 2)), np.float32(1.0), [], np.ones((2, 0))):
        with pytest.raises(ValueError, match="has the shape"):
            similarity(ROWS, wrong)


def test_pairs_are_not_broadcast(tiny_checkpoint):
    with pytest.raises(ValueError, match="as many rows on both sides, got 2 and 1"):
        SearchR3Encoder(tiny_checkpoint, mode="direct").similarity_pairwise(ROWS, ROWS[:1])
