"""What a decode step writes into the cache: one column per row, in place, and nothing else is copied."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from search_r3_mteb.encoder.slots import SlotLayer, Window

ROWS, PLACES, HEADS, COLUMNS, DIM = 5, 7, 3, 400, 8
INDEX = torch.tensor([3, 0, 399, 17, 3])


def written(dtype, heads=HEADS):
    """A layer of ones, the states of one step, and the buffers after the step."""
    window = Window(PLACES, COLUMNS, rows=ROWS, width=COLUMNS)
    layer = SlotLayer(window)
    shape = (ROWS, 1, heads, DIM)
    keys, values = (torch.randn(shape).to(dtype).transpose(1, 2) for _ in range(2))  # as attention makes them
    layer.lazy_initialization(keys, values)
    layer.keys.fill_(1)
    layer.values.fill_(1)
    window.at(INDEX)
    seen = layer.update(keys, values)
    return layer, (keys, values), seen


@pytest.mark.parametrize("heads", [1, HEADS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_step_writes_one_column_of_each_row(dtype, heads):
    layer, given, seen = written(dtype, heads)
    for buffer, states, view in zip((layer.keys, layer.values), given, seen, strict=True):
        expected = torch.ones(PLACES, heads, COLUMNS, DIM, dtype=dtype)
        for row, column in enumerate(INDEX.tolist()):
            expected[row, :, column] = states[row, :, 0]
        assert torch.equal(buffer, expected)
        assert view.data_ptr() == buffer.data_ptr()
        assert torch.equal(view, expected[:ROWS])


def test_the_next_pass_writes_into_its_own_columns():
    """The places are computed once per pass, not once for all."""
    layer, (keys, values), _ = written(torch.float32)
    moved = INDEX.clone()
    moved[0] = 9
    layer.window.at(moved)
    layer.update(2 * keys, values)
    assert torch.equal(layer.keys[0, :, 9], 2 * keys[0, :, 0])
    assert torch.equal(layer.keys[0, :, 3], keys[0, :, 0])


def copied(work):
    """The largest number of values that a copy inside `work` moves."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
        work()
    shapes = [event.input_shapes[0] for event in seen.events() if event.name == "aten::copy_" and event.input_shapes]
    return max((int(torch.tensor(shape).prod()) for shape in shapes if shape), default=0)


def test_no_step_copies_the_window():
    """torch's scatter_ does in bfloat16, for every layer at every token."""
    window = ROWS * HEADS * COLUMNS * DIM
    layer, (keys, values), (rows, _) = written(torch.bfloat16)

    def step():
        layer.window.at(INDEX)
        layer.update(keys, values)

    assert copied(step) < window / 10
    assert copied(lambda: rows.clone()) == window  # control: the measure sees a copy


def test_a_window_that_prefills_has_no_single_places():
    with pytest.raises(ValueError, match="A window that prefills has no places of single tokens"):
        Window(PLACES, COLUMNS).flat(HEADS)
