"""Reasonings from a file: every layout is read as its writer meant it, and rows of two sources never mix."""

import csv
import gzip
import json

import numpy as np
import pytest

from search_r3_mteb.encoder.encoder import SearchR3Encoder
from search_r3_mteb.encoder.engine import Engine
from search_r3_mteb.evaluation.evaluate import evaluate
from search_r3_mteb.evaluation.given_file import GivenFile, read_given
from search_r3_mteb.evaluation.systems import open_systems
from search_r3_mteb.report import report
from tests.evaluation.conftest import write_little
from tests.mteb_running import made_task

SAID = {
    "q0": "plain words",
    "q1": 'it says "quoted ""twice"" words" here',
    "q2": "a\ttab",
    "q3": "two\nlines",
    "q4": "",
    "q5": "Zürich 東京",
}
WORDS = ["silver", "river", "garden", "stone"]


@pytest.fixture
def beir(tmp_path):
    return write_little(tmp_path / "little", WORDS, 12)


@pytest.fixture
def given(tmp_path):
    """A file with a reasoning for each query of `beir`, and one more."""
    path = tmp_path / "said.jsonl"
    path.write_text("".join(json.dumps({"qid": f"q{n}", "rewrite": f"the {WORDS[n]}"}) + "\n" for n in range(4)))
    return path


# ---- layouts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("id_key", ["_id", "id", "query_id", "query-id", "qid"])
@pytest.mark.parametrize("text_key", ["reasoning", "rewrite", "reformulated", "reformulated_query", "text", "query"])
def test_json_lines(tmp_path, id_key, text_key):
    path = tmp_path / "said.jsonl"
    path.write_text("".join(json.dumps({id_key: i, "n": 1, text_key: text}) + "\n\n" for i, text in SAID.items()))
    assert read_given(path) == GivenFile("said.jsonl", SAID)


def test_the_query_itself_is_not_taken_for_its_rewrite(tmp_path):
    path = tmp_path / "said.json"
    rows = [{"query_id": 7, "query": "why?", "reasoning": "because"}, {"qid": "8", "query": "x", "text": "y"}]
    path.write_text(json.dumps(rows))
    assert read_given(path).texts == {"7": "because", "8": "y"}


def test_querygyms_tables(tmp_path):
    path = tmp_path / "0e3196ec.queries.tsv"
    with path.open("w", encoding="utf-8") as file:  # as QueryGym's DataLoader.save_queries writes them
        csv.writer(file, delimiter="\t").writerows(SAID.items())
    assert read_given(path).texts == SAID
    packed = tmp_path / "0e3196ec.queries.tsv.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read_given(packed).texts == SAID
    assert read_given(packed).digest == read_given(path).digest


def test_anserinis_tables(tmp_path):
    path = tmp_path / "topics.queries.tsv"
    path.write_text('1\t"to be" or not\n2\tthe 12" disc\n\n3\t"unfinished\r\n4\tlast')
    assert read_given(path).texts == {"1": '"to be" or not', "2": 'the 12" disc', "3": '"unfinished', "4": "last"}


@pytest.mark.parametrize(
    "text",
    [
        '1\t"who said\n2\tto be or not"\n3\tz',
        '0\t"quoted"\n1\t"who said\r\n2\tto be\r\n5\tor not"\r\n3\tz',
        '"1\twho\n2"\tsaid\n3\tz',
    ],
)
def test_a_text_that_swallows_rows_is_refused(tmp_path, text):
    path = tmp_path / "topics.tsv"
    path.write_text(text, newline="")
    with pytest.raises(ValueError, match=r"topics.tsv, lines \d to \d: .* is either one text of \d lines or \d rows"):
        read_given(path)
    path.write_text(text.replace('"', ""), newline="")
    assert len(read_given(path).texts) == len(text.splitlines())
    path.write_text('1\t"who said\nto be or not"\n3\tz')  # a line that is not a row belongs to the text
    assert read_given(path).texts == {"1": "who said\nto be or not", "3": "z"}


@pytest.mark.parametrize("names", ["qid\ttext", "query-id\treasoning", "_ID\tQuery"])
def test_a_header_row_is_no_query(tmp_path, names):
    path = tmp_path / "said.tsv"
    path.write_text(f"{names}\nq1\tone\n")
    assert read_given(path).texts == {"q1": "one"}
    path.write_text(f"q1\tone\n{names}\n")  # further down it is a row
    assert len(read_given(path).texts) == 2


def test_the_digest_is_that_of_ids_and_texts():
    first = GivenFile("a", {"1": "x", "2": "y"})
    assert first.digest == GivenFile("b", {"2": "y", "1": "x"}).digest
    assert first.digest != GivenFile("a", {"1": "y", "2": "x"}).digest


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.tsv", "q1\tone\nq2\ttwo\tmore\n", "a.tsv, line 2: a row is a query id, one tab and a text, .* 3 columns"),
        ("a.tsv", "q1\tone\nq2 two\n", "a.tsv, line 2: .* 1 columns"),
        ("a.tsv", "q1\tone\n\ttwo\n", "a.tsv, line 2: the query id is empty"),
        ("a.tsv", "q1\tone\nq2\t\nq1\tone\n", "a.tsv, line 3: the query 'q1' has a reasoning already, at .*line 1"),
        ("a.tsv", "\n", "holds no reasoning"),
        ("a.jsonl", '{"id": "q1", "text": "x"}\n{"id": "q2"}\n', "a.jsonl, line 2: no reasoning: one of .* holds id"),
        ("a.jsonl", '{"text": "x"}\n', "line 1: no query id"),
        ("a.jsonl", '{"id": "q1", "reasoning": null, "text": "x"}\n', "the reasoning must be a string, got null"),
        ("a.jsonl", '{"id": true, "text": "x"}\n', "the query id must be a string or a whole number, got a boolean"),
        ("a.jsonl", '["q1", "x"]\n', "a JSON object with a query id and a reasoning is needed, got an array"),
        ("a.jsonl", '{"id": "q1"', "line 1: not JSON"),
        ("a.jsonl", '{"id": "q1", "text": "\\ud800"}\n', "line 1: Reasoning 0 holds a lone surrogate"),
        ("a.csv", "q1,one\n", "reasonings are read from .jsonl, .ndjson, .jl, .json, .tsv, .txt"),
        ("a", "q1\tone\n", "got ''"),
    ],
)
def test_what_is_no_such_file_is_refused(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_given(path)
    with pytest.raises(FileNotFoundError, match="There is no file"):
        read_given(tmp_path / "none.jsonl")


# ---- evaluation ------------------------------------------------------------------------------------------------------


def test_given_rows_stand_beside_own_ones(tiny_checkpoint, beir, given, tmp_path, monkeypatch):
    output, settings = tmp_path / "out", {"max_reasoning_tokens": 4}
    own = evaluate([tiny_checkpoint], [f"beir:{beir}"], output=output, settings=settings)
    rows = evaluate([tiny_checkpoint], [f"beir:{beir}"], output=output, settings=settings, reasoning=given)
    assert [row["mode"] for row in rows] == ["given", "direct"]
    assert rows[1] == own[1]
    first = rows[0]
    assert (first["model"], first["reasoning_file"], len(first["reasoning"])) == ("tests/tiny", "said.jsonl", 64)
    assert first["fingerprint"] not in {row["fingerprint"] for row in own}
    assert len(json.loads((output / "summary.json").read_text())) == 3
    records = [json.loads(line) for line in (output / first["queries_file"]).read_text().splitlines()]
    encoder = SearchR3Encoder(tiny_checkpoint, **settings)
    texts = [f"the {word}" for word in WORDS]
    thoughts = encoder.think([record["query"] for record in records], reasoning=texts)
    documents = [json.loads(line)["text"] for line in (beir / "corpus.jsonl").read_text().splitlines()]
    vectors = encoder.encode_document(documents)
    for record, thought in zip(records, thoughts, strict=True):
        assert (record["reasoning"], record["finished"]) == (thought.text, thought.finished)
        assert record["reasoning_tokens"] == len(thought.token_ids)
        wanted = {f"d{n}": float(value) for n, value in enumerate(vectors @ thought.vector)}
        assert all(np.isclose(each["score"], wanted[each["id"]], atol=1e-5) for each in record["top"])
    page = tmp_path / "page.html"
    report([output], page)
    assert "given" in page.read_text()

    monkeypatch.setattr(Engine, "embed", None)
    again = evaluate([tiny_checkpoint], [f"beir:{beir}"], output=output, settings=settings, reasoning=given)
    assert again == rows


def test_another_file_is_another_row(tiny_checkpoint, beir, given, tmp_path):
    output, settings = tmp_path / "out", {"max_reasoning_tokens": 4}
    arguments = {"mode": "reason", "output": output, "settings": settings}
    [first] = evaluate([tiny_checkpoint], [f"beir:{beir}"], reasoning=given, **arguments)
    copy = tmp_path / "copy.tsv"
    copy.write_text("".join(f"q{n}\tthe {WORDS[n]}\n" for n in range(4)))
    [same] = evaluate([tiny_checkpoint], [f"beir:{beir}"], reasoning=copy, **arguments)
    assert same == first  # the same reasonings in another layout
    copy.write_text("".join(f"q{n}\tnone of it\n" for n in range(4)))
    [other] = evaluate([tiny_checkpoint], [f"beir:{beir}"], reasoning=copy, **arguments)
    assert other["model"].startswith("tests/tiny@")
    assert len(json.loads((output / "summary.json").read_text())) == 2


def test_mtebs_own_cache_keeps_them_apart(tiny_checkpoint, given):
    read = read_given(given)
    systems = [
        next(open_systems(tiny_checkpoint, "reason", {}, None, each))
        for each in (None, read, GivenFile("x", {**read.texts, "q0": "another"}))
    ]
    kwargs = [dict(system.model.mteb_model_meta.experiment_kwargs) for system in systems]
    assert [each["mode"] for each in kwargs] == ["reason", "given", "given"]
    assert kwargs[1] != kwargs[2]
    assert len({system.fingerprint for system in systems}) == 3


def test_missing_queries_are_named_before_anything_is_encoded(tiny_checkpoint, beir, given, tmp_path, monkeypatch):
    monkeypatch.setattr(Engine, "embed", None)
    given.write_text('{"id": "q1", "text": "x"}\n{"id": "q3", "text": "x"}\n')
    with pytest.raises(
        ValueError,
        match=r"said.jsonl has no reasoning for 2 of the 4 queries of \S+: 'q0', 'q2'. Its own ids are 'q1', 'q3'",
    ):
        evaluate([tiny_checkpoint], [f"beir:{beir}"], output=tmp_path / "out", reasoning=given)


def test_unknown_queries_are_named_and_left_out(tiny_checkpoint, beir, given, tmp_path, caplog):
    with given.open("a") as file:
        file.write('{"id": "elsewhere", "text": "x"}\n')
    settings = {"max_reasoning_tokens": 4}
    evaluate([tiny_checkpoint], [f"beir:{beir}"], "reason", tmp_path / "out", settings=settings, reasoning=given)
    assert "said.jsonl: 1 ids are not queries of" in caplog.text
    assert "'elsewhere'" in caplog.text


def test_texts_that_are_the_queries_themselves_are_refused_or_warned_of(tmp_path, caplog):
    words = {"q0": "What is  it?", "q1": "why"}
    queries = [{"id": id_, "text": text} for id_, text in words.items()]
    task = made_task("Same", {"default": ([{"id": "1", "text": "a"}], queries, {id_: {"1": 1} for id_ in words})})
    task.load_data()

    def read(thoughts, **rows):
        path = tmp_path / "said.jsonl"
        said = [{"qid": i, "query": text.lower()} | thoughts for i, text in (words | rows).items()]
        path.write_text("".join(json.dumps(row) + "\n" for row in said))
        caplog.clear()
        return read_given(path)

    given = read({"thought": "because"})
    assert "said.jsonl: the reasonings are read from 'query', which may be the query; 'thought' are left" in caplog.text
    with pytest.raises(
        ValueError,
        match=r"each of the 2 reasonings is its query of .* itself\. They were read from 'query', and the rows hold "
        "'thought', too, .* Name the column of the reasonings 'reasoning'",
    ):
        given.check(task)
    alone = read({})
    assert not caplog.text
    alone.check(task)
    assert "each of the 2 reasonings is its query of" in caplog.text
    for other in (read({"reasoning": "because"}), read({"thought": "x"}, q1="because"), read({}, q0="so")):
        caplog.clear()
        other.check(task)  # control: what says something is read
        assert "is its query" not in caplog.text


def test_a_subsets_own_id_goes_first():
    rows = [{"id": "1", "text": "a"}]
    task = made_task("Two", {name: (rows, [{"id": "q", "text": "b"}], {"q": {"1": 1}}) for name in ("en", "de")})
    task.load_data()
    read = GivenFile("f", {"de/q": "deutsch", "q": "other"})
    read.check(task)
    assert (read.of(["q"], "de"), read.of(["q"], "en")) == (["deutsch"], ["other"])
    with pytest.raises(ValueError, match="has no reasoning for 1 of the 2 queries"):
        GivenFile("f", {"de/q": "deutsch"}).check(task)


@pytest.mark.parametrize(
    ("models", "mode", "why"),
    [(["bm25"], "both", "none of the models is a Search-R3 checkpoint"), (["nano"], "direct", "the mode is 'direct'")],
)
def test_where_nothing_reasons_it_is_refused(given, tmp_path, models, mode, why):
    with pytest.raises(ValueError, match=f"said.jsonl would change nothing: {why}"):
        evaluate(models, ["stdlib"], mode, tmp_path / "out", reasoning=given)


@pytest.mark.parametrize("name", ["rocchio:mini", "feedback:mini+mini"])
def test_a_method_that_reads_the_corpus_has_no_place_for_it(given, tmp_path, name):
    with pytest.raises(ValueError, match=r"said\.jsonl would change nothing"):
        evaluate([name], ["stdlib"], output=tmp_path / "out", reasoning=given)


def test_an_encoder_in_memory(tiny_checkpoint, given):
    read = read_given(given)
    [system] = open_systems(SearchR3Encoder(tiny_checkpoint), "both", {}, None, read)
    assert system.mode == "given"
    with pytest.raises(ValueError, match="no place in an encoder of mode 'direct'"):
        list(open_systems(SearchR3Encoder(tiny_checkpoint, mode="direct"), "both", {}, None, read))


def test_the_command_line(call, tiny_folder, beir, given, tmp_path):
    output = tmp_path / "out"
    arguments = ["--task", f"beir:{beir}", "--output", output, "--max-reasoning-tokens", 4]
    code, out, _ = call("evaluate", "--model", tiny_folder, *arguments, "--reasoning", given)
    assert code == 0
    assert "given" in out
    assert {row["mode"] for row in json.loads((output / "summary.json").read_text())} == {"given", "direct"}
    code, _, error = call("evaluate", "--model", tiny_folder, *arguments, "--reasoning", tmp_path / "none.tsv")
    assert code == 2
    assert "There is no file" in error
    code, out, _ = call("explain", "--model", tiny_folder, "--corpus", beir, "--reasoning", "so it is", "where?")
    assert code == 0
    assert "given reasoning (" in out
    assert "so it is" in out
    code, out, _ = call(
        *("explain", "--model", tiny_folder, "--corpus", beir, "--reasoning", "so it is indeed, and more than that"),
        *("--max-reasoning-tokens", 3, "where?"),
    )
    assert "given reasoning (3 tokens, cut to the budget)" in out
