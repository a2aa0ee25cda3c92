"""The application, and the options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

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


EngineOption = Annotated[
    str | None,
    typer.Option("--engine", help="What reasons: own, or vllm (docs/vllm.md). [default: own]", show_default=False),
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


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error. May stand anywhere.")] = False,
) -> None:
    """Options of every command."""
