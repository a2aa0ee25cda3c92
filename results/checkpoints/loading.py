"""What the probe adds to loading a checkpoint, measured in turns: writes loading.json beside this file.

    python results/checkpoints/loading.py [--rounds N]

Three ways of loading, one after the other in each round and in one process, so that imports and the files' place in
memory are the same for all: without the probe, for the first time (nothing remembered), and again (remembered). Beside
the bundled models there is a folder of the shape of Qwen2.5-1.5B with random weights in bfloat16, 3 GB, made and
removed here.
"""

import argparse
import json
import logging
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
BUNDLED = HERE.parents[1] / "search_r3_mteb" / "assets"


def large_folder(folder: Path) -> Path:
    """A Qwen2 model of 1.5 billion parameters, with nano's small tokenizer."""
    from transformers import AutoModelForCausalLM, Qwen2Config

    from results.qwen import SHAPES

    config = Qwen2Config(**SHAPES["Qwen/Qwen2.5-1.5B-Instruct"])
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "search_r3.json"):
        shutil.copy(BUNDLED / "nano" / name, folder)
    return folder


def measured(name: str | Path, cache: Path, rounds: int) -> dict[str, Any]:
    """Seconds of each way of loading: medians, and all of them."""
    from search_r3_mteb.encoder import checkpoints, probed

    def first() -> None:
        shutil.rmtree(cache, ignore_errors=True)
        probed.forget()
        checkpoints.load(name)

    ways = {
        "without": lambda: checkpoints.load(name, probe=False),
        "first": first,
        "again": lambda: checkpoints.load(name),
    }
    for load in ways.values():
        load()
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, load in ways.items():
            began = time.perf_counter()
            load()
            seconds[way].append(round(time.perf_counter() - began, 4))
    median = {way: round(statistics.median(each), 4) for way, each in seconds.items()}
    added = {way: round(median[way] - median["without"], 4) for way in ("first", "again")}
    return {"median_seconds": median, "added_seconds": added, "seconds": seconds}


def main() -> None:
    import torch
    import transformers

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        cache = Path(temporary) / "cache"
        os.environ["SEARCH_R3_CACHE"] = str(cache)
        found = {name: measured(name, cache, rounds) for name in ("nano", "mini")}
        found["1.5B shape"] = measured(large_folder(Path(temporary) / "large"), cache, rounds)
    about = {"torch": torch.__version__, "transformers": transformers.__version__, "processor": platform.processor()}
    about |= {"threads": 1, "rounds": rounds, "load_average": [round(each, 1) for each in os.getloadavg()]}
    (HERE / "loading.json").write_text(json.dumps({"about": about, "models": found}, indent=1) + "\n")
    for name, each in found.items():
        print(name, each["median_seconds"], "added:", each["added_seconds"])


if __name__ == "__main__":
    main()
