"""Real servers, on ports of their own, in a thread; and OpenAI's own client."""

import threading
import time
from contextlib import contextmanager

import pytest

from tests.conftest import build_model

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

# Names of nano's language, so that it has something to say.
QUESTIONS = [f"Who founded the {each} of Anton Bachmann?" for each in ("harbor", "company", "school", "river", "city")]


class Served:
    """A server that runs, and what is inside it."""

    def __init__(self, prepared):
        self.prepared, self.url = prepared, f"http://127.0.0.1:{prepared.port}"
        self.service = prepared.server.config.app.app.state.service
        self.encoder = self.service.encoder
        self.metrics = self.service.metrics

    def client(self, **options):
        import openai

        return openai.OpenAI(base_url=f"{self.url}/v1", **({"api_key": "none", "max_retries": 0} | options))

    def count(self, name, **labels):
        return self.metrics.registry.get_sample_value(f"search_r3_{name}", labels) or 0.0


@contextmanager
def serving(model="nano", indexes=(), *, settings=None, name=None, **encoder_settings):
    from search_r3_mteb.serving.server import prepare

    short = {"max_length": 128} if model == "nano" else {}
    chosen = {"max_reasoning_tokens": 16} | short | encoder_settings
    prepared = prepare(
        None if model is None else str(model), indexes, port=0, name=name, settings=settings, encoder_settings=chosen
    )
    thread = threading.Thread(target=prepared.run)
    thread.start()
    try:
        until(lambda: prepared.server.started or not thread.is_alive())
        yield Served(prepared)
    finally:
        prepared.stop()
        thread.join(60)
        assert not thread.is_alive()


def until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.005)


@pytest.fixture(scope="session")
def small(tiny_tokenizer, tmp_path_factory):
    """The tiny checkpoint in a folder, once for all servers."""
    from search_r3_mteb.encoder.checkpoints import Checkpoint, save
    from search_r3_mteb.encoder.profiles import Profile

    folder = tmp_path_factory.mktemp("small") / "tiny"
    save(Checkpoint(build_model(), tiny_tokenizer, Profile.default(), "tests/tiny"), folder)
    return folder


@pytest.fixture(scope="session")
def served():
    """Nano, with the default limits. Tests leave nothing in it."""
    with serving() as server:
        yield server


@pytest.fixture
def held(monkeypatch):
    """`held(server)`: the model computes nothing until the event that it returns is set."""
    opened = []

    def hold(server):
        from search_r3_mteb.serving.worker import Worker

        go, embed, reason = threading.Event(), Worker._embed, Worker._reason
        opened.append(go)

        def waiting(step):
            def run(self):
                if self is server.service.worker:
                    go.wait(60)
                step(self)

            return run

        monkeypatch.setattr(Worker, "_embed", waiting(embed))
        monkeypatch.setattr(Worker, "_reason", waiting(reason))
        return go

    yield hold
    for go in opened:
        go.set()
