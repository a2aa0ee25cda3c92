"""Whether OpenAI's client on a server finds the ten documents that MTEB finds, for every query and in both modes.

    OMP_NUM_THREADS=1 python results/serving/openai_top10.py --data SCIFACT

`search-r3 evaluate` encodes, searches and scores through MTEB. The client gets the vectors of the same texts from
`search-r3 serve` (documents and direct queries from MODEL:document, reasoned ones from MODEL:query), and the nearest
ones are found by numpy. Minutes; writes openai_top10.json and its section of README.md.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from results.pages import table
from results.serving.page import write_section
from results.serving.running import serving
from results.serving.top10 import CLOSE, OUTCOMES, K, Ranking, asked, compared, counted, evaluated
from search_r3_mteb.atomic import write_json
from search_r3_mteb.encoder.documents import join_title
from search_r3_mteb.encoder.settings import Mode
from search_r3_mteb.evaluation.provenance import commit
from search_r3_mteb.tasks.beir_folder import read_corpus

HERE = Path(__file__).resolve().parent
MODES: tuple[Mode, ...] = ("direct", "reason")
_TOGETHER = 128  # texts of a request


def vectors(client: Any, model: str, texts: list[str]) -> Any:
    """The client's vectors of these texts."""
    found: list[Any] = []
    for start in range(0, len(texts), _TOGETHER):
        answer = client.embeddings.create(model=model, input=texts[start : start + _TOGETHER])
        found += [each.embedding for each in answer.data]
    return np.array(found, np.float32)


def by_client(data: Path, model: str, settings: dict[str, Any]) -> dict[str, dict[str, Ranking]]:
    """The ten best (id, cosine) of each query by its id, in both modes, from a server's vectors."""
    import openai

    options = ["--model", model, "--timeout", "3000", "--set", f"max_length={settings['max_length']}"]
    options += ["--max-reasoning-tokens", str(settings["max_reasoning_tokens"])]
    with serving(options) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", timeout=3000)
        documents = list(read_corpus(data))
        queries = asked(data)
        corpus = vectors(client, f"{model}:document", [join_title(each.title, each.text) for each in documents])
        found: dict[str, dict[str, Ranking]] = {}
        for mode, role in (("direct", "document"), ("reason", "query")):
            scores = vectors(client, f"{model}:{role}", [query.text for query in queries]) @ corpus.T
            best = np.argsort(-scores, axis=1, kind="stable")[:, :K]
            found[mode] = {
                query.id: [(documents[place].id, float(scores[row, place])) for place in best[row]]
                for row, query in enumerate(queries)
            }
    return found


def main() -> None:
    """Measure both modes and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="SciFact as a BEIR folder")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--store", type=Path, help="evaluate's vectors, kept for the next script")
    given = parser.parse_args()
    settings, made_with = {"max_reasoning_tokens": 48, "max_length": 256}, commit()
    found = by_client(given.data, given.model, settings)
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for mode in MODES:
            row = evaluated(given.data, given.model, mode, settings, Path(place), given.store)
            outcomes = (compared(best, row["rankings"][query]) for query, best in found[mode].items())
            rows.append({"mode": mode, **counted(outcomes), "ndcg_at_10": round(row["ndcg_at_10"], 4)})
    result = {
        "command": f"python results/serving/openai_top10.py --data SCIFACT{' --store STORE' if given.store else ''}",
        "commit": made_with,
        "model": given.model,
        "settings": settings,
        "modes": rows,
    }
    write_json(HERE / "openai_top10.json", result)
    write_section("openai_top10", section(result))
    print(*section(result), sep="\n")
    if any(row["different"] for row in rows):
        raise SystemExit(1)


def section(found: dict[str, Any]) -> list[str]:
    """The lines of the page."""
    columns = ("mode", "queries", *OUTCOMES)
    rows = [[*(row[name] for name in columns), row["ndcg_at_10"]] for row in found["modes"]]
    return [
        "## The same ten documents by OpenAI's client",
        "",
        f"`{found['command']}` at commit {found['commit'][:7]}. {found['model']} behind `search-r3 serve`, on the test "
        "split of SciFact: vectors by OpenAI's client, nearest documents by numpy, compared with MTEB's ranking. Ties: "
        f"only documents whose scores are equal to {CLOSE:g} are in another order, or in the place of another.",
        "",
        *table([*columns, "nDCG@10 of `evaluate`"], rows),
    ]


if __name__ == "__main__":
    main()
