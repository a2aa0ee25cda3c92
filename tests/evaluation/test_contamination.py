"""Contamination by hand: equal texts, near copies of a known Jaccard, ids, and texts that only look alike."""

import gzip
import json

import pytest

from search_r3_mteb import cli
from search_r3_mteb.evaluation.contamination import contamination
from search_r3_mteb.evaluation.training_texts import read_training, row_texts
from search_r3_mteb.tasks.beir_folder import write_beir
from tests.mteb_running import made_task

QUERIES = [("q0", "Why is the sky blue?"), ("q1", "a b c d e f g h i j"), ("q2", "who wrote the letter to the king")]
CORPUS = [
    ("d0", "Optics", "light is scattered by small molecules of air"),
    ("d1", "", "one two three four five six seven eight nine ten"),
    ("d2", "", "the letter was written by the queen herself"),
    ("d3", "", "nobody asks for this page about garden tools"),
]
QRELS = {"q0": {"d0": 1}, "q1": {"d1": 1, "d3": 0}, "q2": {"d2": 2}}


def task():
    documents = [{"id": id_, "title": title, "text": text} for id_, title, text in CORPUS]
    queries = [{"id": id_, "text": text} for id_, text in [*QUERIES, ("unjudged", "nobody judged this question")]]
    return made_task("Tiny", {"default": (documents, queries, QRELS)})


@pytest.fixture
def report(tmp_path):
    def make(*rows, **how):
        path = tmp_path / "train.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return contamination(path, [task()], **how)[0]

    return make


def test_clean_training_data_is_clean(report):
    found = report({"query": "what is rust", "positive": "iron that met water", "negatives": ["another page"]})
    assert (found.rows, found.touched, found.share, found.examples) == (1, 0, 0.0, [])
    assert [part.texts for part in found.parts.values()] == [3, 3, 1]
    assert all(part.found == 0 for part in found.parts.values())


@pytest.mark.parametrize("text", ["Why is the sky blue?", "why is the SKY  blue", "Why is the sky\nblue?!"])
def test_equal_but_for_case_white_space_and_punctuation_is_exact(report, text):
    found = report({"query": text, "positive": "something new altogether"})
    queries = found.parts["queries"]
    assert (queries.found, queries.exact, queries.near["query"]) == (1, {"query": 1, "positive": 0, "negative": 0}, 0)
    assert queries.share == found.share == pytest.approx(1 / 3)
    assert found.examples[0]["id"] == "q0"
    assert (found.examples[0]["sort"], found.examples[0]["line"], found.examples[0]["role"]) == ("exact", 1, "query")


def test_a_near_copy_has_its_jaccard(report):
    """Ten words have eight shingles; another last word changes one: 7 shared of 9."""
    row = {"query": "a b c d e f g h i k", "positive": "something new altogether"}
    found = report(row, threshold=0.7)
    assert found.parts["queries"].near["query"] == 1
    assert found.examples[0]["similarity"] == pytest.approx(7 / 9, abs=1e-4)
    assert report(row, threshold=0.8).touched == 0
    assert report({"query": "j i h g f e d c b a", "positive": "x"}, threshold=0.5).touched == 0, "the order counts"


def test_which_part_was_found_in_which(report):
    found = report(
        {"query": "why do we see colours", "positive": CORPUS[0][2], "negatives": [CORPUS[1][2], CORPUS[3][2]]},
        {"query": CORPUS[2][2], "positive": QUERIES[2][1]},
    )
    relevant, others = found.parts["relevant documents"], found.parts["other documents"]
    assert relevant.exact == {"query": 1, "positive": 1, "negative": 1}
    assert relevant.found == 2, "what is a negative alone is not trained on as relevant"
    assert (others.exact["negative"], others.found) == (1, 0)
    assert found.parts["queries"].exact == {"query": 0, "positive": 1, "negative": 0}
    assert (found.rows, found.touched) == (2, 2)


def test_titles_joined_or_apart(report):
    joined = {"query": "x", "positive": f"Optics {CORPUS[0][2]}"}
    apart = {"query": "x", "positive": {"title": "Optics", "text": CORPUS[0][2]}}
    renamed = {"query": "x", "positive": {"title": "Of light and air and such", "text": CORPUS[0][2]}}
    for row in (joined, apart, renamed):
        assert report(row).parts["relevant documents"].exact["positive"] == 1


def test_ids_count_alone_only_where_there_is_no_text(report):
    same = report({"query": "x", "positive": CORPUS[1][2], "positive_id": "d1"}).parts["relevant documents"]
    assert (same.same_id_and_text, same.same_id_other_text, same.found) == (1, 0, 1)
    chance = report({"query": "new", "query_id": "q1", "positive": "a new page", "positive_id": "d1"})
    for part in ("queries", "relevant documents"):
        assert (chance.parts[part].same_id_other_text, chance.parts[part].found) == (1, 0)
    assert chance.touched == 0
    alone = report({"qid": "q1", "positive_document_ids": ["d1", "gone"], "negative_document_ids": ["d2", "d3"]})
    assert (alone.parts["queries"].found, alone.parts["relevant documents"].found) == (1, 1)
    assert alone.parts["relevant documents"].same_id_no_text == 2
    assert alone.parts["other documents"].found == 0
    assert report({"query": "d1", "positive": "x", "query_id": "d1"}).touched == 0, "a query's id is not a document's"


def test_formats_of_other_tools():
    texts = row_texts(
        {
            "query_id": "7", "question": "q", "positive_passages": [{"docid": "a", "title": "T", "text": "p"}],
            "hard_negative_ctxs": [{"text": "n", "passage_id": 3}], "neg": ["m"], "pos_scores": [0.5], "dataset": "x",
        },
        "f, line 1", 1,
    )  # fmt: skip
    assert [(each.role, each.forms, each.id) for each in texts] == [
        ("query", ("q",), "7"), ("positive", ("T p", "p"), "a"), ("negative", ("n",), "3"), ("negative", ("m",), None),
    ]  # fmt: skip


def test_a_beir_folder_as_training_set(tmp_path):
    folder = tmp_path / "own"
    write_beir(
        folder,
        corpus=[("c0", "", CORPUS[0][2]), ("c1", "", CORPUS[1][2]), ("c2", "", "other")],
        queries=[("t0", "a new question"), ("t1", QUERIES[0][1]), ("t2", QUERIES[2][1])],
        qrels={"train": [("t0", "c0", 1), ("t1", "c2", 1)], "dev": [("t2", "c1", 1)]},
    )
    (found,) = contamination(folder, [task()])
    assert found.parts["queries"].exact["query"] == 1, "the query of another split is not trained on"
    assert found.parts["relevant documents"].exact == {"query": 0, "positive": 1, "negative": 1}
    (dev,) = contamination(folder, [task()], train_split="dev")
    assert dev.parts["queries"].exact["query"] == 1
    assert dev.parts["relevant documents"].exact == {"query": 0, "positive": 1, "negative": 1}


def test_equal_test_texts_are_all_found(tmp_path, report):
    documents = [{"id": f"d{n}", "title": "", "text": "the very same text"} for n in range(3)]
    both = made_task("Twins", {"default": (documents, [{"id": "q", "text": "which"}], {"q": {"d0": 1}})})
    (tmp_path / "t.jsonl").write_text(json.dumps({"query": "x", "positive": "the very same text"}))
    (found,) = contamination(tmp_path / "t.jsonl", [both])
    assert (found.parts["relevant documents"].found, found.parts["other documents"].found) == (1, 2)


def test_mistakes_are_named(tmp_path):
    def lines(text, name="t.jsonl"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        contamination(tmp_path / "nothing.jsonl", [task()])
    for text, said in (
        ('{"query": "a", "positive": "b"}\n{"sentence1": "a", "sentence2": "b"}', "line 2: no column of 'sentence1'"),
        ('{"query": "a", "positive": "b"}\n{"query": ', "line 2: not JSON"),
        ("[1]", "line 1: a row is one JSON object"),
        ('{"query": {"a": 1}}', "line 1: 'query' must hold texts"),
        ("\n", "holds no row"),
    ):
        with pytest.raises(ValueError, match=said):
            contamination(lines(text), [task()])
    with pytest.raises(ValueError, match="expected JSON lines"):
        contamination(lines("a\tb\tc", "t.tsv"), [task()])
    with pytest.raises(ValueError, match="is for a BEIR folder"):
        contamination(lines("{}"), [task()], train_split="train")
    packed = tmp_path / "t.jsonl.gz"
    packed.write_bytes(gzip.compress(b'{"query": "a", "positive": "b"}\n' * 9)[:-9])
    with pytest.raises(ValueError, match="damaged or truncated gzip"):
        contamination(packed, [task()])


def test_rows_are_streamed(tmp_path):
    """The first rows come before the last is read: it is not JSON."""
    (tmp_path / "t.jsonl").write_text('{"query": "a", "positive": "b"}\nbroken')
    rows = read_training(tmp_path / "t.jsonl")
    assert len(next(rows)) == 2
    with pytest.raises(ValueError, match="line 2"):
        next(rows)


def test_the_command(tmp_path, capsys):
    folder, train = tmp_path / "test", tmp_path / "train.jsonl"
    write_beir(
        folder, corpus=CORPUS, queries=QUERIES, qrels={"test": [("q0", "d0", 1), ("q1", "d1", 1), ("q2", "d2", 1)]}
    )
    train.write_text(json.dumps({"query": QUERIES[0][1], "positive": "new"}) + "\n")
    options = ["contamination", "--train", str(train), "--task", f"beir:{folder}", "--output", str(tmp_path / "r.json")]

    def code(*more):
        try:
            cli.main([*options, *more])
        except SystemExit as end:
            return end.code
        return 0

    assert code() == 0
    assert "33.33% of its queries and 0.00% of its relevant documents" in capsys.readouterr().out
    written = json.loads((tmp_path / "r.json").read_text())
    assert written["threshold"] == 0.8
    assert written["tasks"][0]["parts"]["queries"]["exact"]["query"] == 1
    assert code("--fail-above", "0.3") == 1
    assert code("--fail-above", "0.34") == 0
    assert code("--threshold", "1.5") == 2
