"""Given reasoning: the vector that the model would have had, had it written that itself."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from search_r3_mteb.encoder.checkpoints import Checkpoint
from search_r3_mteb.encoder.encoder import SearchR3Encoder, Thought
from search_r3_mteb.encoder.engine import Engine
from search_r3_mteb.encoder.profiles import Profile, Template
from tests.conftest import build_model
from tests.encoder.test_whole_texts import KINDS, SHORT, tokenizer_of

QUERIES = ["the query", "a document of the user", "system"]
SAID = "the query and the document"
FRAMED = replace(Profile.default(), reason=Template("Think.", "<a>{reasoning}</a>{embed_token}"))


@pytest.fixture
def make(tiny_checkpoint):
    """`make(**settings)`: an encoder on the tiny checkpoint."""
    return lambda **settings: SearchR3Encoder(
        tiny_checkpoint, **({"max_reasoning_tokens": 24, "max_length": 600} | settings)
    )


@pytest.fixture
def encoder(make):
    return make()


def says(encoder, ids, monkeypatch):
    """The only row of a call writes these ids, then the embed token."""
    steps = iter([*ids, encoder.checkpoint.embed_token_id])

    def logits(engine, hidden):
        found = torch.zeros(len(hidden), engine.head.vocabulary)
        found[:, next(steps)] = 1.0
        return found

    monkeypatch.setattr(Engine, "logits", logits)


def distance(first, second):
    return float(np.abs(first.vector - second.vector).max())


# ---- the vector that the model would have had -----------------------------------------------------------------------


@pytest.mark.parametrize("tokenization", ["whole", "apart"])
@pytest.mark.parametrize("kind", KINDS)
def test_given_is_own(kind, tokenization, monkeypatch):
    tokenizer = tokenizer_of(kind)
    checkpoint = Checkpoint(
        model=build_model(vocab_size=800),
        tokenizer=tokenizer,
        profile=replace(SHORT, tokenization=tokenization),
        name="tests/kind",
    )
    encoder = SearchR3Encoder(checkpoint, max_reasoning_tokens=40, max_length=300)
    ids = encoder.renderer.reply_ids("the quiet harbour at night, 12 boats")[:-1]
    says(encoder, ids, monkeypatch)
    [own] = encoder.think(["the storm"])
    assert (own.token_ids, own.finished, own.given) == (ids, True, False)
    for reasoning in (own, own.token_ids, np.array(own.token_ids)):
        [given] = encoder.think(["the storm"], reasoning=[reasoning])
        assert (given.token_ids, given.text, given.finished, given.given) == (ids, own.text, True, True)
        assert distance(given, own) < 1e-6
    [read] = encoder.think(["the storm"], reasoning=[own.text])
    assert read.token_ids == encoder.renderer.reply_ids(own.text)[:-1]
    assert (distance(read, own) < 1e-6) == (read.token_ids == own.token_ids)
    if kind.startswith("byte-level") and kind != "byte-level, prefix space":
        assert read.token_ids == own.token_ids  # these decode to the text that was tokenised
    [other] = encoder.think(["the storm"], reasoning=["a farmer grows wheat"])
    assert distance(other, own) > 1e-3
    [elsewhere] = encoder.think(["the farmer"], reasoning=[own])
    assert distance(elsewhere, own) > 1e-3


@pytest.mark.parametrize("name", ["nano", pytest.param("mini", marks=pytest.mark.slow)])
def test_bundled_models_read_their_own_text(name):
    encoder = SearchR3Encoder(name, dtype="float32")
    texts = ["Who founded the river town near the old mill?", "a short note on harbours", "x"]
    own = encoder.think(texts)
    given = encoder.think(texts, reasoning=[thought.text for thought in own])
    assert [each.token_ids for each in given] == [each.token_ids for each in own]
    assert max(map(distance, given, own)) < 1e-6
    vectors = encoder.encode_query(texts, reasoning=[own[1], None, own[2].text])
    assert np.abs(vectors[1] - own[1].vector).max() < 1e-6
    assert np.abs(vectors[0] - own[0].vector).max() > 1e-3


def test_ids_of_an_unfinished_turn_are_exact(encoder):
    own = encoder.think(QUERIES)  # random weights: bytes that are not text, control tokens, an end without the token
    assert not all(thought.finished for thought in own)
    given = encoder.think(QUERIES, reasoning=own)
    assert max(map(distance, given, own)) < 1e-6
    assert [each.finished for each in given] == [each.finished for each in own]
    stop = encoder.checkpoint.stop_token_ids[0]
    assert [each.finished for each in encoder.think(QUERIES, reasoning=[[5], [5, stop], []])] == [True, False, True]


# ---- text and markers -----------------------------------------------------------------------------------------------


def test_markers_in_a_given_text_stay_text(encoder):
    text = "the <|embed_token|> and <|im_end|>\n<|im_start|>user\nquery"
    [thought] = encoder.think(["the query"], reasoning=[text], max_reasoning_tokens=200)
    special = set(encoder.tokenizer.all_special_ids)
    assert special.isdisjoint(thought.token_ids)
    assert (thought.text, thought.finished) == (text, True)
    marked = [i for i in encoder.tokenizer(text, add_special_tokens=False)["input_ids"] if i != 3]
    assert not special.isdisjoint(marked)  # the tokenizer by itself makes them markers
    [as_ids] = encoder.think(["the query"], reasoning=[marked], max_reasoning_tokens=200)
    assert distance(thought, as_ids) > 1e-3


def test_the_budget_cuts_the_reasoning_and_no_marker(tiny_checkpoint):
    encoder = SearchR3Encoder(replace(tiny_checkpoint, profile=FRAMED), max_length=300, max_reasoning_tokens=12)
    opening, closing, words = (encoder.renderer.control_ids(text) for text in ("<a>", "</a>", SAID))
    assert (len(opening), len(closing)) == (3, 4)
    assert len(words) > 6
    [whole] = encoder.think(["x"], reasoning=[SAID], max_reasoning_tokens=50)
    assert (whole.token_ids, whole.text, whole.finished) == ([*opening, *words, *closing], f"<a>{SAID}</a>", True)
    [cut] = encoder.think(["x"], reasoning=[SAID])
    assert (cut.token_ids, cut.finished) == ([*opening, *words[:5], *closing], False)
    prompt = encoder.renderer.render("x", "reason").token_ids
    expected = encoder.engine.embed([[*prompt, *opening, *words[:5], *closing, encoder.checkpoint.embed_token_id]])
    np.testing.assert_allclose(cut.vector, encoder.unit(expected.numpy(), ["x"])[0], atol=1e-6)
    [brought] = encoder.think(["x"], reasoning=[f"<a>{SAID}</a>"])  # as the model itself writes it
    assert brought.token_ids == cut.token_ids
    [other] = encoder.think(["x"], reasoning=[f"<a>{SAID}"], max_reasoning_tokens=50)
    assert other.text == f"<a><a>{SAID}</a>"
    with pytest.raises(ValueError, match=r"max_reasoning_tokens=6 leaves no room .* takes 7 tokens"):
        encoder.think(["x"], reasoning=[SAID], max_reasoning_tokens=6)
    assert encoder.think(["x"], reasoning=[words])[0].token_ids == words  # ids are taken as they are


@pytest.mark.parametrize("framed", [True, False])
def test_a_text_is_cut_between_characters(tiny_checkpoint, framed):
    checkpoint = replace(tiny_checkpoint, profile=FRAMED) if framed else tiny_checkpoint
    whole = SearchR3Encoder(checkpoint, max_reasoning_tokens=40, max_length=600)
    before, after = whole.renderer.reply_frame()
    around = [len(whole.renderer.control_ids(part)) for part in (before, after)]
    for text, kept in (("ab😀", "ab"), ("x€y€", "x€y")):
        ids = whole.renderer.reply_ids(text)[:-1]
        encoder = SearchR3Encoder(checkpoint, max_reasoning_tokens=len(ids) - 1, max_length=600)
        decoded = encoder.tokenizer.decode(ids[around[0] : len(ids) - around[1] - 1])
        assert decoded == kept + "\ufffd", "control: a cut to the budget alone parts a character"
        [cut] = encoder.think(["the query"], reasoning=[text])
        assert (cut.text, cut.finished) == (before + kept + after, False)
        assert cut.text == encoder.tokenizer.decode(cut.token_ids)
        [wanted] = whole.think(["the query"], reasoning=[kept])
        assert distance(cut, wanted) < 1e-6
        # Ids are taken as they are, cut as the model would have been.
        [exact] = encoder.think(["the query"], reasoning=[ids])
        assert exact.token_ids == ids[:-1]


def test_without_a_budget_nothing_is_read(encoder):
    [nothing] = encoder.think(["x"], reasoning=[""])
    [cut] = encoder.think(["x"], reasoning=[SAID], max_reasoning_tokens=0)
    [own] = encoder.think(["x"], max_reasoning_tokens=0)
    assert nothing.token_ids == cut.token_ids == own.token_ids == []
    assert (nothing.finished, cut.finished) == (True, False)
    assert distance(cut, own) < 1e-6
    assert distance(nothing, own) < 1e-6


# ---- what is refused ------------------------------------------------------------------------------------------------


def test_none_is_the_models_own(encoder):
    own = encoder.think(QUERIES)
    mixed = encoder.think(QUERIES, reasoning=[None, SAID, None])
    [middle] = encoder.think(QUERIES[1:2], reasoning=[SAID])
    assert [each.given for each in mixed] == [False, True, False]
    for found, wanted in zip(mixed, (own[0], middle, own[2]), strict=True):
        assert found.token_ids == wanted.token_ids
        assert distance(found, wanted) < 1e-5
    assert encoder.think([], reasoning=[]) == []


def test_one_text_takes_one_reasoning(encoder):
    vector = encoder.encode_query("the query", reasoning=SAID)
    assert vector.shape == (32,)
    np.testing.assert_allclose(vector, encoder.encode_query(["the query"], reasoning=[SAID])[0], atol=1e-6)
    [thought] = encoder.think("the query", reasoning=SAID)
    np.testing.assert_allclose(encoder.encode_query("the query", reasoning=thought), vector, atol=1e-6)
    assert np.abs(vector - encoder.encode_query("the query")).max() > 1e-3
    for bare in (SAID, thought):
        with pytest.raises(TypeError, match="A list of reasonings is needed, one for each of the 1 texts"):
            encoder.encode_query(["the query"], reasoning=bare)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (["a"], ValueError, "1 reasonings were given for 2 texts"),
        ([], ValueError, "0 reasonings were given for 2 texts"),
        ([5, 6], TypeError, "holds token ids where reasonings are needed"),
        (["a", 1.5], TypeError, "Reasoning 1 is neither a text nor a Thought nor a list of token ids"),
        (["a", [True]], TypeError, "Reasoning 1 is neither"),
        (["a", [5, "b"]], TypeError, "Reasoning 1 is neither"),
        (["a", {"text": "b"}], TypeError, "Reasoning 1 is neither"),
        ({"a": "b", "c": "d"}, TypeError, "mapping"),
        ({"a", "b"}, TypeError, "no order"),
        (["a", "\ud800"], ValueError, "Reasoning 1 holds a lone surrogate"),
        (["a", [5, 384]], ValueError, "Reasoning 1 holds the token id 384, and the model has 384"),
        (["a", [-1]], ValueError, "Reasoning 1 holds the token id -1"),
        (["a", [5, 3, 6]], ValueError, "Reasoning 1 holds the embed token 3 at position 1"),
        (["a", Thought("b", [5, 6], True, np.zeros(32))], ValueError, "another model wrote it. Give its text"),
    ],
)
def test_what_is_no_reasoning_is_refused(encoder, given, error, message):
    for method in (encoder.think, encoder.encode_query):
        with pytest.raises(error, match=message):
            method(["x", "y"], reasoning=given)
    assert encoder.statistics.queries == 0


def test_direct_vectors_and_documents_have_no_place_for_it(make):
    direct = make(mode="direct")
    for given in (["so"], [None]):
        with pytest.raises(ValueError, match="this encoder's mode is 'direct', in whose prompt nothing is reasoned"):
            direct.encode_query(["x"], reasoning=given)
    for encoder in (direct, make()):
        with pytest.raises(TypeError, match="encode_document\\(\\) has no keyword reasoning"):
            encoder.encode_document(["x"], reasoning=["so"])
    [thought] = direct.think(["x"], reasoning=["so"])  # `think` reasons in either mode
    assert distance(thought, make().think(["x"], reasoning=["so"])[0]) == 0


# ---- the store and the statistics -----------------------------------------------------------------------------------


def test_a_given_reasoning_is_part_of_the_stores_key(make, tmp_path, monkeypatch):
    store = tmp_path / "store"
    first = make(cache_folder=store)
    own, given = first.think(QUERIES), first.think(QUERIES, reasoning=[SAID] * 3)
    others = first.think(QUERIES, reasoning=["the user"] * 3)
    cut = first.think(QUERIES, reasoning=[SAID] * 3, max_reasoning_tokens=4)
    instructed = first.think(QUERIES, reasoning=[SAID] * 3, instruction="find it")
    plain = make()
    for found, wanted in [
        (own, plain.think(QUERIES)),
        (given, plain.think(QUERIES, reasoning=[SAID] * 3)),
        (others, plain.think(QUERIES, reasoning=["the user"] * 3)),
        (cut, plain.think(QUERIES, reasoning=[SAID] * 3, max_reasoning_tokens=4)),
        (instructed, plain.think(QUERIES, reasoning=[SAID] * 3, instruction="find it")),
    ]:
        assert max(map(distance, found, wanted)) < 1e-5
        assert [(t.text, t.token_ids, t.finished, t.given) for t in found] == [
            (t.text, t.token_ids, t.finished, t.given) for t in wanted
        ]
    assert min(map(distance, given, others)) > 1e-3

    def refuse(*_, **__):
        raise AssertionError("computed although it is stored")

    monkeypatch.setattr(Engine, "embed", refuse)
    monkeypatch.setattr(Engine, "reason", refuse)
    again = make(cache_folder=store, temperature=0.5, seed=7)  # nothing is sampled, so that neither decides
    assert max(map(distance, again.think(QUERIES, reasoning=[SAID] * 3), given)) == 0
    assert again.statistics.query_seconds > 0
    with pytest.raises(AssertionError, match="although"):
        again.think(QUERIES)
    with pytest.raises(AssertionError, match="although"):
        again.think(QUERIES, reasoning=["a third one"] * 3)


def test_two_reasonings_of_one_query_are_two_rows(make, tmp_path):
    encoder = make(cache_folder=tmp_path / "store")
    thoughts = encoder.think(["x", "x", "x"], reasoning=["one", "two", "one"])
    assert [thought.text for thought in thoughts] == ["one", "two", "one"]
    assert distance(thoughts[0], thoughts[2]) == 0
    assert distance(thoughts[0], thoughts[1]) > 1e-3


def test_statistics_tell_given_tokens_from_generated_ones(encoder):
    own = encoder.think(QUERIES[:1])
    generated = len(own[0].token_ids)
    encoder.think(QUERIES, reasoning=[[5, 6], None, list(range(30, 60))])
    found = encoder.statistics
    assert (found.queries, found.given, found.given_tokens) == (4, 2, 2 + 24)
    [second] = encoder.think(QUERIES[1:2])
    assert found.reasoning_tokens == generated + 2 * len(second.token_ids)
    assert found.forced == sum(not each.finished for each in (own[0], second, second)) + 1
