"""Which documents stage 2 searches, and how its rows name them."""

import json

import pytest

from search_r3_mteb.encoder.documents import join_title
from search_r3_mteb.tasks.beir_folder import write_beir
from train.config.data import RlDataSettings, SourceSettings
from train.data.rows import TrainingRow, text_id
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
