"""Times of a cache of 10 million rows of 64 dimensions: build, refresh, exact and IVF search, audit, save and load.

    OMP_NUM_THREADS=2 python results/corpus_cache/large.py [--rows 10000000] [--storage float16] [--folder DIR]

Prints JSON: seconds of each part and the peak resident memory of the process (of which the memory maps are pages of
files that the kernel may drop). The encoder costs next to nothing: the cache is measured.
"""

import argparse
import json
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from synthetic import SyntheticEncoder, SyntheticTexts

from train.config.corpus_cache import CorpusCacheSettings
from train.corpus_cache.cache import CorpusCache
from train.corpus_cache.refresh_policies import Hits

DIM = 64


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--storage", default="float16")
    parser.add_argument("--policy", default="local")
    parser.add_argument("--folder", type=Path, help="where the files go; needs 8 GB for 10 million rows")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp())
    try:
        found = measure(options, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    text = json.dumps(found, indent=1)
    if options.output:
        options.output.write_text(text + "\n")
    print(text)


def measure(options, folder):
    """Seconds of each part, recall of the IVF index, peak memory in GiB."""
    found = {"rows": options.rows, "dim": DIM, "storage": options.storage, "policy": options.policy}
    clock = _Clock(found)
    encoder, texts = SyntheticEncoder(DIM), SyntheticTexts(options.rows)
    settings = CorpusCacheSettings(policy=options.policy, storage=options.storage, neighbors=8, encode_rows=65536)
    cache = CorpusCache.build(texts, encoder, folder=folder, settings=settings, fingerprint="large")
    clock("build_seconds")
    rng = np.random.default_rng(1)
    rows = rng.integers(options.rows, size=64)
    queries = cache.values(rows) + 0.5 * rng.normal(size=(64, DIM)).astype(np.float32) / DIM**0.5
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    exact = cache.search(queries, 10)
    clock("exact_search_64_queries_seconds")
    refreshes = []
    for step in range(1, 11):
        encoder.step = step
        report = cache.refresh(Hits(queries, exact.rows, rows[:, None].tolist()), encoder, 4000, step=step)
        refreshes.append(report.own_seconds)
    found["refresh_median_seconds"] = float(np.median(refreshes))
    found["refreshed_rows"] = len(report.rows)
    clock("ten_refreshes_seconds")
    cache.search(queries[:1], 10, exact=False)
    clock("ivf_build_seconds")
    near = cache.search(queries, 10, exact=False)
    clock("ivf_search_64_queries_seconds")
    exact = cache.search(queries, 10)
    same = [len(set(one) & set(other)) / 10 for one, other in zip(near.rows, exact.rows, strict=True)]
    found["ivf_recall_at_10"] = float(np.mean(same))
    encoder.step = 11
    report = cache.refresh(Hits(queries, exact.rows, rows[:, None].tolist()), encoder, 4000, step=11)
    found["refresh_with_ivf_seconds"] = report.own_seconds
    found["cosine_drift"] = cache.audit(1000, encoder).cosine_drift
    clock()
    cache.save(fingerprint="large")
    clock("save_seconds")
    again = CorpusCache.load(folder, texts, fingerprint="large", dim=DIM)
    clock("load_seconds")
    found["loaded_equals_saved"] = bool((again.search(queries, 10).rows == cache.search(queries, 10).rows).all())
    found["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return found


class _Clock:
    """Seconds since the last call, under a name."""

    def __init__(self, found):
        self.found, self.started = found, time.perf_counter()

    def __call__(self, name=None):
        now = time.perf_counter()
        if name:
            self.found[name] = now - self.started
            print(f"{name}: {now - self.started:.1f}", flush=True, file=sys.stderr)
        self.started = now


if __name__ == "__main__":
    main()
