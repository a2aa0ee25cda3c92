"""Flat, IVF and HNSW: which is chosen, that its settings count, and that it finds living rows with exact scores."""

import numpy as np
import pytest

from search_r3_mteb.indexing.approximate import FAISS_FILE
from search_r3_mteb.indexing.parts import VECTORS_FILE
from search_r3_mteb.indexing.settings import IndexSettings
from search_r3_mteb.indexing.snapshot import open_snapshot
from search_r3_mteb.indexing.state import IndexState
from search_r3_mteb.indexing.writing import compact, remove, write_more, write_new
from search_r3_mteb.search.exact import exact_search

DIM, ROWS = 16, 4000


def vectors(rows, seed=0):
    random = np.random.default_rng(seed)
    made = np.repeat(np.random.default_rng(9).standard_normal((40, DIM)), -(-rows // 40), axis=0)[:rows]
    made = (made + 0.3 * random.standard_normal((rows, DIM))).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def block(rows, prefix="d", seed=0):
    return [(f"{prefix}{n}", "", f"text {n}") for n in range(rows)], vectors(rows, seed)


def new(folder, rows=ROWS, **settings):
    encoding = {"dim": DIM, "dtype": "float32", "max_length": 1, "prompt": "", "checkpoint": ""}
    state = IndexState(encoding, {"name": None, "revision": None}, IndexSettings(**settings))
    write_new(folder, state, [block(rows)])
    return opened(folder)


def opened(folder):
    return open_snapshot(folder, set(), verify=True)


def ids(snapshot, queries, k=10):
    found = snapshot.nearest(queries, k)
    documents = snapshot.read(place for hits in found for place, _ in hits)
    return [[documents[place][0] for place, _ in hits] for hits in found]


def recall(found, wanted):
    return np.mean([len(set(one) & set(other)) / len(other) for one, other in zip(found, wanted, strict=True)])


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_a_kind_finds_nearly_all_with_exact_scores_also_after_changes(tmp_path, kind):
    queries = vectors(50, seed=5)
    snapshot = new(tmp_path / "index", kind=kind)
    assert [part.record.kind for part in snapshot.parts] == [kind]
    exact = exact_search(queries, vectors(ROWS), 10)
    assert recall(ids(snapshot, queries), [[f"d{row}" for row in rows] for rows in exact.rows]) >= (
        1 if kind == "flat" else 0.95
    )
    for query, hits in zip(queries, snapshot.nearest(queries, 10), strict=True):
        wanted = [float(query.astype(np.float64) @ vectors(ROWS)[place.row].astype(np.float64)) for place, _ in hits]
        np.testing.assert_allclose([score for _, score in hits], wanted, rtol=0, atol=1e-7)

    gone = set(range(0, ROWS, 3))
    remove(tmp_path / "index", [f"d{row}" for row in gone], missing_ok=False)
    write_more(tmp_path / "index", lambda look: [block(500, "n", seed=3)], replacing=False)
    kept = np.array([row for row in range(ROWS) if row not in gone])
    every = np.concatenate([vectors(ROWS)[kept], vectors(500, seed=3)])
    names = [*(f"d{row}" for row in kept), *(f"n{row}" for row in range(500))]
    exact = exact_search(queries, every, 10)
    wanted = [[names[row] for row in rows] for rows in exact.rows]
    for _ in range(2):
        found = ids(opened(tmp_path / "index"), queries)
        assert not {int(id_[1:]) for hits in found for id_ in hits if id_[0] == "d"} & gone
        assert recall(found, wanted) >= (1 if kind == "flat" else 0.95)
        compact(tmp_path / "index")
    assert [part.record.kind for part in opened(tmp_path / "index").parts] == [kind]


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_where_little_is_left_near_a_query_others_are_still_found(tmp_path, kind):
    """One list is probed, or few candidates are kept, and nearly all that lies there is removed."""
    snapshot = new(tmp_path / "index", kind=kind, ivf_probes=1, hnsw_search=1)
    query = vectors(1)
    near = ids(snapshot, query, 200)[0]
    remove(tmp_path / "index", near, missing_ok=False)
    left = opened(tmp_path / "index").nearest(query, 150)[0]
    assert len(left) == 150
    kept = np.array([row for row in range(ROWS) if f"d{row}" not in set(near)])
    best = exact_search(query, vectors(ROWS)[kept], 150)
    assert recall([[place.row for place, _ in left]], [kept[best.rows[0]]]) > 0.5


def test_the_kind_is_chosen_by_size_or_by_name(tmp_path):
    assert IndexSettings().kind_of(499_999) == "flat"
    assert IndexSettings().kind_of(500_000) == "ivf"
    assert IndexSettings(flat_below=10).kind_of(10) == "ivf"
    assert IndexSettings(kind="hnsw").kind_of(2) == "hnsw"
    assert IndexSettings(kind="hnsw").kind_of(2, added=True) == "flat"
    assert IndexSettings(kind="hnsw", flat_below=2).kind_of(2, added=True) == "hnsw"
    assert IndexSettings(kind="flat").kind_of(10**9) == "flat"
    snapshot = new(tmp_path / "index", rows=100, flat_below=100)
    assert snapshot.parts[0].record.kind == "ivf"
    assert not (tmp_path / "index" / "part-000001" / VECTORS_FILE).is_symlink()
    assert (tmp_path / "index" / "part-000001" / FAISS_FILE).exists()


def test_settings_reach_faiss(tmp_path):
    def inside(name, **settings):
        return new(tmp_path / name, **settings).parts[0]._proposer._index

    assert inside("a", kind="ivf").nlist == 63
    assert inside("b", kind="ivf", ivf_lists=20).nlist == 20
    assert inside("c", kind="hnsw").hnsw.nb_neighbors(1) == 32
    few = inside("d", kind="hnsw", hnsw_links=4, hnsw_build=5)
    assert (few.hnsw.nb_neighbors(1), few.hnsw.efConstruction) == (4, 5)


def test_settings_of_a_search_count(tmp_path):
    queries = vectors(60, seed=5)
    exact = exact_search(queries, vectors(ROWS), 10)
    wanted = [[f"d{row}" for row in rows] for rows in exact.rows]
    for kind, weak, strong in (("ivf", {"ivf_probes": 1}, {"ivf_probes": 63}),):
        recalls = [recall(ids(new(tmp_path / f"{kind}{n}", kind=kind, **each), queries), wanted)
                   for n, each in enumerate((weak, strong))]  # fmt: skip
        assert recalls[0] < recalls[1]
        assert recalls[1] > 0.99


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"kind": "tree"}, ValueError, "kind='tree' does not exist; it is one of auto, flat, ivf, hnsw"),
        ({"ivf_lists": 0}, ValueError, "ivf_lists=0 must be at least 1"),
        ({"hnsw_links": 1}, ValueError, "hnsw_links=1 must be at least 2"),
        ({"flat_below": True}, TypeError, "flat_below=True is of type bool"),
        ({"hnsw_search": "9"}, TypeError, "hnsw_search='9' is of type str"),
    ],
)
def test_settings_that_cannot_be_are_named(settings, error, message):
    with pytest.raises(error, match=message):
        IndexSettings(**settings)
    with pytest.raises(TypeError, match=r"SearchIndex has no setting probes\. The valid ones are kind, flat_below"):
        IndexSettings.from_keywords({"probes": 3})
