"""Whether an index finds the ten documents that MTEB finds, for every query and in both modes.

    OMP_NUM_THREADS=1 python results/serving/same_top10.py --data SCIFACT

`search-r3 evaluate` encodes, searches and scores through MTEB; `SearchIndex` encodes the same folder again, with no
cache between the two. Minutes; writes same_top10.json and its section of README.md.
"""

import argparse
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

from results.pages import table
from results.serving.page import write_section
from search_r3_mteb import SearchIndex, SearchR3Encoder
from search_r3_mteb.atomic import write_json
from search_r3_mteb.evaluation.evaluate import evaluate
from search_r3_mteb.evaluation.provenance import commit
from search_r3_mteb.json_files import read_object
from search_r3_mteb.tasks.beir_folder import read_corpus, read_queries, read_relevance

HERE = Path(__file__).resolve().parent
K, CLOSE = 10, 1e-5


def compared(found: list[tuple[str, float]], wanted: list[tuple[str, float]]) -> str:
    """How the ten of a query compare: "equal", "ties" where only documents of equal score (to 1e-5) differ, or not."""
    if [id_ for id_, _ in found] == [id_ for id_, _ in wanted[:K]]:
        return "equal"
    scores = dict(wanted)
    alike = all(abs(one - other) < CLOSE for (_, one), (_, other) in zip(found, wanted, strict=False))
    known = all(id_ in scores and abs(scores[id_] - score) < CLOSE for id_, score in found)
    return "ties" if alike and known else "different"


def measure(mode: Any, data: Path, model: str, settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Counts of one mode over the test split."""
    output = folder / f"evaluate-{mode}"
    # Both modes of MTEB read one store; the index shares nothing with it.
    store = folder / "store"
    [row] = evaluate([model], [f"beir:{data}"], mode, output, split="test", settings=settings, cache_folder=store)
    [file] = (output / "predictions").rglob("*.json")
    rankings = read_object(file)["default"]["test"]
    asked = read_relevance(data, "test")
    queries = [query for query in read_queries(data) if query.id in asked]
    index = SearchIndex.open(folder / "index", SearchR3Encoder(model, mode=mode, **settings))
    results = index.search([query.text for query in queries], mode, K)
    outcomes: dict[str, list[str]] = {"equal": [], "ties": [], "different": []}
    largest = 0.0
    for query, result in zip(queries, results, strict=True):
        wanted = sorted(rankings[query.id].items(), key=lambda pair: -pair[1])
        found = [(hit.id, hit.score) for hit in result.hits]
        outcomes[compared(found, wanted)].append(query.id)
        largest = max(largest, *(abs(score - wanted[rank][1]) for rank, (_, score) in enumerate(found)))
    return {
        "mode": mode,
        "queries": len(queries),
        **{name: len(ids) for name, ids in outcomes.items()},
        "queries_different": outcomes["different"],
        "queries_ties": outcomes["ties"],
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
    made_with = commit()
    settings = {"max_reasoning_tokens": given.max_reasoning_tokens, "max_length": given.max_length}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        encoder = SearchR3Encoder(given.model, **settings)
        built = SearchIndex.build(read_corpus(given.data), encoder, folder / "index")
        rows = [measure(mode, given.data, given.model, settings, folder) for mode in ("direct", "reason")]
        documents = len(built)
    command = shlex.join(["python", "results/serving/same_top10.py", "--data", "SCIFACT", *sys.argv[3:]])
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
    columns = ("mode", "queries", "equal", "ties", "different")
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
