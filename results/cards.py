"""The cards of the bundled models, from their model_card.json and the published scores of this folder.

    python results/cards.py            # writes README.md and model_card.json of each
    python results/cards.py --check    # says whether they are what it would write

A training run writes a card with the scores of its last evaluation: few queries, no intervals. The cards of the bundled
models say what `results/nano.json` and `results/mini.json` say instead, by hop count where there is one. Wording that
is the same in every card (template, limits) is taken as it is now. Neither file is part of what decides a vector.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from search_r3_mteb.encoder.model_names import ASSETS
from search_r3_mteb.report.model_card import LIMITATIONS, DataSource, Facts, write_model_card

HERE = Path(__file__).resolve().parent
MODELS = ("nano", "mini")
FILES = ("README.md", "model_card.json")
LIMITS = {
    "nano": "It knows one small generated world by heart. On any other text its vectors mean little.",
    "mini": 'Its reasoning does not help: without it the vectors are as good on SciFact and CosQA. Use mode="direct".',
}
ROW = ("task", "split", "hops", "mode", "ndcg_at_10", "interval", "recall_at_10", "reasoning_tokens_per_query",
       "forced_share", "queries", "commit")  # fmt: skip


def facts_of(name: str) -> Facts:
    """What the card of a bundled model says, with the published scores."""
    kept = json.loads((ASSETS / name / "model_card.json").read_text(encoding="utf-8"))
    kept = {key: value for key, value in kept.items() if key in Facts.__dataclass_fields__}
    kept["data"] = tuple(DataSource(**source) for source in kept["data"])
    kept["training"] = tuple((title, value) for title, value in kept["training"])
    kept["losses"] = tuple(kept["losses"])
    rows = json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))["rows"]
    results = tuple(_result(row) for row in rows if row["model"] == name)
    return replace(Facts(**kept), results=results, limits=(LIMITS[name], *LIMITATIONS))


def _result(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the published scores as a card has it."""
    (seed,) = row["seeds"]
    return {key: row[key] for key in ROW if key in row} | {"seed": seed}


def main(arguments: list[str] | None = None) -> int:
    """Write the cards, or compare them; returns 1 when one is out of date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args(arguments)
    stale = []
    for name in MODELS:
        if not given.check:
            write_model_card(ASSETS / name, facts_of(name))
            continue
        with tempfile.TemporaryDirectory() as folder:
            write_model_card(Path(folder), facts_of(name), called=name)
            stale += [f"{name}/{file}" for file in FILES
                      if (Path(folder) / file).read_bytes() != (ASSETS / name / file).read_bytes()]  # fmt: skip
    if stale:
        print(f"{', '.join(stale)}: not what the scores say. Run python results/cards.py.", file=sys.stderr)
    return int(bool(stale))


if __name__ == "__main__":
    raise SystemExit(main())
