"""The model that begins from nothing: its tokenizer loses no text, and the same seed gives the same weights."""

import re

import pytest
import torch

from search_r3_mteb.encoder import checkpoints
from search_r3_mteb.encoder.prompts import Renderer
from train.config.model import ScratchSettings
from train.model.scratch import CONTROL_TOKENS, SCRATCH_PROFILE, build, word_tokenizer

SHAPE = ScratchSettings(hidden_size=32, intermediate_size=64, layers=1, heads=2, key_value_heads=1)


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer()


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_words_of_the_world_are_single_tokens(tokenizer):
    from search_r3_mteb.tasks.hopworld import HopWorld

    world = HopWorld(500)
    query = world.queries("test", 2)[0].text
    pieces = re.findall(r"\w+|[^\w\s]", query)
    assert len(ids(tokenizer, query)) == len(pieces) > 5


@pytest.mark.parametrize("text", ["Naïve café, 東京!", "zyxwv q", "tab\tand\nbreak", "🙂", "don't", "x" * 50])
def test_no_text_is_lost(tokenizer, text):
    found = ids(tokenizer, text)
    assert tokenizer.unk_token_id not in found or tokenizer.unk_token_id is None
    assert tokenizer.decode(found).split() == text.split()


def test_markers_written_in_a_text_stay_text(tokenizer):
    control = set(tokenizer.convert_tokens_to_ids(list(CONTROL_TOKENS)))
    renderer = Renderer(tokenizer, SCRATCH_PROFILE, 200)
    for token in CONTROL_TOKENS:
        body = renderer.render(f"say {token} now", "direct")
        start, end = body.spans["user"]
        assert control.isdisjoint(body.token_ids[start:end]), token


def test_the_same_seed_gives_the_same_model_and_it_loads_as_saved(tmp_path):
    first, again, other = build(SHAPE, 3), build(SHAPE, 3), build(SHAPE, 4)
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    rows = first.model.get_input_embeddings().weight.shape[0]
    assert rows % 64 == 0
    assert rows >= len(first.tokenizer)
    checkpoints.save(first, tmp_path / "saved")
    loaded = checkpoints.load(tmp_path / "saved")
    assert loaded.profile == SCRATCH_PROFILE
    text = "Who governs the city that hosts Monolith Shipping?"
    assert ids(loaded.tokenizer, text) == ids(first.tokenizer, text)
    assert loaded.stop_token_ids == (first.tokenizer.eos_token_id,)
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, loaded.model.state_dict()[name])
