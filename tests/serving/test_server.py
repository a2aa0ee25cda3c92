"""The program: its options, its address, and how it ends; processes are real."""

import http.client
import json
import signal
import socket

import pytest

from search_r3_mteb.serving.settings import ServeSettings
from tests.programs import started
from tests.serving.conftest import serving, until
from tests.test_stopping import AS_IN_A_TERMINAL


def test_every_option_arrives(call, monkeypatch, tmp_path):
    from search_r3_mteb.serving import server

    seen = {}
    monkeypatch.setattr(server, "serve", lambda *given, **named: seen.update(named, given=given))
    code, *_ = call(
        *("serve", "--model", "m", "--index", tmp_path / "a", "--index", tmp_path / "b", "--host", "::1"),
        *("--port", 9, "--name", "n", "--mode", "direct", "--require-role", "--max-queue", 7, "--max-inputs", 3),
        *("--max-megabytes", 2, "--timeout", 1.5, "--grace", 2.5, "--max-reasoning-tokens", 5, "--set", "seed=3"),
    )
    assert code == 0
    assert seen["given"] == ("m", [tmp_path / "a", tmp_path / "b"])
    assert (seen["host"], seen["port"], seen["name"]) == ("::1", 9, "n")
    assert seen["settings"] == ServeSettings(7, 3, 2 << 20, 1.5, 2.5, True)
    assert seen["encoder_settings"] == {"mode": "direct", "max_reasoning_tokens": 5, "seed": 3}
    assert call("serve", "--max-queue", 7)[0] == 0
    assert seen["settings"] == ServeSettings(7, 7)  # a queue shorter than a request may be makes requests shorter
    assert call("serve")[0] == 0
    assert seen["settings"] == ServeSettings()
    assert call("serve", "--max-queue", 7, "--max-inputs", 8)[0] == 2


def test_a_library_that_is_missing_is_named_with_the_extra(call, monkeypatch):
    import sys

    for name in [each for each in sys.modules if each.startswith("search_r3_mteb.serving")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    code, _, err = call("serve")
    assert code == 2
    assert "needs fastapi, which is not installed" in " ".join(err.split())
    assert "`pip install '.[serve]'` in a checkout" in err


def test_what_cannot_be_served_is_refused_before_the_model_is_loaded(call, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _, err = call("serve", "--model", "no-such-model", "--port", taken.getsockname()[1])
        assert code == 2
        assert "cannot be served at" in err
        assert "give another one by --port" in " ".join(err.split())
    assert "cannot be served at" in call("serve", "--model", "no-such-model", "--host", "192.0.2.1")[2]
    assert "cannot be called 'a:query'" in " ".join(call("serve", "--name", "a:query")[2].split())
    assert "keeps no texts" in " ".join(call("serve", "--set", "cache_folder=x")[2].split())
    monkeypatch.setenv("SEARCH_R3_API_KEY", " ")
    assert "SEARCH_R3_API_KEY is set, but it is blank" in " ".join(call("serve", "--model", "no-such")[2].split())


def test_a_socket_is_given_back_when_the_model_cannot_be_loaded(monkeypatch):
    from search_r3_mteb.serving import server

    real, taken = server._bound, []
    monkeypatch.setattr(server, "_bound", lambda *address: taken.append(real(*address)) or taken[0])
    with pytest.raises((OSError, ValueError), match="no-such-model"):
        server.prepare("./no-such-model", port=0)
    assert [each.fileno() for each in taken] == [-1]


def test_what_it_says_at_the_start(small, monkeypatch):
    with serving(small, name="m") as server:
        said = "\n".join(server.prepared.lines)
    assert f"Serving m at {server.url} (32 dimensions, mode reason)." in said
    assert "does not say the role of its texts embeds DOCUMENTS, without reasoning" in said
    assert "SEARCH_R3_API_KEY is not set" in said
    monkeypatch.setenv("SEARCH_R3_API_KEY", "key")
    with serving(small, name="m", settings=ServeSettings(require_role=True)) as server:
        said = "\n".join(server.prepared.lines)
    assert "Requests need the key" in said
    assert "DOCUMENTS" not in said


def test_who_comes_as_soon_as_the_address_is_said_is_not_refused(small):
    from search_r3_mteb.serving.server import prepare

    prepared = prepare(str(small), port=0)
    with prepared.listener:
        assert not refused(prepared.port)
    with socket.socket() as bound:  # the control: it does not listen
        bound.bind(("127.0.0.1", 0))
        assert refused(bound.getsockname()[1])


def test_an_address_for_everybody_is_warned_about_where_there_is_no_key(small, monkeypatch):
    from search_r3_mteb.serving.server import prepare

    for key, warned in ((None, True), ("key", False)):
        if key:
            monkeypatch.setenv("SEARCH_R3_API_KEY", key)
        prepared = prepare(str(small), host="0.0.0.0", port=0)
        prepared.listener.close()
        assert any(line.startswith("WARNING: 0.0.0.0") for line in prepared.lines) == warned


def test_what_runs_is_finished_when_it_is_stopped(small, held):
    import threading

    found = []
    with serving(small, name="tiny") as server:
        go = held(server)

        def ask():
            connection = http.client.HTTPConnection("127.0.0.1", server.prepared.port, timeout=60)
            body = json.dumps({"model": "tiny:query", "input": ["a", "b"]})
            connection.request("POST", "/v1/embeddings", body, {"content-type": "application/json"})
            found.append(connection.getresponse().status)

        thread = threading.Thread(target=ask)
        thread.start()
        until(lambda: server.service.held == 2)
        server.prepared.stop()
        until(lambda: refused(server.prepared.port))
        assert not found
        go.set()
        thread.join(60)
    assert found == [200]


def refused(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


def test_what_does_not_end_within_the_grace_is_given_up(small):
    from tests.serving.test_limits import never_ends

    with serving(small, name="tiny", settings=ServeSettings(grace=0.5), max_reasoning_tokens=3000) as server:
        never_ends(server)
        body = b'{"model": "tiny:query", "input": "a"}'
        with socket.create_connection(("127.0.0.1", server.prepared.port)) as connection:
            head = ["POST /v1/embeddings HTTP/1.1", "host: x", "content-type: application/json"]
            head += [f"content-length: {len(body)}", "", ""]
            connection.sendall("\r\n".join(head).encode() + body)
            until(lambda: server.service.worker.decode is not None)
            server.prepared.stop()
            until(lambda: server.service.held == 0)
            assert b" 200 " not in connection.recv(65536)


class Program:
    """`search-r3 serve` in a process of its own."""

    def __init__(self, *arguments):
        self.process = started("-c", AS_IN_A_TERMINAL, "-m", "search_r3_mteb", "serve", "--port", 0, *arguments)
        for line in self.process.stdout:
            if " at http://" in line:
                self.port = int(line.split(" at http://127.0.0.1:")[1].split()[0])
                break
        else:
            pytest.fail(self.process.communicate()[1][-3000:])

    def client(self):
        openai = pytest.importorskip("openai")
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key="x", max_retries=0)

    def ended(self, number):
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=120)
        return self.process.returncode, errors


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_what_runs(number):
    import threading

    program = Program("--model", "nano", "--max-reasoning-tokens", 200)
    client, found = program.client(), []
    texts = [f"Who founded the river number {at}?" for at in range(200)]
    thread = threading.Thread(target=lambda: found.append(client.embeddings.create(model="nano:query", input=texts)))
    thread.start()
    metrics = http.client.HTTPConnection("127.0.0.1", program.port)

    def queued():
        metrics.request("GET", "/metrics")
        return b"search_r3_queue_texts 200.0" in metrics.getresponse().read()

    until(queued)
    code, errors = program.ended(number)
    thread.join(60)
    assert code == 128 + number
    assert "What runs is finished, for at most 30 s" in errors
    assert "Traceback" not in errors
    assert len(found[0].data) == 200


@pytest.mark.slow
def test_killed_and_started_again_it_answers_as_before():
    text = "Who founded the river?"
    answers = []
    for _ in range(2):
        program = Program("--model", "nano", "--max-reasoning-tokens", 24)
        answers.append(program.client().embeddings.create(model="nano:query", input=text).data[0].embedding)
        assert program.ended(signal.SIGKILL)[0] == -signal.SIGKILL
    assert answers[0] == answers[1]
