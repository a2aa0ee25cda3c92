"""Cost of one refresh without the encoder, on this processor or on a device. Prints JSON.

    OMP_NUM_THREADS=1 python results/corpus_cache/cost.py [--rounds 60] [--rows 10000 1000000] [--output FILE]
    OMP_NUM_THREADS=1 python results/corpus_cache/cost.py --dim 1536 --documents 100000 [--storage bfloat16]
    python results/corpus_cache/cost.py --dim 1536 --documents 1000000 --device cuda [--device-gigabytes 0 16]

The first form refreshes caches of two sizes in turn, so that other load on the machine meets them alike; the ratio is
the median over rounds of the ratio within a round. Every refresh has its own batch of 64 rollouts whose 10 hits lie
anywhere, and the same budget of tokens.

With --documents, a cache of random vectors (no encoder, no graph) is searched and refreshed, one after the other for
each storage and number of gigabytes that stay on the device. A million documents of 1,536 dimensions take 6.2 GB of
disk for the originals and 3.1 or 6.2 for the values, under --folder, and as much page cache.
"""

import argparse
import json
import platform
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from synthetic import TOKENS, SyntheticEncoder, SyntheticTexts

from search_r3_mteb.evaluation.provenance import commit
from search_r3_mteb.search.storage import pack
from train.config.corpus_cache import CorpusCacheSettings
from train.corpus_cache.cache import CorpusCache
from train.corpus_cache.refresh_policies import Hits
from train.corpus_cache.state import new_state
from train.corpus_cache.texts import CorpusTexts
from train.processes.replicas import Replicas

ROLLOUTS, TOUCHED, DOCUMENTS = 64, 10, 256
WARM_UP = 10


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument(
        "--documents", type=int, help="the number of documents whose map and search are measured instead"
    )
    parser.add_argument("--device", default="cpu", help="cpu: numpy; cuda: blocks on the GPU, if there is one")
    parser.add_argument("--device-gigabytes", type=float, nargs="+", default=[0.0, 16.0])
    parser.add_argument("--block-megabytes", type=int, default=64)
    parser.add_argument("--storage", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--folder", type=Path, help="where the matrices lie")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found = (blocks if options.documents else measure)(options, Path(folder))
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
    rounds = options.rounds or 60
    for step in range(1, rounds + WARM_UP + 1):
        encoder.step = step
        for name, cache in caches.items():
            queries = unit_rows(rng, ROLLOUTS, options.dim)
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
        "rounds": rounds,
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


def unit_rows(rng, rows, dim):
    """Random unit vectors."""
    vectors = rng.standard_normal((rows, dim), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


# ------------------------------------------------------------------------------------- one size, map and search alone


def blocks(options, folder):
    """Seconds of a search of 64 queries and of a refresh with its map, on each cache in turn."""
    device, machine = opened(options.device)
    turn = 0.002 * np.random.default_rng(2).standard_normal((options.dim, options.dim), dtype=np.float32)
    cases = []
    for storage in options.storage:
        for gigabytes in options.device_gigabytes if device is not None else [0.0]:
            settings = CorpusCacheSettings(storage=storage)
            if device is not None:
                settings = settings.replaced(device_gigabytes=gigabytes, block_megabytes=options.block_megabytes)
            with tempfile.TemporaryDirectory(dir=folder) as own:
                cache = random_cache(Path(own), settings, options, device)
                cases.append(
                    {"storage": storage, "gigabytes_on_device": gigabytes} | one_case(cache, turn, options.rounds or 5)
                )
                del cache
            print(json.dumps(cases[-1]), file=sys.stderr, flush=True)
    return {
        "commit": commit(),
        "machine": machine,
        "documents": options.documents,
        "dim": options.dim,
        "queries": ROLLOUTS,
        "block_megabytes": options.block_megabytes,
        "cases": cases,
    }


def one_case(cache, turn, rounds):
    """Medians over the rounds, the first left out, and the most memory that the device has given."""
    rng = np.random.default_rng(1)
    steps = [one_step(cache, unit_rows(rng, ROLLOUTS, cache.dim), turn, step) for step in range(1, rounds + 2)]
    found = {"steps": rounds} | {key: float(np.median([one[key] for one in steps[1:]])) for key in steps[0]}
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        cuda = sys.modules["torch"].cuda
        found["peak_device_gigabytes"] = cuda.max_memory_allocated() / 1e9
        cuda.reset_peak_memory_stats()
    return found


def opened(name):
    """The device (None for numpy) and the machine in words."""
    import torch

    processor = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    if name == "cpu":
        return None, processor
    if torch.device(name).type == "cuda" and not torch.cuda.is_available():
        print(
            f"--device {name}: there is no CUDA device here. The same blocks go through the processor's torch instead, "
            "without pinned memory and copies: the path is run, the times are not those of a GPU.",
            file=sys.stderr,
        )
        return torch.device("cpu"), f"no CUDA device: blocks on the processor's torch, {processor}"
    return torch.device(name), f"{torch.cuda.get_device_name()}, torch {torch.__version__}"


def random_cache(folder, settings, options, device):
    """A cache of random unit vectors whose graph is random as well."""
    rng, n = np.random.default_rng(0), options.documents
    state = new_state(folder, settings, n, options.dim, settings.neighbors, 0)
    arrays = state.folder.arrays
    for start in range(0, n, 1 << 14):
        vectors = unit_rows(rng, min(1 << 14, n - start), options.dim)
        arrays["originals"][start : start + len(vectors)] = vectors
        arrays["vectors"][start : start + len(vectors)] = pack(vectors, settings.storage)
    arrays["tokens"][:] = TOKENS
    arrays["neighbors"][:] = rng.integers(n, size=arrays["neighbors"].shape)
    state.checkpoint()
    cache = CorpusCache(state, CorpusTexts(SyntheticTexts(n)), Replicas())
    return cache if device is None else cache.on(device)


def one_step(cache, queries, turn, step):
    """Seconds of a search, and of the parts of the refresh that follows it."""

    def encode(texts):
        originals = cache.originals(np.array([int(text[2:]) for text in texts]))
        return originals + step * (originals @ turn)

    started = time.perf_counter()
    found = cache.search(queries, TOUCHED)
    searched = time.perf_counter() - started
    hits = Hits(queries, found.rows, found.rows[:, :1].tolist())
    report = cache.refresh(hits, encode, DOCUMENTS * TOKENS, step=step)
    return {"search_seconds": searched, "map_seconds": report.map_seconds, "refresh_seconds": report.own_seconds}


if __name__ == "__main__":
    main()
