"""Which documents stage 2 searches, and how its rows name them."""

import json

import pytest

from search_r3_mteb.encoder.documents import join_title
from search_r3_mteb.tasks.beir_folder import write_beir
from train.config.data import DataSettings, MiningSettings, RlDataSettings, SourceSettings
from train.data.rows import TrainingRow, text_id
from train.data.sources import open_source
from train.stage2.corpus import SearchedCorpus


def count(texts):
    return [len(text.split()) for text in texts]


def beir(folder, documents):
    write_beir(folder, corpus=documents, queries=[], qrels={})
    return SourceSettings(kind="beir", path=str(folder))


@pytest.fixture
def two(tmp_path):
    """Two corpora in which "1" is another document."""
    first = beir(tmp_path / "first", [("1", "Rivers", "flow"), ("2", "", "stones")])
    return first, beir(tmp_path / "second", [("1", "", "birds")])


def row(**changed):
    return TrainingRow(**({"query": "q", "positive": "p", "positive_id": "1", "source": "first"} | changed))


def test_titles_stand_before_texts_and_one_corpus_keeps_its_ids(two):
    corpus = SearchedCorpus(RlDataSettings(sources=(two[0],)), count)
    assert list(corpus.texts.texts) == [join_title("Rivers", "flow"), "stones"]
    assert list(corpus.texts.ids) == ["1", "2"]
    assert corpus.relevance(row(relevant=(("1", 2), ("2", 0)))) == {"1": 2.0}
    assert corpus.positive_id(row()) == "1"


def test_ids_of_several_corpora_do_not_collide(two):
    corpus = SearchedCorpus(RlDataSettings(sources=two), count)
    assert len(corpus.texts) == 3
    ours, theirs = corpus.relevance(row()), corpus.relevance(row(source="second"))
    assert ours.keys() != theirs.keys()
    (mine,) = ours
    assert corpus.texts.texts[int(corpus.texts.rows_of([mine])[0])].endswith("flow")
    assert corpus.positive_id(row(source="second")) in theirs


def test_sources_over_one_world_share_it():
    sources = tuple(SourceSettings(kind="hopworld", documents=500, hops=(hops,), traces=False) for hops in (2, 3))
    corpus = SearchedCorpus(RlDataSettings(sources=sources), count)
    assert len(corpus.texts) == 500
    assert corpus.positive_id(row(positive_id="fact-000007", source=sources[1].label)) == "fact-000007"


def test_a_named_corpus_takes_the_place_of_the_sources(two):
    corpus = SearchedCorpus(RlDataSettings(sources=(two[1],), corpus=(two[0],)), count)
    assert list(corpus.texts.ids) == ["1", "2"]


def test_rows_of_a_file_are_their_own_corpus(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"query": "a", "positive": "same"}, {"query": "b", "positive": "same"}, {"query": "c", "positive": "other"}]
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    corpus = SearchedCorpus(RlDataSettings(sources=(SourceSettings(kind="jsonl", path=str(path)),)), count)
    assert list(corpus.texts.texts) == ["same", "other"]
    given = row(positive="other", positive_id=None, source="rows.jsonl")
    assert corpus.relevance(given) == {text_id("other"): 1.0}
    assert corpus.positive_id(given) == text_id("other")


def test_a_document_that_is_not_there_is_named(two):
    corpus = SearchedCorpus(RlDataSettings(sources=(two[0],)), count)
    with pytest.raises(ValueError, match="'7' is not among the 2 documents"):
        corpus.relevance(row(positive_id="7"))


# ---- several relevant documents --------------------------------------------------------------------------------------


def file_of(path, rows):
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return SourceSettings(kind="jsonl", path=str(path))


def test_all_positives_of_every_row_are_in_the_corpus_and_relevant(tmp_path):
    """Regression: the corpus held the first positive of a row, and the second epoch's was not found."""
    rows = [
        {"query": "a", "positive": ["one", {"id": "x", "text": "two"}]},
        {"query": "b", "positive": "three"},
        {"query": "b", "positive": "one"},
    ]
    source = file_of(tmp_path / "rows.jsonl", rows)
    corpus = SearchedCorpus(RlDataSettings(sources=(source,)), count)
    assert list(corpus.texts.texts) == ["one", "two", "three"]
    opened = open_source(source)
    for epoch in range(3):
        a, b, again = (opened.parse(raw, epoch) for raw in opened.iterate())
        assert corpus.relevance(a) == {text_id("one"): 1.0, "x": 1.0}
        assert corpus.relevance(b) == corpus.relevance(again) == {text_id("three"): 1.0, text_id("one"): 1.0}
        assert corpus.positive_id(a) == (text_id("one") if epoch % 2 == 0 else "x")


def test_judgements_of_one_query_in_two_sources_are_added(tmp_path, two):
    folder = tmp_path / "third"
    write_beir(folder, corpus=[("1", "", "x"), ("2", "", "y")], queries=[("q0", "a"), ("q1", "a")],
               qrels={"train": [("q0", "1", 2), ("q1", "2", 1), ("q1", "1", 1)]})  # fmt: skip
    other = SourceSettings(kind="beir", path=str(folder))
    file = file_of(tmp_path / "rows.jsonl", [{"query": "a", "positive": "one"}])
    settings = RlDataSettings(sources=(other, file))
    opened = {source.label: open_source(source, unit="query") for source in settings.sources}
    corpus = SearchedCorpus(settings, count, opened=opened)
    ids = {text: id_ for id_, text in zip(corpus.texts.ids, corpus.texts.texts, strict=True)}
    expected = {ids["x"]: 2.0, ids["y"]: 1.0, ids["one"]: 1.0}
    for source in opened.values():
        assert corpus.relevance(source.parse(next(source.iterate()), 0)) == expected
    alone = SearchedCorpus(settings, count)
    first = opened[other.label].parse(opened[other.label].at(0), 0)
    assert alone.relevance(first) == {ids["x"]: 2.0}, "the control: the row alone knows one"


def test_an_id_with_two_texts_is_refused(tmp_path):
    rows = [{"query": "a", "positive": "one", "positive_id": "1"}, {"query": "b", "positive": "two", "positive_id": 1}]
    source = file_of(tmp_path / "rows.jsonl", rows)
    with pytest.raises(ValueError, match="the id '1' stands for two documents, 'one' and 'two'"):
        SearchedCorpus(RlDataSettings(sources=(source,)), count)


def test_a_relevant_document_that_the_named_corpus_lacks_is_found_before_the_first_step(tmp_path, two):
    source = file_of(tmp_path / "rows.jsonl", [{"query": "a", "positive": "one", "positive_id": "7"}])
    with pytest.raises(ValueError, match="'7' is not among the 2 documents"):
        SearchedCorpus(RlDataSettings(sources=(source,), corpus=(two[0],)), count)


# ---- rows without ids over a corpus with ids ------------------------------------------------------------------------


def test_rows_without_ids_are_known_by_their_texts(tmp_path, two):
    """Regression: right rows were refused, since their texts' hashes are not ids of the corpus."""
    rows = [
        {"query": "a", "positive": [{"title": "Rivers", "text": "flow"}, {"id": "2", "text": "stones"}]},
        {"query": "b", "positive": " stones\n"},
        {"query": "b", "positive": "Rivers flow"},
    ]
    source = file_of(tmp_path / "rows.jsonl", rows)
    corpus = SearchedCorpus(RlDataSettings(sources=(source,), corpus=(two[0],)), count)
    a, b, again = (open_source(source).parse(raw, 0) for raw in open_source(source).iterate())
    assert corpus.relevance(a) == corpus.relevance(b) == corpus.relevance(again) == {"1": 1.0, "2": 1.0}
    assert [corpus.positive_id(one) for one in (a, b, again)] == ["1", "2", "1"]


def test_a_text_that_the_corpus_has_twice_is_relevant_under_both_ids(tmp_path):
    folder = beir(tmp_path / "beir", [("1", "", "same"), ("2", "", "same"), ("3", "", "other")])
    source = file_of(tmp_path / "rows.jsonl", [{"query": "a", "positive": "same"}, {"query": "b", "positive": "other"}])
    corpus = SearchedCorpus(RlDataSettings(sources=(source,), corpus=(folder,)), count)
    a, b = (open_source(source).parse(raw, 0) for raw in open_source(source).iterate())
    assert corpus.relevance(a) == {"1": 1.0, "2": 1.0}
    assert corpus.relevance(b) == {"3": 1.0}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"query": "b", "positive": "flow"}, "no document of the searched corpus (2 documents, titles"),  # no title
        ({"query": "b", "positive": "birds"}, "is 'birds', and the row has no id of it"),
        ({"query": "b", "positive": "stones", "positive_id": "7"}, "document '7' is not among the 2 documents"),
    ],
)
def test_a_row_whose_document_the_corpus_lacks_is_named(row, words, tmp_path, two):
    """An id that is given counts: a text under another id is another document."""
    source = file_of(tmp_path / "rows.jsonl", [{"query": "a", "positive": "stones"}, row])
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 2: ") as error:
        SearchedCorpus(RlDataSettings(sources=(source,), corpus=(two[0],)), count)
    assert words in str(error.value)


def test_mining_is_for_stage_1():
    source = SourceSettings(kind="hopworld", documents=500)
    mined = {"sources": (source,), "hard_negatives": 1, "mining": MiningSettings()}
    assert DataSettings(**mined).mining
    with pytest.raises(ValueError, match="mining belongs to stage 1: in stage 2 the hard negatives come from"):
        RlDataSettings(**mined)
