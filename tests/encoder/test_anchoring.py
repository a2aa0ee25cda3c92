"""The anchored vector: normalise(direct + anchor x reasoned), its parts from the two prompts of one checkpoint."""

import json
from dataclasses import replace

import numpy as np
import pytest

from search_r3_mteb.encoder.anchoring import anchored
from search_r3_mteb.encoder.checkpoints import load, save
from search_r3_mteb.encoder.encoder import SearchR3Encoder
from search_r3_mteb.encoder.engine import Engine
from search_r3_mteb.encoder.options import parse_settings
from search_r3_mteb.encoder.profiles import Profile

TEXTS = ["the query", "a document of the user", "system", ""]


@pytest.fixture
def make(tiny_checkpoint):
    return lambda **settings: SearchR3Encoder(
        tiny_checkpoint, **({"max_reasoning_tokens": 6, "max_length": 600} | settings)
    )


def by_hand(direct, reasoned, anchor):
    rows = [
        [d + anchor * r for d, r in zip(first, second, strict=True)]
        for first, second in zip(direct, reasoned, strict=True)
    ]
    return np.array([[x / sum(y * y for y in row) ** 0.5 for x in row] for row in np.array(rows, float)])


def test_the_sum_by_hand():
    direct, reasoned = np.array([[0.6, 0.8]], np.float32), np.array([[1.0, 0.0]], np.float32)
    np.testing.assert_allclose(anchored(direct, reasoned, 0.5), [[1.1, 0.8]], atol=1e-7)


@pytest.mark.parametrize("anchor", [0.3, 1, 2.0])
def test_vectors_by_hand(make, anchor):
    encoder, direct, reasoned = make(anchor=anchor), make(mode="direct"), make()
    own, first, second = encoder.think(TEXTS), direct.encode_query(TEXTS), reasoned.think(TEXTS)
    wanted = by_hand(first.tolist(), [thought.vector.tolist() for thought in second], anchor)
    for row, thought in enumerate(own):
        np.testing.assert_allclose(thought.vector, wanted[row], atol=1e-6)
        np.testing.assert_allclose(thought.direct, first[row], atol=1e-6)
        np.testing.assert_allclose(thought.reasoned, second[row].vector, atol=1e-6)
        assert (thought.text, thought.token_ids) == (second[row].text, second[row].token_ids)
        assert thought.vector.dtype == np.float32
    np.testing.assert_allclose(encoder.encode_query(TEXTS), wanted, atol=1e-6)
    assert np.abs(wanted - first).max() > 1e-2
    assert second[0].direct is second[0].reasoned is None
    assert encoder.think([]) == []
    np.testing.assert_allclose(encoder.encode_document(TEXTS), direct.encode_document(TEXTS), atol=1e-6)


def test_ends_of_the_scale(make):
    np.testing.assert_allclose(make(anchor=0).encode_query(TEXTS), make(mode="direct").encode_query(TEXTS), atol=1e-6)
    np.testing.assert_allclose(make(anchor=1e9).encode_query(TEXTS), make().encode_query(TEXTS), atol=1e-6)
    np.testing.assert_allclose(make(anchor=None).encode_query(TEXTS), make().encode_query(TEXTS), atol=0)
    direct = make(mode="direct", anchor=2.0)
    np.testing.assert_allclose(direct.encode_query(TEXTS), make(mode="direct").encode_query(TEXTS), atol=0)
    [thought] = direct.think(TEXTS[:1])  # `think` reasons in either mode
    np.testing.assert_allclose(thought.vector, make(anchor=2.0).encode_query(TEXTS[0]), atol=1e-6)


def test_given_reasonings_and_instructions_are_anchored_too(make):
    encoder = make(anchor=0.5)
    [thought] = encoder.think(["x"], reasoning=["so it is"], instruction="find it")
    [reasoned] = make().think(["x"], reasoning=["so it is"], instruction="find it")
    direct = make(mode="direct").encode_query(["x"], instruction="find it")
    np.testing.assert_allclose(thought.vector, by_hand(direct, [reasoned.vector], 0.5)[0], atol=1e-6)
    assert thought.given
    assert np.abs(direct - make(mode="direct").encode_query(["x"])).max() > 1e-3


def test_the_store_holds_the_parts(make, tmp_path, monkeypatch):
    store = tmp_path / "store"
    direct = make(mode="direct", cache_folder=store).encode_query(TEXTS)
    reasoned = make(cache_folder=store).encode_query(TEXTS)
    monkeypatch.setattr(Engine, "embed", None)
    monkeypatch.setattr(Engine, "reason", None)
    for anchor in (0.5, 2.0):  # each weight from the same rows
        encoder = make(cache_folder=store, anchor=anchor)
        np.testing.assert_allclose(encoder.encode_query(TEXTS), by_hand(direct, reasoned, anchor), atol=1e-6)
        assert encoder.statistics.query_seconds > make(cache_folder=store).statistics.query_seconds
        assert encoder.statistics.queries == len(TEXTS)


def test_cost_is_one_pass_over_the_direct_prompt(make):
    plain, encoder = make(), make(anchor=1.0)
    plain.encode_query(TEXTS[:1])
    encoder.encode_query(TEXTS[:1])
    prompt = len(plain.renderer.render(TEXTS[0], "direct").token_ids)
    assert encoder.engine.forward_tokens == plain.engine.forward_tokens + prompt


def test_identity(make):
    off, on, same, other = make(), make(anchor=1), make(anchor=1.0), make(anchor=2.0)
    assert make(anchor=None).fingerprint == off.fingerprint == make(anchor="auto").fingerprint
    assert on.fingerprint == same.fingerprint
    assert len({each.fingerprint for each in (off, on, other)}) == 3
    assert "anchor" not in off.settings
    assert on.settings["anchor"] == 1.0
    assert make(mode="direct", anchor=1.0).fingerprint == make(mode="direct").fingerprint
    assert on.mteb_model_meta.experiment_kwargs["anchor"] == 1.0


def test_the_profile_recommends(make, tiny_checkpoint, tmp_path):
    folder = tmp_path / "anchored"
    profile = replace(tiny_checkpoint.profile, anchor=0.5)
    save(replace(tiny_checkpoint, profile=profile), folder)
    assert json.loads((folder / "search_r3.json").read_text())["anchor"] == 0.5
    checkpoint = load(folder)
    assert checkpoint.fingerprint() == tiny_checkpoint.fingerprint()  # weights and prompts are the same
    kept = {"max_reasoning_tokens": 6, "max_length": 600}
    recommended = SearchR3Encoder(checkpoint, **kept)
    assert recommended.anchor == 0.5
    np.testing.assert_allclose(recommended.encode_query(TEXTS), make(anchor=0.5).encode_query(TEXTS), atol=1e-5)
    assert recommended.fingerprint == make(anchor=0.5).fingerprint
    for anchor, wanted in ((None, None), (2.0, 2.0)):
        chosen = SearchR3Encoder(checkpoint, anchor=anchor, **kept)
        assert chosen.anchor == wanted
        np.testing.assert_allclose(chosen.encode_query(TEXTS), make(anchor=wanted).encode_query(TEXTS), atol=1e-5)
    assert "anchor" not in Profile.default().to_dict()
    assert Profile.default().anchor is None


@pytest.mark.parametrize(
    ("anchor", "error", "message"),
    [
        (-1, ValueError, "anchor=-1 must be 0 or a positive number"),
        (float("inf"), ValueError, "anchor=inf"),
        (float("nan"), ValueError, "anchor=nan"),
        ("much", TypeError, "anchor='much' is of type str; it must be a number"),
        (True, TypeError, "anchor=True"),
    ],
)
def test_what_is_no_weight_is_refused(make, anchor, error, message):
    with pytest.raises(error, match=message):
        make(anchor=anchor)
    with pytest.raises(ValueError, match=f"'anchor' of a profile: .*{message.split(' ')[0]}"):
        Profile(anchor=anchor)


def test_the_command_line(tmp_path):
    assert parse_settings(["anchor=0.5"]) == {"anchor": 0.5}
    assert parse_settings(["anchor=auto"]) == {"anchor": "auto"}
    assert parse_settings(["anchor=none"]) == {"anchor": None}
    with pytest.raises(ValueError, match="'much' is not a number"):
        parse_settings(["anchor=much"])


def test_opposite_vectors_have_no_direction(make, monkeypatch):
    encoder = make(anchor=1.0)
    direct = make(mode="direct").encode_query(["x"])
    [thought] = make().think(["x"])
    monkeypatch.setattr(
        SearchR3Encoder,
        "_computed",
        lambda self, texts, *rest: [replace(thought, vector=-direct[0])] if rest[2] is not None else direct,
    )
    with pytest.raises(ValueError, match="has no direction"):
        encoder.think(["x"])
