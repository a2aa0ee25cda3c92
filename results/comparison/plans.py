"""The plans of the comparison, one TOML file per task, from one list of systems and the anchors that were chosen.

    python results/comparison/plans.py      # writes TASK.toml beside this file; --check only compares

Edit the list here, not the files. An anchored row is in a plan when anchors.json has its weight, which `run.py` chooses
on queries that are not scored; a row whose own rule was the best choice has no anchored one.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RUNS = "runs/comparison"
WRITER = f"{RUNS}/SmolLM2-135M-Instruct"
PLAIN = f"{WRITER}-plain"  # the same without its chat template: it continues two examples
ENCODERS = {"MiniLM": f"{RUNS}/all-MiniLM-L6-v2", "mini": "mini"}
BUDGET, LENGTH = 48, 256
CONTROLS = ("filler", "other", "shuffled", "empty")
ANCHORS = "anchors.json"
# The same two examples in the user's turn of a chat.
TITLES_PROMPT = """Write the title of a document that answers the query, and one sentence from that document.

Query: how do vaccines protect against disease
Title and sentence: How vaccines work. A vaccine prepares the immune system by showing it a harmless part of a germ.

Query: why does the sea have tides
Title and sentence: Causes of ocean tides. The gravity of the Moon and the Sun pulls the water of the oceans.

Query: {query}
Title and sentence:"""


@dataclass(frozen=True)
class Task:
    """What is scored, and the split that weights are chosen on."""

    name: str
    title: str
    task: str
    split: str
    tuned_on: str
    note: str


@dataclass(frozen=True)
class Expansion:
    """A row of the table, for each of `encoders`. `anchored`: a second row has a weight that was chosen."""

    title: str
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    control: tuple[str, ...] = ()  # with MiniLM
    anchored: bool = True
    encoders: tuple[str, ...] = tuple(ENCODERS)
    writer: str = WRITER

    def model(self, encoder: str) -> str:
        """As `search-r3` names it."""
        writer = "" if self.method == "rocchio" else f"{self.writer}+"
        return f"{self.method}:{writer}{ENCODERS[encoder]}"


TASKS = {
    each.name: each
    for each in (
        Task("nfcorpus", "NFCorpus, dev", "beir:../shared/data/nfcorpus", "dev", "train",
             "Its dev queries; weights were chosen on queries of train."),
        Task("scifact", "SciFact", "beir:../shared/data/scifact", "test", "train",
             "Weights were chosen on claims of train, from which mini has learned, so that its own may be too good."),
        Task("squad", "SQuAD, 400 questions", f"beir:{RUNS}/squad-400", "test", "dev",
             "A fixed sample of its questions over all paragraphs (`squad_sample.py`); 100 others chose the weights."),
        Task("cosqa", "CosQA", "beir:../shared/data/cosqa", "test", "dev",
             "Weights were chosen on queries of dev; mini has learned from half of them and was chosen on the others."),
    )
}  # fmt: skip
EXPANSIONS = (
    Expansion("Rocchio", "rocchio"),
    Expansion("title", "gar"),
    Expansion("query2doc", "query2doc"),
    # The quick trial's row: two examples, six samples beside the query's own vector at weight 1, which nobody chose.
    Expansion(
        "six titles at 1",
        "gar",
        {"samples": 6, "temperature": 0.7, "anchor": 1.0},
        control=CONTROLS,
        anchored=False,
        encoders=("MiniLM",),
        writer=PLAIN,
    ),
    Expansion("HyDE", "hyde", {"samples": 4}, control=CONTROLS),
    Expansion("feedback", "feedback"),
    Expansion("MuGI", "mugi", {"samples": 2}),
    Expansion(
        "six titles at 1 in a chat",
        "gar",
        {"samples": 6, "temperature": 0.7, "anchor": 1.0, "prompt": TITLES_PROMPT},
        anchored=False,
        encoders=("MiniLM",),
    ),
)
OWN = "mini anchored"  # mini's own reasoning


def tuned() -> dict[str, tuple[str, Mapping[str, Any]]]:
    """Model and settings of each row whose weight is chosen, by the row's label."""
    found = {
        f"{each.title} anchored, {encoder}": (each.model(encoder), each.settings)
        for each in EXPANSIONS
        if each.anchored
        for encoder in each.encoders
    }
    return {**found, OWN: ("mini", {})}


def systems(anchors: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The [[systems]] of a plan, with the anchored rows that have a weight."""
    mini: dict[str, Any] = {"label": "mini", "model": "mini", "baseline": "mini", "control": list(CONTROLS)}
    found = [{"label": "MiniLM", "model": ENCODERS["MiniLM"]}, mini]
    if (weight := anchors.get(OWN, {}).get("anchor")) is not None:
        found.append(
            {"label": OWN, "model": "mini", "mode": "reason", "baseline": "mini", "settings": {"anchor": weight}}
        )
    for each in EXPANSIONS:
        for encoder in each.encoders:
            entry: dict[str, Any] = {"label": f"{each.title}, {encoder}", "model": each.model(encoder)}
            entry["baseline"] = encoder
            if each.settings:
                entry["settings"] = dict(each.settings)
            if each.control and encoder == "MiniLM":
                entry["control"] = list(each.control)
            found.append(entry)
            label = f"{each.title} anchored, {encoder}"
            if each.anchored and (weight := anchors.get(label, {}).get("anchor")) is not None:
                settings = {**each.settings, "anchor": weight}
                found.append({"label": label, "model": entry["model"], "baseline": encoder, "settings": settings})
    return found


def plan(task: Task, anchors: Mapping[str, Mapping[str, Any]]) -> str:
    """The TOML file. JSON's texts, numbers and lists are TOML's too."""
    lines = [
        f"# {task.title}. {task.note} Made by plans.py: edit that.",
        f"tasks = {json.dumps([task.task])}",
        f'split = "{task.split}"',
        f'output = "{RUNS}/{task.name}"',
        'baseline = "MiniLM"',
        f"budgets = [{BUDGET}]",
        f"settings = {{ max_length = {LENGTH} }}",
    ]
    for each in systems(anchors):
        lines += ["", "[[systems]]"]
        lines += [f"{key} = {json.dumps(value)}" for key, value in each.items() if key != "settings"]
        if "settings" in each:
            lines.append("[systems.settings]")
            lines += [f"{key} = {json.dumps(value)}" for key, value in each["settings"].items()]
    return "\n".join(lines) + "\n"


def read_anchors(folder: Path = HERE) -> dict[str, dict[str, dict[str, Any]]]:
    """What was chosen for each task and row: {"anchor", "difference", "interval", "queries", "split", "commit"}."""
    path = folder / ANCHORS
    found: dict[str, dict[str, dict[str, Any]]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def main(arguments: list[str] | None = None) -> int:
    """Write the plans, or compare them; returns 1 when one is out of date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=HERE)
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args(arguments)
    anchors, late = read_anchors(given.folder), []
    for task in TASKS.values():
        path, text = given.folder / f"{task.name}.toml", plan(task, anchors.get(task.name, {}))
        if not given.check:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            late.append(path.name)
    if late:
        print(f"{', '.join(late)}: not what plans.py says. Run it.", file=sys.stderr)
    return int(bool(late))


if __name__ == "__main__":
    sys.exit(main())
