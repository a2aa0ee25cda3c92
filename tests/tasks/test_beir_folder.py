"""BEIR folders: read as a stream, malformed lines refused by file and line, evaluated by MTEB."""

import gzip
import json

import pytest

from search_r3_mteb import BeirFolder
from search_r3_mteb.tasks import beir_folder
from search_r3_mteb.tasks.beir_folder import Document, Judgement, Query
from search_r3_mteb.tasks.hopworld import SPLITS, HopWorld
from tests.tasks.conftest import bag_of_words

CORPUS = [
    {"_id": "d1", "title": "Rivers", "text": "the nile is a river"},
    {"_id": "d2", "text": "mount everest is high"},
    {"_id": "q1", "title": None, "text": "which river is the nile"},
    {"_id": 4, "title": "", "text": "a lake"},
]
QUERIES = [{"_id": "q1", "text": "which river is the nile"}, {"_id": "q2", "text": "everest", "metadata": {}}]
QRELS = "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\t4\t1\nq2\td2\t1\nq2\td1\t0\n"


@pytest.fixture
def folder(tmp_path):
    def make(name="tiny", corpus=CORPUS, queries=QUERIES, qrels=None):
        path = tmp_path / name
        (path / "qrels").mkdir(parents=True)
        for file, rows in (("corpus.jsonl", corpus), ("queries.jsonl", queries)):
            lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
            (path / file).write_text("\n".join(lines) + "\n", encoding="utf-8")
        for split, text in ({"test": QRELS} if qrels is None else qrels).items():
            (path / "qrels" / f"{split}.tsv").write_text(text, encoding="utf-8")
        return path

    return make


def test_reads_documents_queries_and_judgements(folder):
    path = folder()
    assert list(beir_folder.read_corpus(path)) == [
        Document("d1", "Rivers", "the nile is a river"),
        Document("d2", "", "mount everest is high"),
        Document("q1", "", "which river is the nile"),
        Document("4", "", "a lake"),
    ]
    assert list(beir_folder.read_queries(path)) == [Query("q1", "which river is the nile"), Query("q2", "everest")]
    assert list(beir_folder.read_qrels(path))[:2] == [Judgement("q1", "d1", 2), Judgement("q1", "4", 1)]
    assert beir_folder.read_relevance(path) == {"q1": {"d1": 2, "4": 1}, "q2": {"d2": 1, "d1": 0}}


def test_reads_single_files(folder):
    path = folder()
    assert len(list(beir_folder.read_corpus(path / "corpus.jsonl"))) == 4
    assert len(list(beir_folder.read_qrels(path / "qrels" / "test.tsv"))) == 4


def test_is_a_stream(folder):
    rows = beir_folder.read_corpus(folder(corpus=[*CORPUS, "{broken"]))
    assert [next(rows).id for _ in range(4)] == ["d1", "d2", "q1", "4"]
    with pytest.raises(ValueError, match="line 5: not JSON"):
        next(rows)


def test_gzip_equals_plain(folder):
    plain, packed = folder("plain"), folder("packed")
    for file in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
        (packed / f"{file}.gz").write_bytes(gzip.compress((packed / file).read_bytes()))
        (packed / file).unlink()
    assert list(beir_folder.read_corpus(packed)) == list(beir_folder.read_corpus(plain))
    assert list(beir_folder.read_queries(packed)) == list(beir_folder.read_queries(plain))
    assert beir_folder.read_relevance(packed) == beir_folder.read_relevance(plain)
    assert beir_folder.content_hash(packed, "test") == beir_folder.content_hash(plain, "test")


def test_blank_lines_crlf_and_byte_order_mark(folder):
    path = folder()
    for file in ("corpus.jsonl", "qrels/test.tsv"):
        (path / file).write_bytes(b"\xef\xbb\xbf" + (path / file).read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    assert len(list(beir_folder.read_corpus(path))) == 4
    assert beir_folder.read_relevance(path)["q1"] == {"d1": 2, "4": 1}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{broken", r"corpus\.jsonl, line 5: not JSON \(.* at column 2\)"),
        ("[1, 2]", "line 5: a line holds one JSON object, got an array"),
        ({"text": "x"}, "line 5: no \"_id\"; the object has 'text'"),
        ({"_id": "", "text": "x"}, "line 5: \"_id\" must be a string that is not empty, got ''"),
        ({"_id": 1.5, "text": "x"}, 'line 5: "_id" must be a string'),
        ({"_id": "d9"}, "line 5: no \"text\"; the object has '_id'"),
        ({"_id": "d9", "text": None}, 'line 5: "text" must be a string, got null'),
        ({"_id": "d9", "text": "x", "title": 3}, 'line 5: "title" must be a string, got a number'),
        ({"_id": "d2", "text": "x"}, "line 5: id 'd2' was already used in line 2"),
        ({"_id": "4", "text": "x"}, "line 5: id '4' was already used in line 4"),
        ('{"_id": "d9", "text": "\\ud800"}', 'line 5: "text" holds a lone surrogate'),
    ],
)
def test_bad_corpus_line(folder, row, message):
    with pytest.raises(ValueError, match=message):
        list(beir_folder.read_corpus(folder(corpus=[*CORPUS, row])))


def test_duplicate_query(folder):
    with pytest.raises(ValueError, match=r"queries\.jsonl, line 3: id 'q1' was already used in line 1"):
        list(beir_folder.read_queries(folder(queries=[*QUERIES, {"_id": "q1", "text": "again"}])))


def test_not_utf8_and_damaged_gzip(folder):
    path = folder()
    (path / "corpus.jsonl").write_bytes(b'{"_id": "a", "text": "x"}\n{"_id": "b", "text": "\xff"}\n')
    with pytest.raises(ValueError, match=r"corpus\.jsonl, line 2: not UTF-8"):
        list(beir_folder.read_corpus(path))
    (path / "corpus.jsonl").unlink()
    content = gzip.compress(("\n".join(json.dumps({"_id": str(i), "text": "x" * i}) for i in range(500))).encode())
    for damaged in (content[:-20], b"no gzip at all"):
        (path / "corpus.jsonl.gz").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"corpus\.jsonl\.gz, line \d+: damaged or truncated gzip"):
            list(beir_folder.read_corpus(path))
        with pytest.raises(ValueError, match=r"corpus\.jsonl\.gz: damaged or truncated gzip"):
            BeirFolder(path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("q1\td1\t1\n", r"qrels/test\.tsv, line 1: the header row .* is missing"),
        ("h\th\ts\nq1 d1 1\n", "line 2: a qrels row has 3 columns separated by tabs, this one has 1"),
        ("h\th\ts\nq1\t0\td1\t1\n", "line 2: .* has 4"),
        ("h\th\ts\nq1\td1\t0.5\n", r"line 2: relevance must be an integer, got '0\.5'"),
        ("h\th\ts\nq1\td1\t1\nq1\td1\t2\n", "line 3: judges 'q1', 'd1' 2, an earlier row judged it 1"),
        ("h\th\ts\nq9\td1\t1\n", "line 2: judges query 'q9', which the queries file does not have"),
        ("h\th\ts\nq1\td9\t1\n", r"none of 1 relevant judgements names a document of the corpus \(first: 'd9'\)"),
        ("h\th\ts\nq1\td1\t1\nq2\td2 \t1\n", "query 'q2' is judged with document 'd2 '; the corpus has it without"),
        ("h\th\ts\nq1\td1\t0\n", "judges no document relevant .above 0., so every score would be 0"),
        ("h\th\ts\n", "split 'test' judges no query"),
        ("h\th\ts\nq1\td1\t+-1\n", r"test\.tsv, line 2: relevance must be an integer, got '\+-1'"),
        ("h\th\ts\nq1\td1\t1\nq2\td2\t-+2\n", r"test\.tsv, line 3: relevance must be an integer, got '-\+2'"),
        ("h\th\ts\nq1\td1\t\u0663\n", "line 2: relevance must be an integer"),
        (f"h\th\ts\nq1\td1\t{10**9}\n", "line 2: relevance must be an integer"),
        ("q1\td1\t+-1\nq2\td2\t1\n", "line 1: the header row .* is missing"),
        ("q1\td1\t1.0\nq2\td2\t1\n", "line 1: the header row .* is missing"),
        ("corpus-id\tquery-id\tscore\nd1\tq1\t1\n", "line 1: the header names corpus-id, query-id, score, but columns"),
        ("Doc_ID\tQuery_ID\tRel\nd1\tq1\t1\n", "line 1: the header names Doc_ID, Query_ID, Rel, but columns are read"),
        ("query-id\tscore\tcorpus-id\nq1\t1\td1\n", "line 1: the header names query-id, score, corpus-id, but columns"),
        ("docid\tq\tscore\nd1\tq1\t1\n", "line 1: the header names docid, q, score"),
    ],
)
def test_bad_judgements(folder, rows, message):
    with pytest.raises(ValueError, match=message):
        BeirFolder(folder(qrels={"test": rows})).load_data()


def test_missing_parts(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"does not exist or is not a folder; it holds corpus\.jsonl"):
        BeirFolder(tmp_path / "nowhere")
    path = folder(qrels={})
    with pytest.raises(FileNotFoundError, match=r"no qrels/SPLIT\.tsv"):
        BeirFolder(path)
    path = folder("other")
    (path / "corpus.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither corpus\.jsonl nor corpus\.jsonl\.gz is there"):
        BeirFolder(path)
    path = folder("both")
    (path / "corpus.jsonl.gz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"holds both corpus\.jsonl and corpus\.jsonl\.gz"):
        BeirFolder(path)
    with pytest.raises(ValueError, match=r"empty/corpus\.jsonl: A retrieval task .* its file holds no entry"):
        BeirFolder(folder("empty", corpus=[""])).load_data()


def test_split_is_found_or_named(folder):
    path = folder("three", qrels={"train": QRELS, "dev": QRELS, "test": QRELS})
    assert BeirFolder(path).split == "test"
    assert BeirFolder(path, "dev").split == "dev"
    assert BeirFolder(folder("one", qrels={"dev": QRELS})).split == "dev"
    with pytest.raises(ValueError, match="no split was named and 'test' is not among dev, train; name one"):
        BeirFolder(folder("two", qrels={"train": QRELS, "dev": QRELS}))
    with pytest.raises(ValueError, match="no split 'validation'; it has dev, test, train"):
        BeirFolder(path, "validation")


def test_revision_follows_the_content(folder):
    first, same = folder("a/data"), folder("b/data")
    revision = BeirFolder(first).metadata.dataset["revision"]
    assert BeirFolder(same).metadata.dataset["revision"] == revision
    other = folder("c/data", corpus=[*CORPUS[:3], {"_id": 4, "text": "a Lake"}])
    graded = folder("d/data", qrels={"test": QRELS.replace("d1\t2", "d1\t1")})
    revisions = {BeirFolder(path).metadata.dataset["revision"] for path in (first, other, graded)}
    revisions.add(BeirFolder(first, ignore_identical_ids=True).metadata.dataset["revision"])
    assert len(revisions) == 4


def test_changed_folder_is_noticed(folder):
    path = folder()
    task = BeirFolder(path)
    with (path / "corpus.jsonl").open("a") as stream:
        stream.write(json.dumps({"_id": "new", "text": "x"}) + "\n")
    with pytest.raises(ValueError, match="changed since this task was made"):
        task.load_data()


# MTEB returns a complete cached result of the same name and model whatever the dataset revision: the hash is in the
# name.
def test_mteb_cache_does_not_mix_two_folders(folder, hash_encoder, evaluate, tmp_path):
    import mteb

    cache = mteb.ResultCache(tmp_path / "cache")
    good = evaluate(hash_encoder(), BeirFolder(folder("a/data")), cache)
    swapped = {"test": "query-id\tcorpus-id\tscore\nq1\td2\t1\nq2\td1\t1\n"}
    bad = evaluate(hash_encoder(), BeirFolder(folder("b/data", qrels=swapped)), cache)
    assert good["main_score"] > bad["main_score"] + 0.1
    encoder = hash_encoder()
    evaluate(encoder, BeirFolder(folder("c/data")), cache)
    assert encoder.document_batches == 0  # the cache is still one: equal content is not evaluated twice


def test_mteb_scores_graded_relevance(folder, hash_encoder, evaluate):
    # q1 ranks its own copy first, then d1 (shares the, nile, is, river), then q2's answers and the lake with no shared
    # word.
    scores = evaluate(hash_encoder(), BeirFolder(folder()))
    assert scores["ndcg_at_1"] == 0.5  # q2 right, q1 finds its copy first
    # Linear gains as trec_eval: q1 = (2 / log2(3) + 1 / log2(5)) / (2 + 1 / log2(3)), with the lake last; q2 = 1.
    assert scores["ndcg_at_10"] == pytest.approx((1.6925346 / 2.6309298 + 1) / 2, abs=1e-5)


def test_identical_ids_are_dropped_only_when_told(folder, hash_encoder, evaluate):
    path = folder()
    assert evaluate(hash_encoder(), BeirFolder(path))["ndcg_at_1"] == 0.5
    assert evaluate(hash_encoder(), BeirFolder(path, ignore_identical_ids=True))["ndcg_at_1"] == 1.0


def test_task_can_be_evaluated_twice_and_ignores_unjudged_queries(folder, hash_encoder, evaluate):
    queries = [*QUERIES, {"_id": "q3", "text": "unjudged"}]
    task = BeirFolder(folder(queries=queries), name="twice", instruction="Find passages.")
    first = evaluate(hash_encoder(), task)
    assert not task.data_loaded  # MTEB unloads; the metadata must survive it
    assert task.metadata.name.startswith("twice-")
    assert task.metadata.prompt == {"query": "Find passages."}
    assert evaluate(hash_encoder(), task)["ndcg_at_10"] == first["ndcg_at_10"]
    task.load_data()
    assert list(task.dataset["default"]["test"]["queries"]["id"]) == ["q1", "q2"]


def test_query_without_results_is_an_error(folder):
    task = BeirFolder(folder())
    with pytest.raises(ValueError, match="returned nothing for 1 of 2 queries, first 'q2'"):
        task.task_specific_scores({"q1": {}}, {"q1": {"d1": 1}, "q2": {"d2": 1}}, {}, "test", "default")


def test_large_corpus_is_read_in_batches(folder, monkeypatch):
    from search_r3_mteb.tasks import mteb_tasks

    path = folder(corpus=CORPUS + [{"_id": f"x{i}", "text": f"text {i}"} for i in range(20)])
    whole = BeirFolder(path)
    whole.load_data()
    monkeypatch.setattr(mteb_tasks, "_ROWS_PER_BATCH", 7)
    batched = BeirFolder(path)
    batched.load_data()
    assert (
        batched.dataset["default"]["test"]["corpus"].to_list() == whole.dataset["default"]["test"]["corpus"].to_list()
    )


def test_hopworld_round_trip(tmp_path, hash_encoder, evaluate):
    from search_r3_mteb.tasks.mteb_tasks import HopWorldTask

    world = HopWorld(500)
    world.write_beir(tmp_path)
    assert beir_folder.splits(tmp_path) == sorted(SPLITS)
    assert {d.id: {"title": d.title, "text": d.text} for d in beir_folder.read_corpus(tmp_path)} == world.corpus
    for split in ("dev", "test"):
        assert beir_folder.read_relevance(tmp_path, split) == world.relevance(split)
    assert beir_folder.read_relevance(tmp_path, "train") == world.relevance("train", 1) | world.relevance("train", 2)
    texts = {query.id: query.text for query in beir_folder.read_queries(tmp_path)}
    assert all(texts[query.id] == query.text for query in world.queries("test"))
    encoder = hash_encoder()
    assert evaluate(encoder, BeirFolder(tmp_path))["ndcg_at_10"] == evaluate(encoder, HopWorldTask(500))["ndcg_at_10"]


def test_beir_reads_what_is_written(tmp_path):
    from beir.datasets.data_loader import GenericDataLoader

    world = HopWorld(500)
    world.write_beir(tmp_path)
    corpus, queries, qrels = GenericDataLoader(str(tmp_path)).load("test")
    assert corpus == world.corpus
    assert queries == {query.id: query.text for query in world.queries("test")}
    assert qrels == world.relevance("test")


def test_writing_again_is_fine_writing_over_another_task_is_not(tmp_path, folder):
    HopWorld(500).write_beir(tmp_path / "world")
    before = {file.name: file.read_bytes() for file in (tmp_path / "world").rglob("*") if file.is_file()}
    HopWorld(500).write_beir(tmp_path / "world")
    assert before == {file.name: file.read_bytes() for file in (tmp_path / "world").rglob("*") if file.is_file()}
    path = folder(qrels={"validation": QRELS})
    with pytest.raises(FileExistsError, match=r"^\S+ holds 'qrels/validation\.tsv', which would not belong"):
        HopWorld(500).write_beir(path)


@pytest.mark.parametrize(
    "header", ["query-id\tcorpus-id\tscore", "qid\tpid\tlabel", "Query ID\tDoc ID\tRelevance", "a\tb\tc"]
)
def test_headers_in_the_right_order_are_read(folder, header):
    path = folder(qrels={"test": f"{header}\nq1\td1\t+1\nq2\td2\t -1 \n"})
    assert beir_folder.read_relevance(path) == {"q1": {"d1": 1}, "q2": {"d2": -1}}


def test_exchanged_columns_of_equal_ids_do_not_go_unnoticed(folder):
    """With numbers as ids on both sides every exchanged row names a known query and a known document."""
    rows = [{"_id": str(n), "text": f"text {n}"} for n in range(4)]
    with pytest.raises(ValueError, match="the header names corpus-id, query-id, score"):
        BeirFolder(
            folder(corpus=rows, queries=rows, qrels={"test": "corpus-id\tquery-id\tscore\n2\t1\t1\n"})
        ).load_data()
    good = folder("good", rows, rows, {"test": "query-id\tcorpus-id\tscore\n1\t2\t1\n"})
    assert beir_folder.read_relevance(good) == {"1": {"2": 1}}


# ---- ArguAna: documents that the corpus lacks, and queries that are documents ----------------------------------------


def arguana(folder, **changed):
    """Two arguments and what is said against each, a judged document that is not there, and queries as documents."""
    pairs = [("trains", "trains are cleaner than cars"), ("homework", "homework teaches children discipline")]
    corpus = [{"_id": f"{name}-pro", "title": "", "text": text} for name, text in pairs]
    corpus += [{"_id": f"{name}-con", "title": name, "text": f"against {text}"} for name, text in pairs]
    queries = [{"_id": f"{name}-pro", "text": text} for name, text in pairs] + [{"_id": "q3", "text": "speech is free"}]
    qrels = "query-id\tcorpus-id\tscore\n" + "".join(f"{name}-pro\t{name}-con\t1\n" for name, _ in pairs)
    qrels += "homework-pro\tlost-1\t1\nq3\tlost-2\t1\nq3\ttrains-con\t0\nq3\tlost-3\t0\n"
    return folder(**{"name": "arguana", "corpus": corpus, "queries": queries, "qrels": {"test": qrels}, **changed})


def test_judged_documents_that_the_corpus_lacks_are_scored_as_by_others(folder, hash_encoder, evaluate, caplog):
    import pytrec_eval
    from beir.datasets.data_loader import GenericDataLoader
    from beir.retrieval.evaluation import EvaluateRetrieval
    from mteb.abstasks.retrieval import AbsTaskRetrieval

    path = arguana(folder)
    task = BeirFolder(path, ignore_identical_ids=True)
    ours = evaluate(hash_encoder(), task)
    assert task.unreachable == 2
    [message] = [record.getMessage() for record in caplog.records if "corpus lacks" in record.getMessage()]
    assert "2 of 4 relevant judgements name documents that the corpus lacks" in message
    assert "(first: query 'homework-pro', document 'lost-1')" in message
    # The same ranking by pytrec_eval and by BEIR on what BEIR reads, and by MTEB on a task of its own.
    corpus, queries, qrels = GenericDataLoader(str(path)).load("test")
    words = {id_: bag_of_words(f"{each['title']} {each['text']}") for id_, each in corpus.items()}
    run = {
        query: {id_: float(bag_of_words(text) @ vector) for id_, vector in words.items() if id_ != query}
        for query, text in queries.items()
    }
    theirs = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10"}).evaluate(run)
    expected = sum(each["ndcg_cut_10"] for each in theirs.values()) / 3
    assert 0.4 < expected < 0.6  # by hand: 1, 1 / (1 + 1 / log2(3)), 0
    assert expected == pytest.approx((1 + 1 / 1.6309298 + 0) / 3, abs=1e-5)
    assert ours["ndcg_at_10"] == pytest.approx(expected, abs=1e-5)
    assert EvaluateRetrieval.evaluate(qrels, run, [10])[0]["NDCG@10"] == pytest.approx(expected, abs=1e-5)

    class MtebsOwn(AbsTaskRetrieval):
        metadata = task.metadata.model_copy(update={"name": "MtebsOwn"})
        ignore_identical_ids = True

        def load_data(self, num_proc=None, **kwargs):
            from datasets import Dataset

            documents = Dataset.from_list([{"id": id_, **each} for id_, each in corpus.items()])
            asked = Dataset.from_list([{"id": id_, "text": text} for id_, text in queries.items()])
            split = {"corpus": documents, "queries": asked, "relevant_docs": qrels, "top_ranked": None}
            self.dataset, self.data_loaded = {"default": {"test": split}}, True

    assert evaluate(hash_encoder(), MtebsOwn())["ndcg_at_10"] == ours["ndcg_at_10"]


def test_a_whole_corpus_brings_no_warning(folder, caplog):
    task = BeirFolder(folder(corpus=CORPUS[:2] + CORPUS[3:]))
    task.load_data()
    assert task.unreachable == 0
    assert caplog.records == []


def test_queries_that_are_documents_bring_a_warning_that_names_the_option(folder, caplog):
    path = arguana(folder)
    BeirFolder(path).load_data()
    [message] = [record.getMessage() for record in caplog.records if "same id and text" in record.getMessage()]
    assert message.startswith("beir-arguana-")
    assert "2 of 3 queries are documents of the same id and text" in message
    assert f"beir:{path}:ignore_identical_ids, or BeirFolder(..., ignore_identical_ids=True)" in message
    caplog.clear()
    BeirFolder(path, ignore_identical_ids=True).load_data()
    assert "same id and text" not in caplog.text
    assert "leaves out" not in caplog.text


def test_ids_that_are_equal_by_chance_bring_a_warning_where_they_are_left_out(folder, caplog):
    rows = [{"_id": str(n), "text": f"text {n}"} for n in range(4)]
    asked = [{"_id": str(n), "text": f"question {n}"} for n in range(4)]
    path = folder(corpus=rows, queries=asked, qrels={"test": "query-id\tcorpus-id\tscore\n1\t2\t1\n"})
    BeirFolder(path).load_data()
    assert caplog.records == []
    BeirFolder(path, ignore_identical_ids=True).load_data()
    assert "leaves out 1 documents that have a query's id but not its text" in caplog.text


def test_the_option_is_set_on_the_command_line(folder, tmp_path):
    from search_r3_mteb.evaluation.evaluate import evaluate as run
    from search_r3_mteb.evaluation.tasks import resolve_task

    path = arguana(folder)
    plain, ignoring = f"beir:{path}", f"beir:{path}:ignore_identical_ids"
    assert not resolve_task(plain).ignore_identical_ids
    assert resolve_task(ignoring).ignore_identical_ids
    assert resolve_task(ignoring, "test").metadata.name == BeirFolder(path, ignore_identical_ids=True).metadata.name
    first, second = run(["bm25"], [plain, ignoring], "direct", tmp_path / "run")
    assert first["ndcg_at_10"] < second["ndcg_at_10"]
    assert first["unreachable_judgements"] == second["unreachable_judgements"] == 2
