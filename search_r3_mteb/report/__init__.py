"""Report on runs: one HTML page, or its tables as Markdown, CSV and LaTeX."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from search_r3_mteb.report.records import Message, summarised

__all__ = ["report"]

FORMATS = ("html", "md", "csv", "latex")


def report(
    runs: Sequence[Path], output: Path, format: str = "html", peers: Path | Sequence[Path] = ()
) -> list[Message]:
    """Write the report on `runs` to `output` and return the messages about what was missing, repeated or unreadable.

    `runs` are run folders, summary.json files, MTEB result folders or files, prediction files, diagnose.json files and
    training logs. `format` is html, md, csv (OUTPUT-differences.csv then holds reasoning against direct) or latex.
    `peers` are files or folders of published scores (`peer_files`).

    Raises FileNotFoundError for a path that does not exist and ValueError for an unknown format, and where there is
    nothing to show: an earlier `output` then stays as it is.
    """
    if format not in FORMATS:
        raise ValueError(f"format {format!r} is not one of {', '.join(FORMATS)}: pass one of these with --format.")
    if not output.name:
        raise ValueError(
            f"The report needs a file to be written to, got {str(output)!r}: name one, such as report.html."
        )
    from search_r3_mteb.atomic import write_text
    from search_r3_mteb.report.comparisons import reasoning_differences, table_rows
    from search_r3_mteb.report.peers import read_peers
    from search_r3_mteb.report.runs import read_runs

    evidence = read_runs(list(runs))
    if not (evidence.evaluations or evidence.logs or evidence.diagnoses):
        lines = [line.removeprefix("error: ").rstrip(".") for line in summarised(evidence.messages, lines=3)]
        said = "; ".join(lines) or "they hold no results"
        raise ValueError(f"There is nothing to show in {', '.join(map(str, runs))}: {said}. {output} was not written.")
    rows = table_rows(evidence)
    differences = reasoning_differences(rows)
    published = read_peers(peers, rows, evidence) if peers else []
    if format == "html":
        from search_r3_mteb.report.diagnose_section import diagnose_groups
        from search_r3_mteb.report.page import Content, write_page

        groups = diagnose_groups(evidence)
        write_page(Content(evidence, rows, differences, published, extra_groups=groups), output)
        return evidence.messages
    from search_r3_mteb.report.tables import render

    for ending, text in render(rows, differences, published, evidence.messages, format).items():
        write_text(output.with_stem(output.stem + ending), text.encode("utf-8", "replace").decode("utf-8"))
    return evidence.messages
