"""The command line `search-r3`: parses arguments, calls the library, prints results."""

import json
import logging
import os
import shlex
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, TextIO, cast

import typer
from rich.markup import escape

from search_r3_mteb.disk import explained
from search_r3_mteb.encoder.profiles import EMBED_TOKEN
from search_r3_mteb.stopping import command_line, end_on_signals
from search_r3_mteb.terminal import SafeConsole, visible

app = typer.Typer(
    name="search-r3",
    help="Reason about a query in text, then embed it: evaluate, diagnose, embed, explain, export.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ModelOption = Annotated[
    str,
    typer.Option("--model", help="nano or mini (bundled), a folder, a LoRA folder, or a hub id.", show_default=True),
]
BudgetOption = Annotated[
    int | None, typer.Option("--max-reasoning-tokens", help="Budget of a query's reasoning, in tokens.", min=0)
]
CacheFolderOption = Annotated[
    Path | None, typer.Option(help="Vectors and thoughts are kept here. [default: OUTPUT/store]", show_default=False)
]
ResultsOption = Annotated[Path, typer.Option(help="Folder of the results; an interrupted run resumes there.")]
IdenticalIdsOption = Annotated[
    bool,
    typer.Option(
        "--ignore-identical-ids",
        help="Leave out documents that have the query's id, in BEIR folders (ArguAna, Quora are scored so).",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Any other setting of SearchR3Encoder: --set seed=1 --set dtype=bfloat16 --set device=cuda."
    ),
]
_MISTAKES = (ValueError, TypeError, OSError, ImportError)  # the last: an optional library is missing
_RESUMED = "What is complete is kept, and so is every chunk of vectors and reasoning. Go on with"
# What is kept when a command is stopped, for those that keep anything.
_KEPT = {
    "evaluate": _RESUMED,
    "diagnose": _RESUMED,
    "reproduce": _RESUMED,
    "doctor": "It writes nothing. Start it again",
    "explain": "It writes nothing. Start it again",
}
# Rows of a table wider than this fold; a pipe or a log has no width of its own.
_LOG_WIDTH = 140


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error. May stand anywhere.")] = False,
) -> None:
    """Options of every command."""


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

    with _progress_lines():
        rows = run(
            model,
            with_identical_ids_ignored(task) if ignore_identical_ids else task,
            _choice("--mode", mode, ("both", "reason", "direct")),
            output,
            split=split,
            cache_folder=cache_folder,
            settings=_settings(setting, ExpansionSettings, SearchSettings, max_reasoning_tokens=max_reasoning_tokens),
            reasoning=reasoning,
            command=shlex.join(["search-r3", *_arguments()]),
        )
    console = _console()
    console.print(table(rows))
    means = list(benchmark_means(task, rows))
    for sentence in [*cost_sentences(rows, output), *(mean for _, mean in means)]:
        console.print(sentence, markup=False, highlight=False)
    _print_published(console, dict.fromkeys(name for name, _ in means))
    console.print(f"Written to {escape(str(output))}: summary.json, queries/, predictions/, mteb/")


@app.command()
def contamination(
    train: Annotated[
        Path,
        typer.Option(help="The training set: .jsonl (.gz) with queries, positives, negatives, ids; or a BEIR folder."),
    ],
    task: Annotated[list[str], typer.Option("--task", help="As in evaluate. May be repeated.")],
    split: Annotated[str | None, typer.Option(help="One split of the tasks, instead of their own.")] = None,
    train_split: Annotated[
        str | None, typer.Option(help="The training folder's judgements. [default: train]", show_default=False)
    ] = None,
    threshold: Annotated[float, typer.Option(help="Jaccard of word shingles from which a text is a near copy.")] = 0.8,
    examples: Annotated[int, typer.Option(help="Copies to show, for each part and sort.", min=0)] = 3,
    json: Annotated[Path | None, typer.Option("--json", help="A file for the whole report.")] = None,
    fail_above: Annotated[
        float | None,
        typer.Option(
            help="Exit with 1 if more than this share (0 to 1) of a task's queries or relevant documents is there.",
            min=0,
            max=1,
        ),
    ] = None,
) -> None:
    """How much of a task's test data a training set holds: exactly, nearly, and by id."""
    from search_r3_mteb.evaluation.contamination import contamination as run
    from search_r3_mteb.evaluation.contamination import sentences, table

    with _progress_lines():
        reports = run(
            train, task, split=split, train_split=train_split, threshold=threshold, examples=examples, output=json
        )
    console = _console()
    console.print(table(reports))
    for sentence in sentences(reports):
        console.print(sentence, markup=False, highlight=False)
    if json is not None:
        console.print(f"Written to {escape(str(json))}")
    if fail_above is not None and any(each.share > fail_above for each in reports):
        raise typer.Exit(1)


@app.command()
def compare(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE.toml]", help="The systems and their settings.", show_default=False)
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option("--models", "--model", help="As in evaluate. May be repeated; the first is the baseline."),
    ] = None,
    task: Annotated[list[str] | None, typer.Option("--task", help="As in evaluate. May be repeated.")] = None,
    budget: Annotated[
        list[int] | None, typer.Option("--budget", help="Tokens of a query's reasoning. May be repeated.", min=0)
    ] = None,
    control: Annotated[
        list[str] | None,
        typer.Option(
            "--control",
            help="filler, other, shuffled or empty reasoning, or none. May be repeated. [default: all four]",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="An interrupted comparison resumes there. [default: runs/compare]", show_default=False),
    ] = None,
    split: Annotated[str | None, typer.Option(help="One split of the tasks, instead of their own.")] = None,
    setting: SetOption = None,
) -> None:
    """Compare systems at equal cost: quality, differences, controls, tokens and time; one page."""
    from search_r3_mteb.compare import compare as run
    from search_r3_mteb.compare.plan import plan_of, read_plan
    from search_r3_mteb.evaluation.abstaining import SearchSettings
    from search_r3_mteb.evaluation.summary import table
    from search_r3_mteb.expansion.settings import ExpansionSettings

    settings = _settings(setting, ExpansionSettings, SearchSettings)
    named = plan_of(models or [], task or [], budget or [], control, split, settings) if file is None else None
    if file is not None and (models or task or budget or control or split or settings):
        raise ValueError(f"{file} names systems, tasks and settings: give the file, or the options, not both.")
    plan = named or read_plan(cast("Path", file))
    plan = plan if output is None else replace(plan, output=output)
    with _progress_lines():
        result = run(plan, shlex.join(["search-r3", *_arguments()]))
    console = _console()
    if result.rows:
        console.print(table(result.shown_rows()))
    for sentence in [each.sentence() for each in result.pairs] + [str(each) for each in result.failures]:
        console.print(sentence, markup=False, highlight=False)
    console.print(f"Written to {escape(str(plan.output))}: {', '.join(path.name for path in result.files)}")
    if result.failures:
        raise SystemExit(1)


@app.command()
def embed(
    input: Annotated[
        Path, typer.Option(help="One text per line (Markdown too), or .jsonl or .json of {'text', 'title'?}; .gz too.")
    ],
    output: Annotated[Path, typer.Option(help="A .npy file: float32 (texts, dim), unit length.")],
    model: ModelOption = "nano",
    role: Annotated[str, typer.Option(help="query (reasons) or document (is embedded directly).")] = "query",
    mode: Annotated[str, typer.Option(help="reason or direct; documents are always direct.")] = "reason",
    show_reasoning: Annotated[bool, typer.Option("--show-reasoning", help="Print each query's reasoning.")] = False,
    max_reasoning_tokens: BudgetOption = None,
    setting: SetOption = None,
) -> None:
    """Embed the texts of a file."""
    from search_r3_mteb.embed import embed_file

    _choice("--role", role, ("query", "document"))
    settings = _settings(setting, max_reasoning_tokens=max_reasoning_tokens)
    settings["mode"] = _choice("--mode", mode, ("reason", "direct"))
    done = embed_file(model, input, output, role, settings, think=show_reasoning)
    console = _console()
    for text, thought in done.thoughts:
        end = "" if thought.finished else ", token forced"
        console.print(f"[bold]{escape(text)}[/bold] [dim]({len(thought.token_ids)} tokens{end})[/dim]")
        console.print(f"  {escape(thought.text.strip())}")
    rows, dim = done.shape
    console.print(f"{rows:,} x {dim} float32 in {escape(str(output))}, {done.seconds:.1f} s")


@app.command()
def explain(
    question: Annotated[str, typer.Argument(help="The question, in quotes.")],
    corpus: Annotated[
        str, typer.Option(help="A BEIR folder, a corpus.jsonl, a text file of one document per line, or a task.")
    ],
    model: ModelOption = "nano",
    top: Annotated[int, typer.Option(help="Documents to show.", min=1)] = 5,
    reasoning: Annotated[
        str | None, typer.Option(help="A reasoning to read in place of the model's own.", show_default=False)
    ] = None,
    max_reasoning_tokens: BudgetOption = None,
    setting: SetOption = None,
) -> None:
    """Show a question's reasoning, and the documents that it finds without and with it, side by side."""
    from search_r3_mteb.encoder.encoder import SearchR3Encoder
    from search_r3_mteb.evaluation.explain import explain as look
    from search_r3_mteb.evaluation.explain import read_documents, side_by_side

    documents = read_documents(corpus)
    encoder = SearchR3Encoder(model, **_settings(setting, max_reasoning_tokens=max_reasoning_tokens))
    found = look(encoder, documents, question, top, reasoning)
    console = _console()
    end = "" if found.thought.finished else ", token forced: the budget was spent or the model ended its turn"
    what = "reasoning"
    if found.thought.given:
        what, end = "given reasoning", "" if found.thought.finished else ", cut to the budget"
    console.print(f"[bold]{escape(question)}[/bold]")
    console.print(
        f"[dim]{what} ({len(found.thought.token_ids)} tokens{end}):[/dim] {escape(found.thought.text.strip())}"
    )
    console.print(side_by_side(found))


@app.command()
def init(
    base: Annotated[str, typer.Argument(metavar="BASE", help="A causal LM: a folder or a hub id.")],
    output: Annotated[Path, typer.Option(help="The folder to write; an earlier result there is replaced.")],
    embed_token: Annotated[str, typer.Option(help="The token whose hidden state is the vector.")] = EMBED_TOKEN,
    dtype: Annotated[str, typer.Option(help="auto (the base's own), float32, bfloat16 or float16.")] = "auto",
) -> None:
    """Make an ordinary causal LM ready to train: adds the embed token and search_r3.json, and says what it found."""
    from search_r3_mteb.encoder.initialise import initialise

    done = initialise(base, output, embed_token=embed_token, dtype=cast("Any", dtype))
    console = _console()
    for name, value in done.lines():
        console.print(f"{name:>22}  {value}", markup=False, highlight=False)
    for line in done.next_steps():
        console.print(line, markup=False, highlight=False, soft_wrap=True)


@app.command()
def merge(
    adapter: Annotated[
        Path, typer.Argument(metavar="ADAPTER", help="A LoRA folder, as training with [model.lora] writes.")
    ],
    output: Annotated[Path, typer.Option(help="The folder to write: the whole model.")],
    dtype: Annotated[str, typer.Option(help="auto (the base's own), float32, bfloat16 or float16.")] = "auto",
) -> None:
    """Write an adapter, merged into its base, as a whole model; the two are compared."""
    from search_r3_mteb.encoder.merging import merge as write

    folder = write(adapter, output, dtype=cast("Any", dtype))
    _console().print(f"Written to {folder}: the whole model, with the outputs of the adapter.", markup=False)


@app.command()
def export(
    output: Annotated[Path, typer.Option(help="The folder to write.")],
    model: ModelOption = "nano",
    max_reasoning_tokens: BudgetOption = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens of a whole prompt.", min=1)] = None,
) -> None:
    """Write a checkpoint as a sentence-transformers folder that reasons on queries."""
    from search_r3_mteb.integrations.sentence_transformers import export as write

    folder = write(model, output, max_reasoning_tokens=max_reasoning_tokens, max_length=max_length)
    console = _console()
    console.print(f"Written to {escape(str(folder))}. Load it with:")
    console.print("  from search_r3_mteb import SentenceTransformer", markup=False)
    console.print(f"  SentenceTransformer({str(folder)!r})", markup=False)


@app.command()
def verify(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder, nano, mini, or a hub id.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of lines.")] = False,
    accept: Annotated[
        bool, typer.Option("--accept", help="The change was meant: write a new manifest of the files as they are.")
    ] = False,
) -> None:
    """Compare a model's files, weights too, with its manifest. Exit code 0: same, 1: differs, 2: cannot be compared."""
    from search_r3_mteb.encoder.verification import accept as write
    from search_r3_mteb.encoder.verification import verify as compare

    found = write(model) if accept else compare(model)
    if as_json:
        print(json.dumps(found.to_dict()))  # ASCII: nothing in it acts on a terminal
    else:
        for line in found.lines():
            _console().print(line, markup=False, highlight=False, soft_wrap=True)
    if found.differs:
        raise typer.Exit(1)


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
    console = _console()
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
    setting: SetOption = None,
) -> None:
    """Does the reasoning matter? Exchange it, shuffle it, leave it out, sample it again; diagnose.json."""
    from search_r3_mteb.evaluation.diagnosis_runs import DiagnosisPlan
    from search_r3_mteb.evaluation.diagnostics import diagnose as run
    from search_r3_mteb.evaluation.diagnostics import table
    from search_r3_mteb.evaluation.tasks import with_identical_ids_ignored

    settings = _settings(setting, max_reasoning_tokens=max_reasoning_tokens)
    with _progress_lines():
        result = run(
            model,
            with_identical_ids_ignored([task])[0] if ignore_identical_ids else task,
            output,
            split=split,
            settings=settings,
            plan=DiagnosisPlan(max_queries=max_queries or None, rollouts=rollouts, seed=settings.get("seed", 0)),
            command=shlex.join(["search-r3", *_arguments()]),
        )
    console = _console()
    console.print(table(result))
    console.print(result["verdict"]["text"], markup=False, highlight=False)
    console.print(f"Written to {escape(result['file'])}")


@app.command()
def tune(  # noqa: PLR0913  an option is a parameter
    task: Annotated[
        str, typer.Option(help="hopworld[:DOCUMENTS], stdlib, beir:FOLDER[:ignore_identical_ids], or an MTEB task.")
    ],
    split: Annotated[str, typer.Option(help="The split to choose on: one that is not reported.")] = "dev",
    model: Annotated[
        str, typer.Option("--model", help="A Search-R3 model, METHOD:WRITER+ENCODER, or rocchio:ENCODER.")
    ] = "nano",
    output: Annotated[
        Path | None,
        typer.Option(help="Folder of tune.json. [default: runs/tune/TASK__MODEL]", show_default=False),
    ] = None,
    anchors: Annotated[
        list[float] | None, typer.Option("--anchor", help="A weight to try. May be repeated.", show_default=False)
    ] = None,
    write_profile: Annotated[
        bool, typer.Option("--write-profile", help="Recommend the chosen anchor in the model folder's search_r3.json.")
    ] = False,
    max_queries: Annotated[int, typer.Option(help="Queries drawn at random; 0 for all.", min=0)] = 0,
    cache_folder: CacheFolderOption = None,
    max_reasoning_tokens: BudgetOption = None,
    setting: SetOption = None,
) -> None:
    """Choose on a dev split how much a reasoning or a writer's text weighs, and which queries need to reason at all."""
    from search_r3_mteb.evaluation.systems import split_label
    from search_r3_mteb.evaluation.tuning import TuningPlan, tables, write_anchor
    from search_r3_mteb.evaluation.tuning import tune as run
    from search_r3_mteb.expansion.names import parse_name
    from search_r3_mteb.expansion.settings import ExpansionSettings

    if write_profile and parse_name(split_label(model)[1]) is not None:
        raise ValueError(
            f"--write-profile: {model} is not one folder with a profile. Leave it out, and set the anchor."
        )
    plan = TuningPlan(max_queries=max_queries or None)
    with _progress_lines():
        found = run(
            model,
            task,
            split,
            output,
            settings=_settings(
                setting, ExpansionSettings, max_reasoning_tokens=max_reasoning_tokens, cache_folder=cache_folder
            ),
            plan=replace(plan, anchors=tuple(anchors)) if anchors else plan,
            command=shlex.join(["search-r3", *_arguments()]),
        )
    console, chosen = _console(), found["chosen"]
    for each in tables(found):
        console.print(each)
    pairs = " ".join(f"--set {name}={'none' if value is None else value}" for name, value in chosen.items())
    console.print(
        f"Chosen on {found['queries']:,} queries of {found['task']} ({found['split']}): {pairs}", markup=False
    )
    if found["split"] == "test":
        console.print("Chosen on the test split: what is reported there with these settings is too good.")
    console.print(f"Written to {escape(found['file'])}")
    if write_profile:
        console.print(f"Written to {escape(str(write_anchor(split_label(model)[1], chosen['anchor'])))}: the anchor")


@app.command()
def reproduce(
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
    setting: SetOption = None,
) -> None:
    """Measure the paper's claims on the released checkpoint; needs a network, and a GPU for its size."""
    from search_r3_mteb.evaluation.published import published_scores, published_table
    from search_r3_mteb.evaluation.reproduce import parse_task_folders, table
    from search_r3_mteb.evaluation.reproduce import reproduce as run

    console = _console()
    if published:
        console.print(published_table(published_scores(published)))
        return
    with _progress_lines():
        findings = run(
            claim or ["all"],
            model,
            output,
            task_folders=parse_task_folders(task_folder or []),
            cache_folder=cache_folder,
            settings=_settings(setting, max_reasoning_tokens=max_reasoning_tokens),
            command=shlex.join(["search-r3", *_arguments()]),
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

    console = _console()

    def tell(record: dict[str, Any]) -> None:
        rates = f"{record['ours']:,.1f} against {record['theirs']:,.1f} {record['unit']}"
        console.print(f"{record['ratio']:6.2f} x  {record['case']}, {record['peer']}: {rates}", highlight=False)

    run(kind or BENCHMARKS, quick=quick, output=json, tell=tell)


@app.command()
def doctor(model: ModelOption = "nano") -> None:
    """Show versions, device, threads and the model, and compute one vector."""
    from search_r3_mteb.doctor import examine

    console = _console()
    for name, value in examine(model):
        console.print(f"{name:>22}  {value}", markup=False, highlight=False)
    console.print("All well.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line. A mistake of the caller gives one message and exit code 2; `--debug` gives a traceback.

    Without `arguments` it is the program: Ctrl-C and SIGTERM end it as `stopping.py` says.
    """
    if arguments is None:
        end_on_signals("search-r3", lambda: _kept(sys.argv[1:]))
    _find_place_for_mteb()
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    sys.argv[1:] = [each for each in given if each != "--debug"]
    try:
        with redirect_stderr(sys.stderr if sys.stderr.isatty() else cast("TextIO", _WithoutBars(sys.stderr))):
            app(args=sys.argv[1:])
    except Exception as error:
        message = explained(error)  # of a full disk: also as an exception of a library
        if debug or (message is None and not isinstance(error, _MISTAKES)):
            raise
        SafeConsole(stderr=True, soft_wrap=True).print(
            f"[red]Error:[/red] {escape(message or str(error))}", highlight=False
        )
        raise SystemExit(2) from None


def _find_place_for_mteb() -> None:
    """Where nothing can be written at home, as in many containers, importing mteb would fail: it makes its cache there.

    Nothing of ours is kept in it.
    """
    place = Path("~/.cache/mteb").expanduser()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not os.access(place, os.W_OK | os.X_OK):
        os.environ.setdefault("MTEB_CACHE", str(Path(tempfile.gettempdir()) / "search-r3-mteb-cache"))


def _kept(arguments: Sequence[str]) -> str:
    """What a command that is stopped has kept, and how to go on."""
    command = next((each for each in arguments if each in _KEPT), "")
    kept = _KEPT.get(command, "What was written is complete, or as it was before. Start it again")
    return f"{kept}: {command_line('search-r3')}"


class _WithoutBars:
    """Standard error of a log: without the progress bars that every library draws, with everything else."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the text, unless it is part of a bar: those begin with a carriage return and end with an empty line."""
        return len(text) if text.startswith("\r") or text == "\n" else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _progress_lines() -> Iterator[None]:
    """Log what is being done on standard error while the block runs: hours may pass before the table."""
    logger, handler = logging.getLogger("search_r3_mteb"), logging.StreamHandler()
    before = logger.level
    handler.setFormatter(_Visible())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


class _Visible(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


def _finding_line(finding: dict[str, Any]) -> str:
    note = f" Rehearsal: {finding['rehearsal']}." if finding["rehearsal"] else ""
    return f"{finding['claim']}: {finding['verdict']}. {finding['statement']} Measured {finding['explanation']}{note}"


def _print_published(console: SafeConsole, benchmarks: Iterable[str]) -> None:
    """What others have published on these, where the table knows anything."""
    from search_r3_mteb.evaluation.published import known_benchmarks, published_scores, published_table

    known = [name for name in benchmarks if name in known_benchmarks()]
    if known:
        console.print(published_table(published_scores(known)))


def _console() -> SafeConsole:
    console = SafeConsole()
    return console if console.is_terminal else SafeConsole(width=_LOG_WIDTH, soft_wrap=False)


def _arguments() -> list[str]:
    return sys.argv[1:]


def _choice(option: str, value: str, valid: tuple[str, ...]) -> Any:
    if value not in valid:
        raise ValueError(f"{option} must be one of {', '.join(valid)}, got {value!r}.")
    return value


def _settings(pairs: list[str] | None, *further: type, **named: Any) -> dict[str, Any]:
    """Settings of encoders (and `further` ones) from NAME=VALUE pairs and from the options that were given."""
    from search_r3_mteb.encoder.options import parse_settings

    return {
        **parse_settings(pairs or [], *further),
        **{key: value for key, value in named.items() if value is not None},
    }


if __name__ == "__main__":
    main()
