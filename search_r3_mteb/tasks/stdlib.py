"""A code-search task over the Python standard library, read from the installed sources.

A query is the first sentence of a function's docstring without the function's own name; its document is that function's
signature and body without the docstring. Nothing is imported or run: the sources are parsed. Both texts depend on the
Python version (and on a distributor's patches), so the version and a hash of the content are the task's revision.

Our choices: functions and methods count, functions inside functions do not (their text is part of the outer document);
a function with no body but its docstring is left out; of documents with the same text the first stays. A sentence that
several functions share, or with fewer than four words of two letters, is not a query, but its functions stay in the
corpus.

The collection as an MTEB task is `mteb_tasks.StdlibTask`.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import platform
import re
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from search_r3_mteb.tasks import beir_folder

# Tests repeat the library's names and texts; idlelib and lib2to3 are programs and left Python during 3.11 to 3.14.
_DROPPED = frozenset(
    {"test", "tests", "idle_test", "idlelib", "lib2to3", "__pycache__", "site-packages", "dist-packages", "_bundled"}
)
_MIN_WORDS = 4
_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Collection:
    """The collected task: `documents` id -> text, `queries` id -> text, `relevant` query id -> document id."""

    documents: dict[str, str]
    queries: dict[str, str]
    relevant: dict[str, str]
    python: str  # "3.11.7"

    @property
    def revision(self) -> str:
        """Python version and content hash, such as "python3.11.7-0123456789abcdef"."""
        digest = hashlib.sha256()
        for id_, text in [*self.documents.items(), *self.queries.items()]:
            digest.update(f"{id_}\0{text}\0".encode())
        return f"python{self.python}-{digest.hexdigest()[:16]}"


class _Found(NamedTuple):
    id: str
    sentence: str | None
    text: str


@cache
def collect(root: Path | None = None) -> Collection:
    """All documented functions below `root` (default: the running interpreter's library), read once per process.

    Raises FileNotFoundError where there are no sources (a zipped or compiled library) and ValueError, naming the file,
    for one that does not parse.
    """
    root = Path(sysconfig.get_path("stdlib")) if root is None else root
    found: dict[str, _Found] = {}  # by document text: the first of equal documents stays
    for file in _sources(root):
        for function in _functions(file, file.relative_to(root).as_posix()):
            found.setdefault(function.text, function)
    shared = Counter(function.sentence for function in found.values())
    documents = {function.id: function.text for function in found.values()}
    queries, relevant = {}, {}
    for function in found.values():
        if function.sentence is not None and shared[function.sentence] == 1:
            queries[f"q:{function.id}"] = function.sentence
            relevant[f"q:{function.id}"] = function.id
    return Collection(documents, queries, relevant, platform.python_version())


def write_beir(folder: str | Path) -> None:
    """Write the task as a BEIR folder: corpus.jsonl, queries.jsonl, qrels/test.tsv."""
    collection = collect()
    beir_folder.write_beir(
        folder,
        corpus=((id_, "", text) for id_, text in collection.documents.items()),
        queries=collection.queries.items(),
        qrels={"test": ((query_id, id_, 1) for query_id, id_ in collection.relevant.items())},
    )


def first_sentence(docstring: str, name: str) -> str | None:
    """A docstring's first sentence on one line, without `name`; None where too few words are left.

    >>> first_sentence("Sort the `lines` of a file. Blank ones come last.", "lines")
    'Sort the of a file.'
    >>> first_sentence("splitext(p) -> pair", "splitext") is None
    True
    """
    name = re.escape(name)
    text = inspect.cleandoc(docstring)
    # Old docstrings open with the signature ("splitext(p) -> pair"), which is not a sentence.
    text = re.sub(rf"\A(?:\w+\.)*{name}\s*\([^)]*\)\s*(?:->[^\n]*|=[^\n]*|:|--|\n|\Z)", "", text, count=1)
    paragraph = re.split(r"\n\s*\n", text.strip(), maxsplit=1)[0]
    line = re.split(r"(?<=[.!?])\s+(?=[A-Z(])", " ".join(paragraph.split()), maxsplit=1)[0]
    line = re.sub(rf"(?<!\w)([\"'`*]*){name}(?:\(\))?\1(?!\w)", " ", line, flags=re.IGNORECASE)
    line = re.sub(r"\s+([.,;:!?])(?=\s|\Z)", r"\1", " ".join(line.split())).lstrip(".,;:!?-= ")
    return line if len(re.findall(r"[^\W\d_]{2,}", line)) >= _MIN_WORDS else None


def _sources(root: Path) -> list[Path]:
    files = [file for file in root.rglob("*.py") if _DROPPED.isdisjoint(file.relative_to(root).parts)]
    if not files:
        raise FileNotFoundError(
            f"stdlib task: no Python sources below {str(root)!r}: this interpreter's library is zipped or compiled. "
            "Use an interpreter with sources."
        )
    return sorted(files, key=lambda file: file.relative_to(root).as_posix())


def _functions(file: Path, name: str) -> Iterator[_Found]:
    """The documented functions of one file, in source order; `name` is its path below the root."""
    try:
        source = importlib.util.decode_source(file.read_bytes())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # old escapes in the library's own strings
            warnings.simplefilter("ignore", DeprecationWarning)
            tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise ValueError(
            f"stdlib task: {file} does not parse ({error}); is it part of the standard library?"
        ) from error
    lines = source.encode("utf-8").splitlines(keepends=True)  # ast counts columns in UTF-8 bytes
    seen: Counter[str] = Counter()
    for qualified_name, node in _walk(tree, ""):
        docstring = ast.get_docstring(node, clean=False)
        text = None if docstring is None else _document(lines, node)
        if docstring is None or text is None:
            continue
        seen[qualified_name] += 1
        # The same name defined twice (a property and its setter, two branches of an if) gets a number.
        suffix = f"#{seen[qualified_name]}" if seen[qualified_name] > 1 else ""
        yield _Found(f"{name}:{qualified_name}{suffix}", first_sentence(docstring, node.name), text)


def _walk(node: ast.AST, prefix: str) -> Iterator[tuple[str, _Function]]:
    """Functions and methods with their qualified names, without those inside functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _Function):
            yield prefix + child.name, child
        elif isinstance(child, ast.ClassDef):
            yield from _walk(child, f"{prefix}{child.name}.")
        else:
            yield from _walk(child, prefix)


def _document(lines: list[bytes], node: _Function) -> str | None:
    """Signature and body, dedented, without the docstring; None if the docstring is all there is.

    The source is cut by lines and byte columns, so comments and layout survive (ast.unparse would lose them).
    """
    docstring = node.body[0]
    if len(node.body) == 1 or docstring.end_lineno is None or docstring.end_col_offset is None:
        return None
    head = lines[node.lineno - 1 : docstring.lineno]
    tail = lines[docstring.end_lineno - 1 : node.end_lineno]
    head[-1] = head[-1][: docstring.col_offset]
    tail[0] = tail[0][docstring.end_col_offset :].lstrip(b" \t;")
    if head[-1].strip() and tail[0].strip():  # def f(): "docstring"; return 1
        tail[:1] = [head.pop() + tail[0]]
    while head and not head[-1].strip():
        head.pop()
    while not tail[0].strip():
        tail.pop(0)
    indent = b" " * node.col_offset
    return b"".join(line.removeprefix(indent) for line in [*head, *tail]).decode("utf-8").rstrip() + "\n"
