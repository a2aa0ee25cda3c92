"""The cases of the benchmark: the same work done by us and by a peer, and a check that it was the same work.

There are three kinds: time (`Case`), peak memory (`MemoryCase`), and whether the cost of one item stays the same when
there are more of them (a `Case` in which the peer is ourselves with few items).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from search_r3_mteb.encoder.model_names import resolve
from search_r3_mteb.encoder.vllm.weights import readable_folder
from search_r3_mteb.evaluation import bench_peers as peers
from search_r3_mteb.evaluation.bench_memory import available
from search_r3_mteb.evaluation.bench_vllm import VllmPeer
from search_r3_mteb.evaluation.bench_work import (
    ROLLOUT_TOKENS,
    MemoryWork,
    Stepping,
    Subject,
    one_by_one,
    reasoning_lengths,
    rollouts,
    sentence_transformers,
    together,
)

BENCHMARKS = ("reason", "encode", "rollout", "context")
BATCHES = (1, 16, 64)
FEW_AND_MANY_QUERIES = (100, 10_000)
FEW_AND_MANY_DOCUMENTS = (1000, 100_000)
FEW_TIMES = 10  # calls with few documents
SHORT_AND_LONG_CONTEXT = (256, 2048)
CONTEXT_ROWS = 16
_SAME = 1e-4
_SAME_HALF = 0.998  # cosine; a bfloat16 number has 8 bits, and the two sides add up in other orders, layer by layer


@dataclass(frozen=True)
class Case:
    """Work of both sides on `items` things; `ours` and `theirs` return vectors (rows, dim), or vectors and ids."""

    case: str
    peer: str
    unit: str
    items: int
    rounds: int
    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    their_items: int | None = None  # where the peer does less of the same work
    half: bool = False  # vectors of half precision are compared by their cosine

    def check(self, ours: Any, theirs: Any) -> float:
        """Largest difference of the two sides' vectors, in half precision 1 - the least cosine.

        ValueError when they are not of the same work.

        Of generated rows those with equal ids are compared: a near tie between two tokens may change a few rows.
        """
        same = slice(None)
        if isinstance(theirs, tuple):
            (ours, our_ids), (theirs, their_ids) = ours, theirs
            if list(map(len, our_ids)) != list(map(len, their_ids)):
                raise ValueError(
                    f"{self.case} against {self.peer}: rows of different lengths, so this is not the same work."
                )
            equal = [a == b for a, b in zip(our_ids, their_ids, strict=True)]
            if not any(equal):
                return float("nan")
            same = np.flatnonzero(equal)  # type: ignore[assignment]
        ours, theirs = np.asarray(ours)[same], np.asarray(theirs)[same]
        ours = ours[: len(theirs)]
        if self.half:
            norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
            difference, most = float(1 - ((ours * theirs).sum(axis=1) / norms).min()), 1 - _SAME_HALF
        else:
            difference, most = float(np.abs(ours - theirs).max()), _SAME * max(1.0, float(np.abs(theirs).max()))
        if not difference < most:
            raise ValueError(
                f"{self.case} against {self.peer}: vectors differ by {difference}, so this is not the same work."
            )
        return difference


@dataclass(frozen=True)
class MemoryCase:
    """Work whose peak memory is compared; `ours` and `theirs` describe it for `memory_work`."""

    case: str
    peer: str
    rounds: int
    ours: MemoryWork
    theirs: MemoryWork


def cases(kind: str, subject: Subject, quick: bool) -> Iterator[Case | MemoryCase]:
    """All cases of one kind on one model."""
    kinds = {"reason": _reason, "encode": _encode, "rollout": _rollout, "context": _context}
    for case in kinds[kind](subject, quick):
        yield replace(case, half=subject.half) if isinstance(case, Case) else case


def _amount(quick: int, nano: int, small: int, large: int, subject: Subject, is_quick: bool) -> int:
    return quick if is_quick else {"nano": nano, "30m": small, "120m": large}[subject.scale]


def _rounds(subject: Subject, quick: bool) -> int:
    if subject.real is not None and not quick:
        return subject.real.rounds
    return _amount(1, 3, 2, 1, subject, quick)


def _reason(subject: Subject, quick: bool) -> Iterator[Case | MemoryCase]:
    for batch in BATCHES:
        count = {
            1: _amount(2, 8, 4, 2, subject, quick),
            16: _amount(16, 192, 64, 32, subject, quick),
            64: _amount(64, 192, 64, 64, subject, quick),
        }[batch]
        prompts = subject.prompts(count)
        wanted = reasoning_lengths(count, subject.longest)
        ours = one_by_one if batch == 1 else together
        for name, peer in (
            ("(i) generate, then read again", peers.two_passes),
            ("(ii) generate(output_hidden_states=True)", peers.keeping_hidden_states),
        ):
            if name.startswith("(ii)") and (batch == 1 or subject.size != "nano"):
                continue
            yield Case(
                f"reason {subject.size} batch {batch}",
                name,
                "queries/s",
                count,
                _rounds(subject, quick),
                partial(ours, subject, prompts, wanted, batch),
                partial(peer, subject.checkpoint, prompts, wanted, batch),
            )
        if batch > 1:
            yield from _vllm_reason(subject, batch, prompts, wanted, quick)

    yield from _memory("reason", "(ii) generate(output_hidden_states=True)", subject, BATCHES[1:], quick)
    if subject.size == "nano":
        yield _flat_queries(subject, quick)


def _vllm_reason(
    subject: Subject, batch: int, prompts: list[list[int]], wanted: list[int], quick: bool
) -> Iterator[Case]:
    real, embed = subject.real, subject.checkpoint.embed_token_id
    if real is None or real.vllm is None:
        return
    positions = max(map(len, prompts)) + subject.longest + 2
    with (
        _vllm_folder(subject) as folder,
        VllmPeer(real.vllm, folder, real.dtype, batch, positions, writes=True) as peer,
    ):
        yield Case(
            f"reason {subject.size} batch {batch}",
            "(v) vLLM, then read again by vLLM",
            "queries/s",
            len(prompts),
            _rounds(subject, quick),
            partial(together, subject, prompts, wanted, batch),
            partial(peer.ask, prompts, embed, wanted),
        )


@contextmanager
def _vllm_folder(subject: Subject) -> Iterator[str]:
    """The subject's folder; of a LoRA folder, whose token rows vLLM does not know, a temporary one with it merged."""
    assert subject.real is not None
    given = resolve(subject.real.model)
    with readable_folder(subject.checkpoint, given) as folder:
        if folder != given:
            subject.checkpoint.tokenizer.save_pretrained(folder)
        yield str(folder)


def _vllm_encode(subject: Subject, kind: str, documents: list[str], rounds: int) -> Iterator[Case]:
    real, embed, encoder = subject.real, subject.checkpoint.embed_token_id, subject.encoder
    if real is None or real.vllm is None:
        return
    prompts = [row.token_ids for row in encoder.renderer.render_batch(documents, "direct")]
    positions = encoder.max_length + 2
    with _vllm_folder(subject) as folder, VllmPeer(real.vllm, folder, real.dtype, 64, positions, writes=False) as peer:
        yield Case(
            f"encode {subject.size} {kind} batch 64",
            "(vi) vLLM's pooling, from token ids",
            "documents/s",
            len(documents),
            rounds,
            partial(encoder.encode_document, documents),
            lambda: _unit(peer.ask(prompts, embed)[0]),
        )


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _memory(work: str, peer: str, subject: Subject, batches: Sequence[int], quick: bool) -> Iterator[MemoryCase]:
    if not available() or (quick and work != "reason") or subject.scale == "120m" or subject.real is not None:
        return
    for batch in batches[:1] if quick else batches:
        whole = {"work": work, "size": subject.size, "batch": batch}
        yield MemoryCase(
            f"memory {work} {subject.size} batch {batch}",
            peer,
            _amount(1, 3, 1, 1, subject, quick),
            whole | {"side": "ours"},
            whole | {"side": "theirs"},
        )


def _flat_queries(subject: Subject, quick: bool) -> Case:
    few, many = (20, 100) if quick else FEW_AND_MANY_QUERIES
    prompts = subject.prompts(many)
    # Every hundred has the same lengths, so that only the number of queries differs; any length would do.
    pattern = [tokens // 4 for tokens in reasoning_lengths(few)]
    wanted = pattern * (many // few)
    prompts = prompts[:few] * (many // few)

    def vectors(prompts: list[list[int]], wanted: list[int]) -> Any:
        return together(subject, prompts, wanted, 64)[0]

    return Case(
        f"flat reason {subject.size} {few:,} to {many:,} queries",
        f"ourselves with {few:,}",
        "queries/s",
        many,
        1 if quick else 2,
        partial(vectors, prompts, wanted),
        partial(vectors, prompts[:few], wanted[:few]),
        their_items=few,
    )


def _flat_documents(subject: Subject, quick: bool) -> Case:
    few, many = (100, 1000) if quick else FEW_AND_MANY_DOCUMENTS
    documents = subject.documents(few, "short") * (many // few)
    return Case(
        f"flat encode {subject.size} {few:,} to {many:,} documents",
        f"ourselves with {few:,}",
        "documents/s",
        many,
        1 if quick else 2,
        partial(subject.encoder.encode_document, documents),
        partial(_several, subject.encoder.encode_document, documents[:few]),
        their_items=few * FEW_TIMES,
    )


def _several(encode: Callable[[list[str]], Any], documents: list[str]) -> Any:
    """The vectors of a few documents after `FEW_TIMES` calls: one call is too short to be timed well."""
    for _ in range(FEW_TIMES):
        vectors = encode(documents)
    return vectors


def _encode(subject: Subject, quick: bool) -> Iterator[Case | MemoryCase]:
    encoder = subject.encoder
    for kind, batches in (("scifact", (64, 16, 1)), ("short", (64, 16, 1))):
        for batch in batches:
            few = kind == "scifact" or batch == 1
            count = _amount(64, 512, 64, 24, subject, quick) if few else _amount(512, 4096, 384, 128, subject, quick)
            if batch == 1:
                count = _amount(8, 96, 16, 6, subject, quick)
            documents = subject.documents(count, kind)
            texts = peers.prompt_texts(subject.checkpoint, documents)
            rounds = _rounds(subject, quick)
            ours, theirs = encoder.encode_document, sentence_transformers(subject, batch)
            yield Case(
                f"encode {subject.size} {kind} batch {batch}",
                "(iii) sentence-transformers",
                "documents/s",
                count,
                rounds,
                partial(_each, ours, documents) if batch == 1 else partial(ours, documents),
                partial(_each, theirs, texts) if batch == 1 else partial(theirs, texts),
            )
            if batch == 64 and subject.size == "nano":
                yield _mteb_case(subject, kind, documents, texts, rounds)
            if batch == 64:
                yield from _vllm_encode(subject, kind, documents, rounds)
    yield from _memory("encode", "(iii) sentence-transformers", subject, (64,), quick)
    if subject.size == "nano":
        yield _flat_documents(subject, quick)


def _each(encode: Callable[[list[str]], Any], texts: list[str]) -> Any:
    return np.concatenate([encode([text]) for text in texts])


def _mteb_case(subject: Subject, kind: str, documents: list[str], texts: list[str], rounds: int) -> Case:
    from datasets import Dataset
    from mteb.types import PromptType
    from torch.utils.data import DataLoader

    from search_r3_mteb.tasks.mteb_tasks import HopWorldTask

    task = HopWorldTask().metadata

    def loader(rows: list[str]) -> Any:
        return DataLoader(Dataset.from_dict({"text": rows}), batch_size=64)

    def ours() -> Any:
        return subject.encoder.encode(
            loader(documents), task_metadata=task, hf_split="test", hf_subset="default", prompt_type=PromptType.document
        )

    theirs = peers.mteb_encode(subject.peer, task)
    return Case(
        f"encode {subject.size} {kind} batch 64",
        "(iv) MTEB with sentence-transformers",
        "documents/s",
        len(documents),
        rounds,
        ours,
        lambda: theirs(loader(texts)),
    )


def _rollout(subject: Subject, quick: bool) -> Iterator[Case]:
    for group in (8, 16):
        count = _amount(1, 4, 2, 1, subject, quick)
        prompts = subject.long_prompts(count)
        yield Case(
            f"rollout {subject.size} group {group}",
            f"{group} separate prompts, then read again",
            "rollouts/s",
            count * group,
            _rounds(subject, quick),
            partial(rollouts, subject, prompts, group),
            partial(peers.separate_rollouts, subject.checkpoint, prompts, ROLLOUT_TOKENS, group),
        )


def _context(subject: Subject, quick: bool) -> Iterator[Case]:
    """The cost of a token where much has been read, against the cost where little has."""
    rounds, steps = _rounds(subject, quick), _amount(2, 20, 6, 4, subject, quick)
    most = (rounds + 1) * steps + 2  # a run warms up, and no row may end
    short, long = (32, 256) if quick else SHORT_AND_LONG_CONTEXT
    window = int(subject.checkpoint.model.config.get_text_config().max_position_embeddings)
    long = min(long, window - most - 1)
    if long < 2 * short:
        raise ValueError(
            f"{subject.size} reads {window} tokens: too few to compare a long context with one of {short}. "
            "Leave the benchmark 'context' out."
        )
    few, much = (Stepping(subject, context, CONTEXT_ROWS, most) for context in (short, long))
    yield Case(
        f"context {subject.size} batch {CONTEXT_ROWS}, {short} to {long} tokens",
        f"ourselves at {short} tokens",
        "tokens/s",
        CONTEXT_ROWS * steps,
        rounds,
        partial(much, steps),
        partial(few, steps),
    )
