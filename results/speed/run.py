"""The benchmark's page: `bench.json` as `search-r3 bench` writes it, README.md with the targets, and figure.png.

OMP_NUM_THREADS=2 python results/speed/run.py          # about forty minutes on two free cores
python results/speed/run.py --resume                   # what bench.json lacks
python results/speed/run.py --page                     # only the page, from bench.json and machine.json
"""

import argparse
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from results.measure import commit, write_json
from results.pages import read_json, table

HERE = Path(__file__).resolve().parent
# (what, prefix of the case, text in the case, text in the peer, least ratio)
TARGETS = (
    ("reason-then-embed, batch 16 and 64, against two passes", "reason", ("batch 16", "batch 64"), "(i)", 2.5),
    ("the same at batch 1", "reason", ("batch 1",), "(i)", 1.15),
    ("documents of SciFact's lengths, against sentence-transformers", "encode", ("scifact",), "(iii)", 1.1),
    ("short documents, against sentence-transformers", "encode", ("short",), "(iii)", 1.7),
    ("rollouts of 64 tokens, against separate prompts", "rollout", ("group 8", "group 16"), "separate", 2.5),
    ("peak memory, against generate(output_hidden_states=True)", "memory reason", ("batch",), "(ii)", 2.0),
    ("cost of one item, few against many", "flat", ("flat",), "ourselves", 0.9),
)
NOTES = (
    "nano misses the target of decoding at batch 16: most of a step is small kernels and the model's own Python, which",
    "both sides run; we save only what a step costs beside the model. The ways in the table gain at most a few",
    "hundredths. At 30m and 120m, where the weights decide, the target is exceeded. One document per call gains",
    "little: there is no batch to sort and no prefix to share, and both sides run the same forward pass. nano's short",
    "documents stay a little below the target in batches of 64: tokenising and the small products are the same on both",
    "sides, and sentence-transformers loses only the padding.",
    "",
    "Tried and not shipped, by scripts that were not kept: the head as weights times rows (faster with two threads,",
    "slower with one; packing gains more), and long documents without the shared prompt, whose attention needs no mask",
    "(no gain); keys stored transposed, so that attention is two plain products around a softmax: 0.06 to 0.21 of",
    "attention's time saved at SmolLM2's shape, but other bits, and a cache that no library knows.",
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
    write_json(HERE / "machine.json", machine)
    bench(output=HERE / "bench.json", tell=lambda record: print(record, flush=True), measured=before[0])


def limits(found: dict[str, Any]) -> list[str]:
    """How much of nano's missed cases is the forward pass, and what ratio would be left if the rest were nothing."""
    columns = ("case", "ratio", "limit", "forward, share of ours", "forward, share of theirs")
    return [
        f"`{found['command']}` at commit {found['commit']}, {found['threads']} thread, seconds of the processor.",
        "`limit`: the ratio if all of our time outside of the model's forward pass were nothing.",
        "",
        *table(columns, ([one[name] for name in columns] for one in found["cases"])),
    ]


def targets(records: list[dict[str, Any]]) -> list[list[Any]]:
    """Each target and its least ratio, the smallest, its case, the largest, and how many cases reached it."""
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
        largest, reached = max(one["ratio"] for one in rows), sum(one["ratio"] >= least for one in rows)
        found.append([what, least, worst["ratio"], worst["case"], largest, f"{reached} of {len(rows)}"])
    return found


def page(records: list[dict[str, Any]], machine: dict[str, Any]) -> str:
    """The text of README.md."""
    versions = ", ".join(f"{name} {value}" for name, value in machine.items() if name not in ("command", "commit"))
    lines = [
        "# Speed, side by side",
        "",
        f"`{machine['command']}` at commit {machine['commit']}; {versions}. The same cases: `make bench`.",
        "",
        "Both sides run in one process on the same weights, in turns; a ratio is the median over rounds of theirs /",
        "ours, so above 1 we are faster, or smaller. Memory is the rise above the loaded model, each side in a process",
        "of its own. Peers: (i) `generate`, then prompt and reasoning read again; (ii)",
        "`generate(output_hidden_states=True)`; (iii) sentence-transformers; (iv) MTEB with (iii). nano is the bundled",
        "model, 30m and 120m are random Qwen2 shapes.",
        "",
        "## Targets",
        "",
        *table(["target", "at least", "smallest", "in", "largest", "reached"], targets(records)),
        "![ratios](figure.png)",
        "",
        "## Every case",
        "",
        *table(["case", "peer", "ratio", "ours", "theirs", "unit", "runs"], (one.values() for one in records)),
        *notes(read_json(HERE / "tried.json")),
        *(limits(read_json(HERE / "limits.json")) if (HERE / "limits.json").exists() else ()),
        "The cost of a decode step by rows and context, before and after a commit: [decode.md](decode.md).",
        'Our engine, `engine="vllm"`, and vLLM with a second pass: [vllm.md](vllm.md).',
        "SmolLM2-135M-Instruct, in bfloat16 and float32: [smol.md](smol.md).",
        "",
        "No GPU was available. `python results/speed/gpu.py` measures one and writes gpu.md; with `--dry-run` it runs",
        "on the CPU.",
        "",
    ]
    return "\n".join(lines)


def notes(tried: dict[str, Any]) -> list[str]:
    """The gain of each change by itself, from tried.json, and why some targets are missed."""
    rows: list[tuple[str, float]] = []
    for what, value in tried.items():
        if isinstance(value, dict):
            rows += [(f"{what}: {case}", ratio) for case, ratio in value.items()]
        elif isinstance(value, float):
            rows.append((what, value))
    return [
        "## What was tried",
        "",
        f"`{tried['command']}` at commit {tried['commit']}, {tried['threads']} threads, both ways in turns; a ratio",
        "above 1: the named way is faster.",
        "",
        *table(["way", "ratio"], rows),
        *NOTES,
    ]


def figure(records: list[dict[str, Any]], path: Path) -> None:
    """Draw the ratios by case, one colour per peer."""
    from matplotlib.figure import Figure

    peers = list(dict.fromkeys(one["peer"].split(" ")[0] for one in records))
    chart = Figure(figsize=(9, 0.24 * len(records) + 1))
    axes = chart.subplots()
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


def read() -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The records, in the order of the models' sizes, and the machine."""
    sizes = ("nano", "30m", "120m")
    records = sorted(
        read_json(HERE / "bench.json"),
        key=lambda one: next(i for i, size in enumerate(sizes) if f" {size} " in one["case"]),
    )
    return records, read_json(HERE / "machine.json")


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
