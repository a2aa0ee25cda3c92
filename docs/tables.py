"""The tables of the pages that are made from data: `python docs/tables.py` writes them, `--check` only compares.

A part stands between `<!-- begin: docs/tables.py NAME -->` and the same with `end`. Results come from results/*.json,
hours and memory from the functions that print a dry run.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from results.pages import up_to_date
from results.qwen import SHAPES

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
# GiB and dense bfloat16 TFLOP/s with float32 accumulation, by NVIDIA's data sheets.
GPUS = {
    "RTX 4090": (24, 165),
    "L40S": (48, 362),
    "A100 80 GB": (80, 312),
    "H100 SXM": (80, 989),
    "H200": (141, 989),
    "B200": (180, 2250),
}
MODELS = {"1.5b": "Qwen/Qwen2.5-1.5B-Instruct", "7b": "Qwen/Qwen2.5-7B-Instruct"}
RUNS = (
    ("stage 1, 1.5B", "1.5b", "qwen2.5-1.5b.toml", ()),
    ("stage 2, 1.5B", "1.5b", "rl_qwen2.5-1.5b.toml", ()),
    ("stage 1, 1.5B, adapter", "1.5b", "qwen2.5-1.5b.toml", ("model.lora.rank=16",)),
    ("stage 2, 1.5B, adapter", "1.5b", "rl_qwen2.5-1.5b.toml", ("model.lora.rank=16",)),
    ("stage 1, 7B, adapter", "7b", "qwen2.5-7b.toml", ()),
    ("stage 2, 7B, adapter", "7b", "rl_qwen2.5-7b.toml", ()),
)


def estimates() -> str:
    """Memory and hours of the shipped configurations on one GPU of each type, as the dry run counts them."""
    from transformers import Qwen2Config

    from train.config.loading import load_config
    from train.config.stages import RlConfig, SftConfig
    from train.plan.base import planned_model
    from train.plan.memory import estimate
    from train.plan.work import Machine, longest, work_of

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size, name in MODELS.items():
            Qwen2Config(**SHAPES[name]).save_pretrained(Path(folder, size))
        for name, size, file, settings in RUNS:
            path = ROOT / "train" / "configs" / file
            config: Any = load_config(path, settings, RlConfig if file.startswith("rl_") else SftConfig)
            model = planned_model(config.model, path, str(Path(folder, size))).model
            gib = estimate(model, config).total / 2**30
            work, steps = work_of(model, config, longest(config), 1), config.optimization.steps
            hours = [
                f"{work.hours(steps, Machine(peak_tflops=peak), peak):,.0f}" if gib < room else "–"
                for room, peak in GPUS.values()
            ]
            rows.append([name, f"{steps:,}", f"{gib:.0f}", *hours])
    return table(["run", "steps", "GiB", *GPUS], rows)


def nano() -> str:
    """nDCG@10 by hops, of nano with and without reasoning and of BM25."""
    found = {(row["model"], row["mode"], row.get("hops")): row for row in read("nano.json")["rows"]}
    rows = []
    for label, model, mode in (
        ("nano, reasoning", "nano", "reason"),
        ("nano, direct", "nano", "direct"),
        ("BM25", "bm25", "direct"),
    ):
        cells = [found[model, mode, hops] for hops in (1, 2, 3, 4, None)]
        rows.append([label, *map(scored, cells), f"{cells[-1]['reasoning_tokens_per_query']:.1f}"])
    return table(["", "1 hop", "2 hops", "3 hops", "4 hops", "all", "tokens per query"], rows)


def seeds() -> str:
    """nDCG@10 with reasoning before and after stage 2, by seed."""
    rows = []
    for seed in (0, 1, 2):
        for stage, label in (("sft", "after stage 1"), ("rl", "after stage 2")):
            cells = {
                row["hops"]: row
                for row in read("rl/summary.json")
                if (row["seed"], row["stage"], row["mode"]) == (seed, stage, "reason")
            }
            rows.append([str(seed), label, *(scored(cells[hops]) for hops in (1, 2, 3, 4))])
    return table(["seed", "", "1 hop", "2 hops", "3 hops", "4 hops"], rows)


def differences() -> str:
    """Paired differences of nDCG@10."""
    words = {
        "reason - direct, after RL": "reasoning minus direct, after stage 2",
        "after RL - after SFT, reason": "after stage 2 minus after stage 1, reasoning",
    }
    rows = [
        [words[row["comparison"]], str(row["hops"]), gained(row), f"{row['p']:.4f}"]
        for row in sorted(read("rl/comparisons.json"), key=lambda row: list(words).index(row["comparison"]))
    ]
    return table(["difference", "hops", "nDCG@10", "p"], rows)


def mini() -> str:
    """nDCG@10 and cost on real text."""
    rows = [
        [
            task_name(row["task"]),
            {"minilm": "all-MiniLM-L6-v2", "mini": f"mini, {'reasoning' if row['mode'] == 'reason' else 'direct'}"}[
                row["model"]
            ],
            scored(row),
            f"{row['reasoning_tokens_per_query']:.1f}",
            f"{row['queries']:,}",
        ]
        for row in read("mini.json")["rows"]
    ]
    return table(["task", "model", "nDCG@10", "tokens per query", "queries"], sorted(rows, key=lambda row: row[0]))


def mini_differences() -> str:
    """Reasoning minus direct on real text."""
    rows = [
        [task_name(row["task"]), gained(row), f"{row['p']:.2f}", f"{row['queries']:,}"]
        for row in read("mini.json")["differences"]
    ]
    return table(["task", "nDCG@10", "p", "queries"], rows)


def cache() -> str:
    """The reward's error by size, without refresh and with the shipped policy."""
    rows = [
        [
            f"{row['rows']:,}",
            {"none": "no refresh", "local+map": "what was touched, and the map"}[row["policy"]],
            f"{row['share_reencoded']:.2%}",
            f"{row['reward_error_batch']:.4f}",
            f"{row['reward_error_heldout']:.4f}",
        ]
        for row in read("corpus_cache/summary.json")
        if row["step"] == 100 and row["policy"] in ("none", "local+map")
    ]
    return table(["documents", "policy", "encoded again per step", "error, batch", "error, held-out questions"], rows)


def speed() -> str:
    """Ratios of reasoning, documents and rollouts."""
    wanted = {"(i) generate, then read again", "(iii) sentence-transformers", "8 separate prompts, then read again"}
    rows = [
        [row["case"], row["peer"].partition(") ")[2] or row["peer"], f"{row['ratio']:.2f}"]
        for row in read("speed/bench.json")
        if row["peer"] in wanted
        and not row["case"].startswith("memory")
        and row["case"].split()[-1] in ("1", "64", "8")
    ]
    return table(["case", "against", "times as fast"], rows)


PARTS: dict[str, tuple[str, Callable[[], str]]] = {
    "estimates": ("paper.md", estimates),
    "nano": ("results.md", nano),
    "seeds": ("results.md", seeds),
    "differences": ("results.md", differences),
    "mini": ("results.md", mini),
    "mini differences": ("results.md", mini_differences),
    "cache": ("results.md", cache),
    "speed": ("results.md", speed),
}


def read(name: str) -> Any:
    """A file of results."""
    return json.loads((ROOT / "results" / name).read_text(encoding="utf-8"))


def task_name(name: str) -> str:
    """A task without the hash of its content."""
    return {"scifact": "SciFact", "cosqa": "CosQA"}[name.split("-")[1]]


def scored(row: dict[str, Any]) -> str:
    """A quality, and below it its interval."""
    low, high = row["interval"]
    return f"{row['ndcg_at_10']:.3f}<br><small>{low:.3f} to {high:.3f}</small>"


def gained(row: dict[str, Any]) -> str:
    """A difference with its interval."""
    low, high = row["interval"]
    return f"{row['difference']:+.3f} <small>({low:+.3f} to {high:+.3f})</small>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def written(text: str, page: str) -> str:
    """The text of a page with all of its parts made again. Raises ValueError for a part that is not on it."""
    for name, (home, make) in PARTS.items():
        if home != page:
            continue
        begin, end = (f"<!-- {word}: docs/tables.py {name} -->" for word in ("begin", "end"))
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"{page} needs {begin} and {end} once each")
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{make()}\n{end}{rest.split(end)[1]}"
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pages, or compare them; returns 1 where one is out of date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args(arguments).check
    pages = {DOCS / page: page for page in sorted({home for home, _ in PARTS.values()})}
    texts = {path: written(path.read_text(encoding="utf-8"), page) for path, page in pages.items()}
    return up_to_date(texts, "python docs/tables.py", check=check)


if __name__ == "__main__":
    sys.exit(main())
