"""The worker: who is computed with whom, and in which turn. Its steps are taken here, one by one."""

import numpy as np
import pytest

from search_r3_mteb.encoder.encoder import SearchR3Encoder
from search_r3_mteb.serving.metrics import Metrics
from search_r3_mteb.serving.worker import Job, Worker

TEXTS = [f"who is number {place} {'there ' * place}?" for place in range(6)]


@pytest.fixture
def encoder(small):
    return SearchR3Encoder(small, max_reasoning_tokens=12)


def job_of(encoder, texts, kind, on_written=None):
    prompts = encoder.renderer.render_batch(texts, kind)
    return Job([(kind, each.token_ids) for each in prompts], on_written)


def step(worker):
    """What the thread does in one turn."""
    with worker.engine.evaluating():
        worker._wait()
        worker._turn()


def arrive(worker, work):
    worker._arrived.append(work)
    return work


def finished(worker, *works):
    for _ in range(500):
        if all(work.future.done() for work in works):
            return
        step(worker)
    pytest.fail("nothing came of it")


def test_requests_are_computed_together_and_queries_join_those_that_decode(encoder):
    worker = Worker(encoder, Metrics())
    first = arrive(worker, job_of(encoder, TEXTS[:2], "reason"))
    step(worker)
    later, documents = (arrive(worker, job_of(encoder, TEXTS[2:], kind)) for kind in ("reason", "direct"))
    step(worker)
    assert documents.future.done()  # while the queries go on
    assert worker.decode.rows == 6
    assert not first.future.done()
    finished(worker, first, later)
    found = [each.vector for work in (first, later) for each in work.future.result()]
    np.testing.assert_allclose(found, encoder.encode_query(TEXTS), atol=1e-6, rtol=0)
    found = [each.vector for each in documents.future.result()]
    np.testing.assert_allclose(found, encoder.encode_document(TEXTS[2:]), atol=1e-6, rtol=0)


def test_documents_let_queries_have_as_much_time_as_they_had(encoder):
    worker = Worker(encoder, Metrics())
    queries = arrive(worker, job_of(encoder, TEXTS[:2], "reason"))
    step(worker)
    worker._owed = 1e9  # as after a batch that took long
    documents = arrive(worker, job_of(encoder, TEXTS, "direct"))
    step(worker)
    assert 0 < worker._owed < 1e9
    finished(worker, queries)
    assert not documents.future.done()
    step(worker)  # nothing is owed to nobody
    assert documents.future.done()
    assert worker._owed == 0


def test_a_small_request_does_not_wait_for_a_large_one(encoder, monkeypatch):
    from search_r3_mteb.serving import worker as module

    length = len(encoder.renderer.render("who", "direct").token_ids)
    monkeypatch.setattr(module, "prefill_budget", lambda *_: 2 * length)  # two of these texts at once
    worker = Worker(encoder, Metrics())
    large = arrive(worker, job_of(encoder, ["who"] * 20, "direct"))
    small = arrive(worker, job_of(encoder, ["who"], "direct"))
    step(worker)
    assert small.future.done()
    assert not large.future.done()
    finished(worker, large)


def test_a_cancelled_request_is_dropped_at_the_next_step(encoder):
    metrics = Metrics()
    worker = Worker(encoder, metrics)
    kept, gone = (arrive(worker, job_of(encoder, texts, "reason")) for texts in (TEXTS[:2], TEXTS[2:4]))
    step(worker)
    assert worker.decode.rows == 4
    gone.future.cancel()
    step(worker)
    assert len(worker.decode) == 2
    assert metrics.registry.get_sample_value("search_r3_dropped_rows_total") == 2
    finished(worker, kept)
    found = [each.vector for each in kept.future.result()]
    np.testing.assert_allclose(found, encoder.encode_query(TEXTS[:2]), atol=1e-6, rtol=0)


def test_a_prompt_that_does_not_begin_as_the_others_is_computed_all_the_same(encoder):
    worker = Worker(encoder, Metrics())
    prompt = encoder.renderer.render(TEXTS[0], "reason").token_ids
    odd, even = [prompt[1], prompt[0], *prompt[2:]], prompt
    work = arrive(worker, Job([("reason", odd), ("reason", even)]))
    finished(worker, work)
    expected = encoder.engine.reason([odd, even], worker.sampling)
    for row, outcome in enumerate(work.future.result()):
        assert outcome.token_ids == expected.token_ids[row]
    assert not np.allclose(work.future.result()[0].vector, work.future.result()[1].vector, atol=1e-3)


def test_an_engine_without_an_open_loop_works_in_waves(encoder):
    worker = Worker(encoder, Metrics())
    worker._open = False
    work = arrive(worker, job_of(encoder, TEXTS, "reason"))
    step(worker)
    found = [each.vector for each in work.future.result()]
    np.testing.assert_allclose(found, encoder.encode_query(TEXTS), atol=1e-6, rtol=0)
    assert worker.decode is None


def test_what_is_written_is_shown_step_by_step(encoder):
    shown = []
    worker = Worker(encoder, Metrics())
    work = arrive(worker, job_of(encoder, TEXTS[:1], "reason", shown.append))
    finished(worker, work)
    [outcome] = work.future.result()
    assert shown == [outcome.token_ids[: length + 1] for length in range(len(shown))]
    assert len(shown) >= len(outcome.token_ids) - 1


def test_packed_weights_are_used_while_decoding_only_and_freed_when_nobody_asks(encoder, monkeypatch):
    import torch

    from search_r3_mteb.encoder import packing

    monkeypatch.setattr(packing, "LEAST_BYTES", 0)
    monkeypatch.setitem(packing.LEAST_NUMBERS, torch.float32, 0)
    linear = next(module for module in encoder.model.modules() if type(module) is torch.nn.Linear)
    seen, embed = [], encoder.engine.embed
    monkeypatch.setattr(
        encoder.engine, "embed", lambda prompts: seen.append("forward" in linear.__dict__) or embed(prompts)
    )
    worker = Worker(encoder, Metrics())
    reason = arrive(worker, job_of(encoder, TEXTS[:2], "reason"))
    step(worker)
    assert worker._packed is not None
    arrive(worker, job_of(encoder, TEXTS, "direct"))
    finished(worker, reason)
    assert seen == [False]
    found = [each.vector for each in reason.future.result()]
    np.testing.assert_allclose(found, encoder.encode_query(TEXTS[:2]), atol=1e-6, rtol=0)
    worker.start()
    worker.close()
    assert worker._packed is None


def test_what_is_left_fails_when_the_worker_is_closed(encoder):
    worker = Worker(encoder, Metrics())
    worker.start()
    worker.close()
    left = arrive(worker, job_of(encoder, TEXTS, "direct"))
    worker.close()
    with pytest.raises(RuntimeError, match="The server was stopped"):
        left.future.result(1)
    with pytest.raises(RuntimeError, match="does not run"):
        worker.submit(left)
