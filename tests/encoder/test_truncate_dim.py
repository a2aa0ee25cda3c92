"""`truncate_dim`: the first dimensions, of unit length again, from the same store, under an identity of its own."""

import numpy as np
import pytest

from search_r3_mteb import SearchR3Encoder
from search_r3_mteb.evaluation.explain import explain
from search_r3_mteb.integrations.sentence_transformers import export

TEXTS = ["a first text", "another one"]


def cut(vectors, dim):
    return vectors[..., :dim] / np.linalg.norm(vectors[..., :dim], axis=-1, keepdims=True)


@pytest.fixture
def whole(tiny_folder):
    return SearchR3Encoder(tiny_folder, max_reasoning_tokens=4)


def encoder(whole, **settings):
    return SearchR3Encoder(whole.checkpoint, max_reasoning_tokens=4, **settings)


@pytest.mark.parametrize("cached", [False, True])
def test_vectors_are_the_first_dimensions_of_unit_length(whole, tmp_path, cached):
    cut_encoder = encoder(whole, truncate_dim=7, cache_folder=tmp_path / "store" if cached else None)
    assert cut_encoder.dim == 7
    for name in ("encode_query", "encode_document"):
        expected = cut(getattr(whole, name)(TEXTS), 7)
        np.testing.assert_allclose(getattr(cut_encoder, name)(TEXTS), expected, atol=1e-6)
        np.testing.assert_allclose(getattr(cut_encoder, name)(TEXTS[0]), expected[0], atol=1e-6)
        assert getattr(cut_encoder, name)([]).shape == (0, 7)
    thoughts = cut_encoder.think(TEXTS)
    np.testing.assert_allclose([each.vector for each in thoughts], cut(whole.encode_query(TEXTS), 7), atol=1e-6)
    assert [each.text for each in thoughts] == [each.text for each in whole.think(TEXTS)]


def test_every_size_reads_the_same_store(whole, tmp_path, monkeypatch):
    encoder(whole, cache_folder=tmp_path).encode_query(TEXTS)
    small = encoder(whole, cache_folder=tmp_path, truncate_dim=5)
    monkeypatch.setattr(small.engine, "reason", None)  # nothing is computed
    np.testing.assert_allclose(small.encode_query(TEXTS), cut(whole.encode_query(TEXTS), 5), atol=1e-6)


def test_the_parts_of_an_anchored_query_are_cut_first(whole):
    [thought] = encoder(whole, truncate_dim=7, anchor=0.5).think(TEXTS[:1])
    direct, reasoned = (
        cut(encoder(whole, mode="direct").encode_query(TEXTS[0]), 7),
        cut(encoder(whole, anchor=None).encode_query(TEXTS[0]), 7),
    )
    np.testing.assert_allclose(thought.direct, direct, atol=1e-6)
    np.testing.assert_allclose(thought.reasoned, reasoned, atol=1e-6)
    mixed = direct + 0.5 * reasoned
    np.testing.assert_allclose(thought.vector, mixed / np.linalg.norm(mixed), atol=1e-6)


def test_a_size_has_an_identity_of_its_own_and_none_changes_nothing(whole):
    small, other = encoder(whole, truncate_dim=7), encoder(whole, truncate_dim=8)
    assert encoder(whole, truncate_dim=None).fingerprint == whole.fingerprint
    assert len({whole.fingerprint, small.fingerprint, other.fingerprint}) == 3
    assert "truncate_dim" not in whole.settings
    assert small.mteb_model_meta.embed_dim == 7
    assert small.mteb_model_meta.experiment_kwargs["truncate_dim"] == 7
    assert whole.mteb_model_meta.embed_dim == 32


@pytest.mark.parametrize("dim", [0, -1, 33])
def test_sizes_that_do_not_exist_are_refused(whole, dim):
    with pytest.raises(ValueError, match=f"truncate_dim={dim} must be from 1 to 32"):
        encoder(whole, truncate_dim=dim)
    with pytest.raises(TypeError, match=r"truncate_dim=7\.0 is of type float"):
        encoder(whole, truncate_dim=7.0)


def test_both_rankings_of_an_explanation_have_the_size(whole):
    found = explain(encoder(whole, truncate_dim=6), [("a", "one"), ("b", "two")], "what?", top=2)
    expected = cut(whole.encode_document(["one", "two"]), 6) @ cut(
        encoder(whole, mode="direct").encode_query("what?"), 6
    )
    scores = {hit.id: hit.score for hit in found.without}
    np.testing.assert_allclose([scores["a"], scores["b"]], expected, atol=1e-6)


def test_an_export_has_whole_vectors_and_says_so(whole, tmp_path):
    with pytest.raises(ValueError, match=r"SentenceTransformer\(folder, truncate_dim=6\)"):
        export(encoder(whole, truncate_dim=6), tmp_path / "exported")
