"""What is trained is float32, whatever the checkpoint's type; and stage 2 has no dropout."""

import pytest
import torch

from tests.conftest import without_manifest
from tests.train.loops import FORCED, LORA, byte_folder, rl_config, sft_config, weights
from train.config.model import ModelSettings
from train.model.model import prepare, trainable
from train.rl import train as train_rl
from train.run.run import Run
from train.sft import train


def half_folder(folder, dtype):
    """A checkpoint whose weights are of that type."""
    from transformers import AutoModelForCausalLM

    without_manifest(byte_folder(folder))
    AutoModelForCausalLM.from_pretrained(folder).to(dtype).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_below_float32_are_trained_in_float32(tmp_path, caplog, dtype):
    """Regression: at small rates almost every update was rounded away, without a word."""
    base = half_folder(tmp_path / "base", dtype)
    assert {t.dtype for t in weights(base).values()} == {dtype}
    train(sft_config(tmp_path / "run", "optimization.learning_rate=1e-5", model=base))
    before, after = weights(base), weights(tmp_path / "run/last")
    assert {t.dtype for t in after.values()} == {torch.float32}
    layers = [name for name in after if name.endswith("proj.weight")]
    moved = torch.cat([(after[n] != before[n].float()).flatten() for n in layers]).float().mean()
    assert moved > 0.95
    rounded = torch.cat([(after[n].to(dtype) != before[n]).flatten() for n in layers]).float().mean()
    assert rounded < moved, "the control: in the checkpoint's type some of it would be lost"
    assert "They are trained in float32" in caplog.text


@pytest.mark.parametrize(
    ("dtype", "frozen"), [(torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)], ids=str
)
def test_an_adapter_is_float32(tmp_path, dtype, frozen):
    """A frozen bfloat16 base stays; gradients on their way through float16 would overflow or vanish."""
    base = half_folder(tmp_path / "base", dtype)
    checkpoint = prepare(ModelSettings(path=str(base), lora={"rank": 4}), seed=0)
    assert {p.dtype for _, p in trainable(checkpoint.model)} == {torch.float32}
    assert {p.dtype for p in checkpoint.model.parameters() if not p.requires_grad} == {frozen}
    train(sft_config(tmp_path / "run", *LORA, model=base))
    assert {t.dtype for t in weights(tmp_path / "run/last").values()} == {torch.float32}


def test_stage_2_of_an_adapter_over_bfloat16(tmp_path):
    base = half_folder(tmp_path / "base", torch.bfloat16)
    train_rl(rl_config(tmp_path / "run", base, *LORA, *FORCED, "optimization.steps=2", "policy.max_gap=0.2"))
    assert {t.dtype for t in weights(tmp_path / "run/last").values()} == {torch.float32}


def test_dropout_of_the_model_itself_is_refused_in_stage_2(tmp_path):
    base = byte_folder(tmp_path / "base")
    Run.begin(rl_config(tmp_path / "run", base), unit="query")
    config = without_manifest(base) / "config.json"
    config.write_text(config.read_text().replace('"attention_dropout": 0.0', '"attention_dropout": 0.1'))
    assert "0.1" in config.read_text()
    with pytest.raises(ValueError, match=r"attention_dropout = 0.1: stage 2 samples without dropout"):
        Run.begin(rl_config(tmp_path / "run", base), unit="query")
    Run.begin(sft_config(tmp_path / "stage-1", model=base))
