"""Hopworld: deterministic, nested, with regions that no multi-hop query leaves."""

import hashlib
import itertools
import re

import pytest

from search_r3_mteb.tasks.hopworld import HOPS, SPLITS, HopWorld, hops_of
from search_r3_mteb.tasks.hopworld_language import PHRASINGS, RELATIONS
from search_r3_mteb.tasks.hopworld_names import BOOK, CITY, COMPANY, COUNTRY, PERSON, entity_name, name_words
from tests.programs import loaded_after

ENTITY_KINDS = (PERSON, BOOK, COMPANY, CITY, COUNTRY)


@pytest.fixture(scope="module")
def world():
    return HopWorld()


def digest(world):
    parts = [f"{id_} {document['text']}" for id_, document in world.corpus.items()]
    parts += [f"{query.id} {query.text} {query.trace}" for split in SPLITS for query in world.queries(split)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def pairs(text):
    """All two-word strings of a text: every entity name is among them, whatever the world says about itself."""
    words = re.findall(r"\w+", text)
    return {f"{a} {b}" for a, b in itertools.pairwise(words)}


def names_of(world):
    """Names read from the documents: subject and object of every sentence."""
    found = set()
    for document in world.corpus.values():
        words = re.findall(r"\w+", document["text"])
        found |= {" ".join(words[:2]), " ".join(words[-2:])}
    return found


def entities(queries, names):
    """Entities that appear in the queries or in what they ask about, read from the texts."""
    return {name for query in queries for name in pairs(query.text) | pairs(query.trace.replace(". ", " | "))} & names


# A change here changes every published hopworld figure: raise GENERATOR_VERSION with it.
def test_output_is_golden(world):
    assert digest(world) == "9126a4364d883846f4a93c4b647fea70ab3373c81a1d44739edc2b89e5546aff"
    assert digest(HopWorld(seed=1)) == "7f0495557c15780f13e60ba781f671e3af28cfdb90847677de06c9c81233544b"


def test_example_of_each_kind(world):
    assert world.corpus["fact-000220"] == {"title": "", "text": "Regina Schreiber works for Merlin Energy."}
    query = next(q for q in world.queries("test", 2) if q.id == "test-2hop-000220.000456-p0")
    assert query.text == "Who is the founder of the employer of Regina Schreiber?"
    assert query.trace == "Regina Schreiber works for Merlin Energy. Merlin Energy was founded by Eva Dahl."
    assert query.chain == ("fact-000220", "fact-000456")
    assert query.positive_id == "fact-000456"
    assert query.entities == ("Regina Schreiber", "Merlin Energy", "Eva Dahl")


def test_enough_queries_of_every_hop_count(world):
    assert [len(world.queries("test", hops)) for hops in HOPS] == [300] * 4
    assert [len(world.queries("dev", hops)) for hops in HOPS] == [100] * 4
    small = HopWorld(500)
    assert [len(small.queries("test", hops)) for hops in HOPS] == [150] * 4
    assert all(len(small.queries("train", hops)) > 1000 for hops in HOPS)


@pytest.mark.parametrize("documents", [500, 777, 1000, 1500])
def test_no_entity_is_in_multi_hop_queries_of_two_splits(documents):
    world = HopWorld(documents)
    names = names_of(world)
    by_split = {
        split: entities([query for hops in HOPS[1:] for query in world.queries(split, hops)], names) for split in SPLITS
    }
    assert all(len(found) > 20 for found in by_split.values())
    for first, second in itertools.combinations(SPLITS, 2):
        assert not by_split[first] & by_split[second]
    # Negative control: 1-hop training queries name every entity, so the check sees overlaps where they are.
    assert entities(world.queries("train", 1), names) >= by_split["test"]


def test_one_hop_training_covers_every_fact_but_not_the_phrasing_of_its_test(world):
    training = world.queries("train", 1)
    assert {query.positive_id for query in training} == set(world.corpus)
    texts = {query.text for query in training}
    held_out = [query for split in ("dev", "test") for query in world.queries(split, 1)]
    assert len(held_out) == 400
    assert not texts & {query.text for query in held_out}
    per_fact = {query.positive_id: 0 for query in held_out}
    for query in training:
        if query.positive_id in per_fact:
            per_fact[query.positive_id] += 1
    assert set(per_fact.values()) == {PHRASINGS - 1}


def test_no_query_text_is_in_two_splits_or_twice_in_one(world):
    for hops in HOPS:
        texts = [query.text for split in SPLITS for query in world.queries(split, hops)]
        assert len(texts) == len(set(texts))
    ids = [query.id for split in SPLITS for query in world.queries(split)]
    assert len(ids) == len(set(ids))


def test_relation_pairs_of_tests_all_occur_in_two_hop_training():
    for documents in (500, 1000):
        world = HopWorld(documents)
        patterns = [
            re.compile(re.sub(r"\{\w\}", r"\\w+ \\w+", re.escape(r.sentence).replace(r"\{", "{").replace(r"\}", "}")))
            for r in RELATIONS
        ]

        def relation_pairs(queries, patterns=patterns, world=world):
            kinds = {
                id_: next(i for i, pattern in enumerate(patterns) if pattern.fullmatch(document["text"]))
                for id_, document in world.corpus.items()
            }
            return {pair for query in queries for pair in itertools.pairwise(kinds[fact] for fact in query.chain)}

        training = relation_pairs(world.queries("train", 2))
        assert relation_pairs(world.queries("test") + world.queries("dev")) <= training
        assert len(training) == 26


@pytest.mark.parametrize(("small", "large"), [(500, 1000), (777, 1000), (1000, 1800)])
def test_worlds_are_nested(small, large):
    first, second = HopWorld(small), HopWorld(large)
    assert list(first.corpus.items()) == list(second.corpus.items())[:small]
    assert len(first.corpus) == small
    assert len(second.corpus) == large
    for split in SPLITS:
        assert {query.id: query for query in first.queries(split)}.items() <= {
            query.id: query for query in second.queries(split)
        }.items()
    if small >= 1000:  # a larger world adds candidates, not tests
        assert first.queries("test") == second.queries("test")


def test_other_seed_is_another_world(world):
    other = HopWorld(seed=1)
    shared = {row["text"] for row in world.corpus.values()} & {row["text"] for row in other.corpus.values()}
    assert len(shared) < 20


def test_relevance_is_unique_and_states_the_answer(world):
    texts = [document["text"] for document in world.corpus.values()]
    assert len(set(texts)) == len(texts)
    stems = [" ".join(text.split()[:-2]) for text in texts]  # subject and relation
    assert len(set(stems)) == len(stems)
    for split in ("dev", "test"):
        assert all(ids == {q.positive_id: 1} for q, ids in zip(world.queries(split), world.relevance(split).values()))
    for query in world.queries("test"):
        positive = world.corpus[query.positive_id]["text"]
        assert query.trace.endswith(positive)
        assert query.trace == " ".join(world.corpus[fact]["text"] for fact in query.chain)
        assert query.entities[-1] in positive
        assert query.entities[0] in query.text
        assert not any(name in query.text for name in query.entities[1:])
        assert len(set(query.entities)) == query.hops + 1 == len(query.chain) + 1


def test_no_document_answers_many_queries(world):
    for split, hops in itertools.product(("dev", "test"), HOPS):
        positives = [query.positive_id for query in world.queries(split, hops)]
        assert max(map(positives.count, positives)) <= 6


def test_bm25_finds_the_last_sentence_of_the_trace_but_not_the_question(world):
    import bm25s

    ids = list(world.corpus)
    index = bm25s.BM25()
    index.index(
        bm25s.tokenize([row["text"] for row in world.corpus.values()], show_progress=False), show_progress=False
    )

    def top_share(queries, texts):
        tokens = bm25s.tokenize(texts, show_progress=False)
        best, _ = index.retrieve(tokens, k=1, show_progress=False)
        return sum(ids[row[0]] == query.positive_id for row, query in zip(best, queries)) / len(queries)

    for hops in HOPS:
        queries = world.queries("test", hops)
        assert top_share(queries, [query.trace[query.trace.rstrip(".").rfind(". ") + 1 :] for query in queries]) == 1.0
        if hops > 1:
            assert top_share(queries, [query.text for query in queries]) < 0.1


def test_words_cover_every_text_of_the_default_world(world):
    words = world.words()
    assert words == sorted(set(words))
    assert len(words) < 1000
    known = set(words)
    for text in [row["text"] for row in world.corpus.values()] + [q.text for s in SPLITS for q in world.queries(s)]:
        assert known.issuperset(re.findall(r"\w+|[^\w\s]", text)), text


def test_names_are_unique_over_kinds_and_beyond_the_lists():
    assert len(name_words()) == len({word.lower() for word in name_words()})
    names = [entity_name(kind, number, seed=0) for kind in ENTITY_KINDS for number in range(20_000)]
    assert len(set(names)) == len(names)
    assert all(len(name.split()) == 2 for name in names)
    second = {kind: {entity_name(kind, number, 0).split()[1] for number in range(20_000)} for kind in ENTITY_KINDS}
    for one, other in itertools.combinations(ENTITY_KINDS, 2):
        assert not second[one] & second[other]


def test_large_world_is_made_in_seconds_and_keeps_regions():
    world = HopWorld(100_000)
    assert len(world.corpus) == 100_000
    assert len({row["text"] for row in world.corpus.values()}) == 100_000
    assert world.queries("test") == HopWorld().queries("test")


def test_training_rows(world):
    rows = list(world.training_rows())
    queries = world.queries("train", 1) + world.queries("train", 2)
    assert [row["query_id"] for row in rows] == [query.id for query in queries]
    last = rows[-1]
    assert set(last) == {"query", "positive", "positive_id", "reasoning", "negatives", "hops", "query_id"}
    assert last["positive"] == world.corpus[last["positive_id"]]["text"]
    assert last["reasoning"].endswith(last["positive"])
    assert last["hops"] == 2
    assert last["reasoning"] == f"{last['negatives'][0]} {last['positive']}"
    assert rows[0]["negatives"] == []
    assert all(set(row) & {"reasoning", "negatives"} == set() for row in world.training_rows(hops=(2,), traces=False))


def test_hops_of():
    assert hops_of("test-3hop-000314.000234.000321-p3") == 3
    with pytest.raises(ValueError, match="'q1' is not a hopworld query id"):
        hops_of("q1")


@pytest.mark.parametrize("documents", [0, -1, 499, 1_000_001])
def test_size_out_of_range(documents):
    with pytest.raises(ValueError, match=f"between 500 and 1000000, got {documents}.*default of 1000"):
        HopWorld(documents)


@pytest.mark.parametrize(
    "arguments", [{"documents": "1000"}, {"documents": 1000.0}, {"documents": True}, {"seed": None}]
)
def test_size_and_seed_must_be_integers(arguments):
    with pytest.raises(TypeError, match="must be an int, got"):
        HopWorld(**arguments)


def test_unknown_split_and_hop_count(world):
    with pytest.raises(ValueError, match="unknown split 'validation'; there are train, dev, test"):
        world.queries("validation")
    with pytest.raises(ValueError, match="1 to 4 hops, got 5"):
        world.queries("test", 5)
    with pytest.raises(ValueError, match="1 to 4 hops, got 0"):
        world.training_rows(hops=(0,)).__next__()


HEAVY = ["torch", "mteb", "transformers", "faiss", "datasets", "sentence_transformers", "pandas"]


def test_tasks_import_light():
    modules = ", ".join(f"search_r3_mteb.tasks.{name}" for name in ("hopworld", "stdlib", "beir_folder"))
    assert not loaded_after(f"import {modules}", HEAVY)
    # Negative control: the same question sees a heavy import.
    assert "mteb" in loaded_after("from search_r3_mteb.tasks.mteb_tasks import HopWorldTask", HEAVY)
