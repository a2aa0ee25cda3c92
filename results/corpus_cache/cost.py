"""Cost of one refresh without the encoder, at 10,000 and 1,000,000 rows, map off and on. Prints JSON.

    OMP_NUM_THREADS=1 python results/corpus_cache/cost.py [--rounds 60] [--rows 10000 1000000] [--output FILE]

The caches are refreshed in turn, so that other load on the machine meets them alike; the ratio is the median over
rounds of the ratio within a round. Every refresh has its own batch of 64 rollouts whose 10 hits lie anywhere, and the
same budget of tokens.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from synthetic import TOKENS, SyntheticEncoder, SyntheticTexts

from train.config.corpus_cache import CorpusCacheSettings
from train.corpus_cache.cache import CorpusCache
from train.corpus_cache.refresh_policies import Hits

ROLLOUTS, TOUCHED, DOCUMENTS = 64, 10, 256
WARM_UP = 10


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options, Path(folder))
    text = json.dumps(found, indent=1)
    if options.output:
        options.output.write_text(text + "\n")
    print(text)


def measure(options, folder):
    """Seconds per refresh of each cache, and the ratios of the largest to the smallest."""
    rng = np.random.default_rng(0)
    names = [(policy, rows) for policy in ("local", "local+map") for rows in options.rows]
    caches = {}
    for policy, rows in names:
        settings = CorpusCacheSettings(policy=policy)
        target = folder / f"{policy}-{rows}"
        caches[policy, rows] = CorpusCache.build(
            SyntheticTexts(rows), SyntheticEncoder(options.dim), folder=target, settings=settings
        )
    seconds = {name: [] for name in names}
    mapping = {name: [] for name in names}
    encoder = SyntheticEncoder(options.dim)
    for step in range(1, options.rounds + WARM_UP + 1):
        encoder.step = step
        for name, cache in caches.items():
            queries = rng.normal(size=(ROLLOUTS, options.dim)).astype(np.float32)
            queries /= np.linalg.norm(queries, axis=1, keepdims=True)
            rows = rng.integers(len(cache), size=(ROLLOUTS, TOUCHED))
            budget = DOCUMENTS * TOKENS
            report = cache.refresh(Hits(queries, rows, rows[:, :1].tolist()), encoder, budget, step=step)
            if len(report.rows) != DOCUMENTS:
                raise ValueError(f"{name} re-encoded {len(report.rows)} documents, not {DOCUMENTS}: not the same work.")
            if step > WARM_UP:
                seconds[name].append(report.own_seconds)
                mapping[name].append(report.map_seconds_per_row)
    few, many = min(options.rows), max(options.rows)
    ratio = {
        policy: float(np.median(np.array(seconds[policy, many]) / np.array(seconds[policy, few])))
        for policy in ("local", "local+map")
    }
    return {
        "dim": options.dim,
        "rounds": options.rounds,
        "ratio_map_off": ratio["local"],
        "ratio_map_on": ratio["local+map"],
        "cases": [
            {
                "policy": policy,
                "rows": rows,
                "seconds": float(np.median(seconds[policy, rows])),
                "map_seconds_per_row": float(np.median(mapping[policy, rows])),
            }
            for policy, rows in names
        ],
    }


if __name__ == "__main__":
    main()
