"""Rendered rows as tensors."""

import torch

from search_r3_mteb.encoder.prompts import Rendered
from train.model.batches import collate, mini_batches, text_ids

ROWS = [
    Rendered([5, 6, 7, 9], {"assistant": (2, 4), "embed": (3, 4)}),
    Rendered([5, 9], {"assistant": (1, 2), "embed": (1, 2)}),
]


def test_collate():
    rows = collate(ROWS, 3, torch.device("cpu"))
    assert rows.token_ids.tolist() == [[5, 6, 7, 9], [5, 9, 3, 3]]
    assert rows.lengths.tolist() == [4, 2]
    assert rows.reply.tolist() == [[False, False, True, True], [False, True, False, False]]


def test_the_padding_id_is_never_read(make_model):
    from train.model.model import forward

    model = make_model()
    a, b = (collate(ROWS, pad, torch.device("cpu")) for pad in (3, 250))
    first, second = (forward(model, rows.token_ids, rows.lengths).vectors for rows in (a, b))
    torch.testing.assert_close(first, second)


def test_mini_batches_keep_the_order_and_every_row():
    rows = list(range(7))
    assert mini_batches(rows, 3) == [[0, 1, 2], [3, 4, 5], [6]]
    assert mini_batches(rows, None) == [rows]
    assert mini_batches(rows, 100) == [rows]
    assert mini_batches([], None) == []


def test_ids_of_texts_are_the_same_everywhere():
    """Golden: processes compare these numbers, so they must not depend on Python's seeded hash."""
    ids = text_ids(["a river", "a stone", "a river", ""])
    assert ids.dtype == torch.long
    assert ids[0] == ids[2] != ids[1]
    assert int(ids[0]) == -3761110610203218782
