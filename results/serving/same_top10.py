"""Whether an index finds the ten documents that MTEB finds, for every query and in both modes.

    OMP_NUM_THREADS=1 python results/serving/same_top10.py --data SCIFACT

`search-r3 evaluate` encodes, searches and scores through MTEB; `SearchIndex` encodes the same folder again, with no
cache between the two. Minutes; writes same_top10.json and its section of README.md.
"""

import argparse
import shlex
import tempfile
from pathlib import Path
from typing import Any

from results.pages import table
from results.serving.page import write_section
from results.serving.top10 import CLOSE, OUTCOMES, K, asked, compared, counted, evaluated
from search_r3_mteb import SearchIndex, SearchR3Encoder
from search_r3_mteb.atomic import write_json
from search_r3_mteb.evaluation.provenance import commit
from search_r3_mteb.tasks.beir_folder import read_corpus

HERE = Path(__file__).resolve().parent


def measure(mode: Any, data: Path, model: str, settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Counts of one mode over the test split."""
    row = evaluated(data, model, mode, settings, folder)
    queries = asked(data)
    index = SearchIndex.open(folder / "index", SearchR3Encoder(model, mode=mode, **settings))
    results = index.search([query.text for query in queries], mode, K)
    outcomes, largest = {}, 0.0
    for query, result in zip(queries, results, strict=True):
        wanted = row["rankings"][query.id]
        found = [(hit.id, hit.score) for hit in result.hits]
        outcomes[query.id] = compared(found, wanted)
        largest = max(largest, *(abs(score - wanted[rank][1]) for rank, (_, score) in enumerate(found)))
    return {
        "mode": mode,
        **counted(outcomes.values()),
        "queries_different": [id_ for id_, each in outcomes.items() if each == "different"],
        "queries_ties": [id_ for id_, each in outcomes.items() if each == "ties"],
        "largest_difference_of_a_score": largest,
        "ndcg_at_10": row["ndcg_at_10"],
    }


def main() -> None:
    """Measure both modes and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="SciFact as a BEIR folder")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--max-reasoning-tokens", type=int, default=48)
    parser.add_argument("--max-length", type=int, default=128)
    given = parser.parse_args()
    other = [f"--{name.replace('_', '-')}={value}" for name, value in vars(given).items() if name != "data"]
    made_with = commit()
    settings = {"max_reasoning_tokens": given.max_reasoning_tokens, "max_length": given.max_length}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        encoder = SearchR3Encoder(given.model, **settings)
        built = SearchIndex.build(read_corpus(given.data), encoder, folder / "index")
        rows = [measure(mode, given.data, given.model, settings, folder) for mode in ("direct", "reason")]
        documents = len(built)
    command = shlex.join(["python", "results/serving/same_top10.py", "--data", "SCIFACT", *other])
    found = {
        "command": command,
        "commit": made_with,
        "model": given.model,
        "dtype": str(encoder.model.dtype).removeprefix("torch."),
        "settings": settings,
        "documents": documents,
        "modes": rows,
    }
    write_json(HERE / "same_top10.json", found)
    write_section("same_top10", section(found))
    print(*section(found), sep="\n")
    if any(row["different"] for row in rows):
        raise SystemExit(1)


def section(found: dict[str, Any]) -> list[str]:
    """The lines of the page."""
    columns = ("mode", "queries", *OUTCOMES)
    rows = [[*(row[name] for name in columns), f"{row['largest_difference_of_a_score']:.1e}"] for row in found["modes"]]
    tokens, length = found["settings"]["max_reasoning_tokens"], found["settings"]["max_length"]
    return [
        "## The same ten documents as `evaluate`",
        "",
        f"`{found['command']}` at commit {found['commit'][:7]}.",
        f"{found['model']} in {found['dtype']} on the test split of SciFact ({found['documents']:,} documents), "
        f"{tokens} tokens of reasoning at most, prompts of {length}.",
        "For each query the ids of `SearchIndex.search`, in order, are compared with those of MTEB's ranking.",
        f"Ties: only documents whose scores are equal to {CLOSE:g} are in another order, or in the place of another.",
        "",
        *table([*columns, "largest difference of a score"], rows),
    ]


if __name__ == "__main__":
    main()
