"""What an index of 1,000,000 documents costs: building, searching, memory, recall, adding and removing, by its kind.

    OMP_NUM_THREADS=1 python results/serving/index_size.py

The vectors are made, not encoded: 384 dimensions, 5,000 clusters. A cluster's centre is normal in 48 latent
dimensions, a document is its centre plus 0.5 of normal noise there, carried to 384 dimensions by one random matrix,
plus 0.02 of normal noise in each, of unit length. Queries are further documents of the same clusters. Real corpora
have other neighbours: recall here compares the kinds, and promises nothing for yours.

Every step runs in a process of its own, whose memory is what it holds beside mapped files (RssAnon), at its peak, less
what the same process held before. An hour on one core; writes index_size.json and its section of README.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np

from results.pages import table
from results.serving.page import write_section
from search_r3_mteb import SearchIndex
from search_r3_mteb.atomic import write_json
from search_r3_mteb.evaluation.provenance import commit
from search_r3_mteb.indexing import writing
from search_r3_mteb.indexing.settings import IndexSettings
from search_r3_mteb.indexing.state import IndexState
from search_r3_mteb.json_files import read_object

HERE = Path(__file__).resolve().parent
DIM, LATENT, CLUSTERS, BLOCK = 384, 48, 5000, 10_000
QUERIES, ADDED, REMOVED, K = 1000, 10_000, 100_000, 10
KINDS = ("flat", "ivf", "hnsw")
TEXT = (
    "The text of a document, as long as an abstract's first lines are, so that what is read back has some length. " * 2
)


def vectors(block: int, rows: int) -> np.ndarray:
    """`rows` vectors of a block, which are the same in every process; block -1 holds the queries."""
    fixed, own = np.random.default_rng(0), np.random.default_rng(1_000_000 + block)
    carried = fixed.standard_normal((LATENT, DIM), np.float32) / np.float32(DIM**0.5)
    centres = fixed.standard_normal((CLUSTERS, LATENT), np.float32)
    latent = centres[own.integers(0, CLUSTERS, rows)] + np.float32(0.5) * own.standard_normal(
        (rows, LATENT), np.float32
    )
    made = latent @ carried + np.float32(0.02) * own.standard_normal((rows, DIM), np.float32)
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    return made


def blocks(first: int, rows: int) -> Iterator[writing.Block]:
    """Documents `first`, `first` + 1, ... and their vectors."""
    for start in range(first, first + rows, BLOCK):
        documents = [(f"doc-{number}", f"Title {number}", TEXT) for number in range(start, start + BLOCK)]
        yield documents, vectors(start // BLOCK, BLOCK)


def anonymous() -> int:
    """Bytes of this process that are not mapped file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def measured(work: Callable[[], Any]) -> tuple[Any, float, int]:
    """What the work gives, its seconds, and its memory at the peak."""
    before, peak, done = anonymous(), [0], Event()

    def watch() -> None:
        while not done.wait(0.05):
            peak[0] = max(peak[0], anonymous())

    watcher = Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    try:
        result = work()
    finally:
        seconds = time.perf_counter() - start
        done.set()
        watcher.join()
    return result, seconds, max(peak[0], anonymous()) - before


def build(folder: Path, kind: str, rows: int) -> dict[str, Any]:
    """Write the index."""
    encoding = {"dim": DIM, "dtype": "float32", "max_length": 0, "prompt": "", "checkpoint": ""}
    state = IndexState(encoding, {"name": None, "revision": None}, IndexSettings(kind=kind))  # type: ignore[arg-type]
    _, seconds, memory = measured(lambda: writing.write_new(folder, state, blocks(0, rows)))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {"build_seconds": seconds, "build_memory": memory, "disk": size}


def search(folder: Path, truth: Path, label: str) -> dict[str, Any]:
    """Opening with and without checksums, queries alone and 100 at a time, and recall against `truth`."""
    queries = vectors(-1, QUERIES)
    checked, verify_seconds, _ = measured(lambda: SearchIndex.open(folder))
    del checked
    index, open_seconds, opened = measured(lambda: SearchIndex.open(folder, verify=False))
    ask = [""] * QUERIES
    index.find(ask[:3], queries[:3], K)  # what is read first comes from the disk
    times: list[float] = []

    def alone() -> None:
        for query in queries[:50]:
            start = time.perf_counter()
            index.find([""], query[None], K)
            times.append(time.perf_counter() - start)

    _, _, memory = measured(alone)
    start = time.perf_counter()
    found = [index.find(ask[:100], queries[at : at + 100], K) for at in range(0, QUERIES, 100)]
    together = (time.perf_counter() - start) / QUERIES
    ids = [[hit.id for hit in result.hits] for part in found for result in part]
    if not truth.exists():
        truth.write_text(json.dumps(ids))
    exact = json.loads(truth.read_text())
    recall = float(np.mean([len(set(one) & set(other)) / K for one, other in zip(ids, exact, strict=True)]))
    return {
        f"{label}recall_at_10": recall,
        f"{label}median_ms_alone": 1000 * float(np.median(times)),
        f"{label}ms_in_batches_of_100": 1000 * together,
        f"{label}search_memory": opened + memory,
        f"{label}open_seconds": open_seconds,
        f"{label}open_seconds_with_checksums": verify_seconds,
    }


def change(folder: Path, rows: int) -> dict[str, Any]:
    """Add 10,000 documents, then remove every tenth of the first million."""
    _, add_seconds, add_memory = measured(
        lambda: writing.write_more(folder, lambda look: looked(blocks(rows, ADDED), look), replacing=False)
    )
    ids = [f"doc-{number}" for number in range(0, rows, max(1, rows // REMOVED))]
    _, remove_seconds, remove_memory = measured(lambda: writing.remove(folder, ids, missing_ok=False))
    return {
        "add_seconds": add_seconds,
        "add_memory": add_memory,
        "removed": len(ids),
        "remove_seconds": remove_seconds,
        "remove_memory": remove_memory,
    }


def looked(more: Iterator[writing.Block], look: writing.Look) -> Iterator[writing.Block]:
    """The blocks, each shown to `look` first."""
    for documents, made in more:
        look(documents)
        yield documents, made


def step(name: str, folder: Path, kind: str, rows: int) -> dict[str, Any]:
    """One step, in this process."""
    if name == "build":
        return build(folder / kind, kind, rows)
    if name == "change":
        return change(folder / kind, rows)
    return search(folder / kind, folder / f"{name}.json", "" if name == "search" else "changed_")


def main() -> None:
    """Run all steps, each in a process of its own, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where the indexes are made; 10 GB")
    parser.add_argument("--step", nargs=2, metavar=("STEP", "KIND"), help=argparse.SUPPRESS)
    parser.add_argument("--page", action="store_true", help="write the section again from index_size.json")
    given = parser.parse_args()
    if given.page:
        write_section("index_size", section(read_object(HERE / "index_size.json")))
        return
    if given.step:
        print(json.dumps(step(given.step[0], given.folder, given.step[1], given.rows)))
        return
    found: dict[str, Any] = {
        "command": " ".join(["python", "results/serving/index_size.py", *sys.argv[1:]]),
        "commit": commit(),
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "rows": given.rows,
        "dim": DIM,
        "settings": {name: getattr(IndexSettings(), name) for name in ("hnsw_links", "hnsw_build", "hnsw_search")},
        "kinds": [],
    }
    with tempfile.TemporaryDirectory(dir=given.folder) as place:
        for kind in KINDS:  # flat first: it says what is right
            row: dict[str, Any] = {"kind": kind}
            for name in ("build", "search", "change", "search-changed"):
                command = [sys.executable, __file__, "--rows", str(given.rows), "--folder", place, "--step", name, kind]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                row |= json.loads(done.stdout.splitlines()[-1])
                print(kind, name, done.stdout.splitlines()[-1], flush=True)
            found["kinds"].append(row)
            write_json(HERE / "index_size.json", found)
            write_section("index_size", section(found))


def section(found: dict[str, Any]) -> list[str]:
    """The lines of the page."""
    rows = found["kinds"]

    def line(what: str, name: str, form: Callable[[float], str]) -> list[str]:
        return [what, *(form(row[name]) for row in rows)]

    seconds, ms = "{:,.1f} s".format, "{:,.1f} ms".format
    share, mb = "{:.3f}".format, lambda size: f"{max(size / 1e6, 1):,.0f} MB"
    return [
        f"## An index of {found['rows']:,} documents",
        "",
        f"`{found['command']}` at commit {found['commit'][:7]}, {found['threads']} thread, on a machine that "
        "other work used at the same time: times are upper bounds.",
        f"Made vectors of {found['dim']} dimensions in {CLUSTERS:,} clusters (the script says how), texts of "
        f"{len(TEXT)} characters, {QUERIES:,} queries; nothing is encoded.",
        "Recall@10 is against flat, which is exact. Memory is what a process holds at its peak beside mapped files, of "
        "which the system keeps in memory what it can.",
        "",
        *table(
            ["", *(row["kind"] for row in rows)],
            [
                line("build", "build_seconds", seconds),
                line("memory of building", "build_memory", mb),
                line("on disk", "disk", mb),
                line("opening", "open_seconds", seconds),
                line("opening, with checksums", "open_seconds_with_checksums", seconds),
                line("a query alone, median of 50", "median_ms_alone", ms),
                line("a query of 100 together", "ms_in_batches_of_100", ms),
                line("memory of searching", "search_memory", mb),
                line("recall@10", "recall_at_10", share),
                line(f"adding {ADDED:,} documents", "add_seconds", seconds),
                line(f"removing {rows[0]['removed']:,} documents", "remove_seconds", seconds),
                line("then: a query alone", "changed_median_ms_alone", ms),
                line("then: recall@10", "changed_recall_at_10", share),
            ],
        ),
    ]


if __name__ == "__main__":
    main()
