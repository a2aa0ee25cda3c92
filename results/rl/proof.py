"""The proof that stage 2 learns: three seeds from nothing, on hopworld with held-out entities.

    python results/rl/proof.py            # about 20 minutes per seed on two cores; resumes where it was stopped

Stage 1 (train/configs/nano.toml) sees traces for 1- and 2-hop queries; stage 2 (train/configs/rl_nano.toml) gets 3-hop
queries with judgements and no traces. Measured on the test split: no entity of a multi-hop test query occurs in a
multi-hop training query. Writes summary.json, comparisons.json (paired bootstrap over queries, seeds as second level)
and curves.json (the dev split while training). Runs lie in runs/proof.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from results.measure import HopScores, measure, record, write_json
from search_r3_mteb.encoder.checkpoints import load
from search_r3_mteb.evaluation.significance import align, compare
from train import rl, sft
from train.config.loading import load_config
from train.config.stages import RlConfig, SftConfig
from train.run import evaluation
from train.run.allocation import keep_freed_memory

HERE = Path(__file__).resolve().parent
RUNS = Path("runs/proof")
SEEDS = (0, 1, 2)
HOPS = (1, 2, 3, 4)
COMMAND = "python results/rl/proof.py"
CURVE = ("hops", "ndcg_at_10", "queries")  # of each point of a curve


def train_seed(seed: int) -> dict[str, Path]:
    """Both stages of one seed, unless they are finished."""
    folders = {"sft": RUNS / f"sft-{seed}", "rl": RUNS / f"rl-{seed}"}
    for stage, folder in folders.items():
        if (folder / "last" / "config.json").exists():
            continue
        settings = [f"optimization.seed={seed}", f'output.folder="{folder}"']
        if stage == "sft":
            sft.train(load_config("train/configs/nano.toml", settings, SftConfig))
        else:
            settings.append(f'model.path="{folders["sft"] / "last"}"')
            rl.train(load_config("train/configs/rl_nano.toml", settings, RlConfig))
    return {stage: folder / "last" for stage, folder in folders.items()}


def main() -> None:
    """Train what is missing, measure, write everything."""
    measured: dict[tuple[str, int], HopScores] = {}
    summary = []
    for seed in SEEDS:
        for stage, model in train_seed(seed).items():
            measured[stage, seed] = measure(model, hops=HOPS)
            for (mode, hops), values in measured[stage, seed].items():
                summary.append(record(values, stage=stage, seed=seed, mode=mode, hops=hops, command=COMMAND))
        write_json(HERE / "summary.json", summary)
    write_json(HERE / "comparisons.json", comparisons(measured))
    write_json(HERE / "curves.json", curves())


def comparisons(measured: dict[tuple[str, int], HopScores]) -> list[dict]:
    """Reasoning against direct after RL, and after RL against after SFT, by hop count."""
    found = []
    for hops in HOPS:
        pairs = {
            "reason - direct, after RL": (("rl", "reason"), ("rl", "direct")),
            "after RL - after SFT, reason": (("rl", "reason"), ("sft", "reason")),
        }
        for name, ((stage1, mode1), (stage2, mode2)) in pairs.items():
            first = [measured[stage1, seed][mode1, hops] for seed in SEEDS]
            second = [measured[stage2, seed][mode2, hops] for seed in SEEDS]
            ids, (a, b) = align(first, second)
            result = compare(a, b)
            over_queries = compare(a.mean(axis=0), b.mean(axis=0))  # these three seeds, not seeds as such
            found.append(
                {
                    "comparison": name,
                    "hops": hops,
                    "difference": round(result.difference, 4),
                    "interval": [round(result.low, 4), round(result.high, 4)],
                    "p": result.p,
                    "interval_over_queries_alone": [round(over_queries.low, 4), round(over_queries.high, 4)],
                    "by_seed": np.round((a - b).mean(axis=1), 4).tolist(),
                    "queries": len(ids),
                    "seeds": list(SEEDS),
                    "command": COMMAND,
                }
            )
    return found


def curves() -> list[dict]:
    """nDCG@10 with reasoning on the dev split by seed, hop count and step; step 0 is what stage 1 left."""
    found = []
    for seed in SEEDS:
        for score in dev_scores(RUNS / f"sft-{seed}" / "last", seed):
            found.append({"seed": seed, "step": 0} | score)
        for line in (RUNS / f"rl-{seed}" / "log.jsonl").read_text(encoding="utf-8").splitlines():
            event = json.loads(line)
            if event["event"] == "evaluate" and event["mode"] == "reason" and event["hops"] is not None:
                found.append({"seed": seed} | {key: event[key] for key in ("step", *CURVE)})
    return found


def dev_scores(model: Path | str, seed: int, overrides: Sequence[str] = ()) -> list[dict]:
    """nDCG@10 of a model by hop count, with reasoning, on the queries that stage 2 evaluates itself on."""
    settings = [f"optimization.seed={seed}", 'evaluate.modes=["reason"]', *overrides]
    config = load_config("train/configs/rl_nano.toml", settings, RlConfig)
    sets = [evaluation.load(one, config.evaluate.max_queries, seed) for one in config.data.evaluation]
    scores = evaluation.evaluate(load(model, device="cpu"), sets, config.evaluate, config.data.max_length)
    return [{key: getattr(score, key) for key in CURVE} for score in scores if score.hops is not None]


if __name__ == "__main__":
    keep_freed_memory()
    main()
