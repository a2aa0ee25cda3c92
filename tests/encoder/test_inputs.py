"""What people hand in, at every entry point: rows with known texts, or an error that says what to write."""

import collections
import io
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from search_r3_mteb.encoder.checkpoints import Checkpoint
from search_r3_mteb.encoder.encoder import SearchR3Encoder
from search_r3_mteb.encoder.profiles import Profile
from tests.conftest import build_model

RECORDS = [{"_id": "a", "title": "x", "text": "one"}, {"_id": "b", "title": "", "text": "two"}]
TEXTS = ["one", "two"]
JOINED = ["x one", "two"]
Row = collections.namedtuple("Row", ["id", "text"])


def pandas_frame():
    import pandas

    return pandas.DataFrame(RECORDS, index=[5, 6])


def pandas_frame_with_missing_titles():
    import pandas

    return pandas.DataFrame({"title": ["x", None], "text": TEXTS})


def polars_frame():
    import polars

    return polars.DataFrame(RECORDS)


def arrow_table():
    import pyarrow

    return pyarrow.Table.from_pylist(RECORDS)


def dataset():
    from datasets import Dataset

    return Dataset.from_list(RECORDS)


def fields():
    return np.array([("x", "one"), ("", "two")], dtype=[("title", "U9"), ("text", "U9")])


def columns(kind=list):
    return {"text": kind(TEXTS), "title": kind(["x", ""])}


def pandas_series(values=TEXTS):
    import pandas

    return pandas.Series(values)


def polars_series():
    import polars

    return polars.Series(TEXTS)


def arrow_column():
    import pyarrow

    return pyarrow.array(TEXTS).to_pylist()


def sqlite_row():
    connection = sqlite3.connect(":memory:")
    connection.row_factory = sqlite3.Row
    return connection.execute("select 'one' as text, 'two' as title").fetchone()


def dataset_dict():
    from datasets import DatasetDict

    return DatasetDict(train=dataset())


def lazy_frame():
    import polars

    return polars.LazyFrame(RECORDS)


TABLE = "Name the column: list\\(table\\['text'\\]\\)"
BY_KEY = r"got a mapping with .* Write \[text, \.\.\.\], or list\(mapping\.values\(\)\)"
# kind of input: how to make it, what it means as documents (texts, or an error), what it means as queries
CASES = {
    "list": (lambda: list(TEXTS), TEXTS, TEXTS),
    "tuple": (lambda: tuple(TEXTS), TEXTS, TEXTS),
    "generator": (lambda: (text for text in TEXTS), TEXTS, TEXTS),
    "map": (lambda: map(str, TEXTS), TEXTS, TEXTS),
    "dictionary keys": (lambda: dict.fromkeys(TEXTS).keys(), TEXTS, TEXTS),
    "dictionary values": (lambda: dict(enumerate(TEXTS)).values(), TEXTS, TEXTS),
    "numpy array": (lambda: np.array(TEXTS), TEXTS, TEXTS),
    "numpy array of objects": (lambda: np.array(TEXTS, dtype=object), TEXTS, TEXTS),
    "pandas Series": (pandas_series, TEXTS, TEXTS),
    "polars Series": (polars_series, TEXTS, TEXTS),
    "pyarrow list": (arrow_column, TEXTS, TEXTS),
    "datasets column": (lambda: dataset()["text"], TEXTS, TEXTS),
    "empty list": (list, [], []),
    "pandas DataFrame": (pandas_frame, JOINED, "got pandas DataFrame with the columns _id, title, text. " + TABLE),
    "pandas DataFrame without some titles": (pandas_frame_with_missing_titles, JOINED, TABLE),
    "polars DataFrame": (polars_frame, JOINED, "got polars DataFrame with the columns _id, title, text. " + TABLE),
    "pyarrow Table": (arrow_table, JOINED, "got pyarrow Table with the columns"),
    "datasets Dataset": (dataset, JOINED, "got datasets Dataset with the columns"),
    "numpy array with fields": (fields, JOINED, "got numpy ndarray with the columns title, text. " + TABLE),
    "columns": (columns, JOINED, BY_KEY),
    "columns of arrays": (lambda: columns(np.array), JOINED, BY_KEY),
    "columns of series": (lambda: pandas_frame().to_dict("series"), JOINED, BY_KEY),
    "columns of tuples": (lambda: columns(tuple), JOINED, BY_KEY),
    "columns of a dataset": (lambda: dataset()[:], JOINED, BY_KEY),
    "records": (lambda: list(RECORDS), JOINED, "Text 0 is of type dict"),
    "records of a frame": (lambda: pandas_frame_with_missing_titles().to_dict("records"), JOINED, "Text 0 is of type"),
    "corpus by id": (lambda: {row["_id"]: row for row in RECORDS}, JOINED, BY_KEY),
    "texts by id": (
        lambda: {"a": "one", "b": "two"},
        "got a string under 'a': 'one'. Name the body of a single document 'text'; of texts by id write list",
        BY_KEY,
    ),
    "document without text": (lambda: {"title": "x", "body": "one"}, "got a string under 'title'", BY_KEY),
    "set": (lambda: set(TEXTS), "got set, which has no order", "got set, which has no order"),
    "frozenset": (lambda: frozenset(TEXTS), "which has no order", "which has no order"),
    "bytes": (lambda: b"one", r"got bytes b'one': bytes are not text. Write value\.decode", "bytes are not text"),
    "bytearray": (lambda: bytearray(b"one"), "bytes are not text", "bytes are not text"),
    "bytes in a list": (lambda: [b"one"], "Document 0 is of type bytes", "Text 0 is of type bytes"),
    "numpy bytes": (lambda: np.array([b"one"]), "Document 0 is of type", "Text 0 is of type"),
    "file": (lambda: io.StringIO("one\ntwo\n"), "an open file. Write", "an open file. Write"),
    "path": (lambda: Path("corpus.txt"), "got PosixPath: .* Write", r"Write \[text, \.\.\.\]"),
    "named tuple": (lambda: Row("a", "one"), "a named tuple is one row", "a named tuple is one row"),
    "row of a frame": (lambda: pandas_frame().iloc[0], "one row of a table", "one row of a table"),
    "row of a database": (sqlite_row, "whose values have names", "whose values have names"),
    "one record of an array": (lambda: fields()[0], r"got numpy void: .* Write", r"got numpy void: .* Write"),
    "0-d array": (lambda: np.array("one"), r"got numpy ndarray: array\('one'", r"got numpy ndarray"),
    "matrix": (lambda: np.array([TEXTS]), "Document 0 is of type ndarray", "Text 0 is of type ndarray"),
    "nested list": (lambda: [TEXTS], "Document 0 is of type list", "Text 0 is of type list"),
    "None": (lambda: None, "got NoneType: None", "got NoneType: None"),
    "number": (lambda: 3, "got int: 3", "got int: 3"),
    "missing text": (lambda: pandas_series(["one", None]), "Document 1 is of type", "Text 1 is of type"),
    "lazy frame": (lazy_frame, r"got polars LazyFrame", "got polars LazyFrame"),
    "splits of a dataset": (dataset_dict, "Document 0 is of type Dataset", BY_KEY),
    "frame without text": (
        lambda: pandas_frame().rename(columns={"text": "contents"}),
        r"The pandas DataFrame has no column 'text', only \['_id', 'title', 'contents'\]. Rename",
        r"list\(table\['_id'\]\)",
    ),
    "frame with two columns of a name": (
        lambda: pandas_frame().rename(columns={"title": "text"}),
        "The pandas DataFrame has 2 columns named 'text'",
        "got pandas DataFrame",
    ),
}


@pytest.fixture(scope="module")
def encoder(tiny_tokenizer):
    checkpoint = Checkpoint(build_model(), tiny_tokenizer, Profile.default(), "tests/tiny")
    return SearchR3Encoder(checkpoint, mode="direct", max_reasoning_tokens=2)


def thoughts(encoder):
    def call(texts):
        found = encoder.think(texts)
        return np.array([thought.vector for thought in found], np.float32).reshape(-1, encoder.dim)

    return call


def check(call, given, expected, reference):
    if isinstance(expected, str):
        with pytest.raises((TypeError, ValueError), match=expected):
            call(given)
    else:
        np.testing.assert_allclose(call(given), reference(expected), atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_every_kind_of_input_at_every_entry_point(encoder, name):
    make, as_documents, as_queries = CASES[name]
    for call in (encoder.encode_document, encoder.encode_corpus, encoder.encode):
        # MTEB's entry point is given batches: what is not a table or a list is read as one batch after the other.
        batches = call == encoder.encode and isinstance(as_documents, str)
        expected = "needed|is of type|under|holds|columns|column" if batches else as_documents
        check(call, make(), expected, encoder.encode_document)
    for call in (
        encoder.encode_query,
        encoder.encode_queries,
        lambda given: encoder.encode(given, prompt_type="query"),
    ):
        check(call, make(), as_queries, encoder.encode_query)
    check(thoughts(encoder), make(), as_queries, thoughts(encoder))


def test_texts_are_not_all_one(encoder):
    """The control of the table: its texts have different vectors, as queries, as documents and with a title."""
    vectors = np.concatenate([encoder.encode_document(TEXTS + JOINED[:1]), encoder.encode_document(["title", "text"])])
    assert np.abs(vectors[:, None] - vectors[None]).max(axis=-1)[~np.eye(5, dtype=bool)].min() > 1e-3


def test_one_text_is_one_vector_and_bulk_entry_points_refuse_it(encoder):
    assert encoder.encode_query("one").shape == encoder.encode_document("one").shape == (32,)
    for call in (encoder.encode_queries, encoder.encode_corpus):
        with pytest.raises(TypeError, match="got one string 'one'"):
            call("one")


@pytest.mark.parametrize("given", [{"a": "Find."}, {"Find."}, b"Find.", pandas_frame()], ids=["dict", "set", "b", "df"])
def test_instructions_are_listed_alike(encoder, given):
    with pytest.raises(TypeError, match="instruction or a list of instructions is needed, got"):
        encoder.encode_query(["one"], instruction=given)
    assert encoder.encode_query(TEXTS, instruction=pandas_series(["Find.", "Look."])).shape == (2, 32)


def test_a_row_is_not_a_batch(encoder):
    """The characters of a text are not texts."""
    for kind in ("query", "document"):
        with pytest.raises(TypeError, match="holds a list under 'text', got one string 'one': these are rows"):
            encoder.encode(iter([{"text": "one"}]), prompt_type=kind)
    with pytest.raises(ValueError, match="A batch holds 1 instructions for 2 texts"):
        encoder.encode(iter([{"text": TEXTS, "instruction": ["Find."]}]), prompt_type="query")


def test_a_title_is_embedded_once_whoever_made_the_batch(encoder):
    expected = encoder.encode_document(JOINED)
    ours = {"title": ["x", ""], "text": TEXTS}
    mtebs = {"title": ["x", ""], "body": TEXTS, "text": JOINED}
    for batch in (ours, mtebs):
        np.testing.assert_allclose(encoder.encode(iter([batch]), prompt_type="document"), expected, atol=1e-6)
        np.testing.assert_allclose(encoder.encode_document(batch), expected, atol=1e-6)
    other = encoder.encode_document({"title": ["x"], "body": ["a longer text"], "text": ["one"]})
    np.testing.assert_allclose(other, expected[:1], atol=1e-6)  # a field of that name is not MTEB's form


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("named tuple", "empty list")])
def test_an_exported_folder_gives_the_rows_that_are_meant_or_raises(exported, name):
    """sentence-transformers' own class reads a named tuple as a list of its values, which no model can prevent."""
    make, _, as_queries = CASES[name]
    for call in (exported.encode, exported.encode_document, exported.encode_query):
        try:
            found = np.asarray(call(make()))
        except ValueError:
            assert as_queries != TEXTS or not isinstance(make(), list)
            continue
        assert as_queries == TEXTS
        np.testing.assert_allclose(found, call(TEXTS), atol=1e-6)


@pytest.fixture(scope="module")
def exported(encoder, tmp_path_factory):
    from search_r3_mteb import SentenceTransformer
    from search_r3_mteb.integrations.sentence_transformers import export

    reasoning = SearchR3Encoder(encoder.checkpoint, max_reasoning_tokens=2)
    return SentenceTransformer(str(export(reasoning, tmp_path_factory.mktemp("exported") / "folder")), device="cpu")
