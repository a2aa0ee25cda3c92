"""Queries with several relevant documents: each epoch takes the next as the row's positive."""

import json

import pytest

from search_r3_mteb.tasks.beir_folder import write_beir
from train.config.data import DataSettings, SourceSettings
from train.data.mixing import load_training_data

# Of p's three documents of the highest grade each takes its turn, and the fourth never; q has two, r has one.
JUDGED = [("p", "a", 2), ("p", "b", 2), ("p", "c", 1), ("p", "d", 2), ("q", "a", 1), ("q", "c", 1), ("r", "d", 1)]
TURNS = {"p": ["a", "b", "d"], "q": ["a", "c"], "r": ["d"]}


def beir(folder):
    write_beir(
        folder,
        corpus=[(id_, "", f"text of {id_}") for id_ in "abcd"],
        queries=[(id_, f"query {id_}") for id_ in "pqr"],
        qrels={"train": JUDGED},
    )
    return SourceSettings(kind="beir", path=str(folder))


def jsonl(folder):
    path = folder / "rows.jsonl"
    rows = [
        {"query": f"query {query}", "positive": [{"id": id_, "text": f"text of {id_}"} for id_ in turns]}
        for query, turns in TURNS.items()
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceSettings(kind="jsonl", path=str(path))


@pytest.mark.parametrize("make", [beir, jsonl])
def test_each_epoch_takes_the_next_positive(tmp_path, make):
    data = load_training_data(DataSettings(sources=(make(tmp_path),)), batch_size=3, seed=0, unit="query")
    found = {query: [] for query in TURNS}
    for _ in range(7):
        batch = data.next_batch()
        assert len({row.query for row in batch}) == 3, "a batch of three is an epoch of three queries"
        for row in batch:
            assert row.positive == f"text of {row.positive_id}"
            assert row.positive_id in dict(row.relevant)
            found[row.query[-1]].append(row.positive_id)
    for query, turns in TURNS.items():
        assert found[query] == [turns[epoch % len(turns)] for epoch in range(7)], query


def test_one_row_for_each_judgement_in_supervised_training(tmp_path):
    data = load_training_data(DataSettings(sources=(beir(tmp_path),)), batch_size=7, seed=0)
    for _ in range(2):
        pairs = [(row.query_id, row.positive_id) for row in data.next_batch()]
        assert sorted(pairs) == sorted((query, document) for query, document, _ in JUDGED)
