"""Ablations and negative controls of stage 2: one change each, same start (seed 0's stage 1), same number of steps.

    python results/rl/ablation.py [--only NAME ...]       # after results/rl/proof.py; resumes where it was stopped

Writes ablation.json: nDCG@10 on test queries by hop count and mode, seconds of training, documents re-encoded.
The negative controls replace what the loop computes: rewards shuffled between rollouts, and advantages negated.
"""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from results.measure import measure, record, write_json
from train import rl
from train.config.loading import load_config
from train.config.stages import RlConfig
from train.run.allocation import keep_freed_memory
from train.stage2.environment import Environment
from train.stage2.step import PolicyStep

HERE = Path(__file__).resolve().parent
RUNS = Path("runs/rl-ablation")
START = Path("runs/proof/sft-0/last")
STEPS = 80
MIXED = 'data.sources=[{kind="hopworld", name="mixed", hops=[1, 2, 3], traces=false}]'
NO_REPLAY = "replay={rows_per_step=0, sources=[]}"
# Muon is for whole matrices, so an adapter is compared with an adapter: under AdamW, on the policy gradient alone.
LORA = [
    "model.lora={rank=16}",
    'optimization.optimizer="adamw"',
    "optimization.learning_rate=1e-3",
    "contrastive.weight=0.0",
]
# For the controls, since the contrastive term learns without a policy gradient.
POLICY_ALONE = ["contrastive.weight=0.0"]
VARIANTS: dict[str, list[str]] = {
    "as shipped": [],
    "without the contrastive term": POLICY_ALONE,
    "control: rewards shuffled": POLICY_ALONE,
    "control: advantages negated": POLICY_ALONE,
    "refresh none": ['corpus_cache.policy="none"'],
    "refresh local": ['corpus_cache.policy="local"'],
    "refresh full": ['corpus_cache.policy="full"'],
    "refresh frozen (LoRA)": ['corpus_cache.policy="frozen"', *LORA],
    "refresh local+map (LoRA)": LORA,
    "reward nDCG": ["reward.dcg_scaled=0.0", "reward.ndcg=1.0"],
    "reward MRR": ["reward.dcg_scaled=0.0", "reward.mrr=1.0"],
    "reward margin": ["reward.dcg_scaled=0.0", "reward.margin=1.0"],
    "forgetting: no replay": [NO_REPLAY],
    "forgetting: KL 0.05 for the replay": [NO_REPLAY, "policy.kl_weight=0.05"],
    "contrastive on every rollout": ["contrastive.min_reward=-1.0"],
    "forgetting: the replay without vectors and reading": ["replay.loss.infonce=0.0", "replay.loss.reading=0.0"],
    "forgetting: prompts of 1 to 3 hops for the replay": [NO_REPLAY, MIXED],
    "AdamW": ['optimization.optimizer="adamw"'],
}


@contextmanager
def control(name: str) -> Iterator[None]:
    """Break what the negative control `name` breaks, inside this context."""
    judge, advantages = Environment.judge, PolicyStep.advantages
    rng = np.random.default_rng(0)

    def shuffled(self, groups, step):
        judged = judge(self, groups, step)
        rewards = replace(judged.rewards, total=rng.permutation(judged.rewards.total))
        return replace(judged, rewards=rewards)

    def negated(self, judged):
        found = advantages(self, judged)
        return replace(found, values=-found.values)

    if name.endswith("shuffled"):
        Environment.judge = shuffled
    if name.endswith("negated"):
        PolicyStep.advantages = negated
    try:
        yield
    finally:
        Environment.judge, PolicyStep.advantages = judge, advantages


def main() -> None:
    """Train what is missing, measure, write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*", default=list(VARIANTS))
    names = parser.parse_args().only
    path = HERE / "ablation.json"
    results = json.loads(path.read_text()) if path.exists() else []
    for name in names:
        if any(entry["variant"] == name for entry in results):
            continue
        folder = RUNS / "".join(c if c.isalnum() else "-" for c in name)
        if not (folder / "last" / "tokenizer.json").exists():
            settings = [
                f'model.path="{START}"',
                f"optimization.steps={STEPS}",
                f'output.folder="{folder}"',
                "evaluate.every=0",
            ]
            with control(name):
                rl.train(load_config("train/configs/rl_nano.toml", [*settings, *VARIANTS[name]], RlConfig))
        steps = [e for e in map(json.loads, (folder / "log.jsonl").read_text().splitlines()) if e["event"] == "step"]
        facts = {
            "variant": name,
            "steps": STEPS,
            # The median, since other work on the machine and pauses of the run distort a sum.
            "seconds_per_step": round(float(np.median(np.diff([e["seconds"] for e in steps]))), 3),
            "documents_encoded_per_step": round(float(np.mean([e["documents_encoded"] for e in steps])), 1),
            "reward_first_20": round(float(np.mean([e["reward"] for e in steps[:20]])), 4),
            "reward_last_20": round(float(np.mean([e["reward"] for e in steps[-20:]])), 4),
        }
        for (mode, hops), values in measure(folder / "last").items():
            results.append(record(values, **facts, mode=mode, hops=hops, command="python results/rl/ablation.py"))
        write_json(path, results)


if __name__ == "__main__":
    keep_freed_memory()
    main()
