"""A refresh policy: what the rollouts of the batch retrieved, and nothing else; positives first."""

from typing import Any

import numpy as np

from search_r3_mteb.extensions import REFRESH_POLICIES
from train.config.settings import OwnSettings, Weight


class RetrievedSettings(OwnSettings):
    """The table [corpus_cache.own.retrieved]."""

    positive_weight: Weight = 10.0
    """A positive counts like so many retrievals."""


@REFRESH_POLICIES.register("retrieved", settings=RetrievedSettings, uses_map=True)
def retrieved(corpus: Any, counts: Any, budget: int, settings: RetrievedSettings) -> Any:
    """Row numbers, the most important first, within the budget of tokens."""
    score = counts.retrieved + settings.positive_weight * counts.positive
    order = np.lexsort((counts.rows, -score))
    return corpus.cut(counts.rows[order], budget)
