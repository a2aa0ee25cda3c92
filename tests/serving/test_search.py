"""POST /v1/search: what the index finds for the vectors of the server, and the reasoning as it is written."""

import http.client
import json
import re
import shutil
import socket
import threading

import numpy as np
import pytest

from search_r3_mteb.encoder.encoder import SearchR3Encoder
from search_r3_mteb.indexing.index import SearchIndex
from search_r3_mteb.serving.searching import Searches
from search_r3_mteb.serving.settings import ServeSettings
from tests.serving.conftest import QUESTIONS, serving, until
from tests.serving.test_limits import get, in_background, never_ends

DOCUMENTS = [
    {
        "id": f"d{place}",
        "title": f"River {place}",
        "text": f"The river number {place} of Anton Bachmann. " * (place % 3),
    }
    for place in range(12)
] + [{"id": "<b>", "title": "", "text": "<script>document.title = 'broken'</script><b id=injected>x</b>"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("indexes") / "rivers"
    SearchIndex.build(DOCUMENTS, SearchR3Encoder("nano", max_length=128, max_reasoning_tokens=16), folder)
    return folder


@pytest.fixture(scope="module")
def searched(folder):
    with serving("nano", [folder], settings=ServeSettings(max_hits=20)) as server:
        yield server


def test_without_a_model_that_of_the_index_is_served(folder):
    """Regression: it was nano, in its own length of prompts, which the index refused."""
    with serving(None, [folder]) as server:
        assert (server.encoder.name, server.encoder.max_length) == ("search-r3-mteb/nano", 128)
        assert "Serving nano at" in server.prepared.lines[0]
        assert post(server, query="who?", mode="direct", k=1)[0] == 200


def test_a_model_that_does_not_fit_ends_with_the_command_that_does(folder, call):
    code, _, err = call("serve", "--model", "mini", "--index", folder, "--port", 0)
    assert code == 2
    said = " ".join(err.split())
    assert said.endswith(f"that of the index is served: search-r3 serve --index {folder}")
    assert "another prompt around a document" in said
    assert not re.search(r"prompt [0-9a-f]{8}", said)


def post(server, **body):
    connection = http.client.HTTPConnection("127.0.0.1", server.prepared.port, timeout=60)
    connection.request("POST", "/v1/search", json.dumps(body), {"content-type": "application/json"})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def events(server, **body):
    connection = http.client.HTTPConnection("127.0.0.1", server.prepared.port, timeout=60)
    connection.request("POST", "/v1/search", json.dumps(body | {"stream": True}), {"content-type": "application/json"})
    answer = connection.getresponse()
    assert answer.getheader("content-type").startswith("text/event-stream")
    parts = [part.split("\n") for part in answer.read().decode().split("\n\n") if part]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in parts]


@pytest.mark.parametrize("mode", ["reason", "direct"])
def test_the_server_finds_what_the_index_finds(searched, folder, mode):
    index = SearchIndex.open(folder, SearchR3Encoder("nano", max_length=128, max_reasoning_tokens=16))
    expected = index.search(QUESTIONS, mode=mode, k=5)
    status, answer = post(searched, query=QUESTIONS, mode=mode, k=5)
    assert status == 200
    assert (answer["index"], answer["mode"]) == ("rivers", mode)
    for found, each in zip(answer["results"], expected, strict=True):
        assert found["query"] == each.query
        assert found["reasoning"] == (None if each.thought is None else each.thought.text)
        assert [hit["id"] for hit in found["hits"]] == [hit.id for hit in each.hits]
        assert [hit["text"] for hit in found["hits"]] == [hit.text for hit in each.hits]
        np.testing.assert_allclose(
            [hit["score"] for hit in found["hits"]], [hit.score for hit in each.hits], atol=1e-6, rtol=0
        )
    assert (answer["usage"]["completion_tokens"] > 0) == (mode == "reason")


def test_the_two_modes_differ(searched):
    found = [post(searched, query=QUESTIONS, mode=mode)[1]["results"] for mode in ("reason", "direct")]
    scores = [[[hit["score"] for hit in each["hits"]] for each in results] for results in found]
    assert np.abs(np.array(scores[0]) - np.array(scores[1])).max() > 1e-3


def test_the_reasoning_comes_as_it_is_written(searched):
    found = events(searched, query=QUESTIONS[0], k=3)
    *written, (last, result) = found
    assert last == "result"
    assert len(written) > 2
    assert {name for name, _ in written} == {"reasoning"}
    said = "".join(data["delta"] for _, data in written)
    assert result["results"][0]["reasoning"].startswith(said)
    assert len(said) > 10
    assert result["results"] == post(searched, query=QUESTIONS[0], k=3)[1]["results"]


def test_a_stream_whose_client_goes_away_is_dropped(folder):
    with serving("nano", [folder], max_reasoning_tokens=800) as server:
        never_ends(server)
        worker = server.service.worker
        body = json.dumps({"query": "who", "stream": True})
        with socket.create_connection(("127.0.0.1", server.prepared.port)) as connection:
            connection.sendall(
                f"POST /v1/search HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\n\r\n{body}".encode()
            )
            assert b"event: reasoning" in connection.recv(65536) + connection.recv(65536)
        until(lambda: not len(worker.decode))
        until(lambda: (server.count("dropped_rows_total"), server.service.held) == (1, 0))


def test_a_stream_that_takes_too_long_ends_with_an_error(folder):
    with serving("nano", [folder], settings=ServeSettings(timeout=0.3), max_reasoning_tokens=800) as server:
        never_ends(server)
        *_, (name, data) = events(server, query="who")
        assert name == "error"
        assert data["error"]["code"] == "timeout"
        until(lambda: server.service.held == 0)


def test_the_index_may_change_while_it_is_served(searched, folder):
    listed = searched.client().get("/indexes", cast_to=object)
    assert listed["data"] == [{"id": "rivers", "documents": 13}]
    index = SearchIndex.open(folder, searched.encoder)
    index.add([{"id": "new", "title": "", "text": "who founded the new one?"}])
    try:
        _, answer = post(searched, query="who founded the new one?", mode="direct", k=1)
        assert answer["results"][0]["hits"][0]["id"] == "new"
    finally:
        index.remove(["new"])
    _, answer = post(searched, query="who founded the new one?", mode="direct", k=20)
    assert "new" not in [hit["id"] for hit in answer["results"][0]["hits"]]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({}, 400, "query: Field required"),
        ({"query": ""}, 400, "entry 0 is empty or blank"),
        ({"query": [1, 2]}, 400, "token ids are not searched for"),
        ({"query": []}, 400, "give a question, or an array of questions, not empty; token ids are not searched for"),
        ({"query": ["a", " "]}, 400, "entry 1 is empty or blank"),
        ({"query": "a", "k": 21}, 400, "at most 20 hits"),
        ({"query": "a", "k": 0}, 400, "k: Input should be greater"),
        ({"query": "a", "index": "seas"}, 404, "There is no index 'seas', only 'rivers'"),
        ({"query": "a", "mode": "both"}, 400, "mode: Input should be 'reason' or 'direct'"),
        ({"query": ["a", "b"], "stream": True}, 400, "one question at a time"),
        ({"query": "\ud800"}, 400, "holds a lone surrogate"),
        ({"query": "a", "model": "nano"}, 400, "'model' is not a field of this request; they are query, index"),
    ],
)
def test_what_is_refused_is_named(searched, body, status, message):
    found, answer = post(searched, **body)
    assert found == status
    assert message in answer["error"]["message"]


def test_what_is_wrong_with_a_question_is_said_of_the_field_query(searched):
    for body in ({"query": "\ud800"}, {"query": ["a"] * 5000}):
        status, answer = post(searched, **body)
        assert (status, answer["error"]["param"]) == (400, "query")
    *_, (name, data) = events(searched, query="\ud800")
    assert (name, data["error"]["param"]) == ("error", "query")


def test_an_index_that_is_replaced_by_one_of_another_encoding_is_not_searched(folder, tmp_path, caplog):
    place = shutil.copytree(folder, tmp_path / "rivers")
    with serving("nano", [place]) as server:
        assert post(server, query="a river", mode="direct")[0] == 200
        shutil.rmtree(place)
        SearchIndex.build(DOCUMENTS, SearchR3Encoder("nano", max_length=100, max_reasoning_tokens=16), place)
        status, answer = post(server, query="a river", mode="direct")
        assert (status, answer["error"]["code"]) == (503, "index_unavailable")
        assert "The index 'rivers' cannot be searched now" in answer["error"]["message"]
        shutil.rmtree(place)
        shutil.copytree(folder, place)
        assert post(server, query="a river", mode="direct")[0] == 200
    assert "Index rivers cannot be searched:" in caplog.text
    assert "was replaced by an index of another encoding" in caplog.text


@pytest.mark.parametrize("harm", ["removed", "damaged"])
def test_an_index_that_cannot_be_read_any_more_is_named_and_the_others_go_on(folder, tmp_path, harm, caplog):
    """Regression: the list of all indexes failed with 500, and so did the page."""
    harmed, sound = shutil.copytree(folder, tmp_path / "harmed"), shutil.copytree(folder, tmp_path / "sound")
    with serving("nano", [harmed, sound]) as server:
        if harm == "removed":
            shutil.rmtree(harmed)
        else:
            (harmed / "index.json").write_text("{}")
        status, answer = post(server, query="a river", mode="direct", index="harmed")
        assert (status, answer["error"]["type"], answer["error"]["param"]) == (503, "server_error", "index")
        assert str(tmp_path) not in answer["error"]["message"]
        *_, (name, data) = events(server, query="a river", index="harmed")
        assert (name, data["error"]["code"]) == ("error", "index_unavailable")
        listed = server.client().get("/indexes", cast_to=object)["data"]
        assert listed == [{"id": "harmed", "documents": None}, {"id": "sound", "documents": 13}]
        assert post(server, query="a river", mode="direct", index="sound")[0] == 200
    assert f"Index harmed cannot be searched: {harmed}" in caplog.text
    assert "a river" not in caplog.text


def test_reading_a_changed_index_holds_nobody_else_up(searched, monkeypatch):
    """Regression: the list of indexes read it, with all checksums, in the thread that answers every request."""
    began, go, listed = threading.Event(), threading.Event(), Searches.listed

    def slow(self):
        began.set()
        go.wait(60)
        return listed(self)

    monkeypatch.setattr(Searches, "listed", slow)
    waiting, found = in_background(lambda: searched.client().get("/indexes", cast_to=object))
    assert began.wait(60)
    assert get(searched, "/health") == 200
    assert not found
    go.set()
    waiting.join(60)
    assert found[0]["data"] == [{"id": "rivers", "documents": 13}]


def test_an_index_of_another_encoding_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="max_length"), serving("nano", [folder], max_length=100):
        pass
    with pytest.raises(FileNotFoundError), serving("nano", [tmp_path / "absent"]):
        pass


def test_two_indexes_are_told_apart_by_their_names(folder, tmp_path):
    encoder = SearchR3Encoder("nano", max_length=128, max_reasoning_tokens=16)
    SearchIndex.build([{"id": "only", "title": "", "text": "a sea"}], encoder, tmp_path / "seas")
    with serving("nano", [folder, tmp_path / "seas"]) as server:
        status, answer = post(server, query="a sea")
        assert (status, answer["error"]["message"]) == (400, "Say which index: one of 'rivers', 'seas'.")
        assert post(server, query="a sea", index="seas")[1]["results"][0]["hits"][0]["id"] == "only"
    with pytest.raises(ValueError, match="have the same name 'rivers'"), serving("nano", [folder, folder]):
        pass
