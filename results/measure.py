"""Per-query nDCG@10 of a checkpoint on hopworld, by mode and hop count, for the scripts of sft/ and rl/."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from search_r3_mteb.evaluation import provenance
from search_r3_mteb.evaluation.significance import QueryScores, interval

MODES = ("direct", "reason")
HopScores = dict[tuple[str, int], QueryScores]


def measure(model: Path | str, *, documents: int = 1000, hops: Sequence[int] = (1, 2, 3, 4)) -> HopScores:
    """{(mode, hops): {query id: nDCG@10}}; the corpus is encoded once, queries greedily with a budget of 96 tokens."""
    from search_r3_mteb.encoder.checkpoints import load
    from search_r3_mteb.encoder.encoder import SearchR3Encoder
    from train.config.data import JudgedSetSettings
    from train.run.evaluation import load as load_judged
    from train.run.evaluation import per_query_ndcg

    place = JudgedSetSettings(kind="hopworld", documents=documents, split="test")
    sets = {count: load_judged(place.replaced(hops=(count,)), None, 0) for count in hops}
    checkpoint = load(model, device="cpu")
    corpus: Any = None
    found: HopScores = {}
    for mode in MODES:
        encoder = SearchR3Encoder(
            checkpoint, mode=mode, max_length=256, max_reasoning_tokens=96, show_progress_bar=False
        )
        if corpus is None:
            corpus = encoder.encode_document(list(sets[hops[0]].documents.values()))
        for count, judged in sets.items():
            vectors = encoder.encode_query(list(judged.queries.values()))
            found[mode, count] = per_query_ndcg(judged, vectors, corpus)
    return found


def record(values: QueryScores, **facts: Any) -> dict[str, Any]:
    """One entry of a summary.json: mean, bootstrap interval over queries, and how it came about."""
    scores = list(values.values())
    found = interval(scores)
    return facts | {
        "ndcg_at_10": round(float(np.mean(scores)), 4),
        "interval": [round(found.low, 4), round(found.high, 4)],
        "queries": len(scores),
        "commit": commit(),
    }


def commit() -> str:
    """The first digits of the commit that is checked out."""
    return provenance.commit()[:7]


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON; NaN is an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")
