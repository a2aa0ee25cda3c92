"""Tuning: every row is what an evaluation with these settings gives, and the best is chosen."""

import json

import numpy as np
import pytest

from search_r3_mteb.encoder.checkpoints import save
from search_r3_mteb.encoder.encoder import SearchR3Encoder
from search_r3_mteb.encoder.engine import Engine
from search_r3_mteb.encoder.profiles import Profile
from search_r3_mteb.evaluation.evaluate import evaluate
from search_r3_mteb.evaluation.tuning import TuningPlan, _best, tune, write_anchor
from search_r3_mteb.evaluation.tuning_runs import Cost
from search_r3_mteb.expansion import writer_encoder
from search_r3_mteb.expansion.feedback import FeedbackEncoder
from search_r3_mteb.expansion.writer import Writer
from tests.evaluation.conftest import write_little
from tests.mteb_running import made_task

SETTINGS = {"max_reasoning_tokens": 4, "max_length": 256}
WORDS = ["silver", "river", "garden", "stone", "winter", "harbour"]


@pytest.fixture
def beir(tmp_path):
    return write_little(tmp_path / "little", WORDS, 18, "dev")


def test_rows_are_what_evaluations_give(checkpoint, beir, tmp_path, monkeypatch):
    plan = TuningPlan(anchors=(1.0, 0.25), shares=(0.5,))
    found = tune(checkpoint, f"beir:{beir}", "dev", tmp_path / "tune", settings=SETTINGS, plan=plan)
    assert json.loads((tmp_path / "tune" / "tune.json").read_text()) == {k: v for k, v in found.items() if k != "file"}
    assert (found["split"], found["queries"], found["documents"]) == ("dev", 6, 18)
    assert [row["anchor"] for row in found["anchors"]] == [0.25, 1.0, None]

    def evaluated(mode="reason", **settings):
        arguments = {"split": "dev", "settings": SETTINGS | settings}
        return evaluate([checkpoint], [f"beir:{beir}"], mode, tmp_path / "out", **arguments)[0]

    direct = evaluated("direct")
    assert found["direct"]["ndcg_at_10"] == direct["ndcg_at_10"]
    for row in found["anchors"]:
        wanted = evaluated(anchor=row["anchor"])
        assert row["ndcg_at_10"] == wanted["ndcg_at_10"]
        assert row["difference"] == pytest.approx(wanted["ndcg_at_10"] - direct["ndcg_at_10"], abs=2e-6)
        assert row["tokens_per_query"] == pytest.approx(wanted["reasoning_tokens_per_query"], abs=1e-3)
    chosen = found["chosen"]
    best = max(row["ndcg_at_10"] for row in found["anchors"])
    assert chosen["anchor"] == next(row["anchor"] for row in found["anchors"] if row["ndcg_at_10"] == best)
    assert [row["reasoned_share"] for row in found["margins"]] == [0.0, 0.5, 1.0]
    assert found["margins"][0]["difference"] == 0
    assert found["margins"][0]["tokens_per_query"] == 0
    assert found["margins"][-1]["abstain_margin"] is None
    assert found["margins"][-1]["ndcg_at_10"] == best
    middle = found["margins"][1]
    row = evaluated(anchor=chosen["anchor"], abstain_margin=middle["abstain_margin"])
    assert (row["ndcg_at_10"], row["reasoned_share"]) == (middle["ndcg_at_10"], middle["reasoned_share"])
    assert row["reasoning_tokens_per_query"] == pytest.approx(middle["tokens_per_query"], abs=1e-3)

    monkeypatch.setattr(Engine, "embed", None)  # a run that was killed goes on from the store
    monkeypatch.setattr(Engine, "reason", None)
    again = tune(checkpoint, f"beir:{beir}", "dev", tmp_path / "tune", settings=SETTINGS, plan=plan)
    assert again["anchors"] == found["anchors"]


def test_of_equal_means_the_first_is_chosen():
    assert _best([0.1, 0.3, 0.3]) == 1
    assert _best([0.3, 0.3 + 1e-9, 0.2]) == 0


def test_cost_by_hand():
    cost = Cost(np.array([10, 20, 30, 40]), direct=2.0, reasoned=100.0)
    half = np.array([True, False, True, False])
    assert cost.of(half, None) == {"tokens_per_query": 10.0, "milliseconds_per_query": 52.0}
    assert cost.of(~half & False, None) == {"tokens_per_query": 0.0, "milliseconds_per_query": 2.0}
    assert cost.of(half | True, 0.5) == {"tokens_per_query": 25.0, "milliseconds_per_query": 102.0}
    assert cost.of(half | True, None) == {"tokens_per_query": 25.0, "milliseconds_per_query": 100.0}
    writes = Cost(cost.tokens, direct=2.0, reasoned=100.0, always_direct=True)
    assert writes.of(half | True, None) == {"tokens_per_query": 25.0, "milliseconds_per_query": 102.0}


def test_the_profile_is_written_where_there_is_a_folder(tiny_checkpoint, tmp_path):
    folder = tmp_path / "model"
    save(tiny_checkpoint, folder)
    before = json.loads((folder / "search_r3.json").read_text())
    assert write_anchor(folder, 0.25) == folder / "search_r3.json"
    assert json.loads((folder / "search_r3.json").read_text()) == {**before, "anchor": 0.25}
    assert SearchR3Encoder(folder, max_length=600).anchor == 0.25
    write_anchor(folder, None)
    assert Profile.load(folder).anchor is None
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    with pytest.raises(ValueError, match=r"config.json"):
        write_anchor(folder, 0.5)  # a manifest that is written again would accept what nobody looked at
    with pytest.raises(FileNotFoundError, match="nano is not a folder, so no profile can be written there"):
        write_anchor("nano", 0.5)


def test_no_profile_is_written_beside_prompts_that_come_from_elsewhere(tmp_path):
    """Of an adapter without a profile the base's holds; one with an anchor alone would replace it in silence."""
    with pytest.raises(FileNotFoundError, match=r"has no search_r3.json, so its prompts are another folder's"):
        write_anchor(tmp_path, 0.5)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"settings": {"anchor": 0.5}}, "anchor=0.5: what is tuned decides that itself"),
        ({"settings": {"mode": "direct"}}, "mode='direct'"),
        ({"split": "train"}, "no split 'train'"),
        ({"model": "bm25"}, "bm25 neither reasons nor expands queries"),
        ({"model": "hyde:nano+mini", "settings": {"weight": 2.0}}, "weight=2.0 and anchor=0.0 both say"),
        ({"model": "rocchio:mini", "settings": {"samples": 2}}, "samples would change nothing"),
        ({"model": "rocchio:mini", "settings": {"anchor": 1.0}}, "anchor=1.0: what is tuned decides that itself"),
    ],
)
def test_what_cannot_be_tuned_is_refused(checkpoint, beir, tmp_path, arguments, message):
    chosen = {"model": checkpoint, "task": f"beir:{beir}", "split": "dev", "output": tmp_path / "tune"} | arguments
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        tune(**chosen)
    with pytest.raises(ValueError, match="between 0 and 1"):
        TuningPlan(shares=(1.5,))
    with pytest.raises(ValueError, match="anchors=-1 must be 0"):
        TuningPlan(anchors=(-1,))


def test_the_command_line(call, tiny_folder, beir, tmp_path):
    arguments = ["tune", "--model", tiny_folder, "--task", f"beir:{beir}", "--output", tmp_path / "tune"]
    code, out, _ = call(*arguments, "--anchor", 0.5, "--max-reasoning-tokens", 4, "--write-profile")
    assert code == 0
    assert "Chosen on 6 queries of" in out
    assert "--set anchor=" in out
    assert "against" in out
    chosen = json.loads((tmp_path / "tune" / "tune.json").read_text())["chosen"]
    assert Profile.load(tiny_folder).anchor == chosen["anchor"]


# ---- writers with encoders, and Rocchio ----

WRITING = {"max_reasoning_tokens": 4}


@pytest.mark.parametrize(
    ("method", "further"),
    [
        ("hyde", {"samples": 2}),
        pytest.param("query2doc", {}, marks=pytest.mark.slow),
        pytest.param("feedback", {}, marks=pytest.mark.slow),
        ("rocchio", {}),
    ],
)
def test_rows_of_writers_are_what_evaluations_give(models, beir, tmp_path, monkeypatch, method, further):
    writes, writer = method != "rocchio", models / "smol"
    model = f"{method}:{f'{writer}+' if writes else ''}{models / 'minis'}"
    settings = (WRITING if writes else {}) | further
    plan = TuningPlan(anchors=(4.0, 0.0, 0.5))
    found = tune(model, f"beir:{beir}", "dev", tmp_path / "tune", settings=settings, plan=plan)
    assert [row["anchor"] for row in found["anchors"]] == [0.0, 0.5, 4.0, *([None] if writes else [])]
    assert "margins" not in found
    assert found["chosen"].keys() == {"anchor"}

    def evaluated(name, **changed):
        return evaluate([name], [f"beir:{beir}"], "both", tmp_path / "out", split="dev", settings=changed)[0]

    direct = evaluated(str(models / "minis"))["ndcg_at_10"]
    assert found["direct"]["ndcg_at_10"] == direct
    assert found["direct"]["tokens_per_query"] == 0
    for row in found["anchors"]:
        wanted = evaluated(model, **settings, anchor=row["anchor"])
        assert row["ndcg_at_10"] == wanted["ndcg_at_10"]
        assert row["difference"] == pytest.approx(wanted["ndcg_at_10"] - direct, abs=2e-6)
        assert row["tokens_per_query"] == pytest.approx(wanted["reasoning_tokens_per_query"], abs=1e-3)
        assert (row["tokens_per_query"] > 0) == writes
    assert found["anchors"][0]["difference"] == 0  # the control: with no weight nothing is added
    assert len({row["ndcg_at_10"] for row in found["anchors"]}) > 1  # and a weight does something

    monkeypatch.setattr(Writer, "write", None)  # a run that was killed goes on from the store
    again = tune(model, f"beir:{beir}", "dev", tmp_path / "tune", settings=settings, plan=plan)
    if method in ("feedback", "rocchio"):  # the search for feedback is made, and timed, again
        for row in (*again["anchors"], *found["anchors"]):
            del row["milliseconds_per_query"]
    assert again["anchors"] == found["anchors"]


@pytest.mark.parametrize("seen", ["own", "first"])
def test_feedback_looks_at_the_documents_of_each_subset(models, tmp_path, monkeypatch, seen):
    def rows(word):
        documents = [{"id": f"d{n}", "title": f"{word} {n}", "text": f"the {WORDS[n]} {word} {n}"} for n in range(6)]
        queries = [{"id": f"q{n}", "text": f"{word} to the {WORDS[n]}"} for n in range(3)]
        return documents, queries, {f"q{n}": {f"d{n}": 1} for n in range(3)}

    def task():
        return made_task("TwoLanguages", {"en": rows("road"), "de": rows("weg")}, split="dev")

    if seen == "first":  # the control: with the other subset's documents the prompts differ, and so do the texts
        index = FeedbackEncoder.index
        monkeypatch.setattr(FeedbackEncoder, "index", lambda self, corpus: self._corpus or index(self, corpus))
    model = f"feedback:{models / 'smol'}+{models / 'minis'}"
    asked = []
    prompts = Writer.prompts
    monkeypatch.setattr(Writer, "prompts", lambda self, *parts: asked.extend(parts[2]) or prompts(self, *parts))
    tune(model, task(), "dev", tmp_path / "tune", settings=WRITING, plan=TuningPlan(anchors=(1.0,)))
    german = [any("weg" in line for line in lines) for lines in asked]
    assert german == [False] * 3 + [seen == "own"] * 3


def test_texts_are_taken_from_a_store_that_is_named(models, beir, tmp_path, monkeypatch, call):
    model = f"query2doc:{models / 'smol'}+{models / 'minis'}"
    arguments = {"split": "dev", "settings": WRITING}
    evaluate([model], [f"beir:{beir}"], "both", tmp_path / "out", cache_folder=tmp_path / "kept", **arguments)
    monkeypatch.setattr(Writer, "write", None)
    named = ["tune", "--model", model, "--task", f"beir:{beir}", "--max-reasoning-tokens", 4, "--anchor", 1]
    named += ["--set", "weight=2"]  # the texts do not depend on it
    code, out, _ = call(*named, "--output", tmp_path / "tune", "--cache-folder", tmp_path / "kept")
    assert code == 0
    assert json.loads((tmp_path / "tune" / "tune.json").read_text())["settings"]["weight"] == 2
    assert "method's" in out
    assert "--set anchor=" in out
    assert not (tmp_path / "tune" / "store").exists()
    code, _, _ = call(*named, "--output", tmp_path / "other")  # the control: elsewhere there are no texts
    assert code != 0


def test_a_writer_has_no_profile_to_be_written(models, beir, tmp_path, monkeypatch, call):
    monkeypatch.setattr(writer_encoder, "Writer", None)  # nothing is run before it is refused
    model = f"query2doc:{models / 'smol'}+{models / 'minis'}"
    code, _, said = call("tune", "--model", model, "--task", f"beir:{beir}", "--write-profile")
    assert code == 2
    assert "is not one folder with a profile" in said
