"""Cost of the cache's checksums: refreshes with and without them in turns, and loading and saving. Prints JSON.

    OMP_NUM_THREADS=1 python results/corpus_cache/checksums.py [--rows 10000] [--rounds 30] [--output FILE]

Two caches of the same documents of hopworld, encoded by the bundled nano, are refreshed with the same hits, one after
the other, each first in every other round: one as it is, one whose records have no checksums. A refresh re-encodes two
percent of the corpus's tokens, and the drift map moves the rest. Times are those of the processor, not of the clock, as
the machine may do other work; beside the ratio within a round the share of the time inside of the checksums is taken.
"""

import argparse
import json
import tempfile
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
from cost import opened, unit_rows

from search_r3_mteb.encoder.encoder import SearchR3Encoder
from search_r3_mteb.evaluation.provenance import commit
from search_r3_mteb.tasks.hopworld import HopWorld
from train.config.corpus_cache import CorpusCacheSettings
from train.corpus_cache import files, state
from train.corpus_cache.cache import CorpusCache
from train.corpus_cache.refresh_policies import Hits
from train.corpus_cache.texts import CorpusTexts

ROLLOUTS, TOUCHED, SHARE = 64, 10, 0.02


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--policies", nargs="+", default=["local", "local+map"])
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    encoder = SearchR3Encoder("nano", show_progress_bar=False)
    documents = list(HopWorld(options.rows).corpus.values())
    corpus = CorpusTexts.of([f"{document['title']} {document['text']}".strip() for document in documents])
    with tempfile.TemporaryDirectory() as folder:
        cases = [
            measured(Path(folder) / policy, policy, corpus, encoder, options.rounds) for policy in options.policies
        ]
    command = f"OMP_NUM_THREADS=1 python results/corpus_cache/checksums.py --rows {options.rows}"
    found = {
        "commit": commit(),
        "command": f"{command} --rounds {options.rounds}",
        "machine": opened("cpu")[1],
        "documents": len(corpus),
        "cases": cases,
    }
    text = json.dumps(found, indent=1)
    if options.output:
        options.output.write_text(text + "\n")
    print(text)


def measured(folder, policy, corpus, encoder, rounds):
    """The shares of one policy's refreshes, and the seconds of a save and a load."""
    settings = CorpusCacheSettings(policy=policy)
    caches = {
        name: CorpusCache.build(corpus, encoder.encode_document, folder=folder / name, settings=settings)
        for name in ("with", "without")
    }
    rng = np.random.default_rng(0)
    budget = int(SHARE * corpus.count().sum(dtype=np.int64))
    ratios, shares, seconds = [], [], []
    for step in range(1, rounds + 3):  # the first two warm up
        queries = unit_rows(rng, ROLLOUTS, caches["with"].dim)
        rows = rng.integers(len(corpus), size=(ROLLOUTS, TOUCHED))
        hits = Hits(queries, rows, rows[:, :1].tolist())
        took = {}
        for name in ("with", "without") if step % 2 else ("without", "with"):
            timer = Timer(state.CacheState._sums_after if name == "with" else lambda self, record: {})
            with mock.patch.object(state.CacheState, "_sums_after", timer.method()):
                refresh = partial(caches[name].refresh, hits, encoder.encode_document, budget, step=step)
                took[name] = timed(refresh)
            if name == "with" and step > 2:
                shares.append(timer.seconds / (took[name] - timer.seconds))
        if step > 2:
            ratios.append(took["with"] / took["without"])
            seconds.append(took["with"])
    with summing() as timer:
        saving = timed(lambda: caches["with"].save(folder / "saved"))
    saved = timer.seconds
    with summing() as timer:
        loading = timed(lambda: CorpusCache.load(folder / "saved", corpus, fingerprint="", dim=caches["with"].dim))
    return {
        "policy": policy,
        "rounds": rounds,
        "refresh_seconds": float(np.median(seconds)),
        "ratio_with_to_without": float(np.median(ratios)),
        "ratio_quartiles": [float(value) for value in np.quantile(ratios, [0.25, 0.75])],
        "share_of_checksums": float(np.median(shares)),
        "largest_share_of_checksums": float(max(shares)),
        "save_seconds": saving,
        "save_seconds_in_checksums": saved,
        "load_seconds": loading,
        "load_seconds_in_checksums": timer.seconds,
    }


class Timer:
    """A function that knows how long it took, all calls together."""

    def __init__(self, function):
        self.function, self.seconds = function, 0.0

    def __call__(self, *arguments):
        """What the function gives."""
        started = time.process_time()
        found = self.function(*arguments)
        self.seconds += time.process_time() - started
        return found

    def method(self):
        """For a class: bound like a function."""
        return lambda *arguments: self(*arguments)


@contextmanager
def summing():
    """A timer of the checksums of whole arrays."""
    timer = Timer(files.whole_sum)
    with mock.patch.object(files, "whole_sum", timer), mock.patch.object(state, "whole_sum", timer):
        yield timer


def timed(call):
    """Seconds that a call takes."""
    started = time.process_time()
    call()
    return time.process_time() - started


if __name__ == "__main__":
    main()
