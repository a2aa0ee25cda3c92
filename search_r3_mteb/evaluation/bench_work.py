"""The work that the benchmark measures: models, prompts, documents, and our side's runs on them."""

import tempfile
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from search_r3_mteb.atomic import temporary_folder
from search_r3_mteb.encoder.arithmetic import is_half
from search_r3_mteb.encoder.checkpoints import Checkpoint, load
from search_r3_mteb.encoder.encoder import SearchR3Encoder
from search_r3_mteb.encoder.packing import PackedLinears
from search_r3_mteb.encoder.sampling import Sampling
from search_r3_mteb.evaluation import bench_models as models
from search_r3_mteb.evaluation import bench_peers as peers

LONGEST = 256  # reasoning tokens are uniform from an eighth of this to this
SHORT_DOCUMENTS = (16, 48)  # words = tokens, uniform
ROLLOUT_PROMPT, ROLLOUT_TOKENS = 512, 64
MemoryWork = dict[str, Any]
"""{"work": "reason" or "encode", "side": "ours" or "theirs", "size", "batch"}"""


@dataclass(frozen=True)
class RealModel:
    """A checkpoint that is measured in place of nano, 30m and 120m.

    `model`: its folder or name. `longest`: tokens of reasoning per query at most. `vllm`: the Python of an environment
    with vLLM, which is then a peer. `rounds`: turns of each side in a case. Raises ValueError for fewer than 8 tokens
    or one round.
    """

    model: str
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    longest: int = LONGEST
    vllm: Path | None = None
    rounds: int = 3

    def __post_init__(self) -> None:
        if self.longest < 8 or self.rounds < 1:
            raise ValueError(
                f"{self.longest} reasoning tokens and {self.rounds} rounds: at least 8 tokens, of which the shortest "
                "reasoning has an eighth, and at least one round are needed."
            )


class Subject:
    """One model and what is made for it once: encoder, sentence-transformers peer, prompts.

    `size` names it in the cases, `scale` says how much work it gets: that of nano, 30m or 120m, by its parameters.
    """

    def __init__(self, size: str, real: RealModel | None = None) -> None:
        self.size, self.scale, self.real = size, size, real
        self.longest = LONGEST if real is None else real.longest
        if real is None:
            self.checkpoint: Checkpoint = models.checkpoint(size)
        else:
            self.checkpoint = load(real.model, dtype=real.dtype, device="cpu")
            self.scale = models.nearest_size(self.checkpoint.model.num_parameters())
        stack = ExitStack()
        weakref.finalize(self, stack.close)
        place = Path(tempfile.gettempdir()) / "search-r3-bench"
        self._folder = stack.enter_context(temporary_folder(place, mode=0o700))

    @classmethod
    def of(cls, real: RealModel) -> "Subject":
        """The subject of a checkpoint, named by its folder and type."""
        return cls(f"{Path(real.model).resolve().name} {real.dtype}", real)

    @property
    def half(self) -> bool:
        """Whether the model computes in half precision, in which two ways of adding up give other last digits."""
        return is_half(self.checkpoint.model)

    @cached_property
    def encoder(self) -> SearchR3Encoder:
        """Our encoder, direct."""
        return SearchR3Encoder(self.checkpoint, mode="direct", max_length=512, show_progress_bar=False)

    @cached_property
    def peer(self) -> Any:
        """sentence-transformers on the same weights."""
        return peers.sentence_transformer(self.checkpoint, self._folder, self.encoder.max_length)

    def prompts(self, count: int) -> list[list[int]]:
        """Reasoning prompts of queries with SciFact's lengths."""
        texts = models.texts(models.lengths(count, models.QUERY_DECILES), self.checkpoint.tokenizer)
        return [each.token_ids for each in self.encoder.renderer.render_batch(texts, "reason")]

    def long_prompts(self, count: int) -> list[list[int]]:
        """Prompts of `ROLLOUT_PROMPT` tokens without a common beginning: only what a group shares counts here."""
        draw, tokenizer = np.random.default_rng(3), self.checkpoint.tokenizer
        pool = tokenizer.convert_tokens_to_ids(models.whole_words(tokenizer, True))
        return [draw.choice(pool, size=ROLLOUT_PROMPT).tolist() for _ in range(count)]

    def documents(self, count: int, kind: str) -> list[str]:
        """Documents of SciFact's lengths, cut to what the encoder reads, or short ones."""
        if kind == "short":
            words = np.random.default_rng(1).integers(SHORT_DOCUMENTS[0], SHORT_DOCUMENTS[1] + 1, count).tolist()
            return models.texts(words, self.checkpoint.tokenizer)
        before, after = self.encoder.renderer.frame_ids("direct")
        room = self.encoder.max_length - len(before) - len(after)
        words = models.lengths(count, models.DOCUMENT_DECILES, longest=room)
        return [self._cut(text, room) for text in models.texts(words, self.checkpoint.tokenizer)]

    def _cut(self, text: str, tokens: int) -> str:
        """As many whole words as fit into `tokens`; in a longer text the peer would cut the embed token away."""
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


def reasoning_lengths(count: int, longest: int = LONGEST) -> list[int]:
    """How many tokens each of `count` queries reasons."""
    lengths: list[int] = np.random.default_rng(2).integers(longest // 8, longest + 1, size=count).tolist()
    return lengths


def together(subject: Subject, prompts: Any, wanted: Any, batch: int) -> Any:
    """As many rows at once as the peer has: the same batch, at the length that the peer reaches."""
    engine = subject.engine(batch, max(map(len, prompts)) + subject.longest + 1, wanted)
    found = engine.reason(prompts, Sampling(subject.longest), log_probs=False)
    return found.vectors, found.token_ids


def one_by_one(subject: Subject, prompts: Any, wanted: Any, batch: int) -> Any:
    """One call per query, as queries arrive at a service: nothing is shared between them."""
    engine = subject.engine(1, 1, wanted)
    vectors, ids = [], []
    for prompt, tokens in zip(prompts, wanted, strict=True):
        engine.wanted = [tokens]
        found = engine.reason([prompt], Sampling(subject.longest), log_probs=False)
        vectors.append(found.vectors)
        ids += found.token_ids
    return torch.cat(vectors), ids


def rollouts(subject: Subject, prompts: list[list[int]], group: int) -> Any:
    """Vectors and ids of `group` sampled rollouts of every prompt, which share its prefill."""
    rows = len(prompts) * group
    engine = subject.engine(rows, ROLLOUT_PROMPT + ROLLOUT_TOKENS + 1, [ROLLOUT_TOKENS] * rows)
    found = engine.reason(prompts, Sampling(ROLLOUT_TOKENS, temperature=1.0), group_size=group)
    return found.vectors, found.token_ids


class Stepping:
    """Rows that decode at one context, for the cost of a step: prompts are read once, before anything is timed.

    Half of the rows are 8 tokens behind, as rows are that have entered at different times. All prompts share their
    beginning, which is read once and copied. A processor attends to it for all rows at once (`shared_prefix.py`).
    """

    APART = 8

    def __init__(self, subject: Subject, context: int, rows: int, most: int) -> None:
        draw, tokenizer = np.random.default_rng(4), subject.checkpoint.tokenizer
        pool = tokenizer.convert_tokens_to_ids(models.whole_words(tokenizer, True))
        begin = draw.choice(pool, size=context - 2 * self.APART).tolist()
        rests = [draw.choice(pool, size=self.APART * (2 - row % 2)).tolist() for row in range(rows)]
        self.rows = rows
        engine = subject.engine(rows, context + most + 1, [most] * rows)
        self._run = peers.FixedLengths(engine, [[*begin, *rest] for rest in rests], Sampling(most), 1, False, None)
        self._engine, self._packed = engine, PackedLinears(engine.causal)
        with engine.evaluating():
            self._run.enter()

    def __call__(self, steps: int) -> np.ndarray:
        """Take steps; the tokens that each row got by them (rows, 1)."""
        slots = self._run.slots
        before = slots.steps[: slots.count].clone()
        with self._engine.evaluating(), self._packed:
            for _ in range(steps):
                self._run.step()
        return (slots.steps[: self.rows] - before).numpy()[:, None]


def sentence_transformers(subject: Subject, batch: int) -> Callable[[list[str]], Any]:
    """The peer's encode as a function of texts."""
    peer = subject.peer  # made here: a round times encoding, not loading
    return lambda texts: peer.encode(texts, batch_size=batch, show_progress_bar=False)


def memory_work(subject: Subject, work: MemoryWork) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """A small run that warms up, and the run whose peak is measured: one batch of reasoning, or documents for eight."""
    batch, ours = work["batch"], work["side"] == "ours"
    if work["work"] == "reason":
        prompts = subject.prompts(batch)
        wanted = reasoning_lengths(batch)
        run = together if ours else peers.keeping_hidden_states
        owner: Any = subject if ours else subject.checkpoint
        return partial(run, owner, prompts[:1], [4], 1), partial(run, owner, prompts, wanted, batch)
    documents = subject.documents(batch * 8, "scifact")
    encode: Callable[[list[str]], Any] = subject.encoder.encode_document
    texts = documents
    if not ours:
        encode, texts = sentence_transformers(subject, batch), peers.prompt_texts(subject.checkpoint, documents)
    return partial(encode, texts[:1]), partial(encode, texts)
