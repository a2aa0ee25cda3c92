"""A program that kills processes while they refresh a cache, and checks what `load` finds. It does not import torch.

    python cache_killing.py FOLDER random KILLS    kill -9 from outside, at random moments
    python cache_killing.py FOLDER lines STRIDE    the process kills itself at every STRIDE-th line of the writing code

Each life loads the cache and continues with refreshes, saves and a rebuild until it is killed. After each death the
parent loads the cache in another process and compares with an uninterrupted run: the state must be, array for array and
byte for byte, the one after the last step that was reported as done, or after the next one (killed between the commit
and the report). The same holds for the snapshot that a save was writing.
"""

import hashlib
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy: its threads do not survive a fork

import numpy as np

from tests.train.forking import forked, wait
from tests.vectors import unit
from train.config.corpus_cache import CorpusCacheSettings
from train.corpus_cache.cache import CorpusCache
from train.corpus_cache.files import MANIFEST
from train.corpus_cache.refresh_policies import Hits

DOCUMENTS, DIM, STEPS = 200, 8, 400
TEXTS = [f"document {row}" for row in range(DOCUMENTS)]
BASE = np.random.default_rng(0).normal(size=(DOCUMENTS, DIM))
TURN = np.random.default_rng(1).normal(size=(DIM, DIM))
SETTINGS = CorpusCacheSettings(policy="local+map", neighbors=4, encode_rows=64)
# Waiting for the disk is for power cuts, which cannot be tested here, and makes each life slow.
os.fsync = lambda descriptor: None
np.memmap.flush = lambda array: None
WRITING = ("corpus_cache/files.py", "corpus_cache/state.py", "corpus_cache/cache.py", "disk/maps.py", "atomic.py")


def encoder(step):
    """The model after `step` steps."""
    return lambda texts: BASE[[int(text.split()[1]) for text in texts]] @ (np.eye(DIM) + 0.01 * step * TURN)


def digest(cache):
    """Hash of everything that a refresh changes."""
    state = hashlib.sha256()
    arrays = dict(cache._state.folder.arrays)
    drift = cache._state.drift
    arrays |= {
        "map_keys": drift.keys,
        "map_composed": drift.composed,
        "map_gram": drift.gram,
        "step": np.array(cache.step),
    }
    for name in sorted(arrays):
        state.update(name.encode() + np.ascontiguousarray(arrays[name]).tobytes())
    return state.hexdigest()


def advance(cache, step):
    """One step: a refresh, at some steps a rebuild, at others a save."""
    rng = np.random.default_rng(step)
    queries = unit(BASE[rng.integers(DOCUMENTS, size=4)])
    found = cache.search(queries, 5)
    if step % 11 == 0:
        cache.rebuild(encoder(step), step=step)
    else:
        cache.refresh(Hits(queries, found.rows, found.rows[:, :1].tolist()), encoder(step), 120, step=step)
    if step % 5 == 0:
        cache.save(snapshot(cache._state.folder.path))


def snapshot(folder):
    """Where the cache in `folder` is saved to."""
    return folder.with_name(folder.name + "-snapshot")


def load(folder):
    return CorpusCache.load(folder, TEXTS, fingerprint="weights", dim=DIM)


def build(folder):
    return CorpusCache.build(TEXTS, encoder(0), folder=folder, settings=SETTINGS, fingerprint="weights")


def live(folder, done, last):
    """Load, and go on until `last`, writing each finished step into `done`."""
    cache = load(folder)
    for step in range(cache.step + 1, last + 1):
        advance(cache, step)
        os.pwrite(done, step.to_bytes(4, "little"), 0)


def check(folder, done, truth):
    """What `load` finds now. The step."""
    reported = int.from_bytes(os.pread(done, 4, 0), "little")
    cache = load(folder)
    assert cache.step in (reported, reported + 1), f"reported {reported}, loaded {cache.step}"
    assert digest(cache) == truth[cache.step], f"step {cache.step} is not the state of the uninterrupted run"
    os.pwrite(done, cache.step.to_bytes(4, "little"), 0)
    if (snapshot(folder) / MANIFEST).is_file():
        saved = load(snapshot(folder))
        assert saved.step % 5 == 0
        assert digest(saved) == truth[saved.step], (
            f"the snapshot of step {saved.step} is not the state it was taken from"
        )
    return cache.step


def uninterrupted(folder, steps):
    """Digest of the state after each step."""
    cache = build(folder)
    truth = {0: digest(cache)}
    for step in range(1, steps + 1):
        advance(cache, step)
        truth[step] = digest(cache)
    return truth


def kill_at_random(folder, kills):
    truth = uninterrupted(folder / "whole", STEPS)
    build(folder / "killed")
    done = os.open(folder / "done", os.O_RDWR | os.O_CREAT)
    random.seed(0)
    dead, last = 0, 0
    while dead < kills:
        child = forked(lambda: live(folder / "killed", done, STEPS))
        time.sleep(random.uniform(0.002, 0.04))
        os.kill(child, signal.SIGKILL)
        dead += wait(child) == -signal.SIGKILL
        last = check(folder / "killed", done, truth)
        if last == STEPS:
            build(folder / "killed")
            os.pwrite(done, bytes(4), 0)
    print(f"{dead} kills, last step {last}")


def kill_at_lines(folder, stride):
    """Steps 4 and 5 of a run (a refresh, and a refresh with a save), killed at every stride-th line that they run."""
    truth = uninterrupted(folder / "whole", 5)
    cache = build(folder / "begin")
    for step in (1, 2, 3):
        advance(cache, step)
    cache.save()
    line, kills, torn = stride, 0, 0
    while True:
        cache = load(folder / "begin")
        cache._state.folder.copy_to(folder / "killed")
        shutil.rmtree(snapshot(folder / "killed"), ignore_errors=True)
        done = os.open(folder / "done", os.O_RDWR | os.O_CREAT)
        os.pwrite(done, (3).to_bytes(4, "little"), 0)

        def die_at(line=line, done=done):
            left = line

            def trace(frame, event, argument):
                nonlocal left
                if not frame.f_code.co_filename.endswith(WRITING):
                    return None
                left -= event == "line"
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return trace

            sys.settrace(trace)
            live(folder / "killed", done, 5)

        how = wait(forked(die_at))
        assert how in (0, -signal.SIGKILL), how
        torn += check(folder / "killed", done, truth) == 4
        os.close(done)
        if how == 0:
            break
        kills, line = kills + 1, line + stride
    assert torn, "no kill fell between the two steps"
    print(f"{kills} kills at lines")


if __name__ == "__main__":
    where, kind, number = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    assert "torch" not in sys.modules
    kill_at_random(where, number) if kind == "random" else kill_at_lines(where, number)
