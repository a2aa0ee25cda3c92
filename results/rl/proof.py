"""The proof that stage 2 learns: three seeds from nothing, on hopworld with held-out entities.

    python results/rl/proof.py            # about 20 minutes per seed on two cores; resumes where it was stopped

Stage 1 (train/configs/nano.toml) sees traces for 1- and 2-hop queries; stage 2 (train/configs/rl_nano.toml) gets 3-hop
queries with judgements and no traces. Measured on the test split: no entity of a multi-hop test query occurs in a
multi-hop training query. Writes summary.json, comparisons.json (paired bootstrap over queries, seeds as second level),
curves.png. Runs lie in runs/proof.
"""

import json
from pathlib import Path

import numpy as np

from results.measure import HopScores, measure, record, write_json
from search_r3_mteb.evaluation.significance import align, compare
from train import rl, sft
from train.config.loading import load_config
from train.config.stages import RlConfig, SftConfig
from train.run.allocation import keep_freed_memory

HERE = Path(__file__).resolve().parent
RUNS = Path("runs/proof")
SEEDS = (0, 1, 2)
HOPS = (1, 2, 3, 4)
COMMAND = "python results/rl/proof.py"


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
    curves()


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


def curves() -> None:
    """nDCG@10 on the dev split over RL steps, reasoning, by hop count: one thin line per seed, the mean thick."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(7, 4.5))
    axes = picture.subplots()
    for color, hops in zip(("tab:gray", "tab:blue", "tab:red", "tab:green"), HOPS, strict=True):
        lines = []
        for seed in SEEDS:
            events = [json.loads(line) for line in (RUNS / f"rl-{seed}" / "log.jsonl").read_text().splitlines()]
            points = [
                (e["step"], e["ndcg_at_10"])
                for e in events
                if e["event"] == "evaluate" and e["mode"] == "reason" and e["hops"] == hops
            ]
            lines.append(points)
            axes.plot(*zip(*points, strict=True), color=color, linewidth=0.7, alpha=0.6)
        mean = np.mean([[value for _, value in points] for points in lines], axis=0)
        axes.plot([step for step, _ in lines[0]], mean, color=color, linewidth=2.2, label=f"{hops}-hop")
    axes.set_xlabel("RL step")
    axes.set_ylabel("nDCG@10 with reasoning (dev)")
    axes.set_ylim(0, 1.02)
    axes.legend()
    picture.tight_layout()
    picture.savefig(HERE / "curves.png", dpi=120)


if __name__ == "__main__":
    keep_freed_memory()
    main()
