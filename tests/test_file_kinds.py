"""What a file of texts holds, by its content: what is something else is refused, and prose never is."""

import bz2
import csv
import gzip
import importlib
import io
import itertools
import json
import pkgutil
import random
import zipfile

import numpy as np
import pandas as pd
import pytest

from search_r3_mteb.file_kinds import check_lines
from search_r3_mteb.files import iter_documents

TEXTS = ["the nile, a river", "what is\ta tab", "ünïcode, naïve"]


def write(tmp_path, data, name="d.txt"):
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def read_texts(path):
    return [document.text for document in iter_documents(path)]


def refused(path, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_texts(path)
    assert str(path) in str(caught.value)


# ---- encodings and line ends ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", [True, False], ids=["ended", "open"])
def test_marked_encodings_and_all_line_ends_are_the_same_texts(tmp_path, encoding, end, last):
    text = end.join(TEXTS) + (end if last else "")
    assert read_texts(write(tmp_path, text.encode(encoding))) == TEXTS


@pytest.mark.parametrize("byte_order", ["utf-16-le", "utf-16-be"])
def test_utf16_without_a_mark_is_refused(tmp_path, byte_order):
    for texts in (TEXTS, ["中文 文本", "a"]):
        refused(
            write(tmp_path, "\n".join(texts).encode(byte_order)), "line 1, holds a NUL byte, .* UTF-16 without a mark"
        )


def test_utf16_that_is_cut_short_is_refused(tmp_path):
    refused(write(tmp_path, "\n".join(TEXTS).encode("utf-16")[:-1]), "is not utf-16 .truncated data.")


def test_other_encodings_are_refused(tmp_path):
    refused(write(tmp_path, "fine\nünï\n".encode("latin-1")), "line 2, is not UTF-8")
    refused(write(tmp_path, "fine\n日本\n".encode("iso2022_jp")), "line 2, is in ISO-2022")
    refused(write(tmp_path, b"fine\nte\0xt\n"), "line 2, holds a NUL byte, .* or no text at all")


def test_two_line_ends_in_one_file_are_refused(tmp_path):
    refused(write(tmp_path, "a\nb\rc\nd\n"), "line 2, holds a carriage return within it")
    refused(write(tmp_path, "a\r\r\nb\r\r\n"), "line 1, holds a carriage return within it")
    assert read_texts(write(tmp_path, "a\r\nb\nc\r\n")) == ["a", "b", "c"]


# ---- binary formats ------------------------------------------------------------------------------------------------


def archive():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("a", "b")
    return stream.getvalue()


def parquet():
    stream = io.BytesIO()
    pd.DataFrame({"text": TEXTS}).to_parquet(stream)
    return stream.getvalue()


def array():
    stream = io.BytesIO()
    np.save(stream, np.arange(9))
    return stream.getvalue()


BINARY = {
    "ZIP": archive,
    "Parquet": parquet,
    "NumPy": array,
    "PDF": lambda: b"%PDF-1.7\ntext",
    "packed twice": lambda: gzip.compress(gzip.compress(b"a")),
    "bzip2": lambda: bz2.compress(b"a"),
    "Arrow": lambda: b"ARROW1\0\0...",
    "SQLite": lambda: b"SQLite format 3\0...",
}


@pytest.mark.parametrize("kind", BINARY)
@pytest.mark.parametrize("name", ["d.txt", "d", "d.jsonl", "d.json"])
def test_binary_formats_are_named_whatever_the_file_is_called(tmp_path, kind, name):
    refused(write(tmp_path, BINARY[kind](), name), rf"is not a file of texts: it is .*{kind}")


def test_texts_that_begin_like_binary_formats_are_read(tmp_path):
    texts = ["PAR1 is a receptor", "PK of aspirin", "BZh", "PAR1"]
    assert read_texts(write(tmp_path, "\n".join(texts) + "\n")) == texts


# ---- JSON, markup, YAML --------------------------------------------------------------------------------------------

ROWS = [{"_id": "a", "text": "alpha"}, {"_id": "b", "text": "beta"}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps(ROWS), "is a JSON array"),
        ("\n" + json.dumps(ROWS, indent=1), "line 2, is a JSON array"),
        (json.dumps(ROWS[0], indent=2), "is a JSON object"),
        (json.dumps(ROWS, indent=2)[:-9], "is the beginning of JSON"),
        (json.dumps(ROWS)[:-9], "is the beginning of JSON"),
        ("\n".join(map(str, ROWS)), "is the beginning of JSON"),  # Python's own way to write them
        ("made by hand\n" + "\n".join(map(json.dumps, ROWS)), "line 2, is a JSON object, as most lines are"),
        ('["alpha", "beta"]\n["gamma", "delta"]', "is a JSON array"),
        ('["alpha",\n"beta"]', "is a JSON array"),
        ('[\n "alpha",\n "be', "is the beginning of JSON"),
        ('<?xml version="1.0"?>\n<a>alpha</a>', "begins a page in markup"),
        ("<!DOCTYPE html>\n<p>alpha", "begins a page in markup"),
        ("\n<HTML lang='en'>\nalpha\n</HTML>", "line 2, begins a page in markup"),
        ("<DOC>\n<DOCNO>1</DOCNO>\nalpha\n</DOC>", "begins a page in markup"),
        ("---\nname: alpha\nitems:\n- b\n", "begins YAML"),
        ("%YAML 1.2\n---\na: b\n", "begins YAML"),
        ("- id: 1\n  text: alpha\n", "begins YAML"),
        ('[[documents]]\ntext = "alpha"\n', "begins YAML, TOML or INI"),
        ("<!-- made by hand -->\n<!DOCTYPE html>\n<p>alpha</p>", "begins a page in markup"),
        ("WEBVTT\n\n00:01.000 --> 00:02.000\nalpha\n", "begins subtitles"),
        ("1\n00:00:01,000 --> 00:00:02,000\nalpha\n", "begins subtitles"),
    ],
)
def test_structure_is_refused(tmp_path, text, message):
    for name in ("d.txt", "d", "D.TEXT", "d.md"):
        refused(write(tmp_path, text, name), message)


@pytest.mark.parametrize("name", ["d.html", "d.HTM", "d.xml", "d.yaml", "d.yml", "d.xml.gz"])
def test_names_of_structure_are_refused(tmp_path, name):
    refused(write(tmp_path, "alpha\n", name), r"is not a file of texts \(\.\w+\)")


@pytest.mark.parametrize(
    "lines",
    [
        ["[1] a quotation", "b"],
        ["[sic] and so on", "{not json}", "<b>bold</b> text"],
        ["{", "  return 1;", "}"],
        ["{% for message in messages %}", "{{ message }}"],
        ["[[Link]] of a wiki", '"To be or not to be"'],
        ["<br>", "<hr>"],
        ["---", "a line"],
        ["---", "title: a page", "---", "# Markdown", "| a | b |", "- item"],  # lines like any others
        ['"Well," he said', '"no"'],
        ["3", "14"],
        ["- item: one", "- item: two"],
        ["<!-- a comment -->", "and a text"],
        ["written in JSON:", '{"a": 1}', "and empty:", "{}", "{}"],
    ],
)
def test_texts_with_signs_of_structure_are_texts(tmp_path, lines):
    assert read_texts(write(tmp_path, "\n".join(lines) + "\n")) == lines


# ---- tables --------------------------------------------------------------------------------------------------------

TABLE = [["q1", "what is the nile"], ["q2", "who, if anyone"], ["q3", 'a "quoted" word'], ["q4", "last"]]


def delimited(rows, delimiter, quoting=csv.QUOTE_MINIMAL):
    stream = io.StringIO()
    csv.writer(stream, delimiter=delimiter, quoting=quoting, lineterminator="\n").writerows(rows)
    return stream.getvalue()


@pytest.mark.parametrize("delimiter", ["\t", ",", ";", "|"])
@pytest.mark.parametrize(
    "rows",
    [
        TABLE,
        [["id", "text"], *TABLE],
        [["_id", "title", "text"], ["1", "", "alpha"]],
        [["Query", "Passage", "Label"], ["alpha, beta", "gamma delta", "yes"]],
        [[str(n), text] for n, (_, text) in enumerate(TABLE)],
        [[text, str(n % 2)] for n, (_, text) in enumerate(TABLE)],
        [["MARCO_D1", "http://a.b/c", "a title", "a body"]] + [[f"D{n}", "x", "y", "z z"] for n in range(9)],
    ],
    ids=["ids", "header", "one row", "pairs", "numbers", "labels", "wide"],
)
@pytest.mark.parametrize("name", ["d.txt", "d"])
def test_tables_are_refused(tmp_path, delimiter, rows, name):
    refused(write(tmp_path, delimited(rows, delimiter), name), "is a table in columns .separated by")
    refused(write(tmp_path, delimited(rows, delimiter, csv.QUOTE_ALL), name), "is a table in columns .separated by")


def test_a_table_whose_texts_hold_tabs_is_refused(tmp_path):
    rows = [[str(n), "some text"] for n in range(99)] + [["99", "with a\ttab"]]
    text = "\n".join("\t".join(row) for row in rows)
    refused(write(tmp_path, text), "separated by tabs")
    refused(write(tmp_path, f"# made by hand\n{text}"), "separated by tabs")


@pytest.mark.parametrize(
    "lines",
    [
        ["Paris, France", "Rome, Italy", "Oslo, Norway"],
        ["1,000 people", "2,000 people", "3,500 people"],
        ["1,2-dichloroethane", "1,3-butadiene", "2,4-D"],
        ["text, title and so on", "b"],
        ["Id, ego and superego", "Query, then answer"],
        ["•\tfirst point", "•\tsecond point"],
        ["1.\tIntroduction", "2.\tMethods", "10.\tResults"],
        ["Anna:\tHello", "Ben:\tHello, Anna"],
        ["\tan indented line", "\tanother, with a comma"],
        ["only\tone line"],
        ["x == 1; y == 2", "a; b; c"],
        ["p(a|b)", "q(b|c)"],
        ["yes,no", "up,down"],
    ],
)
def test_texts_with_commas_and_tabs_are_texts(tmp_path, lines):
    assert read_texts(write(tmp_path, "\n".join(lines) + "\n")) == lines


def prose():
    """More than 500 lines of real prose: the docstrings of the standard library, with some lines indented by tabs."""
    found = []
    for name in sorted(module.name for module in pkgutil.iter_modules() if module.name in _MODULES):
        found += [line for line in (importlib.import_module(name).__doc__ or "").split("\n") if line.strip()]
    draw = random.Random(0)
    return [f"\t{line.strip()}" if draw.random() < 0.2 else line for line in found]


_MODULES = frozenset(
    [
        "argparse",
        "base64",
        "bdb",
        "calendar",
        "collections",
        "csv",
        "datetime",
        "decimal",
        "difflib",
        "doctest",
        "ftplib",
        "heapq",
        "imaplib",
        "inspect",
        "locale",
        "mailbox",
        "optparse",
        "pdb",
        "pickle",
        "pickletools",
        "pprint",
        "queue",
        "random",
        "re",
        "sched",
        "shelve",
        "smtplib",
        "statistics",
        "string",
        "tarfile",
        "tempfile",
        "textwrap",
        "threading",
        "tokenize",
        "trace",
        "typing",
        "unittest",
        "warnings",
        "zipfile",
    ]
)


def test_no_window_of_prose_is_refused():
    lines = prose()
    assert len(lines) >= 500
    assert sum("," in line for line in lines) > 100
    assert sum("\t" in line for line in lines) > 50
    for size, start in itertools.product((1, 2, 3, 5, 20, 100), range(0, len(lines), 3)):
        check_lines(lines[start : start + size], "prose")
    check_lines(lines, "prose")
    with pytest.raises(ValueError, match="separated by tabs"):  # the same lines, numbered: a table
        check_lines([f"{n}\t{line.strip()}" for n, line in enumerate(lines)], "prose")
