"""Commands that score models on tasks: evaluate, diagnose, reproduce, bench, and the report on them."""

import shlex
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from search_r3_mteb.cli.options import (
    BudgetOption,
    CacheFolderOption,
    EngineOption,
    ExpansionSetOption,
    ExtensibleCommand,
    IdenticalIdsOption,
    JsonOption,
    ModelOption,
    ResultsOption,
    SetOption,
    SplitOption,
    WriterBudgetOption,
    app,
)
from search_r3_mteb.cli.shared import (
    arguments_given,
    choice,
    console_here,
    long_work,
    print_json,
    said,
    settings_of,
    sizes,
)
from search_r3_mteb.terminal import SafeConsole


@app.command(cls=ExtensibleCommand)
def evaluate(  # noqa: PLR0913  an option is a parameter
    model: Annotated[
        list[str],
        typer.Option(
            "--model",
            help="nano, mini, smol, a folder, a hub id, NAME=FOLDER, bm25, or METHOD:WRITER+ENCODER: an LM writes and "
            "an encoder embeds (hyde, query2doc, mugi, keywords, gar, search-r3-prompt, feedback), or rocchio:ENCODER. "
            "May be repeated.",
        ),
    ],
    task: Annotated[
        list[str],
        typer.Option(
            "--task",
            help="hopworld[:DOCUMENTS], stdlib, FOLDER[:ignore_identical_ids], an MTEB task, or a benchmark: "
            "BRIGHT, BRIGHT-long, BRIGHT-Pro, RTEB, LitSearch, or MTEB's name of another. May be repeated.",
        ),
    ],
    mode: Annotated[str, typer.Option(help="both, reason or direct. Baselines are always direct.")] = "both",
    output: ResultsOption = Path("runs/evaluate"),
    split: SplitOption = None,
    ignore_identical_ids: IdenticalIdsOption = False,
    cache_folder: CacheFolderOption = None,
    reasoning: Annotated[
        Path | None,
        typer.Option(
            help="Reasonings to read in place of the model's own, by query id: .jsonl or .tsv. Mode 'given'.",
            show_default=False,
        ),
    ] = None,
    dim: Annotated[
        str | None,
        typer.Option(
            help="Further sizes, such as 64,128: the first 64 and 128 dimensions of the same vectors (Matryoshka).",
            show_default=False,
        ),
    ] = None,
    max_reasoning_tokens: WriterBudgetOption = None,
    engine: EngineOption = None,
    setting: ExpansionSetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score models on retrieval tasks, through MTEB.

    nDCG@10, recall@10 and cost as a table, in summary.json, and for each query.
    """
    from search_r3_mteb.evaluation.abstaining import SearchSettings
    from search_r3_mteb.evaluation.benchmarks import benchmark_means
    from search_r3_mteb.evaluation.costs import cost_sentences
    from search_r3_mteb.evaluation.evaluate import evaluate as run
    from search_r3_mteb.evaluation.summary import table
    from search_r3_mteb.evaluation.tasks import with_identical_ids_ignored
    from search_r3_mteb.expansion.settings import ExpansionSettings

    with long_work():
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
            dims=() if dim is None else sizes("--dim", dim),
            command=shlex.join(["search-r3", *arguments_given()]),
        )
    if as_json:
        print_json(rows)
        return
    console = console_here()
    console.print(table(rows))
    means = list(benchmark_means(task, rows))
    for sentence in [*cost_sentences(rows, output), *(mean for _, mean in means)]:
        console.print(sentence, markup=False, highlight=False)
    _print_published(console, dict.fromkeys(name for name, _ in means))
    said(console, f"Written to {output}: summary.json, queries/, predictions/, mteb/")


@app.command(cls=ExtensibleCommand)
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
    """Write what runs have shown into one file.

    It works offline. Where there is nothing to show, an earlier file stays as it is.
    """
    from search_r3_mteb.report import report as write
    from search_r3_mteb.report.records import summarised

    target = output or Path(f"report.{'tex' if format == 'latex' else format}")
    console = console_here()
    for line in summarised(write(runs, target, format, peers or ())):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    said(console, f"Written to {target}")


@app.command(cls=ExtensibleCommand)
def diagnose(  # noqa: PLR0913  an option is a parameter
    task: Annotated[
        str, typer.Option(help="hopworld[:DOCUMENTS], stdlib, FOLDER[:ignore_identical_ids], or an MTEB task.")
    ],
    model: ModelOption = "nano",
    output: Annotated[
        Path | None,
        typer.Option(help="Folder of diagnose.json. [default: runs/diagnose/TASK__MODEL]", show_default=False),
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="A split of the task. [default: the task's own]", show_default=False)
    ] = None,
    ignore_identical_ids: IdenticalIdsOption = False,
    max_queries: Annotated[
        int, typer.Option(help="Queries drawn at random (--set seed=...); 0 for all.", min=0)
    ] = 1000,
    rollouts: Annotated[int, typer.Option(help="Reasonings sampled for each query at temperature 1.", min=2)] = 16,
    max_reasoning_tokens: BudgetOption = None,
    engine: EngineOption = None,
    setting: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Test whether the reasoning matters.

    It is exchanged, shuffled, left out, and sampled again; diagnose.json holds what that changes.
    """
    from search_r3_mteb.evaluation.diagnosis_runs import DiagnosisPlan
    from search_r3_mteb.evaluation.diagnostics import diagnose as run
    from search_r3_mteb.evaluation.diagnostics import table
    from search_r3_mteb.evaluation.tasks import with_identical_ids_ignored

    settings = settings_of(setting, max_reasoning_tokens=max_reasoning_tokens, engine=engine)
    with long_work():
        result = run(
            model,
            with_identical_ids_ignored([task])[0] if ignore_identical_ids else task,
            output,
            split=split,
            settings=settings,
            plan=DiagnosisPlan(max_queries=max_queries or None, rollouts=rollouts, seed=settings.get("seed", 0)),
            command=shlex.join(["search-r3", *arguments_given()]),
        )
    if as_json:
        print_json(result)
        return
    console = console_here()
    console.print(table(result))
    console.print(result["verdict"]["text"], markup=False, highlight=False)
    said(console, f"Written to {result['file']}")


@app.command(cls=ExtensibleCommand)
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
    as_json: JsonOption = False,
) -> None:
    """Measure the paper's claims on the released checkpoint.

    It needs a network, and a GPU for its size.
    """
    from search_r3_mteb.evaluation.published import published_scores, published_table
    from search_r3_mteb.evaluation.reproduce import parse_task_folders, table
    from search_r3_mteb.evaluation.reproduce import reproduce as run

    console = console_here()
    if published:
        scores = published_scores(published)
        if as_json:
            print_json([asdict(each) for each in scores])
        else:
            console.print(published_table(scores))
        return
    with long_work():
        findings = run(
            claim or ["all"],
            model,
            output,
            task_folders=parse_task_folders(task_folder or []),
            cache_folder=cache_folder,
            settings=settings_of(setting, max_reasoning_tokens=max_reasoning_tokens, engine=engine),
            command=shlex.join(["search-r3", *arguments_given()]),
            on_finding=lambda each: None if as_json else said(console, _finding_line(each)),
        )
    if as_json:
        print_json(findings)
        return
    console.print(table(findings))
    _print_published(console, dict.fromkeys(finding["task"] for finding in findings))
    said(console, f"Written to {output}: reproduce.json, summary.json, queries/, predictions/, mteb/")


@app.command(cls=ExtensibleCommand)
def bench(  # noqa: PLR0913  an option is a parameter
    kind: Annotated[list[str] | None, typer.Argument(help="reason, encode, rollout, context. [default: all]")] = None,
    output: Annotated[Path | None, typer.Option(help="A JSON file for the list of measurements.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Each case once, on nano: about a minute.")] = False,
    model: Annotated[
        str | None, typer.Option(help="A checkpoint to measure in place of nano, 30m and 120m.", show_default=False)
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Of --model: float32, bfloat16, float16. [default: float32]", show_default=False)
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(help="Turns of each side of --model. [default: 3]", min=1, show_default=False)
    ] = None,
    max_reasoning_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-reasoning-tokens",
            "--budget",
            help="The longest reasoning of --model, in tokens; the shortest has an eighth. [default: 256]",
            min=8,
            show_default=False,
        ),
    ] = None,
    vllm: Annotated[
        Path | None,
        typer.Option(help="The Python of an environment with vLLM, a peer of --model.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare our speed and memory with the usual tools.

    Both run on the same weights, in turns. A ratio above 1 means that ours is faster, or smaller.
    """
    from search_r3_mteb.evaluation.bench import bench as run
    from search_r3_mteb.evaluation.bench_cases import BENCHMARKS
    from search_r3_mteb.evaluation.bench_work import RealModel

    options = {"dtype": dtype, "rounds": rounds, "longest": max_reasoning_tokens, "vllm": vllm}
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if dtype is not None:
        choice("--dtype", dtype, ("float32", "bfloat16", "float16"))
    if model is None and given:
        raise ValueError(
            "--dtype, --rounds, --max-reasoning-tokens and --vllm say how --model is measured. Name a model too."
        )
    real = None if model is None else RealModel(model, **given)
    console = console_here()

    def tell(record: dict[str, Any]) -> None:
        rates = f"{record['ours']:,.1f} against {record['theirs']:,.1f} {record['unit']}"
        console.print(f"{record['ratio']:6.2f} x  {record['case']}, {record['peer']}: {rates}", highlight=False)

    silent = (lambda record: None) if as_json else tell
    records = run(kind or BENCHMARKS, quick=quick, output=output, tell=silent, real=real)
    if as_json:
        print_json(records)


def _finding_line(finding: dict[str, Any]) -> str:
    note = f" Rehearsal: {finding['rehearsal']}." if finding["rehearsal"] else ""
    return f"{finding['claim']}: {finding['verdict']}. {finding['statement']} Measured {finding['explanation']}{note}"


def _print_published(console: SafeConsole, benchmarks: Iterable[str]) -> None:
    """What others have published on these, where the table knows anything."""
    from search_r3_mteb.evaluation.published import known_benchmarks, published_scores, published_table

    known = [name for name in benchmarks if name in known_benchmarks()]
    if known:
        console.print(published_table(published_scores(known)))
