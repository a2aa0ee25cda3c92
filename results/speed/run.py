"""The benchmark's page: `bench.json` as `search-r3 bench` writes it, README.md with the targets, and figure.png.

OMP_NUM_THREADS=1 python results/speed/run.py          # an hour and a half of one core
python results/speed/run.py --resume                   # what bench.json lacks
python results/speed/run.py --page                     # only the page, from bench.json and machine.json
"""

import argparse
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from results.figures import COLOURS, GREY, drawn
from results.measure import commit, write_json
from results.pages import read_json, table

HERE = Path(__file__).resolve().parent
FIGURE = HERE / "figure.png"
# (what, prefix of the case, text in the case, text in the peer, least ratio)
TARGETS = (
    ("reason-then-embed, batch 16 and 64, against two passes", "reason", ("batch 16", "batch 64"), "(i)", 2.5),
    ("the same at batch 1", "reason", ("batch 1",), "(i)", 1.15),
    ("documents of SciFact's lengths, against sentence-transformers", "encode", ("scifact",), "(iii)", 1.1),
    ("short documents, against sentence-transformers", "encode", ("short",), "(iii)", 1.7),
    ("rollouts of 64 tokens, against separate prompts", "rollout", ("group 8", "group 16"), "separate", 2.5),
    ("peak memory, against generate(output_hidden_states=True)", "memory reason", ("batch",), "(ii)", 2.0),
    ("cost of one item, few against many", "flat", ("flat",), "ourselves", 0.9),
    ("a token after a long text, against one after 256 tokens", "context", ("tokens",), "ourselves", 0.667),
)
NOTES = (
    "One core each; the other one trained a model meanwhile. Pages before commit a273029 had two threads and nothing",
    "else on the machine. Ratios of decoding were larger there, 3.2 to 4.7 at 30m and 120m: a second thread helps few",
    "large products more than many small ones. Our code itself is nowhere slower than before: [decode.md](decode.md).",
    "",
    "Missed: at 30m and 120m a step of 16 rows in float32 is mostly linear layers, which both sides multiply; a single",
    "query saves only what is read again. With nano's documents tokenising and the small products are the same on both",
    "sides, and sentence-transformers loses only the padding; the limits below say what would be left. A single",
    "document gains little or nothing: there is no batch to sort and no prefix to share, and both sides run the same",
    "forward pass. The ways in the table above gain at most a few hundredths.",
    "",
    "Tried and not shipped, by scripts that were not kept: the head as weights times rows (faster with two threads,",
    "slower with one; packing gains more), and long documents without the shared prompt, whose attention needs no mask",
    "(no gain); keys stored transposed, for attention by two plain products: other bits, and a cache that no library",
    "knows.",
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
    for target in TARGETS:
        what, *_, least = target
        rows = [one for one in records if belongs(one, target)]
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
        "![Our time and memory beside those of the peers, one ratio per case; the numbers are in the table below]"
        "(figure.png)",
        "",
        "## Every case",
        "",
        *table(["case", "peer", "ratio", "ours", "theirs", "unit", "runs"], (one.values() for one in records)),
        *notes(read_json(HERE / "tried.json")),
        *(limits(read_json(HERE / "limits.json")) if (HERE / "limits.json").exists() else ()),
        "The cost of a decode step by rows and context, before and after a commit: [decode.md](decode.md).",
        'Our engine, `engine="vllm"`, and vLLM with a second pass: [vllm.md](vllm.md).',
        "SmolLM2-135M-Instruct, in bfloat16 and float32: [smol.md](smol.md).",
        "Other ways to multiply: [kernels.md](kernels.md).",
        "Threads beside other work: [threads.md](threads.md).",
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


def figure(path: Path = FIGURE) -> None:
    """Draw the ratio of every case: one panel per kind of work and peer, one colour per size of the model."""
    records = read()[0]
    panels: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for one in records:
        title, case = described(one)
        panels.setdefault(title, {}).setdefault(case, []).append(one)
    sizes = list(dict.fromkeys(size_of(one) for one in records))
    heights = [len(cases) + 0.8 for cases in panels.values()]
    with drawn(
        path, [HERE / "bench.json"], (9, 0.38 * sum(heights) + 1), (len(panels), 1), sharex=True, height_ratios=heights
    ) as (chart, grid):
        for axes, (title, cases) in zip(grid[:, 0], panels.items(), strict=True):
            for place, rows in enumerate(cases.values()):
                for one in rows:
                    number = sizes.index(size_of(one))
                    height = place + 0.22 * (number - (len(sizes) - 1) / 2)  # side by side: no dot hides another
                    axes.plot(one["ratio"], height, "o", color=COLOURS[number], label=size_of(one))
                least = {target for one in rows if (target := least_of(one)) is not None}
                for target in least:
                    axes.plot(
                        [target, target], [place - 0.4, place + 0.4], color="black", linewidth=1.2, label="target"
                    )
            axes.axvline(1, color=GREY, linewidth=1)
            axes.set(title=title, ylim=(len(cases) - 0.45, -0.55))
            axes.set_yticks(range(len(cases)), list(cases))
        bottom = grid[-1, 0]
        bottom.set_xscale("log", base=2)
        bottom.set(xlim=(0.6, 16), xlabel="theirs divided by ours (ratio, logarithmic): right of 1 we need less")
        bottom.set_xticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"])
        entries = {
            text: line for axes in chart.axes for line, text in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        names = [*sizes, "target"]
        shown = [f"{name}: at least" if name == "target" else f"model {name}" for name in names]
        chart.legend([entries[name] for name in names], shown, loc="outside upper left", ncols=len(names))


def size_of(record: dict[str, Any]) -> str:
    """The model's name in a case: "30m" of "memory reason 30m batch 16"."""
    words = record["case"].split()
    return words[2] if words[0] in ("memory", "flat") else words[1]


def described(record: dict[str, Any]) -> tuple[str, str]:
    """The panel of a case (what is compared with what) and its line there, in words."""
    kind, _, rest = record["case"].partition(f" {size_of(record)} ")
    peer = record["peer"].split(") ", 1)[-1]
    if kind.startswith("flat"):
        few, _, many = rest.partition(" to ")
        return "Time for one of many, against one of few", f"{many} against {few}"
    if kind == "context":
        lengths = rest.rpartition(", ")[2].removesuffix(" tokens").split(" to ")
        return (
            "Time for a token after a long text, against one after a short",
            f"{lengths[1]} tokens against {lengths[0]}",
        )
    what = {
        "reason": "Time to reason",
        "encode": "Time for documents",
        "rollout": "Time for rollouts",
        "memory reason": "Peak memory to reason",
        "memory encode": "Peak memory for documents",
    }[kind]
    if kind == "rollout":
        many = rest.removeprefix("group ")
        return f"{what}, against {peer.removeprefix(many).strip()}", f"{many} of one query"
    texts, _, batch = rest.rpartition("batch ")
    words = {"scifact ": "SciFact's lengths, ", "short ": "short, "}.get(texts, texts)
    return f"{what}, against {peer}", f"{words}batch of {batch}"


def least_of(record: dict[str, Any]) -> float | None:
    """The target of a case, None where it has none."""
    found = [target[-1] for target in TARGETS if belongs(record, target)]
    return found[0] if found else None


def belongs(record: dict[str, Any], target: tuple[str, str, tuple[str, ...], str, float]) -> bool:
    """Whether a target is about this case."""
    _, prefix, cases, peer, _ = target
    named = any(f" {case} " in f" {record['case']} " for case in cases)
    return record["case"].startswith(prefix) and peer in record["peer"] and named


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
    figure()


if __name__ == "__main__":
    main()
