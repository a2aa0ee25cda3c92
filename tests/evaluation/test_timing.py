"""Times of different systems are of the same work: the model's, with the search for feedback, without reading data."""

import time
from types import SimpleNamespace

import numpy as np
import pytest

from search_r3_mteb.evaluation import recording
from search_r3_mteb.evaluation.costs import SystemScores, compared, rough_time
from search_r3_mteb.evaluation.evaluate import evaluate
from search_r3_mteb.evaluation.recording import RecordedEncoder
from search_r3_mteb.expansion import feedback
from search_r3_mteb.expansion.feedback import FeedbackEncoder
from tests.mteb_running import made_task

DOCUMENTS = [{"id": f"d{n}", "title": "", "text": f"document number {n}"} for n in range(8)]
QUERIES = [{"id": f"q{n}", "text": f"question {n}"} for n in range(4)]
PAUSE = 0.3


def test_reading_the_batches_is_no_work_of_the_model(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(recording, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    class Plain:
        """An encoder of MTEB's that is none of ours; its work takes two seconds."""

        loader = None

        def encode(self, inputs, **place):
            self.loader = inputs
            count = sum(len(batch["text"]) for batch in inputs)
            now[0] += 2
            return np.ones((count, 2), np.float32)

    class Slow:
        """A loader that takes five seconds."""

        batch_size = 7

        def __iter__(self):
            now[0] += 5
            yield {"text": ["a", "b"]}

        def __len__(self):
            return 1

    encoder = Plain()
    recorded = RecordedEncoder(encoder, None)
    recorded.encode(Slow(), task_metadata=None, hf_split="test", hf_subset="default", prompt_type="query")
    assert (recorded.records["test"].query_seconds, recorded.records["test"].queries) == (2, 2)
    assert (len(encoder.loader), encoder.loader.batch_size) == (1, 7)  # what it may want to know of the loader


@pytest.mark.parametrize("method", ["rocchio", "feedback"])
def test_the_search_for_feedback_is_counted(models, tmp_path, monkeypatch, method):
    real = feedback.exact_search

    def slow(*arguments, **keywords):
        time.sleep(PAUSE)
        return real(*arguments, **keywords)

    monkeypatch.setattr(feedback, "exact_search", slow)
    writer = None if method == "rocchio" else models / "smol"
    chosen = {} if writer is None else {"max_reasoning_tokens": 2}
    made = FeedbackEncoder(writer, models / "minis", method=method, cache_folder=tmp_path / "store", **chosen)
    made.index(["one text", "another text"])
    for number in (1, 2):  # with texts and vectors from the store the search is still work of this system
        made.encode_query(["a query"])
        assert made.statistics.query_seconds >= number * PAUSE


def test_the_search_for_a_margin_is_counted(checkpoint, tmp_path, monkeypatch):
    from search_r3_mteb.evaluation import abstaining

    real = abstaining.ranked_scores

    def slow(*arguments, **keywords):
        time.sleep(PAUSE)
        return real(*arguments, **keywords)

    task = made_task("Timed", {"default": (DOCUMENTS, QUERIES, {f"q{n}": {f"d{n}": 1} for n in range(4)})})
    monkeypatch.setattr(abstaining, "ranked_scores", slow)
    settings = {"abstain_margin": 0.1, "max_reasoning_tokens": 2, "max_length": 64}
    (row,) = evaluate([checkpoint], [task], "reason", tmp_path, settings=settings)
    assert row["milliseconds_per_query"] >= 1000 * PAUSE / 4


def test_the_same_encoder_alone_and_beside_a_method_does_the_same_work(models, tmp_path, monkeypatch):
    """Both are timed around sentence-transformers' call: here that takes a known time, and MTEB's loader another."""
    from sentence_transformers import SentenceTransformer

    real = SentenceTransformer.encode_query

    def slow(self, *arguments, **keywords):
        time.sleep(PAUSE)
        return real(self, *arguments, **keywords)

    monkeypatch.setattr(SentenceTransformer, "encode_query", slow)
    task = made_task("Timed", {"default": (DOCUMENTS, QUERIES, {f"q{n}": {f"d{n}": 1} for n in range(4)})})
    rows = evaluate([str(models / "minis"), f"rocchio:{models / 'minis'}"], [task], "both", tmp_path)
    for row in rows:
        assert row["milliseconds_per_query"] * 4 >= 1000 * PAUSE


def test_a_ratio_of_few_queries_or_of_a_moment_is_said_to_be_rough():
    assert rough_time((10.0, 20.0), (300, 300)) == ""
    assert rough_time((10.0, 20.0), (8, 300)) == " (roughly: 8 queries, 0.08 s, timed once)"
    assert rough_time((0.5, 20.0), (300, 300)) == " (roughly: 300 queries, 0.15 s, timed once)"
    assert rough_time((10.0, None), (8, 8)) == ""  # there is no ratio
    assert rough_time((10.0, 20.0), (None, None)) == ""

    def system(milliseconds, queries):
        return SystemScores("a", "direct", 0.5, None, milliseconds, queries=queries)

    said = compared(system(17.0, 8), system(10.0, 8)).sentence("T")
    assert said.endswith("at 1.7 times the time per query (roughly: 8 queries, 0.08 s, timed once).")
    assert compared(system(17.0, 300), system(10.0, 300)).sentence("T").endswith("at 1.7 times the time per query.")
