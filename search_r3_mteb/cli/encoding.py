"""Commands that encode: embed, explain, doctor."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from search_r3_mteb.cli.options import (
    BudgetOption,
    EngineOption,
    ExtensibleCommand,
    IdColumnOption,
    JsonOption,
    ModelOption,
    ModelOrNanoOption,
    NoQuotesOption,
    SetOption,
    TextColumnOption,
    TitleColumnOption,
    app,
)
from search_r3_mteb.cli.shared import choice, console_here, long_work, model_or_nano, print_json, said, settings_of
from search_r3_mteb.terminal import beginning


@app.command(cls=ExtensibleCommand)
def embed(  # noqa: PLR0913  an option is a parameter
    input: Annotated[
        str,
        typer.Option(
            help="A BEIR folder, .csv, .tsv, .parquet, .jsonl, .json, or one text per line (Markdown too); .gz too; - "
            "is standard input."
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(help="vectors.npy (n, dim) with vectors.ids.txt; .parquet or .jsonl of id, vector, reasoning."),
    ],
    model: ModelOption = "nano",
    role: Annotated[str, typer.Option(help="query (reasons) or document (is embedded directly).")] = "query",
    mode: Annotated[str, typer.Option(help="reason or direct; documents are always direct.")] = "reason",
    id: IdColumnOption = None,
    text: TextColumnOption = None,
    title: TitleColumnOption = None,
    no_quotes: NoQuotesOption = False,
    precision: Annotated[
        str, typer.Option(help="float32, float16, int8, uint8, binary or ubinary (one bit per dimension).")
    ] = "float32",
    dim: Annotated[
        int | None, typer.Option(help="Keep the first N dimensions, normalised again (Matryoshka).", min=1)
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="For int8 and uint8: the .ranges.npy of other vectors (queries need that of the documents), or a .npy "
            "of float vectors. [default: the vectors themselves]",
            show_default=False,
        ),
    ] = None,
    show_reasoning: Annotated[bool, typer.Option("--show-reasoning", help="Print each query's reasoning.")] = False,
    max_reasoning_tokens: BudgetOption = None,
    engine: EngineOption = None,
    setting: SetOption = None,
) -> None:
    """Embed the texts of a file into a file of vectors."""
    from search_r3_mteb.embed import EmbedPlan, embed_file
    from search_r3_mteb.files import Columns
    from search_r3_mteb.files.precisions import PRECISIONS

    settings = settings_of(setting, max_reasoning_tokens=max_reasoning_tokens, engine=engine)
    settings["mode"] = choice("--mode", mode, ("reason", "direct"))
    plan = EmbedPlan(
        source=input,
        output=output,
        role=choice("--role", role, ("query", "document")),
        columns=Columns(id, text, title, not no_quotes),
        precision=choice("--precision", precision, PRECISIONS),
        dim=dim,
        calibration=calibration,
        think=show_reasoning,
    )
    with long_work():
        done = embed_file(model, plan, settings)
    console = console_here()
    for query, thought in done.thoughts:
        end = "" if thought.finished else ", token forced"
        console.print(f"[bold]{escape(beginning(query))}[/bold] [dim]({len(thought.token_ids)} tokens{end})[/dim]")
        console.print(f"  {escape(thought.text.strip())}")
    rows, width = done.shape
    said(console, f"{rows:,} x {width} {precision} in {output}, {done.seconds:.1f} s")


@app.command(cls=ExtensibleCommand)
def explain(  # noqa: PLR0913  an option is a parameter
    question: Annotated[str, typer.Argument(help="The question, in quotes.")],
    corpus: Annotated[
        str,
        typer.Option(help="A BEIR folder, .csv, .tsv, .parquet, .jsonl, one document per line, - , or a task."),
    ],
    model: ModelOrNanoOption = None,
    top: Annotated[int, typer.Option(help="Documents to show.", min=1)] = 5,
    reasoning: Annotated[
        str | None, typer.Option(help="A reasoning to read in place of the model's own.", show_default=False)
    ] = None,
    id: IdColumnOption = None,
    text: TextColumnOption = None,
    title: TitleColumnOption = None,
    no_quotes: NoQuotesOption = False,
    max_reasoning_tokens: BudgetOption = None,
    engine: EngineOption = None,
    setting: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a question's reasoning changes in its results.

    The documents that it finds without and with it stand side by side.
    """
    from search_r3_mteb.encoder.encoder import SearchR3Encoder
    from search_r3_mteb.evaluation.explain import explain as look
    from search_r3_mteb.evaluation.explain import read_documents, side_by_side
    from search_r3_mteb.files import Columns

    with long_work():
        documents = read_documents(corpus, Columns(id, text, title, not no_quotes))
        chosen = model_or_nano(model, corpus)
    encoder = SearchR3Encoder(chosen, **settings_of(setting, max_reasoning_tokens=max_reasoning_tokens, engine=engine))
    found = look(encoder, documents, question, top, reasoning)
    if as_json:
        print_json(found.to_dict())
        return
    console = console_here()
    end = "" if found.thought.finished else ", token forced: the budget was spent or the model ended its turn"
    what = "reasoning"
    if found.thought.given:
        what, end = "given reasoning", "" if found.thought.finished else ", cut to the budget"
    console.print(f"[bold]{escape(beginning(question))}[/bold]")
    console.print(
        f"[dim]{what} ({len(found.thought.token_ids)} tokens{end}):[/dim] {escape(found.thought.text.strip())}"
    )
    console.print(side_by_side(found))


@app.command(cls=ExtensibleCommand)
def doctor(model: ModelOption = "nano", as_json: JsonOption = False) -> None:
    """Examine this machine and a model.

    Shows versions, extensions, device, threads and the model, computes one vector, and warns of a silent model.
    """
    from search_r3_mteb.doctor import WARNING, examine

    console, found = console_here(), []
    for name, value in examine(model):
        found.append({"name": name, "found": value})
        if not as_json:
            console.print(f"{name:>22}  {value}", markup=False, highlight=False, soft_wrap=True)
    warned = sum(each["name"] == WARNING for each in found)
    if as_json:
        print_json(found)
    else:
        console.print("All well." if not warned else f"{warned} warning{'s' * (warned > 1)}: see above.")
