"""The files of a comparison: comparison.json, comparison.md and comparison.html, each complete by itself."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from search_r3_mteb.atomic import write_json, write_text
from search_r3_mteb.compare.findings import FAMILIES, FamilyPair, family_pairs
from search_r3_mteb.compare.plan import ComparisonPlan
from search_r3_mteb.compare.run import ComparedRow, ComparedRuns, SystemFailure
from search_r3_mteb.evaluation.provenance import commit
from search_r3_mteb.evaluation.summary import SummaryRow, condition, identity, milliseconds
from search_r3_mteb.json_files import read_object
from search_r3_mteb.report.mteb_results import split_mark
from search_r3_mteb.report.number_text import count, score, span
from search_r3_mteb.report.records import Message

_log = logging.getLogger(__name__)
VERSION = 1
TITLE = "Systems side by side: quality, controls and cost"
NOTES = (
    "Brackets and intervals are 95 %, by a bootstrap over queries, paired for differences; p is Holm's, over the pairs "
    "of one kind on one task.",
    "Tokens are generated per query, for a control: read; it need not write them, so no ratio of times is given for "
    "it. Times are the model's work on the queries, on this machine. The search with the final vector is not timed; a "
    "search whose results the model reads (feedback) is. What came from the store counts with the time that computing "
    "it took. A ratio of times is one measurement: that of few queries says little. A budget holds for each text: "
    "8 × 32 are eight texts of at most 32 tokens.",
    "Controls: filler is as many tokens that say nothing, other is another query's reasoning, shuffled its own words "
    "in another order, empty none; perceptron is two layers on the direct vector, trained on the training judgements.",
)


@dataclass(frozen=True)
class ComparisonResult:
    """What was written: the rows, the pairs, what failed, and the files."""

    rows: list[ComparedRow]
    pairs: list[FamilyPair]
    failures: list[SystemFailure]
    files: list[Path]

    def shown_rows(self) -> list[SummaryRow]:
        """The rows for the terminal's table, with their budgets."""
        return [each.row | {"model": _name(each), "mode": _mode(each)} for each in self.rows]


def write_comparison(plan: ComparisonPlan, runs: ComparedRuns, command: str | None = None) -> ComparisonResult:
    """Write the three files into the plan's output; those of another plan get other names first."""
    _keep_earlier(plan)
    pairs = family_pairs(runs.rows, plan.output, plan.baselines())
    files = [plan.output / f"comparison.{ending}" for ending in ("json", "md", "html")]
    write_json(files[0], _record(plan, runs, pairs, command))
    write_text(files[1], _markdown(plan, runs, pairs, command).encode("utf-8", "replace").decode())
    _write_page(plan, runs, pairs, files[2])
    return ComparisonResult(runs.rows, pairs, runs.failures, files)


def _keep_earlier(plan: ComparisonPlan) -> None:
    """Rename the files of a comparison of other systems, tasks or settings to comparison-DIGEST.*, and say so."""
    path = plan.output / "comparison.json"
    if not path.exists():
        return
    try:
        earlier = read_object(path).get("plan")
    except ValueError:
        earlier = path.read_text(encoding="utf-8", errors="replace")
    if isinstance(earlier, dict):
        earlier = {key: value for key, value in earlier.items() if key != "output"}
    if earlier == {key: value for key, value in _plain(asdict(plan)).items() if key != "output"}:
        return
    digest = hashlib.sha256(json.dumps(earlier, sort_keys=True).encode()).hexdigest()[:8]
    for ending in ("html", "md", "json"):  # the last one decides: a kill before it is made up for by the next run
        found = path.with_suffix(f".{ending}")
        if found.exists():
            found.replace(path.with_name(f"comparison-{digest}.{ending}"))
    _log.info("%s was of another plan: its files are now comparison-%s.html, .md and .json", path, digest)


def _record(
    plan: ComparisonPlan, runs: ComparedRuns, pairs: Sequence[FamilyPair], command: str | None
) -> dict[str, Any]:
    return {
        "version": VERSION,
        "command": command,
        "commit": commit(),
        "plan": _plain(asdict(plan)),
        "systems": [{**each.row, "system": each.system, "control": each.control} for each in runs.rows],
        "pairs": [each.record() for each in pairs],
        "failures": [asdict(each) for each in runs.failures],
    }


def _plain(value: Any) -> Any:
    """The value with paths as texts."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value.as_posix() if isinstance(value, Path) else value


# ---- Markdown --------------------------------------------------------------------------------------------------------

_TITLES = ("System", "Mode", "nDCG@10", "95 %", "Recall@10", "Tokens/query", "ms/query", "Documents/s", "Queries")


def _markdown(plan: ComparisonPlan, runs: ComparedRuns, pairs: Sequence[FamilyPair], command: str | None) -> str:
    parts = [f"# {TITLE}", "", f"Made by `{command or 'compare'}` at commit {commit()}, seed {plan.seed}.", ""]
    for task, split in dict.fromkeys(each.place for each in runs.rows):
        name = task if split == "test" else f"{task} ({split})"
        mine = [each for each in runs.rows if each.place == (task, split)]
        rule = ["---", "---", *["---:"] * (len(_TITLES) - 2)]
        parts += [f"## {name}", ""]
        parts += [f"| {' | '.join(line)} |" for line in (_TITLES, rule, *map(_cells, mine))]
        for family, title in FAMILIES.items():
            lines = [f"- {each.sentence()}" for each in pairs if (each.task, each.family) == (name, family)]
            parts += ["", f"{title}:", "", *lines] if lines else []
        parts.append("")
    if runs.failures:
        parts += ["## Failed", "", *(f"- {' '.join(str(each).split())}" for each in runs.failures), ""]
    return "\n".join([*parts, *(f"{note}\n" for note in NOTES)])


def _cells(each: ComparedRow) -> list[str]:
    row = each.row
    bounds = row.get("interval") or (None, None)
    cells = [_name(each), _mode(each), score(row["ndcg_at_10"]), span(*bounds), score(row["recall_at_10"])]
    cells += [count(row["reasoning_tokens_per_query"], 1), count(milliseconds(row), 1)]
    cells += [count(row.get("documents_per_second"), 1), count(row["queries"])]
    return [cell.replace("|", "\\|").replace("\n", " ") for cell in cells]


def _name(each: ComparedRow) -> str:
    return split_mark(str(each.row["model"]))[0]


def _mode(each: ComparedRow) -> str:
    row = each.row
    return condition(row["mode"], each.budget, row.get("samples"), row.get("anchor"))


# ---- HTML ------------------------------------------------------------------------------------------------------------


def _write_page(plan: ComparisonPlan, runs: ComparedRuns, pairs: Sequence[FamilyPair], path: Path) -> None:
    """The report's page of these rows alone, with the sentences of the comparison."""
    from search_r3_mteb.report.comparisons import table_rows
    from search_r3_mteb.report.page import Content, TextSection, write_page
    from search_r3_mteb.report.records import Evidence
    from search_r3_mteb.report.repeats import settle_repeats
    from search_r3_mteb.report.run_folder import read_run_folder

    evidence = Evidence()
    if runs.rows:
        read_run_folder(plan.output, evidence)
    wanted = {identity(each.row) for each in runs.rows}
    kept = [
        each
        for each in evidence.evaluations
        if (each.task, each.split, f"{each.model}@{each.mark}" if each.mark else each.model, each.mode) in wanted
    ]
    evidence.evaluations = settle_repeats(kept, evidence)
    evidence.name_not_numbers()
    evidence.messages += [Message("error", each.system, str(each)) for each in runs.failures]
    sections = [
        TextSection(f"pairs-{family}", title, lines)
        for family, title in FAMILIES.items()
        if (lines := [each.sentence() for each in pairs if each.family == family])
    ]
    if sections:
        sections.append(TextSection("method", "How to read this", NOTES))
    content = Content(
        evidence,
        table_rows(evidence),
        (),
        title=TITLE,
        texts=sections,
        baselines=_baselines(plan, runs),
        controls={_name(each) for each in runs.rows if each.control is not None},
    )
    write_page(content, path)


def _baselines(plan: ComparisonPlan, runs: ComparedRuns) -> dict[str, str]:
    """For the name of each row in the tables, the one that its queries stand beside."""
    names = {each.system: _name(each) for each in reversed(runs.rows) if each.control is None}
    wanted = plan.baselines()
    return {_name(each): names[wanted[each.system]] for each in runs.rows if wanted[each.system] in names}
