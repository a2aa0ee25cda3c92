"""Several processes: each computes its share, and together they give the results of one, in order."""

import json

import numpy as np
import pytest

from search_r3_mteb.encoder import processes
from search_r3_mteb.encoder.encoder import SearchR3Encoder
from tests.programs import free_port, launched, printed, started


@pytest.fixture
def together(monkeypatch):
    """`together(part, compute, count)`: what each of `count` processes gets, simulated one after the other."""

    def run(part, compute, count):
        monkeypatch.setenv("WORLD_SIZE", str(count))
        shares = []
        for number in range(count):
            monkeypatch.setenv("RANK", str(number))
            own = processes.own_share(part)
            monkeypatch.setattr(processes, "_from_all", lambda mine: [*shares, mine])
            shares.append((own, compute(own) if own else []))
        mine = shares.pop()
        return processes.gathered(part, mine[1]), [rows for rows, _ in [*shares, mine]]

    return run


@pytest.mark.parametrize("count", [2, 3, 5])
def test_shares_come_back_in_order(together, count):
    part = [9, 4, 7, 1]
    found, shares = together(part, lambda rows: [f"row {row}" for row in rows], count)
    assert found == ["row 9", "row 4", "row 7", "row 1"]
    assert sorted(row for rows in shares for row in rows) == sorted(part)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    vectors, _ = together(part, lambda rows: np.array([[row, row] for row in rows], dtype=np.float32), count)
    np.testing.assert_array_equal(vectors, [[9, 9], [4, 4], [7, 7], [1, 1]])
    assert vectors.dtype == np.float32
    nothing, _ = together([], lambda rows: [], count)
    assert nothing == []


def test_alone_nothing_is_shared(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    assert (processes.process_count(), processes.process_number(), processes.process_device()) == (1, 0, None)
    part, results = [3, 1, 2], object()
    assert processes.own_share(part) == part
    assert processes.gathered(part, results) is results


SCRIPT = """
import json, sys
import numpy as np, torch
from search_r3_mteb import SearchR3Encoder
torch.set_num_threads(1)
folder, out, cache = sys.argv[1:]
settings = {"max_length": 600, "max_reasoning_tokens": 4, "temperature": 1.0, "cache_folder": cache or None}
encoder = SearchR3Encoder(folder, device="cpu", **settings)
texts = [f"text {n} " * (n + 1) for n in range(7)]
thoughts = encoder.think(texts)
documents = encoder.encode_document(texts)
from search_r3_mteb.encoder.processes import process_number, process_count
np.savez(f"{out}-{process_number()}.npz", queries=np.stack([t.vector for t in thoughts]), documents=documents)
with open(f"{out}-{process_number()}.json", "w") as stream:
    ids, tokens = [t.token_ids for t in thoughts], encoder.engine.forward_tokens
    json.dump({"count": process_count(), "ids": ids, "tokens": tokens}, stream)
if torch.distributed.is_initialized():  # a run that finds everything stored has nothing to gather
    torch.distributed.destroy_process_group()
"""


def launch(tmp_path, folder, name, count, cache=""):
    """Start the script as `accelerate launch` does: one process a share, the same environment variables."""
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    port = free_port()
    command = [tmp_path / "script.py", folder, tmp_path / name, cache]
    printed(*(started(*command, ACCELERATE_USE_CPU="true", **launched(number, count, port)) for number in range(count)))
    arrays = [np.load(tmp_path / f"{name}-{number}.npz") for number in range(count)]
    return arrays, [json.loads((tmp_path / f"{name}-{number}.json").read_text()) for number in range(count)]


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tiny_folder, tmp_path):
    vectors, facts = launch(tmp_path, tiny_folder, "two", 2, cache=tmp_path / "cache")
    encoder = SearchR3Encoder(tiny_folder, max_length=600, max_reasoning_tokens=4, temperature=1.0)
    texts = [f"text {n} " * (n + 1) for n in range(7)]
    thoughts, documents = encoder.think(texts), encoder.encode_document(texts)
    for found, fact in zip(vectors, facts, strict=True):
        assert fact["count"] == 2
        assert fact["ids"] == [thought.token_ids for thought in thoughts]
        np.testing.assert_allclose(found["queries"], np.stack([t.vector for t in thoughts]), atol=1e-5)
        np.testing.assert_allclose(found["documents"], documents, atol=1e-5)
    # Neither did all of it.
    assert all(0 < fact["tokens"] < encoder.engine.forward_tokens for fact in facts), (
        facts,
        encoder.engine.forward_tokens,
    )
    # Both wrote the same store, and nothing is left to do for a third run.
    _, again = launch(tmp_path, tiny_folder, "again", 2, cache=tmp_path / "cache")
    assert [fact["tokens"] for fact in again] == [0, 0]
