"""Rows of the second round of smol's stage 1: what the base, before any training, writes with two examples before it.

    python results/smol/base_text.py --base runs/smol/base --data runs/smol/data --output runs/smol/written.jsonl
        [--queries nfcorpus=1500 medical=500 squad=200 scifact=100] [--part 0 --of 2]

One sample per training query, cut after the sentence in which its 14th word lies and at 32 words; the positive is one
of the query's relevant documents, drawn by chance. The text knows nothing of that document, as at test time: a row
teaches the writer what the base can say, and the vector how far to trust it. Source: our choice, after the gates
showed that texts of relevant documents as targets teach a small writer to repeat the commonest ones.

`--part` and `--of` share the queries among processes, each with an output of its own. A killed run goes on where it
was: its rows lie in OUTPUT.unfinished until all are there.
"""

import argparse
import json
import random
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from search_r3_mteb.atomic import write_text

EXAMPLES = (
    (
        "Is there a link between coffee and heart rhythm?",
        "Caffeine intake and incidence of atrial fibrillation. Moderate coffee consumption was not associated with an "
        "increased risk of cardiac arrhythmias in this prospective cohort.",
    ),
    (
        "vitamin d",
        "Vitamin D supplementation and bone mineral density in older adults. Serum 25-hydroxyvitamin D concentrations "
        "were associated with fracture risk and muscle strength.",
    ),
)
SYSTEM = "You write the title of a scientific article that answers the query, and one sentence from its abstract."
QUERIES = {"nfcorpus": 1500, "medical": 500, "squad": 200, "scifact": 100}
NEW_TOKENS, TEMPERATURE, BATCH = 44, 0.7, 64
LEAST, MOST = 14, 32  # words
_SENTENCE = re.compile(r"(?<=[.!?])\s+")


def cut(text: str) -> str:
    """Whole sentences until `LEAST` words are there, at most `MOST` words."""
    words: list[str] = []
    for sentence in _SENTENCE.split(" ".join(text.split())):
        words += sentence.split()
        if len(words) >= LEAST:
            break
    return " ".join(words[:MOST])


class Writer:
    """A causal LM that is shown `EXAMPLES` before each query."""

    def __init__(self, base: str | Path, device: str = "cpu") -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(base, padding_side="left")
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self.model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=dtype).eval().to(device)

    def prompt(self, query: str) -> str:
        """The chat of the examples and the query, up to the reply."""
        turns = [{"role": "system", "content": SYSTEM}]
        for asked, said in EXAMPLES:
            turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        turns.append({"role": "user", "content": query})
        text: str = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return text

    def write(self, queries: Sequence[str], *, sample: bool = True) -> list[str]:
        """One text per query; draws come from torch's generator."""
        import torch

        prompts = [self.prompt(query) for query in queries]
        given = self.tokenizer(prompts, add_special_tokens=False, padding=True, return_tensors="pt")
        settings: dict[str, Any] = {"temperature": TEMPERATURE, "top_k": 0, "top_p": 1.0} if sample else {}
        with torch.no_grad():
            written = self.model.generate(
                **given.to(self.model.device), max_new_tokens=NEW_TOKENS, do_sample=sample, **settings
            )
        new = written[:, given["input_ids"].shape[1] :]
        return [cut(text) for text in self.tokenizer.batch_decode(new, skip_special_tokens=True)]


def drawn(data: Path, queries: dict[str, int]) -> Iterator[dict[str, str]]:
    """For each source at most so many queries with one of their rows, under a fixed seed, without its target."""
    for name, most in queries.items():
        rows = defaultdict(list)
        with (data / f"{name}.jsonl").open(encoding="utf-8") as stream:
            for row in map(json.loads, stream):
                rows[row["query"]].append(row)
        rng = random.Random(f"base texts {name}")
        for query in rng.sample(sorted(rows), min(most, len(rows))):
            yield {key: value for key, value in rng.choice(rows[query]).items() if key != "reasoning"}


def main() -> None:
    """The command line."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--queries", nargs="+", default=[f"{name}={most}" for name, most in QUERIES.items()])
    parser.add_argument("--part", type=int, default=0)
    parser.add_argument("--of", type=int, default=1)
    options = parser.parse_args()
    queries = {name: int(most) for name, most in (one.split("=") for one in options.queries)}
    rows = list(drawn(options.data, queries))
    random.Random(0).shuffle(rows)
    rows = rows[options.part :: options.of]
    unfinished = options.output.with_name(f"{options.output.name}.unfinished")
    done = len(unfinished.read_bytes().splitlines()) // BATCH * BATCH if unfinished.exists() else 0
    writer = Writer(options.base, "cuda" if torch.cuda.is_available() else "cpu")
    for start in range(done, len(rows), BATCH):
        part = rows[start : start + BATCH]
        torch.manual_seed(start * options.of + options.part)
        texts = writer.write([row["query"] for row in part])
        found = [row | {"reasoning": text} for row, text in zip(part, texts, strict=True)]
        kept = unfinished.read_text(encoding="utf-8").splitlines()[:start] if start else []
        write_text(unfinished, "".join(f"{line}\n" for line in [*kept, *map(json.dumps, found)]))
        print(f"{min(start + BATCH, len(rows)):,} of {len(rows):,}", flush=True)
    unfinished.rename(options.output)


if __name__ == "__main__":
    main()
