"""Settings of stage 1 that must reach its losses: each against a number that is written out."""

import json
from math import cos, radians

import pytest
import torch

from tests.train.loops import byte_folder, sft_config
from tests.train.stage1.test_contrastive import angle, contrast
from train.config.data import ColumnSettings, SourceSettings
from train.data.sources import all_rows, open_source
from train.model import model as models
from train.run.run import Run
from train.stage1.step import SupervisedStep


@pytest.mark.parametrize("margin", [0.05, 0.1, 0.4, 2.0])
def test_the_margin_by_which_the_positive_must_beat_the_hardest_negative(margin):
    terms = contrast(["p", "q"], ["a", "b"], [0, 1], [0, 1], infonce=0.0, triplet=1.0, margin=margin)
    loss = terms({"documents": angle(0, 90), "direct": angle(40, 80)})
    of_p = max(0.0, margin + cos(radians(50)) - cos(radians(40)))
    of_q = max(0.0, margin + cos(radians(80)) - cos(radians(10)))
    assert loss.item() == pytest.approx((of_p + of_q) / 2, abs=1e-7)


@pytest.fixture
def away(tmp_path):
    """A run that has left its base: the embed token, which the base has never seen, has become likely."""

    def begin(direction):
        config = sft_config(
            tmp_path / direction, f"loss.kl_direction={direction}", "loss.kl=1", "loss.reply=0.01", "loss.infonce=0",
            model=byte_folder(tmp_path / "base"),
        )  # fmt: skip
        run = Run.begin(config)
        base = models.Base.of(run.checkpoint)
        with torch.no_grad():
            weight = run.checkpoint.model.get_input_embeddings().weight
            weight.mul_(2).add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)))
            weight[run.checkpoint.embed_token_id] *= 4
        return run, base

    return begin


def written_out(run, base, rows, direction, without):
    """The KL at the reply's tokens, each row alone, by Hugging Face's forward; a mean over each turn's tokens."""
    left = [token for token in range(run.checkpoint.model.config.vocab_size) if token != without]
    total = 0.0
    for traced in (False, True):
        found = []
        for row in rows:
            if traced and row.reasoning is None:
                continue
            turn = run.renderer.render_reply(
                row.query, "reason" if traced else "direct", row.reasoning if traced else None
            )
            start, end = turn.spans["assistant"]
            ids = torch.tensor([turn.token_ids])
            model, before = (one(ids).logits[0, start - 1 : end - 1, left].log_softmax(-1) for one in (run.model, base))
            one, other = (before, model) if direction == "forward" else (model, before)
            found.append((one.exp() * (one - other)).sum(-1))
        total += float(torch.cat(found).mean())
    return total


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_the_direction_of_the_kl_and_that_the_embed_token_is_left_out(tmp_path, away, direction):
    run, base = away(direction)
    rows = run.data.next_batch()
    assert any(row.reasoning for row in rows)
    with torch.no_grad():
        embed = run.checkpoint.embed_token_id
        expected = written_out(run, base.model, rows, direction, embed)
        reverse = written_out(run, base.model, rows, {"forward": "reverse", "reverse": "forward"}[direction], embed)
        whole = written_out(run, base.model, rows, direction, None)
    found = SupervisedStep(run, run.config.loss, None, base).backward(rows)
    assert found["kl"] == pytest.approx(expected, rel=1e-4)
    assert abs(expected - reverse) > 0.05 * expected, "the control: the direction matters"
    assert abs(expected - whole) > 0.05 * expected, "the control: the embed token matters"


def test_a_given_text_is_read_and_not_learned(tmp_path):
    """A row's `given` stands before the vector as if it had been said; alone, only the embed token is learned."""
    file = tmp_path / "rows.jsonl"
    rows = [
        {"query": "a hill", "positive": "tree", "given": "stone"},
        {"query": "a hill", "positive": "tree", "given": "stone", "reasoning": "river"},
        {"query": "a hill", "positive": "tree"},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = list(all_rows(open_source(SourceSettings(kind="jsonl", path=str(file)))))
    assert [(row.given, row.reasoning) for row in read] == [("stone", None), ("stone", "river"), (None, None)]
    renamed = ColumnSettings(given="said")
    other = list(all_rows(open_source(SourceSettings(kind="jsonl", path=str(file), columns=renamed))))
    assert [row.given for row in other] == [None, None, None], "the column's name is a setting"

    run = Run.begin(sft_config(tmp_path / "run", model=byte_folder(tmp_path / "base")))
    columns, _ = SupervisedStep(run, run.config.loss).prepare(read)
    reasoned = [rendered for part in columns["reason"] for rendered in part]
    learned = [rendered.token_ids[slice(*rendered.spans["assistant"])] for rendered in reasoned]
    embed, spoken = run.checkpoint.embed_token_id, run.renderer.tokenize_text([" river"])[0]
    assert learned == [[embed], [*spoken, embed]]
    text = run.checkpoint.tokenizer.decode(reasoned[0].token_ids[: reasoned[0].spans["assistant"][0]])
    assert text.endswith("stone"), "it is read"
