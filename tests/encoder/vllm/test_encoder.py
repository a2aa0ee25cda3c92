"""engine="vllm" in an encoder: LoRA folders, given reasonings, anchors, the store, fingerprints, and a killed run."""

import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from search_r3_mteb.encoder.checkpoints import load, save
from search_r3_mteb.encoder.encoder import SearchR3Encoder
from search_r3_mteb.encoder.store import Store
from tests.encoder.vllm.talkative import MARKS, talkative

pytestmark = MARKS
TEXTS = [f"the query number {number} and the document" for number in range(10)]
SETTINGS = {"max_reasoning_tokens": 6, "temperature": 0.7, "max_length": 600, "show_progress_bar": False}
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(talkative(), tmp_path_factory.mktemp("talkative"))


@pytest.fixture(scope="module")
def own(folder):
    return SearchR3Encoder(folder, **SETTINGS)


@pytest.fixture(scope="module")
def vllm(folder):
    made = SearchR3Encoder(folder, engine="vllm", **SETTINGS)
    yield made
    made.engine.running().stop()


def rows(thoughts):
    return [(thought.token_ids, thought.text, thought.finished, thought.given) for thought in thoughts]


def vectors(thoughts):
    return np.stack([thought.vector for thought in thoughts])


def check_equal(ours, theirs):
    assert rows(theirs) == rows(ours)
    np.testing.assert_allclose(vectors(theirs), vectors(ours), atol=1e-5)


def test_thoughts_are_our_own(own, vllm):
    ours = own.think(TEXTS)
    check_equal(ours, vllm.think(TEXTS))
    assert len({tuple(thought.token_ids) for thought in ours}) > 1
    np.testing.assert_allclose(vllm.encode_query(TEXTS), own.encode_query(TEXTS), atol=1e-5)
    np.testing.assert_array_equal(vllm.encode_document(TEXTS), own.encode_document(TEXTS))
    assert vllm.statistics.forced == sum(not thought.finished for thought in ours) * 2 > 0


def test_given_reasonings_and_anchors_are_our_own(own, vllm):
    given = [None, "the document", *[thought.token_ids for thought in own.think(TEXTS[2:])]]
    check_equal(own.think(TEXTS, reasoning=given), vllm.think(TEXTS, reasoning=given))
    anchored = SearchR3Encoder(own.checkpoint, anchor=0.5, **SETTINGS)
    theirs = SearchR3Encoder(vllm.checkpoint, anchor=0.5, engine="vllm", **SETTINGS)
    assert theirs.engine.running() is vllm.engine.running()  # one vLLM for all encoders of a checkpoint
    check_equal(anchored.think(TEXTS), theirs.think(TEXTS))


def test_fingerprints_hold_the_engine_and_its_options(folder, own, vllm, monkeypatch):
    assert vllm.settings["engine"].startswith("vllm ")
    assert "engine" not in own.settings
    other = SearchR3Encoder(folder, engine="vllm", engine_options={"max_num_seqs": 3}, **SETTINGS)
    before = vllm.fingerprint
    assert len({own.fingerprint, before, other.fingerprint}) == 3
    monkeypatch.setattr(vllm.engine, "version", "0.0.1")
    assert vllm.fingerprint != before


def test_the_store_of_one_engine_is_not_read_by_another(folder, tmp_path):
    def encoder(engine):
        return SearchR3Encoder(folder, engine=engine, cache_folder=tmp_path, **SETTINGS)

    first = encoder("vllm")
    thoughts, documents = first.think(TEXTS), first.encode_document(TEXTS)
    first.engine.running().stop()
    again = encoder("vllm")
    check_equal(thoughts, again.think(TEXTS))
    assert again.engine.forward_tokens == 0
    assert again.engine._running is None, "vLLM was started for what the store has"
    ours = encoder("own")
    np.testing.assert_array_equal(ours.encode_document(TEXTS), documents)
    assert ours.engine.forward_tokens == 0, "documents are our own engine's in both"
    ours.think(TEXTS)
    assert ours.engine.forward_tokens > 0, "another engine's thoughts were taken"


def test_a_lora_folder_is_merged(tmp_path):
    from peft import LoraConfig, get_peft_model

    base_folder = save(talkative("llama"), tmp_path / "base")
    base = load(base_folder)
    torch.manual_seed(1)
    settings = LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj", "down_proj"])
    model = get_peft_model(base.model, settings).eval()
    with torch.no_grad():
        for parameter in (each for each in model.parameters() if each.requires_grad):
            parameter.add_(0.2 * torch.randn_like(parameter))
    adapter = save(replace(base, model=model), tmp_path / "adapter")
    ours = SearchR3Encoder(adapter, **SETTINGS).think(TEXTS)
    made = SearchR3Encoder(adapter, engine="vllm", **SETTINGS)
    check_equal(ours, made.think(TEXTS))
    made.engine.running().stop()
    plain = SearchR3Encoder(base_folder, **SETTINGS).think(TEXTS)
    assert np.abs(vectors(plain) - vectors(ours)).max() > 0.01, "the adapter changes nothing, so this test would pass"


KILLED = """
    import os, signal, sys
    sys.path.insert(0, {root!r})
    from search_r3_mteb.encoder import encoder as module
    from search_r3_mteb.encoder.store import Store
    module.CHUNK["query"] = 4
    append, left = Store.append, [2]

    def dying(self, *arguments, **keywords):
        left[0] -= 1
        if left[0] == 0:
            workers = [int(each) for each in open(f"/proc/self/task/{{os.getpid()}}/children").read().split()]
            open({workers!r}, "w").write(" ".join(map(str, workers)))
            os.kill(os.getpid(), signal.SIGKILL)
        return append(self, *arguments, **keywords)

    if __name__ == "__main__":
        Store.append = dying
        made = module.SearchR3Encoder({folder!r}, engine="vllm", cache_folder={store!r}, **{settings!r})
        made.think({texts!r})
"""


def test_a_killed_run_resumes(folder, own, tmp_path):
    workers, script = tmp_path / "workers", tmp_path / "killed.py"
    script.write_text(
        textwrap.dedent(KILLED).format(
            root=str(ROOT),
            workers=str(workers),
            folder=str(folder),
            store=str(tmp_path / "store"),
            settings=SETTINGS,
            texts=TEXTS,
        )
    )
    died = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=600)
    assert died.returncode == -signal.SIGKILL, died.stderr[-3000:]
    resumed = SearchR3Encoder(folder, engine="vllm", cache_folder=tmp_path / "store", **SETTINGS)
    (store,) = [resumed._store("query", "reason", sampling, False) for sampling in [_sampling(resumed)]]
    assert isinstance(store, Store)
    assert len(store.missing(TEXTS, [None] * len(TEXTS))) == len(TEXTS) - 4
    check_equal(own.think(TEXTS), resumed.think(TEXTS))
    resumed.engine.running().stop()
    left = [pid for pid in map(int, workers.read_text().split()) if _runs(pid)]
    assert left == [], "vLLM's workers have outlived the process that was killed"


def _sampling(encoder):
    from search_r3_mteb.encoder.sampling import Sampling

    return Sampling(SETTINGS["max_reasoning_tokens"], encoder.settings["temperature"], encoder.settings["seed"])


def _runs(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "zombie" not in Path(f"/proc/{pid}/status").read_text()
