"""Hopworld through mteb.evaluate: per hop count and together, from one encoding of the corpus."""

import json

import mteb
import pytest

from search_r3_mteb.tasks.hopworld import HOPS, HopWorld
from search_r3_mteb.tasks.mteb_tasks import HopWorldTask


@pytest.fixture(scope="module")
def last_sentence():
    """Question -> the last sentence of its trace: what a model that composes without error would say."""
    world = HopWorld(500)
    return {query.text: world.corpus[query.positive_id]["text"] for query in world.queries("test")}


def test_oracle_reaches_one_at_every_hop_count(hash_encoder, evaluate, last_sentence):
    encoder = hash_encoder(rewrite=lambda text: last_sentence.get(text, text))
    scores = evaluate(encoder, HopWorldTask(500))
    assert scores["main_score"] == scores["ndcg_at_10"] == 1.0
    assert [scores[f"ndcg_at_10_hop_{hops}"] for hops in HOPS] == [1.0] * 4
    assert [scores[f"recall_at_10_hop_{hops}"] for hops in HOPS] == [1.0] * 4
    assert [scores[f"queries_hop_{hops}"] for hops in HOPS] == [150] * 4
    assert encoder.document_batches == 1  # the corpus is encoded once, not once per hop count


def test_hop_counts_are_scored_apart(hash_encoder, evaluate, last_sentence):
    # Negative control of the test above: composing only one and two hops must show in those scores alone.
    two = {query.text for hops in (1, 2) for query in HopWorld(500).queries("test", hops)}
    encoder = hash_encoder(rewrite=lambda text: last_sentence[text] if text in two else text)
    scores = evaluate(encoder, HopWorldTask(500))
    assert scores["ndcg_at_10_hop_1"] == scores["ndcg_at_10_hop_2"] == 1.0
    assert scores["ndcg_at_10_hop_3"] < 0.3
    assert scores["ndcg_at_10_hop_4"] < 0.3
    mean = sum(scores[f"ndcg_at_10_hop_{hops}"] for hops in HOPS) / 4  # equally many queries per hop count
    assert scores["main_score"] == pytest.approx(mean, abs=1e-5)


def test_result_file_holds_the_hop_counts_and_the_revision(hash_encoder, evaluate, tmp_path):
    cache = mteb.ResultCache(tmp_path)
    evaluate(hash_encoder(), HopWorldTask(500, seed=3, split="dev"), cache)
    (file,) = tmp_path.rglob("HopWorld-v1-500-seed3.json")
    result = json.loads(file.read_text())
    assert result["dataset_revision"] == "generator1-documents500-seed3"
    assert {"ndcg_at_10_hop_1", "ndcg_at_10_hop_4", "recall_at_10_hop_2"} <= set(result["scores"]["dev"][0])


def test_names_and_revisions_differ_by_parameter():
    tasks = [HopWorldTask(), HopWorldTask(500), HopWorldTask(seed=1)]
    assert [task.metadata.name for task in tasks] == ["HopWorld-v1", "HopWorld-v1-500", "HopWorld-v1-seed1"]
    assert len({task.metadata.dataset["revision"] for task in tasks}) == 3


def test_training_split_is_no_test():
    with pytest.raises(ValueError, match="split must be 'test' or 'dev', got 'train'"):
        HopWorldTask(split="train")
