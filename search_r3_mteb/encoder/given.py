"""Given reasoning: a text that somebody else wrote, or token ids, in the place of the model's own.

Ids are taken as they are. A text is tokenised once, as the reply of a training row is: behind the prompt, and between
what the profile's reply puts around a reasoning ("<think>{reasoning}</think>..."), unless the text brings that itself.
Markers that are spelled in it stay text. The whole turn is cut to the budget at the end of the reasoning, so that what
follows the reasoning, and the embed token, are kept; a text is cut between two of its characters.

A model's own text gives its own vector wherever tokenising the text gives the sampled ids again. It does not where the
model cut a word in an unusual way, wrote control tokens, which a text does not show, or began with a space that its
tokenizer does not decode; its `Thought`, or `token_ids`, are exact always.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, TypeAlias

from search_r3_mteb.encoder.engine_kinds import TextEngine
from search_r3_mteb.encoder.inputs import listed
from search_r3_mteb.encoder.prompts import Renderer
from search_r3_mteb.encoder.store import ThoughtLike
from search_r3_mteb.encoder.tables import type_name
from search_r3_mteb.encoder.text_checks import check_text

Reasoning: TypeAlias = str | ThoughtLike | Sequence[int]
"""A reasoning as a text, as a `Thought`, or as token ids without the embed token."""
Reasonings: TypeAlias = Reasoning | Sequence[Reasoning | None]


@dataclass(frozen=True)
class GivenReasoning:
    """A reasoning as the model reads it. `finished` is False where its end was cut, or its writer had not finished."""

    text: str
    token_ids: list[int]
    finished: bool

    def condition(self, instruction: str | None) -> str:
        """What decides a query's vector beside its text, as the store's key for it."""
        digest = hashlib.sha256(json.dumps(self.token_ids).encode()).hexdigest()
        return json.dumps({"instruction": instruction, "reasoning": digest, "finished": self.finished})


def reasonings_of(reasoning: Any, count: int, *, single: bool) -> list[Any]:
    """One reasoning (or None, for the model's own) per text.

    `single` says that the texts were one string: then one reasoning may stand by itself. Raises TypeError and
    ValueError for another number, and for a bare text where several are needed.
    """
    if reasoning is None:
        return [None] * count
    if isinstance(reasoning, str) or hasattr(reasoning, "token_ids"):
        if single:
            return [reasoning]
        raise TypeError(
            f"A list of reasonings is needed, one for each of the {count} texts, got a single {type_name(reasoning)} "
            f"{reasoning!r:.60}. Write [reasoning], or give the text itself as one string, too."
        )
    given = listed(reasoning, "reasoning")
    if any(_is_id(each) for each in given):
        raise TypeError(
            f"reasoning={given!r:.60} holds token ids where reasonings are needed. Write a list of them for each text: "
            "[[...], ...]."
        )
    if len(given) != count:
        raise ValueError(
            f"{len(given)} reasonings were given for {count} texts; give one for each, None for the model's own."
        )
    return given


class GivenTurns:
    """Makes token ids of given reasonings, within `budget` tokens, for one model."""

    def __init__(self, renderer: Renderer, engine: TextEngine, budget: int) -> None:
        self._renderer, self._engine, self._budget = renderer, engine, budget
        self._before, self._after = renderer.reply_frame()

    def read(self, given: Sequence[Reasoning]) -> list[GivenReasoning]:
        """The reasonings as the model reads them, in their order. Raises TypeError and ValueError that name one."""
        turns = [self._read(each, position) for position, each in enumerate(given)]
        texts = self._decoded([ids for ids, _ in turns])
        return [GivenReasoning(text, ids, done) for text, (ids, done) in zip(texts, turns, strict=True)]

    def _read(self, given: Any, position: int) -> tuple[list[int], bool]:
        if isinstance(given, str):
            check_text(given, position, "Reasoning")
            return self._tokenized(given)
        thought = hasattr(given, "token_ids")
        ids, finished = ids_of(given.token_ids if thought else given, position), not thought or bool(given.finished)
        self._check_ids(ids, position)
        if thought and self._decoded([ids]) != [given.text]:
            raise ValueError(
                f"Reasoning {position} is a Thought whose token ids are not those of its text {given.text!r:.60} for "
                "this model's tokenizer: another model wrote it. Give its text."
            )
        finished = finished and ids[-1:] not in [[stop] for stop in self._engine.stop_token_ids]
        return ids[: self._budget], finished and len(ids) <= self._budget

    def _tokenized(self, text: str) -> tuple[list[int], bool]:
        """Ids of the assistant's turn without its embed token, and whether all of the text is in them."""
        before, after = self._before, self._after
        if before + after and len(text) >= len(before + after) and text.startswith(before) and text.endswith(after):
            text = text[len(before) : len(text) - len(after)]
        ids = self._renderer.reply_ids(text)[:-1]
        if len(ids) <= self._budget:
            return ids, True
        opening, closing = (self._renderer.control_ids(part) for part in (before, after))
        room = self._budget - len(closing)
        if room < len(opening):
            raise ValueError(
                f"max_reasoning_tokens={self._budget} leaves no room for a given reasoning: what the profile's reply "
                f"puts around one, {before!r} and {after!r}, takes {len(opening) + len(closing)} tokens. Raise it."
            )
        kept = until_whole_character(self._renderer.tokenizer, ids[len(opening) : room])
        return [*ids[: len(opening)], *kept, *closing], False

    def _check_ids(self, ids: list[int], position: int) -> None:
        vocabulary, embed = self._engine.vocabulary, self._engine.embed_token_id
        wrong = next((i for i in ids if not 0 <= i < vocabulary), None)
        if wrong is not None:
            raise ValueError(
                f"Reasoning {position} holds the token id {wrong}, and the model has {vocabulary}: another model wrote "
                "it. Give its text."
            )
        if embed in ids:
            raise ValueError(
                f"Reasoning {position} holds the embed token {embed} at position {ids.index(embed)}, which ends a "
                "reasoning. Leave it out: it is put behind what is given."
            )

    def _decoded(self, ids: list[list[int]]) -> list[str]:
        return list(self._renderer.tokenizer.batch_decode(ids, skip_special_tokens=True)) if ids else []


def until_whole_character(tokenizer: Any, token_ids: Sequence[int]) -> list[int]:
    """Token ids without the last ones, where these hold a part of a character only: a cut may fall between its bytes.

    A tokenizer decodes such a part as U+FFFD; a character has at most four bytes, so at most three ids are left out.
    """
    ids = list(token_ids)
    for kept in (ids, ids[:-1], ids[:-2], ids[:-3]):
        if not tokenizer.decode(kept, skip_special_tokens=True).endswith("\ufffd"):
            return kept
    return ids  # what stands before is not a whole character either: nothing that a cut has made


def _is_id(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def ids_of(given: Any, position: int) -> list[int]:
    """Token ids, of whatever integer type. Raises TypeError for anything else, a float among them."""
    ids: list[Any] = list(given) if hasattr(given, "__iter__") and not isinstance(given, bytes | dict | set) else [None]
    wrong = next((each for each in ids if not _is_id(each)), given)
    if not all(map(_is_id, ids)):
        raise TypeError(
            f"Reasoning {position} is neither a text nor a Thought nor a list of token ids: it is a "
            f"{type_name(given)} with {wrong!r:.60}. Give one of these, or None for the model's own."
        )
    return [int(each) for each in ids]
