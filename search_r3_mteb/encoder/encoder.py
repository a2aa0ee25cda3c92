"""SearchR3Encoder: reasons about queries and then embeds them, embeds documents directly."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np

from search_r3_mteb.encoder.anchoring import anchored
from search_r3_mteb.encoder.arithmetic import arithmetic, batching
from search_r3_mteb.encoder.checkpoints import Checkpoint, load
from search_r3_mteb.encoder.chunks import CHUNK, one_ahead, progress_bar
from search_r3_mteb.encoder.documents import Documents
from search_r3_mteb.encoder.doors import EncoderDoors
from search_r3_mteb.encoder.engine import Engine
from search_r3_mteb.encoder.engine_kinds import open_engine
from search_r3_mteb.encoder.given import GivenReasoning, GivenTurns, Reasonings, reasonings_of
from search_r3_mteb.encoder.identity import model_meta
from search_r3_mteb.encoder.inputs import (
    check_batch_size,
    documents_of,
    instructions_of,
    refuse_keywords,
    texts_of,
)
from search_r3_mteb.encoder.model_names import resolve
from search_r3_mteb.encoder.processes import gathered, own_share, process_count, process_device
from search_r3_mteb.encoder.profiles import TEMPLATES, TemplateName
from search_r3_mteb.encoder.prompts import Renderer
from search_r3_mteb.encoder.sampling import Sampling
from search_r3_mteb.encoder.setting_types import check_flag, check_kind, check_whole_number
from search_r3_mteb.encoder.settings import EncoderSettings, Mode, Statistics, check_window
from search_r3_mteb.encoder.store import Store, fingerprint_of
from search_r3_mteb.encoder.thoughts import Thought as Thought
from search_r3_mteb.search.arrays import Vectors
from search_r3_mteb.threads import SpeedWatch, settle

_log = logging.getLogger(__name__)


class SearchR3Encoder(EncoderDoors):
    """Encodes queries (reason, then embed) and documents (directly) with one causal LM; for MTEB, BEIR and plain use.

    `model` is "nano", "mini" or "smol" (bundled), a local folder, a LoRA folder, a hub id, or a `Checkpoint` in memory.
    The keyword arguments are those of `EncoderSettings`; an unknown one is a TypeError. Vectors are float32, of unit
    length and in the order of the input: (dim,) for a single text, (n, dim) for a list, (0, dim) for an empty one.

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
                # vLLM has a copy of the weights where it computes; these say which model it is, and embed on a CPU.
                device="cpu" if chosen.engine == "vllm" else chosen.device or process_device(),
                trust_remote_code=chosen.trust_remote_code,
                probe=chosen.probe,
                verify=chosen.verify,
            )
        self.model, self.tokenizer = self.checkpoint.model, self.checkpoint.tokenizer
        self.name, self.revision = self.checkpoint.name, self.checkpoint.revision
        self.max_length = chosen.fit_max_length(self.checkpoint)
        self.renderer = Renderer(self.tokenizer, self.checkpoint.profile, self.max_length)
        self.renderer.check_room("direct", chosen.mode)
        own = Engine(
            self.model,
            self.checkpoint.embed_token_id,
            stop_token_ids=self.checkpoint.stop_token_ids,
            token_budget=chosen.batch_tokens,
            batch_invariant=chosen.fit_batch_invariant(self.checkpoint),
        )
        self.engine = open_engine(
            chosen.engine,
            self.checkpoint,
            own,
            folder=None if isinstance(model, Checkpoint) or chosen.engine == "own" else resolve(model, revision),
            positions=self.max_length + chosen.max_reasoning_tokens + 1,
            trust_remote_code=chosen.trust_remote_code,
            options=chosen.engine_options,
        )
        self.dim = chosen.fit_dim(self.engine.dim)
        self.statistics = Statistics()
        self._stores: dict[str, Store] = {}

    # ---- what users call -------------------------------------------------------------------------------------------

    def encode_query(
        self,
        texts: str | Sequence[str],
        *,
        instruction: str | Sequence[str | None] | None = None,
        reasoning: Reasonings | None = None,
        max_reasoning_tokens: int | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        convert_to_tensor: bool = False,
        **unknown: Any,
    ) -> Any:
        """Vectors of queries, after reasoning in mode "reason".

        `instruction` is one for all or one per text. `reasoning` stands for the model's own, as in `think`; mode
        "direct" has no place for it, and raises ValueError. `batch_size` (rows) is accepted for compatibility with
        MTEB, BEIR and sentence-transformers, and ignored: batches are formed by `batch_tokens`. Whether a vector
        depends on the texts beside it: see `EncoderSettings`.
        """
        refuse_keywords(self.encode_query, unknown)
        check_batch_size(batch_size)
        check_flag("convert_to_tensor", convert_to_tensor)
        check_flag("show_progress_bar", show_progress_bar, optional=True)
        check_whole_number("max_reasoning_tokens", max_reasoning_tokens, optional=True)
        rows = texts_of(texts)
        if self._settings.mode == "reason":
            thoughts = self.think(
                texts if isinstance(texts, str) else rows,
                instruction=instruction,
                reasoning=reasoning,
                max_reasoning_tokens=max_reasoning_tokens,
                show_progress_bar=show_progress_bar,
            )
            vectors = np.array([thought.vector for thought in thoughts], np.float32).reshape(-1, self.dim)
        else:
            if reasoning is not None:
                raise ValueError(
                    f"reasoning={reasoning!r:.60} was given, but this encoder's mode is 'direct', in whose prompt "
                    "nothing is reasoned. Make it with mode='reason', or leave it out."
                )
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
        """Vectors of documents, embedded directly. A document is a string, or a mapping with "text" (and "title").

        Whether a vector depends on the documents beside it: see `EncoderSettings`. `batch_size` is ignored.
        """
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
        reasoning: Reasonings | None = None,
        max_reasoning_tokens: int | None = None,
        show_progress_bar: bool | None = None,
        **unknown: Any,
    ) -> list[Thought]:
        """The reasoning about each text and the vector it leads to, in one pass and in either mode.

        `reasoning` is what somebody else has written: one for each text, None for the model's own, or a single one for
        a single text. The vector is the one that the model would have had, had it written that within its budget. Each
        is a text, a `Thought`, or token ids without the embed token (see `given`). Raises TypeError and ValueError for
        what is none of these, another number of them, and ids of another model.

        With an `anchor`, `vector` is anchored in the text's direct vector, and both parts are there.
        """
        refuse_keywords(self.think, unknown)
        check_flag("show_progress_bar", show_progress_bar, optional=True)
        check_whole_number("max_reasoning_tokens", max_reasoning_tokens, optional=True)
        rows = texts_of(texts)
        instructions = instructions_of(instruction, len(rows))
        budget = self._settings.max_reasoning_tokens if max_reasoning_tokens is None else max_reasoning_tokens
        sampling = Sampling(budget, self._settings.temperature, self._settings.seed)
        check_window(self.checkpoint, self.max_length + budget + 1, budget)
        given = reasonings_of(reasoning, len(rows), single=isinstance(texts, str))
        thoughts: list[Any] = [None] * len(rows)
        turns = GivenTurns(self.renderer, self.engine, budget).read([each for each in given if each is not None])
        own = [row for row, each in enumerate(given) if each is None]
        other = [row for row, each in enumerate(given) if each is not None]
        for part, said in ((own, None), (other, turns)):
            if part:
                chosen = [rows[row] for row in part], [instructions[row] for row in part]
                found = self._computed(*chosen, "query", sampling, show_progress_bar, said)
                for row, thought in zip(part, found, strict=True):
                    thoughts[row] = thought
        if self.anchor is not None and rows:
            direct = self._computed(rows, instructions, "query", None, show_progress_bar)
            reasoned = np.stack([thought.vector for thought in thoughts])
            parts = zip(self.unit(anchored(direct, reasoned, self.anchor), rows), direct, thoughts, strict=True)
            thoughts = [replace(each, vector=row, direct=own, reasoned=each.vector) for row, own, each in parts]
        self.statistics.count(thoughts)
        return thoughts

    # ---- identity --------------------------------------------------------------------------------------------------

    @property
    def mode(self) -> Mode:
        """Either "reason" or "direct"."""
        return self._settings.mode

    @property
    def anchor(self) -> float | None:
        """The weight of the reasoned vector beside the direct one; None where the reasoned one is a query's vector."""
        return self._settings.anchor_of(self.checkpoint)

    @property
    def truncate_dim(self) -> int | None:
        """The number of dimensions that vectors are cut to; None where they are whole."""
        return self._settings.truncate_dim

    @property
    def task_prompts(self) -> bool:
        """Whether an MTEB task's own instruction is put before the query."""
        return self._settings.task_prompts

    @property
    def batches(self) -> dict[str, Any]:
        """The settings `batch_tokens` and `batch_invariant` that this encoder runs by."""
        return {"batch_tokens": self.engine.token_budget, "batch_invariant": self.engine.batch_invariant}

    @property
    def chosen_engine(self) -> dict[str, Any]:
        """The settings `engine` and `engine_options`, as they were given."""
        return {"engine": self._settings.engine, "engine_options": self._settings.engine_options}

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting that decides a vector, as JSON scalars."""
        chosen = asdict(self._settings)
        keys = ("mode", "max_reasoning_tokens", "temperature", "seed", "task_prompts")
        found = {key: chosen[key] for key in keys} | {"dtype": str(self.model.dtype), "max_length": self.max_length}
        if self.anchor is not None and self.mode == "reason":
            found["anchor"] = float(self.anchor)
        if self.truncate_dim is not None:
            found["truncate_dim"] = self.truncate_dim
        return found | batching(self.engine) | self.engine.identity(self.mode == "reason")

    @property
    def fingerprint(self) -> str:
        """Hex digest over the checkpoint, every setting that decides a vector, and in half precision the device."""
        parts: dict[str, Any] = {"checkpoint": self.checkpoint.fingerprint()}
        parts["prompts"] = {name: self.renderer.frame_ids(name) for name in TEMPLATES}
        return fingerprint_of(parts | self.settings | arithmetic(self.engine, reasons=self.mode == "reason"))

    def _described(self, experiment: dict[str, Any]) -> Any:
        return model_meta(self.checkpoint, self.dim, experiment)

    # ---- encoding --------------------------------------------------------------------------------------------------

    def _computed(
        self,
        texts: Sequence[str],
        instructions: Sequence[str | None],
        role: str,
        sampling: Sampling | None,
        show_progress_bar: bool | None,
        given: Sequence[GivenReasoning] | None = None,
    ) -> Any:
        """Thoughts under `sampling`, or direct vectors (n, dim) without it, computed where the store lacks them.

        With `given` reasonings nothing is sampled. The work is done chunk by chunk: each process computes its share,
        and all of them get and store all results.
        """
        template: TemplateName = "direct" if sampling is None else "reason"
        store = self._store(role, template, sampling, given is not None)
        # What decides a row of the store beside its text.
        keys = list(instructions)
        if given is not None:
            keys = [each.condition(instruction) for each, instruction in zip(given, instructions, strict=True)]
        todo = list(range(len(texts))) if store is None else store.missing(texts, keys)
        results: Any = np.empty((len(texts), self.engine.dim), np.float32) if sampling is None else [None] * len(texts)
        show = self._settings.show_progress_bar if show_progress_bar is None else show_progress_bar
        what = "encoding" if sampling is None or given is not None else "reasoning"
        with progress_bar(what, "doc" if role == "document" else "query", show) as bar:

            def progress(rows: int) -> None:
                bar.update(rows * process_count())  # every process reports its own rows only

            bar.total, done, seconds, began, pace = len(todo), 0, 0.0, time.perf_counter(), SpeedWatch()
            for chunk, prompts in self._chunks(texts, instructions, template, todo, CHUNK[role]):
                own = [texts[i] for i in own_share(chunk)]
                self._settle_threads(prompts, None if given is not None else sampling)
                if sampling is None:
                    found: Any = self.unit(self.engine.embed(prompts, progress).numpy(), own)
                elif given is not None:
                    found = self._read(own, prompts, [given[i] for i in own_share(chunk)], progress)
                else:
                    found = self._reason(own, prompts, sampling, progress)
                found = gathered(chunk, found)
                took = time.perf_counter() - began
                if store is None:
                    for position, result in zip(chunk, found, strict=True):
                        results[position] = result
                else:
                    vectors = found if sampling is None else np.stack([thought.vector for thought in found])
                    thoughts = None if sampling is None else found
                    conditions = [keys[i] for i in chunk]
                    store.append([texts[i] for i in chunk], vectors, thoughts, instructions=conditions, seconds=took)
                seconds, done = seconds + took, done + len(chunk)
                written = 0 if sampling is None else sum(len(thought.token_ids) for thought in found)
                if said := pace.hint(written + sum(map(len, prompts)), took):
                    _log.warning("%s: %s", what, said)
                bar.n = done
                bar.refresh()
                began = time.perf_counter()
        if store is not None and len(texts):
            # Stored rows count with the time that computing them took, so that a resumed run shows the same speed.
            seconds, results = store.seconds(texts, keys), store.lookup(texts, keys)
            if sampling is not None:
                kept, other = zip(store.thoughts(texts, keys), results, strict=True), given is not None
                results = [Thought(each.text, list(each.token_ids), each.finished, row, other) for each, row in kept]
        if role == "query":
            self.statistics.query_seconds += seconds
        else:
            self.statistics.document_seconds += seconds
        return self._truncated(results, texts)

    def _settle_threads(self, prompts: list[list[int]], sampling: Sampling | None) -> None:
        """Measure on a few prompts of many how many threads are best now, where this process lets us choose.

        vLLM has threads of its own, and starts when it is first asked.
        """
        if len(prompts) < 64 or self.model.device.type != "cpu" or self._settings.engine != "own":
            return
        sample = prompts[:: max(64, len(prompts) // 8)]
        if sampling is None:
            settle(lambda: self.engine.embed(sample))
        else:
            short = replace(sampling, max_reasoning_tokens=min(8, sampling.max_reasoning_tokens))
            settle(lambda: self.engine.reason(sample, short, log_probs=False))

    def _truncated(self, results: Any, texts: Sequence[str]) -> Any:
        """The same vectors or thoughts in the first `dim` dimensions, of unit length again."""
        if self.truncate_dim is None:
            return results
        if not isinstance(results, list):
            return self.unit(results[:, : self.dim], texts)
        vectors = self.unit(np.array([each.vector[: self.dim] for each in results]).reshape(-1, self.dim), texts)
        return [replace(each, vector=vector) for each, vector in zip(results, vectors, strict=True)]

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

    def _read(
        self,
        texts: Sequence[str],
        prompts: list[list[int]],
        given: Sequence[GivenReasoning],
        on_rows: Callable[[int], None],
    ) -> list[Thought]:
        """The thoughts of given reasonings: prompt, reasoning and embed token in one forward pass."""
        end = self.checkpoint.embed_token_id
        read = [[*prompt, *each.token_ids, end] for prompt, each in zip(prompts, given, strict=True)]
        vectors = self.unit(self.engine.embed(read, on_rows).numpy(), texts)
        return [
            Thought(each.text, list(each.token_ids), each.finished, vector, given=True)
            for each, vector in zip(given, vectors, strict=True)
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

    def _store(self, role: str, template: TemplateName, sampling: Sampling | None, given: bool) -> Store | None:
        """The store of this role and these settings, when a folder was given.

        Documents and direct queries do not depend on mode and sampling, so both modes share them. A `given` reasoning
        does not depend on sampling either; it is part of its row's key, cut to the budget as it is read.
        """
        if self._settings.cache_folder is None:
            return None
        parts: dict[str, Any] = {"checkpoint": self.checkpoint.fingerprint(), "role": role, "template": template}
        parts |= {"dtype": str(self.model.dtype), "max_length": self.max_length}
        parts |= arithmetic(self.engine, reasons=sampling is not None and not given)
        parts["prompt"] = self.renderer.frame_ids(template)
        if given:
            parts["reasoning"] = "given"
        elif sampling is not None:
            parts |= asdict(sampling)
        key = fingerprint_of(parts)
        if key not in self._stores:
            self._stores[key] = Store(self._settings.cache_folder, key, role, self.engine.dim)
        return self._stores[key]
