"""An index gives the answers of the encoder's own vectors, and of no other encoder's."""

import json
from dataclasses import replace

import numpy as np
import pytest

from search_r3_mteb import SearchIndex, SearchR3Encoder
from search_r3_mteb.encoder.checkpoints import Checkpoint, load
from search_r3_mteb.encoder.profiles import Profile
from search_r3_mteb.tasks.beir_folder import Document
from tests.conftest import build_model
from tests.indexing.conftest import expected, pairs, same

QUERIES = ["the king and the sea", "moon 4", "rain"]


@pytest.mark.parametrize("mode", ["direct", "reason"])
def test_the_nearest_are_those_of_the_encoders_vectors(built, encoder, documents, mode):
    results = built.search(QUERIES, mode, 7)
    same(pairs(results), expected(encoder, documents, QUERIES, mode, 7))
    assert [result.query for result in results] == QUERIES
    by_id = {each["id"]: each for each in documents}
    for hit in results[0].hits:
        assert (hit.title, hit.text) == (by_id[hit.id]["title"], by_id[hit.id]["text"])


def test_modes_differ_and_only_one_of_them_has_a_reasoning(built, encoder):
    [direct], [reasoned] = built.search(QUERIES[:1], "direct"), built.search(QUERIES[:1], "reason")
    assert pairs([direct]) != pairs([reasoned])
    assert direct.thought is None
    assert reasoned.thought.token_ids == encoder.think(QUERIES[:1])[0].token_ids != []


def test_a_query_alone_and_among_others_finds_the_same(built):
    same(pairs(built.search(QUERIES)), [pairs(built.search(each))[0] for each in QUERIES])


def test_more_than_there_are_gives_all_and_no_query_none(built, documents):
    assert sorted(hit.id for hit in built.search("x", "direct", 1000)[0].hits) == sorted(d["id"] for d in documents)
    assert built.search([], "reason") == []
    assert len(built) == len(documents)


def test_equal_documents_come_in_the_order_of_their_adding(encoder, tmp_path):
    index = SearchIndex.build([{"id": id_, "text": "the same"} for id_ in "zya"], encoder, tmp_path / "index")
    index.add([{"id": "b", "text": "the same"}])
    assert [hit.id for hit in index.search("same", "direct", 4)[0].hits] == ["z", "y", "a", "b"]


@pytest.mark.parametrize("k", [0, -1])
def test_no_documents_at_all_cannot_be_asked_for(built, k):
    with pytest.raises(ValueError, match=r"k=.*ask for at least one"):
        built.search("x", "direct", k)


def test_another_mode_is_refused(built):
    with pytest.raises(ValueError, match="mode='both' does not exist"):
        built.search("x", "both")


def test_documents_are_objects_or_mappings(encoder, documents, built, tmp_path):
    objects = [Document(each["id"], each["title"], each["text"]) for each in documents]
    other = SearchIndex.build(iter(objects), encoder, tmp_path / "other")
    assert pairs(other.search(QUERIES, "direct")) == pairs(built.search(QUERIES, "direct"))
    for wrong, what in (({"text": "x"}, "needs an id"), ("x", "needs an id"), ({"id": "a", "text": None}, "a text")):
        with pytest.raises(TypeError, match=f"Document 1 .*{what}"):
            SearchIndex.build([documents[0], wrong], encoder, tmp_path / "wrong")


def test_an_id_that_comes_twice_is_named(encoder, documents, tmp_path):
    with pytest.raises(ValueError, match="Two documents have the id 'd4'"):
        SearchIndex.build([*documents, documents[4]], encoder, tmp_path / "index")
    assert len(SearchIndex.build(documents, encoder, tmp_path / "index")) == len(documents)  # what it left is not a bar


def test_nothing_is_no_corpus(encoder, tmp_path):
    with pytest.raises(ValueError, match="no documents"):
        SearchIndex.build([], encoder, tmp_path / "index")


# ---- whose vectors they are ----------------------------------------------------------------------------------------


def test_other_settings_of_queries_search_the_same_index(built, encoder, documents):
    settings = [{"mode": "direct"}, {"max_reasoning_tokens": 5}, {"temperature": 1.0, "seed": 3}, {"anchor": 0.5}]
    for each in settings:
        other = SearchR3Encoder(encoder.checkpoint, **({"max_length": 512} | each))
        index = SearchIndex.open(built.folder, other)
        same(pairs(index.search(QUERIES, "reason", 5)), expected(other, documents, QUERIES, "reason", 5))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("weights", r"the checkpoint .* \(weights, tokenizer, template and profile\); tests/other has the checkpoint"),
        ("template", r"one prompt around a document; tests/other has another prompt around a document"),
        ("max_length", r"prompts of at most 512 tokens \(max_length\); tests/tiny has prompts of at most 480 tokens"),
        (
            "weights, max_length",
            r"at most 512 tokens \(max_length\); the checkpoint .*; tests/other has prompts of at most 480",
        ),
        ("dtype", r"numbers of the type float32; tests/other has numbers of the type bfloat16"),
        ("dim", r"vectors of 32 dimensions.*tests/other has vectors of 64 dimensions"),
    ],
)
def test_another_encoding_of_documents_is_refused_by_name(built, encoder, tiny_tokenizer, what, message):
    import torch

    settings = {"max_length": 480 if "max_length" in what else 512}
    checkpoint = encoder.checkpoint
    if what != "max_length":
        shape = {"hidden_size": 64} if what == "dim" else {}
        model = build_model(seed=7 if "weights" in what else 0, **shape)
        model = model.to(torch.bfloat16) if what == "dtype" else model
        profile = Profile.default()
        if what == "template":
            profile = replace(profile, direct=replace(profile.direct, system="Another prompt."))
        checkpoint = Checkpoint(model, tiny_tokenizer, profile, "tests/other")
    other = SearchR3Encoder(checkpoint, **settings)
    with pytest.raises(ValueError, match=f"(?s){message}.*build another index"):
        SearchIndex.open(built.folder, other)
    index = SearchIndex.open(built.folder, encoder)
    index._encoder = other  # as if it had been trained, or the folder been replaced, since it was opened
    for work in (lambda: index.search("x"), lambda: index.add([{"id": "n", "text": "n"}])):
        with pytest.raises(ValueError, match="build another index"):
            work()
    assert len(index) == len(built)


def test_weights_that_are_trained_meanwhile_are_noticed(built, tiny_tokenizer):
    import torch

    own = SearchR3Encoder(Checkpoint(build_model(), tiny_tokenizer, Profile.default(), "tests/tiny"), max_length=512)
    index = SearchIndex.open(built.folder, own)
    assert index.search("rain", "direct")
    with torch.no_grad():
        next(own.model.parameters()).mul_(1.5)
    with pytest.raises(ValueError, match="the checkpoint"):
        index.search("rain", "direct")


def test_only_an_encoder_that_tells_queries_from_documents_will_do(built, documents, tmp_path):
    class Other:
        dim = 32

    with pytest.raises(TypeError, match="SearchR3Encoder, got Other"):
        SearchIndex.build(documents, Other(), tmp_path / "other")


def test_the_model_is_loaded_from_where_it_was(tiny_folder, documents, tmp_path):
    encoder = SearchR3Encoder(load(tiny_folder), max_length=512, max_reasoning_tokens=3)
    built = SearchIndex.build(documents, encoder, tmp_path / "index", model=tiny_folder)
    opened = SearchIndex.open(tmp_path / "index", max_reasoning_tokens=3)
    assert pairs(opened.search(QUERIES)) == pairs(built.search(QUERIES))
    assert opened.encoder.max_length == 512
    assert pairs(SearchIndex.open(tmp_path / "index", tiny_folder, max_reasoning_tokens=3).search(QUERIES)) == pairs(
        built.search(QUERIES)
    )
    with pytest.raises(TypeError, match=r"Settings \(seed\) were given beside an encoder"):
        SearchIndex.open(tmp_path / "index", encoder, seed=1)


def test_an_index_of_shorter_vectors_is_searched_with_such(tiny_folder, documents, tmp_path):
    """Matryoshka: the first dimensions, of queries in both modes as of documents."""
    whole, short = (SearchR3Encoder(load(tiny_folder), max_length=512, max_reasoning_tokens=3, truncate_dim=dim)
                    for dim in (None, 16))  # fmt: skip
    SearchIndex.build(documents, short, tmp_path / "index", model=tiny_folder)
    opened = SearchIndex.open(tmp_path / "index", max_reasoning_tokens=3)
    for mode in ("direct", "reason"):
        asked = short if mode == "reason" else SearchR3Encoder(
            short.checkpoint, mode="direct", max_length=512, truncate_dim=16
        )  # fmt: skip
        vectors = short.encode_document(documents)
        best = [documents[row]["id"] for row in np.argsort(-(vectors @ asked.encode_query("rain")))[:5]]
        assert [hit.id for hit in opened.search("rain", mode, 5)[0].hits] == best
    with pytest.raises(ValueError, match=r"vectors of 16 dimensions; .* has vectors of 32 dimensions\. Vectors of"):
        SearchIndex.open(tmp_path / "index", whole)


def test_a_model_that_was_in_memory_only_has_to_be_given(encoder, documents, tmp_path):
    local = Checkpoint(encoder.model, encoder.tokenizer, Profile.default(), "local/tiny")
    SearchIndex.build(documents, SearchR3Encoder(local, max_length=512), tmp_path / "index")
    with pytest.raises(ValueError, match="was in memory, so where it lies is not known"):
        SearchIndex.open(tmp_path / "index").search("x")


# ---- places --------------------------------------------------------------------------------------------------------


def test_what_is_no_index_is_named(tmp_path, built, encoder, documents):
    with pytest.raises(FileNotFoundError, match=r"no index\.json, so this is not an index"):
        SearchIndex.open(tmp_path)
    with pytest.raises(FileExistsError, match="holds an index already"):
        SearchIndex.build(documents, encoder, built.folder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds 'notes\.txt', which is not of an index"):
        SearchIndex.build(documents, encoder, tmp_path / "mine")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"
    with pytest.raises(FileExistsError, match="is a file"):
        SearchIndex.build(documents, encoder, tmp_path / "mine" / "notes.txt")


def test_one_process_writes_and_a_launcher_is_refused(encoder, documents, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes were started together"):
        SearchIndex.build(documents, encoder, tmp_path / "index")


def test_vectors_are_a_plain_array_of_unit_rows(built, encoder, documents):
    [file] = built.folder.glob("part-*/vectors.npy")
    rows = np.load(file)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(
        rows, encoder.encode_document([{"title": d["title"], "text": d["text"]} for d in documents])
    )
    assert json.loads((built.folder / "index.json").read_text())["encoding"]["dim"] == 32
