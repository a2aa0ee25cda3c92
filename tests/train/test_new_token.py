"""A new token in an adapter: where head and embedding are apart, both of its rows are trained, saved and loaded."""

import warnings

import pytest
import torch

from search_r3_mteb import SearchR3Encoder
from search_r3_mteb.encoder import checkpoints
from search_r3_mteb.encoder.comparison import SAME, refuse_difference
from search_r3_mteb.encoder.merging import outputs_of
from search_r3_mteb.encoder.token_rows import ROWS_FILE, token_layers
from tests.conftest import without_manifest
from tests.train.loops import byte_folder, events, sft_config, weights
from train.config.model import LoraSettings, ModelSettings
from train.model import model as models
from train.run.run import Run
from train.sft import train

SETTINGS = [
    "model.lora.rank=8", "model.lora.alpha=16.0", "optimization.steps=24", "loss.infonce=0.0", "checkpoint.every=24",
]  # fmt: skip


def trained(folder, base, monkeypatch):
    """A short stage 1 of an adapter: the run's folder, the last reply loss, and the outputs of the model in memory."""
    kept = []
    real = Run._export
    with monkeypatch.context() as patch:
        patch.setattr(Run, "_export", lambda self, name: (kept.append(outputs_of(self.checkpoint)), real(self, name)))
        train(sft_config(folder, *SETTINGS, model=base))
    return folder / "last", events(folder, "step")[-1]["reply"], kept[-1]


def said(folder):
    """The share of queries for which the model says the token within 48 tokens."""
    thoughts = SearchR3Encoder(folder, max_reasoning_tokens=48).think([f"question {n}" for n in range(8)])
    return sum(thought.finished for thought in thoughts) / len(thoughts)


def as_peft_wrote_it(folder):
    """Loaded without the file of the rows under the adapter."""
    (without_manifest(folder) / ROWS_FILE).unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return outputs_of(checkpoints.load(folder))


@pytest.mark.slow
def test_an_untied_model_learns_to_say_the_token(tmp_path, monkeypatch):
    base = byte_folder(tmp_path / "base", with_embed_token=False, tie_word_embeddings=False)
    folder, loss, memory = trained(tmp_path / "both", base, monkeypatch)
    rows = {name: tuple(tensor.shape) for name, tensor in weights(folder).items() if "lora_" not in name}
    assert list(rows.values()) == [(1, 32), (1, 32)], "the embedding's row and the head's"
    assert said(folder) > 0.5
    refuse_difference(memory, outputs_of(checkpoints.load(folder)), SAME, "the saved adapter")
    refuse_difference(memory, as_peft_wrote_it(folder), SAME, "the adapter alone")

    # Control: the input row alone, as peft's short form has it.
    monkeypatch.setattr(models, "token_layers", lambda causal: {"input": token_layers(causal)["input"]})
    folder, other, memory = trained(tmp_path / "input", base, monkeypatch)
    assert loss < other - 1
    assert said(folder) == 0
    with pytest.raises(ValueError, match="gives other logits"):
        refuse_difference(memory, as_peft_wrote_it(folder), SAME, "the adapter alone")


@pytest.mark.parametrize("tied", [True, False])
def test_both_rows_move_and_no_other(tied, tmp_path):
    base = byte_folder(tmp_path / "base", with_embed_token=False, tie_word_embeddings=tied)
    lora = LoraSettings(rank=4, alpha=8.0)
    checkpoint = models.prepare(ModelSettings(path=str(base), lora=lora), seed=0)
    rows = [name for name, _ in models.trainable(checkpoint.model) if "lora_" not in name]
    assert len(rows) == (1 if tied else 2)
    causal = checkpoint.model.get_base_model()
    hidden = torch.randn(3, 32)
    before = causal.get_output_embeddings()(hidden).detach()
    with torch.no_grad():
        for name, parameter in models.trainable(checkpoint.model):
            if name in rows:
                parameter.add_(1.0)
    moved = (causal.get_output_embeddings()(hidden) - before).abs().max(dim=0).values > 1e-6
    assert moved.nonzero().flatten().tolist() == [checkpoint.embed_token_id]


@pytest.mark.filterwarnings("ignore:.*ied:UserWarning:peft.*")
def test_a_matrix_has_one_adapter(tmp_path):
    base = byte_folder(tmp_path / "base")
    for name in ("lm_head", "model.embed_tokens"):
        lora = LoraSettings(rank=4, alpha=8.0, target_modules=("q_proj", name))
        with pytest.raises(ValueError, match=rf"target_modules names {name}, and lora\.train_embed_token trains"):
            models.prepare(ModelSettings(path=str(base), lora=lora), seed=0)
        models.prepare(ModelSettings(path=str(base), lora=lora.replaced(train_embed_token=False)), seed=0)
