"""A model with short prompts, for tests that run it on many queries."""

import pytest

from search_r3_mteb.encoder.checkpoints import Checkpoint
from search_r3_mteb.encoder.profiles import Profile, Template

SHORT = Profile(reason=Template("think", "{reasoning}{embed_token}"), direct=Template("embed", "{embed_token}"))


@pytest.fixture
def checkpoint(make_model, tiny_tokenizer):
    """The tiny random model with short prompts."""
    return Checkpoint(model=make_model(), tokenizer=tiny_tokenizer, profile=SHORT, name="tests/short")
