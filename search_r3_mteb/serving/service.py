"""From texts to answers: the queue's bound, tokenisation, the worker's rows, and what they mean for each text."""

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32

from search_r3_mteb.encoder.anchoring import anchored
from search_r3_mteb.encoder.prompts import Rendered
from search_r3_mteb.encoder.text_checks import check_text
from search_r3_mteb.encoder.thoughts import Thought
from search_r3_mteb.serving.errors import RequestError
from search_r3_mteb.serving.metrics import Metrics
from search_r3_mteb.serving.settings import ServeSettings
from search_r3_mteb.serving.worker import Job, Outcome, RowKind, Worker

_TOGETHER = 64  # texts that are tokenised before another request's turn (our choice)


@dataclass(frozen=True)
class Answer:
    """A text's vector (dim,), float32 of unit length; its reasoning; and tokens: read, generated, cut off."""

    vector: Float32[np.ndarray, " dim"]
    thought: Thought | None
    prompt_tokens: int
    generated_tokens: int
    truncated_tokens: int


class Service:
    """Answers for an encoder: what `SearchR3Encoder` gives for the same texts, computed together with others'."""

    def __init__(self, encoder: Any, settings: ServeSettings, metrics: Metrics) -> None:
        self.encoder, self.settings, self.metrics = encoder, settings, metrics
        self.worker = Worker(encoder, metrics)
        self.held = 0
        # One thread: a tokenizer is not made for two at once.
        self._tokenizer_thread = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")

    def start(self) -> None:
        """Begin to compute."""
        self.worker.start()

    def close(self) -> None:
        """End the threads."""
        self.worker.close()
        self._tokenizer_thread.shutdown(cancel_futures=True)

    def check_room(self, texts: int) -> None:
        """Raises RequestError where a request is too large, or the queue is full."""
        most = self.settings.max_inputs
        if texts > most:
            raise RequestError(
                400,
                f"{texts:,} texts in one request; at most {most:,} are taken. Send several requests.",
                param="input",
            )
        if self.held + texts > self.settings.max_queue:
            raise RequestError(
                429,
                f"The queue is full: {self.held:,} of {self.settings.max_queue:,} texts wait or are computed. Come "
                "again after the seconds of Retry-After.",
                code="rate_limit_exceeded",
                headers={"retry-after": str(self._seconds_left())},
            )

    @contextmanager
    def place(self, texts: int) -> Iterator[None]:
        """Places in the queue for the block; raises what `check_room` does."""
        self.check_room(texts)
        self._hold(texts)
        try:
            yield
        finally:
            self._hold(-texts)

    async def answers(
        self,
        inputs: Sequence[str | list[int]],
        kind: RowKind,
        on_written: Callable[[list[int]], None] | None = None,
    ) -> list[Answer]:
        """The answers of texts (or of the ids of their tokens), reasoned about or direct.

        `on_written` gets, in the event loop, the ids that were generated so far, of a single text. Cancelling drops the
        work. Raises RequestError for a text that cannot be read.
        """
        texts = await self._tokenizing(self._texts, inputs)
        anchor = self.encoder.anchor if kind == "reason" else None
        kinds: list[RowKind] = [kind] if anchor is None else ["direct", kind]
        prompts = {each: await self._rendered(texts, each) for each in kinds}
        rows = [(each, prompt.token_ids) for each in kinds for prompt in prompts[each]]
        job = Job(rows, None if on_written is None else _in_loop(on_written))
        outcomes = await asyncio.wrap_future(self.worker.submit(job).future)
        main, first = outcomes[-len(texts) :], outcomes[: len(texts)]
        vectors = np.stack([each.vector for each in main])
        if anchor is not None:
            direct = np.stack([each.vector for each in first])
            vectors = self.encoder.unit(anchored(direct, vectors, anchor), ["of a request"] * len(texts))
        thoughts: list[Thought | None] = [None] * len(texts)
        if kind == "reason":
            thoughts = await self._tokenizing(self._thoughts, main, vectors, first if anchor is not None else None)
        self.metrics.read.inc(sum(len(ids) for _, ids in rows))
        return [
            Answer(
                vector,
                thought,
                sum(len(prompts[each][place].token_ids) for each in kinds),
                len(outcome.token_ids),
                max(prompts[each][place].truncated_tokens for each in kinds),
            )
            for place, (vector, thought, outcome) in enumerate(zip(vectors, thoughts, main, strict=True))
        ]

    # ---- tokens ----------------------------------------------------------------------------------------------------

    async def _tokenizing(self, call: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._tokenizer_thread, call, *arguments)

    async def _rendered(self, texts: Sequence[str], kind: RowKind) -> list[Rendered]:
        found: list[Rendered] = []
        for start in range(0, len(texts), _TOGETHER):
            part = texts[start : start + _TOGETHER]
            try:
                found += await self._tokenizing(self.encoder.renderer.render_batch, part, kind)
            except ValueError as error:  # a marker that the tokenizer cannot take apart
                raise RequestError(400, str(error), param="input") from None
        return found

    def _texts(self, inputs: Sequence[str | list[int]]) -> list[str]:
        return [
            _checked(each, position) if isinstance(each, str) else self._text_of_ids(each, position)
            for position, each in enumerate(inputs)
        ]

    def _text_of_ids(self, ids: list[int], position: int) -> str:
        """The text of token ids. Raises RequestError unless the tokenizer makes the same ids of it.

        Ids of another vocabulary are words, too, and give vectors without sense. Some clients send those of OpenAI's.
        """
        tokenizer = self.encoder.tokenizer
        if max(ids) < len(tokenizer):
            text = str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
            if self.encoder.renderer.tokenize_text([text])[0] == ids:
                return _checked(text, position)
        raise RequestError(
            400,
            f"The token ids of entry {position} are not what this model's tokenizer makes of their text: they seem to "
            f"be those of another model (this vocabulary has {len(tokenizer):,}), and would give a vector without "
            "sense. Send the texts themselves (with LangChain's OpenAIEmbeddings: check_embedding_ctx_length=False).",
            param="input",
            code="foreign_token_ids",
        )

    def _thoughts(
        self, outcomes: Sequence[Outcome], vectors: Float32[np.ndarray, "n dim"], direct: Sequence[Outcome] | None
    ) -> list[Thought]:
        """What the encoder's `think` gives for these rows."""
        spoken = [each.token_ids[:-1] for each in outcomes]  # the last one is the embed token
        texts = self.encoder.tokenizer.batch_decode(spoken, skip_special_tokens=True)
        parts: list[dict[str, Any]] = [{} for _ in outcomes]
        if direct is not None:
            parts = [
                {"direct": own.vector, "reasoned": each.vector} for own, each in zip(direct, outcomes, strict=True)
            ]
        rows = zip(texts, spoken, outcomes, vectors, parts, strict=True)
        return [Thought(text, ids, each.finished, vector, **more) for text, ids, each, vector, more in rows]

    async def text_of(self, ids: Sequence[int]) -> str:
        """What generated ids say, without the embed token."""
        embed = self.encoder.checkpoint.embed_token_id
        spoken = [each for each in ids if each != embed]
        return str((await self._tokenizing(self.encoder.tokenizer.batch_decode, [spoken], True))[0])

    # ---- the queue -------------------------------------------------------------------------------------------------

    def _hold(self, texts: int) -> None:
        self.held += texts
        self.metrics.queued.set(self.held)

    def _seconds_left(self) -> int:
        """Seconds until half of the queue is computed, at the speed so far: 1 to 60."""
        per_row = self.worker.busy_seconds / self.worker.rows_done if self.worker.rows_done else 0.0
        return min(60, max(1, math.ceil(per_row * self.held / 2)))


def _in_loop(call: Callable[[list[int]], None]) -> Callable[[list[int]], None]:
    """`call`, to be called from another thread."""
    loop = asyncio.get_running_loop()

    def tell(ids: list[int]) -> None:
        loop.call_soon_threadsafe(call, ids)

    return tell


def _checked(text: str, position: int) -> str:
    """The text. Raises RequestError for one that UTF-8 cannot hold."""
    try:
        check_text(text, position)
    except ValueError as error:
        raise RequestError(400, str(error), param="input") from None
    return text
