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
    (
        "negatives under another tool's name",
        {"query": "q", "positive": A, "neg": [N1]},
        "q", (A, A), (None,) * 2, (N1,),
    ),
    (
        "negatives under several names",
        {"query": "q", "pos": A, "neg": [N1], "negatives": [N2], "hard_negatives": [N3]},
        "q", (A, A), (None,) * 2, (N2, N3, N1),
    ),
    ("an empty second positive", {"query": "q", "positive": A, "pos": []}, "q", (A, A), (None,) * 2, ()),
    (
        "a teacher's margin",
        {"anchor": "q", "positive": A, "negative": N1, "label": 3.2},
        "q", (A, A), (None,) * 2, (N1,),
    ),
    (
        "labels that say the same",
        {"query": "q", "positive": A, "negatives": [N1, N2], "labels": [1, 0, 0]},
        "q", (A, A), (None,) * 2, (N1, N2),
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
    (
        "two positives, FlagEmbedding's",
        {"query": "q", "positive": A, "pos": [B]},
        ["'pos' and 'positive'", "Say which"],
    ),
    (
        "two positives, Tevatron's",
        {"query": "q", "positive": A, "positive_passages": PASSAGES},
        ["'positive' and 'positive_passages'", "Say which is which"],
    ),
    ("two positives by number", {"anchor": "q", "positive_1": A, "positive_2": B}, ["'positive_1' and 'positive_2'"]),
    ("our columns and a second query", {"query": "q", "anchor": "r", "positive": A}, ["'anchor' and 'query'"]),
    (
        "labels of positives beside a negative",
        {"query": "q", "positive": [A, N1], "label": [1, 0], "negative": N2},
        ["'label' is [1, 0]", "beside 2 texts called relevant and 1 called not"],
    ),
    ("labels, FlagEmbedding", {"query": "q", "pos": [A, N1], "labels": [1, 0]}, ["'labels' is [1, 0]"]),
    ("label 0 of a triplet", {"anchor": "q", "positive": A, "negative": N1, "label": 0}, ["'label' is 0"]),
    (
        "labels the other way round",
        {"query": "q", "positive": A, "negative": N1, "label": [0, 1]},
        ["'label' is [0, 1]"],
    ),
    ("too few scores", {"query": "q", "pos": [A, B], "neg": [N1], "pos_scores": [1.0]}, ["1 scores for 2 texts"]),
    (
        "MS MARCO of the hub",
        {
            "query": "q",
            "query_id": 7,
            "query_type": "LOCATION",
            "wellFormedAnswers": [],
            "answers": ["Bern"],
            "passages": {"is_selected": [0, 1], "passage_text": [N1, A], "url": ["x", "y"]},
        },
        ["MS MARCO's layout for question answering", "is_selected", "train.prepare msmarco"],
    ),
    (
        "sentence-transformers, ids",
        {"query_id": "7", "positive_id": "8", "negative_id": "9"},
        ["'negative_id', 'positive_id', 'query_id'", "train on the ids as if they were texts", "Join the texts"],
    ),
    (
        "sentence-transformers, many ids",
        {"query_id": "7", "positive_id": "8", "negative_id_1": "9", "negative_id_2": "10"},
        ["'negative_id_1'", "Join the texts"],
    ),
    ("a query's text and an id", {"query": "q", "positive_id": "8"}, ["'positive_id', 'query'", "Join the texts"]),
    (
        "sentence-transformers, list of labels",
        {"query": "q", "docs": [A, N1], "labels": [1, 0]},
        ["'docs' are texts of which 'labels' says", "train on all of them"],
    ),
    ("the same under another name", {"query": "q", "passages": [A, N1], "labels": [1, 0]}, ["'passages' are texts"]),
    ("nobody's", {"title": "q", "abstract": A}, ["there is no 'positive'", "'title', 'abstract'", "FlagEmbedding"]),
]


# Columns of texts in the formats of records.py, and what they are: the rule has no exception among them.
ROLES = {
    "query": ["query", "anchor", "question", "query_text"],
    "positive": [
        "positive", "positives", "pos", "answer", "positive_passages", "positive_ctxs", "positive_1", "positive_docs",
        "pos_2",
    ],
    "negative": [
        "negative", "negatives", "neg", "negative_1", "negative_10", "negative_passages", "hard_negative_ctxs",
        "negative_ctxs", "hard_negatives", "hard_negative", "hard_neg", "hard_negative_2", "negative_docs",
    ],
}  # fmt: skip


@pytest.mark.parametrize(("role", "name"), [(role, name) for role, names in ROLES.items() for name in names])
def test_no_column_that_a_format_has_is_passed_over(role, name, tmp_path):
    """Beside our own row: negatives are read, a second query or positive is refused; so is every judgement."""
    record = {"query": "q", "positive": A}
    path = write_jsonl(tmp_path / "rows.jsonl", [record | {name: B}])
    if role == "negative":
        assert rows(path)[0].negatives == (B,)
    elif name not in record:
        with pytest.raises(BadRowError, match=rf"'{name}'.*Say which is which"):
            rows(path)


@pytest.mark.parametrize("name", ["label", "labels", "score", "scores"])
@pytest.mark.parametrize("positive", ["positive", "pos", "positive_passages", "positive_ctxs", "answer"])
def test_a_judgement_is_refused_in_every_format(name, positive, tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"query": "q", positive: [{"text": A}, {"text": B}], name: [1, 0]}])
    with pytest.raises(BadRowError, match=rf"'{name}' is \[1, 0\]"):
        rows(path)


def test_other_columns_beside_a_row_are_nobodys_business(tmp_path):
    """The control: names that only resemble those of a format."""
    others = {"posted": B, "negated": "x", "answers": ["Bern"], "positive_id": 8, "negative_id": 9, "negative_rank": 3}
    (row,) = rows(write_jsonl(tmp_path / "rows.jsonl", [{"query": "q", "positive": A, "passages": [B], **others}]))
    assert (row.positive, row.positive_id, row.negatives) == (A, "8", ())


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


def test_a_named_trace_leaves_the_format_known(tmp_path):
    """Regression: whoever named the column of the reasoning lost FlagEmbedding's negatives without a word."""
    path = write_jsonl(tmp_path / "rows.jsonl", [{"query": "q", "positive": A, "neg": [N1], "why": "so", "key": 4}])
    (row,) = rows(path, columns=ColumnSettings(reasoning="why", positive_id="key"))
    assert (row.positive, row.positive_id, row.negatives, row.reasoning) == (A, "4", (N1,), "so")


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


@pytest.mark.parametrize(
    "header", ["query\tpositive\tnegative", "\ufeffAnchor\tPositive\tNegative ", "question\tpos\tneg"]
)
def test_a_header_is_no_row(header, tmp_path):
    """Regression: it was trained on. Two files put together have two."""
    (tmp_path / "triples.tsv").write_text(f"{header}\n{TRIPLES}{header.removeprefix(chr(0xFEFF))}\n", encoding="utf-8")
    opened = open_source(jsonl(tmp_path / "triples.tsv"))
    assert [(row.query, row.positive) for row in all_rows(opened)] == [("q", A), ("r r", B)]


@pytest.mark.parametrize("header", ["query\tnegative\tpositive", "query_id\tpositive\tnegative", "query\ttitle\ttext"])
def test_a_header_of_another_order_is_refused(header, tmp_path):
    (tmp_path / "triples.tsv").write_text(f"{header}\n{TRIPLES}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"triples\.tsv: .*names columns, which are read in the order query, positive"):
        open_source(jsonl(tmp_path / "triples.tsv"))
    (tmp_path / "triples.tsv").write_text(f"{TRIPLES}{header}\n", encoding="utf-8")
    with pytest.raises(BadRowError, match=r"line 3: .*names columns"):
        rows(tmp_path / "triples.tsv")


def test_texts_with_names_of_columns_are_texts(tmp_path):
    (tmp_path / "triples.tsv").write_text("query\tA query asks.\tpositive\nnegative\ta b\tc\n", encoding="utf-8")
    assert [row.query for row in rows(tmp_path / "triples.tsv")] == ["query", "negative"]


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
