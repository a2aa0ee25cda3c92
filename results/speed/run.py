"""The benchmark's results as a page: `bench.json` as `search-r3 bench` writes it, README.md with the targets beside it, figure.png.

OMP_NUM_THREADS=2 python results/speed/run.py          # about half an hour on two free cores
python results/speed/run.py --resume                   # what bench.json lacks
python results/speed/run.py --page                     # only the page, from bench.json and machine.json

The targets are those of issue 6.
"""

import argparse
import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from measure import commit

HERE = Path(__file__).resolve().parent
# (what, prefix of the case, text in the case, text in the peer, least ratio)
TARGETS = (
    ("reason-then-embed, batch 16 and 64, against generate and reading again", "reason", ("batch 16", "batch 64"), "(i)", 2.5),
    ("the same at batch 1", "reason", ("batch 1",), "(i)", 1.15),
    ("documents of SciFact's lengths, against sentence-transformers", "encode", ("scifact",), "(iii)", 1.1),
    ("short documents, against sentence-transformers", "encode", ("short",), "(iii)", 1.7),
    ("rollouts of 64 tokens, prompt 512, against separate prompts", "rollout", ("group 8", "group 16"), "separate", 2.5),
    ("peak memory, against generate(output_hidden_states=True)", "memory reason", ("batch",), "(ii)", 2.0),
    ("cost of one item, few against many", "flat", ("flat",), "ourselves", 0.9),
)  # fmt: skip

UNFINISHED = (
    "**This run was stopped early: what is not in the list of cases below, the size 120m among it, has not been measured.**",
    "",
)
NOTES = (
    "## What was tried",
    "",
    "Each line in one run of its own, both ways in turns, two threads, on the way to the commit above (2026-11-21).",
    "",
    "- Packed weights while decoding (`encoder/packing.py`): 30m against (i), 64 prompts, 1.92 and 2.00 before, 3.13 and 3.16 after at",
    "  batch 16 (before: with the head as weights times rows, below); 2.52 and 2.72 before, 3.41 and 3.37 after at batch 64. A layer",
    "  of 384 x 1,024 alone, in microseconds: 202 -> 94 with 16 rows, 404 -> 261 with 64, 144 -> 55 with one; nano's 128 x 128 loses (10 -> 19).",
    "- Documents read 2,048 tokens at a time on a processor (`encoder/scheduling.py`) and not 16,384: 30m 7.0 -> 10.2 documents/s of",
    "  SciFact's lengths and 70 -> 91 short ones, nano 1,818 -> 2,642 short ones and no gain on long ones; 4,096 and 1,024 are no faster.",
    "- Prompts prefilled in such parts, and the cache's memory without 2 MB pages (`encoder/slots.py`): peak of nano at batch 64 96 -> 54 to 57 MiB.",
    "- Not shipped: the head as weights times rows: 9.1 -> 6.4 ms for 32,768 tokens and 16 rows with two threads, but slower with one",
    "  (11.2 -> 12.0 ms); packing gives more. Not sharing the prompt of long documents, whose attention then needs no mask: 8.6 against",
    "  9.2 documents/s (30m), no difference on nano.",
    "- nano's head was packed until its kernels' memory was found to cost a tenth of nano's peak: 2.61 against (i) at batch 64 with it,",
    "  2.21 without (two runs, so other things differ as well). Open: to have both.",
    "- nano at batch 16: how much is gained depends on how many prompts there are, because the last rows run in a batch that is no longer",
    "  full: 2.03 to 2.08 with 64 prompts, 2.40 to 2.59 with 192 (three rounds each), but 2.05 and 2.16 in this benchmark's own process, why is not known. A step of nano is four fifths small kernels and the",
    "  model's own Python, which both sides run.",
    "",
)


def measure(resume: bool) -> None:
    """Run every case, or with `resume` those that the file lacks; it is rewritten after each."""
    import torch

    from search_r3_mteb.evaluation.bench import bench

    before = read() if resume else ([], {})
    machine: dict[str, Any] = {
        "command": "python results/speed/run.py",
        "commit": ", ".join(dict.fromkeys([*before[1].get("commit", "").split(", "), commit()])).strip(", "),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "sentence-transformers", "mteb")},
    }
    (HERE / "machine.json").write_text(json.dumps(machine, indent=1) + "\n", encoding="utf-8")
    bench(output=HERE / "bench.json", tell=lambda record: print(record, flush=True), measured=before[0])


def targets(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each target with the smallest ratio of its cases, in which size it was, and how many reached it."""
    found = []
    for what, prefix, cases, peer, least in TARGETS:
        rows = [
            one
            for one in records
            if one["case"].startswith(prefix)
            and peer in one["peer"]
            and any(f" {case} " in f" {one['case']} " for case in cases)
        ]
        if not rows:
            continue
        worst = min(rows, key=lambda one: one["ratio"])
        reached = sum(one["ratio"] >= least for one in rows)
        found.append(
            {
                "target": what,
                "at least": least,
                "smallest": worst["ratio"],
                "in": worst["case"],
                "largest": max(one["ratio"] for one in rows),
                "reached": f"{reached} of {len(rows)}",
            }
        )
    return found


def page(records: list[dict[str, Any]], machine: dict[str, Any]) -> str:
    """README.md."""
    versions = ", ".join(f"{name} {value}" for name, value in machine.items() if name not in ("command", "commit"))
    lines = [
        "# Speed, side by side",
        "",
        f"`{machine['command']}` at commit {machine['commit']}; {versions}. The same cases: `make bench`.",
        "",
        "Both sides run in one process on the same weights, in turns; a ratio is the median over rounds of theirs / ours, so above 1 we",
        "are faster, or smaller. Memory is the rise above the loaded model, each side in a process of its own. Peers: (i) `generate`,",
        "then prompt and reasoning read again; (ii) `generate(output_hidden_states=True)`; (iii) sentence-transformers; (iv) MTEB with",
        "(iii). nano is the bundled model, 30m and 120m are random Qwen2 shapes.",
        "",
        *([] if any("120m" in one["case"] for one in records) else UNFINISHED),
        "## Targets",
        "",
        "| target | at least | smallest | in | largest | reached |",
        "|---|---|---|---|---|---|",
        *("| " + " | ".join(str(value) for value in row.values()) + " |" for row in targets(records)),
        "",
        "![ratios](figure.png)",
        "",
        "## Every case",
        "",
        "| case | peer | ratio | ours | theirs | unit | runs |",
        "|---|---|---|---|---|---|---|",
        *("| " + " | ".join(str(value) for value in one.values()) + " |" for one in records),
        "",
        *NOTES,
        "A GPU was not at hand. `python results/speed/gpu.py` measures one and writes gpu.md; `--dry-run` is its rehearsal on the CPU.",
        "",
    ]
    return "\n".join(lines)


def figure(records: list[dict[str, Any]], path: Path) -> None:
    """Ratios by case, one colour a peer."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    peers = list(dict.fromkeys(one["peer"].split(" ")[0] for one in records))
    chart, axes = plt.subplots(figsize=(9, 0.24 * len(records) + 1))
    for place, one in enumerate(records):
        kind = one["peer"].split(" ")[0]
        axes.barh(place, one["ratio"], color=f"C{peers.index(kind)}")
        axes.text(one["ratio"], place, f" {one['ratio']:.2f}", va="center", fontsize=7)
    axes.set_yticks(range(len(records)), [f"{one['case']}, {one['peer'].split(' ')[0]}" for one in records], fontsize=7)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlabel("theirs / ours")
    chart.tight_layout()
    chart.savefig(path, dpi=110)
    plt.close(chart)


def read() -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What has been measured, and on what."""
    records, machine = (
        json.loads((HERE / name).read_text(encoding="utf-8")) for name in ("bench.json", "machine.json")
    )
    return records, machine


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    if not options.page:
        measure(options.resume)
    records, machine = read()
    (HERE / "README.md").write_text(page(records, machine), encoding="utf-8")
    figure(records, HERE / "figure.png")


if __name__ == "__main__":
    main()
