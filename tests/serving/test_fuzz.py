"""Rubbish: whatever is sent is answered with a sentence in OpenAI's shape, never with a fault of the server."""

import http.client
import json
import random
import socket

import pytest

from tests.serving.conftest import until

WORDS = ["nano", "nano:query", "a", "", " ", "\ud800", "\x00", "🙂" * 3, "query", "float", "base64", "1", "ä"]
FIELDS = ["model", "input", "encoding_format", "dimensions", "user", "input_type", "return_reasoning", "query", "index",
          "mode", "k", "stream", "x", ""]  # fmt: skip


def value(draw, depth=0):
    kinds = 8 if depth < 3 else 6
    kind = draw.randrange(kinds)
    if kind == 0:
        return draw.choice(WORDS)
    if kind == 1:
        return draw.choice([0, -1, 1, 7, 300, 2**31, 2**70, 1.5, 1e308])
    if kind < 6:
        return draw.choice([True, False, None, float("nan"), float("inf"), "a river"])
    if kind == 6:
        return [value(draw, depth + 1) for _ in range(draw.randrange(4))]
    return {draw.choice(FIELDS): value(draw, depth + 1) for _ in range(draw.randrange(4))}


def body(draw):
    """A request that is nearly right, with some of it changed; or bytes that are not JSON."""
    if draw.random() < 0.2:
        text = json.dumps({"model": "nano", "input": "a"}).encode()
        at = draw.randrange(len(text))
        return draw.choice([text[:at], text[:at] + draw.randbytes(3) + text[at:], draw.randbytes(40), b"", b"9" * 5000])
    asked = draw.choice([{"model": "nano", "input": "a river"}, {"query": "a river"}, {}])
    for _ in range(draw.randrange(3)):
        asked = asked | {draw.choice(FIELDS): value(draw)}
    return json.dumps(draw.choice([asked, asked, asked, value(draw)])).encode()


def check(status, content):
    assert status < 500, content
    if status >= 400:
        error = json.loads(content)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert 10 < len(error["message"]) < 700
        assert "Traceback" not in error["message"]
        assert "pydantic" not in error["message"]


def fuzz(server, seed, number):
    draw, found = random.Random(seed), set()
    connection = http.client.HTTPConnection("127.0.0.1", server.prepared.port, timeout=60)
    for _ in range(number):
        path = draw.choice(["/v1/embeddings", "/v1/embeddings", "/v1/search"])
        kind = draw.choice(["application/json"] * 8 + ["text/plain", "application/json; charset=utf-16"])
        connection.request("POST", path, body(draw), {"content-type": kind})
        answer = connection.getresponse()
        check(answer.status, answer.read())
        found.add(answer.status)
    return found


def test_rubbish_is_refused_with_a_sentence(served, caplog):
    assert fuzz(served, 1, 50) >= {200, 400, 404}
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    assert served.service.held == 0


@pytest.mark.slow
def test_much_rubbish(served):
    for seed in range(20):
        fuzz(served, 100 + seed, 1000)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"model": "nano", "input": ' + "[" * 50_000 + "]" * 50_000 + "}",
        '{"model": "nano", "input": "a", "input": 3}',
        '{"model": "nano", "input": [' + ",".join(["0"] * 20_000) + "]}",
        json.dumps({"model": "n" * 100_000, "input": "a"}),
        json.dumps({"k" * 100_000: 1}),
    ],
)
def test_bodies_made_to_hurt(served, text):
    connection = http.client.HTTPConnection("127.0.0.1", served.prepared.port, timeout=60)
    connection.request("POST", "/v1/embeddings", text, {"content-type": "application/json"})
    answer = connection.getresponse()
    assert 400 <= answer.status < 500
    check(answer.status, answer.read())


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nothing of HTTP\r\n\r\n", 400),
        (b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: many\r\n\r\n", 400),
        (b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\n\r\n", 413),
        (b"GET /\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n", 400),
        (b"GET /v1/embeddings HTTP/1.1\r\nhost: x\r\n\r\n", 405),
        (b"BREW /health HTTP/1.1\r\nhost: x\r\n\r\n", 405),
    ],
)
def test_rubbish_of_http(served, sent, status):
    with socket.create_connection(("127.0.0.1", served.prepared.port), timeout=60) as connection:
        connection.sendall(sent)
        assert connection.recv(65536).split()[1] == str(status).encode()


def test_a_client_that_goes_away_in_the_middle_of_its_body(served):
    before = served.count("requests_total", path="/v1/embeddings", status="499")
    with socket.create_connection(("127.0.0.1", served.prepared.port), timeout=60) as connection:
        connection.sendall(b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
    until(lambda: served.count("requests_total", path="/v1/embeddings", status="499") == before + 1)
