"""The model that is trained: what is loaded, what is trainable, and that its forward is Hugging Face's."""

import numpy as np
import pytest
import torch

from search_r3_mteb.encoder import checkpoints
from search_r3_mteb.encoder.architecture import backbone_of
from tests.train.loops import byte_folder
from train.config.model import LoraSettings, ModelSettings, ScratchSettings
from train.model import model as models

LORA = LoraSettings(rank=4, alpha=8.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return byte_folder(tmp_path_factory.mktemp("models") / "with-token")


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    return byte_folder(tmp_path_factory.mktemp("models") / "bare", with_embed_token=False)


def test_from_random_weights():
    checkpoint = models.prepare(
        ModelSettings(
            scratch=ScratchSettings(hidden_size=32, intermediate_size=64, layers=1, heads=2, key_value_heads=2)
        ),
        seed=0,
    )
    assert checkpoint.model.training
    assert len(models.trainable(checkpoint.model)) == len(list(checkpoint.model.parameters()))


def test_what_is_frozen_is_not_trained(folder):
    whole = models.prepare(ModelSettings(path=str(folder)), seed=0).model
    part = models.prepare(ModelSettings(path=str(folder), freeze=("embed_tokens.weight", "norm.weight")), seed=0).model
    left = {name for name, _ in models.trainable(whole)} - {name for name, _ in models.trainable(part)}
    assert "model.embed_tokens.weight" in left
    assert all(name.endswith(("embed_tokens.weight", "norm.weight")) for name in left)
    with pytest.raises(ValueError, match=r"no parameter's name ends in 'word_embeddings\.weight'"):
        models.prepare(ModelSettings(path=str(folder), freeze=("word_embeddings.weight",)), seed=0)
    with pytest.raises(ValueError, match="freeze and lora exclude each other"):
        ModelSettings(path=str(folder), freeze=("norm.weight",), lora=LORA)


def test_a_model_without_the_token_gets_it_in_a_padded_row(bare):
    checkpoint = models.prepare(ModelSettings(path=str(bare)), seed=0)
    tokenizer = checkpoint.tokenizer
    assert checkpoint.model.get_input_embeddings().weight.shape[0] == 384, "the padded matrix was resized"
    assert checkpoint.embed_token_id == len(tokenizer) - 1 < 384
    assert {"<|im_start|>", "<|im_end|>", "<|endoftext|>"} <= set(tokenizer.all_special_tokens)
    row = checkpoint.model.get_input_embeddings().weight[checkpoint.embed_token_id]
    mean = checkpoint.model.get_input_embeddings().weight[: len(tokenizer) - 1].mean(dim=0)
    torch.testing.assert_close(row, mean)


def test_a_full_vocabulary_is_resized(tmp_path):
    from tests.conftest import build_tokenizer

    full = byte_folder(tmp_path / "full", with_embed_token=False, vocab_size=len(build_tokenizer(False)))
    checkpoint = models.prepare(ModelSettings(path=str(full)), seed=0)
    assert checkpoint.model.get_input_embeddings().weight.shape[0] == checkpoint.embed_token_id + 1
    assert checkpoint.model.config.vocab_size == checkpoint.embed_token_id + 1


def test_lora_trains_the_adapter_and_one_row(bare):
    checkpoint = models.prepare(ModelSettings(path=str(bare), lora=LORA), seed=0)
    found = models.trainable(checkpoint.model)
    rows = [tuple(p.shape) for name, p in found if "lora_" not in name]
    assert rows == [(1, 32)]
    assert {name.split(".")[-4] for name, _ in found if "lora_A" in name} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    again = models.prepare(ModelSettings(path=str(bare), lora=LORA), seed=0)
    assert all(torch.equal(p, q) for (_, p), (_, q) in zip(found, models.trainable(again.model), strict=True))
    other = models.prepare(ModelSettings(path=str(bare), lora=LORA), seed=1)
    assert not all(torch.equal(p, q) for (_, p), (_, q) in zip(found, models.trainable(other.model), strict=True))


def test_lora_without_the_token_s_row_needs_a_token_that_is_there(bare, folder):
    lora = LoraSettings(rank=4, alpha=8.0, train_embed_token=False)
    with pytest.raises(ValueError, match=r"train_embed_token = false.*neither be trained nor saved"):
        models.prepare(ModelSettings(path=str(bare), lora=lora), seed=0)
    checkpoint = models.prepare(ModelSettings(path=str(folder), lora=lora), seed=0)
    assert all("lora_" in name for name, _ in models.trainable(checkpoint.model))


@pytest.fixture
def adapter(tmp_path, bare):
    """A folder with an adapter whose weights are away from their start, and the model that it makes."""
    checkpoint = models.prepare(ModelSettings(path=str(bare), lora=LORA), seed=0)
    with torch.no_grad():
        for _, parameter in models.trainable(checkpoint.model):
            parameter.add_(0.1)
    return checkpoint, checkpoints.save(checkpoint, tmp_path / "adapter")


def vectors(checkpoint):
    ids = torch.tensor([[7, 8, 9, checkpoint.embed_token_id]])
    return models.forward(checkpoint.model.eval(), ids, torch.tensor([4])).vectors


def test_an_adapter_goes_on_with_the_same_settings(adapter):
    before, folder = adapter
    going = models.prepare(ModelSettings(path=str(folder), lora=LORA), seed=5)
    torch.testing.assert_close(vectors(before), vectors(going), atol=1e-5, rtol=1e-4)
    names = lambda one: [name for name, _ in models.trainable(one.model)]  # noqa: E731
    assert names(going) == names(before)
    assert all("lora_" in name or "trainable_tokens" in name for name in names(going))


def test_the_dropout_of_a_continued_adapter_is_that_of_the_settings(adapter):
    _, folder = adapter
    going = models.prepare(ModelSettings(path=str(folder), lora=LORA.replaced(dropout=0.5)), seed=0)
    first, second = (models.forward(going.model.train(), torch.tensor([[7, 8, 9]]), torch.tensor([3])) for _ in "ab")
    assert not torch.equal(first.vectors, second.vectors)
    still = models.prepare(ModelSettings(path=str(folder), lora=LORA), seed=0)
    first, second = (models.forward(still.model.train(), torch.tensor([[7, 8, 9]]), torch.tensor([3])) for _ in "ab")
    assert torch.equal(first.vectors, second.vectors)


def test_without_lora_settings_an_adapter_is_merged_and_every_weight_is_trained(adapter):
    before, folder = adapter
    whole = models.prepare(ModelSettings(path=str(folder)), seed=0)
    torch.testing.assert_close(vectors(before), vectors(whole), atol=1e-5, rtol=1e-4)
    assert all(parameter.requires_grad for parameter in whole.model.parameters())
    assert not hasattr(whole.model, "peft_config")


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"rank": 8}, "rank = 8"), ({"alpha": 3.0}, "alpha = 3.0"), ({"train_embed_token": False}, "train_embed_token")],
)
def test_other_settings_than_the_adapter_s_are_refused(adapter, changed, said):
    _, folder = adapter
    with pytest.raises(ValueError, match=rf"{said}.*Write the adapter's own values.*search-r3 merge"):
        models.prepare(ModelSettings(path=str(folder), lora=LORA.replaced(**changed)), seed=0)


def test_the_command_merges_and_a_new_adapter_begins_on_the_whole(adapter, tmp_path, call):
    before, folder = adapter
    code, shown, error = call("merge", folder, "--output", tmp_path / "merged")
    assert (code, "Written to" in shown) == (0, True), error
    fresh = models.prepare(ModelSettings(path=str(tmp_path / "merged"), lora=LORA), seed=0)
    torch.testing.assert_close(vectors(before), vectors(fresh), atol=1e-5, rtol=1e-4)
    assert call("merge", tmp_path / "merged", "--output", tmp_path / "again")[0] == 2


def small_opt():
    """A causal LM whose own forward calls not its base model but the decoder inside."""
    from transformers import OPTConfig, OPTForCausalLM

    size = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64, "num_hidden_layers": 2}
    return OPTForCausalLM(OPTConfig(vocab_size=384, num_attention_heads=4, pad_token_id=383, **size)).eval()


@pytest.mark.parametrize("kind", ["qwen2", "llama", "gpt2", "opt"])
def test_forward_is_the_model_s_own_row_by_row(make_model, kind):
    model = small_opt() if kind == "opt" else make_model(kind)
    ids = torch.tensor([[5, 6, 7, 8], [5, 9, 0, 0]])
    hidden = models.forward(model, ids, torch.tensor([4, 2]))
    for row, length in ((0, 4), (1, 2)):
        states = model(ids[row : row + 1, :length], output_hidden_states=True).hidden_states[-1][0]
        torch.testing.assert_close(hidden.states[row, :length], states, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(hidden.vectors[row], states[-1], atol=1e-5, rtol=1e-4)
    assert not backbone_of(model)._forward_hooks, "a hook was left behind, and would hold every step's states"


def test_forward_keeps_no_hook_when_it_fails(make_model):
    model = make_model()
    with pytest.raises(IndexError):
        models.forward(model, torch.tensor([[100_000]]), torch.tensor([1]))
    assert not model.base_model._forward_hooks


def test_the_base_of_an_adapter_and_of_full_weights(folder):
    ids, lengths = torch.tensor([[5, 6, 7, 8]]), torch.tensor([4])
    before = models.forward(models.prepare(ModelSettings(path=str(folder)), 0).model, ids, lengths).states
    for lora in (LORA, None):
        checkpoint = models.prepare(ModelSettings(path=str(folder), lora=lora), seed=0)
        base = models.Base.of(checkpoint)
        assert (base.copied is None) == (lora is not None)
        with torch.no_grad():
            for _, parameter in models.trainable(checkpoint.model):
                parameter.add_(0.1 * torch.randn_like(parameter))
        torch.testing.assert_close(base.states(ids, lengths), before, atol=1e-6, rtol=1e-5)
        logits = base.head(before[0])
        truth = checkpoints.load(folder).model.get_output_embeddings()(before[0])
        torch.testing.assert_close(logits, truth, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(models.forward(checkpoint.model, ids, lengths).states, before, atol=1e-2)
        assert all(p.requires_grad for _, p in models.trainable(checkpoint.model))
        assert len(models.trainable(checkpoint.model)) > 2, "putting the start back has frozen it"


def test_the_base_of_an_adapter_that_goes_on_is_what_it_had_learnt(folder, tmp_path):
    """Without its dropout, and with the mode and the values of the training left as they were."""
    config = ModelSettings(path=str(folder), lora=LORA)
    learnt = models.prepare(config, seed=0)
    with torch.no_grad():
        for _, parameter in models.trainable(learnt.model):
            parameter.add_(0.1 * torch.randn_like(parameter))
    checkpoints.save(learnt, tmp_path / "adapter")
    ids, lengths = torch.tensor([[5, 6, 7, 8]]), torch.tensor([4])
    with torch.no_grad():
        expected = models.forward(learnt.model, ids, lengths).states
    goes_on = ModelSettings(path=str(tmp_path / "adapter"), lora=LORA.model_copy(update={"dropout": 0.5}))
    checkpoint = models.prepare(goes_on, seed=0)
    base = models.Base.of(checkpoint)
    with torch.no_grad():
        for _, parameter in models.trainable(checkpoint.model):
            parameter.add_(0.1 * torch.randn_like(parameter))
    present = {name: parameter.clone() for name, parameter in models.trainable(checkpoint.model)}
    torch.testing.assert_close(base.states(ids, lengths), expected, atol=1e-6, rtol=1e-5)
    with pytest.raises(ZeroDivisionError), base.at_start():
        raise ZeroDivisionError
    assert all(torch.equal(present[name], parameter) for name, parameter in models.trainable(checkpoint.model))
    assert checkpoint.model.training
    with checkpoint.model.disable_adapter(), models.evaluating(checkpoint.model), torch.no_grad():
        without = models.forward(checkpoint.model, ids, lengths).states
    assert not torch.allclose(without, expected, atol=1e-2), "the control: the model before any adapter"


def test_training_learns_the_logits_that_are_sampled_from():
    from transformers import GraniteConfig, GraniteForCausalLM

    torch.manual_seed(0)
    shape = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 64,
    }
    model = GraniteForCausalLM(GraniteConfig(**shape, logits_scaling=3.0)).eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    states = models.forward(model, ids, torch.tensor([4])).states
    truth = model(ids).logits
    torch.testing.assert_close(models.head_of(model)(states), truth, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(model.get_output_embeddings()(states), truth, atol=1e-2), "the control: the bare head"


def test_evaluating_puts_the_mode_back(make_model):
    model = make_model()
    model.train()
    with models.evaluating(model):
        assert not model.training
    assert model.training
    with pytest.raises(RuntimeError), models.evaluating(model):
        raise RuntimeError
    assert model.training
    model.eval()
    with models.evaluating(model):
        pass
    assert not model.training


def test_embed_gives_the_encoder_s_vectors(folder):
    from search_r3_mteb import SearchR3Encoder
    from search_r3_mteb.encoder.engine import Engine
    from search_r3_mteb.encoder.prompts import Renderer

    checkpoint = checkpoints.load(folder)
    renderer = Renderer(checkpoint.tokenizer, checkpoint.profile, 64)
    engine = Engine(checkpoint.model, checkpoint.embed_token_id)
    ours = models.embed(engine, renderer, ["a river", "a much longer text about rivers"])
    theirs = SearchR3Encoder(folder, max_length=64).encode_document(["a river", "a much longer text about rivers"])
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert ours.dtype == np.float32


def test_what_is_trained_is_probed_as_what_is_loaded(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(checkpoints, "probe_once", lambda checkpoint, *places: asked.append(places))
    models.prepare(ModelSettings(path=str(folder)), seed=0)
    assert asked == [(folder, (folder,))]
