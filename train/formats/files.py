"""Files of other formats than JSON lines: MS MARCO's triples of texts are read, the others are refused by name.

Source: MS MARCO's page of the passage ranking task. triples.train.small.tsv and its kind hold query, positive and
negative, separated by tabs and without a header; the other files hold ids, or texts of one kind. A line that names
these columns in this order is passed over wherever it stands (files that were put together have several).
"""

from pathlib import Path

from search_r3_mteb.column_roles import role_of
from train.formats.records import MS_MARCO, FormatError

MADE_BY = "The sets that the shipped configurations name are made by `python -m train.prepare NAME` (--list)."
_TABLES = (".tsv", ".txt")
_REFUSED = {
    ".parquet": 'set kind = "hub" and path to its folder, which datasets reads',
    ".arrow": 'set kind = "hub" and path to its folder, which datasets reads',
    ".csv": 'write one JSON object per line, or set kind = "hub" and path to its folder, which datasets reads',
    ".zip": "unpack it",
    ".tar": "unpack it",
    ".tgz": "unpack it",
    ".bz2": "unpack it",
    ".zst": "unpack it",
    ".xz": "unpack it",
}


def is_table(path: Path, first: bytes) -> bool:
    """Whether the lines of a file are text triples in columns; False for JSON lines. `first` is its first line.

    Raises ValueError for a file that cannot be a source of rows.
    """
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    start = first.removeprefix(b"\xef\xbb\xbf").lstrip()
    if suffix in _REFUSED:
        raise ValueError(f"{path}: files {suffix} are not read as rows; {_REFUSED[suffix]}.")
    if start.startswith(b"["):
        raise ValueError(f"{path}: a JSON array. Write one object per line: `jq -c '.[]' {path.name} > rows.jsonl`.")
    if suffix not in _TABLES or start.startswith(b"{"):
        return False
    _check_triples(path, first.decode("utf-8-sig", "replace").rstrip("\r\n").split("\t"))
    return True


def triple(raw: bytes) -> dict[str, str] | None:
    """The row of one line of a file of text triples, None for a blank line or a header. Raises FormatError."""
    try:
        columns = raw.decode("utf-8-sig").rstrip("\r\n").split("\t")
    except UnicodeDecodeError as error:
        raise FormatError(f"not UTF-8 ({error.reason} at byte {error.start})") from error
    if columns == [""]:
        return None
    if len(columns) != 3:
        raise FormatError(
            f"query, positive and negative are three columns separated by tabs, this line has {len(columns)}"
        )
    if _is_header(columns):
        return None
    return dict(zip(("query", "positive", "negative"), columns, strict=True))


def refuse_folder(path: Path) -> None:
    """Refuse a missing folder, and MS MARCO's own, where a BEIR folder is wanted."""
    if not path.is_dir():
        raise FileNotFoundError(
            f"BEIR folder {str(path)!r} does not exist or is not a folder; it holds corpus.jsonl, queries.jsonl and "
            f"qrels/. {MADE_BY}"
        )
    names = [name for name in ("collection.tsv", "collection.tsv.gz", "collection.tar.gz") if (path / name).exists()]
    if names and not (path / "qrels").is_dir():
        raise ValueError(f"{path} holds {names[0]}: this is MS MARCO's own layout, not a BEIR folder. {MS_MARCO}.")


def _is_header(columns: list[str]) -> bool:
    """Whether three columns are names in the order that is read. Raises FormatError for names in another one."""
    names = [value.strip().lower() for value in columns]
    roles = [role_of(name) for name in names]
    if roles == ["query", "positive", "negative"]:
        return True
    if any(roles) and all(name.replace("-", "_").isidentifier() for name in names):
        raise FormatError(
            f"the line {', '.join(map(repr, names))} names columns, which are read in the order query, positive, "
            "negative. Put the columns in this order and remove the line, or write one JSON object per line"
        )
    return False


def _check_triples(path: Path, columns: list[str]) -> None:
    numbers = [value.strip().isdecimal() for value in columns]
    if len(columns) == 3 and all(numbers):
        what = "MS MARCO's triples of ids (qidpidtriples), without the texts"
    elif len(columns) == 3 and {"query-id", "corpus-id", "score"} & set(columns):
        what = "the judgements of a BEIR folder, without its texts"
    elif len(columns) == 3:
        try:
            _is_header(columns)
        except FormatError as error:
            raise ValueError(f"{path}: {error}.") from None
        return
    elif len(columns) == 2 and numbers[0]:
        what = "one text per line with its id, as in MS MARCO's collection.tsv and queries.tsv: texts, but no pairs"
    elif len(columns) == 4 and numbers[1] and numbers[3]:
        what = "judgements (qrels), without the texts"
    elif len(columns) == 4 and numbers[0] and numbers[1]:
        what = "MS MARCO's top 1000 per query: candidates, which nobody has judged"
    else:
        raise ValueError(
            f"{path}: expected MS MARCO's triples (query, positive and negative, separated by tabs) or one JSON object "
            f"per line; the first line has {len(columns)} columns. Write one JSON object per line."
        )
    raise ValueError(f"{path}: {what}. {MS_MARCO}.")
