"""The command that changes the format of files: convert."""

from pathlib import Path
from typing import Annotated

import typer

from search_r3_mteb.cli.options import IdColumnOption, NoQuotesOption, TextColumnOption, TitleColumnOption, app
from search_r3_mteb.cli.shared import console_here, counted, long_work, said


@app.command()
def convert(  # noqa: PLR0913  an option is a parameter
    input: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="Documents: .csv, .tsv, .parquet, .jsonl, .json, one text per line; .gz too; - is standard input. Or "
            "a folder of corpus, queries and qrels in such formats.",
        ),
    ],
    output: Annotated[Path, typer.Option(help="The BEIR folder to write.")],
    queries: Annotated[str | None, typer.Option(help="A file of queries.", show_default=False)] = None,
    judgements: Annotated[
        str | None,
        typer.Option(help="A table of query-id, corpus-id and score: which document is relevant.", show_default=False),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="The split of these judgements. [default: test]", show_default=False)
    ] = None,
    id: IdColumnOption = None,
    text: TextColumnOption = None,
    title: TitleColumnOption = None,
    query_id: Annotated[
        str | None, typer.Option(help="Column of the queries' ids. [default: by its usual names]", show_default=False)
    ] = None,
    query_text: Annotated[
        str | None, typer.Option(help="Column of the queries' texts. [default: by its usual names]", show_default=False)
    ] = None,
    no_quotes: NoQuotesOption = False,
) -> None:
    """Write files of any kind as a BEIR folder.

    Documents, and queries with judgements where there are such.
    """
    from search_r3_mteb.files import Columns
    from search_r3_mteb.files.convert import convert as write

    with long_work():
        done = write(
            input,
            output,
            columns=Columns(id, text, title, not no_quotes),
            queries=queries,
            query_columns=Columns(query_id, query_text, None, not no_quotes),
            judgements=judgements,
            split=split,
        )
    console = console_here()
    documents = counted(done.documents, "document", "documents")
    said(console, f"Written to {output}: {documents}, {counted(done.queries, 'query', 'queries')}")
    for name, count in done.judgements.items():
        said(console, f"  {counted(count, 'judgement', 'judgements')} of split {name}")
    if done.queries and not done.judgements:
        said(console, "Without judgements only explain, index and search work with it. For evaluate: --judgements FILE")
    if done.judgements:
        said(console, f"Try it: search-r3 evaluate --model mini --task {output}")
