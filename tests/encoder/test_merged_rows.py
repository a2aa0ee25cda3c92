"""An adapter's trained token rows are put into their matrix once, and again where a weight has changed."""

import copy

import pytest
import torch
from peft.tuners.trainable_tokens import TrainableTokensLayer

from search_r3_mteb import SearchR3Encoder
from search_r3_mteb.encoder.checkpoints import load, save
from tests.encoder.test_adapters import adapted, base_folder

ROWS = {"embed_tokens": [3], "lm_head": [3]}


@pytest.fixture
def copies(monkeypatch):
    """The calls of peft's method, each of which copies a whole matrix."""
    made = []
    original = TrainableTokensLayer.get_merged_weights

    def counted(layer, active_adapters):
        made.append(layer)
        return original(layer, active_adapters)

    monkeypatch.setattr(TrainableTokensLayer, "get_merged_weights", counted)
    return made


def adapter(tmp_path, *, tied, rows):
    base = base_folder(tmp_path / "base", tied=tied, token=False)
    return save(adapted(base, multiple=1, trainable_token_indices=rows), tmp_path / "adapter")


def plain(model):
    """The same model with peft's own method at every step."""
    for module in model.modules():
        vars(module).pop("get_merged_weights", None)
    return model


@pytest.mark.filterwarnings("ignore:.*ied:UserWarning:peft.*")
@pytest.mark.parametrize(("tied", "rows", "matrices"), [(True, [3], 1), (False, ROWS, 2)])
def test_a_matrix_is_put_together_once_for_all_steps(tied, rows, matrices, tmp_path, copies):
    folder = adapter(tmp_path, tied=tied, rows=rows)
    checkpoint = load(folder, device="cpu", probe=False)
    before = checkpoint.fingerprint()
    copies.clear()
    encoder = SearchR3Encoder(checkpoint, max_reasoning_tokens=6)
    found = encoder.think(["where is the river", "a stone bridge"])
    assert len(copies) == matrices
    assert checkpoint.fingerprint() == before
    copies.clear()
    same = SearchR3Encoder(checkpoint, max_reasoning_tokens=6)
    plain(checkpoint.model)
    expected = same.think(["where is the river", "a stone bridge"])
    assert len(copies) > 6, "control: peft copies at every step"
    assert [one.token_ids for one in found] == [one.token_ids for one in expected]
    assert all((one.vector == other.vector).all() for one, other in zip(found, expected, strict=True))


@pytest.mark.filterwarnings("ignore:.*ied:UserWarning:peft.*")
@pytest.mark.parametrize("changed", ["trained row", "base", "base replaced"])
def test_a_changed_weight_is_noticed(changed, tmp_path, copies):
    model = load(adapter(tmp_path, tied=True, rows=[3]), device="cpu", probe=False).model
    tokens = torch.tensor([[3, 5, 7]])
    copies.clear()
    with torch.no_grad():
        model(tokens), model(tokens)
        assert len(copies) == 1
        layer = copies[0]
        if changed == "trained row":
            layer.trainable_tokens_delta["default"].add_(1)
        elif changed == "base":
            layer.base_layer.weight[5] += 1
        else:
            layer.base_layer.weight.data = layer.base_layer.weight.data + 1
        found = model(tokens).logits
        assert len(copies) == 2
        expected = plain(copy.deepcopy(model))(tokens).logits
    assert torch.equal(found, expected)


@pytest.mark.filterwarnings("ignore:.*ied:UserWarning:peft.*")
def test_gradients_flow_through_peft_s_own(tmp_path):
    model = load(adapter(tmp_path, tied=True, rows=[3]), device="cpu", probe=False).model
    row = next(parameter for name, parameter in model.named_parameters() if "trainable_tokens_delta" in name)
    tokens = torch.tensor([[3, 5, 7]])
    with torch.no_grad():
        model(tokens)
    row.requires_grad_(True)
    model(tokens).logits.sum().backward()
    assert row.grad is not None
    assert row.grad.abs().sum() > 0


@pytest.mark.filterwarnings("ignore:.*ied:UserWarning:peft.*")
def test_a_training_that_goes_on_remembers_nothing(tmp_path):
    folder = adapter(tmp_path, tied=True, rows=[3])
    remembering = [
        sum("get_merged_weights" in vars(module) for module in load(folder, trainable=trainable).model.modules())
        for trainable in (True, False)
    ]
    assert remembering == [0, 2]
