"""Abstention: a query reasons exactly where the margin of its direct ranking is below the bound."""

import json
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from search_r3_mteb.encoder.encoder import SearchR3Encoder
from search_r3_mteb.encoder.engine import Engine
from search_r3_mteb.evaluation.abstaining import AbstainingSearch, SearchSettings, is_unsure, top_margins
from search_r3_mteb.evaluation.evaluate import evaluate
from search_r3_mteb.evaluation.queries import as_scored
from tests.evaluation.conftest import write_little

SETTINGS = {"max_reasoning_tokens": 4, "max_length": 256}
WORDS = ["silver", "river", "garden", "stone", "winter", "harbour"]


@pytest.fixture
def beir(tmp_path):
    return write_little(tmp_path / "little", WORDS, 18)


def margins_by_hand(checkpoint, beir):
    direct = SearchR3Encoder(checkpoint, mode="direct", **SETTINGS)
    documents = direct.encode_document([json.loads(line) for line in (beir / "corpus.jsonl").open()])
    queries = direct.encode_query([json.loads(line)["text"] for line in (beir / "queries.jsonl").open()])
    return [sorted(map(float, documents @ query))[-1] - sorted(map(float, documents @ query))[-2] for query in queries]


def test_margins_by_hand():
    found = top_margins([{"a": 0.5, "b": 0.75, "c": 0.25}, {"a": 0.5, "b": 0.5}, {"a": 1.0}, {}])
    assert found.tolist() == [0.25, 0.0, np.inf, np.inf]
    assert is_unsure(found, 0.25).tolist() == [False, True, False, False]
    assert is_unsure(found, 0.2500001).tolist() == [True, True, False, False]
    assert is_unsure(found, 0.0).tolist() == [False] * 4


def test_only_unsure_queries_reason(checkpoint, beir, tmp_path, monkeypatch):
    margins = margins_by_hand(checkpoint, beir)
    bound = sorted(margins)[3]  # three of six are below
    assert len(set(margins)) == 6
    asked = []
    reason = Engine.reason
    monkeypatch.setattr(
        Engine,
        "reason",
        lambda self, prompts, *rest, **named: asked.extend(prompts) or reason(self, prompts, *rest, **named),
    )
    output = tmp_path / "out"
    arguments = {"output": output, "mode": "reason"}
    task = [f"beir:{beir}"]
    [row] = evaluate([checkpoint], task, settings=SETTINGS | {"abstain_margin": bound}, **arguments)
    assert len(asked) == 3
    assert (row["mode"], row["abstain_margin"], row["reasoned_share"]) == ("if-unsure", bound, 0.5)
    mixed = records(output, row)
    own, direct = (
        records(output, evaluate([checkpoint], task, mode, output, settings=SETTINGS)[0])
        for mode in ("reason", "direct")
    )
    for place, margin in enumerate(margins):
        side = own if margin < bound else direct
        assert [each["id"] for each in mixed[place]["top"]] == [each["id"] for each in side[place]["top"]]
        assert mixed[place]["ndcg_at_10"] == side[place]["ndcg_at_10"]
        assert mixed[place]["reasoning"] == (own[place]["reasoning"] if margin < bound else None)
        assert mixed[place]["reasoning_tokens"] == (own[place]["reasoning_tokens"] if margin < bound else 0)
    assert [each["top"] for each in own] != [each["top"] for each in direct]
    assert row["reasoning_tokens_per_query"] == pytest.approx(
        sum(each["reasoning_tokens"] for each, margin in zip(own, margins, strict=True) if margin < bound) / 6
    )
    asked.clear()
    assert evaluate([checkpoint], task, settings=SETTINGS | {"abstain_margin": bound}, **arguments) == [row]
    assert asked == []
    assert len(json.loads((output / "summary.json").read_text())) == 3


def records(output, row):
    return [json.loads(line) for line in (output / row["queries_file"]).read_text().splitlines()]


def test_ends_of_the_scale(checkpoint, beir, tmp_path):
    task = [f"beir:{beir}"]

    def score(mode, **settings):
        [row] = evaluate([checkpoint], task, mode, tmp_path / "out", settings=SETTINGS | settings)
        return row["ndcg_at_10"], row["reasoning_tokens_per_query"]

    assert score("reason", abstain_margin=float(2)) == score("reason")
    nothing = score("reason", abstain_margin=0.0)
    assert nothing == score("direct")
    anchored = score("reason", abstain_margin=2.0, anchor=0.5)
    assert anchored == score("reason", anchor=0.5)


def left_out(*, identical_ids, first):
    return partial(as_scored, SimpleNamespace(ignore_identical_ids=identical_ids, skip_first_result=first))


def test_what_the_task_does_not_score_is_no_document_of_the_margin(checkpoint):
    encoder, direct = (SearchR3Encoder(checkpoint, mode=mode, **SETTINGS) for mode in ("reason", "direct"))
    search = AbstainingSearch(encoder, direct, 0.5)
    with pytest.raises(ValueError, match="there are none yet"):
        search._ranked(["a"], np.zeros((1, 32), np.float32), 2, None)
    search._ids = ["a", "b", "c"]
    search._vectors = np.array([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8]], np.float32)
    query = np.array([[1.0, 0.0]], np.float32)
    assert search._margins(["a"], query, None).tolist() == pytest.approx([0.2])
    search.as_scored = left_out(identical_ids=True, first=False)
    assert search._margins(["a"], query, None).tolist() == pytest.approx([0.2])
    search._vectors = np.array([[1.0, 0.0], [0.8, 0.6], [0.28, 0.96]], np.float32)
    assert search._margins(["a"], query, None).tolist() == pytest.approx([0.52])
    assert search._margins(["a"], query, {"a": ["c", "b"]}).tolist() == pytest.approx([0.52])
    assert search._margins(["z"], query, None).tolist() == pytest.approx([0.2])
    search.as_scored = left_out(identical_ids=False, first=True)
    assert search._margins(["z"], query, None).tolist() == pytest.approx([0.52])
    search.as_scored = left_out(identical_ids=True, first=True)
    assert search._margins(["b"], query, None).tolist() == [np.inf], "of a and c the first is left out"


def test_identity_and_mistakes(checkpoint, tmp_path):
    encoder, direct = (SearchR3Encoder(checkpoint, mode=mode, **SETTINGS) for mode in ("reason", "direct"))
    kwargs = AbstainingSearch(encoder, direct, 0.25).mteb_model_meta.experiment_kwargs
    assert kwargs["abstain_margin"] == 0.25
    with pytest.raises(ValueError, match="An encoder of each mode is needed"):
        AbstainingSearch(direct, encoder, 0.25)
    with pytest.raises(ValueError, match="abstain_margin=-1 must be 0"):
        SearchSettings(-1)
    with pytest.raises(TypeError, match="abstain_margin='x'"):
        SearchSettings("x")
    for models, mode, why in [
        ([checkpoint], "direct", "the mode is 'direct'"),
        (["bm25"], "both", "none of the models"),
    ]:
        with pytest.raises(ValueError, match=f"would change nothing: {why}"):
            evaluate(models, ["stdlib"], mode, tmp_path / "out", settings={"abstain_margin": 0.1})
    said = tmp_path / "said.tsv"
    said.write_text("q0\tx\n")
    with pytest.raises(ValueError, match="decides which queries reason, but with said"):
        evaluate([checkpoint], ["stdlib"], output=tmp_path / "out", settings={"abstain_margin": 0.1}, reasoning=said)


def test_the_command_line(call, tiny_folder, beir, tmp_path):
    output = tmp_path / "out"
    code, out, _ = call(
        *("evaluate", "--model", tiny_folder, "--task", f"beir:{beir}", "--output", output),
        *("--max-reasoning-tokens", 4, "--set", "abstain_margin=0.01", "--set", "anchor=0.5"),
    )
    assert code == 0
    assert "if-unsure" in out
    [row] = [row for row in json.loads((output / "summary.json").read_text()) if row["mode"] == "if-unsure"]
    assert (row["abstain_margin"], row["anchor"]) == (0.01, 0.5)
