"""What the classes for frameworks stand on: roles, settings, sharing, copies. Needs none of the frameworks."""

import asyncio
import copy
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest

from search_r3_mteb.encoder.encoder import SearchR3Encoder
from search_r3_mteb.integrations.embedder import Embedder, _lock, split_settings
from tests.integrations.ranked import assert_waits_elsewhere


@pytest.fixture
def encoder(tiny_checkpoint):
    return SearchR3Encoder(tiny_checkpoint, max_reasoning_tokens=6)


def test_queries_reason_and_documents_do_not(encoder):
    embedder = Embedder(encoder)
    texts = ["iron rusts", "which city is it?"]
    reasoned, direct = encoder.encode_query(texts), encoder.encode_document(texts)
    assert np.array_equal(embedder.queries(texts), reasoned)
    assert np.array_equal(embedder.documents(texts), direct)
    assert not np.allclose(reasoned, direct, atol=1e-3)  # so that the two above tell roles apart
    assert type(embedder.queries(texts)[0][0]) is float
    assert embedder.queries([]) == embedder.documents([]) == []


def test_instruction_and_settings_reach_the_encoder(encoder, tiny_folder):
    assert Embedder(encoder, None, "Find it").queries(["x"]) != Embedder(encoder).queries(["x"])
    settings = {"max_reasoning_tokens": 3, "mode": "direct", "max_length": 199}
    made = Embedder(tiny_folder, settings).encoder.settings
    assert {name: made[name] for name in settings} == settings
    titled = {"title": "Iron", "text": "rusts"}
    assert Embedder(encoder).documents([titled]) == Embedder(encoder).documents(["Iron rusts"])


def test_what_cannot_be_is_refused_before_a_model_is_loaded(encoder):
    with pytest.raises(TypeError, match=r"SearchR3Encoder has no setting max_tokens\. The valid ones are mode"):
        Embedder("no such model", {"max_tokens": 3})
    with pytest.raises(
        ValueError, match="max_reasoning_tokens was given beside an encoder, which has settings already"
    ):
        Embedder(encoder, {"max_reasoning_tokens": 3})
    with pytest.raises(TypeError, match="it must be a bundled name, a folder, a hub id, or an encoder"):
        Embedder(7)
    with pytest.raises(TypeError, match="a text that goes before every query, or None"):
        Embedder("nano", None, 3)
    with pytest.raises(TypeError, match="mode was given twice"):
        split_settings({"settings": {"mode": "direct"}, "mode": "reason"}, ("settings",))


def test_a_path_is_the_folder_and_a_text_may_be_a_bundled_model(tiny_folder, tmp_path, monkeypatch):
    from search_r3_mteb.encoder.model_names import resolve

    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no model '\./nano'"):
        _ = Embedder(Path("nano")).encoder
    assert resolve(Embedder("nano").model).name == "nano", "the control: the bundled one"
    (tmp_path / "nano").symlink_to(tiny_folder)
    embedder = Embedder(Path("nano"), {"max_reasoning_tokens": 3})
    assert embedder.documents(["x"]) == Embedder(tiny_folder).documents(["x"])
    assert pickle.loads(pickle.dumps(embedder)).documents(["x"]) == embedder.documents(["x"])
    with pytest.raises(ValueError, match="both a bundled model and a folder"):
        _ = Embedder("nano").encoder


def test_copies_share_the_model_and_pickles_name_it(encoder, tiny_folder):
    named = Embedder(tiny_folder, {"max_reasoning_tokens": 3}, "Find it")
    assert copy.deepcopy(named) is named
    again = pickle.loads(pickle.dumps(named))
    assert again.described("x") == named.described("x")
    assert again.queries(["x"]) == named.queries(["x"])
    assert len(pickle.dumps(named)) < 1000  # no weights
    with pytest.raises(ValueError, match=r"holds an encoder that was made in memory .*a file cannot name"):
        pickle.dumps(Embedder(encoder))


def test_calls_on_one_encoder_wait_for_each_other(encoder, tiny_folder):
    first, second = Embedder(encoder), Embedder(encoder)
    alone = first.queries(["iron rusts"])
    found = []
    thread = threading.Thread(target=lambda: found.append(second.queries(["iron rusts"])))
    other = threading.Thread(target=lambda: Embedder(tiny_folder).documents(["iron rusts"]))
    with _lock(first.encoder):
        thread.start()
        other.start()
        other.join(60)
        assert not other.is_alive()  # another encoder does not wait
        thread.join(0.2)
        assert thread.is_alive()
        assert not found
    thread.join(60)
    assert found == [alone]


def test_a_call_that_blocks_the_event_loop_would_be_found(encoder):
    embedder = Embedder(encoder)

    async def blocking():
        return embedder.queries(["x"])

    async def free():
        return await asyncio.to_thread(embedder.queries, ["x"])

    assert assert_waits_elsewhere(free, embedder) == embedder.queries(["x"])
    with pytest.raises(AssertionError, match="it ran in the event loop's own thread"):
        assert_waits_elsewhere(blocking, embedder)
