"""Commands that score models on tasks: evaluate, diagnose, reproduce, bench, and the report on them."""

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from search_r3_mteb.cli.options import (
    BudgetOption,
    CacheFolderOption,
    EngineOption,
    IdenticalIdsOption,
    ModelOption,
    ResultsOption,
    SetOption,
    app,
)
from search_r3_mteb.cli.shared import arguments_given, choice, console_here, progress_lines, settings_of
from search_r3_mteb.terminal import SafeConsole


@app.command()
def evaluate(  # noqa: PLR0913  an option is a parameter
    model: Annotated[
        list[str],
        typer.Option(
            "--model",
            help="nano, mini, a folder, a hub id, NAME=FOLDER, bm25, or METHOD:WRITER+ENCODER: an LM writes and an "
            "encoder embeds (hyde, query2doc, mugi, keywords, gar, search-r3-prompt, feedback), or rocchio:ENCODER. "
            "May be repeated.",
        ),
    ],
    task: Annotated[
        list[str],
        typer.Option(
            "--task",
            help="hopworld[:DOCUMENTS], stdlib, beir:FOLDER[:ignore_identical_ids], an MTEB task, or a benchmark: "
            "BRIGHT, BRIGHT-long, BRIGHT-Pro, RTEB, LitSearch, or MTEB's name of another. May be repeated.",
        ),
    ],
    mode: Annotated[str, typer.Option(help="both, reason or direct. Baselines are always direct.")] = "both",
    output: ResultsOption = Path("runs/evaluate"),
    split: Annotated[str | None, typer.Option(help="One split of the tasks, instead of their own.")] = None,
    ignore_identical_ids: IdenticalIdsOption = False,
    cache_folder: CacheFolderOption = None,
    reasoning: Annotated[
        Path | None,
        typer.Option(
            help="Reasonings to read in place of the model's own, by query id: .jsonl or .tsv. Mode 'given'.",
            show_default=False,
        ),
    ] = None,
    max_reasoning_tokens: BudgetOption = None,
    engine: EngineOption = None,
    setting: SetOption = None,
) -> None:
    """Score models on retrieval tasks through MTEB: nDCG@10, recall@10, cost; summary.json and per-query files."""
    from search_r3_mteb.evaluation.abstaining import SearchSettings
    from search_r3_mteb.evaluation.benchmarks import benchmark_means
    from search_r3_mteb.evaluation.costs import cost_sentences
    from search_r3_mteb.evaluation.evaluate import evaluate as run
    from search_r3_mteb.evaluation.summary import table
    from search_r3_mteb.evaluation.tasks import with_identical_ids_ignored
    from search_r3_mteb.expansion.settings import ExpansionSettings

    with progress_lines():
        rows = run(
            model,
            with_identical_ids_ignored(task) if ignore_identical_ids else task,
            choice("--mode", mode, ("both", "reason", "direct")),
            output,
            split=split,
            cache_folder=cache_folder,
            settings=settings_of(
                setting, ExpansionSettings, SearchSettings, max_reasoning_tokens=max_reasoning_tokens, engine=engine
            ),
            reasoning=reasoning,
            command=shlex.join(["search-r3", *arguments_given()]),
        )
    console = console_here()
    console.print(table(rows))
    means = list(benchmark_means(task, rows))
    for sentence in [*cost_sentences(rows, output), *(mean for _, mean in means)]:
        console.print(sentence, markup=False, highlight=False)
    _print_published(console, dict.fromkeys(name for name, _ in means))
    console.print(f"Written to {escape(str(output))}: summary.json, queries/, predictions/, mteb/")


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of evaluations or trainings, MTEB results, summary.json.")
    ],
    output: Annotated[
        Path | None, typer.Option(help="The file to write. [default: report.FORMAT]", show_default=False)
    ] = None,
    format: Annotated[str, typer.Option(help="html (tables, figures, query explorer), md, csv or latex.")] = "html",
    peers: Annotated[
        list[Path] | None,
        typer.Option(
            help="Published scores to stand beside: a CSV of MTEB scores, MTEB's results folder, or QueryGym's "
            "results.csv or repository. May be repeated.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write what runs have shown into one file that works offline."""
    from search_r3_mteb.report import report as write

    target = output or Path(f"report.{'tex' if format == 'latex' else format}")
    console = console_here()
    for message in write(runs, target, format, peers or ()):
        console.print(str(message), markup=False, highlight=False)
    console.print(f"Written to {escape(str(target))}")


@app.command()
def diagnose(  # noqa: PLR0913  an option is a parameter
    task: Annotated[
        str, typer.Option(help="hopworld[:DOCUMENTS], stdlib, beir:FOLDER[:ignore_identical_ids], or an MTEB task.")
    ],
    model: ModelOption = "nano",
    output: Annotated[
        Path | None,
        typer.Option(help="Folder of diagnose.json. [default: runs/diagnose/TASK__MODEL]", show_default=False),
    ] = None,
    split: Annotated[str | None, typer.Option(help="One split of the task, instead of its own.")] = None,
    ignore_identical_ids: IdenticalIdsOption = False,
    max_queries: Annotated[
        int, typer.Option(help="Queries drawn at random (--set seed=...); 0 for all.", min=0)
    ] = 1000,
    rollouts: Annotated[int, typer.Option(help="Reasonings sampled for each query at temperature 1.", min=2)] = 16,
    max_reasoning_tokens: BudgetOption = None,
    engine: EngineOption = None,
    setting: SetOption = None,
) -> None:
    """Does the reasoning matter? Exchange it, shuffle it, leave it out, sample it again; diagnose.json."""
    from search_r3_mteb.evaluation.diagnosis_runs import DiagnosisPlan
    from search_r3_mteb.evaluation.diagnostics import diagnose as run
    from search_r3_mteb.evaluation.diagnostics import table
    from search_r3_mteb.evaluation.tasks import with_identical_ids_ignored

    settings = settings_of(setting, max_reasoning_tokens=max_reasoning_tokens, engine=engine)
    with progress_lines():
        result = run(
            model,
            with_identical_ids_ignored([task])[0] if ignore_identical_ids else task,
            output,
            split=split,
            settings=settings,
            plan=DiagnosisPlan(max_queries=max_queries or None, rollouts=rollouts, seed=settings.get("seed", 0)),
            command=shlex.join(["search-r3", *arguments_given()]),
        )
    console = console_here()
    console.print(table(result))
    console.print(result["verdict"]["text"], markup=False, highlight=False)
    console.print(f"Written to {escape(result['file'])}")


@app.command()
def reproduce(  # noqa: PLR0913  an option is a parameter
    claim: Annotated[
        list[str] | None,
        typer.Option(help="scifact, litsearch, mkqa or all. May be repeated. [default: all]", show_default=False),
    ] = None,
    model: Annotated[str, typer.Option(help="The released checkpoint, or a folder.")] = "ytgui/Search-R3.0-Small",
    output: ResultsOption = Path("runs/reproduce"),
    task_folder: Annotated[
        list[str] | None,
        typer.Option(help="CLAIM=PATH: a BEIR folder in place of the task that MTEB downloads. May be repeated."),
    ] = None,
    cache_folder: CacheFolderOption = None,
    published: Annotated[
        list[str] | None,
        typer.Option(
            help="Show what others have published on BRIGHT, BRIGHT-Pro or all, with sources, and measure nothing.",
            show_default=False,
        ),
    ] = None,
    max_reasoning_tokens: BudgetOption = None,
    engine: EngineOption = None,
    setting: SetOption = None,
) -> None:
    """Measure the paper's claims on the released checkpoint; needs a network, and a GPU for its size."""
    from search_r3_mteb.evaluation.published import published_scores, published_table
    from search_r3_mteb.evaluation.reproduce import parse_task_folders, table
    from search_r3_mteb.evaluation.reproduce import reproduce as run

    console = console_here()
    if published:
        console.print(published_table(published_scores(published)))
        return
    with progress_lines():
        findings = run(
            claim or ["all"],
            model,
            output,
            task_folders=parse_task_folders(task_folder or []),
            cache_folder=cache_folder,
            settings=settings_of(setting, max_reasoning_tokens=max_reasoning_tokens, engine=engine),
            command=shlex.join(["search-r3", *arguments_given()]),
            on_finding=lambda each: console.print(_finding_line(each), markup=False, highlight=False),
        )
    console.print(table(findings))
    _print_published(console, dict.fromkeys(finding["task"] for finding in findings))
    console.print(f"Written to {escape(str(output))}: reproduce.json, summary.json, queries/, predictions/, mteb/")


@app.command()
def bench(
    kind: Annotated[list[str] | None, typer.Argument(help="reason, encode, rollout. [default: all]")] = None,
    json: Annotated[Path | None, typer.Option("--json", help="A file for the list of measurements.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Each case once, on nano: about a minute.")] = False,
) -> None:
    """Time us against what you would otherwise run, on the same weights, in turns. Above 1: faster, or smaller."""
    from search_r3_mteb.evaluation.bench import bench as run
    from search_r3_mteb.evaluation.bench_cases import BENCHMARKS

    console = console_here()

    def tell(record: dict[str, Any]) -> None:
        rates = f"{record['ours']:,.1f} against {record['theirs']:,.1f} {record['unit']}"
        console.print(f"{record['ratio']:6.2f} x  {record['case']}, {record['peer']}: {rates}", highlight=False)

    run(kind or BENCHMARKS, quick=quick, output=json, tell=tell)


def _finding_line(finding: dict[str, Any]) -> str:
    note = f" Rehearsal: {finding['rehearsal']}." if finding["rehearsal"] else ""
    return f"{finding['claim']}: {finding['verdict']}. {finding['statement']} Measured {finding['explanation']}{note}"


def _print_published(console: SafeConsole, benchmarks: Iterable[str]) -> None:
    """What others have published on these, where the table knows anything."""
    from search_r3_mteb.evaluation.published import known_benchmarks, published_scores, published_table

    known = [name for name in benchmarks if name in known_benchmarks()]
    if known:
        console.print(published_table(published_scores(known)))
