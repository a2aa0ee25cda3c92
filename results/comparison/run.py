"""The comparison itself, task after task: choose weights, write the plan, run it.

    python results/comparison/run.py             # or --task nfcorpus; the same command goes on after a kill
    python results/comparison/run.py --gather    # what is finished, into this folder, and the page

Everything is computed and kept in runs/comparison. Models and data must be there first: "Run it again" in README.md.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from results.comparison import page, plans
from results.comparison.plans import (
    ANCHORS,
    BUDGET,
    ENCODERS,
    HERE,
    LENGTH,
    RUNS,
    TASKS,
    Task,
    plan,
    read_anchors,
    tuned,
)
from search_r3_mteb.atomic import write_json, write_text

QUERIES = 100
"""Queries that a weight is chosen on: what the writer says about them costs as much as about those that are scored."""
DROPPED = ("files", "checksum", "queries_file")  # of a row: they are of the run's folder, which is not kept here


def choose(task: Task) -> None:
    """Choose the weight of every row that has one; each is kept as soon as it is known."""
    for label, (model, settings) in tuned().items():
        output = Path(RUNS, task.name, "tune", label)
        if not (output / "tune.json").exists():
            # What changes nothing is refused: MiniLM is cut as its folder says, and Rocchio writes nothing.
            given = dict(settings) if model.endswith(ENCODERS["MiniLM"]) else {"max_length": LENGTH, **settings}
            if not model.startswith("rocchio:"):
                given["max_reasoning_tokens"] = BUDGET
            pairs = [part for name, value in given.items() for part in ("--set", f"{name}={value}")]
            search_r3(
                *("tune", "--task", task.task, "--split", task.tuned_on, "--model", model),
                *("--max-queries", str(QUERIES), *pairs),
                *("--cache-folder", f"{RUNS}/{task.name}/store", "--output", str(output)),
            )
        anchors = read_anchors(Path(RUNS))
        anchors.setdefault(task.name, {})[label] = kept_choice(json.loads((output / "tune.json").read_text()))
        write_json(Path(RUNS, ANCHORS), anchors)


def kept_choice(found: dict[str, Any]) -> dict[str, Any]:
    """What a page needs of tune.json."""
    chosen = found["chosen"]["anchor"]
    (row,) = [each for each in found["anchors"] if each["anchor"] == chosen]
    kept = {key: found[key] for key in ("queries", "split", "commit")}
    return {"anchor": chosen, "difference": row["difference"], "interval": row["interval"], **kept}


def compare(task: Task) -> None:
    """Run the task's plan, with the weights that were chosen."""
    path = Path(RUNS, f"{task.name}.toml")
    write_text(path, plan(task, read_anchors(Path(RUNS)).get(task.name, {})))
    search_r3("compare", path.as_posix())


def search_r3(*arguments: str) -> None:
    """One command, which ends this script where it fails."""
    subprocess.run([sys.executable, "-m", "search_r3_mteb", *arguments], check=True)


def gather(runs: Path, folder: Path) -> None:
    """Weights and numbers of finished tasks into `folder`, with the plans that they were made by, and the page.

    Raises ValueError for a task in which a system failed.
    """
    anchors = {}
    for name in TASKS:
        file = runs / name / "comparison.json"
        if not file.exists():
            continue
        found = json.loads(file.read_text(encoding="utf-8"))
        if found["failures"]:
            raise ValueError(f"{file}: {found['failures'][0]['system']} failed, so the task is not finished.")
        found["systems"] = [kept_row(row) for row in found["systems"]]
        write_json(folder / f"{name}.json", found)
        anchors[name] = read_anchors(runs).get(name, {})
    write_json(folder / ANCHORS, anchors)
    plans.main(["--folder", str(folder)])
    page.main(["--folder", str(folder)])


def kept_row(row: dict[str, Any]) -> dict[str, Any]:
    """What the page needs of a row.

    A folder that an older version wrote rows of the same name into sets these apart by a fingerprint behind the name;
    here only one is kept.
    """
    control = "" if row["control"] is None else f"-{row['control']}"
    return {key: row[key] for key in row if key not in DROPPED} | {"model": f"{row['system']}{control}"}


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=[*TASKS], action="append")
    parser.add_argument("--gather", action="store_true")
    given = parser.parse_args(arguments)
    if given.gather:
        gather(Path(RUNS), HERE)
        return 0
    for name in given.task or TASKS:
        choose(TASKS[name])
        compare(TASKS[name])
    return 0


if __name__ == "__main__":
    sys.exit(main())
