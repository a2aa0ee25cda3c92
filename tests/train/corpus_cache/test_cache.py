"""The corpus cache: what a refresh changes, what it leaves, and that `load` never reads a half-written state.

This file is also the program of the two processes: `python test_cache.py FOLDER RANK`.
"""

import json
import logging
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.programs import loaded_after, printed, python, started
from tests.vectors import unit
from train.config.corpus_cache import CorpusCacheSettings
from train.corpus_cache.cache import CorpusCache
from train.corpus_cache.files import MANIFEST
from train.corpus_cache.refresh_policies import POLICIES, Hits
from train.corpus_cache.texts import CorpusTexts

N, DIM = 600, 16
TEXTS = [f"document number {row}" for row in range(N)]
_RNG = np.random.default_rng(0)
CENTRES = _RNG.normal(size=(30, DIM))
BASE = CENTRES[np.arange(N) % 30] + 0.5 * _RNG.normal(size=(N, DIM))
TURN, BEND = _RNG.normal(size=(DIM, DIM)), _RNG.normal(size=(DIM, DIM))
WEIGHTS = {"fingerprint": "weights", "dim": DIM}


class Encoder:
    """A model that drifts: mostly together (an affine move), a little each document its own way."""

    def __init__(self, step=0):
        self.step = step
        self.texts = []

    def vectors(self, rows):
        base = BASE[rows]
        return base + 0.01 * self.step * (base @ TURN + 1.0 + 0.2 * np.sin(base @ BEND))

    def __call__(self, texts):
        self.texts += texts
        return self.vectors([int(text.split()[-1]) for text in texts])


def truth(step):
    return unit(Encoder(step).vectors(np.arange(N)))


def batch(cache, step, size=8, seed=0):
    rng = np.random.default_rng([seed, step])
    positives = rng.integers(N, size=size)
    queries = unit(Encoder(step).vectors(positives) + 0.3 * rng.normal(size=(size, DIM)))
    return Hits(queries, cache.search(queries, 5).rows, positives[:, None].tolist())


def build(folder, policy="local+map", **settings):
    settings = {"neighbors": 6, "encode_rows": 128} | settings
    return CorpusCache.build(
        TEXTS, Encoder(), folder=folder, settings=CorpusCacheSettings(policy=policy, **settings), fingerprint="weights"
    )


def run(cache, steps, budget=150):
    """Refresh through `steps`; the reports."""
    return [cache.refresh(batch(cache, step), Encoder(step), budget, step=step) for step in steps]


def load(folder, **changes):
    return CorpusCache.load(folder, TEXTS, **(WEIGHTS | changes))


def everything(cache):
    """All that a refresh changes, by name."""
    drift = cache._state.drift
    maps = {"keys": drift.keys, "composed": drift.composed, "gram": drift.gram}
    return {name: np.array(array) for name, array in (dict(cache._state.folder.arrays) | maps).items()} | {
        "step": np.array(cache.step)
    }


def same(one, other):
    one, other = everything(one), everything(other)
    return [name for name in other if not name.startswith("map_") and not np.array_equal(one[name], other[name])] == []


def files(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


# ------------------------------------------------------------------------------------------------------ what it does


def test_build_holds_normalised_vectors_and_searches_them(tmp_path):
    cache = build(tmp_path)
    np.testing.assert_allclose(cache.vectors, truth(0), atol=1e-6)
    found = cache.search(truth(0)[:3], 4)
    assert found.rows[:, 0].tolist() == [0, 1, 2]
    np.testing.assert_allclose(found.scores[:, 0], 1.0, atol=1e-6)
    assert (len(cache), cache.dim, cache.step, cache.row_step.max()) == (N, DIM, 0, 0)
    assert not cache.mapped.any()


@pytest.mark.parametrize("policy", ["random", "local", "random+map", "local+map"])
def test_refreshed_rows_are_fresh_and_know_their_step(tmp_path, policy):
    cache = build(tmp_path, policy)
    for report in run(cache, range(1, 6)):
        assert 0 < report.tokens <= 150
        assert (cache.row_step[report.rows] <= cache.step).all()
    last = report.rows
    np.testing.assert_allclose(cache.values(last), truth(5)[last], atol=1e-6)
    assert (cache.row_step[last] == 5).all()
    assert not cache.mapped[last].any()
    assert (cache.row_step == 5).sum() == len(last) == round(report.share * N)


def test_only_the_selected_texts_are_encoded(tmp_path):
    cache, encoder = build(tmp_path), Encoder(1)
    report = cache.refresh(batch(cache, 1), encoder, 150)
    assert encoder.texts == [TEXTS[row] for row in report.rows]
    assert report.tokens == sum(1 + len(TEXTS[row]) // 4 for row in report.rows)


def test_local_refresh_takes_the_positives_and_the_retrieved_and_their_edges_follow(tmp_path):
    cache = build(tmp_path, "local", sweep_share=0.2)
    hits = batch(cache, 1)
    before = np.array(cache.neighbors)
    report = cache.refresh(hits, Encoder(1), 400)
    assert set(hits.positive_rows()) | set(hits.rows.ravel()) <= set(report.rows)
    untouched = np.setdiff1d(np.arange(N), report.rows)
    assert (cache.neighbors[untouched] == before[untouched]).all()
    assert (cache.neighbors[report.rows] != before[report.rows]).any()


def test_a_mapped_row_keeps_its_encoded_original(tmp_path):
    cache = build(tmp_path)
    run(cache, range(1, 9))
    rows = np.flatnonzero(cache.mapped)
    assert len(rows) > N / 2
    first = rows[cache.row_step[rows] == 0]
    np.testing.assert_allclose(cache.originals(first), truth(0)[first], atol=1e-6)
    np.testing.assert_allclose(
        cache.values(rows), cache._state.drift.apply(cache.originals(rows), cache.row_step[rows]), atol=1e-6
    )
    assert np.abs(cache.values(first) - cache.originals(first)).max() > 0.01


def error(cache, step):
    return np.linalg.norm(cache.values(np.arange(N)) - truth(step), axis=1).mean()


@pytest.mark.slow
def test_the_map_brings_the_rest_of_the_corpus_along(tmp_path):
    errors = {}
    for policy in ("none", "random", "local", "random+map", "local+map", "full"):
        cache = build(tmp_path / policy, policy)
        run(cache, range(1, 31), budget=60)
        errors[policy] = error(cache, 30)
    assert errors["full"] < 1e-6
    assert max(errors["random+map"], errors["local+map"]) < errors["none"] / 4
    assert min(errors["random"], errors["local"]) > errors["none"] / 2


@pytest.mark.parametrize("policy", POLICIES)
def test_budget_0_changes_nothing(tmp_path, policy):
    cache, encoder = build(tmp_path, policy), Encoder(1)
    run(cache, [1])
    before, on_disk = everything(cache), files(tmp_path)
    report = cache.refresh(batch(cache, 2), encoder, 0)
    assert (len(report.rows), report.tokens, report.step, encoder.texts) == (0, 0, 1, [])
    assert all(np.array_equal(before[name], array) for name, array in everything(cache).items())
    assert files(tmp_path) == on_disk


def test_full_equals_a_fresh_cache_bit_for_bit(tmp_path):
    cache = build(tmp_path / "kept", "full")
    run(cache, [1, 2, 3], budget=1)
    fresh = CorpusCache.build(TEXTS, Encoder(3), folder=tmp_path / "fresh", settings=cache.settings, step=3)
    for name in ("vectors", "row_step", "neighbors", "tokens"):
        assert np.array_equal(everything(cache)[name], everything(fresh)[name]), name
    stale = build(tmp_path / "stale", "none")
    assert not np.array_equal(stale.vectors, fresh.vectors)


@pytest.mark.parametrize("storage", ["float32", "float16", "bfloat16"])
def test_rebuild_equals_a_fresh_cache_whatever_happened_before(tmp_path, storage):
    cache = build(tmp_path / "kept", storage=storage)
    run(cache, range(1, 4))
    cache.rebuild(Encoder(4), step=4)
    fresh = CorpusCache.build(TEXTS, Encoder(4), folder=tmp_path / "fresh", settings=cache.settings, step=4)
    one, other = everything(cache), everything(fresh)
    assert [name for name in other if not np.array_equal(one[name], other[name])] == ["retrieved"]
    assert len(list((tmp_path / "kept").iterdir())) == len(list((tmp_path / "fresh").iterdir())), (
        "nothing is left behind"
    )


def test_frozen_documents_stay_exact_and_do_not_age(tmp_path):
    cache = build(tmp_path, "frozen")
    encoder = Encoder(0)  # the documents' weights never change
    for step in (1, 2, 3):
        report = cache.refresh(batch(cache, step), encoder, 500)
    assert (len(report.rows), encoder.texts) == (0, [])
    assert cache.step == 3
    assert cache.age().mean == cache.age(100).maximum == 0
    audit = cache.audit(100, encoder)
    assert (audit.reward_error, audit.recall_at_10) == (0.0, 1.0)


def test_ages(tmp_path):
    cache = build(tmp_path, "none")
    run(cache, [1, 2, 3])
    assert cache.age().mean == 3
    assert cache.age(10).median == 10
    swept = build(tmp_path / "swept", "local+map", sweep_share=1.0)
    run(swept, range(1, 31))
    assert swept.age().maximum < 30
    assert swept.age().mapped_share == pytest.approx(swept.mapped.mean())
    assert swept.age().mean == pytest.approx(30 - swept.row_step.mean())


def test_given_rows_are_refreshed_beside_the_budget(tmp_path):
    cache = build(tmp_path)
    given = np.array([5, 7, 5])
    hits = batch(cache, 1)
    plain = build(tmp_path / "plain").refresh(hits, Encoder(1), 150)
    report = cache.refresh(hits, Encoder(1), 150, given=given)
    assert set(report.rows) >= {5, 7}
    assert report.tokens <= 150, "what was given costs nothing"
    assert len(set(report.rows) - {5, 7}) >= len(set(plain.rows) - {5, 7})
    assert len(set(report.rows.tolist())) == len(report.rows)
    np.testing.assert_allclose(cache.values(given), truth(1)[given], atol=1e-6)


def test_an_encoder_that_fails_changes_nothing(tmp_path):
    cache = build(tmp_path)
    run(cache, [1])
    before, on_disk = everything(cache), files(tmp_path)

    def broken(texts):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        cache.refresh(batch(cache, 2), broken, 100)
    assert all(np.array_equal(before[name], array) for name, array in everything(cache).items())
    assert files(tmp_path) == on_disk
    run(cache, [2])
    assert cache.step == 2


@pytest.mark.parametrize(("storage", "tolerance"), [("float16", 1e-4), ("bfloat16", 1e-3)])
def test_half_storage_ranks_like_float32(tmp_path, storage, tolerance):
    """What the maps add is computed in half precision; nothing else is."""
    whole, half = build(tmp_path / "whole"), build(tmp_path / "half", storage=storage)
    for cache in (whole, half):
        run(cache, range(1, 6))
    queries = batch(whole, 9, size=50).queries
    assert half.vectors.itemsize == 2
    one, other = whole.search(queries, 10), half.search(queries, 10)
    assert (one.rows == other.rows).mean() > 0.99
    np.testing.assert_allclose(one.scores, other.scores, atol=tolerance)
    rows = np.flatnonzero(~whole.mapped)
    np.testing.assert_allclose(whole.values(rows), half.values(rows), atol=1e-6)


def test_ivf_follows_refreshes_and_is_scored_exactly(tmp_path):
    cache = build(tmp_path, "local+map", index_maps=4)
    queries = batch(cache, 9, size=50).queries
    cache.search(queries, 10, exact=False)
    for step in range(1, 8):  # the index is rebuilt on the way
        cache.refresh(batch(cache, step), Encoder(step), 300, step=step)
        exact, near = cache.search(queries, 10), cache.search(queries, 10, exact=False)
        found = [len(set(one) & set(other)) for one, other in zip(exact.rows, near.rows, strict=True)]
        assert np.mean(found) > 9
        shared = exact.rows == near.rows
        np.testing.assert_allclose(near.scores[shared], exact.scores[shared], atol=1e-6)
    refreshed = np.flatnonzero(cache.row_step == 7)
    own = cache.search(cache.values(refreshed), 1, exact=False)
    assert (own.rows[:, 0] == refreshed).mean() > 0.95


# ------------------------------------------------------------------------------------------------------------- audit


def test_audit_reports_drift_and_changes_no_vector(tmp_path):
    cache = build(tmp_path, "none")
    run(cache, [1, 2])
    before, encoder = everything(cache), Encoder(2)
    exact, stale = cache.audit(200, Encoder(0)), cache.audit(200, encoder)
    assert (exact.cosine_drift, exact.recall_at_10, exact.reward_error) == (
        pytest.approx(0, abs=1e-6),
        1.0,
        pytest.approx(0, abs=1e-6),
    )
    assert stale.rows == len(encoder.texts) == 200
    assert stale.queries == "rollouts"
    rows = [int(text.split()[-1]) for text in encoder.texts]
    cosine = np.einsum("rd,rd->r", truth(2)[rows], cache.values(np.array(rows))).mean()
    assert stale.cosine_drift == pytest.approx(1 - cosine, abs=1e-6)
    assert stale.reward_error > 0.001
    assert stale.recall_at_10 < 1
    assert all(np.array_equal(before[name], array) for name, array in everything(cache).items())


def test_audit_reward_error_by_hand(tmp_path):
    """Two documents, a query on the first: stale cosine 1 at rank 1, fresh 0.6 at rank 2, so |1 - 0.6 / log2(3)|."""
    vectors = {"first": [1.0, 0.0], "second": [0.0, 1.0]}
    cache = CorpusCache.build(
        list(vectors), lambda texts: np.array([vectors[text] for text in texts]), folder=tmp_path,
        settings=CorpusCacheSettings(policy="none"),
    )  # fmt: skip
    query = np.array([[1.0, 0.0]], np.float32)
    cache.refresh(Hits(query, cache.search(query, 2).rows, [[0]]), None, 1)
    vectors = {"first": [0.6, 0.8], "second": [0.8, 0.6]}
    audit = cache.audit(2, lambda texts: np.array([vectors[text] for text in texts]))
    assert audit.reward_error == pytest.approx(1 - 0.6 / np.log2(3))
    assert audit.cosine_drift == pytest.approx(0.4)
    assert audit.recall_at_10 == 0.0  # of one rank: with two rows there is one to be told apart


def test_audit_before_any_rollout_ranks_documents_for_documents(tmp_path):
    cache = build(tmp_path)
    assert cache.audit(100, Encoder(0)).reward_error == pytest.approx(0, abs=1e-6)
    audit = cache.audit(100, Encoder(20))
    assert audit.queries == "documents"
    assert audit.reward_error > 0.01


def test_the_budget_grows_with_the_error_up_to_its_bound_and_then_a_rebuild_is_advised(tmp_path, caplog):
    cache = build(tmp_path, "random", error_bound=0.001, budget_growth=2.0, budget_tokens=100, budget_limit_tokens=400)
    run(cache, [1])
    spent = [run(cache, [2])[0].budget]
    with caplog.at_level(logging.WARNING):
        for step in (3, 4, 5):
            audit = cache.audit(200, Encoder(30))
            spent.append(run(cache, [step])[0].budget)
    assert spent == [150, 300, 600, 600]
    assert audit.rebuild_advised
    assert [("grows" in text, "rebuild is advised" in text) for text in caplog.messages] == [
        (True, False), (True, False), (False, True)
    ]  # fmt: skip
    assert load(tmp_path).budget_factor == 4.0
    cache.rebuild(Encoder(5), step=5)
    assert [cache.audit(200, Encoder(5)).budget_factor for _ in range(3)] == [2.0, 1.0, 1.0]


# ------------------------------------------------------------------------------------------ save, load, and crashes


@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
@pytest.mark.parametrize("policy", ["local", "local+map"])
def test_load_goes_on_like_the_cache_that_was_never_closed(tmp_path, policy, storage):
    cache = build(tmp_path / "whole", policy, storage=storage)
    run(cache, range(1, 5))
    cache.save(tmp_path / "snapshot", fingerprint="later")
    other = load(tmp_path / "snapshot", fingerprint="later", working=tmp_path / "copy")
    assert same(cache, other)
    snapshot = files(tmp_path / "snapshot")
    for one in (cache, other):
        run(one, range(5, 9))
    assert same(cache, other)
    assert same(cache, load(tmp_path / "whole", fingerprint="later")), "from the log of changes"
    assert files(tmp_path / "snapshot") == snapshot, "a copy was changed, not the snapshot"


def test_load_goes_on_alike_where_the_first_refresh_is_in_the_step_of_the_build(tmp_path):
    """As stage 2 does: the given rows of step 0 are refreshed under the weights that built the cache."""

    def refresh(cache, step):
        given = np.arange(0, N, 3) if step == 0 else None
        report = cache.refresh(batch(cache, step), Encoder(step), 1500, step=step, given=given)
        assert len(set(report.rows.tolist())) == len(report.rows) < N
        return report.rows.tolist()

    cache = build(tmp_path / "cache", "local", sweep_share=0.9)
    refresh(cache, 0)
    cache.save(tmp_path / "snapshot")
    other = load(tmp_path / "snapshot", working=tmp_path / "copy")
    for step in range(1, 8):
        assert refresh(cache, step) == refresh(other, step)
    assert same(cache, other)


def test_a_snapshot_replaces_an_older_one_in_the_same_folder(tmp_path):
    cache = build(tmp_path / "cache")
    for step in (1, 2):
        run(cache, [step])
        cache.save(tmp_path / "snapshot")
        assert same(cache, load(tmp_path / "snapshot"))
    assert len(list((tmp_path / "snapshot").iterdir())) == len(list((tmp_path / "cache").iterdir()))


def test_a_log_that_outgrew_its_limit_is_folded(tmp_path):
    cache = build(tmp_path, log_megabytes=0)
    run(cache, [1, 2])
    assert all(not data for name, data in files(tmp_path).items() if name.endswith(".log"))
    assert same(cache, load(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fingerprint": "others"}, "saved with weights 'weights', the model's are 'others'"),
        ({"dim": 32}, f"dimension {DIM}, the model gives 32"),
        ({"corpus": TEXTS[:-1]}, "not the 599 given ones"),
        ({"corpus": TEXTS[::-1]}, "would name other documents"),
        ({"settings": CorpusCacheSettings(storage="float16", neighbors=6)}, "built with storage 'float32'"),
        ({"settings": CorpusCacheSettings(neighbors=9)}, "6 neighbours"),
    ],
)
def test_a_foreign_cache_is_refused(tmp_path, changes, message):
    build(tmp_path)
    with pytest.raises(ValueError, match=message):
        CorpusCache.load(tmp_path, **({"corpus": TEXTS} | WEIGHTS | changes))


def test_a_policy_with_map_needs_originals(tmp_path):
    build(tmp_path / "without", "local")
    with pytest.raises(ValueError, match="keep_originals=True"):
        load(tmp_path / "without", settings=CorpusCacheSettings(policy="local+map", neighbors=6))
    build(tmp_path / "with", "local", keep_originals=True)
    cache = load(tmp_path / "with", settings=CorpusCacheSettings(policy="local+map", neighbors=6))
    run(cache, [1])
    assert cache.mapped.any()


def test_no_cache_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no finished corpus cache"):
        load(tmp_path)


def test_a_build_that_was_killed_leaves_no_cache_or_the_one_before(tmp_path):
    calls = []

    def dies_later(texts):
        calls.append(texts)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return Encoder(9)(texts)

    settings = CorpusCacheSettings(neighbors=6, encode_rows=128)
    with pytest.raises(KeyboardInterrupt):
        CorpusCache.build(TEXTS, dies_later, folder=tmp_path, settings=settings)
    with pytest.raises(FileNotFoundError, match="its build was killed"):
        load(tmp_path)
    cache = build(tmp_path)
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        CorpusCache.build(TEXTS, dies_later, folder=tmp_path, settings=settings)
    assert same(cache, load(tmp_path))


def test_damaged_files_are_named(tmp_path):
    cache = build(tmp_path)
    run(cache, [1, 2])
    log = next(tmp_path.glob("*.log"))
    data = bytearray(log.read_bytes())
    data[100] ^= 1
    log.write_bytes(data)
    with pytest.raises(ValueError, match="damaged at byte 0"):
        load(tmp_path)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(ValueError, match="format 99"):
        load(tmp_path)
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(ValueError, match="line 1: not JSON"):
        load(tmp_path)
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    vectors = next(tmp_path.glob("*vectors.npy"))
    for damage in (b"PK\x03\x04", b""):
        vectors.write_bytes(damage + vectors.read_bytes()[4:] if damage else damage)
        with pytest.raises(ValueError, match=r"vectors.npy is damaged"):
            load(tmp_path)
    vectors.unlink()
    with pytest.raises(FileNotFoundError, match="copied incompletely"):
        load(tmp_path)


def test_a_log_cut_at_any_byte_is_the_state_before_or_after(tmp_path):
    """A process killed inside a write leaves the second of two records cut off, over the maps of the first.

    Maps that hold what the log does not say are damage, which a kill does not make.
    """
    cache = build(tmp_path / "cache")
    states, contents = {}, {}
    for step in (1, 2):
        run(cache, [step])
        states[step], contents[step] = everything(cache), files(tmp_path / "cache")
    log = next((tmp_path / "cache").glob("*.log"))
    whole = contents[1] | {log.name: contents[2][log.name]}
    first = len(contents[1][log.name])
    lengths = [*range(first + 400, len(whole[log.name]), 5003), len(whole[log.name]) - 1, len(whole[log.name])]
    for length in lengths:
        for name, data in whole.items():
            (tmp_path / "cache" / name).write_bytes(data if name != log.name else data[:length])
        again = load(tmp_path / "cache")
        truth, found = states[2 if length == len(whole[log.name]) else 1], everything(again)
        assert [name for name in truth if name[:4] != "map_" and not np.array_equal(truth[name], found[name])] == []
    for length in (0, first, first + 400):
        for name, data in contents[2].items():
            (tmp_path / "cache" / name).write_bytes(data if name != log.name else data[:length])
        with pytest.raises(ValueError, match=r"neighbors.npy is damaged: it does not match its checksum"):
            load(tmp_path / "cache")


KILLING = Path(__file__).with_name("cache_killing.py")


@pytest.mark.slow  # in the suite: tests/attack, "kills/cache"
def test_kill_9_at_random_moments(tmp_path):
    assert python(KILLING, tmp_path, "random", "12").startswith("12 kills")


@pytest.mark.slow
def test_kill_9_at_every_60th_line(tmp_path):
    assert int(python(KILLING, tmp_path, "lines", "60").split()[0]) > 8


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("random", "50"), ("lines", "7")])
def test_kill_9_thoroughly(tmp_path, arguments):
    python(KILLING, tmp_path, *arguments)


# --------------------------------------------------------------------------------------------------------- bad input


def test_ids(tmp_path):
    cache = CorpusCache.build(
        {f"d{row}": {"title": "A", "text": text} for row, text in enumerate(TEXTS)}, Encoder(), folder=tmp_path
    )
    assert cache.rows_of(["d7", "d0"]).tolist() == [7, 0]
    assert cache.texts.texts[0] == "A document number 0"
    with pytest.raises(ValueError, match="'d600' is not among the 600 documents"):
        cache.rows_of(["d1", "d600"])
    plain = build(tmp_path / "plain")
    assert plain.rows_of(["3", "599"]).tolist() == [3, 599]
    for unknown in ("600", "03", "-1", "x"):
        with pytest.raises(ValueError, match="can never be retrieved"):
            plain.rows_of([unknown])


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        (CorpusTexts(["a", "b"]), None),
        ([], "at least one text"),
        ("text", "at least one text"),
        (["a", ""], "Document 1 is empty"),
        (["a", " \n"], "Document 1 is empty"),
        (["a", "b"], None),
    ],
)
def test_corpora(tmp_path, corpus, message):
    def encode(texts):
        return np.eye(4)[[len(text) for text in texts]] + 0.1

    if message is None:
        assert len(CorpusCache.build(corpus, encode, folder=tmp_path)) == 2
    else:
        with pytest.raises(ValueError, match=message):
            CorpusCache.build(corpus, encode, folder=tmp_path)


def test_texts_are_checked():
    with pytest.raises(ValueError, match=r"'x' occurs more than once \(1 such rows\)"):
        CorpusTexts(["a", "b", "c"], ids=["x", "y", "x"])
    with pytest.raises(ValueError, match="2 ids for 1 texts"):
        CorpusTexts(["a"], ids=["x", "y"])
    with pytest.raises(TypeError, match="Document 1 is of type int"):
        CorpusTexts(["a", 3]).count()
    with pytest.raises(ValueError, match="one number of at least 1"):
        CorpusTexts(["a", "b"], token_counts=[1, 0]).count()
    with pytest.raises(ValueError, match="one number of at least 1"):
        CorpusTexts(["a", "b"], token_counts=lambda texts: [1]).count()
    assert CorpusTexts(
        ["a", "b c"], token_counts=lambda texts: [len(text.split()) for text in texts]
    ).count().tolist() == [1, 2]
    assert CorpusTexts(["ab\ud800", "\x00"]).count().min() == 1


@pytest.mark.parametrize(
    ("encode", "message"),
    [
        (lambda texts: np.ones((len(texts) - 1, DIM)), "it must be"),
        (lambda texts: np.ones((len(texts), DIM + 1)), f"dimension {DIM + 1}, the cache holds {DIM}"),
        (lambda texts: np.full((len(texts), DIM), np.nan), "length nan"),
        (lambda texts: np.zeros((len(texts), DIM)), "no direction"),
    ],
)
def test_encoders_are_checked(tmp_path, encode, message):
    cache = build(tmp_path)
    before = everything(cache)
    with pytest.raises(ValueError, match=message):
        cache.refresh(batch(cache, 1), encode, 100)
    assert all(np.array_equal(before[name], array) for name, array in everything(cache).items())


def test_refresh_is_checked(tmp_path):
    cache = build(tmp_path)
    run(cache, [3])
    with pytest.raises(ValueError, match="a budget counts tokens"):
        cache.refresh(batch(cache, 1), Encoder(), -1)
    with pytest.raises(ValueError, match="steps do not go back"):
        cache.refresh(batch(cache, 1), Encoder(), 10, step=2)
    with pytest.raises(ValueError, match="no positive document"):
        Hits(truth(0)[:1], np.zeros((1, 2), int), [[]])
    with pytest.raises(ValueError, match=f"names row {N}"):
        cache.refresh(Hits(truth(0)[:1], np.array([[N]]), [[0]]), Encoder(), 10)
    with pytest.raises(ValueError, match="at least 2"):
        cache.audit(1, Encoder())


def test_more_wanted_than_there_are(tmp_path):
    cache = CorpusCache.build(
        ["a", "bb", "ccc"], lambda texts: np.eye(5)[[len(t) for t in texts]] + 0.1, folder=tmp_path
    )
    for exact in (True, False):
        found = cache.search(cache.values(np.arange(2)), 100, exact=exact)
        assert np.sort(found.rows, axis=1).tolist() == [[0, 1, 2]] * 2
    assert cache.audit(100, lambda texts: np.eye(5)[[len(t) for t in texts]] + 0.1).rows == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policy": "lokal"}, "policy\n.*'lokal' is none of the names none, random"),
        ({"storage": "int8"}, "storage\n.*'bfloat16'"),
        ({"neighbors": 0}, "neighbors\n.*greater than or equal to 1"),
        ({"sweep_share": 1.5}, "sweep_share\n.*less than or equal to 1"),
        ({"map_ridge": 0.0}, "map_ridge\n.*greater than or equal to"),
        ({"budget_growth": 0.5}, "would shrink the budget"),
        ({"keep_originals": False}, "Leave keep_originals out"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        CorpusCacheSettings(**settings)


def test_importing_the_cache_loads_no_torch():
    """A cache is opened by tools and by short-lived processes: torch alone takes seconds."""
    heavy = ["torch", "faiss", "transformers", "mteb"]
    assert loaded_after("import train.corpus_cache.cache", heavy) == set()
    assert loaded_after("import faiss, train.corpus_cache.cache", heavy) == {"faiss"}


# ------------------------------------------------------------------------------------------------------ two processes


def two_steps(folder, rank, replicas):
    """The program of one process: both have half of the batch; arrays as this process sees them."""
    cache = CorpusCache.build(
        TEXTS, Encoder(), folder=folder, settings=CorpusCacheSettings(neighbors=6, encode_rows=128), replicas=replicas
    )
    encoded = []
    for step in (1, 2, 3):
        whole = batch(cache, step)
        half = slice(None) if replicas is None else slice(rank * 4, rank * 4 + 4)
        encoder = Encoder(step)
        hits = Hits(whole.queries[half], whole.rows[half], whole.positives[half])
        report = cache.refresh(hits, encoder, 150)
        encoded.append((len(encoder.texts), len(report.rows)))
        audit = cache.audit(64, Encoder(step))
    cache.save()
    return cache, encoded, audit


def process(folder, rank):
    import torch.distributed as dist

    from train.processes.replicas import ProcessGroup

    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    cache, encoded, audit = two_steps(folder / "cache", rank, ProcessGroup(local_rank=rank))
    assert isinstance(cache._state.folder.arrays["vectors"], np.memmap)
    assert cache._state.folder.arrays["vectors"].mode == ("r+" if rank == 0 else "r")
    cache = CorpusCache.load(folder / "cache", TEXTS, fingerprint="", dim=DIM, replicas=ProcessGroup(local_rank=rank))
    before = everything(cache)
    broken = Encoder(4) if rank == 0 else lambda texts: np.full((len(texts), DIM), np.nan)
    wrong, message = ((RuntimeError, "Process 1 could not"), (ValueError, "length nan"))[rank]
    with pytest.raises(wrong, match=message):
        cache.refresh(batch(cache, 4), broken, 150)
    assert all(np.array_equal(before[name], array) for name, array in everything(cache).items())
    cache.refresh(batch(cache, 4), Encoder(4), 150)
    kept = everything(cache) | {
        "age": np.array([cache.age().mean, cache.age().mapped_share]),
        "encoded": np.array(encoded),
    }
    np.savez(folder / f"{rank}.npz", **kept, factor=np.array(audit.budget_factor))
    dist.barrier()


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    printed(*(started(__file__, folder, rank) for rank in (0, 1)), timeout=300)
    return folder, [dict(np.load(folder / f"{rank}.npz")) for rank in (0, 1)]


def test_replicas_are_equal(processes):
    for name, array in processes[1][0].items():
        if name != "encoded":
            assert np.array_equal(array, processes[1][1][name]), name


def test_each_process_encodes_its_share(processes):
    first, second = (result["encoded"] for result in processes[1])
    assert (first[:, 1] == second[:, 1]).all()
    assert (first[:, 0] + second[:, 0] == first[:, 1]).all()
    assert (np.abs(first[:, 0] - second[:, 0]) <= 1).all()


def test_two_processes_equal_one(processes, tmp_path):
    cache, _, audit = two_steps(tmp_path, 0, None)
    hits = batch(cache, 4)
    cache.refresh(
        Hits(*(np.concatenate([part, part]) for part in (hits.queries, hits.rows, hits.positives))), Encoder(4), 150
    )
    result = processes[1][0]
    for name in ("row_step", "neighbors", "retrieved", "keys", "step"):
        assert np.array_equal(result[name], everything(cache)[name]), name
    np.testing.assert_allclose(result["vectors"], cache.vectors, atol=1e-5)
    assert result["factor"] == audit.budget_factor


def test_a_group_is_needed_for_a_group_of_processes():
    from train.processes.replicas import ProcessGroup

    with pytest.raises(ValueError, match=r"Replicas\(\)"):
        ProcessGroup()


# -------------------------------------------------------------------------------------------------------------- cost


def script(name, *arguments):
    """What a script of results/corpus_cache prints."""
    return python(f"results/corpus_cache/{name}.py", *arguments)


@pytest.mark.slow
def test_cost_of_a_refresh_does_not_depend_on_the_corpus():
    """1M rows against 10k rows, the same budget, the map off: at most 1.5 times, and the map's cost is linear."""
    found = json.loads(script("cost", "--rounds", "40"))
    assert found["ratio_map_off"] <= 1.5, found
    per_row = [case["map_seconds_per_row"] for case in found["cases"] if case["map_seconds_per_row"]]
    assert len(per_row) == 2
    assert max(per_row) < 3 * min(per_row), found


@pytest.mark.slow
def test_large_corpora_in_small(tmp_path):
    found = json.loads(script("large", "--rows", "20000", "--folder", str(tmp_path / "large")))
    assert found["ivf_recall_at_10"] > 0.8
    assert found["loaded_equals_saved"]


@pytest.mark.slow
def test_10_million_rows(tmp_path):
    """Built, refreshed and searched on two cores and 24 GiB: minutes, 8 GB of disk."""
    found = json.loads(script("large", "--folder", str(tmp_path / "large")))
    assert found["rows"] == 10_000_000
    assert found["peak_gib"] < 20
    assert found["refresh_median_seconds"] < 5
    assert found["ivf_recall_at_10"] > 0.8
    assert found["loaded_equals_saved"]


@pytest.mark.slow
def test_bench_measures_every_policy_along_a_real_run(tmp_path):
    """The whole of `make bench-cache` with a random model, three steps and 2,000 documents."""
    from search_r3_mteb.encoder.checkpoints import save
    from train.config.model import ScratchSettings
    from train.model.scratch import build as build_model

    save(
        build_model(
            ScratchSettings(hidden_size=32, intermediate_size=64, layers=1, heads=2, key_value_heads=2), seed=0
        ),
        tmp_path / "model",
    )
    script(
        "bench", "--rows", "2000", "--steps", "3", "--at", "2", "3", "--heldout", "8",
        "--model", str(tmp_path / "model"), "--work", str(tmp_path / "work"), "--output", str(tmp_path / "output"),
        "--set", "rollout.prompts_per_step=2", "rollout.group_size=2", "data.evaluation=[]", "replay.rows_per_step=2",
    )  # fmt: skip
    records = json.loads((tmp_path / "output" / "summary.json").read_text())
    assert [(one["policy"], one["step"]) for one in records] == [
        (policy, step) for policy in POLICIES for step in (2, 3)
    ]
    assert list(records[0]) == [
        "rows", "policy", "step", "share_reencoded", "refresh_seconds", "reward_error_batch", "reward_error_heldout",
        "reward_correlation", "recall_at_10", "commit", "command",
    ]  # fmt: skip
    by_policy = {one["policy"]: one for one in records if one["step"] == 3}
    assert by_policy["full"]["reward_error_batch"] == by_policy["full"]["reward_error_heldout"] == 0
    assert by_policy["none"]["share_reencoded"] == by_policy["frozen"]["share_reencoded"] == 0
    assert 0.01 < by_policy["local+map"]["share_reencoded"] <= 0.02
    assert (tmp_path / "output" / "figure.png").stat().st_size > 10_000
    assert "local+map" in (tmp_path / "output" / "table.md").read_text()


if __name__ == "__main__":
    process(Path(sys.argv[1]), int(sys.argv[2]))
