"""Losses over the rows of two processes, as the second of them sees it; tests/train/processes has real ones."""

import pytest
import torch

from train.losses import gathered, grpo
from train.losses.stage1 import info_nce


class Second:
    """Collectives of process 1 of 2; `others` are what process 0 gives to each gather, in order."""

    def __init__(self, *others):
        self.others = list(others)

    def gather_rows(self, tensor):
        return torch.cat([self.others.pop(0).to(tensor), tensor])

    def rows_before(self, rows, device=None):
        assert rows == 2
        return 3

    def shared_count(self, here, device=None):
        return (here + 1) / 2  # the other process has one

    def row_counts(self, rows, device=None):
        return [3, rows]

    def rank(self):
        return 1


def directions(*degrees):
    radians = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack([radians.cos(), radians.sin()], dim=1)


def test_infonce_against_the_documents_of_both_processes(monkeypatch):
    """Query 7 stands here twice, with documents 200 and 201, and there with 100; 201 is also there, as nobody's.

    None of these is a negative of query 7, nor the copy of 201; query 8, alone, has all but its own, each once.
    """
    theirs, mine = directions(0, 30, 60), directions(10, 80).requires_grad_()
    others = torch.tensor([[7, 100]]), torch.tensor([100, 101, 201]), theirs
    monkeypatch.setattr(gathered, "collectives", Second(*others))
    queries = directions(20, 70, 50).requires_grad_()
    ids = {"document_ids": torch.tensor([200, 201]), "query_ids": torch.tensor([7, 7, 8])}
    loss = gathered.gathered_info_nce(queries, mine, torch.tensor([0, 1, 0]), **ids, temperature=0.5)
    allowed = torch.tensor([[False, True, False, False, False]] * 2 + [[True, True, True, False, False]])
    whole = info_nce(
        directions(20, 70, 50), torch.cat([theirs, mine.detach()]), positives=torch.tensor([3, 4, 3]),
        negatives=allowed, temperature=0.5, count=2.0,
    )  # fmt: skip
    assert loss.item() == pytest.approx(whole.item(), rel=1e-6)
    loss.backward()
    assert mine.grad.abs().max() > 1e-3
    assert queries.grad.abs().max() > 1e-3


@pytest.mark.parametrize(("elsewhere", "expected"), [(4, 0.0), (0, "No query of any process has a negative")])
def test_a_process_without_negatives_takes_part_and_all_raise_where_none_has_one(monkeypatch, elsewhere, expected):
    """One process that raised alone would leave the others in their next gather."""
    queries, documents = directions(20).requires_grad_(), directions(10, 80).requires_grad_()

    class Counting(Second):
        def shared_count(self, here, device=None):
            return (here + elsewhere) / 2

    monkeypatch.setattr(gathered, "collectives", Counting())
    negatives = torch.zeros(1, 2, dtype=torch.bool)
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            gathered.require_negatives(negatives)
        return
    gathered.require_negatives(negatives)
    loss = gathered.own_info_nce(queries, documents, torch.tensor([0]), negatives, temperature=0.5, count=2.0)
    loss.backward()
    assert loss.item() == expected
    assert documents.grad is not None, "a backward pass through the gathered documents, as on the other processes"


@pytest.mark.parametrize("standardise", [True, False])
def test_advantages_of_groups_that_span_processes(monkeypatch, standardise):
    """Group 5 has two rollouts here and one there: its mean is 0.4, its sample deviation 0.4."""
    monkeypatch.setattr(grpo, "collectives", Second(torch.tensor([0.0, 1.0, 1.0]), torch.tensor([5, 6, 6])))
    found = grpo.gathered_advantages(torch.tensor([0.4, 0.8]), torch.tensor([5, 5]), standardise=standardise)
    expected = torch.tensor([0.0, 0.4]) / (0.4 + 1e-4 if standardise else 1.0)
    torch.testing.assert_close(found.values, expected, rtol=1e-5, atol=1e-6)
    assert (found.groups, found.zero_variance_groups) == (2, 1)
