"""The cases of the benchmark: the same work done by us and by a peer, and a check that it was the same work.

Three kinds of case: time (`Case`), peak memory (`MemoryCase`), and whether the cost of one item stays the same when there are
more of them (a `Case` in which the peer is ourselves with few).
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from search_r3_mteb.encoder.checkpoints import Checkpoint
from search_r3_mteb.encoder.encoder import SearchR3Encoder
from search_r3_mteb.encoder.sampling import Sampling
from search_r3_mteb.evaluation import bench_models as models
from search_r3_mteb.evaluation import bench_peers as peers
from search_r3_mteb.evaluation.bench_memory import Work, available

KINDS = ("reason", "encode", "rollout")
BATCHES = (1, 16, 64)
SHORTEST, LONGEST = 32, 256  # reasoning tokens, uniform
SHORT_DOCUMENTS = (16, 48)  # words = tokens, uniform
ROLLOUT_PROMPT, ROLLOUT_TOKENS = 512, 64
FEW_AND_MANY_QUERIES = (100, 10_000)
FEW_AND_MANY_DOCUMENTS = (1000, 100_000)
FEW_TIMES = 10  # calls with few documents
_SAME = 1e-4


@dataclass(frozen=True)
class Case:
    """Work that both sides do on `items` things; `ours` and `theirs` return vectors (rows, dim), and perhaps the generated ids."""

    case: str
    peer: str
    unit: str
    items: int
    rounds: int
    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    their_items: int | None = None  # where the peer does less of the same work

    def check(self, ours: Any, theirs: Any) -> float:
        """Largest difference between the two sides' vectors; ValueError when they are not of the same work.

        Where tokens were generated, rows are compared whose ids are the same; a near tie may end otherwise in a few rows.
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
        difference = float(np.abs(ours - theirs).max())
        if not difference < _SAME * max(1.0, float(np.abs(theirs).max())):
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
    ours: Work
    theirs: Work


class Subject:
    """One model and what is made for it once: encoder, sentence-transformers peer, prompts."""

    def __init__(self, size: str) -> None:
        self.size = size
        self.checkpoint: Checkpoint = models.checkpoint(size)
        self._folder = tempfile.TemporaryDirectory()

    @cached_property
    def encoder(self) -> SearchR3Encoder:
        """Our encoder, direct."""
        return SearchR3Encoder(self.checkpoint, mode="direct", max_length=512, show_progress_bar=False)

    @cached_property
    def peer(self) -> Any:
        """sentence-transformers on the same weights."""
        return peers.sentence_transformer(self.checkpoint, Path(self._folder.name), self.encoder.max_length)

    def prompts(self, count: int) -> list[list[int]]:
        """Reasoning prompts of queries with SciFact's lengths."""
        texts = models.texts(models.lengths(count, models.QUERY_DECILES), self.checkpoint.tokenizer)
        return [each.token_ids for each in self.encoder.renderer.render_batch(texts, "reason")]

    def documents(self, count: int, kind: str) -> list[str]:
        """Documents of SciFact's lengths, cut to what the encoder reads, or short ones."""
        if kind == "short":
            words = [
                int(n) for n in np.random.default_rng(1).integers(SHORT_DOCUMENTS[0], SHORT_DOCUMENTS[1] + 1, count)
            ]
        else:
            before, after = self.encoder.renderer.frame_ids("direct")
            room = self.encoder.max_length - len(before) - len(after)
            words = models.lengths(count, models.DOCUMENT_DECILES, longest=room)
            return [self._cut(text, room) for text in models.texts(words, self.checkpoint.tokenizer)]
        return models.texts(words, self.checkpoint.tokenizer)

    def _cut(self, text: str, tokens: int) -> str:
        """Whole words within so many tokens: a word may take more beside another, and the peer would cut the embed token away."""
        while (more := len(self.checkpoint.tokenizer(text, add_special_tokens=False).input_ids) - tokens) > 0:
            text = " ".join(text.split(" ")[:-more])
        return text

    def engine(self, rows: int, length: int, wanted: Sequence[int]) -> Any:
        """An engine for `rows` rows of that length at once, whose rows reason as long as wanted."""
        engine = peers.FixedLengthEngine(
            self.checkpoint.model, self.checkpoint.embed_token_id, (), token_budget=rows * length
        )
        engine.wanted = wanted
        return engine


def cases(kind: str, subject: Subject, quick: bool) -> Iterator[Case | MemoryCase]:
    """All cases of one kind on one model."""
    yield from {"reason": _reason, "encode": _encode, "rollout": _rollout}[kind](subject, quick)


def _amount(quick: int, nano: int, small: int, large: int, subject: Subject, is_quick: bool) -> int:
    return quick if is_quick else {"nano": nano, "30m": small, "120m": large}[subject.size]


def _rounds(subject: Subject, quick: bool) -> int:
    return _amount(1, 3, 2, 1, subject, quick)


def _reason(subject: Subject, quick: bool) -> Iterator[Case | MemoryCase]:
    for batch in BATCHES:
        count = {
            1: _amount(2, 8, 4, 2, subject, quick),
            16: _amount(16, 192, 64, 32, subject, quick),
            64: _amount(64, 192, 64, 64, subject, quick),
        }[batch]
        prompts = subject.prompts(count)
        wanted = _reasoning_lengths(count)
        ours = _one_by_one if batch == 1 else _together
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
                _bind(ours, subject, prompts, wanted, batch),
                _bind(peer, subject.checkpoint, prompts, wanted, batch),
            )

    yield from _memory("reason", "(ii) generate(output_hidden_states=True)", subject, BATCHES[1:], quick)
    if subject.size == "nano":
        yield _flat_queries(subject, quick)


def _memory(work: str, peer: str, subject: Subject, batches: Sequence[int], quick: bool) -> Iterator[MemoryCase]:
    if not available() or (quick and work != "reason") or subject.size == "120m":
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


def memory_work(subject: Subject, work: Work) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """A small run that warms up, and the run whose peak is measured: one batch of reasoning, or documents for eight."""
    batch, ours = work["batch"], work["side"] == "ours"
    if work["work"] == "reason":
        prompts = subject.prompts(batch)
        wanted = _reasoning_lengths(batch)
        run = _together if ours else peers.keeping_hidden_states
        owner: Any = subject if ours else subject.checkpoint
        return _bind(run, owner, prompts[:1], [4], 1), _bind(run, owner, prompts, wanted, batch)
    documents = subject.documents(batch * 8, "scifact")
    if ours:
        return _bind(subject.encoder.encode_document, documents[:1]), _bind(subject.encoder.encode_document, documents)
    texts = peers.prompt_texts(subject.checkpoint, documents)
    encode = _sentence_transformers(subject, batch)
    return _bind(encode, texts[:1]), _bind(encode, texts)


def _flat_queries(subject: Subject, quick: bool) -> Case:
    few, many = (20, 100) if quick else FEW_AND_MANY_QUERIES
    prompts = subject.prompts(many)
    # Every hundred has the same lengths, so that only the number differs. Short ones: a row's length has no part in that.
    pattern = [tokens // 4 for tokens in _reasoning_lengths(few)]
    wanted = pattern * (many // few)
    prompts = prompts[:few] * (many // few)
    return Case(
        f"flat reason {subject.size} {few:,} to {many:,} queries",
        f"ourselves with {few:,}",
        "queries/s",
        many,
        1 if quick else 2,
        _bind(_vectors_together, subject, prompts, wanted, 64),
        _bind(_vectors_together, subject, prompts[:few], wanted[:few], 64),
        their_items=few,
    )


def _vectors_together(subject: Subject, prompts: Any, wanted: Any, batch: int) -> Any:
    return _together(subject, prompts, wanted, batch)[0]


def _flat_documents(subject: Subject, quick: bool) -> Case:
    few, many = (100, 1000) if quick else FEW_AND_MANY_DOCUMENTS
    documents = subject.documents(few, "short") * (many // few)
    return Case(
        f"flat encode {subject.size} {few:,} to {many:,} documents",
        f"ourselves with {few:,}",
        "documents/s",
        many,
        1 if quick else 2,
        _bind(subject.encoder.encode_document, documents),
        _bind(_several, subject.encoder.encode_document, documents[:few]),
        their_items=few * FEW_TIMES,
    )


def _several(encode: Callable[[list[str]], Any], documents: list[str]) -> Any:
    """A few documents take half a second, in which a machine's speed may be any: several calls, one after the other."""
    for _ in range(FEW_TIMES):
        vectors = encode(documents)
    return vectors


def _bind(function: Callable[..., Any], *given: Any) -> Callable[[], Any]:
    return lambda: function(*given)


def _reasoning_lengths(count: int) -> list[int]:
    lengths: list[int] = np.random.default_rng(2).integers(SHORTEST, LONGEST + 1, size=count).tolist()
    return lengths


def _together(subject: Subject, prompts: Any, wanted: Any, batch: int) -> Any:
    """As many rows at once as the peer has: the same batch, at the length that the peer reaches."""
    engine = subject.engine(batch, max(map(len, prompts)) + LONGEST + 1, wanted)
    found = engine.reason(prompts, Sampling(LONGEST), log_probs=False)
    return found.vectors, found.token_ids


def _one_by_one(subject: Subject, prompts: Any, wanted: Any, batch: int) -> Any:
    """One call a query, as queries arrive at a service: nothing is shared between them."""
    engine = subject.engine(1, 1, wanted)
    vectors, ids = [], []
    for prompt, tokens in zip(prompts, wanted, strict=True):
        engine.wanted = [tokens]
        found = engine.reason([prompt], Sampling(LONGEST), log_probs=False)
        vectors.append(found.vectors)
        ids += found.token_ids
    return torch.cat(vectors), ids


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
            ours, theirs = encoder.encode_document, _sentence_transformers(subject, batch)
            one_by_one = batch == 1
            yield Case(
                f"encode {subject.size} {kind} batch {batch}",
                "(iii) sentence-transformers",
                "documents/s",
                count,
                rounds,
                _bind(_each, ours, documents) if one_by_one else _bind(ours, documents),
                _bind(_each, theirs, texts) if one_by_one else _bind(theirs, texts),
            )
            if batch == 64 and subject.size == "nano":
                yield _mteb_case(subject, kind, documents, texts, rounds)
    yield from _memory("encode", "(iii) sentence-transformers", subject, (64,), quick)
    if subject.size == "nano":
        yield _flat_documents(subject, quick)


def _each(encode: Callable[[list[str]], Any], texts: list[str]) -> Any:
    return np.concatenate([encode([text]) for text in texts])


def _sentence_transformers(subject: Subject, batch: int) -> Callable[[list[str]], Any]:
    peer = subject.peer  # made here: a round times encoding, not loading
    return lambda texts: peer.encode(texts, batch_size=batch, show_progress_bar=False)


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
        prompts = _long_prompts(subject, count)
        yield Case(
            f"rollout {subject.size} group {group}",
            f"{group} separate prompts, then read again",
            "rollouts/s",
            count * group,
            _rounds(subject, quick),
            _bind(_rollouts, subject, prompts, group),
            _bind(peers.separate_rollouts, subject.checkpoint, prompts, ROLLOUT_TOKENS, group),
        )


def _long_prompts(subject: Subject, count: int) -> list[list[int]]:
    """Prompts of `ROLLOUT_PROMPT` tokens without a common beginning: only what a group shares counts here."""
    draw = np.random.default_rng(3)
    pool = [
        int(i)
        for i in subject.checkpoint.tokenizer.convert_tokens_to_ids(
            models.whole_words(subject.checkpoint.tokenizer, True)
        )
    ]
    return [[int(i) for i in draw.choice(pool, size=ROLLOUT_PROMPT)] for _ in range(count)]


def _rollouts(subject: Subject, prompts: list[list[int]], group: int) -> Any:
    rows = len(prompts) * group
    engine = subject.engine(rows, ROLLOUT_PROMPT + ROLLOUT_TOKENS + 1, [ROLLOUT_TOKENS] * rows)
    found = engine.reason(prompts, Sampling(ROLLOUT_TOKENS, temperature=1.0), group_size=group)
    return found.vectors, found.token_ids
