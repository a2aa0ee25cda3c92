"""TRL's trainer with rollouts of vLLM in the same process: it samples from the policy of the step, not an older one."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.encoder.vllm.talkative import MARKS

pytestmark = MARKS
GAP = "sampling/sampling_logp_difference"  # |log-probability by vLLM - by the trained model| of the sampled tokens


def steps(folder, sync, dtype="float32"):
    worker = Path(__file__).with_name("trl_vllm_worker.py")
    environment = {"TRL_EXPERIMENTAL_SILENCE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    done = subprocess.run(
        [sys.executable, str(worker), str(folder), sync, dtype],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [row for row in json.loads(done.stdout.splitlines()[-1]) if f"{GAP}/mean" in row]


def test_the_samplers_log_probabilities_stay_those_of_the_policy(tmp_path):
    synced, stale = steps(tmp_path / "synced", "sync"), steps(tmp_path / "stale", "once")
    assert len(synced) == len(stale) == 3
    assert all(row[f"{GAP}/max"] < 1e-3 for row in synced)
    assert stale[0][f"{GAP}/max"] < 1e-3 < 0.05 < stale[2][f"{GAP}/max"], "the policy hardly moved"
    # In bfloat16, which TRL's own choice comes to, the samplers differ by a rounded product, and no more.
    half = steps(tmp_path / "half", "sync", "auto")
    assert all(1e-3 < row[f"{GAP}/max"] < 0.5 for row in half)
