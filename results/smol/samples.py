"""Texts that helped and texts that hurt, unedited and chosen by rule, from what gates.py wrote.

    python results/smol/samples.py --json results/smol/FILE.json --output results/smol/samples.md [--count 20]

Helped are the queries whose nDCG@10 gained most by the model's own greedy text under the anchor that gates.py names,
hurt those that lost most; equal ones stand in the alphabetical order of their queries.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from search_r3_mteb.atomic import write_text


def chosen(texts: list[dict[str, Any]], count: int) -> dict[str, list[dict[str, Any]]]:
    """At most `count` queries that gained, the largest gain first, and at most as many that lost."""
    by_gain = sorted(texts, key=lambda one: (one["direct"] - one["reason"], one["query"]))
    helped = [one for one in by_gain if one["reason"] > one["direct"]][:count]
    by_loss = sorted(texts, key=lambda one: (one["reason"] - one["direct"], one["query"]))
    return {"Helped": helped, "Hurt": [one for one in by_loss if one["reason"] < one["direct"]][:count]}


def page(found: dict[str, Any], command: str, count: int) -> str:
    """The page, in Markdown; a text stands as it was written, but for line breaks and bars."""
    gained = sum(one["reason"] > one["direct"] for one in found["texts"])
    lost = sum(one["reason"] < one["direct"] for one in found["texts"])
    lines = [
        f"# What {found['model']} wrote, {found['task']}",
        "",
        f"`{command}`: nDCG@10 of the direct vector and of the one anchored with {found['anchor_of_the_texts']:g}. Of "
        f"{found['queries']} queries {gained} gained and {lost} lost: here are the {count} that gained most and the "
        f"{count} that lost most, unedited.",
    ]
    for title, rows in chosen(found["texts"], count).items():
        lines += ["", f"## {title}", "", "| query | text | direct | anchored |", "|---|---|---:|---:|"]
        for one in rows:
            cells = (" ".join(str(one[name]).split()).replace("|", "\\|") for name in ("query", "own"))
            lines.append(f"| {' | '.join(cells)} | {one['direct']:.3f} | {one['reason']:.3f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--count", type=int, default=20)
    options = parser.parse_args()
    found = json.loads(options.json.read_text(encoding="utf-8"))
    command = f"python results/smol/samples.py --json {options.json.as_posix()} --output {options.output.as_posix()}"
    write_text(options.output, page(found, f"{command} --count {options.count}", options.count))


if __name__ == "__main__":
    main()
