"""A reward: the share of a query's relevant documents among the first ranks."""

from typing import Any

from search_r3_mteb.extensions import REWARDS
from train.config.settings import Count, OwnRewardSettings


class RecallSettings(OwnRewardSettings):
    """The table [reward.own.recall]; `weight` is the base's."""

    ranks: Count = 10
    """Ranks that count."""


@REWARDS.register("recall", settings=RecallSettings)
def recall(graded: Any, rankings: Any, settings: RecallSettings) -> Any:
    """One number from 0 to 1 for each rollout."""
    found = (graded.gains[:, : settings.ranks] > 0).sum(axis=1)
    findable = (graded.ideal > 0).sum(axis=1).clip(max=settings.ranks)
    return found / findable
