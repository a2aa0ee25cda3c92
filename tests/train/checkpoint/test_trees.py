"""Trees of values and tensors come back equal, types included."""

import numpy as np
import pytest
import torch
from torch import nn

from train.checkpoint.trees import read_tree, write_tree


def test_a_tree_comes_back_with_its_types(tmp_path):
    shared = torch.arange(4)
    tree = {
        "numbers": [1, -2.5, True, None, float("inf"), 1e-310],
        "text": "ü\ud800\x00",
        "tuple": (1, (2,), []),
        0: {1: "whole numbers as keys"},
        "a.b": torch.ones(2, dtype=torch.bfloat16),
        "a": {"b": torch.zeros((), dtype=torch.float64), "__kind__": "a user's own key"},
        "shared": [shared, shared, shared[1:]],
        "array": np.arange(3, dtype=np.uint32),
        "flat": np.array(7.0),
        "scalar": np.float32(0.1),
        "empty": torch.zeros(0, 3),
        "turned": torch.arange(6).reshape(2, 3).T,
    }
    write_tree(tree, tmp_path, "x")
    back = read_tree(tmp_path, "x")
    assert back["numbers"] == tree["numbers"]
    assert [type(v) for v in back["numbers"]] == [type(v) for v in tree["numbers"]]
    assert (back["text"], back["tuple"], back[0]) == (tree["text"], tree["tuple"], tree[0])
    assert torch.equal(back["a.b"], tree["a.b"])
    assert back["a.b"].dtype == torch.bfloat16
    assert torch.equal(back["a"]["b"], tree["a"]["b"])
    assert back["a"]["__kind__"] == "a user's own key"
    assert [t.tolist() for t in back["shared"]] == [[0, 1, 2, 3], [0, 1, 2, 3], [1, 2, 3]]
    assert back["array"].dtype == np.uint32
    assert back["array"].tolist() == [0, 1, 2]
    assert back["flat"].shape == ()
    assert back["scalar"] == np.float32(0.1)
    assert isinstance(back["scalar"], np.float32)
    assert back["empty"].shape == (0, 3)
    assert torch.equal(back["turned"], tree["turned"])


def test_nan_survives_and_objects_are_refused_by_path(tmp_path):
    write_tree({"x": float("nan")}, tmp_path, "x")
    assert np.isnan(read_tree(tmp_path, "x")["x"])
    with pytest.raises(
        TypeError, match=r"state.groups.0 is of type Linear, which a checkpoint cannot hold without pickle"
    ):
        write_tree({"groups": [nn.Linear(1, 1)]}, tmp_path, "state")
