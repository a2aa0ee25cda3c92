"""Commands that write and check model folders: init, merge, verify, export."""

import json
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.markup import escape

from search_r3_mteb.cli.options import BudgetOption, ModelOption, app
from search_r3_mteb.cli.shared import console_here
from search_r3_mteb.encoder.profiles import EMBED_TOKEN


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
    console = console_here()
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
    console_here().print(f"Written to {folder}: the whole model, with the outputs of the adapter.", markup=False)


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
            console_here().print(line, markup=False, highlight=False, soft_wrap=True)
    if found.differs:
        raise typer.Exit(1)


@app.command()
def export(
    output: Annotated[Path, typer.Option(help="The folder to write.")],
    model: ModelOption = "nano",
    max_reasoning_tokens: BudgetOption = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens of a whole prompt.", min=1)] = None,
) -> None:
    """Write a checkpoint as a sentence-transformers folder that reasons on queries."""
    from search_r3_mteb.integrations.sentence_transformers import REMEDIES, ROLES
    from search_r3_mteb.integrations.sentence_transformers import export as write

    folder = write(model, output, max_reasoning_tokens=max_reasoning_tokens, max_length=max_length)
    console = console_here()
    console.print(f"Written to {escape(str(folder))}. Load it with:")
    console.print("  from search_r3_mteb import SentenceTransformer", markup=False)
    console.print(f"  SentenceTransformer({str(folder)!r})", markup=False)
    for line in ROLES:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for who, call in REMEDIES:
        said = call.replace("FOLDER", repr(str(folder)))
        console.print(f"  {who}: {said}", markup=False, highlight=False, soft_wrap=True)
