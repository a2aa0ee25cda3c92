"""An encoder for task tests: bags of hashed words, no model; an optional rewrite turns it into an oracle."""

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.mteb_running import mteb_scores

BUCKETS = 4096


def bag_of_words(text: str) -> np.ndarray:
    vector = np.zeros(BUCKETS, np.float32)
    for word in text.lower().replace("?", " ").replace(".", " ").split():
        vector[zlib.crc32(word.encode()) % BUCKETS] += 1
    return vector / max(float(np.linalg.norm(vector)), 1e-9)


@pytest.fixture
def hash_encoder() -> Callable[..., Any]:
    """make(rewrite=None, name="test/hash") -> MTEB encoder; `rewrite` maps a text before it is embedded."""
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ModelMeta, ScoringFunction

    class HashEncoder(AbsEncoder):
        def __init__(self, rewrite=None, name="test/hash"):
            self.rewrite = rewrite or (lambda text: text)
            self.document_batches = 0
            self.mteb_model_meta = ModelMeta.create_empty(
                overwrites={"name": name, "revision": "1", "similarity_fn_name": ScoringFunction.COSINE}
            )

        def encode(self, inputs, *, prompt_type=None, **_):
            texts = [text for batch in inputs for text in batch["text"]]
            self.document_batches += prompt_type is not None and prompt_type.value == "document"
            return np.stack([bag_of_words(self.rewrite(text)) for text in texts])

    return HashEncoder


@pytest.fixture
def evaluate() -> Callable[..., dict[str, Any]]:
    """evaluate(encoder, task, cache=None) -> the score dict of its one split."""
    return mteb_scores
