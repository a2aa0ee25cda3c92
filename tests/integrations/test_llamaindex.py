"""LlamaIndex: its own in-memory store finds what exact search finds, synchronously and not."""

import asyncio
import pickle

import numpy as np
import pytest

from tests.integrations.ranked import assert_found, assert_waits_elsewhere, encoder, exact, needs, of_model, world

needs("llama_index.core")
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index.core.storage.kvstore import SimpleKVStore

from search_r3_mteb.integrations.llamaindex import SearchR3Embedding


@pytest.fixture(scope="module")
def embedding():
    return of_model(SearchR3Embedding)


def test_the_in_memory_store_finds_what_exact_search_finds(embedding):
    corpus, questions = world()
    nodes = [TextNode(id_=key, text=text) for key, text in corpus.items()]
    retriever = VectorStoreIndex(nodes, embed_model=embedding).as_retriever(similarity_top_k=10)
    assert_found([[hit.node_id for hit in retriever.retrieve(question)] for question in questions])

    async def asked():
        return await asyncio.gather(*(retriever.aretrieve(question) for question in questions))

    assert [[hit.node_id for hit in hits] for hits in asyncio.run(asked())] == exact()[0]


def test_vectors_are_the_encoders(embedding):
    assert embedding.get_query_embedding("Who?") == encoder().encode_query("Who?").tolist()
    assert embedding.get_text_embedding("Who?") == encoder().encode_document("Who?").tolist()
    texts = [f"fact {number}" for number in range(600)]  # more than one batch
    found = embedding.get_text_embedding_batch(texts)
    assert np.abs(np.array(found) - encoder().encode_document(texts)).max() < 1e-6


def test_asynchronous_methods_leave_the_event_loop_free(embedding):
    for embed, expected in (
        (lambda: embedding.aget_query_embedding("Who?"), embedding.get_query_embedding("Who?")),
        (lambda: embedding.aget_text_embedding("Who?"), embedding.get_text_embedding("Who?")),
        (lambda: embedding.aget_text_embedding_batch(["a", "b"]), embedding.get_text_embedding_batch(["a", "b"])),
    ):
        assert assert_waits_elsewhere(embed, embedding._embedder) == expected


def test_it_is_written_down_by_model_and_settings(embedding):
    made = SearchR3Embedding("nano", instruction="Find the fact", max_reasoning_tokens=3, embed_batch_size=7)
    written = made.to_dict()
    assert written["settings"] == {"max_reasoning_tokens": 3}
    for read in (SearchR3Embedding.from_dict(written), pickle.loads(pickle.dumps(made))):
        assert read.to_dict() == written
        assert read.get_query_embedding("Who?") == made.get_query_embedding("Who?")
    assert made.get_query_embedding("Who?") != embedding.get_query_embedding("Who?")
    with pytest.raises(ValueError, match="holds an encoder that was made in memory"):
        SearchR3Embedding(encoder()).to_dict()


def test_a_cache_that_does_not_know_roles_is_refused():
    with pytest.raises(
        ValueError, match="embeddings_cache was given, but LlamaIndex looks a vector up there by its te"
    ):
        SearchR3Embedding("nano", embeddings_cache=SimpleKVStore())
    with pytest.raises(TypeError, match="has no setting query_instruction"):
        SearchR3Embedding("nano", query_instruction="x")


def test_why_that_cache_is_refused(embedding):
    """LlamaIndex' own embedding base with a cache: the query gets the document's vector."""
    from llama_index.core.base.embeddings.base import BaseEmbedding

    class Cached(BaseEmbedding):
        def _get_query_embedding(self, query):
            return [1.0]

        def _get_text_embedding(self, text):
            return [2.0]

        async def _aget_query_embedding(self, query):
            return [1.0]

    cached = Cached(embeddings_cache=SimpleKVStore())
    assert cached.get_text_embedding("x") == cached.get_query_embedding("x") == [2.0]
