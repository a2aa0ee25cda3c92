"""The benchmark on a real model, SmolLM2-135M-Instruct with the embed token added, on one core: smol.json and smol.md.

    search-r3 init runs/comparison/SmolLM2-135M-Instruct --output runs/speed/SmolLM2-135M-Instruct
    OMP_NUM_THREADS=1 python results/speed/smol.py --model runs/speed/SmolLM2-135M-Instruct [--only KIND]
    OMP_NUM_THREADS=1 python results/speed/smol.py --model runs/speed/SmolLM2-135M-Instruct --profile
    python results/speed/smol.py --page                    # the page again, from smol.json

The cases are those of `search-r3 bench --model FOLDER`. Beside the time by the clock, that of the processor is taken
(of this process: not where the peer is vLLM), because other work on the machine changes it less. Each call adds a round
to the cases of smol.json: some ten minutes of a core. With `--vllm` it adds one to those whose peer is vLLM.
"""

import argparse
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from results.measure import commit, write_json
from results.pages import read_json, table

HERE = Path(__file__).resolve().parent
# Kind, and texts in the cases that are measured.
WANTED = (("context", ("",)), ("reason", ("batch 16", "batch 64")), ("encode", ("batch 64",)))
# Kind, text in the case, text in the peer, least ratio. A token at 2,048 may cost 1.5 times one at 256.
TARGETS = (
    ("reason", "", "(i)", 4.0),
    ("reason", "", "vLLM", 1.5),
    ("encode", "scifact", "(iii)", 1.1),
    ("encode", "short", "(iii)", 1.7),
    ("context", "", "ourselves", round(1 / 1.5, 3)),
)
LONGEST = 48


class Clocks:
    """The clock that `measure` asks, which also keeps what the processor's clock said at these moments."""

    def __init__(self) -> None:
        self.processor: list[float] = []

    def __call__(self) -> float:
        """Seconds by the clock."""
        self.processor.append(time.process_time())
        return time.perf_counter()

    def seconds(self) -> list[float]:
        """Of the processor, ours and theirs, in the one round."""
        return [round(end - begin, 3) for begin, end in zip(self.processor[::2], self.processor[1::2], strict=True)]


def measure(options: argparse.Namespace) -> None:
    """A round of every case that is asked for; smol.json is written after each."""
    from search_r3_mteb.evaluation.bench import measure as timed
    from search_r3_mteb.evaluation.bench_cases import Case, cases
    from search_r3_mteb.evaluation.bench_work import RealModel, Subject

    for dtype in options.dtype:
        subject = Subject.of(RealModel(options.model, dtype, LONGEST, options.vllm, rounds=1))
        for kind, names in WANTED:
            if options.only and kind not in options.only:
                continue
            for case in cases(kind, subject, quick=False):
                if not isinstance(case, Case) or not any(name in case.case for name in names):
                    continue
                if options.vllm is not None and "vLLM" not in case.peer:
                    continue
                clocks = Clocks()
                keep(timed(case, clocks), clocks.seconds(), case)


# What a step's time goes to, by the names that torch's profiler gives.
PARTS = {
    "linear layers": ("linear", "aten::mm", "addmm"),
    "attention": ("scaled_dot_product",),
    "argmax": ("argmax",),
    "copies": ("copy", "scatter", "aten::cat", "aten::where"),
}


def linear_alone(model: Any, rows: int) -> float:
    """Least seconds of the processor in which this many rows go through every linear layer, with packed weights."""
    import torch

    from search_r3_mteb.encoder.packing import packed_linears

    layers = [layer for layer in model.modules() if type(layer) is torch.nn.Linear]
    inputs = {
        layer.in_features: torch.randn(rows, layer.in_features, dtype=layer.weight.dtype).to(layer.weight.device)
        for layer in layers
    }
    took = []
    with torch.inference_mode(), packed_linears(model):
        for _ in range(6):
            began = time.process_time()
            for layer in layers:
                layer(inputs[layer.in_features])
            took.append(time.process_time() - began)
    return min(took)


def profile(options: argparse.Namespace) -> None:
    """Milliseconds of the processor per decode step, and the shares of its parts, into smol.json."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    from search_r3_mteb.evaluation.bench_work import RealModel, Stepping, Subject

    path, rows = HERE / "smol.json", []
    for dtype in options.dtype:
        subject = Subject.of(RealModel(options.model, dtype, LONGEST))
        for count, context in ((16, 256), (64, 256), (16, 2048)):
            stepping = Stepping(subject, context, count, most=20)
            stepping(2)
            began = time.process_time()
            stepping(4)
            took = (time.process_time() - began) / 4
            with profiled(activities=[ProfilerActivity.CPU]) as seen:
                stepping(4)
            spent = {event.key: event.self_cpu_time_total for event in seen.key_averages()}
            shares = {
                part: round(
                    sum(spent[key] for key in spent if any(name in key for name in names)) / sum(spent.values()), 2
                )
                for part, names in PARTS.items()
            }
            rows.append({"dtype": dtype, "rows": count, "context": context, "ms": round(1000 * took, 1)} | shares)
            rows[-1]["linear alone, ms"] = round(1000 * linear_alone(subject.checkpoint.model, count), 1)
            print(rows[-1], flush=True)
    found = read_json(path)
    known = {(one["dtype"], one["rows"], one["context"]): one for one in (*found.get("profile", []), *rows)}
    write_json(path, found | {"profile": list(known.values()), "profile_commit": commit()})


def keep(record: dict[str, Any], processor: list[float], case: Any) -> None:
    """Add a round to its case in smol.json, which another process may have written meanwhile."""
    import torch

    path = HERE / "smol.json"
    found = read_json(path) if path.exists() else {"commit": "", "cases": []}
    about = {
        "command": "python results/speed/smol.py --model runs/speed/SmolLM2-135M-Instruct",
        "commit": ", ".join(dict.fromkeys(filter(None, [*found["commit"].split(", "), commit()]))),
        "processor": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "longest_reasoning": LONGEST,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "sentence-transformers")},
    }
    same = [one for one in found["cases"] if (one["case"], one["peer"]) == (case.case, case.peer)]
    if not same:
        same = [{"case": case.case, "peer": case.peer, "unit": case.unit, "rounds": []}]
        found["cases"].append(same[0])
    one = {key: record[key] for key in ("ratio", "ours", "theirs")}
    if "vLLM" not in case.peer:  # its time is not this process's
        fair = case.items / (case.their_items or case.items)
        one["processor_ratio"] = round(processor[1] / processor[0] * fair, 3)
    same[0]["rounds"].append(one)
    print(case.case, case.peer, one, flush=True)
    write_json(path, found | about)


def median(case: dict[str, Any], key: str) -> float | None:
    """Over the rounds of a case; None where none has it."""
    values = [one[key] for one in case["rounds"] if key in one]
    return round(statistics.median(values), 2) if values else None


def page(found: dict[str, Any]) -> str:
    """The text of smol.md."""
    rows = []
    for one in found["cases"]:
        least = next((least for kind, text, peer, least in TARGETS if _is(one, kind, text, peer)), None)
        ratio, processor = median(one, "ratio"), median(one, "processor_ratio")
        best = ratio if processor is None else processor
        verdict = "" if least is None or best is None else "reached" if best >= least else "missed"
        cells = (median(one, "ours"), median(one, "theirs"), one["unit"], ratio, processor, least, verdict)
        rows.append([one["case"], one["peer"], len(one["rounds"]), *("" if cell is None else cell for cell in cells)])
    longest = found["longest_reasoning"]
    return "\n".join(
        [
            "# The benchmark on a real model",
            "",
            f"`{found['command']}` at commit {found['commit']}; {found['processor']}, {found['threads']} thread,",
            f"python {found['python']}, torch {found['torch']}, transformers {found['transformers']}, "
            f"sentence-transformers {found['sentence-transformers']}.",
            "",
            "SmolLM2-135M-Instruct (Q4_1 weights dequantised) after `search-r3 init`, with the published prompts. Both",
            "sides run in turns; a ratio is the median over rounds of theirs / ours, so above 1 we are faster. The",
            "other core trained a model meanwhile. Ratios are given by the clock, and by the processor's time, which",
            "other work changes less and which decides here whether a target is reached.",
            f"Queries reason {longest // 8} to {longest} tokens. The two sides' vectors are compared: in float32 by",
            "their largest difference (1e-4), in bfloat16 by their cosine (0.998).",
            "",
            *table(["case", "peer", "rounds", "ours", "theirs", "unit", "ratio", "processor", "target", ""], rows),
            *profile_lines(found),
            *shared_lines(read_json(HERE / "tried.json")),
            *NOTES,
        ]
    )


def profile_lines(found: dict[str, Any]) -> list[str]:
    """The table of a step's parts."""
    rows = found.get("profile", [])
    if not rows:
        return []
    return [
        "## What a decode step is made of",
        "",
        f"`python results/speed/smol.py --model FOLDER --profile` at commit {found['profile_commit']}: milliseconds of",
        "the processor per step of all rows, and each part's share by torch's profiler, whose clock is the wall's.",
        "`linear alone`: the least time in which so many rows go through all linear layers, with packed weights.",
        "",
        *table(list(rows[0]), (one.values() for one in rows)),
    ]


def _is(one: dict[str, Any], kind: str, text: str, peer: str) -> bool:
    return one["case"].startswith(kind) and text in one["case"] and peer in one["peer"]


def shared_lines(tried: dict[str, Any]) -> list[str]:
    """What it gains to attend to the rows' common beginning together."""
    found = tried.get("common beginning together")
    if found is None:
        return []
    rows = [[case, *(one["steps"][case] for one in found.values())] for case in next(iter(found.values()))["steps"]]
    rows.append(["a call of 64 queries, 48 tokens", *(one["call of 64 queries"] for one in found.values())])
    return [
        "## The common beginning, multiplied once",
        "",
        f"`python results/speed/tried.py --shared FOLDER` at commit {tried['shared commit']}, one thread: each row by",
        "itself / together, in the processor's time, medians of three rounds in turns; above 1, together is faster.",
        "Of a step's context all but 16 tokens are common, of a call the instruction.",
        "",
        *table(["work", *found], rows),
        *(
            f"- {dtype}: {one['queries with the same words']} of 64 queries keep their words; of these the vectors "
            f"differ by {one['largest difference']:.1g} at most, their lowest cosine is {one['lowest cosine']:.5f}."
            for dtype, one in found.items()
        ),
        "",
        "In half precision both parts are rounded before they are joined, so that rows that reason have another",
        "identity there than before (`encoder/arithmetic.py`).",
        "",
    ]


NOTES = (
    "## What is missed, and why",
    "",
    "- **A token at context 2,048** costs what the table says where the rows share their beginning, as queries",
    "  under one instruction do, and as the case does: `encoder/shared_prefix.py` multiplies it once",
    "  for all rows. Rows that share nothing read their own keys, which cost 2.0 to 2.6 times before that was written.",
    "- **Reasoning at batch 16 against generate-then-reread, and vLLM**: queries reason 27 tokens on average here, so",
    "  what we save beside the steps counts little, and 0.6 to 0.7 of a step of 16 rows are linear",
    "  layers, which both sides multiply. Longer reasonings gain more: `generate` copies its cache at every token",
    "  and keeps rows that have ended: up to 256 tokens it is 3.7 and 4.7 at the random 120m shape",
    "  ([README.md](README.md)). That would take hours here.",
    "- vLLM is a peer with `--vllm PYTHON`. Its cases have one round; five rounds of 64 queries, and why 1.5 times",
    "  is out of reach, are in [vllm.md](vllm.md).",
    "- With nothing on the other core one earlier round gave 2.29 and 2.85 at batch 16, 4.45 and 4.94 at 64 (bfloat16,",
    "  float32), documents 1.63 and 1.63, short ones 2.28 and 2.24 (commit 25dcf21).",
    "",
    "Tried: the most probable token by numpy (kept: the same ids). Not changed: the float32 copy",
    "of the logits, which heads that scale or cap need, and which is within the copies, 0.03 to 0.09 of a step; the",
    "window that attention sees, which is already the rows' own longest; the activation in float32 (not faster).",
    "",
    "## Other ways to a faster step",
    "",
    "[kernels.md](kernels.md): gate and up in one product, query, key and value in one, the other operations inside",
    "oneDNN's products (for code that knows each architecture's perceptron), layouts for other numbers of rows,",
    "weights times rows, attention by plain products. The best save one to three hundredths of a step each. Huge pages",
    "(`THP_MEM_ALLOC_ENABLE=1`) changed nothing.",
    "",
)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="the folder that `search-r3 init` wrote")
    parser.add_argument("--vllm", type=Path, help="the Python of an environment with vLLM; its cases alone")
    parser.add_argument("--dtype", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--only", nargs="+", help="these kinds alone")
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--profile", action="store_true", help="the parts of a decode step alone")
    options = parser.parse_args()
    if not options.page:
        if options.model is None:
            parser.error("--model FOLDER is needed")
        (profile if options.profile else measure)(options)
    (HERE / "smol.md").write_text(page(read_json(HERE / "smol.json")), encoding="utf-8")


if __name__ == "__main__":
    main()
