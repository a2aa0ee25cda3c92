"""The key, the queue's end, sizes, time, clients that go away, what is logged and counted."""

import asyncio
import http.client
import json
import logging
import socket
import threading
import time
from itertools import count
from types import SimpleNamespace

import pytest
import torch

from search_r3_mteb.serving.settings import ServeSettings
from tests.serving.conftest import serving, until

openai = pytest.importorskip("openai", reason="OpenAI's client is not installed")


@pytest.fixture(scope="module")
def strict(small):
    with serving(small, name="tiny", settings=ServeSettings(max_queue=3, max_inputs=3, max_bytes=2000)) as server:
        yield server


def post(server, body, path="/v1/embeddings", **headers):
    """Status, headers and body of a request by hand."""
    connection = http.client.HTTPConnection("127.0.0.1", server.prepared.port, timeout=60)
    connection.request("POST", path, body, {"content-type": "application/json"} | headers)
    answer = connection.getresponse()
    return answer.status, dict(answer.getheaders()), json.loads(answer.read())


def never_ends(server):
    """The model writes one word for ever: slowly after the first ones, so that no machine comes to the last token."""
    engine, word = server.encoder.engine, server.encoder.tokenizer("river")["input_ids"][-1:]
    steps = count()

    def logits(hidden):
        if next(steps) > 30:
            time.sleep(0.05)
        return torch.zeros(len(hidden), engine.head.vocabulary).index_fill_(1, torch.tensor(word), 1)

    engine.logits = logits


def in_background(call):
    found = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()
    return thread, found


def test_a_full_queue_says_when_to_come_again(strict, held):
    go = held(strict)
    body = json.dumps({"model": "tiny:query", "input": ["a", "b"]})
    first, answered = in_background(lambda: post(strict, body))
    until(lambda: strict.service.held == 2)
    status, headers, answer = post(strict, body)
    assert status == 429
    assert 1 <= int(headers["retry-after"]) <= 60
    assert "2 of 3 texts wait" in answer["error"]["message"]
    with pytest.raises(openai.RateLimitError):
        strict.client().embeddings.create(model="tiny", input=["a", "b"])
    retrying, later = in_background(
        lambda: strict.client(max_retries=5).embeddings.create(model="tiny", input=["a", "b"])
    )
    until(lambda: strict.count("requests_total", path="/v1/embeddings", status="429") >= 3)
    go.set()
    first.join(60)
    retrying.join(60)
    assert answered[0][0] == 200
    assert len(later[0].data) == 2  # the client came again, as it was told
    assert strict.service.held == 0


def test_time_that_is_over_is_504_and_the_work_is_dropped(small, held, monkeypatch):
    from search_r3_mteb.serving import app

    with serving(small, name="tiny", settings=ServeSettings(timeout=0.2)) as server:
        go = held(server)

        async def wait(tasks, **how):  # the time begins when the model has the texts
            while not any(server.service.worker._queues.values()):
                await asyncio.sleep(0.001)
            return await asyncio.wait(tasks, **how)

        monkeypatch.setattr(app, "asyncio", SimpleNamespace(**vars(asyncio) | {"wait": wait}))
        status, _, answer = post(server, '{"model": "tiny:query", "input": ["a", "b", "c"]}')
        assert status == 504
        assert answer["error"]["type"] == "timeout_error"
        assert "longer than 0.2 seconds" in answer["error"]["message"]
        go.set()
        until(lambda: (server.count("dropped_rows_total"), server.service.held) == (3, 0))
        assert server.count("generated_tokens_total") == 0


def test_the_work_of_a_client_that_went_away_is_dropped_in_the_middle_of_it(small):
    with serving(small, name="tiny", max_reasoning_tokens=3000) as server:
        never_ends(server)
        worker = server.service.worker
        connection = socket.create_connection(("127.0.0.1", server.prepared.port))
        body = json.dumps({"model": "tiny:query", "input": ["a", "b"]})
        connection.sendall(
            f"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n{body}".encode()
        )
        until(lambda: worker.decode is not None and worker.decode.rows == 2)
        connection.close()
        until(lambda: not len(worker.decode))
        until(lambda: (server.count("dropped_rows_total"), server.service.held) == (2, 0))
        until(lambda: server.count("requests_total", path="/v1/embeddings", status="499") == 1)


def test_a_body_that_is_too_large_is_refused_before_it_is_read(strict):
    large = json.dumps({"model": "tiny", "input": "a" * 3000})
    status, _, answer = post(strict, large)
    assert (status, answer["error"]["code"]) == (413, "request_too_large")
    connection = http.client.HTTPConnection("127.0.0.1", strict.prepared.port, timeout=60)
    connection.request("POST", "/v1/embeddings", iter([large[:1500].encode(), large[1500:].encode()]),
                       {"content-type": "application/json"}, encode_chunked=True)  # fmt: skip
    assert connection.getresponse().status == 413
    assert post(strict, json.dumps({"model": "tiny", "input": "a" * 1500}))[0] == 200
    assert post(strict, json.dumps({"model": "tiny", "input": ["a"] * 4}))[0] == 400


def test_who_sends_much_too_much_hears_why(small, monkeypatch):
    """Regression: the connection was closed while it sent, so that it saw no answer."""
    monkeypatch.setenv("SEARCH_R3_API_KEY", "s3cret")
    with serving(small, name="tiny", settings=ServeSettings(max_bytes=1 << 20)) as server:
        large = json.dumps({"model": "tiny", "input": "a" * (12 << 20)})  # more than a connection's buffers hold
        for key, status, message in (("s3cret", 413, "larger than 1,048,576 bytes"), ("wrong", 401, "is not the key")):
            found, _, answer = post(server, large, authorization=f"Bearer {key}")
            assert (found, message in answer["error"]["message"]) == (status, True)
        connection = socket.create_connection(("127.0.0.1", server.prepared.port), timeout=60)
        head = "POST /v1/embeddings HTTP/1.1\r\nhost: x\r\nauthorization: Bearer s3cret\r\n"
        connection.sendall(f"{head}expect: 100-continue\r\ncontent-length: {12 << 20}\r\n\r\n".encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 413")  # nothing of the body was sent
        connection.close()
        connection = socket.create_connection(("127.0.0.1", server.prepared.port), timeout=60)
        connection.sendall(f"{head}content-length: {12 << 20}\r\n\r\n".encode())  # and it never comes
        assert connection.recv(65536).startswith(b"HTTP/1.1 413")
        connection.close()


def test_a_page_elsewhere_cannot_ask_without_saying_json(strict):
    """Browsers send such a request across origins without asking first."""
    body = '{"model": "tiny", "input": "a"}'
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        status, _, answer = post(strict, body, **{"content-type": kind})
        assert status == 400
        assert "Content-Type: application/json" in answer["error"]["message"]


def test_the_key(small, monkeypatch):
    monkeypatch.setenv("SEARCH_R3_API_KEY", "s3cret")
    with serving(small, name="tiny") as server:
        assert len(server.client(api_key="s3cret").embeddings.create(model="tiny", input="a").data) == 1
        for wrong in ("s3cre", "s3cret2", "S3CRET", "none"):
            with pytest.raises(openai.AuthenticationError, match="is not the key"):
                server.client(api_key=wrong).embeddings.create(model="tiny", input="a")
        for scheme, status in (("bearer", 200), ("BEARER", 200), ("Basic", 401)):
            assert get(server, "/v1/models", authorization=f"{scheme} s3cret") == status
        status, headers, answer = post(server, "{}")
        assert (status, headers["www-authenticate"]) == (401, "Bearer")
        assert answer["error"]["code"] == "invalid_api_key"
        assert [get(server, path) for path in ("/", "/health")] == [200, 200]
        assert {get(server, path) for path in ("/metrics", "/v1/models", "/v1/indexes", "/x")} == {401}


def get(server, path, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.prepared.port, timeout=60)
    connection.request("GET", path, headers=headers)
    return connection.getresponse().status


@pytest.mark.parametrize("key", ["", "  ", "schlüssel", "a\nb"])
def test_a_key_that_nobody_could_send_is_refused(monkeypatch, key):
    from search_r3_mteb.serving.settings import api_key

    monkeypatch.setenv("SEARCH_R3_API_KEY", key)
    with pytest.raises(ValueError, match="SEARCH_R3_API_KEY is set, but"):
        api_key()


def test_no_text_is_logged_whatever_happens(strict, caplog, monkeypatch):
    caplog.set_level(logging.DEBUG)
    secret = "zebra-4711"
    post(strict, json.dumps({"model": "tiny:query", "input": secret}))
    post(strict, json.dumps({"model": "tiny", "input": [secret, 3]}))
    post(strict, json.dumps({"model": secret, "input": "a"}), path=f"/{secret}")

    def broken(prompts, *_):
        raise RuntimeError(f"{secret} cannot be embedded")

    with monkeypatch.context() as patch:
        patch.setattr(strict.encoder.engine, "embed", broken)
        status, _, answer = post(strict, json.dumps({"model": "tiny", "input": secret}))
        assert status == 500
        assert "Its log names the fault" in answer["error"]["message"]
    assert post(strict, json.dumps({"model": "tiny", "input": secret}))[0] == 200  # and the server goes on

    def logged(beginning):
        return sum(record.getMessage().startswith(beginning) for record in caplog.records)

    until(lambda: logged("POST /v1/embeddings 200") == 2)  # a line is written after its answer
    assert logged("RuntimeError while computing 1 rows") == 1
    assert logged("RuntimeError at ") == 1
    assert logged("POST other 404") == 1
    assert secret not in caplog.text
    assert secret not in strict.metrics.text().decode()


def test_a_fault_while_reasoning_ends_its_requests_and_not_the_server(strict, monkeypatch):
    from search_r3_mteb.encoder.open_decode import OpenDecode

    with monkeypatch.context() as patch:
        patch.setattr(OpenDecode, "step", lambda self: [][0])
        status, _, answer = post(strict, '{"model": "tiny:query", "input": ["a", "b"]}')
        assert (status, answer["error"]["type"]) == (500, "server_error")
    assert post(strict, '{"model": "tiny:query", "input": ["a", "b"]}')[0] == 200


def test_a_vector_without_direction_is_not_given_out(strict, monkeypatch):
    embed = strict.encoder.engine.embed

    def zero_for_long(prompts, *given):
        vectors = embed(prompts, *given)
        longest = max(map(len, prompts))
        for place, prompt in enumerate(prompts):
            if len(prompt) == longest:
                vectors[place] = 0
        return vectors

    monkeypatch.setattr(strict.encoder.engine, "embed", zero_for_long)
    assert post(strict, '{"model": "tiny", "input": ["a", "a longer one"]}')[0] == 500


def test_what_is_counted(small):
    with serving(small, name="tiny") as server:
        post(server, '{"model": "tiny:query", "input": ["a", "b"]}')
        post(server, '{"model": "tiny", "input": "a"}')
        post(server, "{")
        until(lambda: server.count("request_seconds_count", path="/v1/embeddings") == 3)  # counted after the answer
        assert server.count("requests_total", path="/v1/embeddings", status="200") == 2
        assert server.count("requests_total", path="/v1/embeddings", status="400") == 1
        assert (server.count("texts_total", role="query"), server.count("texts_total", role="document")) == (2, 1)
        assert server.count("batch_rows_sum", kind="direct") == 1
        assert server.count("batch_rows_sum", kind="reason") >= server.count("generated_tokens_total") > 0
        assert server.count("prompt_tokens_total") > 0
        assert server.count("queue_texts") == 0
        assert get(server, "/metrics") == 200
        assert b"search_r3_generated_tokens_total" in server.metrics.text()


def test_a_fault_of_the_thread_itself_leaves_nobody_waiting(small, monkeypatch, caplog):
    def broken():
        raise RuntimeError("zebra-4711")

    with serving(small, name="tiny") as server:
        monkeypatch.setattr(server.service.worker, "_drop_unwanted", broken)
        assert get(server, "/health") == 200
        assert post(server, '{"model": "tiny", "input": "a"}')[0] == 500
        assert get(server, "/health") == 503
        assert post(server, '{"model": "tiny", "input": "a"}')[0] == 500
    assert "The model's thread ended: RuntimeError" in caplog.text
    assert "zebra" not in caplog.text


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"max_queue": 0}, "max_queue=0 must be at least 1"),
        ({"timeout": 0}, "timeout=0 must be a positive number of seconds"),
        ({"grace": float("inf")}, "grace=inf must be a positive"),
        ({"max_queue": 10}, "max_inputs=2048 texts of one request cannot wait in a queue of max_queue=10"),
    ],
)
def test_limits_that_cannot_be_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        ServeSettings(**setting)


def test_a_limit_is_a_whole_number():
    with pytest.raises(TypeError, match=r"max_bytes=1\.5"):
        ServeSettings(max_bytes=1.5)


def test_a_role_can_be_required(small):
    with serving(small, name="tiny", settings=ServeSettings(require_role=True)) as server:
        with pytest.raises(openai.BadRequestError, match="whether these texts are queries or documents") as caught:
            server.client().embeddings.create(model="tiny", input="a")
        assert caught.value.code == "role_required"
        assert server.client().embeddings.create(model="tiny:document", input="a").role == "document"
