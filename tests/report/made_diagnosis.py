"""A diagnose.json without a model: made-up measurements through the code that writes the real one."""

import json
from functools import cache

import numpy as np

from search_r3_mteb.evaluation.diagnosis_groups import BudgetRun, Measured, group_record, hop_groups, verdict
from search_r3_mteb.evaluation.movement import Cosines

QUERIES = 40


def diagnosis(**changed):
    return made() | changed


@cache
def made():
    """A diagnose.json with made-up measurements: a query's own reasoning is worth 0.4."""
    rng = np.random.default_rng(0)
    level = {"own": 0.8, "other": 0.4, "shuffled": 0.6, "none": 0.3, "direct": 0.35}
    ndcg = {name: (mean + rng.normal(0, 0.1, QUERIES)).clip(0, 1) for name, mean in level.items()}
    tokens, forced = rng.integers(3, 60, QUERIES), (np.arange(QUERIES) % 10 == 0).astype(float)
    same, different = rng.uniform(0.6, 0.9, QUERIES), rng.uniform(0.1, 0.4, QUERIES)
    rollouts = rng.random((4, QUERIES))
    runs = {b: ((ndcg["own"] - (64 - b) / 200).clip(0, 1), tokens.clip(max=b), forced) for b in (0, 16, 64)}
    measured = Measured(
        ndcg=ndcg, cosine_to_own=dict.fromkeys(level, same), tokens=tokens, forced=forced,
        budgets={budget: BudgetRun(*run) for budget, run in runs.items()},
        cosines=Cosines(same, same - 0.1, different, np.full(QUERIES, 3)), rollout_ndcg=rollouts,
        rollout_margin=rollouts / 4, rollout_forced=rollouts * 0, pools={1: rollouts.mean(0), 4: ndcg["own"]},
    )  # fmt: skip
    hops = [1 + n % 3 for n in range(QUERIES)]
    groups = [group_record(measured, rows, count) for count, rows in hop_groups(hops)]
    columns = {"query_id": [f"q{n}<b>" for n in range(QUERIES)], "cosine_same": same.tolist()}
    columns |= {"cosine_different": different.tolist(), "ndcg_spread": rollouts.std(axis=0).tolist()}
    return {
        "version": 1, "task": "Made", "split": "test", "model": "nano", "commit": "0123456789abcdef",
        "queries_in_task": 90, "skipped": [], "verdict": verdict(groups[0], "nano", "Made"), "groups": groups,
        "per_query": columns,
    }  # fmt: skip


def write(folder, data):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "diagnose.json").write_text(data if isinstance(data, str) else json.dumps(data))
    return folder
