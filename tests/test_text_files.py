"""Files of texts: what a file is, told by its name and its content, or refused; the same for `embed` and `explain`."""

import gzip
import json

import pytest

from search_r3_mteb.evaluation.explain import read_documents
from search_r3_mteb.text_files import read_rows, read_texts

ROWS = [{"_id": "a", "title": "x", "text": "alpha"}, {"_id": 7, "text": "beta"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
TEXTS = ["x alpha", "beta"]


@pytest.mark.parametrize("name", ["d.jsonl", "d.ndjson", "d.jl", "d.json", "D.JSONL", "D.NdJson", "D.JSON", "D.JL"])
@pytest.mark.parametrize("packed", ["", ".gz", ".GZ"])
@pytest.mark.parametrize("text", [LINES, "\ufeff" + LINES.replace("\n", "\r\n\r\n")], ids=["plain", "windows"])
def test_json_lines_are_rows_under_every_name(tmp_path, name, packed, text):
    path = tmp_path / (name + packed)
    data = text.encode()
    path.write_bytes(gzip.compress(data) if packed else data)
    assert read_texts(path) == TEXTS
    assert read_documents(path) == read_documents(str(path)) == [("a", "x alpha"), ("7", "beta")]


@pytest.mark.parametrize("indent", [None, 1])
def test_an_array_is_its_rows(tmp_path, indent):
    path = tmp_path / "d.json"
    path.write_text("\n " + json.dumps(ROWS, indent=indent))
    assert read_texts(path) == TEXTS
    assert read_documents(path) == [("a", "x alpha"), ("7", "beta")]
    path.write_text("[]")
    assert read_texts(path) == []


@pytest.mark.parametrize("name", ["d.txt", "d", "d.en", "D.TXT", "topics.dl20", "d.txt.gz", "d.gz"])
def test_other_files_are_lines(tmp_path, name):
    path = tmp_path / name
    data = b"alpha\n\n[1] a quotation\n{not json}\n{ brace\n"
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert read_texts(path) == ["alpha", "", "[1] a quotation", "{not json}", "{ brace"]
    assert [id_ for id_, _ in read_documents(path)] == ["1", "3", "4", "5"]


@pytest.mark.parametrize("name", ["d.csv", "d.tsv", "D.TSV", "d.csv.gz", "d.psv"])
def test_tables_in_columns_are_refused(tmp_path, name):
    path = tmp_path / name
    path.write_text("id\ttext\n1\talpha\n")
    for read in (read_texts, read_documents):
        with pytest.raises(ValueError, match=r"is a table in columns .*, which is not read: .* Write it as \.jsonl"):
            read(path)


@pytest.mark.parametrize("name", ["d.parquet", "d.XLSX", "d.npy", "d.zip", "d.jsonl.zst", "d.jsonl.bz2"])
def test_files_that_hold_no_lines_are_refused(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"PAR1")
    for read in (read_texts, read_documents):
        with pytest.raises(ValueError, match=r"is not a file of texts \(\.\w+\)\. Write it as"):
            read(path)


def test_json_under_the_name_of_a_text_file_is_refused(tmp_path):
    path = tmp_path / "d.txt"
    path.write_text("\n" + LINES)
    for read in (read_texts, read_documents):
        with pytest.raises(ValueError, match=r"d\.txt, line 2, is a JSON object, .* Rename the file to \.jsonl"):
            read(path)
    path.write_text("alpha\nbeta\ngamma\n" + LINES)  # texts of a file of texts
    assert len(read_texts(path)) == 5


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("d.json", "[{]", r"d\.json, line 1: not JSON"),
        ("d.json", '[{"text": "a"}, "b"]', r"d\.json, row 2: a JSON object with 'text' is needed, got a string"),
        ("d.json", '[{"contents": "a"}]', r"d\.json, row 1: Document 0 has no 'text', only \['contents'\]"),
        ("d.json", '{"a": {"text": "b"}}', r"d\.json, line 1: Document 0 has no 'text'"),
        (
            "d.json",
            '{\n "text": "b"\n}',
            r"d\.json, line 1: .* One JSON object is read per line \(or, in \.json, an arr",
        ),
        ("d.jsonl", '["a"]', r"d\.jsonl, line 1: a JSON object with 'text' is needed, got an array"),
        ("d.jsonl", '{"_id": true, "text": "a"}', r'line 1: "_id" must be a string that is not empty, got True'),
        ("d.jsonl", '{"_id": "", "text": "a"}', r'line 1: "_id" must be a string that is not empty, got \'\''),
        ("d.jsonl", '{"text": "\\ud800"}', "line 1: the text holds a lone surrogate"),
        ("d.jsonl", f'{{"text": {"[" * 700 + "]" * 700}}}', "line 1: The text of document 0 is of type list"),
        ("d.jsonl", f'{{"text": {"[" * 100_000}', r"d\.jsonl, line 1: not JSON \(nested too deeply"),
        ("d.json", f'[{{"text": "a"}},\n{"1" * 5000}]', r"d\.json, line 2: not JSON \(an integer of more than 4300"),
        ("d.jsonl.gz", "plain", r"d\.jsonl\.gz is a damaged or truncated gzip file"),
    ],
)
def test_malformed_files_are_named(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    for read in (read_texts, read_documents):
        with pytest.raises(ValueError, match=message):
            read(path)


def test_gzip_is_known_by_its_content(tmp_path):
    path = tmp_path / "texts"
    path.write_bytes(gzip.compress(b"alpha\nbeta\n"))
    assert read_texts(path) == ["alpha", "beta"]
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match="damaged or truncated gzip file"):
        read_texts(path)


def test_rows_know_their_place(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text("\n" + LINES + '{"text": ""}\n{"text": "c"}\n')
    assert [(row.number, row.id) for row in read_rows(path)] == [(2, "a"), (3, "7"), (4, None), (5, None)]
    assert read_documents(path)[-1] == ("5", "c")
    path.write_text(LINES + LINES)
    with pytest.raises(ValueError, match=r"two documents have the id 'a'"):
        read_documents(path)


def test_a_corpus_that_is_also_a_task_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hopworld").write_text("alpha\n")
    with pytest.raises(ValueError, match=r"hopworld is both a task and a file or folder here\. Write \./hopworld"):
        read_documents("hopworld")
    assert read_documents("./hopworld") == [("1", "alpha")]
    (tmp_path / "hopworld").unlink()
    assert len(read_documents("hopworld:500")) == 500
