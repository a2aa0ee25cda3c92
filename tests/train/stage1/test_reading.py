"""Reading: documents packed, and the cross-entropy of a causal LM on their tokens, with its gradient."""

from types import SimpleNamespace

import pytest
import torch

from tests.train.loops import byte_folder, sft_config
from train.model import model as models
from train.run.run import Run
from train.stage1.reading import packed, reading_backward
from train.stage1.step import SupervisedStep

TEXTS = ["Anna wrote it.", "The river is long and wide.", "No."]


class Plain:
    """The part of accelerate that a backward pass needs."""

    backward = staticmethod(torch.Tensor.backward)


def test_each_document_twice_in_an_order_of_its_own():
    documents = [f"d{number}." for number in range(20)]
    texts = packed([*documents, "d0."], 8)
    assert [sorted(text.split()) for text in texts] == [sorted(documents[i : i + 8] * 2) for i in (0, 8, 16)]
    assert texts == packed(documents, 8)
    assert all(text.split() != sorted(text.split()) for text in texts)
    places = [[place for place, one in enumerate(texts[0].split()) if one == document] for document in documents[:8]]
    assert len({second - first for first, second in places}) > 3, (
        "the second reading does not follow the first at one distance"
    )
    assert packed([], 2) == []


@pytest.fixture
def setting(tmp_path):
    from search_r3_mteb.encoder.prompts import Renderer
    from train.config.model import ModelSettings

    checkpoint = models.prepare(ModelSettings(path=str(byte_folder(tmp_path / "start"))), seed=0)
    return checkpoint, Renderer(checkpoint.tokenizer, checkpoint.profile, 200)


def read(setting, mini_batch_size):
    checkpoint, renderer = setting
    checkpoint.model.zero_grad()
    cpu = torch.device("cpu")
    run = SimpleNamespace(
        model=checkpoint.model, checkpoint=checkpoint, renderer=renderer, accelerator=Plain, device=cpu
    )
    loss = reading_backward(run, TEXTS, weight=0.5, mini_batch_size=mini_batch_size)
    return loss, [None if p.grad is None else p.grad.clone() for p in checkpoint.model.parameters()]


@pytest.mark.parametrize("mini_batch_size", [None, 1, 2])
def test_the_loss_is_transformers_own_and_the_weight_scales_the_gradient(setting, mini_batch_size):
    loss, gradients = read(setting, mini_batch_size)
    checkpoint, renderer = setting
    total, count = torch.zeros(()), 0
    for rendered in renderer.render_batch(TEXTS, "reason"):
        start, end = rendered.spans["user"]
        ids = torch.tensor([rendered.token_ids])
        labels = torch.full_like(ids, -100)
        labels[0, start:end] = ids[0, start:end]
        assert checkpoint.tokenizer.decode(ids[0, start:end]).strip() in TEXTS
        total = total + checkpoint.model(ids, labels=labels).loss * (end - start)
        count += end - start
    checkpoint.model.zero_grad()
    truth = total / count
    (0.5 * truth).backward()
    assert loss == pytest.approx(truth.item(), abs=1e-5)
    for mine, parameter in zip(gradients, checkpoint.model.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad, atol=1e-5, rtol=1e-4)


def test_the_comparison_fails_when_other_tokens_are_learned(setting, monkeypatch):
    truth, _ = read(setting, None)
    monkeypatch.setattr("train.stage1.reading.collate", lambda part, pad, device, learned: _shifted(part, pad, device))
    assert read(setting, None)[0] != pytest.approx(truth, abs=1e-3)


def _shifted(part, pad, device):
    from train.model.batches import collate

    rows = collate(part, pad, device, "user")
    rows.reply[:] = rows.reply.roll(-1, dims=1)
    return rows


def test_stage_one_adds_it_to_its_loss(tmp_path):
    def one(weight):
        config = sft_config(tmp_path / str(weight), f"loss.reading={weight}", "loss.reading_documents=4")
        run = Run.begin(config)
        step = SupervisedStep(run, run.config.loss, run.config.optimization.mini_batch_size)
        return step.backward(run.data.next_batch())

    without, with_reading = one(0.0), one(0.5)
    assert "reading" not in without
    assert with_reading["loss"] == pytest.approx(without["loss"] + 0.5 * with_reading["reading"], abs=1e-4)
