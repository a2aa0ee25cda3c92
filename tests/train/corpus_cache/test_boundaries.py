"""Details of the cache that a small change of the code would move without notice."""

import json
import logging
import time

import numpy as np
import pytest

from tests.train.corpus_cache.test_settings import N, build, encode, error_of, hits, moved
from tests.vectors import unit
from train.corpus_cache import state
from train.corpus_cache.cache import CorpusCache
from train.corpus_cache.drift_map import DriftMap
from train.corpus_cache.files import MANIFEST, _checksum
from train.corpus_cache.neighbor_graph import LEAF, _leaves, build_graph
from train.corpus_cache.refresh_policies import Hits
from train.corpus_cache.row_ages import Age
from train.corpus_cache.texts import CorpusTexts


def test_an_array_of_objects_is_not_unpickled(tmp_path):
    """A cache is read from wherever a run folder came from: a pickle in it could run anything."""
    cache = build(tmp_path, policy="none")
    del cache
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    del manifest["checksum"]
    row_step = manifest["arrays"]["row_step"]
    file = tmp_path / manifest["files"]["row_step"]
    np.save(file, np.array([{"an": "object"}] * N, dtype=object), allow_pickle=True)
    row_step |= {"dtype": "|O", "header": file.read_bytes()[:128].decode("latin-1")}
    file.write_bytes(file.read_bytes()[:128] + bytes(8 * N))
    manifest["checksum"] = _checksum(manifest)
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    corpus = CorpusTexts([f"document {row}" for row in range(N)], token_counts=[1] * N)
    with pytest.raises(ValueError, match=r"pickle|Python objects"):
        CorpusCache.load(tmp_path, corpus, fingerprint="", dim=2)


@pytest.mark.parametrize("n", [4096, 4097, 8195])
def test_the_exact_graph_has_no_gap_between_its_blocks(n):
    vectors = unit(np.random.default_rng(0).normal(size=(n, 3))).astype(np.float32)
    neighbors = np.full((n, 2), -7, dtype=np.int32)
    build_graph(vectors, neighbors)
    rows = np.unique(np.array([0, 1, 4094, 4095, 4096, 8191, 8192, n - 1]).clip(0, n - 1))
    near = vectors[rows] @ vectors.T
    near[np.arange(len(rows)), rows] = -np.inf
    assert np.array_equal(neighbors[rows], np.argsort(-near, axis=1)[:, :2])


@pytest.mark.parametrize("n", [LEAF, LEAF + 1, 4 * LEAF + 3])
def test_leaves_part_the_rows(n):
    vectors = unit(np.random.default_rng(0).normal(size=(n, 4))).astype(np.float32)
    leaves = _leaves(vectors, np.random.default_rng(1))
    assert np.array_equal(np.sort(np.concatenate(leaves)), np.arange(n)), "every row is in one leaf"
    sizes = [len(leaf) for leaf in leaves]
    assert max(sizes) <= LEAF
    assert sizes == [LEAF] if n == LEAF else min(sizes) >= LEAF // 2
    assert all(np.array_equal(leaf, np.sort(leaf)) for leaf in leaves)


def test_documents_of_frozen_weights_have_no_age(tmp_path):
    assert build(tmp_path, policy="frozen").age(7) == Age(mean=0.0, median=0, p90=0, maximum=0, mapped_share=0.0)
    aged = build(tmp_path / "other").age(7)
    assert aged == Age(mean=7.0, median=7, p90=7, maximum=7, mapped_share=0.0), "the control"


def test_composed_maps_stay_in_float32():
    """At 1,536 dimensions and 64 maps that is 0.6 GB; in float64 it would be twice as much."""
    chart = DriftMap(2)
    for step in (1, 2):
        move, gram = chart.fit(np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32) + 0.1)
        chart.extend(move, gram, chart.keys_after(step, lambda until: 1 + until))
    assert len(chart.keys) == 2
    assert (move.dtype, gram.dtype, chart.composed.dtype, chart.gram.dtype) == (np.float32,) * 4


def test_what_is_said_when_the_budget_grows_and_when_it_cannot(tmp_path, caplog):
    cache = build(tmp_path, error_bound=1e-6, budget_tokens=10, budget_limit_tokens=20)
    with caplog.at_level(logging.WARNING):
        error_of(cache)
        cache.audit(N, lambda texts: -encode(texts), step=3)
    grown, limit = (record.getMessage() for record in caplog.records)
    assert grown.startswith("The audit at step 2 found a reward error of ")
    assert grown.endswith("above the bound of 1e-06: the refresh budget grows from 1 to 2 times the configured one.")
    assert limit.endswith(
        "and the budget is already 2 times the configured one. A full rebuild is advised: cache.rebuild(encode)."
    )


def test_the_report_of_a_refresh(tmp_path):
    def slow(texts):
        time.sleep(0.01)
        return encode(texts)

    report = build(tmp_path, hops=0, sweep_share=0.0).refresh(hits(3, 5), slow, budget=4, step=2)
    assert 0.01 <= report.encode_seconds <= report.seconds
    assert (report.step, report.tokens, report.budget, report.share) == (2, 4, 4, 4 / N)
    assert report.seconds >= report.own_seconds >= 0
    assert (report.map_seconds, report.map_seconds_per_row) == (0.0, 0.0)
    with_map = build(tmp_path / "map", policy="local+map").refresh(hits(3, 5), encode, budget=4, step=2)
    assert 0 < with_map.map_seconds < with_map.seconds
    assert with_map.map_seconds_per_row == pytest.approx(with_map.map_seconds / N)


def test_a_rebuild_is_of_the_last_step_unless_another_is_named(tmp_path):
    cache = build(tmp_path)
    cache.refresh(hits(3), encode, budget=4, step=5)
    cache.rebuild(encode)
    assert (cache.step, set(cache.row_step.tolist())) == (5, {5})
    cache.rebuild(encode, step=8)
    assert (cache.step, set(cache.row_step.tolist())) == (8, {8})


@pytest.mark.parametrize(("rows", "positives", "name"), [([[N]], [[3]], "rows"), ([[3]], [[N]], "positives")])
def test_hits_of_another_corpus_are_named(tmp_path, rows, positives, name):
    wrong = Hits(unit(np.ones((1, 2))), np.array(rows), positives)
    with pytest.raises(ValueError, match=rf"Hits\.{name} names row {N}, but the corpus has rows 0 to {N - 1}"):
        build(tmp_path).refresh(wrong, encode, budget=4)


def test_edges_follow_the_fresh_vectors(tmp_path):
    """Document 20 turns by a right angle, to where document 30 has been: 29 and 31 are its neighbours now."""
    cache = build(tmp_path, hops=0, sweep_share=0.0)
    assert sorted(cache.neighbors[20].tolist()) == [19, 21]
    cache.refresh(hits(20, 29, 31), moved, budget=3)
    assert sorted(cache.neighbors[20].tolist()) == [29, 31]


@pytest.mark.parametrize("block", [1, 7, 39, 40])
def test_the_map_moves_every_row_whatever_the_size_of_its_blocks(tmp_path, monkeypatch, block):
    """Some rows of each block have been encoded since, and keep what they are."""
    refreshed, step = np.array([0, 9, 10, 25, 39]), np.arange(N)

    def drifted(texts):
        return encode(texts) + 0.2

    values = []
    for name, size in (("whole", 1 << 15), ("blocks", block)):
        monkeypatch.setattr(state, "_MAPPED_BYTES", 4 * 2 * size)
        cache = build(tmp_path / name, policy="local+map", hops=0, sweep_share=0.0)
        for number in (1, 2):
            cache.refresh(hits(*refreshed), drifted, budget=len(refreshed), step=number)
        values.append(cache.values(step))
    # One row and many are different products of some processors: the last bit may differ.
    np.testing.assert_allclose(values[0], values[1], rtol=0, atol=2e-7)
    untouched = np.setdiff1d(step, refreshed)
    assert np.abs(values[0] - encode([f"document {row}" for row in range(N)]))[untouched].min(axis=0).max() > 0


def test_the_map_is_fitted_with_the_cache_s_settings(tmp_path):
    settings = {"map_ridge": 0.7, "map_memory": 0.25, "max_maps": 3}
    cache = build(tmp_path, policy="local+map", **settings)
    assert cache._state.drift.settings == cache.settings
    loaded = CorpusCache.load(tmp_path, cache.texts, fingerprint="", dim=2)
    assert loaded._state.drift.settings == cache.settings


def test_the_first_vector_without_a_direction_is_named(tmp_path):
    def broken(texts):
        vectors = encode(texts)
        vectors[[3, 5]] = 0
        return vectors

    with pytest.raises(ValueError, match=r"gave document 3 a vector of length 0\.0 \(2 such vectors\)"):
        CorpusCache.build([f"document {row}" for row in range(N)], broken, folder=tmp_path)
