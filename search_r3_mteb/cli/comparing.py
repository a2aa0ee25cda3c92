"""Commands beside an evaluation: compare, tune, contamination."""

import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, cast

import typer

from search_r3_mteb.cli.options import (
    CacheFolderOption,
    EngineOption,
    ExpansionSetOption,
    ExtensibleCommand,
    JsonOption,
    SplitOption,
    WriterBudgetOption,
    app,
)
from search_r3_mteb.cli.shared import arguments_given, console_here, long_work, print_json, said, settings_of


@app.command(cls=ExtensibleCommand)
def compare(  # noqa: PLR0913  an option is a parameter
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE.toml]", help="The systems and their settings.", show_default=False)
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option("--models", "--model", help="As in evaluate. May be repeated; the first is the baseline."),
    ] = None,
    task: Annotated[list[str] | None, typer.Option("--task", help="As in evaluate. May be repeated.")] = None,
    budget: Annotated[
        list[int] | None,
        typer.Option(
            "--budget",
            "--max-reasoning-tokens",
            help="Tokens of a query's reasoning, or of each text of a writer. May be repeated.",
            min=0,
        ),
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
    split: SplitOption = None,
    setting: ExpansionSetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare systems at equal cost, on one page.

    Quality, differences, controls of the reasoning, tokens and time.
    """
    from search_r3_mteb.compare import compare as run
    from search_r3_mteb.compare.plan import plan_of, read_plan
    from search_r3_mteb.evaluation.abstaining import SearchSettings
    from search_r3_mteb.evaluation.summary import table
    from search_r3_mteb.expansion.settings import ExpansionSettings

    settings = settings_of(setting, ExpansionSettings, SearchSettings)
    named = plan_of(models or [], task or [], budget or [], control, split, settings) if file is None else None
    if file is not None and (models or task or budget or control or split or settings):
        raise ValueError(f"{file} names systems, tasks and settings: give the file, or the options, not both.")
    plan = named or read_plan(cast("Path", file))
    plan = plan if output is None else replace(plan, output=output)
    with long_work():
        result = run(plan, shlex.join(["search-r3", *arguments_given()]))
    if as_json:
        findings = {"pairs": [asdict(each) for each in result.pairs], "failures": [str(f) for f in result.failures]}
        print_json({"rows": result.rows, **findings, "files": [str(path) for path in result.files]})
        raise SystemExit(1 if result.failures else 0)
    console = console_here()
    if result.rows:
        console.print(table(result.shown_rows()))
    for sentence in [each.sentence() for each in result.pairs] + [str(each) for each in result.failures]:
        console.print(sentence, markup=False, highlight=False)
    said(console, f"Written to {plan.output}: {', '.join(path.name for path in result.files)}")
    if result.failures:
        raise SystemExit(1)


@app.command(cls=ExtensibleCommand)
def tune(  # noqa: PLR0913  an option is a parameter
    task: Annotated[
        str, typer.Option(help="hopworld[:DOCUMENTS], stdlib, FOLDER[:ignore_identical_ids], or an MTEB task.")
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
        list[float] | None,
        typer.Option(
            "--anchor", help="A weight to try. May be repeated. [default: 8 from 0.1 to 2]", show_default=False
        ),
    ] = None,
    write_profile: Annotated[
        bool, typer.Option("--write-profile", help="Recommend the chosen anchor in the model folder's search_r3.json.")
    ] = False,
    max_queries: Annotated[int, typer.Option(help="Queries drawn at random; 0 for all.", min=0)] = 0,
    cache_folder: CacheFolderOption = None,
    max_reasoning_tokens: WriterBudgetOption = None,
    engine: EngineOption = None,
    setting: ExpansionSetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Choose on a dev split how much the reasoning weighs.

    Or how much a writer's text does, and which queries need to reason at all.
    """
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
    with long_work():
        found = run(
            model,
            task,
            split,
            output,
            settings=settings_of(
                setting,
                ExpansionSettings,
                max_reasoning_tokens=max_reasoning_tokens,
                engine=engine,
                cache_folder=cache_folder,
            ),
            plan=replace(plan, anchors=tuple(anchors)) if anchors else plan,
            command=shlex.join(["search-r3", *arguments_given()]),
        )
    console, chosen = console_here(), found["chosen"]
    if write_profile:
        found["profile"] = str(write_anchor(split_label(model)[1], chosen["anchor"]))
    if as_json:
        print_json(found)
        return
    for each in tables(found):
        console.print(each)
    pairs = " ".join(f"--set {name}={'none' if value is None else value}" for name, value in chosen.items())
    console.print(
        f"Chosen on {found['queries']:,} queries of {found['task']} ({found['split']}): {pairs}", markup=False
    )
    if found["split"] == "test":
        console.print("Chosen on the test split: what is reported there with these settings is too good.")
    said(console, f"Written to {found['file']}")
    if write_profile:
        said(console, f"Written to {found['profile']}: the anchor")


@app.command(cls=ExtensibleCommand)
def contamination(  # noqa: PLR0913  an option is a parameter
    train: Annotated[
        Path,
        typer.Option(help="The training set: .jsonl (.gz) with queries, positives, negatives, ids; or a BEIR folder."),
    ],
    task: Annotated[list[str], typer.Option("--task", help="As in evaluate. May be repeated.")],
    split: SplitOption = None,
    train_split: Annotated[
        str | None, typer.Option(help="The training folder's judgements. [default: train]", show_default=False)
    ] = None,
    threshold: Annotated[float, typer.Option(help="Jaccard of word shingles from which a text is a near copy.")] = 0.8,
    examples: Annotated[int, typer.Option(help="Copies to show, for each part and sort.", min=0)] = 3,
    output: Annotated[Path | None, typer.Option(help="A JSON file for the whole report.")] = None,
    fail_above: Annotated[
        float | None,
        typer.Option(
            help="Exit with 1 if more than this share (0 to 1) of a task's queries or relevant documents is there.",
            min=0,
            max=1,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """How much of a task's test data a training set holds.

    Texts are found that are equal, or nearly so, and ids.
    """
    from search_r3_mteb.evaluation.contamination import contamination as run
    from search_r3_mteb.evaluation.contamination import sentences, table

    with long_work():
        reports = run(
            train, task, split=split, train_split=train_split, threshold=threshold, examples=examples, output=output
        )
    console = console_here()
    if as_json:
        print_json([each.to_dict() for each in reports])
    else:
        console.print(table(reports))
        for sentence in sentences(reports):
            console.print(sentence, markup=False, highlight=False)
        if output is not None:
            said(console, f"Written to {output}")
    if fail_above is not None and any(each.share > fail_above for each in reports):
        raise typer.Exit(1)
