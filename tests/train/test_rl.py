"""Stage 2's loop on a tiny hopworld: what it writes, resumes and refuses."""

import json

import numpy as np
import pytest

from search_r3_mteb import HopWorld, SearchR3Encoder
from search_r3_mteb.encoder.documents import join_title
from search_r3_mteb.tasks.beir_folder import write_beir
from tests.train.loops import (
    FORCED,
    LORA,
    RL,
    byte_folder,
    cache_arrays,
    events,
    largest_difference,
    rl_config,
    same_weights,
    train_until,
    weights,
)
from train import rl
from train.model.batches import text_ids
from train.rl import main, train
from train.stage2.environment import Environment


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(tmp_path, model, monkeypatch):
    """Weights, log, written rollouts and every file of the corpus cache, bit for bit."""
    train(rl_config(tmp_path / "whole", model, "optimization.steps=4", evaluation=True))
    make = lambda: rl_config(tmp_path / "stopped", model, "optimization.steps=4", evaluation=True)  # noqa: E731
    for step in (1, 3):
        train_until(step, train, make(), monkeypatch)
    with (tmp_path / "stopped/rollouts.jsonl").open("a") as file:  # from after the last checkpoint
        file.write('{"step": 4, "query": "\u2028 twice"}\n{"step": 4, "qu')
    train(make())
    assert events(tmp_path / "stopped") == events(tmp_path / "whole")
    assert same_weights(tmp_path / "stopped/last", tmp_path / "whole/last")
    read = lambda name: (tmp_path / name / "rollouts.jsonl").read_text()  # noqa: E731
    assert read("stopped") == read("whole")
    (arrays, scalars), (others, other_scalars) = (cache_arrays(tmp_path / n, 4) for n in ("stopped", "whole"))
    assert arrays.keys() == others.keys()
    assert all(np.array_equal(arrays[name], others[name]) for name in arrays)
    assert scalars == other_scalars


def test_evaluation_and_audits_change_nothing_that_is_learned(tmp_path, model):
    train(rl_config(tmp_path / "watched", model, "evaluate.every=1", evaluation=True))
    train(rl_config(tmp_path / "not", model, "evaluate.modes=['direct', 'reason']"))
    assert same_weights(tmp_path / "watched/last", tmp_path / "not/last")


@pytest.mark.parametrize("policy", ["none", "random", "local", "random+map", "local+map", "full"])
def test_every_refresh_policy_runs(tmp_path, model, policy):
    train(rl_config(tmp_path / "run", model, f"corpus_cache.policy={policy}", "optimization.steps=3", *FORCED))
    encoded = [event["documents_encoded"] for event in events(tmp_path / "run", "step")]
    if policy == "none":
        assert encoded == [0, 0, 0]
    elif policy == "full":
        assert encoded == [500, 500, 500]
    else:
        assert all(0 < count < 50 for count in encoded[1:])
    audits = events(tmp_path / "run", "audit")
    assert len(audits) == 1
    arrays, _ = cache_arrays(tmp_path / "run", 3)
    # The cache of the checkpoint is as of the weights before its last update.
    assert arrays["row_step"].max() == (0 if policy == "none" else 2)


def test_a_reward_that_fails_stops_the_run(tmp_path, model, monkeypatch):
    def broken(*arguments, **named):
        raise ValueError("no document is judged")

    monkeypatch.setattr("train.stage2.environment.reward", broken)
    with pytest.raises(ValueError, match="no document is judged") as raised:
        train(rl_config(tmp_path / "run", model))
    assert "Step 1 failed, its batch is in" in raised.value.__notes__[0]
    assert json.loads((tmp_path / "run/failed-batch-step-1-process-0.json").read_text())["rows"]
    assert not (tmp_path / "run/last").exists()


def test_a_gap_between_sampler_and_trainer_stops_the_run(tmp_path, model, monkeypatch):
    original = rl.sample

    def other_temperature(run, engine, rows, number):
        groups = original(run, engine, rows, number)
        groups.rollouts.log_probs[:] = [[value - 0.3 for value in row] for row in groups.rollouts.log_probs]
        return groups

    monkeypatch.setattr(rl, "sample", other_temperature)
    with pytest.raises(FloatingPointError, match=r"differ by 0\.30.* nats per token.*max_gap = 0\.05"):
        train(rl_config(tmp_path / "run", model))


def test_two_updates_on_one_set_of_rollouts(tmp_path, model):
    """The second update's ratios are no longer 1, and what the log calls the gap is still the sampler's."""
    settings = ["policy.updates_per_step=2", "optimization.steps=2", "corpus_cache.audit_every=1"]
    train(rl_config(tmp_path / "run", model, *settings))
    steps = events(tmp_path / "run", "step")
    assert all(event["gap_max"] < 1e-4 for event in steps)
    train(rl_config(tmp_path / "once", model, "optimization.steps=2", "corpus_cache.audit_every=1"))
    assert largest_difference(weights(tmp_path / "run/last"), weights(tmp_path / "once/last")) > 1e-4


def test_an_audit_never_sees_vectors_of_other_weights(tmp_path, model, monkeypatch):
    """Regression: the second update's positives stayed known after the weights had moved on."""
    known = []
    original = Environment.audit

    def audit(self, step):
        known.append(len(self.encoder.known))
        return original(self, step)

    monkeypatch.setattr(Environment, "audit", audit)
    train(rl_config(tmp_path / "run", model, "policy.updates_per_step=2", "corpus_cache.audit_every=1"))
    assert known == [0, 0, 0]
    assert len(events(tmp_path / "run", "audit")) == 3


def test_rollouts_are_written_to_be_read(tmp_path, model):
    train(rl_config(tmp_path / "run", model, "optimization.steps=4"))
    records = [json.loads(line) for line in (tmp_path / "run/rollouts.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [2] * 4 + [4] * 4
    queries = [record["query"] for record in records[:4]]
    assert len(set(queries)) == 4, "one rollout of each prompt, not four of the first"
    for record in records:
        assert record["query"]
        assert isinstance(record["reasoning"], str)
        assert "<|embed_token|>" not in record["reasoning"]
        assert len(record["top"]) == 5
        assert record["top"][0]["cosine"] >= record["top"][-1]["cosine"]
        assert record["relevant"][0].startswith("fact-")
        assert all(document["text"] for document in record["top"])


@pytest.mark.parametrize("packed", [True, False])
def test_bf16_stays_within_the_gap(tmp_path, model, monkeypatch, packed):
    """Sampler, documents and trainer all compute in bf16: the gap is rounding, not another precision's."""
    from search_r3_mteb.encoder import packing

    monkeypatch.setattr(packing, "LEAST_BYTES", 0 if packed else 1 << 60)
    train(rl_config(tmp_path / "run", model, "optimization.mixed_precision=bf16", "optimization.steps=2"))
    steps = events(tmp_path / "run", "step")
    assert all(event["gap_mean"] < 0.01 for event in steps)
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    train(rl_config(tmp_path / "plain", model, "optimization.steps=1"))
    plain = events(tmp_path / "plain", "step")[0]
    assert steps[0]["loss"] != plain["loss"]
    assert steps[0]["loss"] == pytest.approx(plain["loss"], rel=0.2, abs=0.1)


def test_lora_runs_and_its_folder_loads(tmp_path):
    from search_r3_mteb import SearchR3Encoder

    folder = byte_folder(tmp_path / "base")
    train(rl_config(tmp_path / "run", folder, *LORA, *FORCED, "model.gradient_checkpointing=true"))
    vectors = SearchR3Encoder(tmp_path / "run/last", mode="direct").encode_query(["a river"])
    assert np.isfinite(vectors).all()
    assert all(event["gap_max"] < 1e-4 for event in events(tmp_path / "run", "step"))


def test_prompts_from_jsonl_and_from_beir(tmp_path, model):
    """Graded judgements, titles, and a row without ids."""
    beir = tmp_path / "beir"
    documents = [("d1", "Rivers", "water that flows"), ("d2", "", "hard and grey"), ("d3", "Birds", "they fly")]
    judged = [("q0", "d1", 2), ("q0", "d2", 1), ("q1", "d2", 1), ("q2", "d3", 1), ("q3", "d1", 0), ("q3", "d3", 1)]
    write_beir(beir, corpus=documents, queries=[(f"q{i}", f"query {i}") for i in range(4)], qrels={"train": judged})
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"query": f"text {i}", "positive": f"answer {i}"}) + "\n" for i in range(4)))
    sources = f'[[data.sources]]\nkind = "beir"\npath = "{beir}"\n[[data.sources]]\nkind = "jsonl"\npath = "{rows}"\n'
    settings = ["reward.k=3", "contrastive.hard_negatives=1", "optimization.steps=2", *FORCED]
    train(rl_config(tmp_path / "run", model, *settings, sources=sources))
    assert len(events(tmp_path / "run", "step")) == 2
    records = [json.loads(line) for line in (tmp_path / "run/rollouts.jsonl").read_text().splitlines()]
    assert all(
        set(record["relevant"]) <= {d["id"] for d in record["top"]} | set(record["relevant"]) for record in records
    )


def test_dry_run_trains_nothing(tmp_path, model, capsys):
    path = tmp_path / "tiny.toml"
    path.write_text(RL.replace("MODEL", str(model)))
    main(["--config", str(path), "--set", f"output.folder={tmp_path / 'run'}", "--dry-run"])
    shown = capsys.readouterr().out
    assert "group_size = 4" in shown
    assert "# memory estimate" in shown
    assert not (tmp_path / "run").exists()


def test_a_model_that_never_says_the_token_is_warned_of_at_once(tmp_path, model):
    never = byte_folder(tmp_path / "base")
    train(rl_config(tmp_path / "run", never, "optimization.steps=2", *FORCED))
    said = events(tmp_path / "run", "warning")
    assert [event["step"] for event in said] == [1]
    assert "of the first rollouts ended with the embed token" in said[0]["text"]
    assert "rollout.max_reasoning_tokens = 3" in said[0]["text"]
    often = ["optimization.steps=1", "rollout.max_reasoning_tokens=64", "rollout.temperature=1.0"]
    train(rl_config(tmp_path / "said", model, *often))
    assert events(tmp_path / "said", "step")[0]["finished_share"] > 0.05
    assert events(tmp_path / "said", "warning") == []


ADAPTED = ["optimization.steps=2", "model.lora.target_modules=['q_proj', 'v_proj']", *LORA]


def adapter_of_stage_one(tmp_path):
    from tests.train.loops import sft_config
    from train import sft

    sft.train(sft_config(tmp_path / "one", *ADAPTED, model=byte_folder(tmp_path / "base")))
    return tmp_path / "one/last"


def test_kl_and_frozen_documents_are_those_of_the_adapter_that_goes_on(tmp_path, monkeypatch):
    """Not of the model without it; in a resumed run too, whose weights have moved when it begins."""
    adapter, steps = adapter_of_stage_one(tmp_path), 3
    more = [*ADAPTED, *FORCED, "policy.kl_weight=0.5", "corpus_cache.policy=frozen", f"optimization.steps={steps}"]
    more += ["optimization.learning_rate=0.01", "checkpoint.every=1"]
    whole = rl_config(tmp_path / "whole", adapter, *more)
    train(whole)
    kl = [event["kl"] for event in events(tmp_path / "whole", "step")]
    assert abs(kl[0]) < 1e-6 < kl[1]
    halves = rl_config(tmp_path / "halves", adapter, *more)
    train_until(2, train, halves, monkeypatch)
    train(halves)
    assert [event["kl"] for event in events(tmp_path / "halves", "step")] == pytest.approx(kl, rel=1e-4, abs=1e-7)
    (cached, _), (before, _) = cache_arrays(tmp_path / "halves", steps), cache_arrays(tmp_path / "halves", 1)
    texts = [join_title(row["title"], row["text"]) for row in HopWorld(documents=500).corpus.values()]
    for model, near in ((adapter, True), (tmp_path / "whole/last", False), (tmp_path / "base", False)):
        vectors = SearchR3Encoder(str(model), mode="direct", max_length=whole.data.max_length).encode_document(texts)
        assert (np.abs(cached["vectors"] - vectors).max() < 1e-4) == near, model
    np.testing.assert_array_equal(cached["vectors"], before["vectors"])


def test_an_adapter_of_stage_one_goes_on_or_is_merged(tmp_path, capsys):
    adapter, more = adapter_of_stage_one(tmp_path), ADAPTED
    capsys.readouterr()
    train(rl_config(tmp_path / "on", adapter, *more, *FORCED))
    assert f"the training of the adapter {adapter} goes on; its base stays as it is" in capsys.readouterr().out
    before, after = weights(adapter), weights(tmp_path / "on/last")
    assert before.keys() == after.keys()
    assert 0 < largest_difference(before, after) < 0.1
    train(rl_config(tmp_path / "merged", adapter, "optimization.steps=2", *FORCED))
    assert f"{adapter} is an adapter and there is no [model.lora]: it is merged" in capsys.readouterr().out
    assert (tmp_path / "merged/last/model.safetensors").exists()
    for wrong, said in (
        (["model.lora.rank=8"], r"\[model.lora\] rank = 8, but the adapter in .* has 4"),
        (["model.lora.target_modules=['all-linear']"], r"target_modules = \[\"all-linear\"\], .* has nothing on"),
    ):
        with pytest.raises(ValueError, match=said):
            train(rl_config(tmp_path / "wrong", adapter, *more, *wrong))
    assert not (tmp_path / "wrong").exists()


def test_rows_with_several_positives_go_through_epochs(tmp_path, model, monkeypatch):
    """FlagEmbedding's lists, with and without ids: every positive is relevant, and none is ever a negative."""
    from train.stage2 import contrastive

    masks = []
    original = contrastive.negative_mask

    def watched(positives, ids, *, query_ids, relevant):
        mask = original(positives, ids, query_ids=query_ids, relevant=relevant)
        masks.append({(int(query_ids[i]), int(ids[j])) for i, j in mask.nonzero().tolist()})
        return mask

    monkeypatch.setattr(contrastive, "negative_mask", watched)
    texts = [f"document {number}" for number in range(12)]
    rows = [
        {"query": "query 0", "pos": [{"id": "p0", "text": texts[0]}, texts[1]], "neg": [texts[9]]},
        {"query": "query 1", "pos": [texts[1], texts[2], texts[3]]},
        {"query": "query 2", "pos": [texts[4]]},
        {"query": "query 2", "pos": [texts[5], texts[0]]},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = '[data.sources.columns]\npositive = "pos"\nnegatives = ["neg"]\n'
    sources = f'[[data.sources]]\nkind = "jsonl"\npath = "{path}"\n{columns}'
    settings = ["reward.k=3", "rollout.prompts_per_step=4", "optimization.mini_batch_size=3", *FORCED]
    train(rl_config(tmp_path / "run", model, "optimization.steps=6", *settings, sources=sources))
    assert len(events(tmp_path / "run", "step")) == 6
    relevant = {(row["query"], p["text"] if isinstance(p, dict) else p) for row in rows for p in row["pos"]}
    key = lambda text: int(text_ids([text])[0])  # noqa: E731
    assert not set.union(*masks) & {(key(query), key(text)) for query, text in relevant}
    assert (key("query 0"), key(texts[2])) in set.union(*masks), "the control: other rows' positives are negatives"
    shown = [json.loads(line) for line in (tmp_path / "run/rollouts.jsonl").read_text().splitlines()]
    assert {len(record["relevant"]) for record in shown} >= {2, 3}


def test_rollouts_are_shown_by_turns():
    from train.stage2.rollout_log import _by_turns

    assert _by_turns([0, 0, 0, 1, 1, 2]) == [0, 3, 5, 1, 4, 2]
