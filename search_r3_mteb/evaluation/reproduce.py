"""The paper's claims tested on the released checkpoint: `search-r3 reproduce`.

For each claim the checkpoint is evaluated on the claim's task in both modes, by `evaluate()`, and reasoning minus
direct is tested by a paired bootstrap. OUTPUT is a run folder of `search-r3 evaluate` (so `search-r3 report OUTPUT`
shows it); what a killed run computed is not computed again. OUTPUT/reproduce.json is a list with, for each claim:

    claim, statement, certainty, model, fingerprint, task, split, dataset_revision, queries, questions, commit,
    command, seed
    claimed        {"difference", "direct", "reason"}: the latter two null where the claim names no levels
    direct, reason {"ndcg_at_10", "interval"};  difference, interval, p: reasoning minus direct
    reasoning_tokens_per_query, forced_share, max_reasoning_tokens, seconds
    verdict        "confirmed", "not confirmed" or "undecided";  explanation: the verdict in a sentence
    rehearsal      why the verdict says nothing about the paper (another checkpoint or other data), else null

Verdicts: *not confirmed* if the interval lies below the claimed gain, *confirmed* if it lies above zero and reaches the
claimed gain, else *undecided*: it then holds both no gain and the claimed one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_r3_mteb.atomic import write_json
from search_r3_mteb.evaluation.evaluate import evaluate
from search_r3_mteb.evaluation.significance import Difference, Interval, QueryScores, align, compare, interval
from search_r3_mteb.evaluation.summary import read_summary
from search_r3_mteb.evaluation.tasks import resolve_task
from search_r3_mteb.json_files import parse_json
from search_r3_mteb.locks import locked

if TYPE_CHECKING:
    from mteb.abstasks.retrieval import AbsTaskRetrieval

    from search_r3_mteb.encoder.checkpoints import Checkpoint
    from search_r3_mteb.narrow_tables import NarrowTable

Finding = dict[str, Any]
RELEASED_MODEL = "ytgui/Search-R3.0-Small"
FINDINGS_FILE = "reproduce.json"
_PRINTED = 0.0005  # half a unit of the claims' last digit
_DIGITS = 6
_MODES = ("direct", "reason")


@dataclass(frozen=True)
class Claim:
    """One claim: nDCG@10 with reasoning minus without, on one MTEB task; `levels` (direct, reason) if it names them.

    `certainty`: [P] the authors' own words, [S] a summary of the paper by others.
    """

    name: str
    task: str
    statement: str
    certainty: str
    difference: float
    levels: tuple[float, float] | None = None


CLAIMS = (
    Claim("scifact", "SciFact", "Reasoning lifts nDCG@10 on SciFact by 0.048.", "[S]", 0.048),
    Claim("litsearch", "LitSearchRetrieval", "Reasoning lifts nDCG@10 on LitSearch by 0.036.", "[S]", 0.036),
    Claim(
        "mkqa",
        "MKQARetrieval",
        "Reasoning lifts nDCG@10 on MKQA from 0.194 to 0.211.",
        "[S]",
        0.017,
        (0.194, 0.211),
    ),
)
NAMES = (*(claim.name for claim in CLAIMS), "all")


def reproduce(
    claims: Sequence[str] = ("all",),
    model: str | Path = RELEASED_MODEL,
    output: Path | str = "runs/reproduce",
    *,
    task_folders: Mapping[str, Path | str] | None = None,
    cache_folder: Path | str | None = None,
    settings: Mapping[str, Any] | None = None,
    command: str | None = None,
    on_finding: Callable[[Finding], None] | None = None,
) -> list[Finding]:
    """One finding for each of the claims ("scifact", "litsearch", "mkqa" or "all"), in order.

    `task_folders` maps a claim to a BEIR folder that stands in for its MTEB task. Vectors and thoughts are kept in
    `cache_folder` (OUTPUT/store). `settings` are those of SearchR3Encoder. `on_finding` is called as soon as a claim is
    settled. Raises ValueError for unknown claims and, before anything is computed, a FileNotFoundError that lists what
    is missing (checkpoint, data) and how to get it.
    """
    settings = dict(settings or {})
    if "mode" in settings:
        raise ValueError(f"mode={settings['mode']!r}: a claim compares both modes; leave the mode out.")
    chosen = _chosen(claims)
    tasks = _tasks(chosen, task_folders or {})
    checkpoint = _ready(chosen, tasks, model, settings)
    findings = []
    for claim in chosen:
        task = tasks[claim.name]
        rows = evaluate(
            [checkpoint], [task], "both", output, cache_folder=cache_folder, settings=settings, command=command
        )
        by_mode = {row["mode"]: row for row in rows if "hops" not in row}
        values = {mode: _by_question(_read(Path(output), by_mode[mode]), len(task.hf_subsets) > 1) for mode in _MODES}
        finding = _finding(claim, by_mode, values) | {
            "rehearsal": _rehearsal(claim, checkpoint.name, task_folders or {})
        }
        findings.append(finding)
        _keep(Path(output) / FINDINGS_FILE, finding)
        if on_finding is not None:
            on_finding(finding)
    return findings


def parse_task_folders(pairs: Sequence[str]) -> dict[str, Path]:
    """CLAIM=PATH pairs of the command line. Raises ValueError for a malformed pair and for a claim named twice."""
    folders: dict[str, Path] = {}
    for pair in pairs:
        name, sign, path = pair.partition("=")
        if not sign or not path:
            raise ValueError(f"--task-folder {pair}: write CLAIM=PATH, for example scifact=data/scifact.")
        if name in folders:
            raise ValueError(f"--task-folder: {name} is given twice, {folders[name]} and {path}. Give it once.")
        folders[name] = Path(path)
    return folders


def judge(claim: Claim, result: Difference) -> tuple[str, str]:
    """The verdict and the sentence that goes with it."""
    shown = f"{result.difference:+z.3f} (95 % interval {result.low:+z.3f} to {result.high:+z.3f})"
    claimed = f"the claimed {claim.difference:+z.3f}"
    if result.high < claim.difference - _PRINTED:
        how = "a gain, but less than" if result.low > 0 else "a loss instead of" if result.high < 0 else "less than"
        return "not confirmed", f"{shown}: {how} {claimed}."
    if result.low > 0:
        how = "a gain, more than" if result.low > claim.difference + _PRINTED else "a gain that agrees with"
        return "confirmed", f"{shown}: {how} {claimed}."
    return "undecided", f"{shown}: holds both no gain and {claimed}; more queries would be needed."


def table(findings: Sequence[Finding]) -> "NarrowTable":
    """The findings as a table that fits its terminal."""
    from search_r3_mteb.narrow_tables import NarrowColumn, NarrowTable

    columns = [NarrowColumn("claim", name=True), NarrowColumn("task", name=True)]
    numbers = [("claimed", 0), ("measured", 0), ("95 %\ninterval", 4), ("direct", 3), ("reasoning", 2), ("queries", 1)]
    columns += [NarrowColumn(name, leaves=order) for name, order in numbers]
    found = NarrowTable([*columns, NarrowColumn("verdict", name=True)])
    for finding in findings:
        low, high = finding["interval"]
        found.add_row(
            finding["claim"],
            finding["task"],
            f"{finding['claimed']['difference']:+z.3f}",
            f"{finding['difference']:+z.3f}",
            f"{low:+z.3f} to {high:+z.3f}",
            *(_level(finding, mode) for mode in _MODES),
            f"{finding['queries']:,}",
            finding["verdict"] + (" (rehearsal)" if finding["rehearsal"] else ""),
        )
    return found


def _level(finding: Finding, mode: str) -> str:
    claimed = finding["claimed"][mode]
    return f"{finding[mode]['ndcg_at_10']:.3f}" + ("" if claimed is None else f" (claimed {claimed:.3f})")


def _chosen(names: Sequence[str]) -> list[Claim]:
    unknown = [name for name in names if name not in NAMES]
    if unknown or not names:
        raise ValueError(
            f"There is no claim {', '.join(unknown) or '(none given)'}; the claims are {', '.join(NAMES)}."
        )
    return [claim for claim in CLAIMS if claim.name in names or "all" in names]


def _tasks(chosen: Sequence[Claim], folders: Mapping[str, Path | str]) -> "dict[str, AbsTaskRetrieval]":
    stray = sorted(set(folders) - {claim.name for claim in chosen})
    if stray:
        raise ValueError(
            f"A task folder is given for {', '.join(stray)}, which is not among the claims that are measured "
            f"({', '.join(claim.name for claim in chosen)}). Name it with --claim, or leave the folder out."
        )
    return {
        claim.name: resolve_task(f"beir:{folders[claim.name]}" if claim.name in folders else claim.task)
        for claim in chosen
    }


def _ready(
    chosen: Sequence[Claim], tasks: "Mapping[str, AbsTaskRetrieval]", model: str | Path, settings: Mapping[str, Any]
) -> "Checkpoint":
    """The checkpoint, once all downloads are here: hours of work must not end for want of the last data set."""
    from search_r3_mteb.encoder.checkpoints import load

    loading = ("revision", "dtype", "device", "trust_remote_code", "probe", "verify")
    options = {key: settings[key] for key in loading if key in settings}
    remote = str(model).count("/") == 1 and not Path(model).exists() and not str(model).startswith((".", "~"))
    try:
        checkpoint = load(model, **options)
    except FileNotFoundError as error:
        if not remote:
            raise
        data = [
            f"the data of {tasks[claim.name].metadata.name}" for claim in chosen if not _is_local(tasks[claim.name])
        ]
        raise _lacking([f"the checkpoint {model}", *data], chosen, error) from error
    for claim in chosen:
        task = tasks[claim.name]
        if _is_local(task):
            continue
        try:
            task.load_data()
        except OSError as error:  # datasets and the hub raise ConnectionError or FileNotFoundError
            raise _lacking([f"the data of {task.metadata.name}"], chosen, error) from error
        task.unload_data()
    return checkpoint


def _is_local(task: "AbsTaskRetrieval") -> bool:
    from search_r3_mteb.tasks.mteb_tasks import LocalRetrievalTask

    return isinstance(task, LocalRetrievalTask)


def _lacking(what: Sequence[str], chosen: Sequence[Claim], error: Exception) -> FileNotFoundError:
    names = " ".join(f"--claim {claim.name}" for claim in chosen)
    first = chosen[0].name
    return FileNotFoundError(
        f"Not here, and not found on the hub: {', '.join(what)} ({type(error).__name__}: {error}). "
        f"On a machine with network and a GPU, `search-r3 reproduce {names}` downloads and runs everything. "
        f"Without network, bring the files and name them: --model FOLDER --task-folder {first}=BEIR_FOLDER."
    )


def _rehearsal(claim: Claim, model: str, folders: Mapping[str, Path | str]) -> str | None:
    reasons = []
    if model != RELEASED_MODEL:
        reasons.append(f"{model} is not known to be {RELEASED_MODEL}")
    if claim.name in folders:
        reasons.append(f"a folder stands in for {claim.task}")
    return "; ".join(reasons) or None


def _finding(claim: Claim, rows: Mapping[str, Mapping[str, Any]], values: Mapping[str, QueryScores]) -> Finding:
    questions, (direct, reason) = align([values["direct"]], [values["reason"]])
    result = compare(reason, direct)
    verdict, explanation = judge(claim, result)
    direct_level, reason_level = claim.levels or (None, None)
    row = rows["reason"]
    return {
        "claim": claim.name,
        "statement": claim.statement,
        "certainty": claim.certainty,
        "claimed": {"difference": claim.difference, "direct": direct_level, "reason": reason_level},
        "direct": _quality(interval(direct)),
        "reason": _quality(interval(reason)),
        "difference": round(result.difference, _DIGITS),
        "interval": [round(result.low, _DIGITS), round(result.high, _DIGITS)],
        "p": round(result.p, _DIGITS),
        "questions": len(questions),
        "seconds": round(sum(each["seconds"] for each in rows.values()), 3),
        **{key: row[key] for key in ("model", "fingerprint", "task", "split", "dataset_revision", "queries", "seed")},
        **{key: row[key] for key in ("reasoning_tokens_per_query", "forced_share", "max_reasoning_tokens", "commit")},
        "command": row.get("command"),
        "verdict": verdict,
        "explanation": explanation,
    }


def _quality(found: Interval) -> dict[str, Any]:
    return {
        "ndcg_at_10": round(found.mean, _DIGITS),
        "interval": [round(found.low, _DIGITS), round(found.high, _DIGITS)],
    }


def _read(output: Path, row: Mapping[str, Any]) -> dict[str, float]:
    file = output / row["queries_file"]
    lines = enumerate(file.read_text(encoding="utf-8").split("\n"), start=1)
    records = [parse_json(line, file, number) for number, line in lines if line]
    return {record["query_id"]: float(record["ndcg_at_10"]) for record in records}


def _by_question(values: QueryScores, several: bool) -> dict[str, float]:
    """One value per question, whose mean is the task's score.

    A task of several subsets (MKQA's languages) is scored by the mean over subsets of their means, and its queries
    carry the subset's name. The same question in 26 languages is one draw of the bootstrap: as 26 draws, the intervals
    would be too narrow.
    """
    if not several:
        return dict(values)
    parts = {query: query.partition("/") for query in values}
    sizes: dict[str, int] = {}
    for subset, _, _ in parts.values():
        sizes[subset] = sizes.get(subset, 0) + 1
    found = dict.fromkeys((question for _, _, question in parts.values()), 0.0)
    for query, (subset, _, question) in parts.items():
        found[question] += values[query] * len(found) / (len(sizes) * sizes[subset])
    return found


def _keep(path: Path, finding: Finding) -> None:
    """Add the finding to the file, in place of an earlier one of the same claim, model and task."""
    key = ("claim", "model", "task")
    with locked(path.parent):
        rest = [each for each in read_summary(path) if any(each.get(name) != finding[name] for name in key)]
        write_json(path, [*rest, finding])
