"""Benchmark of the refresh policies (`make bench-cache`): error of the reward, and cost, over 100 real steps of nano.

    python results/corpus_cache/bench.py                                           # all; an hour or more on two cores
    python results/corpus_cache/bench.py --rows 10000 --policies none local+map    # replaces these records only

Writes `summary.json`, `table.md` and `figure.png` beside this file (or into --output). `train/rl.py` with
`train/configs/rl_nano.toml` records the training steps once, into --work; they are measured from there.
"""

import argparse
import shlex
import sys
from pathlib import Path

from results.figures import COLOURS, drawn, legend_above
from results.measure import write_json
from results.pages import read_json, table
from search_r3_mteb.evaluation.provenance import commit
from train.corpus_cache.refresh_policies import POLICIES

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FIGURE = HERE / "figure.png"
POLICY_NAMES = {
    "none": "none: never refreshed",
    "random": "random documents",
    "local": "local: documents near the rollouts",
    "random+map": "random, all others moved by the map",
    "local+map": "local, all others moved by the map",
    "full": "full: every document",
    "frozen": "frozen document encoder",
}
# Of the corpus's tokens; retrieved documents are shorter than the mean, so the share of documents is a little larger.
SHARES = {10_000: 0.02, 100_000: 0.018, 1_000_000: 0.002}
KEYS = ("rows", "policy", "step", "share_reencoded", "refresh_seconds", "reward_error_batch", "reward_error_heldout",
        "reward_correlation", "recall_at_10", "commit", "command")  # fmt: skip


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=list(SHARES), help="documents of the corpora")
    parser.add_argument("--policies", nargs="+", default=list(POLICIES), choices=POLICIES)
    parser.add_argument("--model", default="nano", help="where training begins: nano, or a checkpoint folder")
    parser.add_argument("--config", type=Path, default=ROOT / "train/configs/rl_nano.toml")
    parser.add_argument("--set", nargs="*", default=[], help="overrides of the training's config")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument(
        "--at", type=int, nargs="+", default=[20, 50, 100], help="steps that are compared with the truth"
    )
    parser.add_argument("--share", type=float, help="tokens re-encoded per step over those of the corpus")
    parser.add_argument("--heldout", type=int, default=200, help="held-out queries")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("runs/corpus_cache"), help="trajectory and caches")
    parser.add_argument("--output", type=Path, default=HERE)
    return parser.parse_args()


def main():
    options = arguments()
    import torch
    from measure import Measurement, measure
    from trajectory import Trajectory, record

    torch.set_num_threads(options.threads)
    folder = options.work / "trajectory"
    if not (folder / "trajectory.json").is_file():
        record(options.config, options.model, options.steps, folder, options.set)
    trajectory = Trajectory(folder)
    if trajectory.last < options.steps:
        raise ValueError(
            f"{folder} holds {trajectory.last} steps, {options.steps} are asked for. Remove it to record again."
        )
    origin = {"commit": commit(), "command": shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]])}
    for rows in options.rows:
        plan = Measurement(
            rows=rows,
            policies=options.policies,
            steps=options.steps,
            at=[step for step in options.at if step <= options.steps],
            share=options.share or SHARES.get(rows, 0.02),
            heldout=options.heldout,
        )
        found = [found | origin for found in measure(plan, trajectory, options.work / "caches")]
        save(options.output, found)
    report(options.output)


def save(output, found):
    """Replace the records of the same rows and policies, keep the others."""
    file = output / "summary.json"
    kept = read_json(file) if file.is_file() else []
    measured = {(one["rows"], one["policy"]) for one in found}
    records = [one for one in kept if (one["rows"], one["policy"]) not in measured] + found
    records.sort(key=lambda one: (one["rows"], list(POLICIES).index(one["policy"]), one["step"]))
    write_json(file, [{key: one[key] for key in KEYS} for one in records])


def report(output):
    """The table and the figure of `summary.json`."""
    records = read_json(output / "summary.json")
    forms = {"rows": ",", "policy": "", "step": "", "share_reencoded": ".2%", "refresh_seconds": ".3f",
             "reward_error_batch": ".4f", "reward_error_heldout": ".4f", "reward_correlation": ".4f",
             "recall_at_10": ".3f"}  # fmt: skip
    rows = [["-" if one[key] is None else f"{one[key]:{form}}" for key, form in forms.items()] for one in records]
    head = ["documents", "policy", "step", "re-encoded per step", "seconds per refresh", "reward error, batch",
            "held-out", "correlation", "recall@10"]  # fmt: skip
    (output / "table.md").write_text("\n".join(table(head, rows)))
    figure(output / "figure.png", output / "summary.json")


def figure(path=FIGURE, source=HERE / "summary.json"):
    """The reward's error and the time of a refresh by policy, one column per corpus size, one dot per step."""
    records = read_json(source)
    sizes = sorted({one["rows"] for one in records})
    steps = sorted({one["step"] for one in records})
    policies = [policy for policy in POLICIES if any(one["policy"] == policy for one in records)]
    lines = (
        ("reward_error_batch", "the batch", "error of the reward (absolute, 0 is exact)"),
        ("reward_error_heldout", "held out", "error of the reward (absolute, 0 is exact)"),
        ("refresh_seconds", "time", "one refresh (seconds, logarithmic)"),
    )
    size = (3.1 * len(sizes) + 3, 2.6 * len(lines) + 0.8)
    with drawn(path, [source], size, (len(lines), len(sizes)), sharey=True, sharex="row") as (chart, grid):
        for column, rows in enumerate(sizes):
            mine = [one for one in records if one["rows"] == rows]
            for axes, (key, part, name) in zip(grid[:, column], lines, strict=True):
                for number, step in enumerate(steps):
                    found = {one["policy"]: one[key] for one in mine if one["step"] == step}
                    places = [place for place, policy in enumerate(policies) if found.get(policy) is not None]
                    axes.plot(
                        [found[policies[place]] for place in places], places, "o", color=COLOURS[number],
                        markersize=13 - 4 * number, label=f"after {step} steps", clip_on=False, zorder=3,
                    )  # fmt: skip
                axes.set(title=f"{rows:,} documents: {part}", xlabel=name)
        for axes in grid[:, 0]:
            axes.set_yticks(range(len(policies)), [POLICY_NAMES.get(policy, policy) for policy in policies])
            axes.set_ylim(len(policies) - 0.4, -0.6)
            axes.tick_params(axis="y", pad=10)  # clear of the dots at 0
        for axes in grid[:-1].flat:
            axes.set_xlim(left=0)
            axes.margins(x=0.1)
        grid[-1, 0].set_xscale("log")
        legend_above(chart, grid[0, 0], len(steps))


if __name__ == "__main__":
    main()
