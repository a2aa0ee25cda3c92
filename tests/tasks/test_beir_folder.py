"""BEIR folders: read as a stream, malformed lines refused by file and line, evaluated by MTEB."""

import gzip
import json

import pytest

from search_r3_mteb import BeirFolder
from search_r3_mteb.tasks import beir_folder
from search_r3_mteb.tasks.beir_folder import Document, Judgement, Query
from search_r3_mteb.tasks.hopworld import SPLITS, HopWorld

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
        ("[1, 2]", "line 5: a line holds one JSON object, got list"),
        ({"text": "x"}, "line 5: no \"_id\"; the object has 'text'"),
        ({"_id": "", "text": "x"}, "line 5: \"_id\" must be a string that is not empty, got ''"),
        ({"_id": 1.5, "text": "x"}, 'line 5: "_id" must be a string'),
        ({"_id": "d9"}, "line 5: no \"text\"; the object has '_id'"),
        ({"_id": "d9", "text": None}, 'line 5: "text" must be a string, got NoneType'),
        ({"_id": "d9", "text": "x", "title": 3}, 'line 5: "title" must be a string, got int'),
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
        ("h\th\ts\nq1\td9\t1\n", "line 2: judges document 'd9', which the corpus file does not have"),
        ("h\th\ts\n", "split 'test' judges no query"),
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
    with pytest.raises(ValueError, match="its file holds no entry"):
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
    with pytest.raises(FileExistsError, match=r"holds 'qrels/validation\.tsv', which would not belong"):
        HopWorld(500).write_beir(path)
