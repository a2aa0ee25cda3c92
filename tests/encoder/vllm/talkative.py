"""Tiny checkpoints that vLLM can run on a processor: heads of width 32."""

from importlib.util import find_spec

import pytest
import torch

from search_r3_mteb.encoder.checkpoints import Checkpoint
from search_r3_mteb.encoder.engine import Engine
from search_r3_mteb.encoder.profiles import Profile
from tests.conftest import build_model, build_tokenizer

MARKS = [
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: make test-vllm"),
    pytest.mark.filterwarnings("ignore"),  # vLLM and what it imports warn of themselves
]
EMBED, END = 3, 2
SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "num_key_value_heads": 1}


def talkative(kind="qwen2", dtype=torch.float32, seed=0, **overrides):
    """A random checkpoint that now and then says the embed token, or ends its turn, and more often does neither."""
    model = build_model(kind, seed, **(SHAPE | overrides))
    with torch.no_grad():
        for layer in {model.get_input_embeddings(), model.get_output_embeddings()}:
            layer.weight[[EMBED, END]] *= 1.6
    return Checkpoint(model.to(dtype).eval(), build_tokenizer(), Profile.default(), f"tests/talkative-{kind}")


def own_engine(checkpoint):
    return Engine(checkpoint.model, checkpoint.embed_token_id, stop_token_ids=checkpoint.stop_token_ids)
