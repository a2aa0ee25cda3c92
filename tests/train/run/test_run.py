"""The run of both stages: resuming, guarding, exporting, and the data report."""

import json
import shutil

import numpy as np
import pytest
import torch

from search_r3_mteb.tasks.beir_folder import write_beir
from tests.conftest import without_manifest
from tests.train.loops import byte_folder, events, rl_config, same_weights, sft_config, train_until, weights
from train.plan.dry_run import describe
from train.run.run import Run
from train.sft import train


def test_never_resume_refuses_a_folder_with_checkpoints(tmp_path, monkeypatch):
    train_until(1, train, sft_config(tmp_path / "run"), monkeypatch)
    with pytest.raises(FileExistsError, match=r'run holds checkpoints, and checkpoint.resume = "never"'):
        train(sft_config(tmp_path / "run", "checkpoint.resume=never"))
    train(sft_config(tmp_path / "other", "checkpoint.resume=never", "optimization.steps=1"))


def test_other_settings_are_refused_and_a_damaged_checkpoint_falls_back(tmp_path, monkeypatch):
    train_until(2, train, sft_config(tmp_path / "run"), monkeypatch)
    with pytest.raises(ValueError, match=r"learning_rate: 0.01 -> 0.02"):
        train(sft_config(tmp_path / "run", "optimization.learning_rate=0.02"))
    newest = tmp_path / "run/checkpoints/step-000002/weights.safetensors"
    newest.write_bytes(newest.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"step-000001: set checkpoint.resume = .fallback"):
        train(sft_config(tmp_path / "run"))
    train(sft_config(tmp_path / "run", "checkpoint.resume=fallback"))
    train(sft_config(tmp_path / "whole"))
    assert same_weights(tmp_path / "run/last", tmp_path / "whole/last")
    assert [event["step"] for event in events(tmp_path / "run", "step")] == [1, 2, 3]


def test_a_finished_run_that_is_started_again_trains_nothing(tmp_path, capsys):
    """What has finished says where the model is and what comes next; again, that there is nothing to do."""
    train(sft_config(tmp_path / "run"))
    model = tmp_path / "run/last"
    shown = capsys.readouterr().out
    assert f"finished, 3 of 3 steps: {model}. Next: " in shown
    assert f"search-r3 evaluate --model {model} " in shown
    assert f"--set model.path={model}" in shown
    card = (model / "README.md").read_text().split("<details>")[0]
    assert 'SearchR3Encoder("PATH/TO/last"' in card
    assert str(tmp_path) not in card
    assert "already" not in shown
    before = events(tmp_path / "run")
    first = weights(tmp_path / "run/last")
    assert train(sft_config(tmp_path / "run")) == model
    shown = capsys.readouterr().out
    assert f"already finished, 3 of 3 steps: {model}" in shown
    assert "Next" not in shown
    assert events(tmp_path / "run") == before
    assert all(torch.equal(first[name], tensor) for name, tensor in weights(tmp_path / "run/last").items())


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_evaluation_computes_as_training_does(tmp_path, monkeypatch, precision):
    from accelerate.state import AcceleratorState

    from train.run import evaluation

    AcceleratorState._reset_state(reset_partial_state=True)
    measure, seen = evaluation.evaluate, []

    def watched(*given):
        seen.append(torch.is_autocast_enabled("cpu"))
        return measure(*given)

    monkeypatch.setattr(evaluation, "evaluate", watched)
    train(
        sft_config(
            tmp_path / "run", f"optimization.mixed_precision={precision}", "optimization.steps=1", evaluation=True
        )
    )
    AcceleratorState._reset_state(reset_partial_state=True)
    assert seen == [precision == "bf16"]


def test_the_best_is_kept_when_later_ones_are_worse(tmp_path, monkeypatch):
    from train.run import evaluation
    from train.run.evaluation import Score

    values = iter([0.2, 0.6, 0.4])
    seen = {}

    def scored(checkpoint, *rest):
        value = next(values)
        seen[value] = {n: p.detach().clone() for n, p in checkpoint.model.named_parameters()}
        return [Score("hand", "reason", None, value, 1, 0.0, 0.0)]

    monkeypatch.setattr(evaluation, "evaluate", scored)
    train(sft_config(tmp_path / "run", "evaluate.every=1", "checkpoint.keep=1", evaluation=True))
    best = weights(tmp_path / "run/best")
    assert torch.equal(best["model.embed_tokens.weight"], seen[0.6]["model.embed_tokens.weight"])
    last = weights(tmp_path / "run/last")
    assert torch.equal(last["model.embed_tokens.weight"], seen[0.4]["model.embed_tokens.weight"])
    kept = sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir())
    assert kept == ["step-000002", "step-000003"], "the best checkpoint stays beside the newest"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_stops(tmp_path, bad):
    run = Run.begin(sft_config(tmp_path / "run"))
    run.checkpoint.model(torch.tensor([[5, 6]])).logits.sum().backward()
    assert run.reduce_gradients() > 0
    next(run.checkpoint.model.parameters()).grad[0, 0] = bad
    with pytest.raises(FloatingPointError, match="the gradient's norm is"):
        run.reduce_gradients()


@pytest.mark.parametrize(("limit", "expected"), [("0", 5.0), ("1.0", 1.0)])
def test_clipping(tmp_path, limit, expected):
    run = Run.begin(sft_config(tmp_path / "run", f"optimization.max_gradient_norm={limit}"))
    parameter = next(run.checkpoint.model.parameters())
    parameter.grad = torch.zeros_like(parameter)
    parameter.grad[0, :2] = torch.tensor([3.0, 4.0])
    assert run.reduce_gradients() == pytest.approx(5.0)
    assert float(parameter.grad.norm()) == pytest.approx(expected, rel=1e-5)


def test_other_errors_of_a_step_pass_through(tmp_path):
    run = Run.begin(sft_config(tmp_path / "run"))
    with pytest.raises(KeyError), run.guard(1, []):
        raise KeyError("a bug, not a batch")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".training.lock"]


def test_repeats_of_evaluation_texts_are_reported(tmp_path):
    from search_r3_mteb.tasks.hopworld import HopWorld

    leaked = HopWorld(500).queries("dev", 1)[0].text
    rows = tmp_path / "rows.jsonl"
    clean = [{"query": f"text {i}", "positive": f"answer {i}"} for i in range(7)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in [*clean, {"query": leaked, "positive": "something"}]))
    sources = f'[[data.sources]]\nkind = "jsonl"\npath = "{rows}"\n'
    train(sft_config(tmp_path / "run", evaluation=True, sources=sources))
    report = json.loads((tmp_path / "run/data.json").read_text())
    assert report["sources"][0]["exact_duplicates"] == 1


def test_a_dry_run_mines_nothing(tmp_path, capsys):
    mining = ["data.hard_negatives=2", "loss.hard_negatives=true", "data.mining.count=2"]
    describe(sft_config(tmp_path / "run", *mining))
    assert "[data.mining]" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_without_a_padding_token(tmp_path):
    """Llama's has none; rows are padded with any id, since none is read."""
    folder = without_manifest(byte_folder(tmp_path / "base"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("pad_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    train(sft_config(tmp_path / "run", "optimization.steps=1", model=folder))
    assert np.isfinite(events(tmp_path / "run", "step")[0]["loss"])


def test_a_finished_run_is_extended(tmp_path, capsys):
    """More steps than before are no other settings: with a constant rate the run is the one that had them at once."""
    constant = "optimization.schedule=constant"
    train(sft_config(tmp_path / "run", constant, "optimization.steps=2"))
    train(sft_config(tmp_path / "run", constant, "optimization.steps=4"))
    assert "the run is extended from 2 to 4 steps" in capsys.readouterr().out
    train(sft_config(tmp_path / "whole", constant, "optimization.steps=4"))
    assert "extended" not in capsys.readouterr().out
    assert same_weights(tmp_path / "run/last", tmp_path / "whole/last")
    assert events(tmp_path / "run", "step") == events(tmp_path / "whole", "step")
    with pytest.raises(ValueError, match=r"optimization.steps: 4 -> 3"):
        train(sft_config(tmp_path / "run", constant, "optimization.steps=3"))
    with pytest.raises(ValueError, match=r"learning_rate"):
        train(sft_config(tmp_path / "run", constant, "optimization.steps=5", "optimization.learning_rate=1e-3"))


def test_a_run_ends_early_under_its_own_schedule_and_goes_on_later(tmp_path, capsys):
    """With the step of its newest checkpoint a killed run writes its model at once."""
    linear = ["optimization.steps=4", "optimization.schedule=linear", "checkpoint.every=1"]
    train(sft_config(tmp_path / "whole", *linear))
    train(sft_config(tmp_path / "run", *linear, "checkpoint.stop_at=3"))
    assert "finished, 3 of 4 steps" in capsys.readouterr().out
    train(sft_config(tmp_path / "run", *linear, "checkpoint.stop_at=3"))
    assert "already finished, 3 of 4 steps" in capsys.readouterr().out
    assert events(tmp_path / "run", "step") == events(tmp_path / "whole", "step")[:3], "the schedule is that of 4"
    early = (tmp_path / "run/last/model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "run/last")
    train(sft_config(tmp_path / "run", *linear, "checkpoint.stop_at=3"))
    assert "already" not in capsys.readouterr().out, "as after a kill: it had no model"
    assert (tmp_path / "run/last/model.safetensors").read_bytes() == early
    with pytest.raises(ValueError, match=r"stop_at = 2, and .*checkpoints has come to step 3: .* Set it to 3 or more"):
        train(sft_config(tmp_path / "run", *linear, "checkpoint.stop_at=2"))
    for config in (sft_config, rl_config):
        with pytest.raises(ValueError, match=r"stop_at = 5 comes after optimization.steps = \d, and would change"):
            config(tmp_path / "other", *linear, "checkpoint.stop_at=5")
    train(sft_config(tmp_path / "run", *linear))
    assert same_weights(tmp_path / "run/last", tmp_path / "whole/last")
    describe(sft_config(tmp_path / "other", *linear, "checkpoint.stop_at=3"))
    assert "; 3 steps" in capsys.readouterr().out


def test_a_killed_run_that_is_ended_at_its_newest_checkpoint_is_measured_there_once(tmp_path, monkeypatch):
    """The card's scores and `best` are never those of an earlier step alone; what goes on later is the same run."""
    settings = ["optimization.steps=4", "evaluate.every=2"]
    train_until(3, train, sft_config(tmp_path / "run", *settings, evaluation=True), monkeypatch)
    assert {event["step"] for event in events(tmp_path / "run", "evaluate")} == {2}
    for _ in range(2):  # again: nothing more
        train(sft_config(tmp_path / "run", *settings, "checkpoint.stop_at=3", evaluation=True))
    found = [event for event in events(tmp_path / "run", "evaluate") if event["step"] == 3]
    assert len(found) == len(events(tmp_path / "run", "evaluate")) / 2 > 0
    facts = json.loads((tmp_path / "run/last/model_card.json").read_text())
    assert {row["step"] for row in facts["results"]} == {3}
    train(sft_config(tmp_path / "run", *settings, evaluation=True))
    train(sft_config(tmp_path / "whole", *settings, evaluation=True))
    assert same_weights(tmp_path / "run/last", tmp_path / "whole/last")


def test_a_base_that_was_named_by_a_relative_path_is_found_from_another_directory(tmp_path, monkeypatch):
    from search_r3_mteb import SearchR3Encoder

    monkeypatch.chdir(tmp_path)
    byte_folder(tmp_path / "base")
    more = ["model.lora.rank=2", "model.lora.alpha=4.0", "optimization.steps=1"]
    train(sft_config("runs/one", *more, model="base"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    vectors = SearchR3Encoder(tmp_path / "runs/one/last", mode="direct").encode_query(["a river"])
    train(sft_config("runs/two", *more, model=tmp_path / "runs/one/last"))
    assert np.isfinite(SearchR3Encoder("runs/two/last", mode="direct").encode_query(["a river"])).all()
    assert vectors.shape == (1, 32)


def test_a_checkpoint_has_its_own_score_and_pruning_keeps_the_best(tmp_path, monkeypatch):
    """Regression: each had the best score so far, so that the first after the best evaluation was kept."""
    from train.run import evaluation
    from train.run.evaluation import Score

    values = iter([0.9, 0.2, 0.1, 0.6, 0.5, 0.3])
    monkeypatch.setattr(
        evaluation, "evaluate", lambda *given: [Score("hand", "reason", None, next(values), 1, 0.0, 0.0)]
    )
    settings = ["optimization.steps=6", "evaluate.every=1", "checkpoint.every=2", "checkpoint.keep=1"]
    train(sft_config(tmp_path / "run", *settings, evaluation=True))
    manifests = sorted((tmp_path / "run/checkpoints").glob("*/manifest.json"))
    found = {path.parent.name: json.loads(path.read_text())["score"] for path in manifests}
    assert found == {"step-000004": 0.6, "step-000006": 0.3}


def test_a_checkpoint_without_an_evaluation_has_no_score(tmp_path):
    train(sft_config(tmp_path / "run", "evaluate.every=2", evaluation=True))
    manifests = sorted((tmp_path / "run/checkpoints").glob("*/manifest.json"))
    scores = [json.loads(path.read_text())["score"] for path in manifests]
    assert [score is None for score in scores] == [True, False, False]


def test_the_data_report_names_what_the_rows_were_compared_with(tmp_path, model):
    """Regression: `evaluations` was always empty; and replayed rows were not reported at all."""
    from train.rl import train as train_rl

    replay = ["replay.rows_per_step=2", 'replay.sources=[{kind = "hopworld", documents = 500, hops = [1]}]']
    checked = "data.sources.0.decontaminate=['queries']"
    train_rl(rl_config(tmp_path / "run", model, *replay, checked, "optimization.steps=1", evaluation=True))
    report = json.loads((tmp_path / "run/data.json").read_text())
    assert report["decontamination"]["evaluations"]["hopworld/dev"]["queries"] > 0
    assert report["decontamination"]["sources"]["hopworld-2"]["against"] == ["queries"]
    assert report["replay"]["sources"][0]["rows"] == 2
    assert report["replay"]["decontamination"]["sources"]["hopworld-1-traces"]["against"] == []
    train(sft_config(tmp_path / "off", "data.decontamination.enabled=false", "optimization.steps=1", evaluation=True))
    off = json.loads((tmp_path / "off/data.json").read_text())
    assert off["decontamination"]["evaluations"] == {}, "the control"


@pytest.mark.parametrize(("repeated", "warned"), [(2, True), (1, False), (0, False)])
def test_rows_that_repeat_evaluation_texts_are_said_at_the_start_where_they_are_many_and_at_the_end(
    tmp_path, model, capsys, repeated, warned
):
    """Regression: two fifths of a run's rows were dropped, and only `data.json` said so."""
    text, folder = "a stone bridge over the river", tmp_path / "held"
    write_beir(folder, corpus=[("d", "", text)], queries=[("q", "old bridge")], qrels={"dev": [("q", "d", 1)]})
    positives = [text] * repeated + [f"another text {n}" for n in range(12 - repeated)]
    rows = [{"query": f"question {n}", "positive": text} for n, text in enumerate(positives)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = f'[[data.sources]]\nkind = "jsonl"\npath = "{tmp_path / "rows.jsonl"}"\n'
    against = f'data.decontamination.against=[{{kind = "beir", path = "{folder}", split = "dev"}}]'
    # A batch of 8 takes all of the rows in two steps.
    train(sft_config(tmp_path / "run", against, "optimization.steps=3", model=model, sources=sources))
    said = [event["text"] for event in events(tmp_path / "run", "warning") if "repeat evaluation" in event["text"]]
    line = f"source rows.jsonl: {repeated} of its first 12 rows repeat evaluation texts and are left out"
    assert [text.startswith(line) for text in said] == [True] * warned
    shown = capsys.readouterr().out
    assert (f"{repeated} exact and 0 near duplicates of evaluation texts dropped" in shown) == bool(repeated)


def test_reasoning_beyond_the_model_s_window_is_refused_at_the_start(tmp_path, model):
    from train.run.run import Run

    def begin(*overrides, evaluation=False):
        config = rl_config(tmp_path / "run", model, *overrides, evaluation=evaluation)
        return Run.begin(config, unit="query")

    window = begin().checkpoint.window
    begin(f"rollout.max_reasoning_tokens={window - 97}")
    with pytest.raises(ValueError, match=rf"{window + 1} positions are needed .*max_reasoning_tokens={window - 96}"):
        begin(f"rollout.max_reasoning_tokens={window - 96}")
    begin(f"evaluate.max_reasoning_tokens={window}")  # nothing is evaluated
    with pytest.raises(ValueError, match=f"max_reasoning_tokens={window}"):
        begin(f"evaluate.max_reasoning_tokens={window}", evaluation=True)
    with pytest.raises(ValueError, match="positions are needed"):
        Run.begin(sft_config(tmp_path / "sft", f"data.max_length={window + 1}", model=model))
