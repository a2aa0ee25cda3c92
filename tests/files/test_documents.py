"""Inputs of every kind: what a file is, told by its name and its content, or refused; the same for all commands."""

import csv
import gzip
import io
import json
import logging
import os
import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_r3_mteb.encoder.documents import join_title
from search_r3_mteb.evaluation.explain import read_documents
from search_r3_mteb.extensions import TASKS
from search_r3_mteb.files import Columns, Document, Query, iter_documents, iter_queries

ROWS = [{"_id": "a", "title": "x", "text": "alpha"}, {"_id": 7, "text": "beta"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
FOUND = [Document("a", "x", "alpha"), Document("7", "", "beta")]


def write(tmp_path, data, name):
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def read(path, **columns):
    return list(iter_documents(path, Columns(**columns)))


def refused(path, message, **columns):
    with pytest.raises(ValueError, match=message) as caught:
        read(path, **columns)
    assert str(path) in str(caught.value)


# ---- JSON ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["d.jsonl", "d.ndjson", "d.jl", "d.json", "D.JSONL", "D.NdJson", "D.JSON", "D.JL"])
@pytest.mark.parametrize("packed", ["", ".gz", ".GZ"])
@pytest.mark.parametrize("text", [LINES, "\ufeff" + LINES.replace("\n", "\r\n\r\n")], ids=["plain", "windows"])
def test_json_lines_are_rows_under_every_name(tmp_path, name, packed, text):
    path = write(tmp_path, gzip.compress(text.encode()) if packed else text, name + packed)
    assert read(path) == FOUND
    assert read_documents(path) == read_documents(str(path)) == [("a", "x alpha"), ("7", "beta")]


@pytest.mark.parametrize("indent", [None, 1])
def test_an_array_is_its_rows(tmp_path, indent):
    assert read(write(tmp_path, "\n " + json.dumps(ROWS, indent=indent), "d.json")) == FOUND


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("d.json", "[{]", r"d\.json, line 1: not JSON"),
        ("d.json", '[{"text": "a"}, "b"]', r"d\.json, row 2: a JSON object with a text is needed, got a string"),
        ("d.json", '[{"say": "a"}]', r"row 1: none of the columns 'say' is known to hold the text .* --text NAME"),
        ("d.json", '{"a": {"text": "b"}}', r"d\.json, line 1: none of the columns 'a'"),
        (
            "d.json",
            '{\n "text": "b"\n}',
            r"d\.json, line 1: .* One JSON object is read per line",
        ),
        ("d.jsonl", '["a"]', r"d\.jsonl, line 1: a JSON object with a text is needed, got an array"),
        ("d.jsonl", '{"_id": true, "text": "a"}', r'line 1: "_id" must be a string that is not empty, got True'),
        ("d.jsonl", '{"_id": "", "text": "a"}', r'line 1: "_id" must be a string that is not empty, got \'\''),
        ("d.jsonl", '{"text": "\\ud800"}', "line 1: the text holds a lone surrogate"),
        ("d.jsonl", '{"text": "fine"}\n{"text": 3}', r"line 2: the text \('text'\) is a number, not a string"),
        ("d.jsonl", '{"title": 3, "text": "a"}', r"line 1: the title \('title'\) is a number"),
        ("d.jsonl", f'{{"text": {"[" * 700 + "]" * 700}}}', "line 1: the text .'text'. is an array"),
        ("d.jsonl", f'{{"text": {"[" * 100_000}', r"d\.jsonl, line 1: not JSON \(nested too deeply"),
        ("d.json", f'[{{"text": "a"}},\n{"1" * 5000}]', r"d\.json, line 2: not JSON \(an integer of more than 4300"),
        ("d.jsonl.gz", "plain", r"d\.jsonl\.gz is a damaged or truncated gzip file"),
        ("d.jsonl", '{"text": "a"}\n{"body": "b"}', r"line 2: no 'text', which holds the text in earlier records"),
    ],
)
def test_malformed_files_are_named(tmp_path, name, text, message):
    refused(write(tmp_path, text, name), message)


def test_names_of_columns_may_be_given_and_are_guessed_otherwise(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    path = write(tmp_path, '{"doc_id": "a", "body": "b", "heading": "h", "url": "u"}\n', "d.jsonl")
    assert read(path) == [Document("a", "h", "b")]
    assert "the text is in 'body', the title in 'heading', the id in 'doc_id' (not read: 'url')" in caplog.text
    assert read(path, text="heading", id="url", title="") == [Document("u", "", "h")]
    refused(path, r"there is no column 'none' \(--title\); there are 'doc_id'", title="none")


def test_a_title_that_only_later_records_have_is_read(tmp_path):
    path = write(tmp_path, '{"text": "a"}\n{"_id": "z", "text": "b", "title": "t"}\n', "d.jsonl")
    assert read(path) == [Document("1", "", "a"), Document("z", "t", "b")]


# ---- lines ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["d.txt", "d", "d.en", "D.TXT", "topics.dl20", "d.txt.gz", "d.gz"])
def test_other_files_are_lines_and_blank_ones_are_left_out_aloud(tmp_path, name, caplog):
    data = b"alpha\n\n[1] a quotation\n{not json}\n{ brace\n"
    path = write(tmp_path, gzip.compress(data) if name.endswith(".gz") else data, name)
    assert [(each.id, each.text) for each in read(path)] == [
        ("1", "alpha"),
        ("3", "[1] a quotation"),
        ("4", "{not json}"),
        ("5", "{ brace"),
    ]
    assert "1 document without any text left out, the first in line 2" in caplog.text


def test_lines_end_at_line_feeds_only(tmp_path):
    path = write(tmp_path, "\ufeffone\u2028still one\r\n\x0ctwo\n\nlast", "d.txt")
    assert [each.text for each in read(path)] == ["one\u2028still one", "\x0ctwo", "last"]
    refused(write(tmp_path, b"fine\n\xff\n", "d.txt"), r"line 2, is not UTF-8")


def test_a_carriage_return_far_on_is_refused(tmp_path):
    refused(write(tmp_path, "a\n" * 3000 + "b\rc\n", "d.txt"), "holds a carriage return within it")


def test_columns_of_a_file_of_lines_are_refused(tmp_path):
    refused(write(tmp_path, "a\nb\n", "d.txt"), "read as one text per line, which has no columns", text="body")


@pytest.mark.parametrize("name", ["d.XLSX", "d.npy", "d.zip", "d.jsonl.zst", "d.jsonl.bz2"])
def test_files_that_hold_no_texts_are_refused(tmp_path, name):
    refused(write(tmp_path, b"PAR1", name), r"is not a file of texts \(\.\w+\)\. Write it as")


def test_json_under_the_name_of_a_text_file_is_refused(tmp_path):
    refused(write(tmp_path, "\n" + LINES, "d.txt"), r"d\.txt, line 2, is a JSON object, .* Rename the file to \.jsonl")
    assert len(read(write(tmp_path, "alpha\nbeta\ngamma\n" + LINES, "d.txt"))) == 5  # texts of a file of texts


@pytest.mark.parametrize("name", ["d.txt", "d.jsonl", "d.json", "d.csv"])
@pytest.mark.parametrize("data", ["", "\n \n"])
def test_files_without_a_document_are_refused(tmp_path, name, data):
    refused(write(tmp_path, data, name), "holds no|none of the columns")


def test_gzip_is_known_by_its_content(tmp_path):
    path = write(tmp_path, gzip.compress(b"alpha\nbeta\n"), "texts")
    assert [each.text for each in read(path)] == ["alpha", "beta"]
    path.write_bytes(path.read_bytes()[:-4])
    refused(path, "damaged or truncated gzip file")


def test_ids_that_come_twice_are_refused_and_missing_ones_are_numbered_aloud(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    path = write(tmp_path, "\n" + LINES + '{"text": ""}\n{"text": "c"}\n', "d.jsonl")
    assert [each.id for each in read(path)] == ["a", "7", "5"]
    assert "1 document without an id, known by number, the first in line 5" in caplog.text
    refused(write(tmp_path, LINES + LINES, "d.jsonl"), "line 3: two documents have the id 'a', the first is number 1")
    assert [each.id for each in read(path, id="")] == ["1", "2", "3", "4"]
    path = write(tmp_path, '{"text": "a"}\n{"_id": 1, "text": "b"}\n', "d.jsonl")  # a number is an id like any other
    refused(path, "line 2: two documents have the id '1'")


def test_documents_without_text_are_kept_where_that_is_asked_for(tmp_path):
    path = write(tmp_path, '{"_id": "a", "text": ""}\n{"_id": "b", "text": "b"}\n', "d.jsonl")
    assert [each.id for each in iter_documents(path)] == ["b"]
    assert [each.id for each in iter_documents(path, keep_empty=True)] == ["a", "b"]


# ---- tables --------------------------------------------------------------------------------------------------------

TABLE = 'id,title,text\n1,T,"a, b\nc ""q"""\n2,,x\n'
IN_TABLE = [Document("1", "T", 'a, b\nc "q"'), Document("2", "", "x")]


@pytest.mark.parametrize("name", ["d.csv", "D.CSV", "d.csv.gz"])
@pytest.mark.parametrize(
    "text", [TABLE, "\ufeff" + TABLE, "\n" + TABLE + "\n\n", "sep=,\n" + TABLE], ids=["plain", "mark", "blank", "excel"]
)
def test_tables_are_read_with_quotes_and_line_breaks_in_cells(tmp_path, name, text):
    path = write(tmp_path, gzip.compress(text.encode()) if name.endswith("gz") else text, name)
    assert read(path) == IN_TABLE


def test_blank_rows_are_left_out_aloud(tmp_path, caplog):
    assert [each.id for each in read(write(tmp_path, "id,text\n1,a\n\n , \n2,b\n", "d.csv"))] == ["1", "2"]
    assert "d.csv: 2 blank rows left out, the first in line 3" in caplog.text
    caplog.clear()
    read(write(tmp_path, "id,text\n1,a\n", "d.csv"))
    assert "blank" not in caplog.text


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize(("name", "delimiter"), [("d.csv", ";"), ("d.csv", "\t"), ("d.tsv", "\t"), ("d.psv", "|")])
def test_other_delimiters_are_recognised_and_said(tmp_path, name, delimiter, encoding, end, caplog):
    caplog.set_level(logging.INFO)
    text = end.join(delimiter.join(row) for row in (["ID", "Text"], ["1", "a, b"], ["2", "ü"])) + end
    path = write(tmp_path, text.encode(encoding), name)
    assert read(path) == [Document("1", "", "a, b"), Document("2", "", "ü")]
    assert ("columns are separated by" in caplog.text) == (name == "d.csv")


def test_a_table_without_a_known_header_asks(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    path = write(tmp_path, "1\thello\n2\tworld\n", "d.tsv")
    refused(path, "the first row, '1', 'hello', names no column .* --id 1 --text 2")
    assert read(path, id="1", text="2") == [Document("1", "", "hello"), Document("2", "", "world")]
    assert "the first row, '1', 'hello', is not a header that is known and counts as a row" in caplog.text
    path = write(tmp_path, "nr;inhalt\n1;hallo\n", "d.csv")
    refused(path, "names no column that is known")
    assert read(path, text="inhalt", id="nr") == [Document("1", "", "hallo")]
    refused(path, "there is no column 'text'", text="text")


def test_a_header_is_no_document_though_columns_are_given_by_number(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    assert read(write(tmp_path, "id,text\n1,a\n", "d.csv"), id="1", text="2") == [Document("1", "", "a")]
    assert "the first row, 'id', 'text', is a header and is left out" in caplog.text


def test_a_number_counts_all_columns_of_a_header(tmp_path):
    """Regression: behind the text's column, `--id 2` was the third one, and `--id 3` none."""
    path = write(tmp_path, "text,sku,id\na,s1,1\nb,s2,2\n", "d.csv")
    assert [each.id for each in read(path, text="1", id="2")] == ["s1", "s2"]
    assert [each.id for each in read(path, text="1", id="3")] == ["1", "2"]
    refused(path, r"there is no column '0' \(--id\); .* Columns are counted from 1", text="1", id="0")
    refused(path, "there is no column '²'", text="²")
    refused(path, "--id 1 is the column 'text', which is read as another part already", text="text", id="1")
    path = write(tmp_path, "id,text,text\n1,a,b\n", "d.csv")
    refused(path, "there are 2 columns 'text'", text="3")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,text\n1,a\n2,b,c\n", "line 3: 3 cells for 2 columns. Quote cells that contain the separator."),
        ("id,text\n1,a\n2\n", "line 3: 1 cells for 2 columns"),
        ('id,text\n1,"a\n2,b\n', "line 2: not a row of cells .*--no-quotes"),
        ('id,text\n1,"a"b\n', "line 2: not a row of cells"),
        ("id,text\n1,a\n1,b\n", "line 3: two documents have the id '1'"),
        ("id,body,content\n1,a,b\n", "'body', 'content' may each hold the text. Name one: --text body"),
        ("id,text,text\n1,a,b\n", "'text', 'text' may each hold the text"),
        ("id,doc_id\n1,a\n", "none of the columns 'id', 'doc_id' is known to hold the text"),
    ],
)
def test_malformed_tables_are_named(tmp_path, text, message):
    refused(write(tmp_path, text, "d.csv"), message)


def test_marks_that_are_text_are_read_without_quotes_and_suspected_with_them(tmp_path):
    text = 'id\ttext\n1\t"Well\n2\tand "so\n3\ton"\n'
    path = write(tmp_path, text, "d.tsv")
    refused(path, "line 2: .*--no-quotes")
    assert [each.text for each in read(path, quotes=False)] == ['"Well', 'and "so', 'on"']
    refused(write(tmp_path, 'id\ttext\n1\t"Well\n2\tworld"\n', "d.tsv"), "goes on over several lines with tabs")


def test_cells_may_be_long(tmp_path):
    long = "word " * 100_000
    assert read(write(tmp_path, f'id,text\n1,"{long}"\n', "d.csv"))[0].text == long


def test_a_missing_id_in_a_table_is_its_row_number(tmp_path):
    path = write(tmp_path, 'id,text\nx,"a\nb"\n,c\n', "d.csv")
    assert [each.id for each in read(path)] == ["x", "2"]


# ---- Parquet -------------------------------------------------------------------------------------------------------


def parquet(path, **columns):
    arrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(arrow.table(columns), path)
    return path


def test_parquet_is_read(tmp_path):
    path = parquet(tmp_path / "d.parquet", docid=[1, 2, None], passage=["a", None, "c"], heading=["h", "", None])
    assert read(path) == [Document("1", "h", "a"), Document("3", "", "c")]
    packed = tmp_path / "p.parquet.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read(packed) == read(path)
    refused(parquet(tmp_path / "e.parquet", id=[1.5], text=["a"]), "column 'id' is of type double")
    refused(parquet(tmp_path / "e.parquet", id=["a"], text=[["a"]]), "column 'text' is of type list")
    refused(parquet(tmp_path / "e.parquet", id=["a", "a"], text=["a", "b"]), "row 2: two documents have the id 'a'")
    refused(write(tmp_path, b"PAR1", "d.parquet"), "is not a Parquet file, or is damaged")


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"Parquet file, needs pyarrow.* `pip install '\.\[parquet\]'` in a checkout"):
        read(write(tmp_path, b"PAR1", "d.parquet"))


# ---- standard input, folders, queries ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (LINES.encode(), FOUND),
        (gzip.compress(LINES.encode()), FOUND),
        (json.dumps(ROWS, indent=1).encode(), FOUND),
        (TABLE.encode(), IN_TABLE),
        (b"id\ttext\n1\ta\n2\tb\n", [Document("1", "", "a"), Document("2", "", "b")]),
        (b'id,text\n1,"a\nb\nc\nd"\n', [Document("1", "", "a\nb\nc\nd")]),
        ("one\ntwo, three\n".encode("utf-16"), [Document("1", "", "one"), Document("2", "", "two, three")]),
    ],
    ids=["json lines", "packed", "array", "csv", "tsv", "long cells", "lines"],
)
def test_standard_input_is_known_by_its_content(data, found, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert list(iter_documents("-")) == found


def test_parquet_comes_by_standard_input_too(tmp_path, monkeypatch):
    data = parquet(tmp_path / "d.parquet", id=["a"], text=["b"]).read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert list(iter_documents("-")) == [Document("a", "", "b")]


def test_a_pipe_is_read_as_standard_input_is(tmp_path):
    """`search-r3 embed --input <(zcat ...)`."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(gzip.compress(TABLE.encode())))
    writer.start()
    assert read(pipe) == IN_TABLE
    writer.join()


def test_a_header_of_one_column_is_not_taken_for_a_text_in_silence(tmp_path, caplog):
    assert [each.text for each in read(write(tmp_path, "text\na\n", "d.csv"))] == ["a"]
    assert [each.text for each in read(write(tmp_path, "text\na\n", "d.txt"))] == ["text", "a"]
    assert "the first line, 'text', may be the header of a table" in caplog.text
    caplog.clear()
    assert [each.text for each in read(write(tmp_path, "# Title\na\n", "d.md"))] == ["# Title", "a"]
    assert "may be the header" not in caplog.text  # a heading of Markdown


CELL = st.text(st.characters(exclude_categories=("Cs", "Cc")) | st.sampled_from(',;"|\n'), max_size=12)


@settings(max_examples=60)
@given(rows=st.lists(st.tuples(CELL, CELL), min_size=1, max_size=5), delimiter=st.sampled_from(",;\t|"))
def test_what_a_table_says_is_what_is_read(tmp_path_factory, rows, delimiter):
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter=delimiter, lineterminator="\n")
    writer.writerows([("id", "title", "text"), *((f"k{number}", *row) for number, row in enumerate(rows))])
    path = write(tmp_path_factory.mktemp("t"), stream.getvalue(), "d.tsv" if delimiter == "\t" else "d.csv")
    expected = [Document(f"k{number}", *row) for number, row in enumerate(rows)]
    assert list(iter_documents(path, keep_empty=True)) == expected


def test_files_are_streamed(tmp_path):
    """The first document is there though the last line is broken."""
    for name, text in (("d.jsonl", LINES + "{"), ("d.csv", TABLE + '3,"'), ("d.txt", "a\n" * 140_000 + "b\rc\n")):
        documents = iter_documents(write(tmp_path, text, name))
        assert isinstance(next(documents), Document)
        with pytest.raises(ValueError, match=name):
            list(documents)


def test_a_folder_is_its_corpus_and_its_queries(tmp_path):
    write(tmp_path, "a\n", "notes.md")
    with pytest.raises(FileNotFoundError, match=r"holds 1 text files such as notes\.md: one document per file is not"):
        read(tmp_path)
    write(tmp_path, TABLE, "corpus.csv")
    assert read(tmp_path) == IN_TABLE
    with pytest.raises(FileNotFoundError, match=r"neither queries\.jsonl nor queries\.jsonl\.gz is there"):
        list(iter_queries(tmp_path))
    write(tmp_path, "qid\tquery\nq1\twho?\n", "queries.tsv")
    assert list(iter_queries(tmp_path)) == [Query("q1", "who?")]
    write(tmp_path, LINES, "corpus.jsonl")
    with pytest.raises(ValueError, match=r"holds both corpus\.csv and corpus\.jsonl"):
        read(tmp_path)
    (tmp_path / "corpus.csv").unlink()
    write(tmp_path, '{"text": "a"}\n', "corpus.jsonl")
    with pytest.raises(ValueError, match=r"corpus\.jsonl, line 1: no id, by which"):
        read(tmp_path)


def test_queries_have_names_of_their_own_and_no_title(tmp_path):
    path = write(tmp_path, "id,question,text\n1,who?,an answer\n", "q.csv")
    assert list(iter_queries(path)) == [Query("1", "who?")]
    assert read(path) == [Document("1", "", "an answer")]
    with pytest.raises(ValueError, match="queries have no title"):
        list(iter_queries(path, Columns(title="text")))


def test_a_long_id_is_not_repeated_whole(tmp_path):
    long = "x" * 5000
    with pytest.raises(ValueError, match="two documents have the id") as caught:
        read(write(tmp_path, f"id,text\n{long},a\n{long},b\n", "d.csv"))
    assert len(str(caught.value)) < 500


def test_what_is_not_there_is_said_at_once(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file"):
        iter_documents(tmp_path / "none.csv")


def test_mtebs_form_has_its_title_once(tmp_path):
    path = write(tmp_path, '{"id": "a", "title": "t", "text": "t b", "body": "b"}\n', "d.jsonl")
    assert [join_title(each.title, each.text) for each in read(path, text="text")] == ["t b"]


def test_a_corpus_that_is_also_a_task_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hopworld").write_text("alpha\n")
    with pytest.raises(ValueError, match=r"hopworld is both a task and a file or folder here\. Write \./hopworld"):
        read_documents("hopworld")
    assert read_documents("./hopworld") == [("1", "alpha")]
    monkeypatch.setitem(TASKS._registered, "faq", None)
    (tmp_path / "faq").write_text("alpha\n")
    with pytest.raises(ValueError, match="faq is both a task and a file"):
        read_documents("faq")
    (tmp_path / "hopworld").unlink()
    with pytest.raises(ValueError, match="hopworld is a task, whose documents have no columns to name"):
        read_documents("hopworld", Columns(id="sku"))
    assert len(read_documents("hopworld:500")) == 500
