"""Stage-1 losses: golden values worked out by hand, gradients against finite differences, and what each must refuse."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from train.losses.stage1 import (
    info_nce,
    kl_to_base,
    negative_mask,
    reply_cross_entropy,
    select_reply,
    token_scores,
    triplet_margin,
)

LN2, LN3 = math.log(2), math.log(3)


def identity(hidden):
    """A head whose logits are the hidden state."""
    return hidden


def double(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


# --- reply cross-entropy ----------------------------------------------------------------------------------------------


def test_cross_entropy_golden():
    # Row 0: three equal logits, so 1/3. Row 1: logits ln 2, 0, 0, so 2/4.
    hidden = torch.tensor([[0.0, 0.0, 0.0], [LN2, 0.0, 0.0]])
    targets = torch.tensor([0, 0])
    assert reply_cross_entropy(hidden, identity, targets).item() == pytest.approx(
        0.8958797, abs=1e-6
    )  # (ln 3 + ln 2) / 2
    # As one of several parts of a batch of 10 reply tokens.
    assert reply_cross_entropy(hidden, identity, targets, count=10).item() == pytest.approx(0.1791759, abs=1e-6)


def test_token_scores_golden_temperature_and_entropy():
    hidden = torch.tensor([[LN2, 0.0, 0.0]])
    # At temperature 1/2 the logits double: weights 4, 1, 1.
    scores = token_scores(hidden, identity, torch.tensor([0]), temperature=0.5)
    assert scores.log_probs.item() == pytest.approx(math.log(4 / 6), abs=1e-6)
    # Entropy of (2/3, 1/6, 1/6): 0.2703101 + 0.5972532.
    assert scores.entropies.item() == pytest.approx(0.8675632, abs=1e-6)
    assert not scores.entropies.requires_grad


def test_cross_entropy_gradient_and_chunks():
    hidden, weight = double(7, 3), double(5, 3, seed=1)
    targets = torch.tensor([0, 4, 2, 2, 1, 3, 0])
    assert gradcheck(lambda h, w: reply_cross_entropy(h, lambda x: x @ w.T, targets, chunk=2), (hidden, weight))
    losses = [reply_cross_entropy(hidden, lambda x: x @ weight.T, targets, chunk=n) for n in (1, 3, 7, 256)]
    expected = torch.nn.functional.cross_entropy(hidden @ weight.T, targets)
    for loss in losses:
        torch.testing.assert_close(loss, expected)


def test_select_reply_takes_reply_and_embed_token_whatever_the_padding():
    # Columns: prompt 5 6, reply 7 8 (8 is the embed token). hidden state at column t is the number t.
    ids = {"left": [0, 5, 6, 7, 8], "right": [5, 6, 7, 8, 0]}
    marks = {"left": [0, 0, 0, 1, 1], "right": [0, 0, 1, 1, 0]}
    hidden = torch.arange(5.0)[None, :, None]
    for side, first in (("left", 2.0), ("right", 1.0)):
        reply = select_reply(hidden, torch.tensor([ids[side]]), torch.tensor([marks[side]]).bool())
        assert reply.targets.tolist() == [7, 8]
        assert reply.hidden[:, 0].tolist() == [first, first + 1]  # the position before each


def test_prompt_tokens_have_no_gradient():
    hidden = double(1, 5, 3)
    reply = select_reply(hidden, torch.tensor([[0, 1, 2, 1, 2]]), torch.tensor([[False, False, False, True, True]]))
    reply_cross_entropy(reply.hidden, identity, reply.targets).backward()
    touched = hidden.grad[0].abs().sum(dim=1) > 0
    assert touched.tolist() == [False, False, True, True, False]


def test_select_reply_refuses():
    hidden, ids = torch.zeros(2, 3, 1), torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(ValueError, match=r"reply\[1, 0\] is True"):
        select_reply(hidden, ids, torch.tensor([[False, True, False], [True, True, False]]))
    with pytest.raises(ValueError, match=r"Rows \[1\] have no reply token"):
        select_reply(hidden, ids, torch.tensor([[False, True, False], [False, False, False]]))


@pytest.mark.parametrize("chunked", [True, False])
def test_logits_of_all_positions_never_exist_together(chunked):
    positions, vocabulary, chunk = 64, 500, 8
    hidden, weight = torch.randn(positions, 4, requires_grad=True), torch.randn(vocabulary, 4, requires_grad=True)
    targets = torch.zeros(positions, dtype=torch.long)
    kept, widest = [], []

    def head(rows):
        widest.append(len(rows))
        return rows @ weight.T

    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        if chunked:
            loss = reply_cross_entropy(hidden, head, targets, chunk=chunk)
        else:  # negative control: the plain loss keeps logits for every position
            loss = torch.nn.functional.cross_entropy(head(hidden), targets)
    kept_before_backward = sum(kept)
    loss.backward()
    assert (max(widest) <= chunk) == chunked
    assert (kept_before_backward < chunk * vocabulary) == chunked


# --- KL to the base ---------------------------------------------------------------------------------------------------


def test_kl_golden_both_directions():
    model, base = torch.tensor([[LN2, 0.0, 0.0]]), torch.zeros(1, 3)  # (1/2, 1/4, 1/4) against (1/3, 1/3, 1/3)
    forward = kl_to_base(model, identity, base, identity, direction="forward")
    reverse = kl_to_base(model, identity, base, identity, direction="reverse")
    assert forward.item() == pytest.approx(0.0566330, abs=1e-6)  # 1/3 ln 2/3 + 2/3 ln 4/3
    assert reverse.item() == pytest.approx(0.0588915, abs=1e-6)  # 1/2 ln 3/2 + 1/2 ln 3/4
    assert kl_to_base(model, identity, base, identity).item() == reverse.item()


def test_kl_without_the_new_token_compares_what_the_base_knows():
    # The model gives token 2 almost everything; given "not token 2" it agrees with the base exactly.
    model, base = torch.tensor([[LN2, 0.0, 20.0]]), torch.tensor([[LN2, 0.0, -20.0]])
    for direction in ("forward", "reverse"):
        loss = kl_to_base(model, identity, base, identity, direction=direction, new_token_id=2)
        assert loss.item() == pytest.approx(0.0, abs=1e-6)
        assert kl_to_base(model, identity, base, identity, direction=direction).item() > 10


@pytest.mark.parametrize(("direction", "equilibrium"), [("reverse", 0.088), ("forward", 0.5)])
def test_why_the_new_token_is_left_out(direction, equilibrium):
    # Two tokens, the second new and improbable to the base. Cross-entropy wants it at 1; where does the sum want it?
    base = torch.tensor([[0.0, math.log(1e-6)]], dtype=torch.float64)

    def slope(probability, new_token_id):
        hidden = torch.tensor(
            [[0.0, math.log(probability / (1 - probability))]], dtype=torch.float64, requires_grad=True
        )
        cross_entropy = reply_cross_entropy(hidden, identity, torch.tensor([1]))
        kl = kl_to_base(hidden, identity, base, identity, direction=direction, new_token_id=new_token_id)
        (cross_entropy + kl).backward()
        return hidden.grad[0, 1].item()

    assert slope(0.9 * equilibrium, None) < 0 < slope(1.1 * equilibrium, None)  # stays there
    assert slope(0.99, 1) < 0  # keeps rising


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("new_token_id", [None, 3])
def test_kl_gradient(direction, new_token_id):
    hidden, base, weight = double(5, 3), double(5, 2, seed=1), double(4, 3, seed=2)
    base_weight = double(4, 2, seed=3)

    def loss(h, w):
        return kl_to_base(
            h,
            lambda x: x @ w.T,
            base,
            lambda x: x @ base_weight.T,
            direction=direction,
            new_token_id=new_token_id,
            chunk=2,
        )

    assert gradcheck(loss, (hidden, weight))
    loss(hidden, weight).backward()
    assert base.grad is None
    assert base_weight.grad is None
    assert hidden.grad.abs().sum() > 0


def test_kl_of_a_model_with_itself_is_zero():
    hidden = double(6, 4)
    loss = kl_to_base(hidden, identity, hidden, identity)
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-12)
    assert hidden.grad.abs().max() < 1e-12


def test_kl_refuses():
    two, three = torch.zeros(1, 2), torch.zeros(1, 3)
    with pytest.raises(ValueError, match="3 logits and the base 2"):
        kl_to_base(three, identity, two, identity)
    with pytest.raises(ValueError, match="direction='sideways'"):
        kl_to_base(two, identity, two, identity, direction="sideways")  # type: ignore[arg-type]


# --- InfoNCE ----------------------------------------------------------------------------------------------------------

QUERIES = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
DOCUMENTS = torch.tensor([[3.0, 0.0], [0.0, 1.0], [1.0, 1.0]])  # two positives, then a hard negative at 45 degrees


def test_info_nce_golden():
    # Cosines (1, 0, 0.7071) and (0, 1, 0.7071), temperature 1/2: ln(e^2 + e^0 + e^1.4142) - 2 for either row.
    assert info_nce(QUERIES, DOCUMENTS, temperature=0.5).item() == pytest.approx(0.5259131, abs=1e-6)
    # Positive of query 1 is the document at 45 degrees, that of query 0 is unchanged:
    # (0.5259131 + ln(e^0 + e^2 + e^1.4142) - 1.4142136) / 2 = (0.5259131 + 1.1116996) / 2.
    swapped = info_nce(QUERIES, DOCUMENTS, positives=torch.tensor([0, 2]), temperature=0.5)
    assert swapped.item() == pytest.approx(0.8188063, abs=1e-6)


def test_info_nce_default_temperature_is_written_down():
    # Cosines 1 and 0 at 0.05: ln(1 + e^-20).
    loss = info_nce(QUERIES.double(), DOCUMENTS[:2].double())
    assert loss.item() == pytest.approx(math.log1p(math.exp(-20)), rel=1e-6)


def test_info_nce_masks_golden():
    # Without the hard negative for query 0: ln(e^2 + e^0) - 2 = 0.1269280.
    negatives = torch.tensor([[True, True, False], [True, True, True]])
    loss = info_nce(QUERIES, DOCUMENTS, negatives=negatives, temperature=0.5)
    assert loss.item() == pytest.approx((0.1269280 + 0.5259131) / 2, abs=1e-6)


def test_info_nce_gradient():
    queries, documents = double(3, 4), double(5, 4, seed=1)
    negatives = negative_mask(torch.tensor([4, 1, 2]), torch.tensor([9, 8, 7, 9, 6]))
    assert gradcheck(
        lambda q, d: info_nce(q, d, positives=torch.tensor([4, 1, 2]), negatives=negatives, temperature=0.3),
        (queries, documents),
    )


def test_stale_documents_are_constants():
    fresh, stale, queries = double(2, 4), double(3, 4, seed=1), double(2, 4, seed=2)
    info_nce(queries, torch.cat([fresh, stale.detach()])).backward()
    assert stale.grad is None
    assert fresh.grad.abs().sum() > 0


def test_duplicates_and_other_positives_are_no_negatives():
    #            column: 0   1   2   3   4   5
    document_ids = torch.tensor([10, 11, 10, 12, 13, 12])
    positives = torch.tensor([0, 1, 2])  # rows 0 and 2 have the same document
    mask = negative_mask(positives, document_ids)
    assert mask.int().tolist() == [
        [0, 1, 0, 1, 1, 0],  # column 2 is a copy of its own positive, column 5 a copy of column 3
        [1, 0, 0, 1, 1, 0],  # column 2 is a copy of column 0
        [0, 1, 0, 1, 1, 0],
    ]


def test_positives_of_the_same_query_in_other_rows_are_no_negatives():
    document_ids = torch.tensor([10, 11, 12, 13])
    mask = negative_mask(torch.tensor([0, 1, 2]), document_ids, query_ids=torch.tensor([5, 6, 5]))
    assert mask.int().tolist() == [[0, 1, 0, 1], [1, 0, 1, 1], [0, 1, 0, 1]]


def test_known_judgements_are_no_negatives_also_with_wide_ids():
    wide = 2**62
    document_ids = torch.tensor([wide, 11, 12])
    mask = negative_mask(
        torch.tensor([0, 1]),
        document_ids,
        query_ids=torch.tensor([wide + 5, 6]),
        relevant=torch.tensor([[wide + 5, 12], [6, 99]]),  # document 99 is not in the batch
    )
    assert mask.int().tolist() == [[0, 1, 0], [1, 0, 1]]
    with pytest.raises(ValueError, match="`relevant` names queries by id"):
        negative_mask(torch.tensor([0]), document_ids, relevant=torch.tensor([[5, 12]]))


def test_in_batch_negatives_off():
    # Two rows, two hard negatives each: b + row * 2 + number. Row 0's first hard negative is a copy of row 1's.
    document_ids = torch.tensor([0, 1, 20, 21, 20, 23])
    owners = torch.tensor([0, 1, 0, 0, 1, 1])
    mask = negative_mask(torch.tensor([0, 1]), document_ids, owners=owners)
    assert mask.int().tolist() == [[0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1]]


def test_masked_documents_have_no_gradient_from_that_query():
    queries, documents = double(1, 4), double(3, 4, seed=1)
    mask = negative_mask(torch.tensor([0]), torch.tensor([1, 2, 1]))
    info_nce(queries, documents, positives=torch.tensor([0]), negatives=mask).backward()
    assert (documents.grad.abs().sum(dim=1) > 0).tolist() == [True, True, False]


def test_info_nce_refuses():
    with pytest.raises(ValueError, match="None of the 1 queries has a negative among the 1 documents"):
        info_nce(QUERIES[:1], DOCUMENTS[:1])
    with pytest.raises(ValueError, match=r"positives\[1\] is 7, but there are 3 documents"):
        info_nce(QUERIES, DOCUMENTS, positives=torch.tensor([0, 7]))
    with pytest.raises(ValueError, match="temperature=0"):
        info_nce(QUERIES, DOCUMENTS, temperature=0)


def test_low_precision_vectors_are_compared_in_float32():
    loss = info_nce(QUERIES.bfloat16(), DOCUMENTS.bfloat16(), temperature=0.5)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(0.5259131, abs=1e-6)


def test_autocast_does_not_lower_the_precision_of_cosines():
    queries, documents = double(4, 8).float(), double(6, 8, seed=1).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (queries @ documents.T).dtype == torch.bfloat16  # what would happen
        inside = info_nce(queries, documents)
    torch.testing.assert_close(inside, info_nce(queries, documents), rtol=0, atol=0)


# --- triplet margin ---------------------------------------------------------------------------------------------------


def test_triplet_margin_golden():
    queries = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    positives = torch.tensor([[1.0, 1.0], [0.0, 5.0]])  # cosines 0.7071068 and 1
    negatives = torch.tensor([[[3.0, 4.0], [1.0, 0.0]], [[1.0, 1.0], [1.0, 0.0]]])  # cosines 0.6, 1 and 0.7071068, 0
    # Margin 0.2: 0.2 + 0.6 - 0.7071068 = 0.0928932; 0.2 + 1 - 0.7071068 = 0.4928932; 0.2 + 0.7071068 - 1 < 0; 0.
    assert triplet_margin(queries, positives, negatives, margin=0.2).item() == pytest.approx(0.5857864 / 4, abs=1e-6)
    # Query 0 has one negative only.
    mask = torch.tensor([[True, False], [True, True]])
    masked = triplet_margin(queries, positives, negatives, margin=0.2, mask=mask)
    assert masked.item() == pytest.approx(0.0928932 / 3, abs=1e-6)
    # The default margin is half of FaceNet's 0.2: 0.1 + 1 - 0.7071068.
    assert triplet_margin(queries, positives, negatives).item() == pytest.approx(0.3928932 / 4, abs=1e-6)


def test_triplet_margin_gradient():
    queries, positives, negatives = double(3, 4), double(3, 4, seed=1), double(3, 2, 4, seed=2)
    assert gradcheck(lambda q, p, n: triplet_margin(q, p, n, margin=0.7), (queries, positives, negatives))


# --- shapes -----------------------------------------------------------------------------------------------------------


def test_the_shapes_in_the_signatures_hold():
    from beartype import BeartypeConf, beartype
    from jaxtyping import TypeCheckError, jaxtyped

    def checked(function):
        return jaxtyped(function, typechecker=beartype(conf=BeartypeConf(is_pep484_tower=True)))

    three, two, ids = torch.eye(3), torch.eye(3)[:2], torch.tensor([0, 1])
    good = {
        token_scores: (two, identity, ids),
        reply_cross_entropy: (two, identity, ids),
        kl_to_base: (two, identity, two, identity),
        info_nce: (two, three),
        triplet_margin: (two, two, three.expand(2, 3, 3)),
        select_reply: (three[None], torch.tensor([[0, 1, 2]]), torch.tensor([[False, True, True]])),
        negative_mask: (ids, torch.tensor([4, 5, 6])),
    }
    bad = {
        token_scores: (three, identity, ids),  # three positions, two targets
        reply_cross_entropy: (three, identity, ids),
        kl_to_base: (two, identity, three, identity),
        info_nce: (two, torch.eye(4)),  # other widths
        triplet_margin: (two, three, three.expand(2, 3, 3)),
        select_reply: (three[None], torch.tensor([[0, 1]]), torch.tensor([[False, True, True]])),
        negative_mask: (ids.float(), torch.tensor([4, 5, 6])),
    }
    for function, arguments in good.items():
        checked(function)(*arguments)
    for function, arguments in bad.items():
        with pytest.raises(TypeCheckError):
            checked(function)(*arguments)


# --- NaN --------------------------------------------------------------------------------------------------------------


def test_nan_is_refused_by_name():
    good, bad = torch.ones(2, 3), torch.tensor([[1.0, 2.0, 3.0], [1.0, math.nan, 3.0]])
    targets = torch.tensor([0, 1])
    calls = {
        r"`hidden` \(2, 3\) holds nan at \[1, 1\]": lambda: reply_cross_entropy(bad, identity, targets),
        "`base_hidden`": lambda: kl_to_base(good, identity, bad, identity),
        "`queries`": lambda: info_nce(bad, good),
        "`documents`": lambda: info_nce(good, bad),
        "`positives`": lambda: triplet_margin(good, bad, good[:, None]),
        "`negatives`": lambda: triplet_margin(good, good, bad[:, None]),
    }
    for message, call in calls.items():
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(ValueError, match="holds inf"):
        info_nce(good * math.inf, good)


def test_nothing_to_average_is_refused():
    nothing = torch.zeros(0, 3)
    with pytest.raises(ValueError, match="count of 0"):
        reply_cross_entropy(nothing, identity, torch.zeros(0, dtype=torch.long))
    # One process of several may have nothing while the others do: its share is 0, and it has a gradient.
    loss = reply_cross_entropy(nothing.requires_grad_(), identity, torch.zeros(0, dtype=torch.long), count=4)
    loss.backward()
    assert loss.item() == 0


def test_further_judgements_are_no_negatives_of_the_gathered_loss():
    from train.losses.gathered import gathered_info_nce

    vectors = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    documents = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    given = (vectors, documents, torch.arange(3), torch.tensor([7, 8, 9]), torch.tensor([1, 2, 3]))
    loss = gathered_info_nce(*given, relevant=torch.tensor([[1, 8], [2, 99]]))
    mask = ~torch.eye(3, dtype=torch.bool)
    mask[0, 1] = False
    assert loss.item() == pytest.approx(info_nce(vectors, documents, negatives=mask).item())
    assert gathered_info_nce(*given).item() > loss.item() + 1e-3, "the control"
