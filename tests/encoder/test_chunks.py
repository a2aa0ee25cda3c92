"""Chunks: tokenised one ahead of the model, in order, and no error is lost in the thread."""

import threading

import pytest

from search_r3_mteb.encoder.chunks import one_ahead


def test_in_order_and_one_ahead():
    prepared = []
    second = threading.Event()

    def prepare(part):
        prepared.append(part)
        if part == "b":
            second.set()
        return part.upper()

    found = []
    for part, ready in one_ahead(["a", "b", "c"], prepare):
        if part == "a":
            assert second.wait(60), "b is not prepared while a is worked on"
        assert "c" not in prepared or part != "a", "c must wait until b is taken"
        found.append((part, ready))
    assert found == [("a", "A"), ("b", "B"), ("c", "C")]
    assert prepared == ["a", "b", "c"]


@pytest.mark.parametrize("parts", [["a"], []])
def test_one_part_needs_no_thread(parts):
    threads = []
    assert [ready for _, ready in one_ahead(parts, lambda part: threads.append(threading.current_thread()))] == [
        None for _ in parts
    ]
    assert set(threads) <= {threading.main_thread()}


def test_an_error_arrives_where_its_part_is_asked_for():
    def prepare(part):
        if part == 2:
            raise ValueError("part 2 is bad")
        return part

    parts = one_ahead([0, 1, 2, 3], prepare)
    assert [next(parts)[0] for _ in range(2)] == [0, 1]
    with pytest.raises(ValueError, match="part 2 is bad"):
        next(parts)
