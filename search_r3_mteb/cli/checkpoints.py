"""Commands that write and check model folders: init, base, merge, verify, export."""

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from search_r3_mteb.cli.options import BudgetOption, ExtensibleCommand, JsonOption, ModelOption, app
from search_r3_mteb.cli.shared import console_here, print_json, said
from search_r3_mteb.encoder.profiles import EMBED_TOKEN, named_profile


@app.command(cls=ExtensibleCommand)
def init(
    base: Annotated[str, typer.Argument(metavar="BASE", help="A causal LM: a folder or a hub id.")],
    output: Annotated[Path, typer.Option(help="The folder to write; an earlier result there is replaced.")],
    embed_token: Annotated[
        str | None,
        typer.Option(
            help=f"The token whose hidden state is the vector. [default: the profile's, {EMBED_TOKEN}]",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto (the base's own), float32, bfloat16 or float16.")] = "auto",
    profile: Annotated[
        str | None,
        typer.Option(
            help="Prompts that another package brings (docs/extend.md). [default: Search-R3's]", show_default=False
        ),
    ] = None,
) -> None:
    """Make an ordinary causal LM ready to train.

    Adds the embed token and search_r3.json, and says what it found.
    """
    from search_r3_mteb.encoder.initialise import initialise

    chosen = None if profile is None else named_profile(profile)
    done = initialise(base, output, embed_token=embed_token, dtype=cast("Any", dtype), profile=chosen)
    console = console_here()
    for name, value in done.lines():
        console.print(f"{name:>22}  {value}", markup=False, highlight=False)
    for line in done.next_steps():
        said(console, line)


@app.command(cls=ExtensibleCommand)
def base(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The bundled adapter whose base is made: smol.")],
    output: Annotated[
        Path | None, typer.Option(help="The folder to write. [default: in the user's cache]", show_default=False)
    ] = None,
) -> None:
    """Make the base model of a bundled adapter.

    Its weights come from an installed package, and are dequantised once.
    """
    from search_r3_mteb.encoder.packaged_bases import BASE_VARIABLE, base_folder, make_base

    folder = make_base(name, output)
    how = "It is found there" if folder == base_folder(name) else f"{BASE_VARIABLE}={folder} makes it found"
    said(console_here(), f"Written to {folder}: the base of {name}. {how}.")


@app.command(cls=ExtensibleCommand)
def merge(
    adapter: Annotated[
        Path, typer.Argument(metavar="ADAPTER", help="A LoRA folder, as training with [model.lora] writes.")
    ],
    output: Annotated[Path, typer.Option(help="The folder to write: the whole model.")],
    dtype: Annotated[str, typer.Option(help="auto (the base's own), float32, bfloat16 or float16.")] = "auto",
) -> None:
    """Write an adapter, merged into its base, as a whole model.

    The outputs of the two are compared.
    """
    from search_r3_mteb.encoder.merging import merge as write

    folder = write(adapter, output, dtype=cast("Any", dtype))
    said(console_here(), f"Written to {folder}: the whole model, with the outputs of the adapter.")


@app.command(cls=ExtensibleCommand)
def verify(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder, nano, mini, smol, or a hub id.")],
    as_json: JsonOption = False,
    accept: Annotated[
        bool, typer.Option("--accept", help="The change was meant: write a new manifest of the files as they are.")
    ] = False,
) -> None:
    """Compare a model's files, weights too, with its manifest.

    Exit code 0: same, 1: differs, 2: cannot be compared.
    """
    from search_r3_mteb.encoder.verification import accept as write
    from search_r3_mteb.encoder.verification import verify as compare
    from search_r3_mteb.indexing.state import is_index

    if is_index(Path(model)):
        raise ValueError(
            f"{model} is an index, not a model. Its files have checksums of their own, which are compared whenever it "
            f"is searched (search-r3 search {model} QUESTION) or opened (SearchIndex.open)."
        )
    found = write(model) if accept else compare(model)
    if as_json:
        print_json(found.to_dict())
    else:
        for line in found.lines():
            console_here().print(line, markup=False, highlight=False, soft_wrap=True)
    if found.differs:
        raise typer.Exit(1)


@app.command(cls=ExtensibleCommand)
def export(
    output: Annotated[Path, typer.Option(help="The folder to write.")],
    model: ModelOption = "nano",
    max_reasoning_tokens: BudgetOption = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens of a whole prompt.", min=1)] = None,
) -> None:
    """Write a checkpoint as a sentence-transformers folder.

    It reasons on queries.
    """
    from search_r3_mteb.integrations.sentence_transformers import REMEDIES, ROLES
    from search_r3_mteb.integrations.sentence_transformers import export as write

    folder = write(model, output, max_reasoning_tokens=max_reasoning_tokens, max_length=max_length)
    console = console_here()
    said(console, f"Written to {folder}. Load it with:")
    said(console, "  from search_r3_mteb import SentenceTransformer")
    said(console, f"  SentenceTransformer({str(folder)!r})")
    for line in ROLES:
        said(console, line)
    for who, call in REMEDIES:
        said(console, f"  {who}: {call.replace('FOLDER', repr(str(folder)))}")
