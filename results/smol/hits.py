"""The second mode of smol as data: a BEIR folder whose queries have the titles of their first direct hits below them.

    python results/smol/hits.py --model runs/smol/sft2/last --data runs/smol/data/nfcorpus
        --output runs/smol/data/nfcorpus-hits [--splits train dev] [--dtype float32] [--max-length 256] [--store FOLDER]

Stage 2 and gates.py take it as any other folder. The hits are those of the given model's direct vectors; of a training
query they are as good as of a new one only while the model has not learnt its judgements by heart, so the share of
queries whose first hit is relevant is printed for each split.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from results.smol.gates import device, shown
from results.smol.judged_split import JudgedSplit
from search_r3_mteb import SearchR3Encoder
from search_r3_mteb.encoder.checkpoints import load
from search_r3_mteb.tasks.beir_folder import read_corpus, read_relevance, write_beir

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


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--splits", nargs="+", default=["train", "dev"])
    parser.add_argument("--dtype", default="bfloat16", help="bfloat16 where the processor has it, else float32")
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--store", type=Path, help="vectors are kept here, and read by the next command")
    options = parser.parse_args()
    checkpoint = load(options.model, dtype=options.dtype, device=device())
    encoder = SearchR3Encoder(
        checkpoint, mode="direct", max_length=options.max_length, max_reasoning_tokens=48, cache_folder=options.store
    )
    print(json.dumps(with_hits(options.data, options.splits, encoder, options.output), indent=1))


if __name__ == "__main__":
    main()
