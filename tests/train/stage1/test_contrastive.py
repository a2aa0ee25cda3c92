"""Stage 1's contrastive terms, against small tables written out by hand."""

import math

import pytest
import torch

from train.config.loss import LossSettings
from train.model.batches import text_ids
from train.stage1.contrastive import BatchContrast


def contrast(queries, documents, owners, positives, *, traced=(), **settings):
    """The share of a batch of one process; documents and queries are texts."""
    return BatchContrast(
        settings=LossSettings(
            **({"reply": 0.0, "kl": 0.0, "infonce": 1.0, "triplet": 0.0, "temperature": 1.0} | settings)
        ),
        rows={"direct": torch.arange(len(queries)), "reason": torch.tensor(traced, dtype=torch.long)},
        query_ids=text_ids(queries),
        document_ids=text_ids(documents),
        positives=torch.tensor(positives),
        owners=torch.tensor(owners),
    )


def angle(*degrees):
    radians = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack([radians.cos(), radians.sin()], dim=1)


def cosine(degrees):
    return math.cos(math.radians(degrees))


def nce(positive, *negatives):
    return math.log(sum(math.exp(cosine(d)) for d in (positive, *negatives))) - cosine(positive)


def test_infonce_over_both_columns():
    """Two rows, the second with a trace: the mean is over three queries."""
    terms = contrast(["p", "q"], ["a", "b"], [0, 1], [0, 1], traced=[1])
    loss = terms({"documents": angle(0, 90), "direct": angle(10, 60), "reason": angle(80)})
    expected = (nce(10, 80) + nce(30, 60) + nce(10, 80)) / 3
    assert loss.item() == pytest.approx(expected)
    assert terms.parts == {"infonce": pytest.approx(expected)}


def test_copies_and_other_positives_of_a_query_are_no_negatives():
    """Rows 0 and 1 are the same query with two documents, row 2 has row 0's document again."""
    terms = contrast(["p", "p", "q"], ["a", "b", "a"], [0, 1, 2], [0, 1, 2])
    loss = terms({"documents": angle(0, 90, 0), "direct": angle(10, 20, 30)})
    assert loss.item() == pytest.approx((nce(10) + nce(70) + nce(30, 60)) / 3)


def test_a_row_s_own_negatives_alone():
    """Regression: a text that is the negative of two rows was the negative of the first one only."""
    terms = contrast(
        ["p", "q", "r"], ["a", "b", "c", "hard", "hard"], [0, 1, 2, 0, 2], [0, 1, 2], traced=[2], in_batch=False
    )
    loss = terms({"documents": angle(0, 40, 80, 120, 120), "direct": angle(0, 40, 80), "reason": angle(90)})
    assert loss.item() == pytest.approx((nce(0, 120) + nce(0) + nce(0, 40) + nce(10, 30)) / 4)
    with_others = contrast(["p", "q", "r"], ["a", "b", "c", "hard", "hard"], [0, 1, 2, 0, 2], [0, 1, 2], traced=[2])
    assert with_others(
        {"documents": angle(0, 40, 80, 120, 120), "direct": angle(0, 40, 80), "reason": angle(90)}
    ).item() == pytest.approx((nce(0, 40, 80, 120) + nce(0, 40, 40, 80) + nce(0, 40, 40, 80) + nce(10, 30, 50, 90)) / 4)


def test_the_triplet_takes_the_hardest_document_that_is_allowed():
    terms = contrast(["p", "q"], ["a", "b", "c"], [0, 1, 1], [0, 1], infonce=0.0, triplet=2.0, margin=0.1)
    loss = terms({"documents": angle(0, 90, 20), "direct": angle(15, 80)})
    expected = [max(0.0, 0.1 + cosine(5) - cosine(15)), max(0.0, 0.1 + cosine(60) - cosine(10))]
    assert loss.item() == pytest.approx(2 * sum(expected) / 2)
    assert terms.parts["triplet"] == pytest.approx(sum(expected) / 2)
    assert expected[0] > 0


def test_a_query_without_an_allowed_document_has_no_triplet():
    terms = contrast(["p", "p"], ["a", "b"], [0, 1], [0, 1], infonce=0.0, triplet=1.0)
    vectors = {"documents": angle(0, 90).requires_grad_(), "direct": angle(15, 80).requires_grad_()}
    with pytest.raises(ValueError, match="No query of any process has a negative among the 2 documents"):
        terms(vectors)


@pytest.mark.parametrize("half", [torch.bfloat16, None])
def test_autocast_does_not_touch_the_cosines(half):
    from contextlib import nullcontext

    vectors = torch.nn.functional.normalize(torch.randn(3, 4, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    terms = contrast(list("pqrs"), list("abcd"), [0, 1, 2, 3], [0, 1, 2, 3], triplet=1.0, temperature=0.05)
    with nullcontext() if half is None else torch.autocast("cpu", half):
        loss = terms({"documents": vectors[0], "direct": vectors[1]})
    assert loss.dtype == torch.float32
    plain = contrast(list("pqrs"), list("abcd"), [0, 1, 2, 3], [0, 1, 2, 3], triplet=1.0, temperature=0.05)
    assert loss.item() == pytest.approx(plain({"documents": vectors[0], "direct": vectors[1]}).item(), rel=1e-6)


def test_whether_it_is_needed():
    assert contrast(["p"], ["a"], [0], [0]).needed
    assert contrast(["p"], ["a"], [0], [0], infonce=0.0, triplet=0.5).needed
    assert not contrast(["p"], ["a"], [0], [0], infonce=0.0, reply=1.0).needed
