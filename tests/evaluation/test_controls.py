"""Controls of a reasoning: what is read in its place, by which system, and at what cost."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from search_r3_mteb.encoder.encoder import SearchR3Encoder
from search_r3_mteb.encoder.settings import Statistics
from search_r3_mteb.evaluation.controls import (
    CONTROL_NAMES,
    ControlledEncoder,
    ControlledSearch,
    can_be_controlled,
    controlled,
)
from search_r3_mteb.evaluation.reasoning_variants import FILLER
from search_r3_mteb.evaluation.systems import open_systems
from search_r3_mteb.expansion.writer_encoder import ExpandedThought

TEXTS = ["where is the silver", "who saw the river", "what is the garden", "when was the winter"]


@pytest.fixture
def encoder(checkpoint):
    return SearchR3Encoder(checkpoint, max_reasoning_tokens=12)


def ids_of(encoder, control, own, seed=0):
    return ControlledEncoder(encoder, control, seed).reasonings(own)


def test_what_is_read_in_place_of_the_own_reasoning(encoder):
    own = encoder.think(TEXTS)
    ids = [thought.token_ids for thought in own]
    assert min(map(len, ids)) > 0
    fillers = ids_of(encoder, "filler", own)
    assert [len(each) for each in fillers] == [len(each) for each in ids]
    assert {encoder.tokenizer.decode([each]) for row in fillers for each in row} <= {FILLER, FILLER.strip()}
    others = ids_of(encoder, "other", own)
    assert sorted(others) == sorted(ids)
    assert all(given != mine for given, mine in zip(others, ids, strict=True))
    assert ids_of(encoder, "empty", own) == [[]] * 4
    spoken = [replace(own[0], token_ids=encoder.tokenizer("an it so").input_ids), *own[1:]]
    shuffled = encoder.tokenizer.decode(ids_of(encoder, "shuffled", spoken)[0])
    assert shuffled != "an it so"
    assert Counter(shuffled.split()) == Counter(["an", "it", "so"])
    assert ids_of(encoder, "other", own, seed=1) != others or ids_of(encoder, "other", own, seed=2) != others


def test_the_vector_is_that_of_the_prompt_with_the_control(encoder):
    own = encoder.think(TEXTS)
    by_control = {}
    for control in CONTROL_NAMES:
        thoughts = ControlledEncoder(encoder, control).think(TEXTS)
        given = ids_of(encoder, control, own)
        prompts = [each.token_ids for each in encoder.renderer.render_batch(TEXTS, "reason")]
        read = [[*prompt, *ids, encoder.checkpoint.embed_token_id] for prompt, ids in zip(prompts, given, strict=True)]
        expected = encoder.unit(encoder.engine.embed(read).numpy(), TEXTS)
        by_control[control] = np.stack([thought.vector for thought in thoughts])
        np.testing.assert_allclose(by_control[control], expected, atol=1e-5)
    vectors = np.stack([thought.vector for thought in own])
    # Negative control: none of them is the vector of the query's own reasoning.
    assert all(np.abs(found - vectors).max() > 1e-3 for found in by_control.values())


class Writer:
    """A system that hands over texts only: its own thoughts take 5 seconds, given ones 1, documents 2."""

    mode, task_prompts = "reason", True

    def __init__(self, *texts):
        self.texts, self.statistics, self.read = texts or ("a b c d",), Statistics(), None

    def think(self, texts, *, instruction=None, reasoning=None, show_progress_bar=None):
        self.read = reasoning
        self.statistics.query_seconds += 5.0 if reasoning is None else 1.0
        text = " ".join(self.texts)
        own = ExpandedThought(text, [7, 8, 9, 7], False, np.ones(2, np.float32), texts=self.texts)
        return [own] * len(texts) if reasoning is None else list(reasoning)

    def encode(self, inputs, **keywords):
        self.statistics.document_seconds += 2.0
        return np.ones((1, 2), np.float32)

    def index(self, corpus, **keywords):
        self.statistics.document_seconds += 2.0

    def search(self, queries, *, on_thoughts, think=None):
        on_thoughts((think or self.think)(queries))
        return {}


def read_by(writer, control):
    thoughts = ControlledEncoder(writer, control).think(["x", "y"])
    assert [each.finished for each in thoughts] == [control == "empty"] * 2  # nothing was cut where nothing is read
    return [(each.texts, len(each.token_ids)) for each in thoughts]


def test_a_writer_is_given_thoughts_with_other_texts():
    assert read_by(Writer(), "filler") == [((". . . .",), 4)] * 2
    assert read_by(Writer(), "empty") == [(("",), 0)] * 2
    assert read_by(Writer(), "other") == [(("a b c d",), 4)] * 2
    for (text,), _ in read_by(Writer(), "shuffled"):
        assert sorted(text.split()) == list("abcd")
        assert text != "a b c d"


def test_each_of_several_written_texts_has_its_control():
    assert read_by(Writer("a b", "c d"), "filler") == [((". .", ". ."), 4)] * 2  # four tokens, two for each text
    assert read_by(Writer("a b", "c d"), "empty") == [(("", ""), 0)] * 2
    assert read_by(Writer("a b", "c d"), "shuffled") == [(("b a", "d c"), 4)] * 2


def test_a_search_model_searches_with_the_control():
    writer, heard = Writer(), []
    control = ControlledSearch(writer, "filler")
    control.index(["d"])
    control.search(["x", "y"], on_thoughts=heard.extend)
    assert [each.texts for each in heard] == [(". . . .",)] * 2
    assert (control.statistics.query_seconds, control.statistics.document_seconds) == (1.0, 2.0)
    own = []
    writer.search(["x", "y"], on_thoughts=own.extend)  # negative control: the model itself still writes
    assert [each.texts for each in own] == [("a b c d",)] * 2


def test_only_the_pass_over_the_control_is_timed():
    control = ControlledEncoder(Writer(), "filler")
    control.think(["x", "y"])
    control.encode([{"text": ["d"]}], prompt_type="document")
    assert (control.statistics.query_seconds, control.statistics.document_seconds) == (1.0, 2.0)
    assert control.encoder.statistics.query_seconds == 6.0  # its own reasoning is counted where it belongs


def test_a_control_is_a_system_of_its_own(checkpoint, tmp_path):
    [system] = open_systems(checkpoint, "reason", {"max_reasoning_tokens": 4}, tmp_path)
    made = [controlled(system, control) for control in CONTROL_NAMES] + [controlled(system, "other", seed=1)]
    assert len({each.fingerprint for each in [system, *made]}) == 6
    assert [each.label for each in made[:4]] == [f"{system.label}-{control}" for control in CONTROL_NAMES]
    assert len({each.model.mteb_model_meta.name for each in [system, *made[:4]]}) == 5


def test_what_has_no_reasoning_to_exchange_is_refused(checkpoint, tmp_path):
    [direct] = open_systems(checkpoint, "direct", {}, tmp_path)
    [bm25] = open_systems("bm25", "both", {}, tmp_path)
    for system in (direct, bm25):
        assert not can_be_controlled(system)
        with pytest.raises(ValueError, match=r"\(direct\) has no reasoning to exchange.*leave the control out"):
            controlled(system, "filler")
    [reason] = open_systems(checkpoint, "reason", {}, tmp_path)
    assert can_be_controlled(reason)
    with pytest.raises(ValueError, match="needs two queries"):
        ControlledEncoder(Writer(), "other").think(["x"])
