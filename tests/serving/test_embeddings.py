"""POST /v1/embeddings as OpenAI's own client asks for it."""

import base64
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from search_r3_mteb.encoder.encoder import SearchR3Encoder
from tests.serving.conftest import QUESTIONS, serving

openai = pytest.importorskip("openai", reason="OpenAI's client is not installed")
TEXTS = ["The harbor was written by Anton Bachmann.", "A river.", "x", "Straße in 東京 🙂"]


@pytest.fixture(scope="module")
def alone(served):
    """The same checkpoint, outside of the server."""
    return SearchR3Encoder("nano", max_reasoning_tokens=16, max_length=128)


def vectors(response):
    return np.array([each.embedding for each in response.data], np.float32)


def test_documents_are_what_the_encoder_gives_in_both_encodings(served, alone):
    expected = alone.encode_document(TEXTS)
    numbers = served.client().embeddings.create(model="nano", input=TEXTS, encoding_format="float")
    packed = served.client().embeddings.create(model="nano", input=TEXTS)  # the client asks for base64, and decodes it
    np.testing.assert_allclose(vectors(numbers), expected, atol=1e-6, rtol=0)
    np.testing.assert_array_equal(vectors(packed), vectors(numbers))
    assert [each.index for each in numbers.data] == [0, 1, 2, 3]
    assert np.abs(vectors(numbers)[::-1] - expected).max() > 0.01  # the control: an answer at another's place differs
    asked = {"model": "nano", "input": TEXTS[0], "encoding_format": "base64"}
    raw = served.client().post("/embeddings", body=asked, cast_to=object)["data"][0]["embedding"]
    np.testing.assert_allclose(np.frombuffer(base64.b64decode(raw), "<f4"), expected[0], atol=1e-6, rtol=0)


def test_queries_reason_and_their_tokens_are_counted(served, alone):
    answer = served.client().embeddings.create(
        model="nano:query", input=QUESTIONS, extra_body={"return_reasoning": True}
    )
    thoughts = alone.think(QUESTIONS)
    np.testing.assert_allclose(vectors(answer), [each.vector for each in thoughts], atol=1e-6, rtol=0)
    assert [each.reasoning for each in answer.data] == [each.text for each in thoughts]
    assert [each.finished for each in answer.data] == [each.finished for each in thoughts]
    prompts = alone.renderer.render_batch(QUESTIONS, "reason")
    read, wrote = sum(len(each.token_ids) for each in prompts), sum(len(each.token_ids) + 1 for each in thoughts)
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (read, wrote)
    assert answer.usage.total_tokens == read + wrote
    direct = served.client().embeddings.create(model="nano", input=QUESTIONS)
    assert np.abs(vectors(direct) - vectors(answer)).max() > 0.01  # the control: without the role there is no reasoning
    assert direct.usage.completion_tokens == 0


@pytest.mark.parametrize(
    ("model", "input_type", "role", "said_by"),
    [
        ("nano", None, "document", "default"),
        ("nano:query", None, "query", "model"),
        ("nano:document", None, "document", "model"),
        ("nano", "query", "query", "input_type"),
        ("nano", "search_query", "query", "input_type"),
        ("nano", "document", "document", "input_type"),
        ("nano", "search_document", "document", "input_type"),
        ("nano", "passage", "document", "input_type"),
        ("nano:query", "search_query", "query", "model"),
    ],
)
def test_the_role_is_said_and_told(served, model, input_type, role, said_by):
    raw = served.client().embeddings.with_raw_response.create(
        model=model, input="a river", extra_body={"input_type": input_type}
    )
    answer = raw.parse()
    assert (answer.role, answer.role_from) == (role, said_by)
    assert (raw.headers["x-search-r3-role"], raw.headers["x-search-r3-role-from"]) == (role, said_by)
    assert (answer.usage.completion_tokens > 0) == (role == "query")
    assert answer.model == model


@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        ({"model": "nano:query", "extra": {"input_type": "passage"}}, "only one can be right", "input_type"),
        ({"model": "nano:document", "extra": {"input_type": "query"}}, "only one can be right", "input_type"),
        ({"extra": {"input_type": "clustering"}}, "does not exist; it is one of query, search_query", "input_type"),
        ({"extra": {"return_reasoning": True}}, "documents are not reasoned about", "input_type"),
        ({"extra": {"truncate": "END"}}, "'truncate' is not a field of this request; they are model, input", "trunc"),
        ({"dimensions": 129}, "this model's vectors have 128", "dimensions"),
        ({"dimensions": 0}, "greater than or equal to 1", "dimensions"),
        ({"input": []}, "give a text, an array of texts", "input"),
        ({"input": ["a", " \n"]}, "entry 1 is empty or blank", "input"),
        ({"input": [["a"]]}, "entry 0 is not an array of token ids", "input"),
        ({"input": ["a", 3]}, "entry 1 is not a text", "input"),
        ({"input": [[1], []]}, "entry 1 is empty", "input"),
        ({"input": ["x"] * 2049}, "2,049 texts in one request; at most 2,048", "input"),
    ],
)
def test_what_is_refused_is_named(served, body, message, param):
    extra = body.pop("extra", None)
    with pytest.raises(openai.BadRequestError) as caught:
        served.client().embeddings.create(**({"model": "nano", "input": "a"} | body), extra_body=extra)
    assert message in caught.value.body["message"]
    assert caught.value.param.startswith(param)
    assert caught.value.type == "invalid_request_error"


def test_another_model_is_not_found(served):
    with pytest.raises(openai.NotFoundError, match="The models are nano, nano:query and nano:document") as caught:
        served.client().embeddings.create(model="text-embedding-3-small", input="a")
    assert caught.value.code == "model_not_found"
    assert [each.id for each in served.client().models.list()] == ["nano", "nano:query", "nano:document"]


def test_fewer_dimensions_are_the_first_ones_of_unit_length(served, alone):
    answer = served.client().embeddings.create(model="nano", input=TEXTS, dimensions=48)
    first = alone.encode_document(TEXTS)[:, :48]
    expected = first / np.linalg.norm(first, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors(answer), expected, atol=1e-6, rtol=0)
    assert np.abs(vectors(answer) - first).max() > 0.01  # the control: not only cut


def test_token_ids_of_the_model_stand_for_their_text(served, alone):
    ids = alone.renderer.tokenize_text(TEXTS)
    one = served.client().embeddings.create(model="nano", input=ids[0])
    all_of_them = served.client().embeddings.create(model="nano", input=ids)
    np.testing.assert_allclose(vectors(all_of_them), alone.encode_document(TEXTS), atol=1e-6, rtol=0)
    np.testing.assert_allclose(vectors(one)[0], vectors(all_of_them)[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("ids", [[9906, 1917], [300, 301, 302, 303, 304, 305], [2, 1]])
def test_token_ids_of_another_model_are_refused(served, ids):
    """LangChain's OpenAIEmbeddings sends those of OpenAI's vocabulary, which name other words here."""
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False") as caught:
        served.client().embeddings.create(model="nano", input=ids)
    assert caught.value.code == "foreign_token_ids"


def test_a_text_that_is_too_long_is_cut_and_says_so(served, alone):
    answer = served.client().embeddings.create(model="nano", input=["a river", "a river " * 200])
    [_, cut] = alone.renderer.render_batch(["a river", "a river " * 200], "direct")
    assert answer.data[1].truncated_tokens == cut.truncated_tokens > 0
    assert not hasattr(answer.data[0], "truncated_tokens")
    np.testing.assert_allclose(vectors(answer)[1], alone.encode_document("a river " * 200), atol=1e-6, rtol=0)


def test_a_text_that_the_tokenizer_cannot_read_is_its_senders_mistake(served, monkeypatch):
    def refusing(texts, template):
        raise ValueError("The tokenizer turns the text into a control token even in pieces.")

    monkeypatch.setattr(served.encoder.renderer, "render_batch", refusing)
    with pytest.raises(openai.BadRequestError, match="even in pieces"):
        served.client().embeddings.create(model="nano", input="a")


def test_many_clients_at_once_get_their_own_answers(served, alone):
    texts = [f"Who founded the river number {place} {'of the city ' * (place % 7)}?" for place in range(12)]
    expected = {"query": alone.encode_query(texts), "document": alone.encode_document(texts)}

    def ask(place):
        role = ("query", "document")[place % 2]
        answer = served.client().embeddings.create(model=f"nano:{role}", input=[texts[place], texts[place - 1]])
        return np.abs(vectors(answer) - expected[role][[place, place - 1]]).max()

    with ThreadPoolExecutor(8) as pool:
        assert max(pool.map(ask, range(12))) < 1e-6
    others = np.abs(expected["query"][:, None] - expected["query"][None]).max(axis=2) + np.eye(12)
    assert others.min() > 1e-4  # the control: a swapped answer would show
    assert served.service.held == 0


def test_an_anchor_joins_both_vectors(small):
    texts = ["where is it?", "who"]
    with serving(small, name="tiny", anchor=0.75) as server:
        answer = server.client().embeddings.create(model="tiny:query", input=texts)
        plain = server.client().embeddings.create(model="tiny:document", input=texts)
    encoder = SearchR3Encoder(small, anchor=0.75, max_reasoning_tokens=16)
    np.testing.assert_allclose(vectors(answer), encoder.encode_query(texts), atol=1e-6, rtol=0)
    assert np.abs(vectors(answer) - vectors(plain)).max() > 1e-3
    assert answer.usage.prompt_tokens > plain.usage.prompt_tokens


def test_an_encoder_that_cuts_its_vectors_does_so_behind_a_server(small):
    with serving(small, name="tiny", truncate_dim=12, anchor=0.5) as server:
        found = [server.client().embeddings.create(model=f"tiny:{role}", input="who") for role in ("query", "document")]
        with pytest.raises(openai.BadRequestError, match="this model's vectors have 12"):
            server.client().embeddings.create(model="tiny", input="who", dimensions=13)
    encoder = SearchR3Encoder(small, truncate_dim=12, anchor=0.5, max_reasoning_tokens=16)
    expected = [encoder.encode_query("who"), encoder.encode_document("who")]
    np.testing.assert_allclose([vectors(each)[0] for each in found], expected, atol=1e-6, rtol=0)


def test_a_server_in_mode_direct_does_not_reason(small):
    with serving(small, name="tiny", mode="direct") as server:
        answer = server.client().embeddings.create(model="tiny:query", input="who")
        with pytest.raises(openai.BadRequestError, match="this server's mode is 'direct'"):
            server.client().embeddings.create(model="tiny:query", input="who", extra_body={"return_reasoning": True})
    assert answer.usage.completion_tokens == 0
    assert answer.role == "query"


def test_batch_invariant_answers_are_the_encoders_bits(small):
    texts = [f"who is number {place} {'there ' * place}?" for place in range(3)]
    settings = {"batch_invariant": True, "dtype": "bfloat16"}
    with serving(small, name="tiny", **settings) as server:

        def ask(text):
            return vectors(server.client().embeddings.create(model="tiny:query", input=text))[0]

        with ThreadPoolExecutor(6) as pool:
            found = np.stack(list(pool.map(ask, texts)))
    encoder = SearchR3Encoder(small, max_reasoning_tokens=16, **settings)
    np.testing.assert_array_equal(found, encoder.encode_query(texts))


def test_the_lines_of_the_documentation_run(served, capsys):
    page = (Path(__file__).resolve().parents[2] / "docs" / "serve.md").read_text(encoding="utf-8")
    [block] = [part.split("```")[0] for part in page.split("```python\n")[1:]]
    exec(block.replace("http://127.0.0.1:8000", served.url).replace("mini:", "nano:"), {})
    assert capsys.readouterr().out.strip().endswith("query")
