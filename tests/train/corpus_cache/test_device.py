"""The cache on a device, in blocks: what numpy on the processor gives.

The device is the processor's torch here, through the same copies and blocks as a GPU's; `-m gpu` runs them there too.
"""

import numpy as np
import pytest
import torch

from search_r3_mteb.search import device_search as module
from search_r3_mteb.search import products
from search_r3_mteb.search.device_rows import DeviceRows
from search_r3_mteb.search.device_search import device_search
from search_r3_mteb.search.exact import exact_search
from search_r3_mteb.search.products import as_array, plain_arithmetic
from search_r3_mteb.search.storage import pack, unpack
from tests.train.corpus_cache.test_cache import DIM, TEXTS, Encoder, N, batch, everything, truth
from tests.vectors import unit
from train.config.corpus_cache import CorpusCacheSettings
from train.corpus_cache.cache import CorpusCache
from train.corpus_cache.drift_map import DriftMap
from train.corpus_cache.files import open_folder
from train.corpus_cache.state import opened_state

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


def test_the_settings_reach_the_device(tmp_path):
    """Without any of the three the sizes would be others, or the run's device not used."""
    cache = build(tmp_path, CPU, storage="bfloat16", block_megabytes=1, device_gigabytes=150 * DIM * 2 * 1e-9)
    copies = cache._state.device
    assert (copies.values.block_rows, copies.originals.block_rows) == (128, 64)
    assert (copies.values.resident_rows, copies.originals.resident_rows) == (128, 0)
    more = build(tmp_path / "more", CPU, block_megabytes=1, device_gigabytes=1.0)._state.device
    assert (more.values.resident_rows, more.originals.resident_rows) == (N, N)
    gpu = torch.device("cuda", 1)
    assert CorpusCacheSettings().compute_device(gpu) == gpu
    assert CorpusCacheSettings().compute_device(CPU) is None
    assert CorpusCacheSettings(device="cpu").compute_device(gpu) is None


def test_equal_scores_and_open_bounds_are_settled_by_row(tmp_path):
    """300 copies of one document: more than the scan keeps, so a second scan looks for the rest."""
    documents = np.repeat(unit(np.random.default_rng(0).normal(size=(4, DIM))), 300, axis=0).astype(np.float32)
    for storage in ("float32", "bfloat16"):
        stored = DeviceRows(pack(documents, storage), CPU, block_bytes=1 << 20, resident_bytes=0)
        exact = None if storage == "float32" else lambda rows: torch.from_numpy(documents[rows])
        for k in (1, 10, 299, 301):
            found = device_search(documents[::300], stored, k, exact_rows=exact, scores_at_once=500)
            whole = exact_search(documents[::300], documents, k)
            assert (found.rows == whole.rows).all()
            np.testing.assert_allclose(found.scores, whole.scores, atol=1e-7)
            assert (found.rows[:, : min(k, 300)] == np.arange(4)[:, None] * 300 + np.arange(min(k, 300))).all()


def test_a_scan_without_room_for_rounding_loses_rows(monkeypatch):
    rng = np.random.default_rng(0)
    documents = unit(rng.normal(size=(1, DIM)) + 0.01 * rng.normal(size=(3000, DIM))).astype(np.float32)
    queries = documents[:20]
    stored = DeviceRows(pack(documents, "bfloat16"), CPU, block_bytes=1 << 20, resident_bytes=0)

    def found():
        return device_search(queries, stored, 10, exact_rows=lambda rows: torch.from_numpy(documents[rows])).rows

    assert (found() == exact_search(queries, documents, 10).rows).all()
    monkeypatch.setattr(module, "scan_error", lambda *given: 0.0)
    assert (found() != exact_search(queries, documents, 10).rows).any()


def test_a_memory_map_that_may_only_be_read_is_searched(tmp_path):
    documents = unit(np.random.default_rng(0).normal(size=(500, DIM))).astype(np.float32)
    np.save(tmp_path / "vectors.npy", pack(documents, "bfloat16"))
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    for resident in (0, 1 << 20):
        rows = DeviceRows(mapped, CPU, block_bytes=1 << 20, resident_bytes=resident)
        assert (device_search(documents[:9], rows, 1).rows[:, 0] == np.arange(9)).all()
    assert (exact_search(documents[:9], mapped, 1).rows[:, 0] == np.arange(9)).all()


def test_the_caller_may_have_switched_on_tf32_and_autocast():
    """Both would round a float32 scan to fewer digits than its bound allows for."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = "tf32"
        with torch.autocast("cpu", dtype=torch.bfloat16), plain_arithmetic(CPU):
            assert matmul.fp32_precision == "ieee"
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
        assert matmul.fp32_precision == "tf32"
    finally:
        matmul.fp32_precision = before


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_far_moves_do_not_depend_on_the_processor(monkeypatch, has_bfloat16):
    """The same rounded numbers are multiplied with and without bfloat16 instructions."""
    rng = np.random.default_rng(0)
    drift = DriftMap(DIM, CorpusCacheSettings(storage="bfloat16"))
    originals = unit(rng.normal(size=(300, DIM))).astype(np.float32)
    for size in (0.01, 0.3):
        move = size * rng.normal(size=(DIM + 1, DIM)).astype(np.float32)
        drift.extend(move, drift.gram, np.array([0]))
        rounded = unpack(pack(originals, "bfloat16")) @ unpack(
            pack(drift.composed[0, :-1] - np.eye(DIM, dtype=np.float32), "bfloat16")
        )
        wanted = unit(originals + rounded + drift.composed[0, -1])
        monkeypatch.setattr(products, "cpu_multiplies_bfloat16", lambda: has_bfloat16)
        drift._tensors.clear()
        np.testing.assert_allclose(drift.apply(originals, np.zeros(300, int)), wanted, atol=2**-9)


@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
@pytest.mark.parametrize("policy", ["local", "local+map"])
def test_a_process_that_does_not_write_follows_the_one_that_does(tmp_path, monkeypatch, policy, storage):
    """Both keep rows on their device: the reader's are stale until it hears what the writer has written."""
    settings = {"storage": storage, "block_megabytes": 1, "device_gigabytes": 1.0}
    writer = build(tmp_path, CPU, policy, **settings)
    reader = opened_state(open_folder(tmp_path, writable=False)[0], None)
    reader.put_on(CPU)
    queries = truth(5)[:60]
    records = []
    commit = writer._state.commit
    monkeypatch.setattr(writer._state, "commit", lambda record: (records.append(record), commit(record))[1])
    for step in range(1, 6):
        reader.search(queries, 10)  # which loads the rows
        report = writer.refresh(batch(writer, step), Encoder(step), 300, step=step)
        reader.apply([records[-1]])
        (_, kept), *_ = reader.device.values.blocks()
        stale = (as_array(kept) != reader.vectors[: len(kept)]).any()
        reader.followed(report.rows, moved="move" in records[-1])
        one, other = writer.search(queries, 10), reader.search(queries, 10)
        assert (one.rows == other.rows).all()
        assert (one.scores == other.scores).all()
        assert stale or step > 1
