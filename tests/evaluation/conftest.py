"""What several tests of evaluation run: a model with short prompts, a small BEIR folder, a writer and an encoder."""

import pytest

from search_r3_mteb.encoder.checkpoints import Checkpoint
from search_r3_mteb.encoder.profiles import Profile, Template
from search_r3_mteb.tasks.beir_folder import write_beir
from tests.conftest import build_tokenizer, save_sentence_transformer
from tests.expansion.conftest import save_writer

SHORT = Profile(reason=Template("think", "{reasoning}{embed_token}"), direct=Template("embed", "{embed_token}"))


@pytest.fixture
def checkpoint(make_model, tiny_tokenizer):
    """The tiny random model with short prompts."""
    return Checkpoint(model=make_model(), tokenizer=tiny_tokenizer, profile=SHORT, name="tests/short")


def write_little(folder, words, documents, split="test"):
    """A BEIR folder of that many documents, each of two words and its number, and a query about each word."""
    n = len(words)
    texts = [f"the {words[i % n]} and the {words[i // n]} number {i}" for i in range(documents)]
    write_beir(
        folder,
        corpus=[(f"d{i}", "", text) for i, text in enumerate(texts)],
        queries=[(f"q{i}", f"where is the {word}") for i, word in enumerate(words)],
        qrels={split: [(f"q{i}", f"d{i}", 1) for i in range(n)]},
    )
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with those of a writer (smol) and of an encoder (minis)."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = build_tokenizer()
    tokenizer.padding_side = "right"
    save_sentence_transformer(tokenizer, folder / "minis", 0)
    save_writer(folder / "smol")
    return folder
