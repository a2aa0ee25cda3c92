"""Every shipped configuration loads. Their dry runs: tests/train/plan/test_dry_run.py."""

from pathlib import Path

import pytest

from train.config.loading import dump, load_config
from train.config.stages import RlConfig, SftConfig

FOLDER = Path(__file__).parents[3] / "train" / "configs"
SHIPPED = sorted(FOLDER.glob("*.toml"))


def class_of(path):
    return RlConfig if "rl" in path.stem.split("_") else SftConfig


def test_there_are_some():
    assert {
        "nano",
        "mini_sft",
        "mini_long",
        "mini_rl",
        "qwen2.5-1.5b",
        "qwen2.5-7b",
        "rl_nano",
        "rl_qwen2.5-1.5b",
        "rl_qwen2.5-7b",
        "own_sft",
        "own_rl",
    } <= {path.stem for path in SHIPPED}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_configuration_loads_and_survives_its_dump(path, tmp_path):
    config = load_config(path, (), class_of(path))
    (tmp_path / "again.toml").write_text(dump(config))
    assert load_config(tmp_path / "again.toml", (), class_of(path)) == config
