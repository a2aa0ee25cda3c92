"""Stage 1's loop on a tiny hopworld: what it learns, writes and refuses, and that its gradient is what it should be."""

import json
import re
from functools import partial

import numpy as np
import pytest
import torch

from tests.programs import mostly_slow
from tests.train.loops import (
    SFT,
    byte_folder,
    events,
    largest_difference,
    recorded_gradients,
    same_weights,
    sft_config,
    train_until,
    weights,
)
from train.model import model as models
from train.run.run import Run
from train.sft import main, train
from train.stage1.step import SupervisedStep

gradients_of = partial(recorded_gradients, train)


def test_the_loss_goes_down_and_the_dev_set_is_scored_in_both_modes(trained):
    steps = events(trained, "step")
    assert [event["step"] for event in steps] == list(range(1, 41))
    for part in ("loss", "infonce", "reply"):
        first, last = (np.mean([e[part] for e in steps[s]]) for s in (slice(0, 5), slice(35, 40)))
        assert last < 0.7 * first, part
    scored = {(e["step"], e["mode"], e["hops"]) for e in events(trained, "evaluate")}
    assert scored == {(s, m, h) for s in (20, 40) for m in ("direct", "reason") for h in (None, 1, 2)}
    assert all(0 <= e["ndcg_at_10"] <= 1 for e in events(trained, "evaluate"))


@pytest.mark.parametrize("name", ["best", "last"])
def test_what_is_exported_loads_as_an_encoder(trained, name):
    from search_r3_mteb import SearchR3Encoder

    encoder = SearchR3Encoder(trained / name, max_reasoning_tokens=8)
    vectors = encoder.encode_query(["Who wrote The Silent River?"])
    assert vectors.shape == (1, 32)
    assert np.linalg.norm(vectors[0]) == pytest.approx(1, abs=1e-5)


def test_the_run_folder_holds_its_settings_and_what_the_data_held(trained):
    from train.config.loading import load_config
    from train.config.stages import SftConfig

    assert load_config(trained / "config.toml", (), SftConfig).optimization.steps == 40
    report = json.loads((trained / "data.json").read_text())
    assert [source["rows"] for source in report["sources"]] == [40 * 16]
    assert "decontamination" in report


BOTH = '[[data.sources]]\nkind = "jsonl"\npath = "PATH"\n'
ROWS = [
    {"query": "a river", "positive": "water that flows", "negatives": ["a stone"], "reasoning": "rivers flow."},
    {"query": "a stone", "positive": "hard and grey", "negatives": ["water that flows", "a bird"]},
    {"query": "a bird", "positive": {"title": "Birds", "text": "they fly"}},
    {"query": "a fish", "positive": "it swims", "reasoning": "fish live in water."},
]


@pytest.fixture
def jsonl(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return BOTH.replace("PATH", str(path))


@pytest.mark.parametrize(
    "overrides",
    [
        ["loss.infonce=0"],
        ["loss.reply=0"],
        ["loss.reply=0", "loss.infonce=0", "loss.triplet=1"],
        ["loss.triplet=1", "loss.hard_negatives=true", "data.hard_negatives=2"],
        ["loss.in_batch=false", "loss.hard_negatives=true", "data.hard_negatives=2"],
        ["loss.infonce=0", "optimization.mini_batch_size=2"],
    ],
    ids=["no infonce", "no reply", "triplet alone", "hard negatives", "only hard negatives", "reply in parts"],
)
def test_each_term_can_be_switched(tmp_path, jsonl, overrides):
    """Rows with and without reasoning, with and without negatives of their own."""
    config = sft_config(
        tmp_path / "run", "optimization.steps=2", "optimization.batch_size=4", *overrides, sources=jsonl
    )
    train(config)
    for event in events(tmp_path / "run", "step"):
        named = {name for name in ("reply", "kl", "infonce", "triplet") if name in event}
        assert named == {name for name in ("reply", "kl", "infonce", "triplet") if getattr(config.loss, name)}
        assert event["loss"] == pytest.approx(sum(getattr(config.loss, n) * event[n] for n in named), rel=1e-5)


def test_the_gradient_is_that_of_the_losses_written_out(tmp_path, jsonl, monkeypatch):
    """Against a computation of its own: Hugging Face's forward, one row at a time, losses by their formulas."""
    config = sft_config(
        tmp_path / "run", "optimization.steps=1", "optimization.batch_size=4", "loss.hard_negatives=true",
        "data.hard_negatives=1", "loss.infonce=0.7", "loss.reply=0.3", sources=jsonl,
    )  # fmt: skip
    (ours,) = gradients_of(config, monkeypatch)
    run = Run.begin(config)
    rows, model, renderer = run.data.next_batch(), run.checkpoint.model, run.renderer

    def states(ids):
        return model.base_model(torch.tensor([ids])).last_hidden_state[0]

    def vector(ids):
        return torch.nn.functional.normalize(states(ids)[-1], dim=0)

    documents = [row.positive for row in rows] + [text for row in rows for text in row.negatives]
    unique = list(dict.fromkeys(documents))
    table = torch.stack([vector(renderer.render(text, "direct").token_ids) for text in unique])
    contrast, replies = [], []
    for row in rows:
        turns = [renderer.render_reply(row.query, "direct")]
        if row.reasoning is not None:
            turns.append(renderer.render_reply(row.query, "reason", row.reasoning))
        for turn in turns:
            positive = unique.index(row.positive)
            contrast.append(-((table @ vector(turn.token_ids)) / 0.05).log_softmax(0)[positive])
            start, end = turn.spans["assistant"]
            logits = model.get_output_embeddings()(states(turn.token_ids)).log_softmax(-1)
            said = [-logits[t - 1, turn.token_ids[t]] for t in range(start, end)]
            replies.append((len(turns) == 2 and turn is turns[1], said))
    loss = 0.7 * torch.stack(contrast).mean()
    for traced in (False, True):  # each turn's cross-entropy is a mean over its own tokens
        loss = (
            loss + 0.3 * torch.stack([one for is_traced, said in replies if is_traced == traced for one in said]).mean()
        )
    loss.backward()
    truth = {name: p.grad for name, p in model.named_parameters()}
    assert largest_difference(ours, truth) < 1e-5
    assert events(tmp_path / "run", "step")[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert max(float(g.abs().max()) for g in truth.values()) > 1e-2  # the comparison compares something


def test_mini_batches_give_the_whole_batch_s_weights(tmp_path, monkeypatch):
    settings = ["optimization.steps=2", "loss.triplet=0.5", "optimization.epsilon=1e-4"]
    whole = gradients_of(sft_config(tmp_path / "whole", *settings), monkeypatch)
    parts = gradients_of(sft_config(tmp_path / "parts", *settings, "optimization.mini_batch_size=3"), monkeypatch)
    assert largest_difference(whole[0], parts[0]) < 1e-5
    assert largest_difference(weights(tmp_path / "whole/last"), weights(tmp_path / "parts/last")) < 1e-5
    other = gradients_of(sft_config(tmp_path / "other", *settings, "loss.temperature=0.06"), monkeypatch)
    assert largest_difference(whole[0], other[0]) > 1e-3


@pytest.mark.parametrize("optimizer", mostly_slow(["adamw", "muon"], "muon"))
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(tmp_path, monkeypatch, optimizer):
    """Bit for bit, in the weights and in the log, though the other run evaluates in between at another time."""
    chosen = f"optimization.optimizer={optimizer}"
    make = lambda name, *more: sft_config(tmp_path / name, chosen, *more, evaluation=True)  # noqa: E731
    train(make("whole"))
    train_until(2, train, make("stopped"), monkeypatch)
    with (tmp_path / "stopped/log.jsonl").open("a") as file:  # what a killed process did after its last checkpoint
        file.write('{"event": "step", "step": 3, "loss": 99}\n{"event": "st')
    train(make("stopped"))
    assert events(tmp_path / "stopped") == events(tmp_path / "whole")
    assert same_weights(tmp_path / "stopped/last", tmp_path / "whole/last")
    seconds = [json.loads(line).get("seconds") for line in (tmp_path / "stopped/log.jsonl").read_text().splitlines()]
    steps = [value for value in seconds if value is not None]
    assert steps == sorted(steps)
    train(make("unwatched", "evaluate.every=0", "evaluate.max_queries=2"))
    assert same_weights(tmp_path / "stopped/last", tmp_path / "unwatched/last"), "evaluation changed what was learned"


def test_nan_stops_the_run_and_leaves_the_batch(tmp_path, monkeypatch):
    original = models.prepare

    def poisoned(*arguments):
        checkpoint = original(*arguments)
        with torch.no_grad():
            checkpoint.model.base_model.layers[0].mlp.up_proj.weight[3, 5] = float("nan")
        return checkpoint

    monkeypatch.setattr("train.run.run.prepare", poisoned)
    with pytest.raises(ValueError, match=r"(?s)holds nan.*Step 1 failed, its batch is in .*failed-batch-step-1"):
        train(sft_config(tmp_path / "run"))
    saved = json.loads((tmp_path / "run/failed-batch-step-1-process-0.json").read_text())
    assert len(saved["rows"]) == 8
    assert "nan" in saved["error"]
    assert not (tmp_path / "run/last").exists()


def test_dry_run_says_what_would_run_and_trains_nothing(tmp_path, capsys):
    path = tmp_path / "tiny.toml"
    path.write_text(SFT)
    settings = ["--set", f"output.folder={tmp_path / 'run'}", "--set", "loss.temperature=0.07"]
    main(["--config", str(path), *settings, "--dry-run"])
    shown = capsys.readouterr().out
    assert "temperature = 0.07" in shown
    assert "# parameters: " in shown
    assert "trainable: " in shown
    assert "# memory estimate per device in MiB: weights" in shown, "0.00 GiB says nothing"
    estimate = next(line for line in shown.splitlines() if line.startswith("# time estimate: "))
    assert re.match(r"# time estimate: [\d.]+ seconds on 1 device ", estimate)
    assert estimate.endswith("; no GPU here: this is the time on the one described") != torch.cuda.is_available()
    main(["--config", str(path), *settings, "--dry-run", "--set", "optimization.steps=1000000000"])
    assert re.search(r"# time estimate: [\d.,]+ hours on 1 device ", capsys.readouterr().out)
    assert not (tmp_path / "run").exists()


def test_an_unknown_key_ends_with_code_2(tmp_path, capsys):
    path = tmp_path / "tiny.toml"
    path.write_text(SFT.replace("triplet", "triplets"))
    with pytest.raises(SystemExit) as end:
        main(["--config", str(path)])
    assert end.value.code == 2
    shown = capsys.readouterr().err
    assert "triplets" in shown
    assert "triplet" in shown.replace("triplets", "")


@pytest.mark.filterwarnings("error::FutureWarning")  # transformers renamed what turns it on
def test_gradient_checkpointing_changes_nothing(tmp_path, monkeypatch):
    plain = gradients_of(sft_config(tmp_path / "plain", "optimization.steps=1"), monkeypatch)
    again = gradients_of(
        sft_config(tmp_path / "again", "optimization.steps=1", "model.gradient_checkpointing=true"), monkeypatch
    )
    assert largest_difference(plain[0], again[0]) < 1e-6


def test_bf16_computes_in_bf16_over_float32_weights(tmp_path, monkeypatch):
    settings = ["optimization.steps=2", "loss.triplet=1", "optimization.mini_batch_size=4"]
    plain = gradients_of(sft_config(tmp_path / "plain", *settings), monkeypatch)
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    half = gradients_of(
        sft_config(tmp_path / "half", *settings, "optimization.mixed_precision=bf16", evaluation=True), monkeypatch
    )
    assert all(tensor.dtype == torch.float32 for tensor in weights(tmp_path / "half/last").values())
    difference = largest_difference(plain[0], half[0])
    scale = max(float(g.abs().max()) for g in plain[0].values())
    assert 1e-5 < difference < 0.1 * scale  # another precision, the same gradient


LORA = ["model.lora.rank=4", "model.lora.alpha=8.0", "optimization.steps=3"]


def test_a_lora_run_trains_the_adapter_and_the_token_s_row_alone(tmp_path):
    """The folder it writes gives the same vectors through the encoder, through peft, and merged."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from search_r3_mteb import SearchR3Encoder
    from search_r3_mteb.encoder import checkpoints

    folder = byte_folder(tmp_path / "base", with_embed_token=False)
    train(sft_config(tmp_path / "run", *LORA, model=folder))
    last = tmp_path / "run/last"
    saved = weights(last)
    rows = [name for name in saved if "lora_" not in name]
    assert [tuple(saved[name].shape) for name in rows] == [(1, 32)], "one row of the embedding beside the adapter"
    texts = ["a river", "a stone in the river"]
    ours = SearchR3Encoder(last, mode="direct").encode_query(texts)

    loaded = checkpoints.load(last)
    index = loaded.embed_token_id
    base = AutoModelForCausalLM.from_pretrained(folder)
    before = base.get_input_embeddings().weight[index].clone()
    by_peft = PeftModel.from_pretrained(base, last)
    through_peft = checkpoints.Checkpoint(by_peft.eval(), loaded.tokenizer, loaded.profile, "tests/peft")
    merged = checkpoints.Checkpoint(by_peft.merge_and_unload(), loaded.tokenizer, loaded.profile, "tests/merged")
    merged_folder = checkpoints.save(merged, tmp_path / "merged")
    for other in (through_peft, str(merged_folder)):
        if other is through_peft:  # merging changed the model in place: load again for the unmerged one
            fresh = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), last).eval()
            other = checkpoints.Checkpoint(fresh, loaded.tokenizer, loaded.profile, "tests/peft")
        vectors = SearchR3Encoder(other, mode="direct").encode_query(texts)
        np.testing.assert_allclose(vectors, ours, atol=1e-5)
    untrained = checkpoints.Checkpoint(
        AutoModelForCausalLM.from_pretrained(folder), loaded.tokenizer, loaded.profile, "tests/base"
    )
    assert np.abs(SearchR3Encoder(untrained, mode="direct").encode_query(texts) - ours).max() > 1e-2
    after = merged.model.get_input_embeddings().weight
    assert not torch.equal(after[index], before)
    plain = AutoModelForCausalLM.from_pretrained(folder).get_input_embeddings().weight
    others = torch.arange(len(plain)) != index
    assert torch.equal(after[others], plain[others]), "rows of other tokens have moved"


def test_kl_to_the_base_with_an_adapter_equals_that_to_a_copy(tmp_path, monkeypatch):
    """With LoRA the base is the model with its adapter's start; a copy of the start must give the same gradient."""
    folder = byte_folder(tmp_path / "base")
    config = sft_config(tmp_path / "run", *LORA, "loss.kl=1", "loss.infonce=0", "loss.reply=0.01", model=folder)
    run = Run.begin(config)
    start = models.Base.of(run.checkpoint)
    copied = models.Base(run.checkpoint.model, models.prepare(config.model, 0).model.eval())
    with torch.no_grad():  # somewhere else than at the start, where the KL is 0
        for name, parameter in models.trainable(run.checkpoint.model):
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    rows = run.data.next_batch()
    found = []
    for base in (start, copied):
        step = SupervisedStep(run, config.loss, config.optimization.mini_batch_size, base)
        parts = step.backward(rows)
        found.append((parts["kl"], {n: p.grad.clone() for n, p in models.trainable(run.model) if p.grad is not None}))
        run.optimizer.zero_grad()
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert found[0][0] > 1e-3
    assert largest_difference(found[0][1], found[1][1]) < 1e-5


def test_kl_to_a_frozen_copy_runs_in_full_training(tmp_path):
    train(sft_config(tmp_path / "run", "loss.kl=1", "optimization.steps=2", model=byte_folder(tmp_path / "base")))
    first, second = (event["kl"] for event in events(tmp_path / "run", "step"))
    assert abs(first) < 1e-6 < second


def test_hard_negatives_are_mined_with_the_starting_model(tmp_path):
    settings = [
        "data.hard_negatives=2", "loss.hard_negatives=true", "data.mining.count=2", "data.mining.relative_margin=0.0",
        "optimization.steps=2", "data.sources.0.hops=[1]",
    ]  # fmt: skip
    train(sft_config(tmp_path / "run", *settings))
    report = json.loads((tmp_path / "run/mined/report.json").read_text())
    (source,) = report["sources"].values()
    assert source["negatives"] > 0


def test_columns_run_in_one_order_so_that_replies_come_last(tmp_path):
    run = Run.begin(sft_config(tmp_path / "run"))
    step = SupervisedStep(run, run.config.loss, run.config.optimization.mini_batch_size)
    columns, _ = step.prepare(run.data.next_batch())
    assert list(columns) == ["documents", "direct", "reason"]


def test_a_model_that_loads_as_another_is_not_kept(tmp_path, monkeypatch):
    """What a run writes is loaded again and compared; here a weight changes while it is written."""
    from search_r3_mteb.encoder import merging

    real = merging.save

    def damaged(checkpoint, folder):
        with torch.no_grad():
            checkpoint.model.get_input_embeddings().weight[5] += 1
        return real(checkpoint, folder)

    monkeypatch.setattr(merging, "save", damaged)
    with pytest.raises(ValueError, match=r"The folder last gives other (vectors|logits) than its source"):
        train(sft_config(tmp_path / "run", "optimization.steps=1"))
    assert not (tmp_path / "run/last").exists()
    monkeypatch.setattr(merging, "save", real)
    train(sft_config(tmp_path / "run", "optimization.steps=1"))
    assert (tmp_path / "run/last/config.json").exists()
