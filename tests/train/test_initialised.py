"""What `search-r3 init` writes is taken by both stages, and its prompts are those of the trained checkpoint."""

import pytest

from search_r3_mteb import SearchR3Encoder
from search_r3_mteb.encoder.initialise import initialise
from search_r3_mteb.encoder.profiles import PROFILE_FILE, Profile
from tests.conftest import CHAT_TEMPLATE
from tests.encoder.test_chat_templates import GEMMA, LLAMA, QWEN3
from tests.encoder.test_initialise import make_base
from tests.train.loops import events, rl_config, sft_config
from train import rl, sft
from train.config.model import ModelSettings
from train.model.model import prepare

DATED_QWEN3 = LLAMA.replace(CHAT_TEMPLATE, QWEN3)
LONG = "data.max_length=900"  # Search-R3's prompts in bytes


@pytest.mark.parametrize("untied", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["tied", "untied"])
def test_both_stages_take_the_new_checkpoint(tmp_path, untied):
    """Qwen3's switch: two steps of stage 1, then one of stage 2 on what that wrote."""
    shape = {"tie_word_embeddings": not untied, "vocab_size": 640}
    initialise(make_base(tmp_path / "base", template=DATED_QWEN3, **shape), tmp_path / "new")
    first = sft.train(sft_config(tmp_path / "sft", "optimization.steps=2", LONG, model=tmp_path / "new"))
    assert len(events(tmp_path / "sft", "step")) == 2
    second = rl.train(rl_config(tmp_path / "rl", first, "optimization.steps=1", LONG))
    assert len(events(tmp_path / "rl", "step")) == 1
    prompts = []
    for folder in (tmp_path / "new", first, second):
        encoder = SearchR3Encoder(folder, max_reasoning_tokens=4)
        assert encoder.checkpoint.profile == Profile(thinking=False, date="2025-10-08")
        prompts.append([encoder.renderer.render("x", name).token_ids for name in ("direct", "reason")])
        assert encoder.encode_query(["x"]).shape == (1, 32)
    assert prompts[0] == prompts[1] == prompts[2]


def test_stage_2_starts_on_an_untrained_checkpoint(tmp_path):
    initialise(make_base(tmp_path / "base", template=GEMMA), tmp_path / "new")
    rl.train(rl_config(tmp_path / "rl", tmp_path / "new", "optimization.steps=1", LONG))
    assert len(events(tmp_path / "rl", "step")) == 1


def test_stage_1_decides_for_a_base_without_a_profile_as_init_does(tmp_path):
    """The same base gives the same prompts by either way in."""
    base = make_base(tmp_path / "base", template=DATED_QWEN3)
    initialise(base, tmp_path / "new")
    assert not (base / PROFILE_FILE).exists()
    profiles = [prepare(ModelSettings(path=str(path)), 0).profile for path in (base, tmp_path / "new")]
    assert profiles[0] == profiles[1] == Profile(thinking=False, date="2025-10-08")
