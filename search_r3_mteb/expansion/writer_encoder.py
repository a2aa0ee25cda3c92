"""WriterEncoder: any causal LM writes about a query, any encoder embeds the result; nothing is trained."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from search_r3_mteb.encoder.checkpoints import Checkpoint
from search_r3_mteb.encoder.documents import Documents
from search_r3_mteb.encoder.doors import EncoderDoors
from search_r3_mteb.encoder.folders import is_sentence_transformer
from search_r3_mteb.encoder.given import Reasonings, reasonings_of
from search_r3_mteb.encoder.identity import local_meta, name_for_mteb
from search_r3_mteb.encoder.inputs import check_batch_size, documents_of, instructions_of, refuse_keywords, texts_of
from search_r3_mteb.encoder.model_names import resolve
from search_r3_mteb.encoder.setting_types import check_flag
from search_r3_mteb.encoder.settings import Mode, Statistics
from search_r3_mteb.encoder.store import Store, StoredThought, fingerprint_of
from search_r3_mteb.encoder.thoughts import Thought
from search_r3_mteb.expansion.chunked import chunked
from search_r3_mteb.expansion.encoders import BesideWriter, open_encoder
from search_r3_mteb.expansion.methods import method_named
from search_r3_mteb.expansion.places import check_places
from search_r3_mteb.expansion.rules import combined, embedded_texts, keywords_of, mean_direction
from search_r3_mteb.expansion.settings import ExpansionSettings
from search_r3_mteb.expansion.writer import Writer, Written
from search_r3_mteb.search.arrays import Vectors

# Raised when the same token ids give other texts or keywords. 2: whole characters, numbers that begin a keyword.
TEXTS_VERSION = 2
CHUNK_QUERIES = 64  # written and stored together; a killed run loses one chunk (our choice: writing is slow)


@dataclass(frozen=True)
class ExpandedThought(Thought):
    """What was written about one query. `text` is all of it, `texts` are the samples apart.

    `token_ids` are the writer's, with the id of its ending token between two samples. `direct` (dim,) is the vector of
    the query alone and `reasoned` that of the texts, or Rocchio's mean of the documents: an anchor weighs these two.
    """

    texts: tuple[str, ...] = ()


class WriterEncoder(EncoderDoors):
    """Expands queries by a writer's texts and embeds them with an encoder; documents are embedded as they are.

    `writer` is any causal LM (a folder, a hub id, a Search-R3 checkpoint, a `Checkpoint` in memory), `encoder` any
    sentence-transformers folder or Search-R3 checkpoint, which embeds directly. `method` is one of `methods.METHODS`;
    those that need the corpus are `FeedbackEncoder`'s. The keyword arguments are those of `ExpansionSettings`. Vectors
    are as SearchR3Encoder's: float32, of unit length, in the order of the input. In a store (`cache_folder`) the texts
    are kept apart from the vectors: another encoder, weight or anchor finds them there.
    """

    def __init__(
        self,
        writer: str | Path | Checkpoint | None,
        encoder: str | Path | Checkpoint,
        *,
        method: str = "hyde",
        revision: str | None = None,
        **settings: Any,
    ) -> None:
        self.method, self._settings = method_named(method), ExpansionSettings.from_keywords(settings)
        ordinary = not isinstance(encoder, Checkpoint) and is_sentence_transformer(resolve(encoder))
        self._settings.check_method(self.method, ordinary)
        self._check_kind()
        if self.method.needs_writer != (writer is not None):
            raise ValueError(
                f"The method {method!r} {'needs a writer' if writer is None else 'has no writer'}, got {writer!r}."
            )
        if isinstance(writer, str | Path) and not isinstance(encoder, Checkpoint):
            check_places(self.method, writer, encoder)
        self.writer = None if writer is None else Writer(writer, self.method, self._settings, revision)
        self.encoder: BesideWriter = open_encoder(encoder, self._settings)
        self.dim = self.encoder.dim
        parts = [short for each in (self.writer, self.encoder) if each for short in [each.name.rpartition("/")[2]]]
        self.name = f"{method}-{'+'.join(parts)}"
        self.statistics = Statistics()
        self._stores: dict[str, Store] = {}

    def _check_kind(self) -> None:
        if self.method.needs_corpus:
            raise ValueError(
                f"The method {self.method.name!r} needs the corpus: make a search_r3_mteb.expansion.feedback."
                "FeedbackEncoder, and call its index(documents) before queries are encoded."
            )

    # ---- what users call -------------------------------------------------------------------------------------------

    def encode_query(
        self,
        texts: str | Sequence[str],
        *,
        instruction: str | Sequence[str | None] | None = None,
        reasoning: Reasonings | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        convert_to_tensor: bool = False,
        **unknown: Any,
    ) -> Any:
        """Vectors of expanded queries; the keywords are those of SearchR3Encoder, without a budget of the call."""
        refuse_keywords(self.encode_query, unknown)
        check_batch_size(batch_size)
        check_flag("convert_to_tensor", convert_to_tensor)
        rows = texts_of(texts)
        given: Any = texts if isinstance(texts, str) else rows
        thoughts = self.think(given, instruction=instruction, reasoning=reasoning, show_progress_bar=show_progress_bar)
        vectors = np.array([thought.vector for thought in thoughts], np.float32).reshape(-1, self.dim)
        return self._give(vectors, isinstance(texts, str), convert_to_tensor)

    def encode_document(
        self,
        texts: str | Documents,
        *,
        instruction: str | Sequence[str | None] | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        convert_to_tensor: bool = False,
        **unknown: Any,
    ) -> Any:
        """Vectors of documents. A document is a string, or a mapping with "text" (and "title")."""
        refuse_keywords(self.encode_document, unknown)
        check_batch_size(batch_size)
        check_flag("convert_to_tensor", convert_to_tensor)
        rows, single = documents_of(texts)
        instructions = instructions_of(instruction, len(rows))
        vectors, seconds = self.encoder.vectors(rows, "document", instructions, self._show(show_progress_bar))
        self.statistics.documents += len(rows)
        self.statistics.document_seconds += seconds
        return self._give(vectors, single, convert_to_tensor)

    def think(
        self,
        texts: str | Sequence[str],
        *,
        instruction: str | Sequence[str | None] | None = None,
        reasoning: Reasonings | None = None,
        show_progress_bar: bool | None = None,
        **unknown: Any,
    ) -> list[ExpandedThought]:
        """What is written about each query, and the vector that it leads to.

        `reasoning` is what somebody else has written, as in `SearchR3Encoder.think`: a text, a `Thought` (of ours: its
        samples apart), or token ids of this writer; None for the writer's own. Each text of it is cut to the budget,
        at a whole character. It is combined with the query as the writer's texts would be, and is not kept in the
        store.
        """
        refuse_keywords(self.think, unknown)
        check_flag("show_progress_bar", show_progress_bar, optional=True)
        rows, show = texts_of(texts), self._show(show_progress_bar)
        instructions = instructions_of(instruction, len(rows))
        given = reasonings_of(reasoning, len(rows), single=isinstance(texts, str))
        queries, seconds = self.encoder.vectors(rows, "query", instructions, show)
        thoughts, took = self._thoughts(rows, instructions, given, queries, show)
        self.statistics.count(thoughts)
        self.statistics.query_seconds += seconds + took
        return thoughts

    # ---- identity --------------------------------------------------------------------------------------------------

    @property
    def mode(self) -> Mode:
        """That of a writer is "reason"; Rocchio, which writes nothing, has "direct"."""
        return "reason" if self.method.needs_writer else "direct"

    @property
    def task_prompts(self) -> bool:
        """Whether an MTEB task's own instruction is used: by a Search-R3 encoder, unless that is switched off."""
        return self._settings.task_prompts and self.encoder.takes_task_prompts

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting that decides a vector, as JSON scalars."""
        chosen, method = asdict(self._settings), self.method
        found = {"method": method.name, "mode": self.mode, "task_prompts": self.task_prompts}
        names = ["anchor", *(["feedback_documents"] if method.needs_corpus else [])]
        if method.needs_writer:
            names += ["max_reasoning_tokens", "seed", "weight", "prompt"]
            found |= {
                "samples": self._settings.samples_of(method),
                "temperature": self._settings.temperature_of(method),
            }
        return found | {name: chosen[name] for name in names}

    @property
    def fingerprint(self) -> str:
        """Hex digest over writer, prompt, encoder and every setting that decides a vector."""
        parts: dict[str, Any] = {"writer": self._writer_parts(), "encoder": self.encoder.fingerprint}
        parts["separator"] = self.encoder.separator
        if self.writer is not None:
            parts["texts"] = TEXTS_VERSION
        return fingerprint_of(parts | self.settings)

    def _described(self, experiment: dict[str, Any]) -> Any:
        writer = 0 if self.writer is None else sum(p.numel() for p in self.writer.checkpoint.model.parameters())
        return local_meta(
            name_for_mteb(self.name),
            self.dim,
            experiment,
            revision=experiment["fingerprint"],
            n_parameters=writer + self.encoder.parameters,
            use_instructions=self.task_prompts,
        )

    def _writer_parts(self) -> dict[str, Any]:
        """Everything that decides a text."""
        if self.writer is None:
            return {}
        writer, settings = self.writer, self._settings
        return {
            "checkpoint": writer.checkpoint.fingerprint(),
            "dtype": str(writer.checkpoint.model.dtype),
            "prompt": writer.prompt,
            "frame": writer.renderer.frame_ids("reason"),
            "length": writer.renderer.max_length,
            "stops": writer.stop_ids,
            "samples": settings.samples_of(self.method),
            "max_reasoning_tokens": settings.max_reasoning_tokens,
            "temperature": settings.temperature_of(self.method),
            "seed": settings.seed,
        } | writer.arithmetic

    # ---- the work --------------------------------------------------------------------------------------------------

    def _show(self, show_progress_bar: bool | None) -> bool | None:
        return self._settings.show_progress_bar if show_progress_bar is None else show_progress_bar

    def _contexts(self, texts: Sequence[str], queries: Vectors) -> list[list[str]]:
        """The lines of each prompt's {context}; `queries` are the vectors of the queries alone."""
        return [[] for _ in texts]

    def _text_parts(self) -> dict[str, Any]:
        """What decides a text beside the writer: the corpus, where it gives a context."""
        return {}

    def _thoughts(
        self,
        texts: list[str],
        instructions: list[str | None],
        given: Sequence[Any],
        queries: Vectors,
        show: bool | None,
    ) -> tuple[list[ExpandedThought], float]:
        """The thoughts, and the seconds that writing and embedding the texts took."""
        own = [row for row, each in enumerate(given) if each is None]
        found, seconds = self._written(
            [texts[row] for row in own], [instructions[row] for row in own], queries[own], show
        )
        written = dict(zip(own, found, strict=True))
        written |= {row: self._read(each) for row, each in enumerate(given) if each is not None}
        vectors, took = self._combined(texts, instructions, [written[row] for row in range(len(texts))], queries, show)
        thoughts = [
            ExpandedThought(
                text="\n\n".join(text for text in each.texts if text),
                token_ids=each.token_ids,
                finished=each.finished,
                vector=vector,
                given=given[row] is not None,
                direct=queries[row],
                reasoned=reasoned,
                texts=each.texts,
            )
            for row, (each, (vector, reasoned)) in enumerate(
                zip((written[row] for row in range(len(texts))), vectors, strict=True)
            )
        ]
        return thoughts, seconds + took

    def _written(
        self, texts: Sequence[str], instructions: Sequence[str | None], queries: Vectors, show: bool | None
    ) -> tuple[list[Written], float]:
        """The writer's own texts, from the store where it has them, and seconds."""
        if not texts or self.writer is None:
            return [], 0.0
        writer, store = self.writer, self._store()
        began = time.perf_counter()
        contexts = self._contexts(texts, queries)
        searched = time.perf_counter() - began if self.method.needs_corpus else 0.0

        def compute(rows: Sequence[int]) -> list[Any]:
            prompts = writer.prompts(
                [texts[i] for i in rows], [instructions[i] for i in rows], [contexts[i] for i in rows]
            )
            found = writer.write(prompts)
            return found if store is None else [StoredThought(_shown(w), w.token_ids, w.finished) for w in found]

        found, seconds = chunked(
            texts, instructions, store, CHUNK_QUERIES, compute, thoughts=True, what="writing", show=show
        )
        if store is not None:
            kept = store.thoughts(texts, instructions)
            samples = self._settings.samples_of(self.method)
            found = [Written(self._samples(each.token_ids, samples), each.token_ids, each.finished) for each in kept]
        return found, searched + seconds

    def _samples(self, token_ids: Sequence[int], samples: int) -> tuple[str, ...]:
        writer = self.writer
        texts = writer.texts_of(token_ids) if writer is not None else ()
        if len(texts) != samples:
            raise ValueError(f"The store holds {len(texts)} texts where {samples} were written; delete its folder.")
        return texts

    def _read(self, given: Any) -> Written:
        """Texts that were given, as the writer's."""
        if self.writer is None:
            raise ValueError(f"reasoning was given, but the method {self.method.name!r} has no place for a text.")
        if isinstance(given, str):
            return self.writer.given([given])
        if hasattr(given, "token_ids"):
            return self.writer.given_thought(given)
        return self.writer.given_ids(given)

    def _combined(
        self,
        texts: Sequence[str],
        instructions: Sequence[str | None],
        written: Sequence[Written],
        queries: Vectors,
        show: bool | None,
    ) -> tuple[list[tuple[Float32[np.ndarray, " dim"], Float32[np.ndarray, " dim"]]], float]:
        """Each query's vector with its texts and that of the texts alone, and the seconds that embedding took."""
        method, settings = self.method, self._settings
        weight = method.weight if settings.weight is None else settings.weight
        parts: list[list[str]] = []
        for text, each in zip(texts, written, strict=True):
            said = [keywords_of(one) for one in each.texts] if method.name == "keywords" else list(each.texts)
            parts.append(embedded_texts(method.rule, text, said, weight, self.encoder.separator))
        flat = [one for part in parts for one in part]
        passages = method.rule == "passages"
        spread = [instruction for instruction, part in zip(instructions, parts, strict=True) for _ in part]
        rows, seconds = self.encoder.vectors(
            flat, "document" if passages else "query", None if passages else spread, show
        )
        vectors, first = [], 0
        for query, part in zip(queries, parts, strict=True):
            own = rows[first : first + len(part)]
            vectors.append((combined(method.rule, query, own, weight, settings.anchor), mean_direction(query, own)))
            first += len(part)
        return vectors, seconds

    def _store(self) -> Store | None:
        """The store of the writer's texts; it holds no vectors, so that all encoders share it."""
        if self._settings.cache_folder is None:
            return None
        key = fingerprint_of({"texts": self._writer_parts()} | self._text_parts())
        if key not in self._stores:
            self._stores[key] = Store(self._settings.cache_folder, key, "query", 1)
        return self._stores[key]


def _shown(written: Written) -> str:
    return "\n\n".join(text for text in written.texts if text)
