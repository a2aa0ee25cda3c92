"""The bundled models as a user loads them: by name, without a network."""

import numpy as np
import pytest
import torch

from search_r3_mteb import SearchR3Encoder
from search_r3_mteb.search.products import cpu_multiplies_bfloat16

DOCUMENTS = [
    "def parse_date(text):\n    return datetime.strptime(text, '%Y-%m-%d').date()",
    "def remove_duplicates(items):\n    return list(dict.fromkeys(items))",
    "Insulin lowers the concentration of glucose in the blood by letting cells take it up.",
    "Graph neural networks pass messages between neighbouring nodes to learn their representations.",
]
QUESTIONS = [
    "convert a string to a date",
    "drop repeated elements of a list",
    "which hormone reduces blood sugar?",
    "learning on graphs with message passing",
]


@pytest.fixture(scope="module")
def mini():
    return SearchR3Encoder("mini", max_reasoning_tokens=48, device="cpu", show_progress_bar=False)


@pytest.mark.parametrize("mode", ["direct", "reason"])
def test_mini_finds_what_real_questions_ask_for(mini, mode):
    encoder = SearchR3Encoder(mini.checkpoint, mode=mode, max_reasoning_tokens=48, show_progress_bar=False)
    scores = encoder.encode_query(QUESTIONS) @ mini.encode_document(DOCUMENTS).T
    assert scores.argmax(axis=1).tolist() == [0, 1, 2, 3]


def test_mini_reasons_shortly_and_ends_by_itself(mini):
    thoughts = mini.think(QUESTIONS)
    assert all(1 <= len(thought.token_ids) <= 48 for thought in thoughts)
    assert sum(thought.finished for thought in thoughts) >= 3
    assert len({thought.text for thought in thoughts}) == len(QUESTIONS)


def test_mini_is_bfloat16_of_384_dimensions_and_can_be_had_in_float32(mini):
    shown = torch.bfloat16 if cpu_multiplies_bfloat16() else torch.float32  # what "auto" is on this processor
    assert (mini.dim, mini.model.dtype) == (384, shown)
    exact = SearchR3Encoder("mini", dtype="float32", mode="direct", device="cpu").encode_document(DOCUMENTS)
    assert exact.dtype == np.float32
    assert float((exact * mini.encode_document(DOCUMENTS)).sum(axis=1).min()) > 0.99


def test_mini_has_its_card(mini):
    from search_r3_mteb.encoder.model_names import ASSETS

    card = (ASSETS / "mini" / "README.md").read_text(encoding="utf-8")
    assert "license: apache-2.0" in card
    assert "MiniLM" in card
