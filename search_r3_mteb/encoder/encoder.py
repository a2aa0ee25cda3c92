"""SearchR3Encoder: reasons about queries and then embeds them, embeds documents directly."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
from jaxtyping import Float32

from search_r3_mteb.encoder.checkpoints import Checkpoint, load
from search_r3_mteb.encoder.chunks import CHUNK, one_ahead, progress_bar
from search_r3_mteb.encoder.documents import Documents, document_texts
from search_r3_mteb.encoder.engine import Engine
from search_r3_mteb.encoder.identity import model_meta
from search_r3_mteb.encoder.inputs import (
    check_batch_size,
    documents_of,
    holds_rows,
    instructions_of,
    is_query,
    read_batches,
    read_queries,
    refuse_encode_kwargs,
    refuse_keywords,
    task_prompt,
    texts_of,
)
from search_r3_mteb.encoder.processes import gathered, own_share, process_count, process_device
from search_r3_mteb.encoder.profiles import TEMPLATES, TemplateName
from search_r3_mteb.encoder.prompts import Renderer
from search_r3_mteb.encoder.sampling import Sampling
from search_r3_mteb.encoder.setting_types import check_flag, check_kind, check_whole_number
from search_r3_mteb.encoder.settings import EncoderSettings, Mode, Statistics, check_window
from search_r3_mteb.encoder.similarity import cosines, paired_cosines
from search_r3_mteb.encoder.store import Store, fingerprint_of
from search_r3_mteb.search.arrays import Vectors


@dataclass(frozen=True)
class Thought:
    """The reasoning about one text, and the vector it led to.

    `token_ids` are the sampled ids without the embed token. `finished` is False when the embed token was forced: the
    budget was spent, or the model ended its turn. `vector` (dim,) is float32 and of unit length.
    """

    text: str
    token_ids: list[int]
    finished: bool
    vector: Float32[np.ndarray, " dim"] = field(repr=False)


class SearchR3Encoder:
    """Encodes queries (reason, then embed) and documents (directly) with one causal LM; for MTEB, BEIR and plain use.

    `model` is "nano" or "mini" (bundled), a local folder, a LoRA folder, a hub id, or a `Checkpoint` in memory. The
    keyword arguments are those of `EncoderSettings`; an unknown one is a TypeError. Vectors are float32, of unit length
    and in the order of the input: (dim,) for a single text, (n, dim) for a list, (0, dim) for an empty one.

    Under `accelerate launch` every process encodes its share, and all of them get all vectors.
    """

    def __init__(
        self, model: str | Path | Checkpoint = "nano", *, revision: str | None = None, **settings: Any
    ) -> None:
        self._settings = chosen = EncoderSettings.from_keywords(settings)
        check_kind("model", model, (str, Path, Checkpoint), "a bundled name, a folder, a hub id, or a Checkpoint")
        check_kind("revision", revision, (str, NoneType), "a commit or branch of the hub (str), or None")
        if isinstance(model, Checkpoint):
            chosen.check_fits(model, revision)
            self.checkpoint = model
        else:
            self.checkpoint = load(
                model,
                revision=revision,
                dtype=chosen.dtype,
                device=chosen.device or process_device(),
                trust_remote_code=chosen.trust_remote_code,
                probe=chosen.probe,
                verify=chosen.verify,
            )
        self.model, self.tokenizer = self.checkpoint.model, self.checkpoint.tokenizer
        self.name, self.revision = self.checkpoint.name, self.checkpoint.revision
        self.max_length = chosen.fit_max_length(self.checkpoint)
        self.renderer = Renderer(self.tokenizer, self.checkpoint.profile, self.max_length)
        self.renderer.check_room("direct", chosen.mode)
        self.engine = Engine(
            self.model,
            self.checkpoint.embed_token_id,
            stop_token_ids=self.checkpoint.stop_token_ids,
            token_budget=chosen.batch_tokens,
        )
        self.dim = self.engine.dim
        self.statistics = Statistics()
        self._stores: dict[str, Store] = {}
        self._mteb_model_meta: Any = None

    # ---- what users call -------------------------------------------------------------------------------------------

    def encode_query(
        self,
        texts: str | Sequence[str],
        *,
        instruction: str | Sequence[str | None] | None = None,
        max_reasoning_tokens: int | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        convert_to_tensor: bool = False,
        **unknown: Any,
    ) -> Any:
        """Vectors of queries, after reasoning in mode "reason".

        `instruction` is one for all or one per text. `batch_size` (rows) is accepted for compatibility with MTEB, BEIR
        and sentence-transformers: batches are formed by `batch_tokens`, and no vector depends on either.
        """
        refuse_keywords(self.encode_query, unknown)
        check_batch_size(batch_size)
        check_flag("convert_to_tensor", convert_to_tensor)
        check_flag("show_progress_bar", show_progress_bar, optional=True)
        check_whole_number("max_reasoning_tokens", max_reasoning_tokens, optional=True)
        rows = texts_of(texts)
        if self._settings.mode == "reason":
            thoughts = self.think(
                rows,
                instruction=instruction,
                max_reasoning_tokens=max_reasoning_tokens,
                show_progress_bar=show_progress_bar,
            )
            vectors = np.array([thought.vector for thought in thoughts], np.float32).reshape(-1, self.dim)
        else:
            if max_reasoning_tokens:
                raise ValueError(
                    f"max_reasoning_tokens={max_reasoning_tokens} was given, but this encoder's mode is 'direct', "
                    "which does not reason. Make it with mode='reason'."
                )
            vectors = self._computed(rows, instructions_of(instruction, len(rows)), "query", None, show_progress_bar)
            self.statistics.queries += len(rows)
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
        """Vectors of documents, embedded directly. A document is a string, or a mapping with "text" (and "title")."""
        refuse_keywords(self.encode_document, unknown)
        check_batch_size(batch_size)
        check_flag("convert_to_tensor", convert_to_tensor)
        check_flag("show_progress_bar", show_progress_bar, optional=True)
        rows, single = documents_of(texts)
        vectors = self._computed(rows, instructions_of(instruction, len(rows)), "document", None, show_progress_bar)
        self.statistics.documents += len(rows)
        return self._give(vectors, single, convert_to_tensor)

    def think(
        self,
        texts: str | Sequence[str],
        *,
        instruction: str | Sequence[str | None] | None = None,
        max_reasoning_tokens: int | None = None,
        show_progress_bar: bool | None = None,
        **unknown: Any,
    ) -> list[Thought]:
        """The reasoning about each text and the vector it leads to, in one pass and in either mode."""
        refuse_keywords(self.think, unknown)
        check_flag("show_progress_bar", show_progress_bar, optional=True)
        check_whole_number("max_reasoning_tokens", max_reasoning_tokens, optional=True)
        rows = texts_of(texts)
        instructions = instructions_of(instruction, len(rows))
        budget = self._settings.max_reasoning_tokens if max_reasoning_tokens is None else max_reasoning_tokens
        sampling = Sampling(budget, self._settings.temperature, self._settings.seed)
        check_window(self.checkpoint, self.max_length + budget + 1, budget)
        thoughts: list[Thought] = self._computed(rows, instructions, "query", sampling, show_progress_bar)
        self.statistics.queries += len(rows)
        self.statistics.reasoning_tokens += sum(len(thought.token_ids) for thought in thoughts)
        self.statistics.forced += sum(not thought.finished for thought in thoughts)
        return thoughts

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any = None,
        hf_split: str | None = None,
        hf_subset: str | None = None,
        prompt_type: Any = None,
        **keywords: Any,
    ) -> Any:
        """MTEB's entry point: vectors (n, dim) of a DataLoader of its batches, or of texts; a list may hold documents.

        `prompt_type` "query" reasons as `encode_query`; "document" and None, which symmetric tasks such as STS use for
        both sides, embed directly. `hf_split` and `hf_subset` say where the texts come from; no vector depends on that.
        """
        query = is_query(prompt_type)
        task = task_metadata if self.task_prompts else None
        if holds_rows(inputs):
            if not query:
                return self.encode_document(inputs, **keywords)
            return self.encode_query(inputs, **({"instruction": task_prompt(task)} | keywords))
        refuse_encode_kwargs(keywords)
        if not query:
            return self.encode_document(read_batches(inputs, is_query=False)[0], **keywords)
        texts, instructions = read_queries(inputs, task)
        return self.encode_query(texts, instruction=instructions, **keywords)

    def encode_queries(self, queries: Sequence[str], **keywords: Any) -> Any:
        """BEIR's name for `encode_query`: vectors (queries, dim).

        Limits of beir 2.2 that no encoder can lift: its exact search crashes on a single query, its FAISS and parallel
        searches cannot be instantiated, and `EvaluateRetrieval.evaluate` averages over the queries present in a run.
        Where that matters, evaluate the same folder through MTEB (`search_r3_mteb.tasks.beir_folder`).
        """
        return self.encode_query(texts_of(queries, several=True), **keywords)

    def encode_corpus(self, corpus: Documents, **keywords: Any) -> Any:
        """BEIR's name for `encode_document`: vectors (documents, dim) of every form of corpus that BEIR has used."""
        return self.encode_document(document_texts(corpus), **keywords)

    def similarity(self, first: Any, second: Any) -> Any:
        """Cosine similarities (n, m) of rows (n, dim) and (m, dim), as a tensor. Errors: see `similarity.cosines`."""
        return cosines(first, second)

    def similarity_pairwise(self, first: Any, second: Any) -> Any:
        """Cosine similarities (n,) of rows (n, dim) with rows (n, dim), as a tensor."""
        return paired_cosines(first, second)

    # ---- identity --------------------------------------------------------------------------------------------------

    @property
    def mode(self) -> Mode:
        """Either "reason" or "direct"."""
        return self._settings.mode

    @property
    def task_prompts(self) -> bool:
        """Whether an MTEB task's own instruction is put before the query."""
        return self._settings.task_prompts

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting that decides a vector, as JSON scalars."""
        chosen = asdict(self._settings)
        keys = ("mode", "max_reasoning_tokens", "temperature", "seed", "task_prompts")
        return {key: chosen[key] for key in keys} | {"dtype": str(self.model.dtype), "max_length": self.max_length}

    @property
    def fingerprint(self) -> str:
        """Hex digest over the checkpoint and every setting that decides a vector."""
        prompts = {name: self.renderer.frame_ids(name) for name in TEMPLATES}
        return fingerprint_of({"checkpoint": self.checkpoint.fingerprint(), "prompts": prompts} | self.settings)

    @property
    def mteb_model_meta(self) -> Any:
        """MTEB's description of this encoder, with an identity that no other checkpoint or mode shares."""
        if self._mteb_model_meta is not None:
            return self._mteb_model_meta
        return model_meta(self.checkpoint, self.dim, self._experiment())

    @mteb_model_meta.setter
    def mteb_model_meta(self, meta: Any) -> None:
        # What MTEB's `get_model` assigns holds only the settings that its caller named; the others decide vectors too.
        experiment = {**(meta.experiment_kwargs or {}), **self._experiment()}
        self._mteb_model_meta = meta.model_copy(update={"experiment_kwargs": experiment})

    def _experiment(self) -> dict[str, Any]:
        """The part of the identity that name and revision do not hold; it becomes a folder's name in MTEB's cache."""
        return self.settings | {"fingerprint": self.fingerprint[:16]}

    # ---- encoding --------------------------------------------------------------------------------------------------

    def _computed(
        self,
        texts: Sequence[str],
        instructions: Sequence[str | None],
        role: str,
        sampling: Sampling | None,
        show_progress_bar: bool | None,
    ) -> Any:
        """Thoughts under `sampling`, or direct vectors (n, dim) without it, computed where the store lacks them.

        The work is done chunk by chunk: each process computes its share, and all of them get and store all results.
        """
        template: TemplateName = "direct" if sampling is None else "reason"
        store = self._store(role, template, sampling)
        todo = list(range(len(texts))) if store is None else store.missing(texts, instructions)
        results: Any = np.empty((len(texts), self.dim), np.float32) if sampling is None else [None] * len(texts)
        show = self._settings.show_progress_bar if show_progress_bar is None else show_progress_bar
        what = "encoding" if sampling is None else "reasoning"
        with progress_bar(what, "doc" if role == "document" else "query", show) as bar:

            def progress(rows: int) -> None:
                bar.update(rows * process_count())  # every process reports its own rows only

            bar.total, done, seconds, began = len(todo), 0, 0.0, time.perf_counter()
            for chunk, prompts in self._chunks(texts, instructions, template, todo, CHUNK[role]):
                own = [texts[i] for i in own_share(chunk)]
                if sampling is None:
                    found: Any = self.unit(self.engine.embed(prompts, progress).numpy(), own)
                else:
                    found = self._reason(own, prompts, sampling, progress)
                found = gathered(chunk, found)
                took = time.perf_counter() - began
                if store is None:
                    for position, result in zip(chunk, found, strict=True):
                        results[position] = result
                else:
                    vectors = found if sampling is None else np.stack([thought.vector for thought in found])
                    given = [instructions[i] for i in chunk]
                    thoughts = None if sampling is None else found
                    store.append([texts[i] for i in chunk], vectors, thoughts, instructions=given, seconds=took)
                seconds, done = seconds + took, done + len(chunk)
                bar.n = done
                bar.refresh()
                began = time.perf_counter()
        if store is not None and len(texts):
            # Stored rows count with the time that computing them took, so that a resumed run shows the same speed.
            seconds, results = store.seconds(texts, instructions), store.lookup(texts, instructions)
            if sampling is not None:
                kept = zip(store.thoughts(texts, instructions), results, strict=True)
                results = [Thought(each.text, list(each.token_ids), each.finished, vector) for each, vector in kept]
        if role == "query":
            self.statistics.query_seconds += seconds
        else:
            self.statistics.document_seconds += seconds
        return results

    def _chunks(
        self,
        texts: Sequence[str],
        instructions: Sequence[str | None],
        template: TemplateName,
        todo: Sequence[int],
        size: int,
    ) -> Iterator[tuple[list[int], list[list[int]]]]:
        """The positions `todo`, `size` at a time, the longest texts first, and the prompts of this process's share.

        A thread tokenises each chunk while the model computes the one before it.
        """
        order = sorted(todo, key=lambda position: (-len(texts[position]), position))

        def render(chunk: Sequence[int]) -> list[list[int]]:
            own = own_share(chunk)
            given = [instructions[i] for i in own]
            rendered = self.renderer.render_batch([texts[i] for i in own], template, given if any(given) else None)
            return [prompt.token_ids for prompt in rendered]

        return one_ahead([order[start : start + size] for start in range(0, len(order), size)], render)

    def _reason(
        self, texts: Sequence[str], prompts: list[list[int]], sampling: Sampling, on_rows: Callable[[int], None]
    ) -> list[Thought]:
        rollouts = self.engine.reason(prompts, sampling, log_probs=False, on_batch=on_rows)
        vectors = self.unit(rollouts.vectors.numpy(), texts)
        spoken = [ids[:-1] for ids in rollouts.token_ids]  # the last one is the embed token
        decoded = self.tokenizer.batch_decode(spoken, skip_special_tokens=True)
        return [
            Thought(text, ids, finished, vector)
            for text, ids, finished, vector in zip(decoded, spoken, rollouts.finished, vectors, strict=True)
        ]

    def unit(self, vectors: Vectors, texts: Sequence[str]) -> Vectors:
        """Rows of unit length; ValueError for one that is not finite or has no direction."""
        norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)  # squares of float32 may overflow
        bad = np.flatnonzero(~(np.isfinite(norms[:, 0]) & (norms[:, 0] > 0)))
        if len(bad):
            raise ValueError(
                f"{self.name}: the vector of text {texts[bad[0]]!r:.60} (and {len(bad) - 1} more) is not finite or "
                f"zero, so it has no direction. The weights or the dtype ({self.model.dtype}) are at fault: load with "
                "dtype='float32' and look again."
            )
        unit: Vectors = (vectors / norms).astype(np.float32)
        return unit

    def _store(self, role: str, template: TemplateName, sampling: Sampling | None) -> Store | None:
        """The store of this role and these settings, when a folder was given.

        Documents and direct queries do not depend on mode and sampling, so both modes share them.
        """
        if self._settings.cache_folder is None:
            return None
        parts: dict[str, Any] = {"checkpoint": self.checkpoint.fingerprint(), "role": role, "template": template}
        parts |= {"dtype": str(self.model.dtype), "max_length": self.max_length}
        parts["prompt"] = self.renderer.frame_ids(template)
        if sampling is not None:
            parts |= asdict(sampling)
        key = fingerprint_of(parts)
        if key not in self._stores:
            self._stores[key] = Store(self._settings.cache_folder, key, role, self.dim)
        return self._stores[key]

    def _give(self, vectors: Vectors, single: bool, convert_to_tensor: bool) -> Any:
        result: Any = vectors[0] if single else vectors
        if not convert_to_tensor:
            return result
        import torch

        return torch.from_numpy(np.array(result))
