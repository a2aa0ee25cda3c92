"""The application, and the options that several commands share."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer
from typer.core import TyperCommand
from typer.models import OptionInfo

from search_r3_mteb import __version__
from search_r3_mteb.extensions import BASELINES, PROFILES, TASKS

_EXTENSIBLE = {"task": TASKS, "corpus": TASKS, "model": BASELINES, "models": BASELINES, "profile": PROFILES}
_VALUES = {Path: "PATH", int: "N", float: "X"}


def name_values(program: typer.Typer) -> None:
    """Have --help show in one word what kind of value an option takes."""
    for command in program.registered_commands:
        for hint in get_type_hints(command.callback, include_extras=True).values():
            kinds = set(_kinds(hint))
            for each in get_args(hint)[1:]:
                if isinstance(each, OptionInfo) and each.metavar is None and bool not in kinds:
                    each.metavar = next((word for kind, word in _VALUES.items() if kind in kinds), "TEXT")


def _kinds(hint: Any) -> Iterator[Any]:
    """A type and the types in it."""
    yield hint
    for each in get_args(hint):
        yield from _kinds(each)


class ExtensibleCommand(TyperCommand):
    """A command whose help names what other packages bring to its options."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """The names that are installed, for the options that take them."""
        super().format_epilog(ctx, formatter)
        options = {each.name for each in self.params}
        registries = dict.fromkeys(registry for name, registry in _EXTENSIBLE.items() if name in options)
        lines = [f"{each.kind}s: {', '.join(each.marked())}" for each in registries if each.names()]
        if lines:
            with formatter.section("Installed extensions"), formatter.indentation():
                for line in lines:
                    formatter.write_text(line)


app = typer.Typer(
    name="search-r3",
    help="Reason about a query in text, then embed it. Commands that measure (evaluate to contamination), that use a "
    "model (embed to convert), and that make or check one (init to export).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich would read [default: ...] in a text as its markup, and drop it
    context_settings={"help_option_names": ["-h", "--help"]},
)


ModelOption = Annotated[
    str,
    typer.Option(
        "--model", help="nano, mini or smol (bundled), a folder, a LoRA folder, or a hub id.", show_default=True
    ),
]

ModelOrNanoOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="nano, mini or smol (bundled), a folder, a LoRA folder, or a hub id. [default: nano]",
        show_default=False,
    ),
]


BudgetOption = Annotated[
    int | None,
    typer.Option(
        "--max-reasoning-tokens",
        "--budget",
        help="Budget of a query's reasoning, in tokens. [default: 256]",
        min=0,
        show_default=False,
    ),
]


WriterBudgetOption = Annotated[
    int | None,
    typer.Option(
        "--max-reasoning-tokens",
        "--budget",
        help="Budget of a query's reasoning, or of each text of a writer, in tokens. [default: 256, for a writer 128]",
        min=0,
        show_default=False,
    ),
]


EngineOption = Annotated[
    str | None,
    typer.Option(
        "--engine", help="The engine that reasons: own, or vllm (docs/vllm.md). [default: own]", show_default=False
    ),
]


CacheFolderOption = Annotated[
    Path | None,
    typer.Option(
        help="The folder in which vectors and reasonings are kept. [default: OUTPUT/store]", show_default=False
    ),
]


ResultsOption = Annotated[Path, typer.Option(help="Folder of the results; an interrupted run resumes there.")]


IdenticalIdsOption = Annotated[
    bool,
    typer.Option(
        "--ignore-identical-ids",
        help="Leave out documents that have the query's id, in BEIR folders (ArguAna, Quora are scored so).",
    ),
]


JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")]


SplitOption = Annotated[
    str | None,
    typer.Option("--split", help="One split of each task. [default: the task's own]", show_default=False),
]


SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Any other setting of SearchR3Encoder: --set seed=1 --set dtype=bfloat16 --set device=cuda."
    ),
]
IdColumnOption = Annotated[
    str | None,
    typer.Option(
        "--id",
        help="Column of the ids: a name, or a number from 1; '' for none. [default: by its usual names]",
        show_default=False,
    ),
]
TextColumnOption = Annotated[
    str | None, typer.Option("--text", help="Column of the texts. [default: by its usual names]", show_default=False)
]
TitleColumnOption = Annotated[
    str | None,
    typer.Option(
        "--title", help="Column of the titles; '' for none. [default: by its usual names]", show_default=False
    ),
]
NoQuotesOption = Annotated[
    bool, typer.Option("--no-quotes", help="Quotation marks in .csv and .tsv are text like any other.")
]


ExpansionSetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Any other setting, NAME=VALUE: of a Search-R3 model (seed, dtype, device, max_length, temperature, "
        "anchor, batch_invariant, ...), of its search (abstain_margin), or of a writer and encoder (samples, weight, "
        "prompt, temperature, anchor, feedback_documents, ...). It goes to every model that has it.",
    ),
]


def _show_version(asked: bool) -> None:
    if asked:
        print(f"search-r3 {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
    quiet: Annotated[
        bool, typer.Option("-q", "--quiet", help="Print the result and errors only. May stand anywhere.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error. May stand anywhere.")] = False,
) -> None:
    """Options of every command."""
