"""The gain of each change for processors by itself, both ways in turns, medians; prints and writes tried.json.

OMP_NUM_THREADS=2 python results/speed/tried.py             # six minutes
OMP_NUM_THREADS=1 python results/speed/tried.py --argmax    # seconds; the other numbers stay
OMP_NUM_THREADS=1 python results/speed/tried.py --shared FOLDER    # a model as for smol.py; the other numbers stay
"""

import json
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from results.measure import commit, write_json
from search_r3_mteb.encoder import decode, packing, scheduling, shared_prefix
from search_r3_mteb.encoder.engine import Engine
from search_r3_mteb.encoder.packing import packed_linears
from search_r3_mteb.encoder.sampling import Sampling, most_probable
from search_r3_mteb.evaluation.bench_work import RealModel, Stepping, Subject, reasoning_lengths, together

HERE = Path(__file__).resolve().parent


def ratio(before, after, rounds, clock=time.perf_counter):
    """Median over rounds of the ratio of `before`'s seconds to `after`'s, after one warm-up of each."""
    before()
    after()
    found = []
    for _ in range(rounds):
        seconds = []
        for work in (before, after):
            started = clock()
            work()
            seconds.append(clock() - started)
        found.append(seconds[0] / seconds[1])
    return round(float(np.median(found)), 2)


def layers():
    """One layer plain against packed, over copies that do not fit into a cache together."""
    found = {}
    for inputs, outputs in ((128, 128), (384, 1024), (768, 2176)):
        copies = max(1, 10_000_000 // (inputs * outputs))
        model = torch.nn.Sequential(*(torch.nn.Linear(inputs, outputs) for _ in range(copies)))
        for rows in (1, 16, 64):
            given = torch.randn(rows, inputs)

            def work(model=model, given=given):
                for layer in model:
                    layer(given)

            def packed(model=model, work=work):
                with packed_linears(model):
                    work()  # packing counts once, as for the first of many steps
                    for _ in range(9):
                        work()

            def plain(work=work):
                for _ in range(10):
                    work()

            found[f"{inputs} x {outputs}, {rows} rows, ten steps and the packing"] = ratio(plain, packed, 5)
    return found


def decoding():
    """30m, 32 prompts at batch 16, without and with packing."""
    subject = Subject("30m")
    prompts, wanted = subject.prompts(32), reasoning_lengths(32)

    def run(most):
        def work():
            packing.MOST_BYTES = most
            together(subject, prompts, wanted, 16)

        return work

    return ratio(run(0), run(packing.MOST_BYTES), 2)


def nano():
    """Nano's decoding as shipped, against other ways: its head packed, places refilled sooner or later, one thread."""
    subject = Subject("nano")
    prompts, wanted = subject.prompts(192), reasoning_lengths(192)
    shipped, threads = (packing.LEAST_BYTES, decode.REFILL_SHARE), torch.get_num_threads()
    ways = {
        "head packed": (1 << 20, shipped[1], threads),
        "refill at 1/16": (shipped[0], 1 / 16, threads),
        "refill at 1/4": (shipped[0], 1 / 4, threads),
        "one thread": (*shipped, 1),
    }

    def run(least, share, cores, batch):
        def work():
            packing.LEAST_BYTES, decode.REFILL_SHARE = least, share
            torch.set_num_threads(cores)
            together(subject, prompts, wanted, batch)

        return work

    found = {
        f"{name}, batch {batch}": ratio(run(*shipped, threads, batch), run(*way, batch), 3)
        for batch in (16, 64)
        for name, way in ways.items()
    }
    run(*shipped, threads, 64)()
    return found


def documents():
    """Documents read 16,384 tokens at a time and as shipped."""
    found = {}
    for size, kind, count in (("nano", "short", 2048), ("nano", "scifact", 128), ("30m", "short", 128)):
        subject = Subject(size)
        texts = subject.documents(count, kind)

        def run(tokens, subject=subject, texts=texts):
            def work():
                scheduling.PROCESSOR_TOKENS = tokens
                subject.encoder.encode_document(texts)

            return work

        found[f"{size} {kind}"] = ratio(run(16384), run(scheduling.PROCESSOR_TOKENS), 3)
    return found


def greedy():
    """The most probable token by torch and by numpy, as shipped; seconds of the processor."""
    found = {}
    for rows, vocabulary in ((16, 1152), (64, 1152), (16, 49153), (64, 49153)):
        logits = torch.randn(rows, vocabulary)
        times = max(1, 4_000_000 // logits.numel())

        def run(choose, logits=logits, times=times):
            def work():
                for _ in range(times):
                    choose(logits)

            return work

        found[f"{rows} rows of {vocabulary} logits"] = ratio(
            run(lambda given: given.argmax(dim=-1)), run(most_probable), 9, time.process_time
        )
    return found


def shared(folder):
    """Rows that attend to their common beginning together, against each by itself: steps, and whole calls.

    Ratios of the processor's time. Of a call of 64 queries under one instruction also how many keep their words, and of
    these the largest difference and the lowest cosine of the vectors.
    """
    found, least = {}, shared_prefix.LEAST_SHARED

    def apart_or_together(work):
        def run(limit):
            shared_prefix.LEAST_SHARED = limit
            return work()

        return partial(run, 1 << 60), partial(run, least)

    for dtype in ("bfloat16", "float32"):
        subject = Subject.of(RealModel(folder, dtype))
        steps = {}
        for rows, context in ((64, 64), (64, 144), (64, 256), (16, 144), (16, 256), (16, 2048)):
            stepping = Stepping(subject, context, rows, most=20)
            apart, together_ = apart_or_together(partial(stepping, 2))
            steps[f"{rows} rows of {context} tokens"] = ratio(apart, together_, 3, time.process_time)
        checkpoint = subject.checkpoint
        engine = Engine(checkpoint.model, checkpoint.embed_token_id, (), token_budget=16384)
        apart, together_ = apart_or_together(partial(engine.reason, subject.prompts(64), Sampling(48), log_probs=False))
        gain, one, two = ratio(apart, together_, 3, time.process_time), apart(), together_()
        same = [n for n, ids in enumerate(one.token_ids) if ids == two.token_ids[n]]
        units = [torch.nn.functional.normalize(each.vectors[same], dim=-1) for each in (one, two)]
        found[dtype] = {
            "steps": steps,
            "call of 64 queries": gain,
            "queries with the same words": len(same),
            "largest difference": float((units[0] - units[1]).abs().max()),
            "lowest cosine": float((units[0] * units[1]).sum(dim=-1).min()),
        }
        print(dtype, json.dumps(found[dtype]), flush=True)
    return found


def main():
    """Measure all, and write it."""
    if "--shared" in sys.argv:
        known = json.loads((HERE / "tried.json").read_text(encoding="utf-8"))
        found = shared(sys.argv[sys.argv.index("--shared") + 1])
        write_json(HERE / "tried.json", known | {"common beginning together": found, "shared commit": commit()})
        return
    if "--argmax" in sys.argv:
        known = json.loads((HERE / "tried.json").read_text(encoding="utf-8"))
        write_json(HERE / "tried.json", known | {"argmax by numpy": greedy(), "argmax commit": commit()})
        return
    numbers, least = packing.LEAST_NUMBERS[torch.float32], packing.LEAST_BYTES
    packing.LEAST_NUMBERS[torch.float32] = packing.LEAST_BYTES = 0
    found = {"command": "python results/speed/tried.py", "commit": commit(), "threads": torch.get_num_threads()}
    with torch.inference_mode():
        found["layers packed"] = layers()
    packing.LEAST_NUMBERS[torch.float32], packing.LEAST_BYTES = numbers, least
    found["30m decoding packed"] = decoding()
    found["nano decoding, as shipped against"] = nano()
    found["documents 2,048 tokens at a time"] = documents()
    found["argmax by numpy"] = greedy()
    write_json(HERE / "tried.json", found)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
