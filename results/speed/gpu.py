"""Speed of the 1.5B shape on a GPU, with random weights in bfloat16, on whose values speed does not depend.

    python results/speed/gpu.py                # a machine with a GPU; writes results/speed/gpu.md and gpu.json
    python results/speed/gpu.py --dry-run      # the same code on nano, on the CPU, in seconds; only prints the page

Measured: documents/s and their share of the chip's peak arithmetic; decoded tokens/s at batch 1, 16, 64 and 256 and
their share of what memory bandwidth allows, with the released example's two passes beside each. Limits are counted from
the shape: a document costs 2 operations per parameter and token (without attention), a decode step reads all weights
and the cache once.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from results.measure import commit, write_json
from results.pages import table
from search_r3_mteb import SearchR3Encoder
from search_r3_mteb.encoder.sampling import Sampling
from search_r3_mteb.evaluation import bench_models, bench_peers
from search_r3_mteb.evaluation.bench_models import Shape

HERE = Path(__file__).resolve().parent
QWEN_SHAPE = Shape(1536, 8960, 28, 12, 2, 151936)  # Qwen2.5-1.5B
# Dense bfloat16 peak in operations per second, and memory bandwidth in bytes per second, from the makers' data sheets.
CHIPS = {
    "H200": (989e12, 4.8e12),
    "H100": (989e12, 3.35e12),
    "A100": (312e12, 2.0e12),
    "L40S": (362e12, 0.864e12),
    "4090": (165e12, 1.008e12),
}
DECODE_BATCHES = (1, 16, 64, 256)
DOCUMENT_WORDS, PROMPT_WORDS, REASONING, DRY_REASONING = 100, 32, 256, 8


def subject(dry_run: bool) -> Any:
    """The checkpoint that is measured."""
    if dry_run:
        return bench_models.checkpoint("nano")
    torch.set_default_dtype(torch.bfloat16)
    checkpoint = bench_models.random_checkpoint(QWEN_SHAPE, "bench/1.5b")
    torch.set_default_dtype(torch.float32)
    checkpoint.model.to("cuda")
    return checkpoint


def seconds(work: Callable[[], Any], rounds: int) -> float:
    """Median over rounds after one warm-up; the device has finished when the clock is read."""
    taken = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return float(np.median(taken[1:]))


def limits(name: str) -> tuple[float, float]:
    """Peak operations and bytes per second of the device. Raises ValueError for a chip that is not listed."""
    for chip, peaks in CHIPS.items():
        if chip in name:
            return peaks
    raise ValueError(f"The peaks of {name!r} are not known here; add them to CHIPS from its data sheet.")


def encode(checkpoint: Any, count: int, rounds: int, peak: float | None) -> dict[str, Any]:
    """Documents per second, tokeniser and transfers included."""
    encoder = SearchR3Encoder(checkpoint, mode="direct", max_length=512, show_progress_bar=False)
    documents = bench_models.texts([DOCUMENT_WORDS] * count, checkpoint.tokenizer)
    tokens = len(encoder.renderer.render(documents[0], "direct").token_ids)
    rate = count / seconds(lambda: encoder.encode_document(documents), rounds)
    operations = 2 * body_parameters(checkpoint.model) * tokens
    return {
        "work": f"encode, {tokens} tokens per document",
        "rate": rate,
        "unit": "documents/s",
        "share_of_limit": None if peak is None else rate * operations / peak,
    }


def decode(checkpoint: Any, batch: int, tokens: int, rounds: int, bandwidth: float | None) -> list[dict[str, Any]]:
    """Decoded tokens per second of one batch that reasons `tokens` tokens, prefill included: ours, and two passes."""
    encoder = SearchR3Encoder(checkpoint, mode="reason", max_length=512, show_progress_bar=False)
    texts = bench_models.texts([PROMPT_WORDS] * batch, checkpoint.tokenizer)
    prompts = [row.token_ids for row in encoder.renderer.render_batch(texts, "reason")]
    wanted = [tokens] * batch
    engine = bench_peers.FixedLengthEngine(
        checkpoint.model, checkpoint.embed_token_id, (), token_budget=batch * (len(prompts[0]) + tokens + 1)
    )
    engine.wanted = wanted
    sampling = Sampling(tokens)
    ours = batch * tokens / seconds(lambda: engine.reason(prompts, sampling, log_probs=False), rounds)
    theirs = batch * tokens / seconds(lambda: bench_peers.two_passes(checkpoint, prompts, wanted, batch), rounds)
    bound = None
    if bandwidth is not None:
        config = checkpoint.model.config
        weights = sum(p.numel() * p.element_size() for p in checkpoint.model.parameters())
        width = config.hidden_size // config.num_attention_heads * config.num_key_value_heads
        cache = 2 * 2 * config.num_hidden_layers * width * (len(prompts[0]) + tokens / 2)
        bound = batch * bandwidth / (weights + batch * cache)
    return [
        {
            "work": f"{what}, batch {batch}",
            "rate": rate,
            "unit": "tokens/s",
            "share_of_limit": None if bound is None else rate / bound,
        }
        for what, rate in (("decode", ours), ("two passes", theirs))
    ]


def body_parameters(model: Any) -> int:
    """Parameters that every token is multiplied with: all but the embeddings, which are looked up."""
    return sum(
        p.numel() for name, p in model.named_parameters() if "embed_tokens" not in name and "lm_head" not in name
    )


def page(records: list[dict[str, Any]], dry_run: bool) -> str:
    """The table as Markdown."""
    command = f"python results/speed/gpu.py{' --dry-run' if dry_run else ''}"
    device = "the CPU" if dry_run else torch.cuda.get_device_name()
    model = "nano in float32" if dry_run else "Qwen2.5-1.5B's shape with random weights in bfloat16"
    rows = [
        [
            one["work"],
            f"{one['rate']:,.1f} {one['unit']}",
            "" if one["share_of_limit"] is None else f"{one['share_of_limit']:.0%}",
        ]
        for one in records
    ]
    lines = [
        "# Speed on a GPU",
        "",
        f"`{command}`, commit {commit()}, {device}, torch {torch.__version__}, {model}.",
        f"Reasoning of {DRY_REASONING if dry_run else REASONING} tokens; the limit is the chip's peak arithmetic",
        "(encode) or its memory bandwidth (decode).",
        "",
        *table(["work", "rate", "share of the limit"], rows),
    ]
    return "\n".join(lines)


def run(dry_run: bool) -> list[dict[str, Any]]:
    """Every measurement. Raises RuntimeError without a GPU, unless it is the dry run."""
    if not dry_run and not torch.cuda.is_available():
        raise RuntimeError(
            "There is no CUDA device: this measures a GPU. --dry-run runs the same code on nano, on the CPU."
        )
    peak, bandwidth = (None, None) if dry_run else limits(torch.cuda.get_device_name())
    checkpoint = subject(dry_run)
    records = [encode(checkpoint, 16 if dry_run else 8192, 1 if dry_run else 3, peak)]
    for batch in (1, 4) if dry_run else DECODE_BATCHES:
        records += decode(checkpoint, batch, DRY_REASONING if dry_run else REASONING, 1 if dry_run else 3, bandwidth)
    return records


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true")
    dry_run = parser.parse_args(arguments).dry_run
    records = run(dry_run)
    text = page(records, dry_run)
    print(text)
    if not dry_run:
        (HERE / "gpu.md").write_text(text, encoding="utf-8")
        write_json(HERE / "gpu.json", records)


if __name__ == "__main__":
    main()
