"""Tokens of a corpus are counted once, by all processes, and kept beside the cache."""

import json
import logging

import numpy as np
import pytest

from tests.train.corpus_cache.test_cache import DIM, Encoder
from train.config.corpus_cache import CorpusCacheSettings
from train.corpus_cache.cache import CorpusCache
from train.corpus_cache.texts import CorpusTexts, counted_once
from train.processes.replicas import Replicas

TEXTS = [f"document {'long ' * (row % 7)}number {row}" for row in range(30)]


class Counter:
    """Counts words, and remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, texts):
        self.asked += texts
        return [len(text.split()) for text in texts]


def corpus(counter, tokenizer="words", texts=TEXTS):
    return CorpusTexts(texts, token_counts=counter, tokenizer=tokenizer)


def counted(folder, *arguments, **changes):
    """Counts, and how many texts were counted for them."""
    counter = Counter()
    found = counted_once(corpus(counter, *arguments, **changes), folder, Replicas())
    return found.tolist(), len(counter.asked)


WORDS = [len(text.split()) for text in TEXTS]


def test_the_second_time_nothing_is_counted(tmp_path):
    assert counted(tmp_path) == (WORDS, 30)
    assert counted(tmp_path) == (WORDS, 0)


def test_counts_of_another_tokenizer_or_other_texts_are_made_again(tmp_path):
    counted(tmp_path)
    assert counted(tmp_path, "other") == (WORDS, 30)
    assert counted(tmp_path, "other", texts=[*TEXTS[:-1], "two words"])[0][-1] == 2
    assert counted(tmp_path, "other", texts=TEXTS[:20])[1] == 20


def test_a_function_without_a_name_keeps_nothing(tmp_path):
    assert counted(tmp_path, "") == (WORDS, 30)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "what", ["values", "cut", "type", "archive", "PK", "empty", "manifest", "not a mapping", "no checksum"]
)
def test_damaged_counts_are_made_again_and_the_log_says_so(tmp_path, caplog, what):
    counted(tmp_path)
    file, manifest = tmp_path / "tokens.npy", tmp_path / "tokens.json"
    if what == "values":
        np.save(file, np.load(file) + np.int32(1))
    elif what == "cut":
        file.write_bytes(file.read_bytes()[:100])
    elif what == "type":
        np.save(file, np.load(file).astype(np.int64))
    elif what == "archive":
        with file.open("wb") as stream:
            np.savez(stream, counts=np.array(WORDS, np.int32))
    elif what == "PK":
        file.write_bytes(b"PK\x03\x04" + file.read_bytes()[4:])
    elif what == "empty":
        file.write_bytes(b"")
    elif what == "manifest":
        manifest.write_text("{")
    elif what == "not a mapping":
        manifest.write_text("[]")
    else:
        said = json.loads(manifest.read_text())
        del said["checksum"]
        manifest.write_text(json.dumps(said))
    with caplog.at_level(logging.WARNING):
        assert counted(tmp_path) == (WORDS, 30)
    assert "counted again" in caplog.text
    assert counted(tmp_path) == (WORDS, 0)


class Together(Replicas):
    """Process `rank` of three, whose gathering answers with what the others would have said."""

    size = 3

    def __init__(self, rank, said):
        self.rank, self.said, self.writes = rank, said, rank == 0

    def gather(self, arrays):
        return [dict(self.said(other, arrays)) for other in range(3)]


def test_each_process_counts_its_share(tmp_path):
    for rank in range(3):
        counter = Counter()

        def said(other, own, rank=rank):
            if "kept" in own or other == rank:
                return own
            return {"failed": np.array(False), "counts": np.array(WORDS[10 * other : 10 * other + 10], np.int32)}

        found = counted_once(corpus(counter), tmp_path / str(rank), Together(rank, said))
        assert found.tolist() == WORDS
        assert counter.asked == TEXTS[10 * rank : 10 * rank + 10]
        assert (tmp_path / str(rank)).exists() == (rank == 0)


def test_what_one_process_has_lost_all_count(tmp_path):
    counted(tmp_path)
    counter = Counter()

    def said(other, own):
        if "kept" in own:
            return {"kept": np.array(other != 1)}
        return (
            own if other == 0 else {"failed": np.array(False), "counts": np.array(WORDS[10 * other :][:10], np.int32)}
        )

    assert counted_once(corpus(counter), tmp_path, Together(0, said)).tolist() == WORDS
    assert len(counter.asked) == 10


def test_building_a_cache_again_counts_nothing(tmp_path):
    counter = Counter()
    texts = corpus(counter, texts=[f"document number {row}" for row in range(30)])
    cache = CorpusCache.build(texts, Encoder(), folder=tmp_path, settings=CorpusCacheSettings(neighbors=3))
    assert len(counter.asked) == 30
    cache.rebuild(Encoder(1), step=1)
    assert len(counter.asked) == 30
    assert CorpusCache.load(tmp_path, texts, fingerprint="", dim=DIM).step == 1
