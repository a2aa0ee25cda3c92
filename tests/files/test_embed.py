"""`embed`: documents and queries into files of vectors, of every precision, part by part."""

import io
import json
import os
import sys
from contextlib import redirect_stderr

import numpy as np
import pytest
from sentence_transformers.util import quantize_embeddings

from search_r3_mteb import SearchR3Encoder
from search_r3_mteb import embed as embedding
from search_r3_mteb.embed import EmbedPlan, embed_file
from search_r3_mteb.files import vectors as vector_files

TEXTS = ["one", "two words", "שלום", "four and more", "five"]
TABLE = "key,body\n" + "".join(f"k{row},{text}\n" for row, text in enumerate(TEXTS))


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "texts.csv"
    path.write_text(TABLE, encoding="utf-8")
    return path


def embed(folder, source, output, **plan):
    chosen = {"role": "document"} | plan
    return embed_file(str(folder), EmbedPlan(source, output, **chosen), {"max_reasoning_tokens": 4})


def full(folder, texts=TEXTS):
    return SearchR3Encoder(folder, max_reasoning_tokens=4).encode_document(list(texts))


def parts_of_two(monkeypatch):
    monkeypatch.setattr(embedding, "CHUNK", {"query": 2, "document": 2})


@pytest.mark.parametrize("role", ["query", "document"])
def test_vectors_and_ids_lie_beside_each_other(call, tiny_folder, tmp_path, role):
    source, output = tmp_path / "texts.txt", tmp_path / "deep" / "vectors.npy"
    source.write_text("one\n\nשלום\r\n", encoding="utf-8")
    err = io.StringIO()
    with redirect_stderr(err):
        code, out, said = call(
            *("embed", "--model", tiny_folder, "--role", role, "--input", source, "--output", output),
            *("--max-reasoning-tokens", 4),
        )
    assert code == 0
    assert "2 x 32 float32" in out
    assert "without any text left out, the first in line 2" in said + err.getvalue()
    encoder = SearchR3Encoder(tiny_folder, max_reasoning_tokens=4)
    texts = ["one", "שלום"]
    expected = encoder.encode_query(texts) if role == "query" else encoder.encode_document(texts)
    np.testing.assert_allclose(np.load(output, allow_pickle=False), expected, atol=1e-5)
    assert (output.parent / "vectors.ids.txt").read_text() == "1\n3\n"
    assert sorted(path.name for path in output.parent.iterdir()) == ["vectors.ids.txt", "vectors.npy"]


def test_columns_and_standard_input_reach_the_command(call, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'a,b,c\nx,"one, and two",T\n')))
    output = tmp_path / "v.jsonl"
    options = ("--text", "2", "--id", "1", "--title", "3", "--no-quotes")
    code, _, said = call("embed", "--model", tiny_folder, "--input", "-", "--output", output, *options)
    assert code == 2
    assert "has no columns to name" in said  # lines: its header is not known
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'id,text,title\nx,"one, and two",T\n')))
    code, *_ = call("embed", "--model", tiny_folder, "--input", "-", "--output", output, "--role", "document")
    assert code == 0
    [record] = [json.loads(line) for line in output.read_text().splitlines()]
    assert record["id"] == "x"
    np.testing.assert_allclose(record["vector"], full(tiny_folder, ["T one, and two"])[0], atol=1e-6)


def test_parts_are_the_whole(tiny_folder, tmp_path, table, monkeypatch):
    """A file that is written part by part is what one array would be: rows, header and all."""
    parts_of_two(monkeypatch)
    done = embed(tiny_folder, table, tmp_path / "v.npy")
    found = np.load(tmp_path / "v.npy", mmap_mode="r")
    assert done.shape == found.shape == (5, 32)
    np.testing.assert_allclose(found, full(tiny_folder), atol=1e-6)
    assert (tmp_path / "v.ids.txt").read_text().split() == ["k0", "k1", "k2", "k3", "k4"]


def test_parquet_holds_ids_vectors_and_reasoning(tiny_folder, tmp_path, table, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    parts_of_two(monkeypatch)
    embed(tiny_folder, table, tmp_path / "v.parquet")
    found = parquet.read_table(tmp_path / "v.parquet")
    assert found.column("id").to_pylist() == ["k0", "k1", "k2", "k3", "k4"]
    assert found.column("reasoning").to_pylist() == [None] * 5
    np.testing.assert_allclose(np.array(found.column("vector").to_pylist()), full(tiny_folder), atol=1e-6)
    embed(tiny_folder, table, tmp_path / "q.parquet", role="query")
    thoughts = SearchR3Encoder(tiny_folder, max_reasoning_tokens=4).think(TEXTS)
    found = parquet.read_table(tmp_path / "q.parquet")
    assert found.column("reasoning").to_pylist() == [thought.text for thought in thoughts]
    np.testing.assert_allclose(
        np.array(found.column("vector").to_pylist()), [thought.vector for thought in thoughts], atol=1e-6
    )


def test_json_lines_give_back_the_very_numbers(tiny_folder, tmp_path, table):
    embed(tiny_folder, table, tmp_path / "v.npy", role="query")
    embed(tiny_folder, table, tmp_path / "v.jsonl", role="query")
    records = [json.loads(line) for line in (tmp_path / "v.jsonl").read_text().splitlines()]
    np.testing.assert_array_equal(
        np.array([record["vector"] for record in records], np.float32), np.load(tmp_path / "v.npy")
    )
    assert records[0].keys() == {"id", "vector", "reasoning"}


# ---- precisions and dimensions -------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
def test_precisions_are_those_of_the_library(tiny_folder, tmp_path, table, precision, monkeypatch, caplog):
    whole = full(tiny_folder)
    expected = quantize_embeddings(whole, precision)
    parts_of_two(monkeypatch)
    done = embed(tiny_folder, table, tmp_path / "v.npy", precision=precision)
    found = np.load(tmp_path / "v.npy")
    assert (found.dtype, found.shape, done.shape) == (expected.dtype, expected.shape, expected.shape)
    # Parts move a value in its last digit, and with it now and then the step that it falls into.
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1 if "int8" in precision else True
    assert (found == expected).mean() > 0.97
    ranges = tmp_path / "v.ranges.npy"
    assert ranges.exists() == precision.endswith("int8")
    if ranges.exists():
        np.testing.assert_allclose(np.load(ranges), [whole.min(axis=0), whole.max(axis=0)], atol=1e-6)
        assert "the ranges of" in caplog.text
        assert "are those of 5 vectors only" in caplog.text


def test_float16_is_half_as_large(tiny_folder, tmp_path, table):
    embed(tiny_folder, table, tmp_path / "v.npy", precision="float16")
    found = np.load(tmp_path / "v.npy")
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, full(tiny_folder).astype(np.float16))


def test_calibration_gives_the_ranges(tiny_folder, tmp_path, table):
    """From vectors, or from the ranges beside other ones; not those of the vectors themselves."""
    given = np.random.default_rng(0).normal(size=(200, 32)).astype(np.float32)
    np.save(tmp_path / "other.npy", given)
    embed(tiny_folder, table, tmp_path / "v.npy", precision="int8", calibration=tmp_path / "other.npy")
    expected = quantize_embeddings(full(tiny_folder), "int8", calibration_embeddings=given)
    found = np.load(tmp_path / "v.npy")
    np.testing.assert_array_equal(found, expected)
    assert (found != quantize_embeddings(full(tiny_folder), "int8")).mean() > 0.5
    ranges = tmp_path / "v.ranges.npy"
    embed(tiny_folder, table, tmp_path / "w.npy", precision="int8", calibration=ranges)
    np.testing.assert_array_equal(np.load(tmp_path / "w.npy"), expected)
    np.testing.assert_array_equal(np.load(tmp_path / "w.ranges.npy"), np.load(ranges))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 7), np.float32), "has 7 dimensions, the vectors have 32"),
        (np.zeros((3, 32), np.int8), "must hold float vectors"),
        (np.full((3, 32), np.nan, np.float32), "not finite"),
        (np.zeros((1, 32), np.float32), "1 vectors have none"),
    ],
)
def test_calibration_of_another_kind_is_refused(tiny_folder, tmp_path, table, array, message):
    np.save(tmp_path / "c.npy", array)
    with pytest.raises(ValueError, match=message):
        embed(tiny_folder, table, tmp_path / "v.npy", precision="int8", calibration=tmp_path / "c.npy")
    assert not (tmp_path / "v.npy").exists()


def test_ranges_of_one_vector_and_calibration_of_none_are_refused(tiny_folder, tmp_path, table):
    one = tmp_path / "one.txt"
    one.write_text("one\n")
    with pytest.raises(ValueError, match=r"1 vectors have none.*--calibration FILE"):
        embed(tiny_folder, one, tmp_path / "v.npy", precision="int8")
    with pytest.raises(ValueError, match="would change nothing in float32"):
        embed(tiny_folder, table, tmp_path / "v.npy", calibration=one)


def test_dim_is_the_first_dimensions_of_unit_length(call, tiny_folder, tmp_path, table):
    output = tmp_path / "v.npy"
    code, out, _ = call(
        *("embed", "--model", tiny_folder, "--role", "document", "--input", table, "--output", output, "--dim", 12),
        *("--precision", "float16"),
    )
    assert code == 0
    assert "5 x 12 float16" in out
    first = full(tiny_folder)[:, :12]
    np.testing.assert_allclose(np.load(output), first / np.linalg.norm(first, axis=1, keepdims=True), atol=1e-3)
    embed(tiny_folder, table, tmp_path / "b.npy", dim=12, precision="ubinary")
    np.testing.assert_array_equal(np.load(tmp_path / "b.npy"), np.packbits(first > 0, axis=1))
    with pytest.raises(ValueError, match="--dim 12 and truncate_dim=8 say the same thing twice"):
        embed_file(str(tiny_folder), EmbedPlan(table, tmp_path / "b.npy", dim=12), {"truncate_dim": 8})
    with pytest.raises(ValueError, match="truncate_dim=33 must be from 1 to 32"):
        embed(tiny_folder, table, tmp_path / "b.npy", dim=33)


# ---- outputs -------------------------------------------------------------------------------------------------------


def test_outputs_that_cannot_be_written_are_found_before_the_model(tmp_path, table, monkeypatch):
    """There is no such model, and that is never learnt."""
    folder = tmp_path / "v.npy"
    folder.mkdir()
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe.npy")
    (tmp_path / "b.npy").write_text("old")
    (tmp_path / "b.ids.txt").mkdir()
    (tmp_path / "c.ranges.npy").mkdir()
    for output, message in (
        (folder, "is a folder"),
        (tmp_path / "file" / "v.npy", "file"),
        (tmp_path / "pipe.npy", "not an ordinary file"),
        (tmp_path / "b.npy", r"b\.ids\.txt is a folder"),
        (tmp_path / "c.npy", r"c\.ranges\.npy is a folder"),
        (tmp_path / "v.csv", r"must end in \.npy, \.parquet or \.jsonl"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            embed("./no-model", table, output)
    source = tmp_path / "s.jsonl"
    source.write_text('{"text": "a"}\n')
    with pytest.raises(ValueError, match="is the input itself"):
        embed("./no-model", source, source)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pip install '\.\[parquet\]'` in a checkout"):
        embed("./no-model", table, tmp_path / "v.parquet")
    with pytest.raises(FileNotFoundError, match="no model"):  # and so it is looked for last
        embed("./no-model", table, tmp_path / "v.jsonl")


def test_an_error_in_the_middle_leaves_what_was_there(tiny_folder, tmp_path, table, monkeypatch):
    embed(tiny_folder, table, tmp_path / "v.npy", precision="int8")
    names = ("v.npy", "v.ids.txt", "v.ranges.npy")
    before = {name: (tmp_path / name).read_bytes() for name in names}
    parts_of_two(monkeypatch)
    table.write_text(TABLE + "k9,a,b\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 7: 3 cells for 2 columns"):
        embed(tiny_folder, table, tmp_path / "v.npy")
    assert {name: (tmp_path / name).read_bytes() for name in names} == before
    assert not list(tmp_path.glob(".v*"))
    table.write_text(TABLE, encoding="utf-8")
    embed(tiny_folder, table, tmp_path / "v.npy")  # float32: the ranges of the earlier file would be wrong ones
    assert not (tmp_path / "v.ranges.npy").exists()


def test_ranges_are_those_of_one_output(tiny_folder, tmp_path, table):
    """Regression: vectors of the same name and another format removed the ranges of a .npy, or put theirs there."""
    embed(tiny_folder, table, tmp_path / "v.npy", precision="int8")
    before = (tmp_path / "v.ranges.npy").read_bytes()
    embed(tiny_folder, table, tmp_path / "v.jsonl")
    embed(tiny_folder, table, tmp_path / "v.jsonl", precision="uint8", dim=3)
    assert (tmp_path / "v.ranges.npy").read_bytes() == before
    assert np.load(tmp_path / "v.jsonl.ranges.npy").shape == (2, 3)


@pytest.mark.parametrize("id_", ["a\\nb", "a\\n", "\\n", "a\\u2028"])
def test_an_id_with_a_line_break_has_no_place_in_a_list_of_ids(tiny_folder, tmp_path, id_):
    """Regression: one at an id's end was written, so that all later ids were those of other rows."""
    source = tmp_path / "s.jsonl"
    source.write_text(f'{{"id": "{id_}", "text": "c"}}\n')
    with pytest.raises(ValueError, match="holds a line break"):
        embed(tiny_folder, source, tmp_path / "v.npy")
    embed(tiny_folder, source, tmp_path / "v.jsonl")
    assert vector_files.ids_file(tmp_path / "v.npy") == tmp_path / "v.ids.txt"


@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (1_000_000, 384)])
def test_the_header_of_any_number_of_rows_has_one_length(shape):
    def length(rows):
        stream = io.BytesIO()
        header = {"descr": "<f4", "fortran_order": False, "shape": (rows, shape[1])}
        np.lib.format.write_array_header_1_0(stream, header)
        return stream.tell()

    assert length(shape[0]) == length(0) == length(10**18)
