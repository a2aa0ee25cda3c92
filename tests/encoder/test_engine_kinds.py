"""What an encoder asks of an engine, and what it says where vLLM cannot be: all that holds without vLLM."""

import inspect

import numpy as np
import pytest

from search_r3_mteb.encoder.arithmetic import arithmetic
from search_r3_mteb.encoder.encoder import SearchR3Encoder
from search_r3_mteb.encoder.engine import Engine
from search_r3_mteb.encoder.engine_kinds import TextEngine
from search_r3_mteb.encoder.options import parse_settings
from search_r3_mteb.encoder.settings import EncoderSettings
from search_r3_mteb.encoder.vllm import engine as vllm_engine
from search_r3_mteb.encoder.vllm import running
from search_r3_mteb.encoder.vllm.engine import VllmEngine
from search_r3_mteb.encoder.vllm.turns import EXTRA, TurnRules
from search_r3_mteb.evaluation.diagnosis_runs import again

SETTINGS = {"max_reasoning_tokens": 4, "max_length": 600}


@pytest.fixture
def without_start(monkeypatch):
    """Encoders with engine="vllm" as long as nothing reasons: then vLLM is never asked for."""
    monkeypatch.setattr(vllm_engine, "installed_version", lambda: "0.32.0")
    monkeypatch.setattr(VllmEngine, "embeds", False)


def test_both_engines_have_what_an_encoder_asks_for(tiny_checkpoint, without_start):
    own = Engine(tiny_checkpoint.model, tiny_checkpoint.embed_token_id)
    vllm = VllmEngine(tiny_checkpoint, own, folder=None, positions=9)
    members = {name for name in dir(TextEngine) if not name.startswith("_")} | set(TextEngine.__annotations__)
    assert {"embed", "reason", "identity", "vocabulary", "token_budget"} <= members
    for engine in (own, vllm):
        assert {name for name in members if not hasattr(type(engine), name) and name not in vars(engine)} == set()
    for name in ("embed", "reason", "identity"):
        asked = inspect.signature(getattr(TextEngine, name)).parameters
        for kind in (Engine, VllmEngine):
            assert set(asked) <= set(inspect.signature(getattr(kind, name)).parameters), (kind, name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "sglang"}, "engine='sglang' does not exist; it is one of own, vllm"),
        ({"engine_options": {"seed": 1}}, "would change nothing: they are vLLM's"),
        ({"engine": "vllm", "batch_invariant": True}, "which forms batches of its own"),
        ({"engine": "vllm", "device": "cuda:1"}, "whose build decides what it runs on"),
    ],
)
def test_settings_that_an_engine_does_not_have_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        EncoderSettings(**settings)
    with pytest.raises(TypeError, match="a mapping of vLLM's options"):
        EncoderSettings(engine="vllm", engine_options="tensor_parallel_size=2")


def test_engine_options_are_read_from_text():
    found = parse_settings(["engine=vllm", 'engine_options={"tensor_parallel_size": 2}'])
    assert EncoderSettings(**found).engine_options == {"tensor_parallel_size": 2}
    assert parse_settings(["engine_options=none"]) == {"engine_options": None}
    with pytest.raises(ValueError, match="is not a JSON object"):
        parse_settings(["engine_options=[2]"])
    with pytest.raises(ValueError, match="not JSON"):
        parse_settings(["engine_options={tensor_parallel_size: 2}"])


@pytest.mark.parametrize("name", ["model", "dtype", "speculative_config", "logits_processors", "enable_lora", "runner"])
def test_options_that_are_not_the_users_are_refused(tiny_checkpoint, without_start, name):
    with pytest.raises(ValueError, match=f"'{name}'.*cannot be set: it is decided by"):
        SearchR3Encoder(tiny_checkpoint, engine="vllm", engine_options={name: None}, **SETTINGS)


def test_where_vllm_is_not_installed_the_message_says_what_to_install(call, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "find_spec", lambda name: None)
    source = tmp_path / "texts.txt"
    source.write_text("who is there\n")
    code, _, err = call(
        *("embed", "--model", tiny_folder, "--input", source, "--output", tmp_path / "v.npy", "--engine", "vllm")
    )
    assert code != 0
    assert "engine='vllm' needs vLLM, which is not installed here" in err
    assert not (tmp_path / "v.npy").exists()


def test_several_processes_are_refused(tiny_checkpoint, without_start, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="tensor_parallel_size"):
        SearchR3Encoder(tiny_checkpoint, engine="vllm", **SETTINGS)


def test_the_engine_is_part_of_what_it_computed_only(tiny_checkpoint, without_start, tmp_path, monkeypatch):
    def encoder(engine, **settings):
        return SearchR3Encoder(tiny_checkpoint, engine=engine, cache_folder=tmp_path, **SETTINGS, **settings)

    own, vllm = encoder("own"), encoder("vllm")
    other = encoder("vllm", engine_options={"max_num_seqs": 3})
    assert len({each.fingerprint for each in (own, vllm, other)}) == 3
    assert (vllm.settings["engine"], "engine" in own.settings) == ("vllm 0.32.0", False)
    assert arithmetic(own.engine) == {} == arithmetic(vllm.engine, reasons=False)
    own_direct, vllm_direct = encoder("own", mode="direct"), encoder("vllm", mode="direct")
    assert own_direct.engine is not vllm_direct.engine  # and yet the vectors of both are our own engine's
    assert own_direct.fingerprint == vllm_direct.fingerprint
    texts = ["the query", "and the document"]
    np.testing.assert_array_equal(own.encode_document(texts), vllm.encode_document(texts))
    assert own.engine.forward_tokens > 0 == vllm.engine.forward_tokens  # from the store that both share
    stores = [each._store("query", "reason", sampling_of(each), False) for each in (own, vllm, other)]
    assert len({id(store) for store in stores}) == len({store.folder for store in stores}) == 3
    monkeypatch.setattr(vllm.engine, "version", "0.33.0")
    assert vllm._store("query", "reason", sampling_of(vllm), False).folder != stores[1].folder


def test_a_diagnosis_and_a_choice_of_anchors_run_in_the_same_engine(tiny_checkpoint, without_start, tmp_path):
    options = {"max_num_seqs": 3}
    vllm = SearchR3Encoder(tiny_checkpoint, engine="vllm", engine_options=options, **SETTINGS)
    for mode in ("reason", "direct"):
        found = again(vllm, tmp_path, mode=mode)
        assert (type(found.engine), found.engine.options, found.mode) == (VllmEngine, options, mode)
        assert found.engine.positions == vllm.engine.positions  # so that both can share what runs
    own = again(SearchR3Encoder(tiny_checkpoint, **SETTINGS), tmp_path)
    assert type(own.engine) is Engine


def sampling_of(encoder):
    from search_r3_mteb.encoder.sampling import Sampling

    return Sampling(SETTINGS["max_reasoning_tokens"], encoder.settings["temperature"], encoder.settings["seed"])


def test_the_bundled_models_are_not_said_to_be_batch_invariant_in_vllm(without_start):
    settings = {"dtype": "bfloat16", "max_length": 300}
    assert SearchR3Encoder("nano", device="cpu", **settings).batches["batch_invariant"]
    assert not SearchR3Encoder("nano", engine="vllm", **settings).batches["batch_invariant"]


def test_the_position_that_vllm_needs_more_is_left_free(without_start):
    own = SearchR3Encoder("mini", device="cpu", dtype="float32")
    vllm = SearchR3Encoder("mini", engine="vllm", dtype="float32")
    assert (own.max_length, vllm.max_length) == (512 - 257, 512 - 258)
    with pytest.raises(ValueError, match="513 positions are needed"):
        SearchR3Encoder("mini", engine="vllm", dtype="float32", max_length=512 - 257)


def test_a_row_has_room_for_the_token_that_reading_the_embed_token_gives():
    rules = TurnRules("key", 3, budget=5, stop_token_ids=(2,))
    assert (rules.max_tokens, TurnRules("key", 3, direct=True).max_tokens) == (7, 1)
    assert TurnRules(**rules.extra_args()[EXTRA]) == rules
