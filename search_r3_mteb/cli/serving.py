"""The command serve."""

from pathlib import Path
from typing import Annotated

import typer

from search_r3_mteb.cli.options import BudgetOption, SetOption, app
from search_r3_mteb.cli.shared import choice, console_here, long_work, model_or_nano, settings_of
from search_r3_mteb.extras import how_to_install

_MISSING = "search-r3 serve needs {missing}, which is not installed: " + how_to_install("serve")


@app.command()
def serve(  # noqa: PLR0913  an option is a parameter
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="nano, mini or smol (bundled), a folder, a LoRA folder, or a hub id. [default: that of the first "
            "--index; without one: nano]",
            show_default=False,
        ),
    ] = None,
    index: Annotated[
        list[Path] | None,
        typer.Option(
            "--index", help="A folder that `search-r3 index` has written. May be repeated.", show_default=False
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="The address to serve at; 0.0.0.0 for every one of this machine.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="The port; 0 takes a free one.", min=0, max=65535)] = 8000,
    name: Annotated[
        str | None,
        typer.Option(help="What requests call the model. [default: the last part of --model]", show_default=False),
    ] = None,
    mode: Annotated[str, typer.Option(help="reason or direct: how queries are embedded.")] = "reason",
    require_role: Annotated[
        bool,
        typer.Option("--require-role", help="Refuse requests that do not say query or document. [default: documents]"),
    ] = False,
    max_queue: Annotated[
        int, typer.Option(help="Texts that may wait or be computed; further requests get status 429.", min=1)
    ] = 4096,
    max_inputs: Annotated[
        int | None,
        typer.Option(help="Texts of one request. [default: 2048, or all of the queue]", min=1, show_default=False),
    ] = None,
    max_megabytes: Annotated[int, typer.Option(help="MiB of one request.", min=1)] = 16,
    timeout: Annotated[float, typer.Option(help="Seconds after which a request is given up with status 504.")] = 300.0,
    grace: Annotated[
        float, typer.Option(help="Seconds that running requests have left when the server is stopped.")
    ] = 30.0,
    max_reasoning_tokens: BudgetOption = None,
    setting: SetOption = None,
) -> None:
    """Serve embeddings and search over HTTP.

    OpenAI-compatible embeddings, search over indexes, and a page. The key is in the variable SEARCH_R3_API_KEY.
    """
    try:
        from search_r3_mteb.serving.server import serve as run
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("fastapi", "uvicorn", "prometheus_client", "pydantic"):
            raise ModuleNotFoundError(_MISSING.format(missing=error.name), name=error.name) from error
        raise
    from search_r3_mteb.serving.settings import ServeSettings

    given = settings_of(setting, max_reasoning_tokens=max_reasoning_tokens)
    given["mode"] = choice("--mode", mode, ("reason", "direct"))
    limits = ServeSettings(
        max_queue,
        min(2048, max_queue) if max_inputs is None else max_inputs,
        max_megabytes << 20,
        timeout,
        grace,
        require_role,
    )
    console = console_here()
    with long_work():
        run(
            model if index else model_or_nano(model),
            index or [],
            host=host,
            port=port,
            name=name,
            settings=limits,
            encoder_settings=given,
            say=lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True),
        )
