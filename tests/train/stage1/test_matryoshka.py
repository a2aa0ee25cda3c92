"""Nested InfoNCE: the whole vectors and their first dimensions, by hand, and as sentence-transformers does it."""

import math
from functools import partial

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss
from torch import nn

from tests.train.loops import events, sft_config
from train.config.loss import LossSettings
from train.losses.gradcache import Forward, cached_backward
from train.model.batches import text_ids
from train.run.evaluation import first_dimensions
from train.sft import train
from train.stage1.contrastive import BatchContrast


def contrast(rows, **settings):
    """A batch of as many rows, each with its own query and document."""
    names = [str(row) for row in range(rows)]
    return BatchContrast(
        settings=LossSettings(reply=0.0, kl=0.0, triplet=0.0, **settings),
        rows={"direct": torch.arange(rows)},
        query_ids=text_ids([f"q{name}" for name in names]),
        document_ids=text_ids(names),
        positives=torch.arange(rows),
        owners=torch.arange(rows),
    )


class Given(nn.Module):
    """A model whose vectors are the features that it is given."""

    def forward(self, features):
        return dict(features)


def of_the_library(queries, documents, dims, weights, temperature):
    model = SentenceTransformer(modules=[Given()], device="cpu")
    loss = MatryoshkaLoss(model, MultipleNegativesRankingLoss(model, scale=1 / temperature), dims, weights)
    return loss([{"sentence_embedding": queries}, {"sentence_embedding": documents}], torch.zeros(len(queries)))


def vectors(rows, dim, seed=0):
    drawn = torch.randn(2, rows, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn[0].clone().requires_grad_(), drawn[1].clone().requires_grad_()


def test_by_hand():
    """Two rows in three dimensions. In the first two, query 0 is its document and at right angles to the other."""
    queries = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]], dtype=torch.float64)
    documents = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    half = math.sqrt(0.5)

    def nce(positive, negative):
        return math.log(math.exp(positive) + math.exp(negative)) - positive

    whole = (nce(half, 0) + nce(half, 0.5)) / 2
    first_two = nce(1, 0)
    terms = contrast(2, temperature=1.0, infonce=0.5, matryoshka_dims=[2], matryoshka_weights=[0.3])
    loss = terms({"documents": documents, "direct": queries})
    assert loss.item() == pytest.approx(0.5 * (whole + 0.3 * first_two))
    assert terms.parts == {"infonce": pytest.approx(whole), "infonce_2": pytest.approx(first_two)}
    plain = contrast(2, temperature=1.0, infonce=0.5)
    assert plain({"documents": documents, "direct": queries}).item() == pytest.approx(0.5 * whole)
    assert plain.parts.keys() == {"infonce"}


@pytest.mark.parametrize("weights", [(), (0.5, 2.0)])
def test_value_and_gradient_are_those_of_sentence_transformers(weights):
    ours, theirs = vectors(5, 16), vectors(5, 16)
    loss = contrast(5, temperature=0.05, matryoshka_dims=[4, 8], matryoshka_weights=weights)(
        {"documents": ours[1], "direct": ours[0]}
    )
    expected = of_the_library(*theirs, [16, 4, 8], [1.0, *(weights or (1.0, 1.0))], 0.05)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    loss.backward()
    expected.backward()
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-6, atol=1e-9)
    # Not so with other sizes: the comparison can fail.
    another = contrast(5, temperature=0.05, matryoshka_dims=[4, 9], matryoshka_weights=weights)
    assert another({"documents": ours[1], "direct": ours[0]}).item() != pytest.approx(expected.item(), rel=1e-3)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_cached_gradients_are_the_gradients_of_the_whole_batch(size):
    torch.manual_seed(0)
    layer = nn.Linear(6, 12, dtype=torch.float64)
    texts = {name: torch.randn(5, 6, dtype=torch.float64) for name in ("documents", "direct")}

    def terms():
        return contrast(5, matryoshka_dims=[3, 6])

    terms()({name: layer(rows) for name, rows in texts.items()}).backward()
    expected = [each.grad.clone() for each in layer.parameters()]
    layer.zero_grad()
    forwards = {
        name: [partial(lambda part: Forward(layer(part)), part) for part in rows.split(size)]
        for name, rows in texts.items()
    }
    cached_backward(forwards, terms())
    for own, whole in zip(layer.parameters(), expected, strict=True):
        torch.testing.assert_close(own.grad, whole)
    assert any(float(each.abs().max()) > 0 for each in expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"matryoshka_dims": [4, 4]}, "names a size twice"),
        ({"matryoshka_dims": [4], "matryoshka_weights": [1.0, 2.0]}, "are 2 for 1 matryoshka_dims"),
        ({"matryoshka_weights": [1.0]}, "are 1 for 0 matryoshka_dims"),
        ({"matryoshka_dims": [4], "matryoshka_weights": [0.0]}, "a size of weight 0 is not learned"),
        ({"matryoshka_dims": [4], "infonce": 0.0}, "sizes of InfoNCE, and infonce = 0"),
        ({"matryoshka_dims": [0]}, "matryoshka_dims"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        LossSettings(**settings)


def test_a_size_must_be_smaller_than_the_vectors():
    settings = LossSettings(matryoshka_dims=[8, 32])
    settings.check_sizes(33)
    with pytest.raises(ValueError, match=r"the vectors have 32 dimensions.* and 32 is not smaller"):
        settings.check_sizes(32)


def test_each_size_is_learned_and_measured_in_a_run(tmp_path):
    """Two steps of the real loop: the loss is the sum of its terms, and every size is scored in both modes."""
    config = sft_config(
        tmp_path / "run", "optimization.steps=2", "evaluate.every=2", "loss.infonce=0.5", "loss.reply=0.2",
        "loss.matryoshka_dims=[8,16]", "loss.matryoshka_weights=[0.3,2.0]", evaluation=True,
    )  # fmt: skip
    train(config)
    for event in events(tmp_path / "run", "step"):
        nce = event["infonce"] + 0.3 * event["infonce_8"] + 2 * event["infonce_16"]
        assert event["loss"] == pytest.approx(0.5 * nce + 0.2 * event["reply"], rel=1e-5)
    scored = {(event["mode"], event.get("dim")) for event in events(tmp_path / "run", "evaluate")}
    assert scored == {(mode, dim) for mode in ("direct", "reason") for dim in (None, 8, 16)}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss.matryoshka_dims=[32]", "the vectors have 32 dimensions.* and 32 is not smaller"),
        ("evaluate.dims=[40]", r"evaluate\.dims = \[40\]: the vectors have 32 dimensions"),
    ],
)
def test_sizes_are_checked_before_the_first_step(tmp_path, override, message):
    with pytest.raises(ValueError, match=message):
        train(sft_config(tmp_path / "run", override, evaluation=True))


def test_what_is_measured_is_what_the_encoder_gives(tmp_path):
    """`first_dimensions` of training and `truncate_dim` of the encoder are one thing."""
    from search_r3_mteb import SearchR3Encoder

    texts = ["who?", "what is a river?"]
    whole = SearchR3Encoder("nano", mode="direct").encode_query(texts)
    cut = SearchR3Encoder("nano", mode="direct", truncate_dim=40).encode_query(texts)
    torch.testing.assert_close(torch.tensor(first_dimensions(whole, 40)), torch.tensor(cut), rtol=1e-5, atol=1e-6)
    assert first_dimensions(whole, None) is whole
