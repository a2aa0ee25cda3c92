"""The queries that stage 2 trains on, by the rank that the starting model's direct vector gives their documents."""

import json

import numpy as np
import pytest

from tests.train.loops import rl_config
from train.data import direct_ranks
from train.model import model as models
from train.rl import choose_queries, open_environment
from train.run.run import Run


def begun(folder, model, *overrides):
    run = Run.begin(rl_config(folder, model, *overrides), unit="query")
    return run, open_environment(run, None)


def test_ranks_by_hand_decide_the_rows(tmp_path, model):
    run, environment = begun(tmp_path / "run", model, "data.direct_rank=[3, 40]")
    left = choose_queries(run, environment)
    kept = json.loads((tmp_path / "run" / direct_ranks.FILE).read_text())
    stream = run.data.streams[0]
    rows = [row for _, row in stream.source.numbered()]
    values = environment.cache.values(np.arange(500))
    vectors = models.embed(environment.encoder.engine, run.renderer, [row.query for row in rows])
    inside = set()
    for row, vector in zip(rows, vectors, strict=True):
        own = environment.cache.rows_of(list(environment.corpus.relevance(row)))
        scores = values @ vector
        rank = 1 + int((scores > scores[own].max()).sum())
        found = kept["ranks"][stream.label][row.query]
        assert abs((found or 41) - min(rank, 41)) <= 1, "but for a rounding"
        if found is not None and found >= 3:
            inside.add(row.query)
    assert 0 < len(inside) < len(rows)
    label = stream.label
    assert left[f"{label}_kept"] == len(inside)
    assert left[f"{label}_queries"] == len(rows) == sum(left[f"{label}_{n}"] for n in ("better", "kept", "worse"))
    drawn = {row.query for _ in range(len(rows)) for row in run.data.next_batch()}
    assert drawn == inside
    assert f"{len(inside):,} of {len(rows):,}" in run.notes[-1]


def test_without_the_setting_every_query_is_given(tmp_path, model):
    run, environment = begun(tmp_path / "run", model)
    assert choose_queries(run, environment) == {}
    assert run.data.streams[0].kept is None
    assert not (tmp_path / "run" / direct_ranks.FILE).exists()


def test_nothing_is_left(tmp_path, model):
    run, _ = begun(tmp_path / "run", model, "data.direct_rank=[1, 2]")
    ranks = {run.data.streams[0].label: {"a": None, "b": 1}}
    with pytest.raises(ValueError, match=r"leaves none of the 2 queries .*1 have a relevant document before rank 2"):
        direct_ranks.keep(run.data, ranks, (2, 2))
    with pytest.raises(ValueError, match="has no ranks of the source"):
        direct_ranks.keep(run.data, {"other": {}}, (1, 2))


def test_ranks_that_are_gone_or_of_another_run(tmp_path):
    ranks = {"source": {"a": 2, "b": None}}
    direct_ranks.write(tmp_path, ranks, (2, 40), 500)
    assert direct_ranks.read(tmp_path, (2, 40), 500) == ranks
    with pytest.raises(ValueError, match=r"for ranks \[2, 40\] over 500 documents"):
        direct_ranks.read(tmp_path, (2, 40), 501)
    with pytest.raises(ValueError, match=r"this run has \[1, 40\]"):
        direct_ranks.read(tmp_path, (1, 40), 500)
    with pytest.raises(FileNotFoundError, match=r"begun with data\.direct_rank"):
        direct_ranks.read(tmp_path / "elsewhere", (2, 40), 500)
