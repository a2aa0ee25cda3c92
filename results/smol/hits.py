"""The second mode of smol as data: queries with the titles of their first direct hits below them.

    python results/smol/hits.py --model runs/smol/sft2/last --data runs/smol/data/nfcorpus
        --output runs/smol/data/nfcorpus-hits [--splits train dev] [--dtype float32] [--max-length 256] [--store FOLDER]
    python results/smol/hits.py --model runs/smol/sft2/last --data runs/smol/data/nfcorpus
        --rows runs/smol/written.jsonl --output runs/smol/written-hits.jsonl [--splits dev test] ...

The first writes a BEIR folder, which stage 2 and gates.py take as any other, and prints for each split the share of
queries whose first hit is relevant: hits of training queries are as good as those of new ones only while the model has
not learnt their judgements by heart.

With --rows it writes training rows: queries of this corpus get their titles, other rows stay as they are. A row whose
query is, word for word, one of --splits is left out: with titles below it no training would recognise it.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from results.mini.mini_data import words_of
from results.smol.gates import device, shown
from results.smol.judged_split import JudgedSplit
from search_r3_mteb import SearchR3Encoder
from search_r3_mteb.atomic import write_text
from search_r3_mteb.encoder.checkpoints import load
from search_r3_mteb.tasks.beir_folder import read_corpus, read_queries, read_relevance, write_beir

HITS = 3


def with_hits(folder: Path, splits: Sequence[str], encoder: Any, output: Path) -> dict[str, float]:
    """Write the folder; for each split the share of queries whose first hit is relevant."""
    vectors, texts, found = None, {}, {}
    for split in splits:
        data = JudgedSplit(folder, split, None)
        vectors = encoder.encode_document(list(data.documents.values())) if vectors is None else vectors
        data.vectors = vectors
        direct = encoder.encode_query(data.queries)
        texts |= dict(zip(data.ids, shown(data, data.top_titles(direct, HITS)), strict=True))
        first = data.top(direct, 1)[:, 0]
        found[split] = sum(int(place) in own for place, own in zip(first, data.grades, strict=True)) / len(first)
    judged = {
        split: [
            (query, id_, grade)
            for query, grades in read_relevance(folder, split).items()
            if query in texts
            for id_, grade in grades.items()
        ]
        for split in splits
    }
    write_beir(output, corpus=read_corpus(folder), queries=list(texts.items()), qrels=judged)
    return found


def rows_with_hits(folder: Path, splits: Sequence[str], encoder: Any, rows: Sequence[Any]) -> list[Any]:
    """The rows, those with a query of `folder` with titles below it, less those that ask what a query of `splits` does.

    Raises ValueError where no row has a query of the folder.
    """
    known = {query.text for query in read_queries(folder)}
    held_out = [JudgedSplit(folder, split, None) for split in splits]
    judged = {tuple(words_of(query)) for data in held_out for query in data.queries}
    kept = [row for row in rows if tuple(words_of(row["query"])) not in judged]
    asked = [row["query"] for row in kept if row["query"] in known]
    if not asked:
        raise ValueError(f"--rows: none of {len(rows)} rows has a query of {folder}. Give the folder they are from.")
    data = held_out[0]
    data.vectors = encoder.encode_document(list(data.documents.values()))
    hits = data.top_titles(encoder.encode_query(asked), HITS)
    titled = {query: "\n".join([query, *titles]) for query, titles in zip(asked, hits, strict=True)}
    return [row | {"query": titled.get(row["query"], row["query"])} for row in kept]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rows", type=Path, help="training rows whose queries get the titles")
    parser.add_argument("--splits", nargs="+", help="default: train dev; with --rows, the splits that judge: dev test")
    parser.add_argument("--dtype", default="bfloat16", help="bfloat16 where the processor has it, else float32")
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--store", type=Path, help="vectors are kept here, and read by the next command")
    options = parser.parse_args()
    checkpoint = load(options.model, dtype=options.dtype, device=device())
    encoder = SearchR3Encoder(
        checkpoint, mode="direct", max_length=options.max_length, max_reasoning_tokens=48, cache_folder=options.store
    )
    if options.rows is None:
        found = with_hits(options.data, options.splits or ["train", "dev"], encoder, options.output)
        print(json.dumps(found, indent=1))
        return
    given = [json.loads(line) for line in options.rows.read_text(encoding="utf-8").splitlines()]
    rows = rows_with_hits(options.data, options.splits or ["dev", "test"], encoder, given)
    write_text(options.output, "".join(f"{json.dumps(row)}\n" for row in rows))
    print(f"{len(rows):,} rows, {len(given) - len(rows):,} left out")


if __name__ == "__main__":
    main()
