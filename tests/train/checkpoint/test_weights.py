"""Engines whose state cannot be saved are refused by name."""

import pytest
import torch
from torch import nn

from train.checkpoint.weights import trained_tensors


def test_engines_that_keep_the_state_to_themselves_are_refused():
    class FlatParameter(nn.Parameter):
        """As FSDP1 makes them."""

    model = nn.Linear(2, 2)
    model.weight = FlatParameter(torch.zeros(2, 2))
    with pytest.raises(TypeError, match=r"FSDP1.*fsdp_version: 2"):
        trained_tensors(model)
    model = nn.Linear(2, 2)
    model.weight.ds_id = 1
    with pytest.raises(TypeError, match=r"DeepSpeed.*Use DDP or FSDP"):
        trained_tensors(model)
