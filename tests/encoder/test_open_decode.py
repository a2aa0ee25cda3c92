"""The open decode loop: rows that join and leave at any time get the numbers of a closed call."""

import numpy as np
import pytest
import torch

from search_r3_mteb.encoder import shared_prefix
from search_r3_mteb.encoder.engine import Engine
from search_r3_mteb.encoder.open_decode import OpenDecode
from search_r3_mteb.encoder.sampling import Sampling
from tests.conftest import build_model

EMBED = 3
PREFIX = [5, 9, 11, 40]
PROMPTS = [[*PREFIX, *range(50, 52 + 3 * (place % 4)), 20 + place] for place in range(9)]


def engine(kind="qwen2", **settings):
    return Engine(build_model(kind), EMBED, stop_token_ids=(2,), **settings)


def joined(engine, sampling, drop=(), longest=30):
    """Every prompt joins at another step; those in `drop` are dropped two steps later."""
    found, tickets, waiting, step = {}, {}, list(range(len(PROMPTS))), 0
    with engine.evaluating():
        decode = OpenDecode(engine, PREFIX, longest, sampling)
        while waiting or len(decode):
            if waiting and decode.room and step % 2 == 0:
                place = waiting.pop(0)
                tickets[decode.add(PROMPTS[place])] = place
                joined_at = step
            for ticket, place in list(tickets.items()):
                if place in drop and step == joined_at + 1:
                    decode.drop(ticket)
                    del tickets[ticket]
            for each in decode.advance():
                found[tickets.pop(each.ticket)] = each
            step += 1
    return found, decode


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
def test_rows_that_join_get_what_a_closed_call_gives(kind, temperature):
    sampling = Sampling(12, temperature, seed=3)
    expected = engine(kind).reason(PROMPTS, sampling)
    found, decode = joined(engine(kind), sampling)
    assert sorted(found) == list(range(len(PROMPTS)))
    for place, each in found.items():
        assert each.token_ids == expected.token_ids[place]
        assert each.finished == expected.finished[place]
        np.testing.assert_allclose(each.vector, expected.vectors[place], atol=1e-5, rtol=0)
    apart = torch.cdist(expected.vectors, expected.vectors) + torch.eye(len(PROMPTS))
    assert apart.min() > 1e-2  # the control: a row at another's place would show
    assert decode.prefix == len(PREFIX)


def test_rows_that_join_attend_to_their_common_beginning_together(monkeypatch):
    expected = engine().reason(PROMPTS, Sampling(12))
    attend, columns = shared_prefix._attend, []
    monkeypatch.setattr(shared_prefix, "LEAST_SHARED", 1)
    monkeypatch.setattr(shared_prefix, "LEAST_COLUMNS", 1)
    monkeypatch.setattr(shared_prefix, "_attend", lambda *given: columns.append(given[4]) or attend(*given))
    found, _ = joined(engine(), Sampling(12))
    assert set(columns) == {len(PREFIX)}
    assert [found[place].token_ids for place in range(len(PROMPTS))] == expected.token_ids
    vectors = torch.stack([torch.as_tensor(found[place].vector) for place in range(len(PROMPTS))])
    torch.testing.assert_close(vectors, expected.vectors, rtol=0, atol=1e-5)


def test_batch_invariant_rows_are_the_same_bits():
    sampling = Sampling(12)
    expected = engine(batch_invariant=True).reason(PROMPTS, sampling)
    found, decode = joined(engine(batch_invariant=True), sampling)
    for place, each in found.items():
        assert torch.equal(each.vector, expected.vectors[place])
    assert decode.prefix == 0


def test_rows_join_while_others_decode():
    model = engine()
    with model.evaluating():
        decode = OpenDecode(model, PREFIX, 30, Sampling(12))
        first = decode.add(PROMPTS[0])
        decode.advance()
        second = decode.add(PROMPTS[1])
        decode.advance()
        assert decode.rows == 2  # the first was not waited for
        said = decode.written([first, second])
    assert [len(said[each]) for each in (first, second)] == [2, 1]
    assert said[first] == engine().reason(PROMPTS, Sampling(12)).token_ids[0][:2]


@pytest.mark.parametrize("batch_invariant", [False, True])
def test_a_row_that_is_dropped_changes_no_other(batch_invariant):
    sampling = Sampling(12)
    expected = engine(batch_invariant=batch_invariant).reason(PROMPTS, sampling)
    found, decode = joined(engine(batch_invariant=batch_invariant), sampling, drop=(0, 3))
    assert sorted(found) == [1, 2, 4, 5, 6, 7, 8]
    for place, each in found.items():
        assert each.token_ids == expected.token_ids[place]
        np.testing.assert_allclose(each.vector, expected.vectors[place], atol=1e-5, rtol=0)
    assert decode.room == decode.places


def test_a_row_that_waits_can_be_dropped():
    model = engine(token_budget=50)  # one place
    with model.evaluating():
        decode = OpenDecode(model, PREFIX, 30, Sampling(12))
        assert decode.places == 1
        ticket = decode.add(PROMPTS[0])
        decode.drop(ticket)
        assert (len(decode), decode.room) == (0, 1)
        assert decode.advance() == []
        with pytest.raises(ValueError, match="has left already"):
            decode.drop(ticket)
        assert decode.room == 1


def test_the_places_are_used_again():
    found, decode = joined(engine(token_budget=100), Sampling(12))
    assert decode.places == 2
    expected = engine().reason(PROMPTS, Sampling(12))
    assert [found[place].token_ids for place in range(len(PROMPTS))] == expected.token_ids


@pytest.mark.parametrize("prompt", [[1, 2, 3, 4, 5], PREFIX, [*PREFIX, *range(60)]])
def test_what_cannot_join_is_refused(prompt):
    model = engine()
    with model.evaluating():
        decode = OpenDecode(model, PREFIX, 30, Sampling(12))
        assert not decode.takes(prompt)
        with pytest.raises(ValueError, match="cannot join"):
            decode.add(prompt)
        assert decode.takes(PROMPTS[0])
