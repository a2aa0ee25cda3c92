"""Every policy on one corpus, step by step through a trajectory, against the freshly encoded corpus.

At step t, as in training: rollouts search the cache, the cache is refreshed around what they found, and the reward is
that of a second search. The same rollouts then search the corpus as the weights of step t encode it. The difference of
the rewards is the error.
Held-out queries (dev split, all hop counts) are ranked by both at the same time, without any refresh around them.
"""

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from trajectory import Trajectory

from search_r3_mteb.encoder.checkpoints import load
from search_r3_mteb.encoder.encoder import SearchR3Encoder
from search_r3_mteb.encoder.prompts import Renderer
from search_r3_mteb.search.exact import exact_search
from search_r3_mteb.tasks.hopworld import HopWorld
from train.config.corpus_cache import CorpusCacheSettings
from train.corpus_cache.cache import CorpusCache
from train.corpus_cache.refresh_policies import Hits
from train.corpus_cache.texts import CorpusTexts
from train.losses.rewards import Graded, dcg_scaled

REWARD_DEPTH, TOUCHED, TOP = 100, 10, 10


@dataclass(frozen=True)
class Measurement:
    """Parameters of one measurement. `share`: tokens re-encoded per step over all tokens; `at`: the compared steps."""

    rows: int
    policies: Sequence[str]
    steps: int
    at: Sequence[int]
    share: float
    heldout: int


class TrajectoryEncoder:
    """The model as an encoder of documents and queries, at any step of the trajectory."""

    def __init__(self, trajectory: Trajectory) -> None:
        self.trajectory = trajectory
        self.checkpoint = load(trajectory.model)
        self.renderer = Renderer(self.checkpoint.tokenizer, self.checkpoint.profile, 256)
        self.go_to(0)

    def go_to(self, step: int) -> None:
        """Take the weights after `step` updates."""
        self.trajectory.load_weights(self.checkpoint.model, step)
        # A new encoder, since an encoder's fingerprint is that of the weights it was made with.
        self.encoder = SearchR3Encoder(self.checkpoint, max_length=256, show_progress_bar=False)

    def count_tokens(self, texts: list[str]) -> list[int]:
        """Tokens that encoding each document takes."""
        return [len(prompt.token_ids) for prompt in self.renderer.render_batch(texts, "direct")]

    def __call__(self, texts: list[str]) -> np.ndarray:
        """Vectors of documents."""
        return self.encoder.encode_document(texts)

    def queries(self, texts: list[str]) -> np.ndarray:
        """Vectors of queries, after reasoning."""
        return self.encoder.encode_query(texts, max_reasoning_tokens=64)


class KnownVectors:
    """An encoder that gives these vectors in row order: the caches of all policies are built from one encoding."""

    def __init__(self, vectors: np.ndarray) -> None:
        self.vectors, self.at = vectors, 0

    def __call__(self, texts: list[str]) -> np.ndarray:
        """The next vectors."""
        self.at += len(texts)
        return self.vectors[self.at - len(texts) : self.at]


def measure(plan: Measurement, trajectory: Trajectory, folder: Path) -> Iterator[dict]:
    """One record per policy and compared step."""
    world = HopWorld(plan.rows)
    encoder = TrajectoryEncoder(trajectory)
    documents = [document["text"] for document in world.corpus.values()]
    texts = CorpusTexts(documents, list(world.corpus), token_counts=encoder.count_tokens)
    counts = texts.count()
    texts = CorpusTexts(texts.texts, texts.ids, counts)
    budget = int(plan.share * counts.sum(dtype=np.int64))
    heldout = world.queries("dev")
    heldout = [heldout[i] for i in np.linspace(0, len(heldout) - 1, min(plan.heldout, len(heldout))).astype(int)]
    heldout_rows = [[row] for row in texts.rows_of([query.positive_id for query in heldout])]
    started = time.perf_counter()
    full = CorpusCache.build(texts, encoder, folder=folder / "full", settings=CorpusCacheSettings(policy="full"))
    built = time.perf_counter() - started
    beginning = np.array(full.vectors)
    caches = {
        name: CorpusCache.build(
            texts, KnownVectors(beginning), folder=folder / name, settings=CorpusCacheSettings(policy=name)
        )
        for name in plan.policies
        if name != "full"
    }
    reports: dict[str, list] = {name: [] for name in caches}
    print(f"{plan.rows} documents, {budget} tokens per step, encoded and built in {built:.0f} s", flush=True)
    for step in range(1, plan.steps + 1):
        encoder.go_to(step)
        queries, positives = trajectory.batch(step)
        positive_rows = [texts.rows_of(ids) for ids in positives]
        for name, cache in caches.items():
            hits = Hits(queries, cache.search(queries, TOUCHED).rows, positive_rows)
            reports[name].append(cache.refresh(hits, encoder, budget, step=step))
        if step not in plan.at:
            continue
        started = time.perf_counter()
        full.rebuild(encoder, step=step)
        rebuilt = time.perf_counter() - started
        asked = np.concatenate([queries, encoder.queries([query.text for query in heldout])])
        relevant = [*positive_rows, *heldout_rows]
        truth = _ranking(full.vectors, asked, relevant)
        frozen_truth = _ranking(beginning, asked, relevant)
        for name in plan.policies:
            if name == "full":
                found, shares, seconds = truth, [1.0], [rebuilt]
            else:
                found = _ranking(caches[name].vectors, asked, relevant)
                shares = [report.share for report in reports[name]]
                seconds = [report.seconds for report in reports[name]]
            record = {
                "rows": plan.rows,
                "policy": name,
                "step": step,
                "share_reencoded": float(np.mean(shares)),
                "refresh_seconds": float(np.median(seconds)),
                # Documents of frozen weights are compared with themselves: nothing else is their truth.
                **_errors(found, frozen_truth if name == "frozen" else truth, len(queries)),
            }
            print(record, flush=True)
            yield record
    for name in ("full", *caches):
        shutil.rmtree(folder / name)


def _ranking(vectors: np.ndarray, queries: np.ndarray, relevant: Sequence) -> tuple[np.ndarray, np.ndarray]:
    """Rows of each query's best documents, and its reward."""
    found = exact_search(queries, vectors, min(REWARD_DEPTH, len(vectors)))
    gains = np.stack([np.isin(rows, right) for rows, right in zip(found.rows, relevant, strict=True)]).astype(float)
    ideal = np.zeros(gains.shape)
    for row, right in enumerate(relevant):
        ideal[row, : len(right)] = 1.0
    return found.rows, dcg_scaled(Graded(gains, ideal, found.scores.astype(float)))


def _errors(found: tuple, truth: tuple, batch: int) -> dict[str, float]:
    difference = np.abs(found[1] - truth[1])
    same = [len(set(one[:TOP]) & set(other[:TOP])) / TOP for one, other in zip(found[0], truth[0], strict=True)]
    constant = found[1].std() == 0 or truth[1].std() == 0
    return {
        "reward_error_batch": float(difference[:batch].mean()),
        "reward_error_heldout": float(difference[batch:].mean()),
        "reward_correlation": None if constant else float(np.corrcoef(found[1], truth[1])[0, 1]),
        "recall_at_10": float(np.mean(same[batch:])),
    }
