"""Rows of a further round of smol's stage 1: the model's own texts, the best to be written, any to be read.

The second round of 2026-11-27 was trained on them; `smol.py` does not use them now (results/smol/README.md says why).

    python results/smol/own_text.py --model runs/smol/sft/last --data runs/smol/data --output runs/smol/own.jsonl
        [--queries 3000] [--samples 4]

Of each training query's samples, the one is kept that gains most under this encoder: the mean over the query's
relevant documents of log softmax(cosine / 0.05) over the source's documents, of the anchored vector (direct + reasoned)
against the direct one. Where one gains, a row learns to write it (rejection sampling, as in RAFT, arXiv 2304.06767);
where none does, a row learns to write nothing (`reasoning` is a full stop: the shortest text that can be said). One row
more per query reads another of the samples, drawn by chance, as it would at test time (`given`), and learns no word of
it: only its vector. Source: our choice.
"""

import argparse
import json
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from results.smol.gates import device
from results.smol.judged_split import unit
from search_r3_mteb import SearchR3Encoder
from search_r3_mteb.atomic import write_jsonl
from search_r3_mteb.encoder.checkpoints import Checkpoint, load
from search_r3_mteb.search.arrays import Vectors

SOURCES = ("nfcorpus", "medical", "squad", "arxiv", "scifact")
NOTHING = "."
TEMPERATURE = 0.05


def drawn(file: Path, queries: int) -> dict[str, list[dict[str, str]]]:
    """Rows of at most `queries` different queries of a file, under a fixed seed, by query."""
    rows: dict[str, list[dict[str, str]]] = defaultdict(list)
    with file.open(encoding="utf-8") as stream:
        for row in map(json.loads, stream):
            rows[row["query"]].append(row)
    chosen = random.Random(0).sample(sorted(rows), min(queries, len(rows)))
    return {query: rows[query] for query in chosen}


def likelihood(queries: Vectors, documents: Vectors, relevant: Sequence[Sequence[int]]) -> Any:
    """Mean over a query's relevant documents of the log of their softmax share, (queries,)."""
    found = []
    for start in range(0, len(queries), 512):
        logits = queries[start : start + 512] @ documents.T / TEMPERATURE
        logits -= logits.max(axis=1, keepdims=True)
        shares = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        found += [float(row[list(own)].mean()) for row, own in zip(shares, relevant[start:], strict=False)]
    return np.array(found)


def rows_of(
    rows: Mapping[str, Sequence[Mapping[str, str]]], direct: SearchR3Encoder, writers: Sequence[SearchR3Encoder]
) -> tuple[list[dict[str, str]], dict[str, float]]:
    """The rows of one source, and how much its samples gain."""
    queries = list(rows)
    documents = list(dict.fromkeys(row["positive"] for own in rows.values() for row in own))
    place = {text: number for number, text in enumerate(documents)}
    relevant = [sorted({place[row["positive"]] for row in rows[query]}) for query in queries]
    vectors = direct.encode_document(documents)
    asked = direct.encode_query(queries)
    before = likelihood(asked, vectors, relevant)
    thoughts = [writer.think(queries) for writer in writers]
    gains = np.stack(
        [likelihood(unit(asked + np.stack([t.vector for t in one])), vectors, relevant) - before for one in thoughts]
    )
    best, rng, found = gains.argmax(axis=0), random.Random(0), []
    for number, query in enumerate(queries):
        kept = {key: value for key, value in rng.choice(list(rows[query])).items() if key != "reasoning"}
        chosen = thoughts[best[number]][number]
        gained = gains[best[number], number] > 0 and chosen.finished and bool(chosen.text.strip())
        found.append(kept | {"reasoning": chosen.text.strip() if gained else NOTHING})
        text = thoughts[rng.randrange(len(thoughts))][number].text.strip()
        if text:
            other = {key: value for key, value in rng.choice(list(rows[query])).items() if key != "reasoning"}
            found.append(other | {"given": text})
    counts = {"queries": len(queries), "gain_of_mean": float(gains.mean()), "gain_of_best": float(gains.max(0).mean())}
    return found, counts | {"share_gained": float((gains.max(axis=0) > 0).mean())}


def encoders(checkpoint: Checkpoint, samples: int, store: Path) -> tuple[SearchR3Encoder, list[SearchR3Encoder]]:
    """The encoder of direct vectors, and one per sample. None is anchored: `rows_of` adds the direct vector itself."""
    settings: dict[str, Any] = {"max_length": 256, "max_reasoning_tokens": 48, "anchor": None, "cache_folder": store}
    writers = [SearchR3Encoder(checkpoint, temperature=0.8, seed=seed, **settings) for seed in range(samples)]
    return SearchR3Encoder(checkpoint, mode="direct", **settings), writers


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--queries", type=int, default=3000, help="per source, at most")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--dtype", default="bfloat16", help="bfloat16 where the processor has it, else float32")
    options = parser.parse_args()
    checkpoint = load(options.model, dtype=options.dtype, device=device())
    store = options.output.with_suffix(".store")  # a killed run goes on where it was
    direct, writers = encoders(checkpoint, options.samples, store)
    everything: list[dict[str, str]] = []
    report = {}
    for name in SOURCES:
        found, report[name] = rows_of(drawn(options.data / f"{name}.jsonl", options.queries), direct, writers)
        everything += found
        print(name, json.dumps(report[name]), flush=True)
    write_jsonl(options.output, everything)
    options.output.with_suffix(".report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
