"""Haystack: its own in-memory store finds what exact search finds, in a pipeline that was written down and read."""

import asyncio

import pytest

from tests.integrations.ranked import assert_found, assert_waits_elsewhere, encoder, needs, of_model, world

needs("haystack")
from haystack import Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.document_stores.in_memory import InMemoryDocumentStore

from search_r3_mteb.integrations.haystack import SearchR3DocumentEmbedder, SearchR3TextEmbedder


@pytest.fixture
def store():
    corpus, _ = world()
    store = InMemoryDocumentStore(embedding_similarity_function="cosine")
    documents = [Document(id=key, content=text) for key, text in corpus.items()]
    store.write_documents(SearchR3DocumentEmbedder(encoder()).run(documents)["documents"])
    return store


def pipeline_over(store):
    pipeline = Pipeline()
    pipeline.add_component("query", of_model(SearchR3TextEmbedder))
    pipeline.add_component("search", InMemoryEmbeddingRetriever(store, top_k=10))
    pipeline.connect("query.embedding", "search.query_embedding")
    return pipeline


def test_the_in_memory_store_finds_what_exact_search_finds(store):
    pipeline, questions = pipeline_over(store), world()[1]
    runs = [pipeline.run({"query": {"text": question}}) for question in questions]
    assert_found([[hit.id for hit in run["search"]["documents"]] for run in runs])

    async def asked():
        return await asyncio.gather(*(pipeline.run_async({"query": {"text": q}}) for q in questions))

    assert_found([[hit.id for hit in run["search"]["documents"]] for run in asyncio.run(asked())])


def test_a_pipeline_is_written_down_with_model_and_settings():
    pipeline = Pipeline()
    pipeline.add_component("query", SearchR3TextEmbedder("nano", instruction="Find the fact", max_reasoning_tokens=3))
    pipeline.add_component("document", SearchR3DocumentEmbedder("nano", meta_fields_to_embed=["title"], max_length=99))
    written = pipeline.dumps()
    read = Pipeline.loads(written, allowed_modules=[SearchR3TextEmbedder.__module__])
    assert read.dumps() == written
    for which in (pipeline, read):
        assert which.get_component("document")._embedder.encoder.settings["max_length"] == 99
        assert which.get_component("query")._embedder.encoder.settings["max_reasoning_tokens"] == 3
    given = {"query": {"text": "Who?"}, "document": {"documents": [Document(content="a", meta={"title": "T"})]}}
    first, again = pipeline.run(given), read.run(given)
    assert first == again
    with pytest.raises(ValueError, match="holds an encoder that was made in memory"):
        SearchR3TextEmbedder(encoder()).to_dict()


def test_vectors_are_the_encoders():
    text, document = (
        SearchR3TextEmbedder(encoder()),
        SearchR3DocumentEmbedder(encoder(), meta_fields_to_embed=["title"]),
    )
    assert text.run("Who?")["embedding"] == encoder().encode_query("Who?").tolist()
    given = [Document(content="rusts", meta={"title": "Iron"}), Document(content="b"), Document(content="")]
    found = document.run(given)["documents"]
    assert [each.embedding for each in found] == encoder().encode_document(["Iron rusts", "b", ""]).tolist()
    assert [each.embedding for each in given] == [None] * 3  # copies, as Haystack's own embedders give
    assert document.run([])["documents"] == []
    with pytest.raises(ValueError, match=r"Document \w+ \(and 0 more\) has no content"):
        document.run([Document(content=None)])


def test_the_model_is_loaded_by_warm_up_and_not_before():
    made = SearchR3TextEmbedder("no/such/folder")
    with pytest.raises(FileNotFoundError):
        made.warm_up()
    with pytest.raises(TypeError, match="has no setting prefix"):
        SearchR3TextEmbedder("nano", prefix="x")


def test_asynchronous_methods_leave_the_event_loop_free():
    text, document = SearchR3TextEmbedder(encoder()), SearchR3DocumentEmbedder(encoder())
    given = [Document(content="a")]
    assert assert_waits_elsewhere(lambda: text.run_async("Who?"), text._embedder) == text.run("Who?")
    assert assert_waits_elsewhere(lambda: document.run_async(given), document._embedder) == document.run(given)
