"""Peak memory and time of rendering long texts with nano: one of 10 MB, and 2,000 of 20 KB. Prints JSON.

    python results/reliability/long_texts.py [--output FILE]

Each case runs in a process of its own. Run it with PYTHONPATH on another clone to measure another version.
"""

import argparse
import hashlib
import json
import random
import subprocess
import sys
import time
from pathlib import Path

from search_r3_mteb import SearchR3Encoder
from search_r3_mteb.evaluation.bench_memory import rise
from search_r3_mteb.evaluation.provenance import commit

CASES = {"one text of 10 MB": (1, 10_000_000), "2,000 documents of 20 KB": (2000, 20_000)}
WORDS = (
    "the",
    "storm",
    "moved",
    "over",
    "a",
    "quiet",
    "harbour",
    "at",
    "night",
    "while",
    "nobody",
    "heard",
    "it",
    "come",
)


def texts_of(count: int, characters: int) -> list[str]:
    """`count` different texts of so many characters."""
    rng = random.Random(0)
    base = " ".join(rng.choices(WORDS, k=characters // 5))[:characters]
    return [f"{number} {base}"[:characters] for number in range(count)]


def measured(case: str) -> dict[str, float | str]:
    """Rise of peak memory in MB, seconds of the processor, and the digest of the token ids, in this process."""
    encoder, texts = SearchR3Encoder("nano", mode="direct"), texts_of(*CASES[case])
    digest, seconds = hashlib.sha256(), 0.0

    def work() -> None:
        nonlocal seconds
        began = time.process_time()
        for row in encoder.renderer.render_batch(texts, "direct"):
            digest.update(json.dumps(row.token_ids).encode())
        seconds = time.process_time() - began

    peak = rise(work)
    return {"mb": round(peak / 1e6, 1), "seconds": round(seconds, 2), "sha256": digest.hexdigest()}


def main() -> None:
    """The command line; with --case this is one of its processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measured(options.case)))
        return
    found: dict[str, object] = {"commit": commit()}
    for case in CASES:
        done = subprocess.run([sys.executable, __file__, "--case", case], capture_output=True, text=True, check=True)
        found[case] = json.loads(done.stdout.splitlines()[-1])
    text = json.dumps(found, indent=1)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
