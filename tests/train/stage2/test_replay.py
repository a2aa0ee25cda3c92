"""Stage-1 rows replayed in stage 2: their gradient is that of stage 1, and their position is resumed."""

import pytest
import torch

from tests.train.loops import events, largest_difference, recorded_gradients, rl_config, train_until
from train.config.loss import ReplayLossSettings
from train.model import model as models
from train.rl import train
from train.run.run import Run
from train.stage1 import step
from train.stage1.step import SupervisedStep
from train.stage2.replay import Replay

REPLAY = [
    "replay.rows_per_step=3",
    'replay.sources=[{kind = "hopworld", documents = 500, hops = [1]}]',
    "replay.loss.reply=0.5",
]


def replayed(config):
    """The run, what it replayed, the losses, and their gradient."""
    run = Run.begin(config, unit="query")
    replay = Replay.begin(run)
    first = replay.data.state_dict()
    losses = replay.backward()
    replay.data.load_state_dict(first)
    return run, replay.data.next_batch(), losses, {n: p.grad.clone() for n, p in models.trainable(run.model)}


def test_replay_adds_the_cross_entropy_of_stage_1_rows(tmp_path, model, monkeypatch):
    run, rows, losses, ours = replayed(rl_config(tmp_path / "run", model, *REPLAY))
    checkpoint = run.checkpoint
    checkpoint.model.zero_grad()
    said = {"direct": [], "reason": []}
    for row in rows:
        for mode, reasoning in (("direct", None), ("reason", row.reasoning)):
            turn = run.renderer.render_reply(row.query, mode, reasoning)
            logits = checkpoint.model(torch.tensor([turn.token_ids])).logits[0].log_softmax(-1)
            said[mode] += [-logits[t - 1, turn.token_ids[t]] for t in range(*turn.spans["assistant"])]
    reply = sum(torch.stack(terms).mean() for terms in said.values())
    (0.5 * reply).backward()
    assert losses == {"replay": pytest.approx(0.5 * reply.item()), "replay_reply": pytest.approx(reply.item())}
    assert largest_difference(ours, {n: p.grad for n, p in models.trainable(run.model)}) < 1e-5
    whole = recorded_gradients(train, rl_config(tmp_path / "whole", model, *REPLAY), monkeypatch)
    train_until(1, train, rl_config(tmp_path / "stopped", model, *REPLAY), monkeypatch)
    rest = recorded_gradients(train, rl_config(tmp_path / "stopped", model, *REPLAY), monkeypatch)
    assert largest_difference(whole[2], rest[1]) == 0, "the replayed rows' position was not resumed"
    assert all("replay" in event for event in events(tmp_path / "whole", "step"))


def test_replay_keeps_to_the_mini_batch_size(tmp_path, model, monkeypatch):
    """Its rows run as many at a time as rollouts do, with the same gradient."""
    extra = ["replay.loss.infonce=0.7"]
    _, _, _, whole = replayed(rl_config(tmp_path / "run", model, *REPLAY, *extra))
    sizes, original = [], step.collate
    monkeypatch.setattr(step, "collate", lambda part, *more: sizes.append(len(part)) or original(part, *more))
    _, _, _, parts = replayed(rl_config(tmp_path / "run", model, *REPLAY, *extra, "optimization.mini_batch_size=2"))
    assert max(sizes) == 2
    assert largest_difference(parts, whole) < 1e-6


def test_replay_is_a_step_of_stage_1_with_every_loss(tmp_path, model):
    extra = ["replay.loss.reading=2.0", "replay.loss.reading_documents=2", "replay.loss.infonce=0.7"]
    _, _, _, reply_alone = replayed(rl_config(tmp_path / "run", model, *REPLAY))
    run, rows, losses, ours = replayed(rl_config(tmp_path / "run", model, *REPLAY, *extra))
    assert set(losses) == {"replay", "replay_reply", "replay_reading", "replay_infonce"}
    run.checkpoint.model.zero_grad()
    loss = ReplayLossSettings(reply=0.5, reading=2.0, reading_documents=2, infonce=0.7)
    truth = SupervisedStep(run, loss).backward(rows)
    assert losses["replay"] == pytest.approx(truth["loss"])
    assert largest_difference(ours, {n: p.grad for n, p in models.trainable(run.model)}) < 1e-6
    assert largest_difference(ours, reply_alone) > 1e-3, "the control: the other losses count"
