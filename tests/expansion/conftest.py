"""Tiny writers with and without a chat template, and a tiny sentence-transformers encoder, in folders."""

import pytest

from tests.conftest import build_model, build_tokenizer, save_sentence_transformer

QUERIES = ["the query", "a document and an embedding"]


def save_writer(folder, *, chat=True, kind="qwen2", seed=3, stops=None, with_embed_token=False):
    """An ordinary causal LM in a folder; `stops` are further ids that end its turn."""
    model, tokenizer = build_model(kind, seed), build_tokenizer(with_embed_token)
    if stops:
        model.generation_config.eos_token_id = [2, *stops]
    if not chat:
        tokenizer.chat_template = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def writer(tmp_path_factory):
    """A tiny chat model without an embed token."""
    return save_writer(tmp_path_factory.mktemp("writers") / "chat")


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """The same weights without a chat template."""
    return save_writer(tmp_path_factory.mktemp("writers") / "base", chat=False)


@pytest.fixture(scope="session")
def sentences(tmp_path_factory):
    """A tiny sentence-transformers model; padding on the right, as real ones, so that no vector depends on company."""
    tokenizer = build_tokenizer()
    tokenizer.padding_side = "right"
    return save_sentence_transformer(tokenizer, tmp_path_factory.mktemp("sentences") / "bert", 0)


@pytest.fixture(scope="session")
def embed(sentences):
    """Unit vectors by sentence-transformers itself: the oracle."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(sentences), device="cpu")
    return lambda texts: model.encode(list(texts), normalize_embeddings=True)
