"""The tables of README.md at the root, from the JSON files of this folder; `make_readme.py` writes them.

A table stands in the README between the lines `<!-- NAME: from results/make_readme.py -->` and `<!-- end of NAME -->`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from search_r3_mteb.evaluation.summary import milliseconds
from search_r3_mteb.report.number_text import count, score

Rows = Sequence[Mapping[str, Any]]
BEGIN, END = "<!-- {}: from results/make_readme.py -->", "<!-- end of {} -->"
HOPS = (1, 2, 3, 4)
SETS = {"SciFact": "beir-scifact-f3642f75", "CosQA": "beir-cosqa-18b6a77c"}


def filled(text: str, files: Mapping[str, Mapping[str, Any]]) -> str:
    """The README with its tables as the files say. Raises ValueError where a table has no place, or more than one."""
    for name, table in tables(files).items():
        begin, end = BEGIN.format(name), END.format(name)
        if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
            raise ValueError(f"README.md needs the lines {begin!r} and {end!r} once, in this order.")
        before, after = text.split(begin)[0], text.split(end)[1]
        text = f"{before}{begin}\n{table}{end}{after}"
    return text


def tables(files: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Each table by its name."""
    return {"hopworld": hopworld(files["nano.json"]["rows"]), "real text": real_text(files)}


def hopworld(rows: Rows) -> str:
    """The quality of nano and of BM25 by hop count, and what a query costs."""
    lines = []
    for title, model, mode in (
        ("**nano, with reasoning**", "nano", "reason"),
        ("nano, without", "nano", "direct"),
        ("BM25", "bm25", "direct"),
    ):
        found = {row.get("hops"): row for row in rows if (row["model"], row["mode"]) == (model, mode)}
        lines.append([title, *(score(found[hops]["ndcg_at_10"]) for hops in HOPS), *_with_cost(found[None])])
    head = ["", *(f"{hops} fact{'s' * (hops > 1)}" for hops in HOPS), "all (95 % interval)"]
    return _table([*head, "tokens per query", "ms per query"], lines)


def real_text(files: Mapping[str, Mapping[str, Any]]) -> str:
    """The quality of mini beside the encoder that it was made from and BM25, on two sets, and what a query costs."""
    known = [row for name in ("mini.json", "real_text.json") for row in files[name]["rows"]]
    lines = []
    for title, model, mode in (
        ("BM25", "bm25", "direct"),
        ("all-MiniLM-L6-v2, which mini was made from", "minilm", "direct"),
        ("mini, without reasoning", "mini", "direct"),
        ("mini, with reasoning", "mini", "reason"),
    ):
        cells = [title]
        for task in SETS.values():
            (row,) = [row for row in known if (row["task"], row["model"], row["mode"]) == (task, model, mode)]
            cells += _with_cost(row)
        lines.append(cells)
    head = [cell for name in SETS for cell in (f"{name} (95 % interval)", "tokens", "ms")]
    return _table(["", *head], lines)


def _with_cost(row: Mapping[str, Any]) -> list[str]:
    """Quality with its interval, tokens of reasoning and milliseconds per query."""
    low, high = row["interval"]
    tokens = count(row["reasoning_tokens_per_query"], 1 if row["mode"] == "reason" else 0)
    return [f"{score(row['ndcg_at_10'])} ({low:.3f} to {high:.3f})", tokens, count(milliseconds(row), 1)]


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, rule, *lines))
