"""Rows of the second round of smol's stage 1: what the base, before any training, writes with two examples before it.

    python results/smol/base_text.py --base runs/smol/base --data runs/smol/data --output runs/smol/written.jsonl
        [--queries nfcorpus=1500 medical=500 squad=200 scifact=100] [--part 0 --of 2]

One sample per training query, cut after the sentence in which its 14th word lies and at 32 words; its positives are the
query's relevant documents, in an order drawn by chance. The text knows nothing of them, as at test time: a row teaches
the writer what the base can say, and the vector how far to trust it. Source: our choice, after the gates showed that
texts of relevant documents as targets teach a small writer to repeat the commonest ones.

A row for which the base writes nothing has no target. `--part` and `--of` share the queries among processes, each with
an output of its own. A killed run goes on where it was: its rows lie in OUTPUT.unfinished until all are there.
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
from search_r3_mteb.encoder.chat_templates import facts
from search_r3_mteb.encoder.fingerprint import digest

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


class BaseWriter:
    """A causal LM that is shown `EXAMPLES` before each query.

    Without a system role in its chat template the task stands in the first user's turn; without a template the turns
    are paragraphs. What the model's own settings of generation change beside temperature and nucleus is switched off.
    """

    def __init__(self, base: str | Path, device: str = "cpu") -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(base, padding_side="left")
        if self.tokenizer.pad_token is None:  # Llama 3; the attention mask leaves padding out
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.chats = bool(self.tokenizer.chat_template)
        self.has_system = self.chats and facts(self.tokenizer).system_role
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self.model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=dtype).eval().to(device)

    def identity(self) -> str:
        """SHA-256 (hex) of weights, configuration, tokenizer and examples: what decides a text but query and draw."""
        return digest(self.model, self.tokenizer, [SYSTEM, EXAMPLES])

    def prompt(self, query: str) -> str:
        """The chat of the examples and the query, up to the reply."""
        if not self.chats:
            return "\n\n".join([SYSTEM, *(f"{asked}\n{said}" for asked, said in EXAMPLES), f"{query}\n"])
        turns = [{"role": "system", "content": SYSTEM}]
        for asked, said in EXAMPLES:
            turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        turns.append({"role": "user", "content": query})
        if not self.has_system:
            first = f"{SYSTEM}\n\n{turns[1]['content']}"
            turns = [{"role": "user", "content": first}, *turns[2:]]
        # Of templates that have a switch for thinking: Qwen3 would think within the reply.
        text: str = self.tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        return text

    def write(self, queries: Sequence[str], *, sample: bool = True) -> list[str]:
        """One text per query; draws come from torch's generator."""
        import torch

        prompts = [self.prompt(query) for query in queries]
        # A template writes the token that begins a text itself; paragraphs have none.
        given = self.tokenizer(prompts, add_special_tokens=not self.chats, padding=True, return_tensors="pt")
        settings: dict[str, Any] = {"temperature": TEMPERATURE, "top_k": 0, "top_p": 1.0} if sample else {}
        settings["repetition_penalty"] = 1.0  # Qwen2.5's own, 1.1, would also count the examples and the padding
        with torch.no_grad():
            written = self.model.generate(
                **given.to(self.model.device), max_new_tokens=NEW_TOKENS, do_sample=sample, **settings
            )
        new = written[:, given["input_ids"].shape[1] :]
        texts = self.tokenizer.batch_decode(new, skip_special_tokens=True)
        return [cut(text if self.chats else text.strip().partition("\n\n")[0]) for text in texts]


def drawn(data: Path, queries: dict[str, int]) -> Iterator[dict[str, Any]]:
    """For each source at most so many queries, under a fixed seed, with all of their documents in a drawn order.

    Training takes one of them after the other, and none of them as a negative.
    """
    for name, most in queries.items():
        rows: dict[str, dict[str, str | None]] = defaultdict(dict)
        with (data / f"{name}.jsonl").open(encoding="utf-8") as stream:
            for row in map(json.loads, stream):
                rows[row["query"]][row["positive"]] = row.get("positive_id")
        rng = random.Random(f"base texts {name}")
        for query in rng.sample(sorted(rows), min(most, len(rows))):
            documents = [{"text": text} | ({"id": id_} if id_ else {}) for text, id_ in rows[query].items()]
            yield {"query": query, "positive": rng.sample(documents, len(documents))}


def kept_lines(unfinished: Path, writer: str, rows: Sequence[dict[str, Any]]) -> list[str]:
    """The lines of whole batches that a killed run left, of the first of `rows`; none where there was no run.

    `writer` is the identity of the model, which the file's first line has. Raises ValueError where another one wrote
    them, or where they are of other queries or documents.
    """
    if not unfinished.exists():
        return []
    first, *lines = unfinished.read_text(encoding="utf-8").splitlines()
    if json.loads(first) != {"writer": writer}:
        raise ValueError(
            f"{unfinished} was left by a run with another base, or other examples. Give --base as it was, or remove "
            "the file to begin again."
        )
    found = [{key: value for key, value in json.loads(line).items() if key != "reasoning"} for line in lines]
    if found != list(rows[: len(found)]):
        raise ValueError(
            f"{unfinished} was left by a run with other rows: --data, --queries, --part or --of were different. Give "
            "them as they were, or remove the file to begin again."
        )
    return lines[: len(lines) // BATCH * BATCH]


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
    writer = BaseWriter(options.base, "cuda" if torch.cuda.is_available() else "cpu")
    identity = writer.identity()
    kept = kept_lines(unfinished, identity, rows)
    first = json.dumps({"writer": identity})
    for start in range(len(kept), len(rows), BATCH):
        part = rows[start : start + BATCH]
        torch.manual_seed(start * options.of + options.part)
        texts = writer.write([row["query"] for row in part])
        found = [row | ({"reasoning": text} if text else {}) for row, text in zip(part, texts, strict=True)]
        kept += map(json.dumps, found)
        write_text(unfinished, "".join(f"{line}\n" for line in [first, *kept]))
        print(f"{min(start + BATCH, len(rows)):,} of {len(rows):,}", flush=True)
    write_text(options.output, "".join(f"{line}\n" for line in kept))
    unfinished.unlink(missing_ok=True)  # there is none without rows


if __name__ == "__main__":
    main()
