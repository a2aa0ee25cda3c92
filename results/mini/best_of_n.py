"""Best-of-N: of several sampled reasonings of a training query, the one that retrieves best, as a row for stage 1.

    python results/mini/best_of_n.py --config train/configs/mini_rl.toml --queries 3000 --output runs/mini/best.jsonl
        [--set model.path=runs/mini/rl/last --set rollout.group_size=8 --set rollout.temperature=0.7 ...]

Stage 2's configuration names the model, the queries and their corpora, the sampling and the reward. A query gives a row
where its best reasoning earns more than the mean of all of them by `--gain`; train/sft.py then learns to write it and
to embed after it. Source: rejection sampling as in RAFT (arXiv 2304.06767); the paper trains with GRPO alone.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from search_r3_mteb import SearchR3Encoder
from search_r3_mteb.atomic import write_jsonl
from search_r3_mteb.encoder.checkpoints import load
from search_r3_mteb.encoder.thoughts import Thought
from search_r3_mteb.search.arrays import Vectors
from search_r3_mteb.search.exact import exact_search
from train.config.stages import RlConfig
from train.data.mixing import load_training_data
from train.data.rows import TrainingRow
from train.losses.rewards import Rankings, reward
from train.run.allocation import keep_freed_memory
from train.run.command import parse
from train.stage2.corpus import SearchedCorpus


def best_rows(config: RlConfig, queries: int, gain: float) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Rows (query, positive, reasoning) of at most `queries` different training queries; counts and mean rewards."""
    checkpoint = load(str(config.model.path), dtype=config.model.dtype)
    encoders = [
        SearchR3Encoder(
            checkpoint,
            max_length=config.data.max_length,
            max_reasoning_tokens=config.rollout.max_reasoning_tokens,
            temperature=config.rollout.temperature,
            seed=seed,
        )
        for seed in range(config.rollout.group_size)
    ]
    corpus = SearchedCorpus(config.data, lambda texts: [1] * len(texts))
    documents = encoders[0].encode_document(list(corpus.texts.texts))
    rows = _rows(config, queries)
    relevance = [corpus.relevance(row) for row in rows]
    thoughts = [encoder.think([row.query for row in rows]) for encoder in encoders]
    rewards = np.stack([_rewards(config, corpus, documents, relevance, one) for one in thoughts])
    best, means = rewards.argmax(axis=0), rewards.mean(axis=0)
    kept = [
        {"query": row.query, "positive": row.positive, "reasoning": thoughts[best[number]][number].text}
        for number, row in enumerate(rows)
        if rewards[best[number], number] > means[number] + gain
        and thoughts[best[number]][number].finished
        and thoughts[best[number]][number].text.strip()
    ]
    return kept, {
        "queries": len(rows),
        "kept": len(kept),
        "reward_mean": float(means.mean()),
        "reward_best": float(rewards.max(axis=0).mean()),
    }


def _rows(config: RlConfig, queries: int) -> list[TrainingRow]:
    """Different queries in the order in which stage 2 would draw them, until there are enough or no new one comes."""
    data = load_training_data(
        config.data, batch_size=config.rollout.prompts_per_step, seed=config.optimization.seed, rank=0, world_size=1
    )
    found: dict[str, TrainingRow] = {}
    idle = 0
    while len(found) < queries and idle < 100:  # sources that have been read through repeat themselves
        before = len(found)
        for row in data.next_batch():
            found.setdefault(row.query, row)
        idle = idle + 1 if len(found) == before else 0
    return list(found.values())[:queries]


def _rewards(
    config: RlConfig,
    corpus: SearchedCorpus,
    documents: Vectors,
    relevance: Sequence[dict[str, float]],
    thoughts: Sequence[Thought],
) -> Float[np.ndarray, " queries"]:
    vectors = np.stack([thought.vector for thought in thoughts])
    settings = config.reward.replaced(k=min(config.reward.k, len(documents)))
    found = exact_search(vectors, documents, settings.k)
    ids = corpus.texts.ids or ()
    positives = [
        float((documents[corpus.texts.rows_of(list(relevant))] @ vector).max())
        for relevant, vector in zip(relevance, vectors, strict=True)
    ]
    rankings = Rankings(
        query_ids=list(range(len(thoughts))),
        document_ids=[[ids[row] for row in rows] for rows in found.rows],
        similarities=found.scores.clip(-1, 1),
        positive_similarities=np.clip(positives, -1, 1),
        finished=np.array([thought.finished for thought in thoughts]),
        reasoning_tokens=np.array([len(thought.token_ids) for thought in thoughts]),
    )
    return reward(rankings, dict(enumerate(relevance)), settings).total


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="best_of_n.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--queries", type=int, default=3000)
    parser.add_argument("--gain", type=float, default=0.01, help="reward above the mean that the best must have")
    parser.add_argument("--output", type=Path, required=True, help="a JSONL file")
    given, rest = parser.parse_known_args(sys.argv[1:] if arguments is None else arguments)
    rows, found = best_rows(parse("best_of_n.py", RlConfig, rest).config, given.queries, given.gain)
    write_jsonl(given.output, rows)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    keep_freed_memory()
    main()
