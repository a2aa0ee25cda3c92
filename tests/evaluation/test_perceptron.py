"""A perceptron on direct query vectors: it begins as the encoder, learns from judgements alone, and is repeatable."""

from dataclasses import replace

import numpy as np
import pytest

from search_r3_mteb.evaluation.perceptron import PerceptronPlan, train_perceptron, training_pairs, with_perceptron
from search_r3_mteb.evaluation.systems import open_systems
from search_r3_mteb.tasks.beir_folder import write_beir
from tests.conftest import save_sentence_transformer

PLAN = PerceptronPlan("unused", epochs=60, batch_size=16, learning_rate=1e-2)


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def world():
    """80 documents, and for each a query: the document's vector under one fixed linear map."""
    rng = np.random.default_rng(0)
    documents = unit(rng.normal(size=(80, 8)))
    queries = unit(documents @ np.linalg.qr(rng.normal(size=(8, 8)))[0])
    return queries, documents, np.stack([np.arange(80), np.arange(80)], axis=1)


def moved(perceptron, vectors):
    import torch

    with torch.inference_mode():
        return perceptron(torch.from_numpy(vectors)).numpy()


def first_hits(queries, documents):
    return float(((queries @ documents.T).argmax(axis=1) == np.arange(len(queries))).mean())


def test_it_begins_as_the_encoder_itself(world):
    queries, documents, pairs = world
    untrained = train_perceptron(queries, documents, pairs, replace(PLAN, epochs=0))
    np.testing.assert_allclose(moved(untrained, queries), queries, atol=1e-6)


def test_it_learns_a_map_that_the_judgements_show(world):
    queries, documents, pairs = world
    found = moved(train_perceptron(queries, documents, pairs, PLAN), queries)
    held = np.arange(80) % 10 == 9  # never trained on
    assert first_hits(found, documents) > first_hits(queries, documents) + 0.2
    before = (queries * documents).sum(axis=1)[held].mean()
    assert (found * documents).sum(axis=1)[held].mean() > before + 0.2


def test_what_does_not_hold_for_held_out_queries_is_not_kept(world):
    queries, documents, pairs = world
    contradicting = documents.copy()
    contradicting[9::10] = queries[9::10]  # of the held-out queries the encoder itself finds the document
    found = moved(train_perceptron(queries, contradicting, pairs, PLAN), queries)
    np.testing.assert_allclose(found, queries, atol=1e-6)
    assert np.abs(moved(train_perceptron(queries, documents, pairs, PLAN), queries) - queries).max() > 0.2


def test_another_relevant_document_is_no_negative(world):
    queries, documents, _ = world
    every = np.array([(query, document) for query in range(4) for document in range(4)])
    found = moved(train_perceptron(queries[:4], documents[:4], every, PLAN), queries)
    np.testing.assert_allclose(found, queries, atol=1e-6)  # nothing is left to tell apart: no loss, no gradient
    one = np.stack([np.arange(4), np.arange(4)], axis=1)
    assert np.abs(moved(train_perceptron(queries[:4], documents[:4], one, PLAN), queries) - queries).max() > 1e-2


def test_the_same_plan_gives_the_same_weights(world):
    first, again, other = (moved(train_perceptron(*world, replace(PLAN, seed=seed)), world[0]) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-4


@pytest.fixture
def folder(tmp_path):
    words = ["silver", "river", "garden", "stone", "winter", "harbour"]
    write_beir(
        tmp_path / "own",
        corpus=[(f"d{n}", "" if n % 2 else "A title", f"the {word}") for n, word in enumerate(words)],
        queries=[(f"q{n}", f"where is the {word}") for n, word in enumerate(words)],
        qrels={
            "train": [("q0", "d0", 1), ("q1", "d1", 2), ("q1", "d2", 0), ("q2", "d2", 1)],
            "test": [("q3", "d3", 1), ("q4", "d4", 1)],
            "one": [("q0", "d0", 1), ("q1", "d1", 0)],
        },
    )
    return tmp_path / "own"


def test_pairs_are_the_relevant_judgements_of_the_split(folder):
    queries, documents, pairs = training_pairs(PerceptronPlan(str(folder)))
    assert queries == ["where is the silver", "where is the river", "where is the garden"]
    assert documents == ["A title the silver", "the river", "A title the garden"]
    assert pairs.tolist() == [[0, 0], [1, 1], [2, 2]]
    with pytest.raises(ValueError, match="1 judged pairs"):
        training_pairs(PerceptronPlan(str(folder), split="one"))


def test_a_system_gets_it_where_it_has_direct_vectors(folder, checkpoint, tiny_tokenizer, tmp_path):
    path = save_sentence_transformer(tiny_tokenizer, tmp_path / "encoder", 0)
    plan = PerceptronPlan(str(folder), epochs=2)
    for spec in (checkpoint, path):
        [system] = open_systems(spec, "direct", {}, tmp_path / "store")
        made = with_perceptron(system, plan)
        assert made.label == f"{system.label}-perceptron"
        others = [with_perceptron(system, replace(plan, seed=1)), with_perceptron(system, replace(plan, epochs=3))]
        assert len({each.fingerprint for each in (system, made, *others)}) == 4
    [reason] = open_systems(checkpoint, "reason", {}, tmp_path / "store")
    [bm25] = open_systems("bm25", "both", {}, tmp_path)
    for system in (reason, bm25):
        with pytest.raises(ValueError, match="stands on direct query vectors"):
            with_perceptron(system, plan)
    with pytest.raises(ValueError, match="no split 'dev'"):
        with_perceptron(system=next(open_systems(checkpoint, "direct", {}, None)), plan=replace(plan, split="dev"))
