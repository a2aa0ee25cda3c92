"""Rows as other tools write them: the table of formats, read by the sources, with the values that must come out."""

import gzip
import json

import pytest

from tests.train.data.test_mixing import data_of, jsonl, write_jsonl
from train.config.data import ColumnSettings, SourceSettings
from train.data.mixing import load_training_data
from train.data.rows import BadRowError
from train.data.sources import all_rows, open_source
from train.formats.records import columns_of

A, B, N1, N2, N3 = "Bern is a city.", "Bern lies on the Aare.", "Basel is a city.", "Rome is a city.", "Ulm is a city."
PASSAGES = [{"docid": "7", "title": "Bern", "text": "A city."}, {"docid": "8", "title": "", "text": B}]

# name, record, query, positives of two epochs, ids of these, negatives
READ = [
    ("ours", {"query": "q", "positive": [A, B], "negatives": [N1, N2]}, "q", (A, B), (None, None), (N1, N2)),
    ("FlagEmbedding", {"query": "q", "pos": [A, B], "neg": [N1, N2]}, "q", (A, B), (None, None), (N1, N2)),
    (
        "FlagEmbedding, scores and an empty prompt",
        {"query": "q", "pos": [A], "neg": [N1], "pos_scores": [0.9], "neg_scores": [0.1], "prompt": "", "type": "x"},
        "q", (A, A), (None, None), (N1,),
    ),
    ("sentence-transformers, pair", {"anchor": "q", "positive": A}, "q", (A, A), (None, None), ()),
    ("sentence-transformers, answer", {"question": "q", "answer": A}, "q", (A, A), (None, None), ()),
    (
        "sentence-transformers, triplet",
        {"anchor": "q", "positive": A, "negative": N1},
        "q", (A, A), (None, None), (N1,),
    ),
    (
        "sentence-transformers, n-tuple by number, not by letter",
        {"query": "q", "negative_10": N3, "positive": A, "negative_2": N2, "negative_1": N1},
        "q", (A, A), (None, None), (N1, N2, N3),
    ),
    (
        "sentence-transformers, n-tuple with scores",
        {"query": "q", "answer": A, "negative_1": N1, "negative_2": N2, "score": [0.9, 0.2, 0.1]},
        "q", (A, A), (None, None), (N1, N2),
    ),
    ("sentence-transformers, label 1", {"query": "q", "answer": A, "label": 1}, "q", (A, A), (None, None), ()),
    (
        "Tevatron",
        {
            "query_id": "3", "query": "q", "positive_passages": PASSAGES,
            "negative_passages": [{"docid": "9", "title": "Basel", "text": "A city."}],
        },
        "q", ("Bern A city.", B), ("7", "8"), ("Basel A city.",),
    ),
    (
        "DPR",
        {
            "question": "q", "answers": ["Bern"], "positive_ctxs": [{"title": "Bern", "text": "A city.", "score": 1}],
            "negative_ctxs": [], "hard_negative_ctxs": [{"title": "Basel", "text": "A city."}],
        },
        "q", ("Bern A city.",) * 2, (None, None), ("Basel A city.",),
    ),
]  # fmt: skip

# name, record, words of the message
REFUSED = [
    ("FlagEmbedding, prompt", {"query": "q", "pos": [A], "neg": [], "prompt": "Find it."}, ["'prompt'", "columns ="]),
    ("FlagEmbedding, no positive", {"query": "q", "pos": [], "neg": [N1]}, ["'pos' is an empty list"]),
    ("FlagEmbedding, contradiction", {"query": "q", "pos": [A], "neg": [A]}, ["also among the negatives"]),
    ("label 0", {"query": "q", "answer": A, "label": 0}, ["'label' is 0", "Keep the rows"]),
    ("label 0 in our columns", {"query": "q", "positive": A, "label": 0}, ["'label' is 0"]),
    ("score", {"anchor": "q", "positive": A, "score": 0.25}, ["'score' is 0.25"]),
    ("labelled list", {"query": "q", "answer": [A, N1], "labels": [1, 0]}, ["'labels' is [1, 0]"]),
    ("pairs of equals", {"sentence1": "q", "sentence2": A, "score": 4.2}, ["'sentence1' and 'sentence2'", "columns ="]),
    ("entailment", {"premise": "q", "hypothesis": A, "label": 1}, ["'premise' and 'hypothesis'"]),
    ("two queries", {"query": "q", "question": "q", "answer": A}, ["'query' and 'question'", "Say which is which"]),
    (
        "Tevatron, ids",
        {"query_id": "3", "query_text": "q", "positive_document_ids": ["7"], "negative_document_ids": []},
        ["Tevatron's format with document ids", 'kind = "beir"'],
    ),
    ("Tevatron, tokens", {"query": [1, 2], "positives": [[3]], "negatives": [[4]]}, ["tokenised"]),
    (
        "MS MARCO, ids",
        {"qid": 3, "pos": [7], "neg": {"bm25": [9]}},
        ["MS MARCO's format with the ids", "train.prepare"],
    ),
    ("BEIR judgements", {"query-id": "3", "corpus-id": "7", "score": 1}, ["judgements of a BEIR set", 'kind = "beir"']),
    ("nobody's", {"title": "q", "abstract": A}, ["there is no 'positive'", "'title', 'abstract'", "FlagEmbedding"]),
]


def rows(path, epoch=0, **settings):
    source = open_source(jsonl(path, **settings))
    return [source.parse(raw, epoch) for raw in source.iterate()]


@pytest.mark.parametrize(("record", "query", "positives", "ids", "negatives"), [one[1:] for one in READ],
                         ids=[one[0] for one in READ])  # fmt: skip
def test_a_known_format_is_read(record, query, positives, ids, negatives, tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [record])
    for epoch in (0, 1):
        (row,) = rows(path, epoch)
        assert (row.query, row.positive, row.positive_id, row.negatives) == (
            query, positives[epoch], ids[epoch], negatives,
        )  # fmt: skip


@pytest.mark.parametrize(("record", "words"), [one[1:] for one in REFUSED], ids=[one[0] for one in REFUSED])
def test_what_cannot_be_trained_on_is_refused_by_name(record, words, tmp_path):
    good = {"query": "q", "positive": A}
    path = write_jsonl(tmp_path / "rows.jsonl", [good, record])
    with pytest.raises(BadRowError) as error:
        rows(path)
    for word in [*words, "rows.jsonl, line 2"]:
        assert word in str(error.value)


def test_the_same_formats_from_a_folder_of_datasets(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [{"query": "q", "pos": [A, B], "neg": [N1]}, {"query": "r", "pos": [B]}])
    found = list(all_rows(open_source(SourceSettings(kind="hub", path=str(tmp_path)))))
    assert [(row.query, row.positive, row.negatives) for row in found] == [("q", A, (N1,)), ("r", B, ())]


def test_every_record_is_read_by_its_own_columns(tmp_path):
    records = [
        {"query": "q", "positive": A},
        {"query": "r", "pos": [B]},
        {"query": "s", "positive": A, "negative_1": N1},
    ]
    found = rows(write_jsonl(tmp_path / "rows.jsonl", records))
    assert [(row.positive, row.negatives) for row in found] == [(A, ()), (B, ()), (A, (N1,))]


def test_named_columns_are_read_as_named(tmp_path):
    """Also where the record has a known format: the user has decided about the prompt."""
    path = write_jsonl(tmp_path / "rows.jsonl", [{"query": "q", "pos": [A], "neg": [N1], "prompt": "Find it."}])
    columns = ColumnSettings(positive="pos", negatives=("neg",))
    (row,) = rows(path, columns=columns)
    assert (row.positive, row.negatives) == (A, (N1,))
    other = ColumnSettings(positive="neg", negatives=())
    assert columns_of(other, {"query": "q", "pos": [A], "neg": [N1]}) is other


def test_a_judged_pair_is_skipped_where_bad_rows_are(tmp_path):
    records = [{"query": f"q{n}", "answer": f"{A} {n}", "label": n % 2} for n in range(6)]
    path = write_jsonl(tmp_path / "rows.jsonl", records)
    data = load_training_data(data_of(jsonl(path), on_bad_row="skip"), batch_size=3, seed=0)
    assert sorted(row.query for row in data.next_batch()) == ["q1", "q3", "q5"]


TRIPLES = f"q\t{A}\t{N1}\nr r\t{B}\t{N2}\n"


@pytest.mark.parametrize("name", ["triples.train.small.tsv", "triples.train.full.tsv.gz", "triples.txt"])
def test_triples_of_texts_are_read(name, tmp_path):
    text = TRIPLES.encode()
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    found = rows(tmp_path / name)
    assert [(row.query, row.positive, row.negatives) for row in found] == [("q", A, (N1,)), ("r r", B, (N2,))]


def test_a_line_that_is_no_triple_is_named(tmp_path):
    (tmp_path / "triples.tsv").write_text(f"{TRIPLES}s\t{A}\n", encoding="utf-8")
    with pytest.raises(BadRowError, match=r"line 3: query, positive and negative are three columns.*this line has 2"):
        rows(tmp_path / "triples.tsv")


@pytest.mark.parametrize(
    ("name", "line", "words"),
    [
        ("qidpidtriples.train.full.2.tsv", "1000094\t5399011\t4239068", "triples of ids"),
        ("collection.tsv", f"0\t{A}", "texts, but no pairs"),
        ("queries.train.tsv", "121352\tdefine extreme", "texts, but no pairs"),
        ("qrels.train.tsv", "1185869\t0\t0\t1", "judgements (qrels)"),
        ("top1000.dev.tsv", f"188714\t1000052\tq\t{A}", "top 1000"),
        ("train.tsv", "query-id\tcorpus-id\tscore", "judgements of a BEIR folder"),
        ("msmarco-docs.tsv", "D1\thttp://x\tBern\tA city.\tx", "5 columns"),
        ("rows.parquet", "PAR1", 'kind = "hub"'),
        ("rows.csv", "query,positive", "one JSON object per line"),
        ("rows.json", json.dumps([{"query": "q", "positive": A}]), "jq -c"),
    ],
)
def test_a_file_without_rows_is_refused_by_name(name, line, words, tmp_path):
    (tmp_path / name).write_text(f"{line}\n{line}\n", encoding="utf-8")
    with pytest.raises(ValueError) as error:
        open_source(jsonl(tmp_path / name))
    assert words in str(error.value)
    assert name in str(error.value)


def test_a_packed_one_is_refused_as_well(tmp_path):
    (tmp_path / "qidpidtriples.train.full.2.tsv.gz").write_bytes(gzip.compress(b"1\t2\t3\n"))
    with pytest.raises(ValueError, match=r"triples of ids.*train\.prepare msmarco"):
        open_source(jsonl(tmp_path / "qidpidtriples.train.full.2.tsv.gz"))


def test_a_set_that_was_not_made_names_the_command(tmp_path):
    for kind in ("jsonl", "beir"):
        with pytest.raises(FileNotFoundError, match=r"made by `python -m train\.prepare NAME`"):
            open_source(SourceSettings(kind=kind, path=str(tmp_path / "data")))


def test_ms_marcos_own_folder_is_not_a_beir_folder(tmp_path):
    (tmp_path / "collection.tsv").write_text(f"0\t{A}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"MS MARCO's own layout, not a BEIR folder.*train\.prepare msmarco"):
        open_source(SourceSettings(kind="beir", path=str(tmp_path)))
