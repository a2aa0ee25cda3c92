"""Commands that encode: embed, explain, doctor."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from search_r3_mteb.cli.options import BudgetOption, EngineOption, ModelOption, SetOption, app
from search_r3_mteb.cli.shared import choice, console_here, settings_of


@app.command()
def embed(  # noqa: PLR0913  an option is a parameter
    input: Annotated[
        Path, typer.Option(help="One text per line (Markdown too), or .jsonl or .json of {'text', 'title'?}; .gz too.")
    ],
    output: Annotated[Path, typer.Option(help="A .npy file: float32 (texts, dim), unit length.")],
    model: ModelOption = "nano",
    role: Annotated[str, typer.Option(help="query (reasons) or document (is embedded directly).")] = "query",
    mode: Annotated[str, typer.Option(help="reason or direct; documents are always direct.")] = "reason",
    show_reasoning: Annotated[bool, typer.Option("--show-reasoning", help="Print each query's reasoning.")] = False,
    max_reasoning_tokens: BudgetOption = None,
    engine: EngineOption = None,
    setting: SetOption = None,
) -> None:
    """Embed the texts of a file."""
    from search_r3_mteb.embed import embed_file

    choice("--role", role, ("query", "document"))
    settings = settings_of(setting, max_reasoning_tokens=max_reasoning_tokens, engine=engine)
    settings["mode"] = choice("--mode", mode, ("reason", "direct"))
    done = embed_file(model, input, output, role, settings, think=show_reasoning)
    console = console_here()
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
    engine: EngineOption = None,
    setting: SetOption = None,
) -> None:
    """Show a question's reasoning, and the documents that it finds without and with it, side by side."""
    from search_r3_mteb.encoder.encoder import SearchR3Encoder
    from search_r3_mteb.evaluation.explain import explain as look
    from search_r3_mteb.evaluation.explain import read_documents, side_by_side

    documents = read_documents(corpus)
    encoder = SearchR3Encoder(model, **settings_of(setting, max_reasoning_tokens=max_reasoning_tokens, engine=engine))
    found = look(encoder, documents, question, top, reasoning)
    console = console_here()
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
def doctor(model: ModelOption = "nano") -> None:
    """Show versions, device, threads and the model, and compute one vector."""
    from search_r3_mteb.doctor import examine

    console = console_here()
    for name, value in examine(model):
        console.print(f"{name:>22}  {value}", markup=False, highlight=False)
    console.print("All well.")
