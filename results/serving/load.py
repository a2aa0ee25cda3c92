"""Load: 32 clients for a minute on one server, each answer compared with what the encoder gives alone.

    OMP_NUM_THREADS=1 python results/serving/load.py --model nano --model mini

Each client is OpenAI's own and asks for one thing after another: a query's vector, those of eight documents, or a
search. Lost, swapped and differing answers are counted, latencies are measured by the client. Writes load.json and its
section of README.md. The clients run on the same machine as the server.
"""

import argparse
import random
import shlex
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from results.pages import table
from results.serving.page import write_section
from results.serving.running import serving
from search_r3_mteb import SearchIndex, SearchR3Encoder
from search_r3_mteb.atomic import write_json
from search_r3_mteb.evaluation.provenance import commit
from search_r3_mteb.tasks.hopworld import HopWorld
from search_r3_mteb.tasks.stdlib import collect

HERE = Path(__file__).resolve().parent
KINDS = ("query", "documents", "search")
_EQUAL = 1e-5  # texts whose vectors differ by less cannot be told apart
TOGETHER = 8  # documents of a request
CLOSE = {"float32": 1e-6, "bfloat16": 0.0}  # the bundled models' batches are invariant in bfloat16: the same bits
SETTINGS = {
    "nano": {"max_reasoning_tokens": 32, "max_length": 128},
    "mini": {"max_reasoning_tokens": 48, "max_length": 128},
}


@dataclass
class Expected:
    """Texts, and what the encoder alone gives for them."""

    queries: list[str]
    documents: list[str]
    query_vectors: Any
    document_vectors: Any
    hits: list[list[tuple[str, float]]]
    close: float


@dataclass
class Counts:
    """What became of the requests of all clients; seconds by kind."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    failed: list[str] = field(default_factory=list)
    swapped: int = 0
    different: int = 0
    largest: float = 0.0
    texts: int = 0

    @property
    def answered(self) -> int:
        """Requests that were answered."""
        return sum(map(len, self.seconds.values()))


def expected(encoder: Any, queries: list[str], documents: list[str], index: Any) -> Expected:
    """The encoder's own vectors, and the index' own hits."""
    found = index.search(queries, "reason", 10)
    return Expected(
        queries,
        documents,
        np.array([each.thought.vector for each in found]),
        encoder.encode_document(documents),
        [[(hit.id, hit.score) for hit in each.hits] for each in found],
        CLOSE[str(encoder.model.dtype).removeprefix("torch.")],
    )


def load(url: str, name: str, want: Expected, clients: int, going: Callable[[int], bool], seed: int = 0) -> Counts:
    """Let `clients` ask one thing after another while `going(requests so far)`; each is a thread."""
    counts, lock = Counts(), threading.Lock()
    threads = [
        threading.Thread(target=_client, args=(url, name, want, going, random.Random(f"{seed}-{each}"), counts, lock))
        for each in range(clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return counts


def _client(
    url: str,
    name: str,
    want: Expected,
    going: Callable[[int], bool],
    draw: random.Random,
    counts: Counts,
    lock: threading.Lock,
) -> None:
    import openai

    client, asked = openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0, timeout=300), 0
    while going(asked):
        kind, asked = draw.choice(KINDS), asked + 1
        began = time.perf_counter()
        try:
            outcome = _ask(client, name, kind, want, draw)
        except openai.OpenAIError as error:
            with lock:
                counts.failed.append(f"{kind}: {type(error).__name__}")
            continue
        seconds = time.perf_counter() - began
        with lock:
            counts.seconds[kind].append(seconds)
            counts.texts += TOGETHER if kind == "documents" else 1
            counts.swapped += outcome[0]
            counts.different += outcome[1] > want.close
            counts.largest = max(counts.largest, outcome[1])


def _ask(client: Any, name: str, kind: str, want: Expected, draw: random.Random) -> tuple[bool, float]:
    """Whether an answer belongs to another text, and how far its numbers are from the encoder's own."""
    if kind == "search":
        place = draw.randrange(len(want.queries))
        answer = client.post("/search", body={"query": want.queries[place]}, cast_to=object)
        hits, own = answer["results"][0]["hits"], want.hits[place]
        apart = max(abs(hit["score"] - score) for hit, (_, score) in zip(hits, own, strict=True))
        # Documents of equal cosine may change places.
        return [hit["id"] for hit in hits] != [id_ for id_, _ in own] and apart > _EQUAL, apart
    texts, vectors, places = want.queries, want.query_vectors, [draw.randrange(len(want.queries))]
    if kind == "documents":
        texts, vectors = want.documents, want.document_vectors
        places = draw.sample(range(len(texts)), TOGETHER)
    role = "query" if kind == "query" else "document"
    answer = client.embeddings.create(model=f"{name}:{role}", input=[texts[place] for place in places])
    found = np.array([each.embedding for each in answer.data], np.float32)
    cosines = vectors @ found.T
    swapped = bool((cosines.max(axis=0) > cosines[places, range(len(places))] + _EQUAL).any())
    return swapped, float(np.abs(found - vectors[places]).max())


def pool(model: str) -> tuple[list[str], list[str]]:
    """64 queries and 256 documents: nano's own world, or the Python library's documentation."""
    if model == "nano":
        world = HopWorld(500)
        return [each.text for each in world.queries("test")[:64]], [each["text"] for each in world.corpus.values()][
            :256
        ]
    found = collect()
    return list(found.queries.values())[:64], list(found.documents.values())[:256]


def measure(model: str, clients: int, seconds: float) -> dict[str, Any]:
    """One server under load, beside the same requests by one client."""
    queries, documents = pool(model)
    settings = SETTINGS[model]
    encoder = SearchR3Encoder(model, **settings)
    with tempfile.TemporaryDirectory() as folder:
        rows = [{"id": str(place), "title": "", "text": text} for place, text in enumerate(documents)]
        index = SearchIndex.build(rows, encoder, Path(folder) / "index")
        want = expected(encoder, queries, documents, index)
        options = ["--model", model, "--index", str(Path(folder) / "index")]
        options += ["--set", f"max_length={settings['max_length']}"]
        options += ["--max-reasoning-tokens", str(settings["max_reasoning_tokens"])]
        with serving(options) as server:
            alone_until = time.monotonic() + min(20.0, seconds)
            alone = load(server.url, model, want, 1, lambda _: time.monotonic() < alone_until)
            end = time.monotonic() + seconds
            began = time.perf_counter()
            counts = load(server.url, model, want, clients, lambda _: time.monotonic() < end)
            took = time.perf_counter() - began
            memory = _peak(server.process)
    return {
        "model": model,
        "settings": settings,
        "dtype": str(encoder.model.dtype).removeprefix("torch."),
        "clients": clients,
        "seconds": round(took, 1),
        "requests": counts.answered + len(counts.failed),
        "lost": len(counts.failed),
        "failures": sorted(set(counts.failed)),
        "swapped": counts.swapped,
        "different": counts.different,
        "largest_difference": counts.largest,
        "requests_per_second": round(counts.answered / took, 1),
        "texts_per_second": round(counts.texts / took, 1),
        "latency": {kind: _percentiles(each) for kind, each in counts.seconds.items()},
        "latency_of_one_client": {kind: _percentiles(each) for kind, each in alone.seconds.items()},
        "peak_memory_mib": memory,
    }


def _percentiles(seconds: list[float]) -> dict[str, float]:
    return {
        "requests": len(seconds),
        **{f"p{share}": round(float(np.percentile(seconds, share)), 3) for share in (50, 95, 99) if seconds},
    }


def _peak(process: int) -> int:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) // 1024


def page(found: dict[str, Any]) -> list[str]:
    """The section of README.md."""
    rows = []
    for each in found["servers"]:
        for kind in KINDS:
            one, many = each["latency_of_one_client"][kind], each["latency"][kind]
            rows.append(
                [each["model"], kind, many["requests"], *(f"{one.get(p, 0):.2f}" for p in ("p50", "p95"))]
                + [f"{many.get(p, 0):.2f}" for p in ("p50", "p95", "p99")]
            )
    sums = [
        f"`{each['model']}` ({each['dtype']}, {each['settings']['max_reasoning_tokens']} tokens of reasoning at most): "
        f"{each['requests']:,} requests by {each['clients']} clients in {each['seconds']:.0f} s, "
        f"{each['requests_per_second']} requests and {each['texts_per_second']} texts per second; "
        f"**{each['lost']} lost, {each['swapped']} swapped, {each['different']} with other numbers** than the encoder "
        f"alone gives (largest difference {each['largest_difference']:.1e}); peak memory "
        f"{each['peak_memory_mib']:,} MiB."
        for each in found["servers"]
    ]
    head = ["model", "request", "requests", "1 client p50", "p95", f"{found['clients']} clients p50", "p95", "p99"]
    return [
        "## `search-r3 serve` under load",
        "",
        f"`{found['command']}` at commit {found['commit'][:7]}. Seconds, measured by the clients, on the same "
        f"machine; {found['machine']}. A request is one query, {TOGETHER} documents, or one search with reasoning.",
        "",
        *[f"- {line}" for line in sums],
        "",
        *table(head, rows),
    ]


def main() -> None:
    """Measure, and write both files."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", action="append", choices=sorted(SETTINGS))
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--machine", default="two shared cores, OMP_NUM_THREADS=1")
    given = parser.parse_args()
    found = {
        "command": shlex.join(["python", *sys.argv]),
        "commit": commit(),
        "machine": given.machine,
        "clients": given.clients,
        "servers": [measure(model, given.clients, given.seconds) for model in given.model or ["nano"]],
    }
    write_json(HERE / "load.json", found)
    write_section("load", page(found))


if __name__ == "__main__":
    main()
