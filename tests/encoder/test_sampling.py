"""The most probable token: torch's own choice, ties and NaN among it, however the logits lie in memory."""

import numpy as np
import pytest
import torch

from search_r3_mteb.encoder import decode
from search_r3_mteb.encoder.engine import Engine
from search_r3_mteb.encoder.sampling import Sampling, most_probable
from tests.conftest import build_model


def logits(rows=64, vocabulary=1153, seed=0):
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("form", ["plain", "ties", "columns", "infinite", "nan"])
def test_it_is_the_token_that_torch_chooses(form):
    given = logits()
    if form == "ties":
        given = given.round()  # some hundred largest values in each row
        assert ((given == given.amax(dim=1, keepdim=True)).sum(dim=1) > 1).any()
    if form == "columns":
        given = logits(1153, 64).T
    if form == "infinite":
        given[:, 7], given[3] = -torch.inf, -torch.inf
    if form == "nan":
        given[::2, 11] = torch.nan
    found = most_probable(given)
    assert found.dtype == torch.long
    assert found.tolist() == given.argmax(dim=-1).tolist()
    last = given.shape[1] - 1 - np.argmax(given.numpy()[:, ::-1], axis=1)
    assert form != "ties" or last.tolist() != found.tolist(), "control: the last of several is another one"


def test_greedy_rows_are_chosen_by_it(monkeypatch):
    engine = Engine(build_model(), 3)
    plain = engine.reason([[5, 6, 7], [8, 9]], Sampling(6)).token_ids
    monkeypatch.setattr(decode, "most_probable", lambda given: torch.full((len(given),), 9))
    assert engine.reason([[5, 6, 7], [8, 9]], Sampling(6)).token_ids == [[9] * 6 + [3]] * 2 != plain
