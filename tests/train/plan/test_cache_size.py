"""The corpus cache's size, against the folder that the cache really writes."""

from statistics import fmean

import numpy as np
import pytest

from train.config.corpus_cache import CorpusCacheSettings
from train.corpus_cache.cache import CorpusCache
from train.corpus_cache.refresh_policies import Hits
from train.corpus_cache.texts import CorpusTexts
from train.disk.token_ids import CorpusTokenizer
from train.plan.cache_size import CacheSize, text_bytes
from train.processes.replicas import Replicas

DOCUMENTS, DIM = 40, 24
HEADERS = 20 * 128  # of .npy files; the manifest


def encoder(scale=0.0):
    """Unit vectors by the number in the text, moved by `scale`."""

    def encode(texts):
        drawn = [np.random.default_rng(int(text.split()[1])).normal(size=DIM) + scale for text in texts]
        return np.array([vector / np.linalg.norm(vector) for vector in drawn], dtype=np.float32)

    return encode


def built(folder, settings):
    texts = [f"document {number}" for number in range(DOCUMENTS)]
    return CorpusCache.build(texts, encoder(), folder=folder, settings=settings)


def size_of(folder):
    return sum(file.stat().st_size for file in folder.iterdir() if file.suffix in (".npy", ".log"))


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("policy", ["none", "local", "local+map", "full"])
def test_the_memory_maps_are_as_large_as_said(tmp_path, storage, policy):
    settings = CorpusCacheSettings(policy=policy, storage=storage, neighbors=5)
    cache = built(tmp_path / "cache", settings)
    told = CacheSize.of(settings, DOCUMENTS, DIM, keep=2, tokens_per_document=7)
    arrays = cache._state.folder.arrays
    assert told.rows == sum(a.nbytes for name, a in arrays.items() if not name.startswith("map_"))
    assert 0 <= size_of(tmp_path / "cache") - told.rows - (DIM + 1) ** 2 * 4 < HEADERS


@pytest.mark.parametrize("documents", [1, 20, 24])
def test_token_ids_are_as_large_as_said(tmp_path, monkeypatch, documents):
    monkeypatch.setattr("train.disk.token_ids.PART_ROWS", 8)
    monkeypatch.setattr("train.plan.cache_size.PART_ROWS", 8)
    texts = [f"document {'long ' * number}" for number in range(documents)]
    tokens = CorpusTokenizer(lambda batch: [list(range(len(text))) for text in batch], "characters", tmp_path)
    CorpusTexts(texts, token_counts=tokens).measured(Replicas())
    told = CacheSize.of(CorpusCacheSettings(), documents, DIM, keep=2, tokens_per_document=fmean(map(len, texts)))
    assert told.tokens == sum(file.stat().st_size for file in tmp_path.glob("*/*"))


def test_drift_maps_stay_within_their_bound(tmp_path):
    settings = CorpusCacheSettings(policy="local+map", max_maps=2, budget_tokens=12, neighbors=5)
    cache = built(tmp_path / "cache", settings)
    query = encoder()(["document 0"])
    for step in range(1, 6):
        cache.refresh(Hits(query, cache.search(query, 4).rows, [np.array([0])]), encoder(step / 10), 12, step=step)
    cache.save()
    told = CacheSize.of(settings, DOCUMENTS, DIM, keep=2, tokens_per_document=7)
    held = cache._state.drift
    assert len(held.keys) == 2
    assert told.maps == held.composed.nbytes + held.gram.nbytes
    assert told.rows + told.maps <= size_of(tmp_path / "cache") < told.rows + told.maps + HEADERS


def test_the_configurations_of_1_5b_and_7b():
    """Regression: the comments said 6,144 and 7,168 bytes per document, and forgot the float32 originals."""
    settings = CorpusCacheSettings(policy="local+map", storage="bfloat16", budget_limit_tokens=4194304)
    assert (
        CacheSize.of(settings, 1_000_000, 1536, keep=2, tokens_per_document=7).bytes_per_document
        == 1536 * (2 + 4) + 12 + 64
    )
    assert (
        CacheSize.of(settings, 1_000_000, 3584, keep=2, tokens_per_document=7).bytes_per_document
        == 3584 * (2 + 4) + 12 + 64
    )
    without = settings.replaced(policy="local", storage="float32")
    assert (
        CacheSize.of(without, 1_000_000, 1536, keep=2, tokens_per_document=7).bytes_per_document == 1536 * 4 + 12 + 64
    )


def test_copies_on_disk():
    """A run at its largest: the working cache, `keep` checkpoints, the best one, and the one that is being written."""
    settings = CorpusCacheSettings(policy="local", log_megabytes=1)
    told = CacheSize.of(settings, 1000, 10, keep=4, tokens_per_document=50)
    assert told.tokens == 1000 * (4 * 50 + 8) + 56 + 8
    assert told.disk == 7 * told.rows + (1 << 20) + told.tokens
    assert "0.00 GiB of token ids: " in told.lines(None)[1]
    assert "0.00 GiB of token ids at most: " in told.lines(None, bound=True)[1]
    assert "7 copies" in told.lines(None)[1]
    assert "(assumed)" in told.lines(None)[0]
    assert "corpus texts and ids" in told.lines(10**9)[2]


def test_bytes_of_a_text():
    assert text_bytes("x" * 1000, "1") - text_bytes("", "1") == 1000
    assert text_bytes("é" * 1000 + "語", "1") > 2000, "one character outside of Latin-1 doubles all of them"
