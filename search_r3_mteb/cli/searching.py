"""Commands of an index: index, search."""

import shlex
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from search_r3_mteb.cli.options import (
    BudgetOption,
    IdColumnOption,
    NoQuotesOption,
    SetOption,
    TextColumnOption,
    TitleColumnOption,
    app,
)
from search_r3_mteb.cli.shared import (
    arguments_given,
    choice,
    console_here,
    counted,
    long_work,
    model_or_nano,
    print_json,
    said,
    settings_of,
)
from search_r3_mteb.terminal import beginning

if TYPE_CHECKING:
    from search_r3_mteb.indexing.index import SearchIndex
    from search_r3_mteb.indexing.results import SearchResult
    from search_r3_mteb.tasks.beir_folder import Query

_AT_ONCE = 512  # questions that are encoded together


@app.command()
def index(  # noqa: PLR0913  an option is a parameter
    corpus: Annotated[
        str,
        typer.Argument(
            metavar="CORPUS|FOLDER",
            help="To build: a BEIR folder, .csv, .tsv, .parquet, .jsonl, .json, or one text per line; .gz too; - is "
            "standard input. To change or to look at: the index.",
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="nano, mini or smol (bundled), a folder, a LoRA folder, or a hub id. [default: nano; of an index: "
            "its own]",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="The folder of a new index; a build that was stopped goes on there.")
    ] = None,
    kind: Annotated[
        str, typer.Option(help="flat (exact), ivf or hnsw; auto: flat, from 500,000 documents on ivf.")
    ] = "auto",
    add: Annotated[str | None, typer.Option(help="Documents to add to the index; files as for CORPUS.")] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="With --add: documents whose id is there take that one's place.")
    ] = False,
    remove: Annotated[list[str] | None, typer.Option(help="An id to remove. May be repeated.")] = None,
    remove_file: Annotated[
        str | None, typer.Option(help="A file of ids to remove, one per line; - is standard input.")
    ] = None,
    missing_ok: Annotated[
        bool, typer.Option("--missing-ok", help="With --remove: ids that are not there are ignored.")
    ] = False,
    compact: Annotated[
        bool, typer.Option("--compact", help="Rewrite the index without what was removed, as one part.")
    ] = False,
    id: IdColumnOption = None,
    text: TextColumnOption = None,
    title: TitleColumnOption = None,
    no_quotes: NoQuotesOption = False,
    setting: SetOption = None,
) -> None:
    """Build an index of documents, or change one.

    Documents are added and removed without a rebuild; without either, what is in it is said.
    """
    from search_r3_mteb.files import Columns
    from search_r3_mteb.indexing.settings import IndexSettings

    changes = {"--add": add, "--remove": remove, "--remove-file": remove_file, "--compact": compact}
    asked = [name for name, value in changes.items() if value]
    if replace and add is None:
        raise ValueError("--replace is about documents that are added: give --add FILE with it.")
    if missing_ok and not (remove or remove_file):
        raise ValueError("--missing-ok is about ids to remove: give --remove or --remove-file with it.")
    columns, console = Columns(id, text, title, not no_quotes), console_here()
    settings = settings_of(setting, IndexSettings)
    if output is not None:
        if asked:
            raise ValueError(f"--output builds a new index, {asked[0]} changes one that is there. Give one of them.")
        how = {each.name: settings.pop(each.name) for each in fields(IndexSettings) if each.name in settings}
        if kind != "auto":
            how["kind"] = kind
        with long_work():
            built = _build(corpus, columns, model_or_nano(model), output, settings, how)
        said(console, f"Written to {output}:")
        console.print(*_described(built), sep="\n", soft_wrap=True)
        said(console, f"Search it: search-r3 search {output} 'QUESTION'")
        return
    if kind != "auto" or set(settings) & {each.name for each in fields(IndexSettings)}:
        raise ValueError(
            "How an index is searched is chosen when it is built: with --output. To change it, build another one."
        )
    if len(asked) > 1:
        raise ValueError(f"{' and '.join(asked)} are separate changes. Make one after the other.")
    with long_work():
        found = _open(corpus, model, settings, bool(asked))
        if add is not None:
            written, replaced = found.written(_read(add, columns), replace=replace)
            console.print(f"{_documents(written - replaced)} added{f', {replaced:,} replaced' if replace else ''}.")
        elif remove or remove_file:
            ids = list(remove or ()) or _lines(str(remove_file))
            console.print(f"{_documents(found.remove(ids, missing_ok=missing_ok))} removed.")
        elif compact:
            found.compact()
    console.print(*_described(found), sep="\n", soft_wrap=True)


@app.command()
def search(  # noqa: PLR0913  an option is a parameter
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="An index, as `search-r3 index` writes it.")],
    questions: Annotated[
        list[str] | None,
        typer.Argument(metavar="[QUESTION]...", help="Questions, in quotes; - reads one per line of standard input."),
    ] = None,
    file: Annotated[
        str | None, typer.Option(help="A file of questions: .jsonl, .csv, .tsv, .parquet, or one per line.")
    ] = None,
    mode: Annotated[str, typer.Option(help="reason, or direct: embedded as documents are.")] = "reason",
    k: Annotated[int, typer.Option(help="Documents per question.", min=1)] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per question and line.")] = False,
    model: Annotated[
        str | None, typer.Option("--model", help="Where the model is now. [default: as built]", show_default=False)
    ] = None,
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Compare sizes of the index's files, and read no checksums.")
    ] = False,
    max_reasoning_tokens: BudgetOption = None,
    setting: SetOption = None,
) -> None:
    """Search an index with questions, which reason first.

    The reasoning is shown, then the documents, best first.
    """
    from search_r3_mteb.indexing.index import SearchIndex

    chosen = choice("--mode", mode, ("reason", "direct"))
    settings = settings_of(setting, max_reasoning_tokens=max_reasoning_tokens)
    opened = SearchIndex.open(folder, model, verify=not no_verify, **settings)
    for some in _asked(questions or [], file):
        found = opened.search([text for _, text in some], chosen, k)
        for (id_, _), result in zip(some, found, strict=True):
            if as_json:
                print_json({"id": id_, **_as_json(result)})
            else:
                _show(result)


def _build(
    corpus: str, columns: Any, model: str, output: Path, settings: dict[str, Any], how: dict[str, Any]
) -> "SearchIndex":
    from search_r3_mteb.encoder.encoder import SearchR3Encoder
    from search_r3_mteb.indexing.index import SearchIndex
    from search_r3_mteb.indexing.settings import IndexSettings
    from search_r3_mteb.indexing.writing import check_new, check_place

    IndexSettings.from_keywords(how)
    check_new(output)
    check_place(output)
    documents = _read(corpus, columns)
    encoder = SearchR3Encoder(model, **({"mode": "direct"} | settings))
    return SearchIndex.build(documents, encoder, output, model=model, **how)


def _read(corpus: str, columns: Any) -> Iterator[Any]:
    """Documents, of which the first ones are read now: what is wrong with them is said before the model is loaded."""
    from itertools import chain, islice

    from search_r3_mteb.files import iter_documents
    from search_r3_mteb.indexing.writing import EMBEDDED_AT_ONCE

    documents = iter_documents(corpus, columns)
    return chain(list(islice(documents, EMBEDDED_AT_ONCE)), documents)


def _open(corpus: str, model: str | None, settings: dict[str, Any], changed: bool) -> "SearchIndex":
    """The index to change or to look at."""
    from search_r3_mteb.indexing.index import SearchIndex
    from search_r3_mteb.indexing.state import is_index

    if not is_index(Path(corpus)) and not changed and Path(corpus).exists():
        raise ValueError(
            f"{corpus} is not an index. To build one from it, say where: "
            f"{shlex.join(['search-r3', *arguments_given()])} --output FOLDER"
        )
    return SearchIndex.open(corpus, model, verify=False, **settings)


def _documents(number: int) -> str:
    return counted(number, "document", "documents")


def _described(found: "SearchIndex") -> list[str]:
    """What an index holds, one line per fact."""
    rows = [f"{'documents':>12}  {len(found):,}", f"{'model':>12}  {escape(str(found.model['name']))}"]
    for part in found.parts():
        removed = f", {part['removed']:,} of them removed" if part["removed"] else ""
        rows.append(f"{part['kind']:>12}  {_documents(part['rows'])} in {part['name']}{removed}")
    return rows


def _asked(questions: list[str], file: str | None) -> Iterator[list[tuple[str, str]]]:
    """(id, question), some at a time."""
    from itertools import islice

    if bool(questions) == (file is not None):
        raise ValueError("Give questions (or - for standard input), or --file FILE of them: one of the two.")
    if "-" in questions[1:] or (len(questions) > 1 and questions[0] == "-"):
        raise ValueError("- reads questions from standard input, so no others can stand beside it.")
    if any(not question.strip() for question in questions):
        raise ValueError("A question is empty: any document would be as near to it as another. Ask something.")
    if questions and questions != ["-"]:
        stream: Iterator[tuple[str, str]] = ((str(number), text) for number, text in enumerate(questions, start=1))
    else:
        stream = ((query.id, query.text) for query in _queries(file if file is not None else "-"))
    while some := list(islice(stream, _AT_ONCE)):
        yield some


def _queries(source: str) -> "Iterator[Query]":
    """Questions of a file. Raises ValueError, without options that `search` does not have."""
    from search_r3_mteb.files import iter_queries
    from search_r3_mteb.files.columns import ColumnError

    try:
        yield from iter_queries(source)
    except ColumnError as error:
        usual = {"text": "question", "id": "id"}[error.option]
        raise ValueError(f"{error.what} Call the right one {usual!r}.") from error


def _lines(source: str) -> list[str]:
    """The ids of a file, one per line, as they stand there; blank lines are not ids."""
    from search_r3_mteb.file_kinds import split_lines
    from search_r3_mteb.files.opening import content

    return [line for line in split_lines(content(source)) if line.strip()]


def _as_json(result: "SearchResult") -> dict[str, Any]:
    thought = result.thought
    return {
        "query": result.query,
        "reasoning": None if thought is None else thought.text,
        "finished": None if thought is None else thought.finished,
        "reasoning_tokens": None if thought is None else len(thought.token_ids),
        "hits": [{"id": hit.id, "score": hit.score, "title": hit.title, "text": hit.text} for hit in result.hits],
    }


def _show(result: "SearchResult") -> None:
    console, thought = console_here(), result.thought
    console.print(f"[bold]{escape(beginning(result.query))}[/bold]")
    if thought is not None:
        end = "" if thought.finished else ", token forced: the budget was spent or the model ended its turn"
        console.print(f"[dim]reasoning ({len(thought.token_ids)} tokens{end}):[/dim] {escape(thought.text.strip())}")
    for rank, hit in enumerate(result.hits, start=1):
        id_, title, text = (escape(beginning(each)) for each in (hit.id, hit.title, " ".join(hit.text.split())))
        console.print(f"{rank:>3}  [dim]{hit.score:z.3f}[/dim] {id_}  [bold]{title}[/bold]")
        console.print(f"     {text}")
    if not result.hits:
        console.print("     The index holds no documents.")
