"""Which columns of an input hold ids, titles and texts: named by the caller, or known by usual names and said aloud."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

logger = logging.getLogger("search_r3_mteb.files")
Kind: TypeAlias = Literal["document", "query"]
# Names in the wild, in lower case and letters only; of each list the first group that a table has counts. Our choice.
_IDS = (
    ("id",),
    ("docid", "documentid", "did", "pid", "passageid", "corpusid", "docno", "uid", "uuid", "identifier", "key"),
)
_QUERY_IDS = (("id",), ("qid", "queryid", "questionid", "topicid", "number", "uid", "uuid", "identifier", "key"))
_TITLES = (("title", "titles"), ("heading", "headline"))
_TEXTS = (
    ("text", "texts"),
    ("body", "content", "contents", "passage", "passages", "document", "documents", "doc", "docs"),
    ("abstract", "sentence", "sentences", "paragraph", "description", "article"),
)
_QUERY_TEXTS = (("query", "queries", "question", "questions"), *_TEXTS, ("topic", "title"))
_SHOWN = 12  # names in a message


class ColumnError(ValueError):
    """A column that is not known by its name; `what` is the message without the option that would name it."""

    def __init__(self, what: str, option: str, name: str | None = None, remedy: str = "") -> None:
        named = f"Name one: --{option} {name}." if name else f"Name it: --{option} NAME."
        super().__init__(f"{what} {remedy or named}")
        self.what, self.option, self.name = what, option, name


@dataclass(frozen=True)
class Columns:
    """The columns of ids, texts and titles: a name, or a number from 1; None: the one with a usual name, said aloud.

    An empty string for `id` or `title` means none: rows are then known by their numbers, and have no title. `quotes`
    says whether a cell in quotation marks of a .csv or .tsv is quoted, as spreadsheets write it; without, they are
    text like any other (MS MARCO's collection.tsv).
    """

    id: str | None = None
    text: str | None = None
    title: str | None = None
    quotes: bool = True


class ColumnNames(NamedTuple):
    """The names of the columns that were chosen; None where there is none."""

    id: str | None
    title: str | None
    text: str

    def said(self, names: Sequence[str]) -> str:
        """What was chosen, as a sentence's end."""
        title = "no title" if self.title is None else f"the title in {self.title!r}"
        id_ = "no id: rows are known by their numbers" if self.id is None else f"the id in {self.id!r}"
        others = [name for name in names if name not in self]
        left = f" (not read: {shown(others)})" if others else ""
        return f"the text is in {self.text!r}, {title}, {id_}{left}"


def choose(names: Sequence[str], columns: Columns, kind: Kind, place: str) -> ColumnNames:
    """The columns of `names` that hold id, title and text. Raises ValueError for one that is not there, or is not
    known by its name, or of which there are two.
    """
    queries = kind == "query"
    if queries and columns.title:
        raise ValueError(f"{place}: queries have no title, so --title {columns.title} has no meaning here.")
    text = _one(names, names, columns.text, _QUERY_TEXTS if queries else _TEXTS, "text", place)
    if text is None:
        remedy = "" if queries else "Name it: --text NAME (and --id NAME, --title NAME where there are such)."
        what = f"{place}: none of the columns {shown(names)} is known to hold the text of a {kind}."
        raise ColumnError(what, "text", remedy=remedy)
    rest = [name for name in names if name != text]
    title = None if queries else _one(names, rest, columns.title, _TITLES, "title", place)
    rest = [name for name in rest if name != title]
    id_ = _one(names, rest, columns.id, _QUERY_IDS if queries else _IDS, "id", place)
    return ColumnNames(id_, title, text)


def usual(name: str) -> bool:
    """Whether a column's name is one of those that are known."""
    plain = _plain(name)
    return any(plain in group for groups in (_IDS, _QUERY_IDS, _TITLES, _TEXTS, _QUERY_TEXTS) for group in groups)


def known(names: Sequence[str], columns: Columns, kind: Kind) -> bool:
    """Whether a table of these columns can be read without a question."""
    try:
        choose(names, columns, kind, "")
    except ValueError:
        return False
    return True


def shown(names: Sequence[str]) -> str:
    """Names for a message."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (", ".join(f"{name!r:.60}" for name in names[:_SHOWN]) or "(none)") + more


def _one(
    names: Sequence[str],
    free: Sequence[str],
    wanted: str | None,
    groups: Sequence[Sequence[str]],
    option: str,
    place: str,
) -> str | None:
    """The column that is wanted of all, or one of the free ones by its usual name; None for none."""
    if wanted is not None:
        return _named(names, free, wanted, option, place)
    for group in groups:
        found = [name for name in free if _plain(name) in group]
        if len({_plain(name) for name in found}) == 1:  # "_id" beside "Id", "text" beside "Text"
            exact = [name for name in (f"_{_plain(found[0])}", _plain(found[0])) if found.count(name) == 1]
            found = exact[:1] or found
        if len(found) > 1:
            raise ColumnError(f"{place}: {shown(found)} may each hold the {option}.", option, found[0])
        if found:
            return found[0]
    return None


def _named(names: Sequence[str], free: Sequence[str], wanted: str, option: str, place: str) -> str | None:
    if not wanted:
        if option == "text":
            raise ValueError(f"{place}: --text names no column. Name that of the texts, of {shown(names)}.")
        return None
    if wanted in names:
        found = wanted
    elif wanted.isdecimal() and 1 <= int(wanted) <= len(names):
        found = names[int(wanted) - 1]
    else:
        counted = " Columns are counted from 1." if wanted.isdecimal() else ""
        raise ValueError(f"{place}: there is no column {wanted!r} (--{option}); there are {shown(names)}.{counted}")
    if (count := list(names).count(found)) > 1:
        raise ValueError(f"{place}: there are {count} columns {found!r}. Rename one of them.")
    if found not in free:
        raise ValueError(
            f"{place}: --{option} {wanted} is the column {found!r}, which is read as another part already."
        )
    return found


def _plain(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())
