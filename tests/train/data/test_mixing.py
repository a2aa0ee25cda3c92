import gzip
import json
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_r3_mteb.tasks.beir_folder import write_beir
from train.config.data import ColumnSettings, DataSettings, DecontaminationSettings, SourceSettings
from train.data.jsonl import JsonlFile
from train.data.mixing import load_training_data
from train.data.order import choose, permuted, uniform
from train.data.rows import BadRowError
from train.data.sources import all_rows, open_source

OFF = DecontaminationSettings(enabled=False)


def write_jsonl(path: Path, rows, packed=False) -> Path:
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    return path


def pairs(count, name="q"):
    return [
        {"query": f"{name}{i}", "positive": f"{name} document {i}", "positive_id": f"{name}-d{i}"} for i in range(count)
    ]


def data_of(*sources, **keywords) -> DataSettings:
    keywords.setdefault("decontamination", OFF)
    return DataSettings(sources=sources, **keywords)


def jsonl(path, **keywords) -> SourceSettings:
    return SourceSettings(kind="jsonl", path=str(path), **keywords)


def take(data, batches):
    return [row for _ in range(batches) for row in data.next_batch()]


@pytest.fixture
def beir(tmp_path):
    folder = tmp_path / "beir"
    judged = [("q0", "d0", 1), ("q0", "d1", 2), ("q1", "d2", 1), ("q1", "d3", 0), ("q2", "d4", 1), ("q3", "d5", 0)]
    documents = [(f"d{i}", f"T{i}", f"text {i}") for i in range(6)]
    queries = [(f"q{i}", f"query {i}") for i in range(4)]
    write_beir(folder, corpus=documents, queries=queries, qrels={"train": judged})
    return folder


# --- order ------------------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(size=st.integers(1, 400), key=st.integers(0, 2**64 - 1))
def test_the_permutation_visits_every_row_once(size, key):
    assert sorted(permuted(i, size, key) for i in range(size)) == list(range(size))


def test_the_permutation_has_no_pattern():
    """First element over many keys: uniform (chi-square with 9 degrees of freedom, 27.9 is the 0.1 % point)."""
    counts = Counter(permuted(0, 10, key) for key in range(5000))
    assert sum((counts[i] - 500) ** 2 / 500 for i in range(10)) < 27.9
    fixed = sum(permuted(i, 1000, 7) == i for i in range(1000))
    assert fixed < 10  # a random permutation keeps one on average
    with pytest.raises(IndexError):
        permuted(5, 5, 1)


def test_draws_are_uniform_and_choices_distinct():
    draws = [uniform("x", i) for i in range(4000)]
    assert abs(sum(draws) / 4000 - 0.5) < 0.02
    assert 0 <= min(draws) <= max(draws) < 1
    assert choose(3, 10, "a") != choose(3, 10, "b")
    assert len(set(choose(3, 10, "a"))) == 3
    assert choose(5, 2, "a") == [0, 1]


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["\n", ""])
def test_lines_at_random_equal_lines_in_order(tmp_path, ending):
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(json.dumps({"n": i, "pad": "x" * (i % 70)}) for i in range(1000)) + ending)
    file = JsonlFile(path)
    assert file.count == 1000
    assert [file.record(file.at(i))["n"] for i in (999, 0, 31, 32, 33, 500)] == [999, 0, 31, 32, 33, 500]
    assert [line.number for line in file.lines(64)][:3] == [65, 66, 67]
    assert [file.record(line)["n"] for line in file.lines(37)] == list(range(37, 1000))
    with pytest.raises(IndexError, match="1000 lines"):
        file.at(1000)


def test_packed_files_are_read_in_order_only(tmp_path):
    path = write_jsonl(tmp_path / "x.jsonl.gz", pairs(50), packed=True)
    file = JsonlFile(path)
    assert file.count is None
    assert [file.record(line)["query"] for line in file.lines(48)] == ["q48", "q49"]
    with pytest.raises(ValueError, match="can only be read in order"):
        file.at(0)


def test_a_cut_off_gz_names_file_and_line(tmp_path):
    path = write_jsonl(
        tmp_path / "x.jsonl.gz", [{"query": f"{i * 7919}", "positive": "p"} for i in range(5000)], packed=True
    )
    path.write_bytes(path.read_bytes()[:-2000])
    data = load_training_data(data_of(jsonl(path), on_bad_row="skip"), batch_size=5000, seed=0)
    with pytest.raises(ValueError, match=r"x.jsonl.gz, after line \d+: damaged or truncated"):
        data.next_batch()


def test_missing_and_empty_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*nothing\.jsonl"):
        load_training_data(data_of(jsonl(tmp_path / "nothing.jsonl")), batch_size=1, seed=0)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"empty.jsonl is empty: there is nothing to train on"):
        load_training_data(data_of(jsonl(tmp_path / "empty.jsonl")), batch_size=1, seed=0)
    write_jsonl(tmp_path / "empty.jsonl.gz", [], packed=True)
    with pytest.raises(ValueError, match=r"empty.jsonl.gz has no rows"):
        load_training_data(data_of(jsonl(tmp_path / "empty.jsonl.gz")), batch_size=1, seed=0).next_batch()


def test_columns_are_mapped_and_every_form_of_document_is_read(tmp_path):
    columns = ColumnSettings(
        query="question",
        positive="good",
        positive_id="gid",
        negatives=("bad", "worse"),
        reasoning="because",
        query_id="n",
    )
    rows = [
        {"question": "a", "good": "plain", "gid": 7, "bad": "n1", "worse": ["n2", {"title": "N", "text": "3"}], "n": 5},
        {"question": "b", "good": {"title": "T", "text": "body", "docid": "D"}, "because": "so"},
        {"question": "c", "good": [{"_id": "x", "text": "one"}, {"_id": "y", "text": "two"}], "bad": []},
    ]
    source = open_source(jsonl(write_jsonl(tmp_path / "x.jsonl", rows), columns=columns))
    a, b, c = all_rows(source)
    assert (a.query, a.positive, a.positive_id, a.negatives, a.query_id) == (
        "a",
        "plain",
        "7",
        ("n1", "n2", "N 3"),
        "5",
    )
    assert (b.positive, b.positive_id, b.reasoning, b.negatives) == ("T body", "D", "so", ())
    assert (c.positive, c.positive_id, c.relevant) == ("one", "x", (("x", 1), ("y", 1)))
    assert source.parse(source.at(2), epoch=1).positive == "two"  # the next epoch takes the next positive
    assert a.source == "x.jsonl"


def test_a_separate_title_column_is_joined(tmp_path):
    path = write_jsonl(tmp_path / "x.jsonl", [{"query": "q", "positive": "body", "heading": "Title"}])
    (row,) = all_rows(open_source(jsonl(path, columns=ColumnSettings(positive_title="heading"))))
    assert row.positive == "Title body"


BAD = [
    ("{", r"not JSON \(.* at column"),
    ("[1]", "a row is one JSON object, got list"),
    ({"positive": "p"}, "there is no 'query'; the row has 'positive'"),
    ({"query": "q"}, "there is no 'positive'"),
    ({"query": "  ", "positive": "p"}, "'query' is empty"),
    ({"query": 3, "positive": "p"}, "'query' must be text, got int"),
    ({"query": "q", "positive": None}, "'positive' must be text, got NoneType"),
    ({"query": "q", "positive": []}, "'positive' is an empty list"),
    ({"query": "q", "positive": {"title": "t"}}, "has no 'text'"),
    ({"query": "q", "positive": "p", "negatives": ["n", 4]}, "'negatives' must be text, got int"),
    ({"query": "q", "positive": "p", "negatives": ["p"]}, "also among the negatives"),
    ({"query": "q", "positive": "p", "positive_id": 1.5}, "an id must be text or a whole number"),
    ({"query": "q", "positive": ["p", "r"], "positive_id": "x"}, "is one id, but 'positive' holds 2 documents"),
    ('{"query": "\\ud800", "positive": "p"}', "lone surrogate"),
    ({"query": "q", "positive": "p", "reasoning": ""}, "'reasoning' is empty"),
]


@pytest.mark.parametrize(("row", "reason"), BAD)
def test_a_malformed_row_stops_with_file_line_and_reason(tmp_path, row, reason):
    path = write_jsonl(tmp_path / "x.jsonl", [*pairs(2), row, *pairs(2)])
    data = load_training_data(data_of(jsonl(path)), batch_size=5, seed=0)
    with pytest.raises(BadRowError, match=rf"x.jsonl, line 3: .*{reason}.*on_bad_row") as caught:
        take(data, 1)
    assert caught.value.line == 3


@pytest.mark.parametrize("packed", [False, True])
def test_malformed_rows_are_skipped_and_counted_once(tmp_path, packed):
    good = pairs(20)
    path = write_jsonl(
        tmp_path / ("x.jsonl.gz" if packed else "x.jsonl"), [good[0], *(row for row, _ in BAD), *good[1:], ""], packed
    )
    data = load_training_data(data_of(jsonl(path), on_bad_row="skip", shuffle_rows=7), batch_size=20, seed=3)
    rows = take(data, 3)
    assert Counter(row.query for row in rows) == dict.fromkeys((f"q{i}" for i in range(20)), 3)
    (statistics,) = data.statistics()
    assert statistics.bad == len(BAD)
    assert statistics.rows == 60
    assert len(statistics.bad_examples) == 5
    assert "line" in statistics.bad_examples[0]


def test_bytes_that_are_no_utf8_are_a_malformed_row(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'{"query": "\xff", "positive": "p"}\n')
    with pytest.raises(BadRowError, match=r"line 1: not JSON \(not UTF-8"):
        load_training_data(data_of(jsonl(tmp_path / "x.jsonl")), batch_size=1, seed=0).next_batch()


def test_a_source_without_one_sound_row_stops_instead_of_turning_for_ever(tmp_path):
    path = write_jsonl(tmp_path / "x.jsonl", ["{", "{"])
    data = load_training_data(data_of(jsonl(path), on_bad_row="skip"), batch_size=1, seed=0)
    with pytest.raises(ValueError, match=r"none of its 2 rows can be trained on: 2 are malformed.*line"):
        data.next_batch()


def test_a_byte_order_mark_and_windows_line_ends_are_no_fault(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'\xef\xbb\xbf{"query": "q", "positive": "p"}\r\n\r\n')
    (row,) = all_rows(open_source(jsonl(tmp_path / "x.jsonl")))
    assert row.query == "q"


# --- BEIR, hub, hopworld ----------------------------------------------------------------------------------------------


def test_beir_gives_one_row_per_relevant_judgement(beir):
    rows = list(all_rows(open_source(SourceSettings(kind="beir", path=str(beir)))))
    assert [(r.query, r.positive, r.positive_id) for r in rows] == [
        ("query 0", "T0 text 0", "d0"),
        ("query 0", "T1 text 1", "d1"),
        ("query 1", "T2 text 2", "d2"),
        ("query 2", "T4 text 4", "d4"),
    ]
    assert rows[0].relevant == (("d0", 1), ("d1", 2))
    assert rows[0].query_id == "q0"


def test_beir_prompts_are_one_row_per_query_with_graded_judgements(beir):
    rows = list(all_rows(open_source(SourceSettings(kind="beir", path=str(beir)), unit="query")))
    assert [(r.query_id, r.positive_id, r.relevant) for r in rows] == [
        ("q0", "d1", (("d0", 1), ("d1", 2))),
        ("q1", "d2", (("d2", 1),)),
        ("q2", "d4", (("d4", 1),)),
    ]


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("corpus.jsonl", "{", r"corpus.jsonl, line 7: not JSON"),
        ("corpus.jsonl", '{"_id": "d9"}', r"corpus.jsonl, line 7: "),
        ("corpus.jsonl", '{"_id": "d0", "text": "again"}', r"corpus.jsonl, line 7: .*already used"),
        ("queries.jsonl", '{"text": "no id"}', r"queries.jsonl, line 5: "),
        ("qrels/train.tsv", "q0\td0", r"train.tsv, line 8: "),
        ("qrels/train.tsv", "q0\td0\t+-1", r"train.tsv, line 8: relevance must be an integer"),
        ("qrels/train.tsv", "q0\tnowhere\t1", r"train.tsv, line 8: judges document 'nowhere'"),
        ("qrels/train.tsv", "nobody\td0\t1", r"train.tsv, line 8: judges query 'nobody'"),
    ],
)
def test_a_malformed_beir_row_stops_or_is_skipped(beir, file, line, message):
    clean = list(all_rows(open_source(SourceSettings(kind="beir", path=str(beir)))))
    with (beir / file).open("a") as stream:
        stream.write(line + "\n")
    with pytest.raises(ValueError, match=message):
        load_training_data(data_of(SourceSettings(kind="beir", path=str(beir))), batch_size=1, seed=0)
    settings = data_of(SourceSettings(kind="beir", path=str(beir)), on_bad_row="skip")
    data = load_training_data(settings, batch_size=4, seed=0)
    assert data.statistics()[0].bad == 1
    assert Counter(data.next_batch()) == Counter(clean)


@pytest.mark.parametrize("on_bad_row", ["stop", "skip"])
@pytest.mark.parametrize("header", ["corpus-id\tquery-id\tscore\n", ""])
def test_a_header_that_means_other_columns_is_no_row_to_skip(beir, header, on_bad_row):
    file = beir / "qrels" / "train.tsv"
    file.write_text(header + file.read_text().partition("\n")[2])
    with pytest.raises(ValueError, match=r"train\.tsv, line 1: the header"):
        open_source(SourceSettings(kind="beir", path=str(beir)), on_bad_row=on_bad_row)


def test_a_folder_without_positives_or_split_says_so(beir):
    (beir / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq0\td0\t0\n")
    with pytest.raises(ValueError, match="judges no document relevant"):
        open_source(SourceSettings(kind="beir", path=str(beir), split="dev"))
    with pytest.raises(ValueError, match="no split 'test'"):
        open_source(SourceSettings(kind="beir", path=str(beir), split="test"))


def test_a_local_folder_is_read_as_a_hub_dataset(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "set").mkdir()
    write_jsonl(tmp_path / "set" / "train.jsonl", [{"question": f"q{i}", "answer": f"a{i}"} for i in range(25)])
    source = SourceSettings(
        kind="hub", path=str(tmp_path / "set"), columns=ColumnSettings(query="question", positive="answer")
    )
    data = load_training_data(data_of(source, shuffle_rows=10), batch_size=25, seed=0)
    rows = data.next_batch()
    assert sorted(row.query for row in rows) == sorted(f"q{i}" for i in range(25))
    assert [row.query for row in rows] != [f"q{i}" for i in range(25)]
    assert all(row.positive == row.query.replace("q", "a") for row in rows)
    saved = data.state_dict()
    again = load_training_data(data_of(source, shuffle_rows=10), batch_size=25, seed=0)
    again.load_state_dict(saved)
    assert again.next_batch() == data.next_batch()


def test_a_bad_hub_row_names_dataset_and_row(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "set").mkdir()
    write_jsonl(tmp_path / "set" / "train.jsonl", [{"query": "q", "positive": "p"}, {"query": "", "positive": "p"}])
    data = load_training_data(data_of(SourceSettings(kind="hub", path=str(tmp_path / "set"))), batch_size=2, seed=0)
    with pytest.raises(BadRowError, match=r"set\[train\], line 2: 'query' is empty"):
        data.next_batch()


def test_hopworld_rows_carry_traces_or_not():
    with_traces = SourceSettings(kind="hopworld", documents=500, hops=(2,))
    without = SourceSettings(kind="hopworld", documents=500, hops=(3,), traces=False)
    data = load_training_data(data_of(with_traces, without), batch_size=16, seed=0)
    rows = take(data, 4)
    assert {row.source: (row.hops, row.reasoning is not None) for row in rows} == {
        "hopworld-2-traces": (2, True),
        "hopworld-3": (3, False),
    }
    assert all(row.relevant == ((row.positive_id, 1),) and row.query_id for row in rows)


def test_hopworld_rows_have_their_chain_s_earlier_documents_as_negatives():
    source = SourceSettings(kind="hopworld", documents=500, hops=(1, 2))
    rows = take(load_training_data(data_of(source, hard_negatives=3), batch_size=16, seed=0), 4)
    assert {row.hops for row in rows} == {1, 2}
    for row in rows:
        assert " ".join([*row.negatives, row.positive]) == row.reasoning
    assert not any(row.negatives for row in take(load_training_data(data_of(source), batch_size=16, seed=0), 4))


# --- the stream -------------------------------------------------------------------------------------------------------


@pytest.fixture
def mixed(tmp_path):
    """A plain file, a packed file and weights 3 to 1."""
    plain = write_jsonl(tmp_path / "plain.jsonl", pairs(37, "a"))
    packed = write_jsonl(tmp_path / "packed.jsonl.gz", pairs(23, "b"), packed=True)
    return data_of(jsonl(plain, weight=3), jsonl(packed), shuffle_rows=5)


def test_every_epoch_has_every_row_once_in_another_order(tmp_path):
    path = write_jsonl(tmp_path / "x.jsonl", pairs(50))
    data = load_training_data(data_of(jsonl(path)), batch_size=50, seed=0)
    first, second = ([row.query for row in data.next_batch()] for _ in range(2))
    assert sorted(first) == sorted(second) == sorted(f"q{i}" for i in range(50))
    assert first != second
    assert first != [f"q{i}" for i in range(50)]
    other = load_training_data(data_of(jsonl(path)), batch_size=50, seed=1)
    assert [row.query for row in other.next_batch()] != first


def test_weights_are_shares_of_rows(mixed):
    data = load_training_data(mixed, batch_size=100, seed=0)
    counts = Counter(row.source for row in take(data, 40))
    assert abs(counts["plain.jsonl"] / 4000 - 0.75) < 0.02  # standard error 0.007


def test_batches_of_one_source(mixed):
    data = load_training_data(data_of(*mixed.sources, mixing="batches"), batch_size=8, seed=0)
    batches = [{row.source for row in data.next_batch()} for _ in range(80)]
    assert all(len(sources) == 1 for sources in batches)
    assert 45 <= sum(sources == {"plain.jsonl"} for sources in batches) <= 74


@pytest.mark.parametrize("stop", [0, 1, 3, 7, 20])
def test_a_resumed_stream_continues_exactly(mixed, stop):
    whole = load_training_data(mixed, batch_size=8, seed=5)
    expected = [whole.next_batch() for _ in range(30)]
    part = load_training_data(mixed, batch_size=8, seed=5)
    for _ in range(stop):
        part.next_batch()
    saved = json.loads(json.dumps(part.state_dict()))
    resumed = load_training_data(mixed, batch_size=8, seed=5)
    resumed.load_state_dict(saved)
    assert [resumed.next_batch() for _ in range(30 - stop)] == expected[stop:]
    assert resumed.state_dict() == whole.state_dict()
    # negative control: without the state the stream begins again
    assert stop == 0 or load_training_data(mixed, batch_size=8, seed=5).next_batch() != expected[stop]


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_shares_of_all_processes_are_the_single_batch(mixed, world_size):
    single = load_training_data(mixed, batch_size=8, seed=0)
    shares = [load_training_data(mixed, batch_size=8, seed=0, rank=r, world_size=world_size) for r in range(world_size)]
    for _ in range(12):
        assert [row for share in shares for row in share.next_batch()] == single.next_batch()
    assert all(share.state_dict() == single.state_dict() for share in shares)
    # a run on several processes resumes on one
    alone = load_training_data(mixed, batch_size=8, seed=0)
    alone.load_state_dict(shares[-1].state_dict())
    assert alone.next_batch() == single.next_batch()


def test_negatives_are_limited_and_drawn_again_in_each_epoch(tmp_path):
    rows = [{"query": f"q{i}", "positive": "p", "negatives": [f"n{j}" for j in range(10)]} for i in range(8)]
    path = write_jsonl(tmp_path / "x.jsonl", rows)
    data = load_training_data(data_of(jsonl(path), hard_negatives=3), batch_size=8, seed=0)
    first, second = ({row.query: row.negatives for row in data.next_batch()} for _ in range(2))
    assert all(len(set(negatives)) == 3 for negatives in first.values())
    assert first != second
    assert {row.negatives for row in load_training_data(data_of(jsonl(path)), batch_size=8, seed=0).next_batch()} == {
        ()
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 4}, "batch_size = 8, this run has 4"),
        ({"seed": 1}, "seed = 0, this run has 1"),
    ],
)
def test_a_foreign_position_is_refused(mixed, change, message):
    saved = load_training_data(mixed, batch_size=8, seed=0).state_dict()
    with pytest.raises(ValueError, match=message):
        load_training_data(mixed, **({"batch_size": 8, "seed": 0} | change)).load_state_dict(saved)
    with pytest.raises(ValueError, match="sources = "):
        load_training_data(data_of(mixed.sources[0]), batch_size=8, seed=0).load_state_dict(saved)


def test_a_file_that_changed_is_refused_on_resume(tmp_path):
    path = write_jsonl(tmp_path / "x.jsonl", pairs(10))
    saved = load_training_data(data_of(jsonl(path)), batch_size=2, seed=0).state_dict()
    write_jsonl(path, pairs(11))
    with pytest.raises(ValueError, match=r"x.jsonl had 10 rows when the checkpoint was written and has 11 now"):
        load_training_data(data_of(jsonl(path)), batch_size=2, seed=0).load_state_dict(saved)


def test_uneven_shares_are_refused(mixed):
    with pytest.raises(ValueError, match=r"batch_size = 8 cannot be shared evenly by 3 processes.*multiple of 3"):
        load_training_data(mixed, batch_size=8, seed=0, rank=0, world_size=3)
    with pytest.raises(ValueError, match="rank = 2 is not one of 2 processes"):
        load_training_data(mixed, batch_size=8, seed=0, rank=2, world_size=2)


def peak_of(path: Path, rows: int) -> int:
    """Peak bytes allocated while a shuffled stream over `path` gives `rows` rows."""
    tracemalloc.start()
    data = load_training_data(data_of(jsonl(path), shuffle_rows=1000), batch_size=100, seed=0)
    seen = [row.query for _ in range(rows // 100) for row in data.next_batch()]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(set(seen)) == rows
    return peak


@pytest.mark.parametrize("packed", [False, True])
def test_a_large_file_is_not_read_into_memory(tmp_path, packed):
    path = tmp_path / ("x.jsonl.gz" if packed else "x.jsonl")
    line = '{"query": "question number %d", "positive": "' + "a document " * 20 + '"}\n'
    with gzip.open(path, "wt", compresslevel=1) if packed else path.open("w") as stream:
        stream.writelines(line % i for i in range(60_000))
    assert peak_of(path, 2000) < 4 << 20  # the file has 16 MB


@pytest.mark.slow
def test_ten_million_rows_take_a_few_megabytes(tmp_path):
    path = tmp_path / "x.jsonl"
    with path.open("w") as stream:
        for start in range(0, 10_000_000, 10_000):
            stream.write(
                "".join(
                    f'{{"query": "question {i}", "positive": "document {i}"}}\n' for i in range(start, start + 10_000)
                )
            )
    assert path.stat().st_size > 500 << 20
    assert peak_of(path, 20_000) < 16 << 20
    far = load_training_data(data_of(jsonl(path)), batch_size=64, seed=0)
    state = far.state_dict()
    state["sources"]["x.jsonl"]["position"] = 9_999_990  # resuming at the far end reads nothing before it
    far.load_state_dict(state)
    assert len({row.query for row in far.next_batch()}) == 64
