"""`convert`: any input as a BEIR folder, and folders of tables as tasks."""

import json

import pytest

from search_r3_mteb.evaluation.tasks import resolve_task, with_identical_ids_ignored
from search_r3_mteb.files import Columns
from search_r3_mteb.files.convert import Converted, convert
from search_r3_mteb.files.judgements import has_tables, iter_judgements, judgement_files
from search_r3_mteb.tasks.beir_folder import (
    Document,
    Judgement,
    Query,
    read_corpus,
    read_qrels,
    read_queries,
    write_beir,
)

CORPUS = "sku,name,description\na,Lamp,gives light\nb,Chair,\nc,,a table\n"
QUERIES = "qid\tquestion\nq1\twhere to sit\nq2\tlight?\n"
QRELS = "query-id,corpus-id,score\nq1,b,2\nq2,a,1\nq2,c,0\n"
COLUMNS = Columns(id="sku", title="name")
JUDGED = [Judgement("q1", "b", 2), Judgement("q2", "a", 1), Judgement("q2", "c", 0)]


@pytest.fixture
def files(tmp_path):
    for name, text in (("shop.csv", CORPUS), ("one.csv", "id,text\na,b\n"), ("q.tsv", QUERIES), ("j.csv", QRELS)):
        (tmp_path / name).write_text(text)
    return tmp_path


def test_documents_alone_are_a_folder_of_one_file(files, call):
    code, out, _ = call(
        *("convert", files / "shop.csv", "--output", files / "beir", "--id", "sku", "--title", "name"),
        *("--text", "description"),
    )
    assert code == 0
    assert "3 documents, 0 queries" in out
    code, out, _ = call("-q", "convert", files / "one.csv", "--output", files / "quiet")
    assert (code, out) == (0, "")
    _, out, _ = call("convert", files / "one.csv", "--output", files / "one")
    assert "1 document, 0 queries" in out
    assert [path.name for path in (files / "beir").rglob("*")] == ["corpus.jsonl"]
    # A document without text stays where it has a title or an id: a judgement may name it.
    assert list(read_corpus(files / "beir")) == [
        Document("a", "Lamp", "gives light"),
        Document("b", "Chair", ""),
        Document("c", "", "a table"),
    ]


def test_no_file_gives_way_to_a_folder(files, call):
    """Regression: `convert same.csv --output same.csv` replaced its own input."""
    (files / "link").symlink_to(files / "shop.csv")
    for name in ("shop.csv", "q.tsv", "link"):
        code, _, err = call("convert", files / "shop.csv", "--output", files / name, "--id", "sku", "--title", "name")
        assert code == 2
        assert f"{name} is a file, and a BEIR folder would take its place" in err
    assert (files / "shop.csv").read_text() == CORPUS
    assert (files / "q.tsv").read_text() == QUERIES


def test_documents_without_a_word_are_counted_and_are_not_all(files, caplog):
    (files / "some.jsonl").write_text('{"id": "a", "text": ""}\n{"id": "b", "text": "hi"}\n{"id": "c", "text": " "}\n')
    assert convert(files / "some.jsonl", files / "beir").documents == 3
    assert "2 of 3 documents have neither title nor text; they are kept" in caplog.text
    (files / "none.jsonl").write_text('{"id": "a", "text": ""}\n')
    with pytest.raises(ValueError, match="none of the 1 documents has a title or a text"):
        convert(files / "none.jsonl", files / "other")
    assert not (files / "other").exists()


def test_queries_and_judgements_come_along(files, call):
    code, out, _ = call(
        *("convert", files / "shop.csv", "--output", files / "beir", "--id", "sku", "--title", "name"),
        *("--queries", files / "q.tsv", "--judgements", files / "j.csv", "--split", "dev"),
        *("--query-id", "1", "--query-text", "question"),
    )
    assert code == 0
    assert "3 judgements of split dev" in out
    assert list(read_queries(files / "beir")) == [Query("q1", "where to sit"), Query("q2", "light?")]
    assert list(read_qrels(files / "beir", "dev")) == JUDGED


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"judgements": "j.csv"}, "without the queries that they judge"),
        ({"split": "dev"}, "--split dev names the split of --judgements"),
        ({"queries": "q.tsv", "judgements": "j.csv", "split": "../corpus"}, "--split '../corpus' is not a name"),
        ({"queries": "q.tsv", "judgements": "j.csv", "split": ""}, "--split '' is not a name"),
        ({"queries": "-", "judgements": "-"}, "Standard input .-. is named twice"),
        ({"queries": "none.csv"}, "There is no file"),
    ],
)
def test_what_does_not_belong_together_is_refused(files, given, message):
    named = {key: value if key == "split" or value == "-" else files / value for key, value in given.items()}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        convert(files / "shop.csv", files / "beir", columns=COLUMNS, **named)
    assert not (files / "beir").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("query-id,corpus-id,score\nq9,b,1\n", "judges query 'q9', which is not among the queries"),
        ("query-id,corpus-id,score\nq1,x,1\n", "no judgement names a document of the corpus .the first: 'x'."),
        ("query-id,corpus-id,score\nq1,b,1\nq1,b,2\n", "line 3: judges 'q1', 'b' 2, an earlier row judged it 1"),
        ("query-id,corpus-id,score\nq1,b,high\n", "line 2: the relevance must be a whole number, got 'high'"),
        ("query-id,corpus-id,score\nq1,b\n", "line 2: 2 cells for 3 columns"),
        ("query-id,corpus-id,score\n,b,1\n", "line 2: the query id .'query-id'. must be a string that is not empty"),
        ("q1,b,1\nq2,a,1\n", "line 1: none of the columns 'q1', 'b', '1' is known to hold the query id"),
        ("", "none of the columns .none. is known"),
        ("query-id,corpus-id,score\n", "holds no judgement"),
        ("query-id,corpus-id,score\nq1,b,0\nq2,a,0\n", "no grade is above 0, so no document is relevant"),
    ],
)
def test_malformed_judgements_are_named_and_nothing_is_written(files, text, message):
    (files / "j.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        convert(
            files / "shop.csv", files / "beir", columns=COLUMNS, queries=files / "q.tsv", judgements=files / "j.csv"
        )
    assert not (files / "beir").exists()


def test_judged_documents_that_are_not_there_are_counted_aloud(files, caplog):
    (files / "j.csv").write_text("did;qid;rel\nb;q1;1\nzz;q1;1\n")
    done = convert(
        files / "shop.csv", files / "beir", columns=COLUMNS, queries=files / "q.tsv", judgements=files / "j.csv"
    )
    assert done == Converted(3, 2, {"test": 2})
    assert "1 of 2 judgements name documents that are not there, the first 'zz'" in caplog.text
    assert list(read_qrels(files / "beir")) == [Judgement("q1", "b", 1), Judgement("q1", "zz", 1)]


def test_judgements_of_every_format_are_the_same(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    records = [{"query_id": row[0], "doc_id": row[1], "relevance": row[2]} for row in JUDGED]
    (tmp_path / "a.csv").write_text(QRELS)
    (tmp_path / "a.tsv").write_text(QRELS.replace(",", "\t"))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "a.json").write_text(json.dumps(records))
    grades = [float(row[2]) for row in JUDGED]  # as pandas writes a column with a gap
    columns = {"qid": [row[0] for row in JUDGED], "docid": [row[1] for row in JUDGED], "label": grades}
    parquet.write_table(arrow.table(columns), tmp_path / "a.parquet")
    for name in ("a.csv", "a.tsv", "a.jsonl", "a.json", "a.parquet"):
        assert list(iter_judgements(tmp_path / name)) == JUDGED, name
    (tmp_path / "a.csv").write_text("qid,docid\nq1,b\n")
    assert list(iter_judgements(tmp_path / "a.csv")) == [Judgement("q1", "b", 1)]


def test_names_of_id_columns_hold_in_the_judgements_too(files, caplog):
    """Regression: only the usual names were known there, whatever --query-id and --id said."""
    (files / "q.csv").write_text("frage,question\nq1,where to sit\nq2,light?\n")
    (files / "j.csv").write_text("frage,sku\nq1,b\n")
    given = {"columns": COLUMNS, "queries": files / "q.csv", "judgements": files / "j.csv"}
    with pytest.raises(ValueError, match=r"known to hold the query id.* names that --query-id and --id give"):
        convert(files / "shop.csv", files / "beir", **given)
    with caplog.at_level("INFO"):
        convert(files / "shop.csv", files / "beir", query_columns=Columns(id="frage"), **given)
    assert list(read_qrels(files / "beir")) == [Judgement("q1", "b", 1)]
    assert "j.csv: the query id is in 'frage', the document id in 'sku'" in caplog.text
    # a usual name counts first, and one name for both tells nothing
    (files / "k.csv").write_text("sku,doc_id,qid\nx,b,q1\n")
    assert list(iter_judgements(files / "k.csv", ("frage", "sku"))) == [Judgement("q1", "b", 1)]
    with pytest.raises(ValueError, match="known to hold the query id"):
        list(iter_judgements(files / "j.csv", ("sku", "sku")))


def test_queries_without_judgements_are_said_to_be_for_searching_alone(files, call):
    given = ("--queries", files / "q.tsv", "--id", "sku", "--title", "name")
    code, out, _ = call("convert", files / "shop.csv", "--output", files / "beir", *given)
    assert code == 0
    assert "Without judgements only explain, index and search work with it. For evaluate: --judgements FILE" in out
    assert "Without judgements" not in call("convert", files / "one.csv", "--output", files / "one")[1]
    with pytest.raises(FileNotFoundError, match=r"search-r3 convert \S+beir --output FOLDER --judgements FILE"):
        resolve_task(str(files / "beir"))


def test_a_queries_column_that_is_not_known_is_named_by_an_option_that_there_is(files):
    (files / "q.tsv").write_text("nr\twording\nq1\twhere to sit\n")
    with pytest.raises(ValueError, match="Name it: --query-text NAME"):
        convert(files / "shop.csv", files / "beir", columns=COLUMNS, queries=files / "q.tsv")


# ---- folders as tasks ----------------------------------------------------------------------------------------------


def tables(folder):
    folder.mkdir()
    (folder / "corpus.csv").write_text("id,title,text\na,Lamp,gives light\nb,Chair,to sit\nc,,a table\n")
    (folder / "queries.csv").write_text("id,text\nq1,where to sit\nq2,light?\n")
    (folder / "qrels.csv").write_text(QRELS)


def test_a_folder_of_tables_is_the_task_of_its_conversion(tmp_path):
    tables(tmp_path / "shop")
    convert(tmp_path / "shop", tmp_path / "beir" / "shop")
    of_tables, of_folder = resolve_task(str(tmp_path / "shop")), resolve_task(f"beir:{tmp_path / 'beir' / 'shop'}")
    assert of_tables.metadata.name == of_folder.metadata.name
    assert of_tables.metadata.revision == of_folder.metadata.revision
    of_tables.load_data()
    [data] = of_tables.dataset["default"].values()
    assert list(data["corpus"]["id"]) == ["a", "b", "c"]
    assert data["relevant_docs"] == {"q1": {"b": 2}, "q2": {"a": 1, "c": 0}}


@pytest.mark.slow  # MTEB's first evaluation of a process
def test_a_folder_of_tables_is_evaluated(tmp_path, call):
    tables(tmp_path / "shop")
    code, _, said = call(
        *("evaluate", "--model", "bm25", "--task", tmp_path / "shop", "--output", tmp_path / "out"),
    )
    assert code == 0, said
    [row] = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (row["queries"], row["documents"]) == (2, 3)
    assert row["task"].startswith("beir-shop-")
    assert row["ndcg_at_10"] > 0.9


def test_a_bare_folder_is_a_task_unless_its_name_is_one_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    world = {"corpus": [("a", "", "x"), ("b", "", "y")], "queries": [("q", "x")], "qrels": {"test": [("q", "a", 1)]}}
    write_beir(tmp_path / "mine", **world)
    write_beir(tmp_path / "stdlib", **world)
    named = resolve_task("beir:mine").metadata.name
    assert resolve_task("mine").metadata.name == resolve_task("./mine").metadata.name == named
    assert resolve_task("./mine:ignore_identical_ids").ignore_identical_ids
    with pytest.raises(ValueError, match=r"stdlib is both a task and a folder here. Write \./stdlib"):
        resolve_task("stdlib")
    assert resolve_task("./stdlib").metadata.name.startswith("beir-stdlib-")
    assert with_identical_ids_ignored(["./mine", "hopworld"]) == ["./mine:ignore_identical_ids", "hopworld"]


def test_a_split_whose_name_has_a_point_keeps_it(tmp_path):
    world = {"corpus": [("a", "", "x"), ("b", "", "y")], "queries": [("q", "x")], "qrels": {"v1.0": [("q", "a", 1)]}}
    write_beir(tmp_path / "mine", **world)
    assert set(judgement_files(tmp_path / "mine")) == {"v1.0"}
    assert not has_tables(tmp_path / "mine")
    assert resolve_task(str(tmp_path / "mine")).eval_splits == ["v1.0"]


def test_columns_of_a_folders_own_queries_are_named_as_those_of_a_file(tmp_path, call):
    """Regression: they were refused, as if there were no queries."""
    tables(tmp_path / "shop")
    (tmp_path / "shop" / "queries.csv").write_text("nr,wording\nq1,where to sit\nq2,light?\n")
    given = ("--output", tmp_path / "beir", "--query-id", "nr", "--query-text", "wording")
    assert call("convert", tmp_path / "shop", *given)[0] == 0
    assert list(read_queries(tmp_path / "beir")) == [Query("q1", "where to sit"), Query("q2", "light?")]
    code, _, err = call("convert", tmp_path / "shop" / "corpus.csv", *given)
    assert code == 2
    assert "--query-id and --query-text name columns of --queries, and none are given" in err


@pytest.mark.parametrize(
    ("file", "header", "option"), [("corpus", "id,title,wording", "--text"), ("queries", "id,wording", "--query-text")]
)
def test_foreign_columns_of_a_task_are_answered_with_a_conversion(tmp_path, file, header, option):
    """Regression: the message named --text, which evaluate does not have."""
    tables(tmp_path / "shop")
    path = tmp_path / "shop" / f"{file}.csv"
    path.write_text(f"{header}\n" + path.read_text().partition("\n")[2])
    with pytest.raises(ValueError, match=rf"search-r3 convert {tmp_path / 'shop'} --output FOLDER {option} NAME$"):
        resolve_task(str(tmp_path / "shop"))


def test_two_files_of_judgements_of_one_split_are_refused(tmp_path):
    tables(tmp_path / "shop")
    (tmp_path / "shop" / "qrels.tsv").write_text(QRELS.replace(",", "\t"))
    with pytest.raises(ValueError, match=r"holds both qrels\.csv and qrels\.tsv, each for the split 'test'"):
        resolve_task(str(tmp_path / "shop"))


def test_a_file_is_no_task(files):
    with pytest.raises(ValueError, match=r"is a file, and a task needs queries and judgements.* search-r3 convert"):
        resolve_task(str(files / "shop.csv"))
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        resolve_task(str(files / "none"))


def test_a_folder_that_is_not_there_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist or is not a folder"):
        resolve_task(f"beir:{tmp_path / 'none'}")
