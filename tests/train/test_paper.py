"""train/PAPER.md names every hyper-parameter with the default that the code has, and a source for each."""

import re
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path

import pytest

from train import settings, settings_data, settings_rl, settings_sft
from train.losses import MARGIN, TEMPERATURE
from train.policy_loss import PolicySettings
from train.rewards import RewardSettings

PAGE = Path(__file__).resolve().parents[2] / "train" / "PAPER.md"
SECTIONS = {
    "loss": settings_sft.Loss,
    "optimization": settings_sft.SftOptimization,
    "data": settings_data.Data,
    "data.mining": settings_data.Mining,
    "data.decontamination": settings_data.Decontamination,
    "model.lora": settings.Lora,
    "model.scratch": settings.Scratch,
    "rollout": settings_rl.Rollout,
    "reward": settings_rl.Reward,
    "policy": settings_rl.Policy,
    "contrastive": settings_rl.Contrastive,
    "corpus_cache": settings_rl.CorpusCache,
    "replay": settings_rl.Replay,
    "replay.loss": settings_rl.ReplayLoss,
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
    """Field -> default, of the fields that are numbers, words and switches; tables and lists of sources have pages of their own."""
    for field in fields(section):
        value = field.default
        if field.default_factory is not MISSING:
            value = field.default_factory()
        if value is not MISSING and not is_dataclass(value) and field.name not in NOT_HYPER_PARAMETERS:
            yield field.name, value


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
    rows, first = page_rows(), dict(defaults(settings_sft.SftOptimization))
    for field, value in defaults(settings_rl.RlOptimization):
        assert rows.get((f"optimization.{field}", written(value))), (field, value, first.get(field))


def test_the_page_names_nothing_that_is_gone():
    known = {f"{name}.{field}" for name, section in SECTIONS.items() for field, _ in defaults(section)}
    assert {key for key, _ in page_rows()} <= known


def test_the_functions_and_the_settings_have_the_same_defaults():
    assert settings_sft.Loss().temperature == settings_rl.Contrastive().temperature == TEMPERATURE
    assert settings_sft.Loss().margin == MARGIN
    policy, reward = settings_rl.Policy(), settings_rl.Reward()
    for field in ("clip_low", "clip_high", "normalisation", "standardise", "kl_weight"):
        assert getattr(policy, field) == getattr(PolicySettings(), field)
    for field in ("k", "forced_penalty", "token_cost"):
        assert getattr(reward, field) == getattr(RewardSettings(), field)
    weights = {kind: getattr(reward, kind) for kind in ("dcg_scaled", "ndcg", "mrr", "margin")}
    assert {kind: weight for kind, weight in weights.items() if weight} == dict(RewardSettings().weights)
