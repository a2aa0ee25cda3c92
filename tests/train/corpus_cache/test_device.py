"""The cache on a device, in blocks: what numpy on the processor gives.

The device is the processor's torch here, through the same copies and blocks as a GPU's; `-m gpu` runs them there too.
"""

import numpy as np
import pytest
import torch

from search_r3_mteb.search.device_rows import DeviceRows
from search_r3_mteb.search.storage import unpack
from tests.train.corpus_cache.test_cache import DIM, TEXTS, Encoder, N, batch, everything, truth
from train.config.corpus_cache import CorpusCacheSettings
from train.corpus_cache.cache import CorpusCache

CPU = torch.device("cpu")
GPU = pytest.param(torch.device("cuda"), marks=pytest.mark.gpu)
ROW = DIM * 4
RESIDENT = (0.0, 200 * ROW * 1e-9, 1.0)  # nothing, a part, everything


def build(folder, device=None, policy="local+map", **settings):
    settings = CorpusCacheSettings(policy=policy, neighbors=6, encode_rows=128, **settings)
    cache = CorpusCache.build(TEXTS, Encoder(), folder=folder, settings=settings, fingerprint="weights")
    return cache.on(device)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of 64 rows of float32, although the setting counts megabytes."""
    whole = DeviceRows.__init__

    def small(self, host, device, *, block_bytes, resident_bytes):
        assert block_bytes == 1 << 20
        whole(self, host, device, block_bytes=64 * ROW, resident_bytes=resident_bytes)

    monkeypatch.setattr(DeviceRows, "__init__", small)


@pytest.mark.parametrize("device", [CPU, GPU])
@pytest.mark.parametrize("resident", RESIDENT)
@pytest.mark.parametrize("storage", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("policy", ["local", "local+map"])
def test_a_cache_on_a_device_equals_one_of_numpy(tmp_path, policy, storage, resident, device):
    plain = build(tmp_path / "plain", None, policy, storage=storage)
    blocks = {"block_megabytes": 1, "device_gigabytes": resident}
    there = build(tmp_path / "there", device, policy, storage=storage, **blocks)
    queries = batch(plain, 9, size=50).queries
    for step in range(1, 7):
        hits = batch(plain, step)
        assert (there.search(hits.queries, 5).rows == hits.rows).all()
        assert (plain.refresh(hits, Encoder(step), 150).rows == there.refresh(hits, Encoder(step), 150).rows).all()
        one, other = plain.search(queries, 12), there.search(queries, 12)
        assert (one.rows == other.rows).all()
        np.testing.assert_allclose(other.scores, one.scores, atol=1e-5)
    rows = np.arange(N)
    np.testing.assert_allclose(there.values(rows), plain.values(rows), atol=2e-4)
    close = {"float32": 1e-5, "bfloat16": 2**-8, "float16": 2**-11}[storage]
    np.testing.assert_allclose(unpack(np.array(there.vectors)), unpack(np.array(plain.vectors)), atol=close)
    for name in ("row_step", "retrieved"):
        assert (everything(there)[name] == everything(plain)[name]).all()
    there.save(fingerprint="weights")
    again = CorpusCache.load(tmp_path / "there", TEXTS, fingerprint="weights", dim=DIM)
    assert (again.vectors == there.vectors).all()
    there.rebuild(Encoder(8), step=8)
    assert (there.search(truth(8)[:40], 1).rows[:, 0] == np.arange(40)).all()
