"""train/PAPER.md names every hyper-parameter with the default that the code has, and a source for each."""

import re
from pathlib import Path

import pytest

from train.config.corpus_cache import CorpusCacheSettings
from train.config.data import DataSettings, DecontaminationSettings, MiningSettings
from train.config.grpo import PolicySettings, RewardSettings, RolloutSettings
from train.config.loss import ContrastiveSettings, LossSettings, ReplayLossSettings
from train.config.model import LoraSettings, ScratchSettings
from train.config.run import RlOptimizationSettings, SftOptimizationSettings
from train.config.settings import Settings
from train.config.stages import ReplaySettings

PAGE = Path(__file__).resolve().parents[3] / "train" / "PAPER.md"
SECTIONS = {
    "loss": LossSettings,
    "optimization": SftOptimizationSettings,
    "data": DataSettings,
    "data.mining": MiningSettings,
    "data.decontamination": DecontaminationSettings,
    "model.lora": LoraSettings,
    "model.scratch": ScratchSettings,
    "rollout": RolloutSettings,
    "reward": RewardSettings,
    "policy": PolicySettings,
    "contrastive": ContrastiveSettings,
    "corpus_cache": CorpusCacheSettings,
    "replay": ReplaySettings,
    "replay.loss": ReplayLossSettings,
}


def written(value):
    """A value as the page writes it."""
    if value is None:
        return "absent"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return "[" + ", ".join(map(written, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def defaults(section):
    """(field, default) of the fields that are numbers, words and switches, not tables or lists of sources."""
    for name, field in section.model_fields.items():
        value = field.get_default(call_default_factory=True)
        if not field.is_required() and not isinstance(value, Settings) and name not in NOT_HYPER_PARAMETERS:
            yield name, value


NOT_HYPER_PARAMETERS = {"sources", "against", "evaluation", "mining", "corpus"}  # where data lies


def page_rows():
    """(key, default) -> source, of every table row that names a setting."""
    rows = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 4 and re.fullmatch(r"`[a-z_]+(\.[a-z_]+)+`", cells[0]):
            rows[cells[0].strip("`"), cells[1]] = cells[2]
    return rows


@pytest.mark.parametrize("name", SECTIONS)
def test_every_hyper_parameter_is_on_the_page(name):
    rows = page_rows()
    missing = [
        f"| `{name}.{field}` | {written(value)} |"
        for field, value in defaults(SECTIONS[name])
        if not rows.get((f"{name}.{field}", written(value)))
    ]
    assert not missing, f"train/PAPER.md lacks these rows, or has another value: {missing}"


def test_stage_two_optimization_is_on_the_page():
    rows, first = page_rows(), dict(defaults(SftOptimizationSettings))
    for field, value in defaults(RlOptimizationSettings):
        assert rows.get((f"optimization.{field}", written(value))), (field, value, first.get(field))


def test_the_page_names_nothing_that_is_gone():
    known = {f"{name}.{field}" for name, section in SECTIONS.items() for field, _ in defaults(section)}
    assert {key for key, _ in page_rows()} <= known
