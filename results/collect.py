"""One JSON file of this folder from run folders: rows with interval and provenance, and their tested differences.

    python results/collect.py RUN... --title "nano on hopworld" --output results/nano_hopworld.json

The runs' messages are printed; a row without command, commit, seed, interval or number of queries is refused, since
`make_readme.py` would not publish it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from make_readme import missing_provenance

from search_r3_mteb.atomic import write_json
from search_r3_mteb.report.comparisons import ReasoningDifference, ScoreRow, reasoning_differences, table_rows
from search_r3_mteb.report.runs import read_runs


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns 1 when rows lack provenance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--title", required=True)
    parser.add_argument("--text", default="", help="What the reader should know: Markdown, below the title.")
    parser.add_argument("--output", required=True, type=Path)
    given = parser.parse_args(arguments)
    evidence = read_runs(given.runs)
    for message in evidence.messages:
        print(message, file=sys.stderr)
    rows = table_rows(evidence)
    content = {
        "title": given.title,
        "text": given.text,
        "rows": [row_record(row) for row in rows],
        "differences": [difference_record(item) for item in reasoning_differences(rows)],
    }
    problems = missing_provenance(content)
    if problems:
        print(f"{given.output} is not written:", *problems, sep="\n  ", file=sys.stderr)
        return 1
    write_json(given.output, content)
    return 0


def row_record(row: ScoreRow) -> dict[str, Any]:
    """One row of the table with what it takes to measure it again; fields that are None are left out."""
    run = row.first
    record = {
        "task": run.task,
        "split": run.split,
        "hops": run.hops,
        "model": run.label,
        "mode": run.mode,
        "max_reasoning_tokens": run.max_reasoning_tokens if run.mode == "reason" else None,
        "ndcg_at_10": _rounded(row.ndcg_at_10),
        "interval": None if row.interval is None else [_rounded(value) for value in row.interval],
        "best": row.best,
        "recall_at_10": _rounded(row.average("recall_at_10")),
        "reasoning_tokens_per_query": _rounded(row.average("reasoning_tokens_per_query")),
        "forced_share": _rounded(row.average("forced_share")) if run.mode == "reason" else None,
        "milliseconds_per_query": _rounded(row.average("milliseconds")),
        "queries_per_second": _rounded(row.average("queries_per_second")),
        "documents_per_second": _rounded(row.average("documents_per_second")),
        "queries": run.queries,
        "documents": run.documents,
        "seeds": [item.seed for item in row.runs],
        "commit": ", ".join(dict.fromkeys(item.commit for item in row.runs if item.commit)) or None,
        "commands": list(dict.fromkeys(item.command for item in row.runs if item.command)),
    }
    return {key: value for key, value in record.items() if value is not None}


def difference_record(item: ReasoningDifference) -> dict[str, Any]:
    """Reasoning minus direct with its test, or with the reason why there is none."""
    run, result = item.reason.first, item.result
    record: dict[str, Any] = {
        "task": run.task,
        "split": run.split,
        "hops": run.hops,
        "model": run.label,
        "max_reasoning_tokens": run.max_reasoning_tokens,
        "difference": _rounded(result.difference if result else item.plain_difference),
        "time_ratio": _rounded(item.times),
    }
    if result is None:
        record["why_untested"] = item.why_untested
    else:
        record |= {
            "interval": [_rounded(result.low), _rounded(result.high)],
            "p": _rounded(result.p),
            "significant": result.significant,
            "queries": result.queries,
            "seeds": [entry.seed for entry in item.reason.runs],
        }
    return {key: value for key, value in record.items() if value is not None}


def _rounded(value: float | None) -> float | None:
    """The value to six digits, as MTEB stores it; None for NaN, which then counts as missing."""
    return None if value is None or value != value else round(value, 6)


if __name__ == "__main__":
    raise SystemExit(main())
