"""The fingerprint of weights that an optimizer has moved."""

import pytest
import torch


@pytest.mark.parametrize("kind", [{}, {"foreach": True}, {"fused": True}], ids=str)
def test_a_step_of_any_optimizer_is_seen(tiny_checkpoint, kind):
    """Regression: fused optimizers leave the tensors' version as it was, and the old fingerprint was given."""
    before = tiny_checkpoint.fingerprint()
    assert tiny_checkpoint.fingerprint() == before
    parameters = list(tiny_checkpoint.model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=0.1, **kind)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert tiny_checkpoint.fingerprint() != before
