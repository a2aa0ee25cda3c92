"""The writer: any causal LM, prompted by a method, writes texts for queries.

It runs on the same decode loop as Search-R3's reasoning. That loop ends a row at one token; here it is the token that
ends the assistant's turn, so that no embed token is needed: the row's state is not read, only its ids. A model that the
loop refuses (a recurrent state, for example) is run by transformers' own `generate`.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from search_r3_mteb.encoder.adapters import ADAPTER_CONFIG
from search_r3_mteb.encoder.arithmetic import arithmetic, is_half
from search_r3_mteb.encoder.chat_templates import facts
from search_r3_mteb.encoder.checkpoints import (
    Checkpoint,
    check_dtype,
    default_device,
    load,
    load_model,
    load_tokenizer,
    probe_once,
)
from search_r3_mteb.encoder.engine import Engine
from search_r3_mteb.encoder.given import ids_of, until_whole_character
from search_r3_mteb.encoder.model_names import display_name, resolve
from search_r3_mteb.encoder.processes import process_device
from search_r3_mteb.encoder.profiles import DATE, EMBED_TOKEN, PROFILE_FILE, Profile, Template
from search_r3_mteb.encoder.prompts import Rendered, Renderer
from search_r3_mteb.encoder.sampling import Sampling
from search_r3_mteb.encoder.store import ThoughtLike
from search_r3_mteb.expansion.generation import generated
from search_r3_mteb.expansion.methods import CONTEXT, QUERY, Method
from search_r3_mteb.expansion.settings import ExpansionSettings

PROMPT_TOKENS = 1024  # of a whole prompt, or what the model's window leaves (our choice)
_PLAIN = "{system}\n\n{text}"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Written:
    """What was written for one query.

    `texts` are decoded and stripped, one per sample. `token_ids` are all sampled ids, with the id of the ending token
    between two samples, but for those of a last character whose other bytes the budget has cut off. `finished` is False
    where a text was cut because its budget was spent.
    """

    texts: tuple[str, ...]
    token_ids: list[int]
    finished: bool


class Writer:
    """A causal LM that writes by a method's prompt.

    `model` is a folder, a hub id, a Search-R3 checkpoint, or a `Checkpoint` in memory. Raises ValueError for a model
    that has no token that ends a turn, and FileNotFoundError for one that does not exist.
    """

    def __init__(
        self, model: str | Path | Checkpoint, method: Method, settings: ExpansionSettings, revision: str | None = None
    ) -> None:
        self.method, self.settings = method, settings
        loaded = model if isinstance(model, Checkpoint) else _loaded(model, settings, revision)
        self.own_prompt = _writes_for_itself(loaded, method)
        if self.own_prompt and settings.prompt is not None:
            raise ValueError(
                f"prompt was given, but {loaded.name} is a Search-R3 checkpoint, which writes for 'search-r3-prompt' "
                "by its own prompt (search_r3.json). Leave it out, or name another method."
            )
        self.checkpoint = loaded if self.own_prompt else _prompted(loaded, method, settings)
        self.tokenizer, self.name = self.checkpoint.tokenizer, self.checkpoint.name
        self.end_id = self.checkpoint.embed_token_id
        self.lines = not self.own_prompt and self.checkpoint.profile.plain is not None
        self.stop_ids = tuple(sorted({*self.checkpoint.stop_token_ids, *self._further_stops()} - {self.end_id}))
        self.renderer = Renderer(self.tokenizer, self.checkpoint.profile, self._prompt_length())
        self.renderer.check_room("reason")
        self.engine = self._engine(model, revision)

    # ---- prompts ---------------------------------------------------------------------------------------------------

    def prompts(
        self, queries: Sequence[str], instructions: Sequence[str | None], contexts: Sequence[Sequence[str]]
    ) -> list[list[int]]:
        """Token ids of each query's prompt; `contexts` are the lines of its {context}.

        Where a prompt is too long, lines of context are left out from the last one on, then the query is cut at its
        end: the rest of the prompt stays whole.
        """
        texts = [self._filled(query, context) for query, context in zip(queries, contexts, strict=True)]
        rendered = self.renderer.render_batch(texts, "reason", instructions if any(instructions) else None)
        return [
            (each if not each.truncated_tokens or self._ends_in_query else self._fitted(*parts)).token_ids
            for each, parts in zip(rendered, zip(queries, instructions, contexts, strict=True), strict=True)
        ]

    @property
    def arithmetic(self) -> dict[str, Any]:
        """What decides a text beside weights, prompt and sampling; see `encoder/arithmetic.py`."""
        if self.engine is not None:
            return arithmetic(self.engine)
        model, invariant = self.checkpoint.model, self.settings.batch_invariant
        batches = {"batch_invariant": True} if invariant else {"batch_tokens": self.settings.batch_tokens}
        return batches | {"device": str(model.device)} if is_half(model) else {}

    @property
    def prompt(self) -> str:
        """The user's turn with its slots."""
        return self.method.prompt if self.settings.prompt is None else self.settings.prompt

    @property
    def _ends_in_query(self) -> bool:
        return self.own_prompt or self.prompt.endswith(QUERY)

    def _filled(self, query: str, context: Sequence[str]) -> str:
        if self.own_prompt:
            return query
        # Each slot is looked for in the prompt only: a query may spell "{context}".
        parts = self.prompt.split(QUERY)
        return query.join(part.replace(CONTEXT, "\n".join(context)) for part in parts)

    def _fitted(self, query: str, instruction: str | None, context: Sequence[str]) -> Rendered:
        kept = list(context)
        while True:
            rendered = self.renderer.render(self._filled(query, kept), "reason", instruction)
            if not rendered.truncated_tokens:
                return rendered
            if not kept and not query:
                raise ValueError(
                    f"{self.name}: the prompt of {self.method.name!r} alone is longer than {self.renderer.max_length} "
                    "tokens. Shorten it."
                )
            if kept:
                kept.pop()
            else:
                query = query[: len(query) * 3 // 4]

    # ---- writing ---------------------------------------------------------------------------------------------------

    def write(self, prompts: Sequence[Sequence[int]], on_rows: Callable[[int], None] | None = None) -> list[Written]:
        """Texts for each prompt.

        In float32, and with `batch_invariant`, no text depends on the prompts beside its own. In half precision without
        that most do; see `encoder/arithmetic.py`.
        """
        settings = self.settings
        sampling = Sampling(settings.max_reasoning_tokens, settings.temperature_of(self.method), settings.seed)
        samples = settings.samples_of(self.method)
        stops = {self.end_id, *self.stop_ids}
        if self.engine is None:
            room = 0 if settings.batch_invariant else settings.batch_tokens  # of no tokens: each prompt by itself
            rows = generated(self.checkpoint.model, prompts, sampling, samples, sorted(stops), room, on_rows)
            # What transformers generates ends with the token that ended it; ours is forced and never counted.
            done = [bool(ids) and ids[-1] in stops for ids in rows]
            rows = [ids[:-1] if ids and ids[-1] == self.end_id else ids for ids in rows]
        else:
            found = self.engine.reason(prompts, sampling, group_size=samples, log_probs=False, on_batch=on_rows)
            rows = [ids[:-1] for ids in found.token_ids]
            own = zip(rows, found.finished, strict=True)
            done = [finished or (bool(ids) and ids[-1] in stops) for ids, finished in own]
        groups = range(0, len(rows), samples)
        return [self._written(rows[i : i + samples], all(done[i : i + samples])) for i in groups]

    def given(self, texts: Sequence[str]) -> Written:
        """Texts that somebody else wrote, as if they had been written here: each is cut to the budget of tokens."""
        budget, found = self.settings.max_reasoning_tokens, self.renderer.tokenize_text(texts)
        whole = [len(ids) <= budget for ids in found]
        kept = [
            ids if fits else until_whole_character(self.tokenizer, ids[:budget])
            for ids, fits in zip(found, whole, strict=True)
        ]
        said = [
            text if fits else self.tokenizer.decode(ids, skip_special_tokens=True)
            for text, ids, fits in zip(texts, kept, whole, strict=True)
        ]
        ids = self._joined(kept) if any(kept) else []  # where nothing is said, ends between nothing cost nothing
        return Written(tuple(text.strip() for text in said), ids, all(whole))

    def given_thought(self, thought: ThoughtLike) -> Written:
        """The same for what a writer, or a Search-R3 checkpoint, has thought: by its token ids where they are this
        writer's, else by its texts.
        """
        texts = tuple(text.strip() for text in getattr(thought, "texts", (thought.text,)))
        ids = ids_of(thought.token_ids, 0)
        own = not self._foreign(ids) and self.texts_of(ids) == texts
        found = self.given_ids(ids) if own else self.given(texts)
        return replace(found, finished=found.finished and thought.finished)

    def given_ids(self, token_ids: Sequence[int]) -> Written:
        """The same for `Written.token_ids`, which are taken as they are.

        Raises TypeError for what is not an id, and ValueError for one that the model lacks.
        """
        ids = ids_of(token_ids, 0)
        if wrong := self._foreign(ids):
            raise ValueError(
                f"A reasoning holds the token id {wrong[0]}, and {self.name} has {self._vocabulary}: another model "
                "wrote it. Give its text."
            )
        budget, parts = self.settings.max_reasoning_tokens, self._parts(ids)
        whole = all(len(part) <= budget for part in parts)
        return self._written([part[:budget] for part in parts], whole)

    @property
    def _vocabulary(self) -> int:
        return int(self.checkpoint.model.get_input_embeddings().weight.shape[0])

    def _foreign(self, ids: Sequence[int]) -> list[int]:
        """Those of the ids that the model lacks."""
        vocabulary = self._vocabulary
        return [each for each in ids if not 0 <= each < vocabulary]

    def texts_of(self, token_ids: Sequence[int]) -> tuple[str, ...]:
        """The texts of `Written.token_ids`."""
        return tuple(self._text(part) for part in self._parts(token_ids))

    def _parts(self, token_ids: Sequence[int]) -> list[list[int]]:
        parts: list[list[int]] = [[]]
        for each in token_ids:
            if each == self.end_id:
                parts.append([])
            else:
                parts[-1].append(each)
        return parts

    def _written(self, rows: Sequence[list[int]], finished: bool) -> Written:
        kept = [until_whole_character(self.tokenizer, ids) for ids in rows]
        return Written(tuple(self._text(ids) for ids in kept), self._joined(kept), finished)

    def _joined(self, rows: Sequence[Sequence[int]]) -> list[int]:
        joined = [each for ids in rows for each in (*ids, self.end_id)]
        return joined[:-1]

    def _text(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(until_whole_character(self.tokenizer, ids), skip_special_tokens=True)
        return (text.partition("\n")[0] if self.lines else text).strip()

    # ---- the model -------------------------------------------------------------------------------------------------

    def _further_stops(self) -> set[int]:
        """Where the turn ends beside the checkpoint's own stop ids.

        A Search-R3 checkpoint may say its embed token under any prompt. Without a chat template a text is one line, as
        the examples show it: what follows would be a further example.
        """
        vocabulary = self.tokenizer.get_vocab()
        found = {vocabulary[EMBED_TOKEN]} if EMBED_TOKEN in vocabulary else set()
        if self.lines:
            ids = range(len(self.tokenizer))
            pieces = self.tokenizer.batch_decode([[each] for each in ids])
            found |= {each for each, piece in zip(ids, pieces, strict=True) if "\n" in piece}
        return found

    def _prompt_length(self) -> int:
        window, budget = self.checkpoint.window, self.settings.max_reasoning_tokens + 1
        if window is None:
            return PROMPT_TOKENS
        if window <= budget:
            raise ValueError(
                f"max_reasoning_tokens={budget - 1} leaves no room for a prompt: {self.name} was made for {window} "
                "positions. Lower it."
            )
        return min(PROMPT_TOKENS, window - budget)

    def _engine(self, model: Any, revision: str | None) -> Engine | None:
        """The decode loop on this model, None where it refuses the model.

        Raises ValueError for `batch_invariant` where the loop cannot have it: a mixture of experts, too many samples.
        """
        engine_of = partial(
            Engine,
            self.checkpoint.model,
            self.end_id,
            stop_token_ids=self.stop_ids,
            token_budget=self.settings.batch_tokens,
        )
        try:
            engine = engine_of()
            if self.settings.probe and not isinstance(model, Checkpoint):
                folder = resolve(model, revision)
                if not _is_ours(folder):  # else it was probed when it was loaded
                    probe_once(self.checkpoint, folder, (folder,))
        except ValueError as error:
            _log.warning("%s: it is run by transformers' generate, more slowly, because: %s", self.name, error)
            return None
        if not self.settings.batch_invariant:
            return engine
        engine = engine_of(batch_invariant=True)
        samples = self.settings.samples_of(self.method)
        if engine.shapes is not None and samples > engine.shapes.rows:
            raise ValueError(
                f"samples={samples}: with batch_invariant a writer decodes {engine.shapes.rows} rows at once, and the "
                "samples of a query enter together. Lower it, or leave batch_invariant out."
            )
        return engine


def _is_ours(folder: Path) -> bool:
    return (folder / PROFILE_FILE).exists() or (folder / ADAPTER_CONFIG).exists()


def _loaded(model: str | Path, settings: ExpansionSettings, revision: str | None) -> Checkpoint:
    """A Search-R3 checkpoint, or an ordinary causal LM whose profile is still to be chosen."""
    folder = resolve(model, revision)
    device = settings.device or process_device()
    if _is_ours(folder):
        return load(
            model,
            revision=revision,
            dtype=settings.dtype,
            device=device,
            trust_remote_code=settings.trust_remote_code,
            probe=settings.probe,
            verify=settings.verify,
        )
    causal = load_model(folder, check_dtype(settings.dtype), settings.trust_remote_code)
    tokenizer = load_tokenizer(folder, settings.trust_remote_code)
    name = display_name(str(model), folder)
    token = _ending(causal, tokenizer, name)
    causal = causal.to(device or default_device()).eval()
    return Checkpoint(causal, tokenizer, Profile(embed_token=token), name, revision)


def _ending(causal: Any, tokenizer: Any, name: str) -> str:
    """The token that ends a turn: the tokenizer's, else the generation configuration's first one."""
    configured = getattr(getattr(causal, "generation_config", None), "eos_token_id", None)
    ids = [tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])]
    for each in ids:
        if isinstance(each, int) and each in tokenizer.added_tokens_decoder:
            return str(tokenizer.convert_ids_to_tokens(each))
    raise ValueError(
        f"{name}: neither the tokenizer nor generation_config.json names a special token that ends a text (eos_token), "
        "so nothing that it writes would end. Set 'eos_token' in tokenizer_config.json."
    )


def _writes_for_itself(loaded: Checkpoint, method: Method) -> bool:
    """Whether the method is a Search-R3 checkpoint's own reasoning."""
    return method.name == "search-r3-prompt" and loaded.profile.embed_token not in _turn_ends(loaded)


def _turn_ends(loaded: Checkpoint) -> set[str]:
    tokenizer, configured = loaded.tokenizer, getattr(loaded.model, "generation_config", None)
    ends = getattr(configured, "eos_token_id", None)
    ids = [tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])]
    return {str(tokenizer.convert_ids_to_tokens(each)) for each in ids if each is not None}


def _prompted(loaded: Checkpoint, method: Method, settings: ExpansionSettings) -> Checkpoint:
    """The same model with the method's prompts as its profile, and the token that ends a turn in place of the embed's.

    With a chat template: system prompt and user's turn. Without one: two examples, then the same for the query.
    """
    tokenizer = loaded.tokenizer
    token = _ending(loaded.model, tokenizer, loaded.name)
    own = loaded.profile
    chat = own.plain is None and bool(getattr(tokenizer, "chat_template", None))
    prompt = method.prompt if settings.prompt is None else settings.prompt
    if chat:
        thinks = facts(tokenizer).thinking
        system, plain, thinking = method.system, None, False if thinks else None
    else:
        context = "Some titles"  # in the examples; the query's own prompt shows the real ones
        cue = " " if prompt.endswith(":") else "\n"
        shown = (f"{prompt.replace(CONTEXT, context).replace(QUERY, q)}{cue}{text}" for q, text in method.examples)
        system, plain, thinking = "\n\n".join(shown), _PLAIN + cue.strip(" "), None
    profile = Profile(
        embed_token=token,
        reason=Template(system, "{reasoning}{embed_token}"),
        direct=Template(system, "{embed_token}"),
        instruction="{instruction}\n\n",  # our choice: before the method's prompt
        plain=plain,
        thinking=thinking,
        date=own.date or DATE,
    )
    return replace(loaded, profile=profile)
