"""nDCG@10 of nano's seeds by hop count on the test split, both stages, as results/rl/proof.py measures them.

    python results/processes/seeds.py --runs runs/proof --output results/processes/nano_seeds.json

RUNS holds sft-SEED/last and rl-SEED/last for the seeds 0, 1 and 2: trained by `train/sft.py` and `train/rl.py` with the
commands in README.md, on whatever machine.
"""

import argparse
from pathlib import Path

from results.measure import measure, record, write_json
from results.rl.proof import HOPS, SEEDS

COMMAND = "python results/processes/seeds.py"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    found = []
    for seed in SEEDS:
        for stage in ("sft", "rl"):
            for (mode, hops), values in measure(options.runs / f"{stage}-{seed}" / "last", hops=HOPS).items():
                found.append(record(values, stage=stage, seed=seed, mode=mode, hops=hops, command=COMMAND))
            write_json(options.output, found)


if __name__ == "__main__":
    main()
