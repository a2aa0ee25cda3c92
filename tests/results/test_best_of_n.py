"""Best-of-N: the sampled reasoning that becomes a row, against rewards computed again from the encoder's vectors."""

import json

import numpy as np
import pytest

from results.mini.best_of_n import best_rows, main
from search_r3_mteb import SearchR3Encoder
from search_r3_mteb.tasks.hopworld import HopWorld
from tests.train.loops import rl_config

QUERIES = 12


@pytest.fixture
def config(trained, tmp_path):
    return rl_config(tmp_path / "rl", trained / "last", "rollout.group_size=3", "reward.forced_penalty=0.0")


def rewards_of(config, row, seeds):
    """(reasoning, DCG_scaled) of every sample, without the project's search and rewards."""
    world = HopWorld(500)
    texts = {document["text"]: id_ for id_, document in world.corpus.items()}
    found = []
    for seed in range(seeds):
        encoder = SearchR3Encoder(
            config.model.path,
            max_length=96,
            max_reasoning_tokens=8,
            temperature=2.0,
            seed=seed,
            show_progress_bar=False,
        )
        if seed == 0:
            documents = encoder.encode_document(list(texts))
            place = list(texts).index(row["positive"])
        (thought,) = encoder.think([row["query"]])
        scores = documents @ thought.vector
        rank = int((scores > scores[place]).sum())
        reward = max(float(scores[place]), 0.0) / np.log2(rank + 2) if rank < config.reward.k else 0.0
        found.append((thought.text, thought.finished, reward))
    return found


def test_the_best_of_the_samples_is_kept(config):
    rows, found = best_rows(config, QUERIES, gain=0.0)
    assert found["queries"] == QUERIES
    assert 0 < len(rows) == found["kept"] <= QUERIES, "a row at least, or nothing is compared"
    assert found["reward_best"] > found["reward_mean"]
    assert len({row["query"] for row in rows}) == len(rows)
    for row in rows:
        samples = rewards_of(config, row, 3)
        text, finished, reward = max(samples, key=lambda sample: sample[2])
        assert (row["reasoning"], finished) == (text, True)
        assert reward > np.mean([sample[2] for sample in samples])


def test_no_reasoning_gains_more_than_there_is_to_gain(config):
    rows, found = best_rows(config, QUERIES, gain=1.0)
    assert rows == []
    assert found["kept"] == 0


def test_the_command_writes_rows_for_stage_1(config, tmp_path, capsys):
    output = tmp_path / "best.jsonl"
    main(["--config", str(tmp_path / "rl.toml"), "--queries", "4", "--gain", "0", "--output", str(output)])
    report = json.loads(capsys.readouterr().out)
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(rows) == report["kept"]
    assert report["queries"] == 4
    assert all(set(row) == {"query", "positive", "reasoning"} for row in rows)
