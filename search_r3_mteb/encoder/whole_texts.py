"""Token ids of a text that is put together from a template's parts and a user's: as one text, with no marker forged.

Most tokenizers read a text otherwise alone than within another: sentencepiece's kind puts a space before it, and others
join white space and words over the border. Here the whole is tokenised, but for what no border can reach: an added
token is cut out of a text before anything else, so ids are computed from the last marker before the user's text to the
first one behind it, and those further out are known.
"""

import json
import re
import secrets
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

Offsets = Sequence[tuple[int, int]]
ORDINARY = "a"
_PROBES = ("", "the sea", " \n x 12 \n ", "éÉ東 ", ".")


@dataclass(frozen=True)
class Part:
    """A piece of a text; markers in the template's own pieces are markers, in a user's they are text."""

    text: str
    own: bool


@dataclass(frozen=True)
class Surroundings:
    """What is tokenised together with a user's text, and the ids further out.

    `left` and `right` are text; `opening` and `closing` are their ids around an ordinary text, `lead` and `rest` the
    ids before and behind. `said` is the end of the prompt, from its last marker on.
    """

    left: str
    right: str
    lead: list[int]
    opening: list[int]
    closing: list[int]
    rest: list[int]
    said: str


class WholeTexts:
    """Tokenises texts of several parts as one; `control` are the ids that only a template's own parts may give.

    `unknown` are those of what the vocabulary lacks, and their tokens: a text may give them, but not spell them.
    """

    def __init__(
        self, tokenizer: Any, control: frozenset[int], marker: re.Pattern[str], unknown: Mapping[int, str]
    ) -> None:
        self._tokenizer, self._control, self._marker, self._unknown = tokenizer, control, marker, unknown

    def ids(self, text: str) -> list[int]:
        """Ids of a text in which markers are markers."""
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def encode(self, parts: Sequence[Part]) -> tuple[list[int], list[int]]:
        """Ids of the joined parts, and for each border between two of them the number of ids before it.

        A token over the border of a user's part belongs to that part, between two of the user's to the first. Raises
        ValueError where a user's part gives a control token even in pieces.
        """
        wanted = [i for part in parts if part.own for i in self.ids(part.text) if i in self._control]
        kept: tuple[list[str], list[int], Offsets] | None = None
        ids: list[int] = []
        for strings, ids, offsets in self._attempts(parts):
            if self._controls(ids) != wanted:
                continue
            if kept is None or self._count_unknown(ids) < self._count_unknown(kept[1]):
                kept = strings, ids, offsets
            if not self._spelled_out(parts, strings, ids, offsets):
                break
        if kept is not None:  # a spelled unknown token that stays one has no other spelling: any such word gives it
            return kept[1], _borders(parts, kept[0], kept[2])
        text = "".join(part.text for part in parts if not part.own)
        if len(self._controls(ids)) < len(wanted):
            raise ValueError(
                f"Beside the text {text!r:.60} the tokenizer does not find the template's markers (their "
                "single_word or normalized is set in tokenizer.json). Unset it, or give the profile a 'plain' "
                "prompt without them."
            )
        raise ValueError(
            f"The tokenizer turns the text {text!r:.60} into a control token even in pieces. Remove the marker "
            "from the text."
        )

    def continued(self, contexts: Sequence[str], parts: Sequence[Part]) -> tuple[list[int], list[int]]:
        """Ids and borders of parts that follow a prompt whose ids are given: in the first context that they leave
        as it is; where they would change its last token, as what follows nothing.
        """
        for context in contexts:
            known = self.ids(context)
            ids, borders = self.encode([Part(context, True), *parts])
            if ids[: len(known)] == known:
                return ids[len(known) :], [max(0, border - len(known)) for border in borders[1:]]
        return self.encode(parts)

    def may_spell_unknown(self, text: str) -> bool:
        """Whether a text holds the unknown token's letters, in any form that a normalizer may make equal."""
        return bool(self._unknown) and any(_folded(token) in _folded(text) for token in self._unknown.values())

    def spells_unknown(self, text: str, ids: Sequence[int], offsets: Offsets) -> bool:
        """Whether one of these ids of a text is the unknown token because the text spells it."""
        return self._spelled_out([Part(text, False)], [text], ids, offsets)

    def _attempts(self, parts: Sequence[Part]) -> Iterator[tuple[list[str], list[int], Offsets]]:
        """Strings of the parts, their ids and offsets: as they are, then in ways that leave markers of a user's part
        alone.
        """
        strings = [part.text for part in parts]
        yield strings, *encoded(self._tokenizer, "".join(strings))
        strings = [self._renamed(part.text) if part.own else part.text for part in parts]
        yield strings, *self._apart(strings, [[]] * len(parts))
        # The marker is an ordinary word of the vocabulary: cut inside each one.
        cuts = [[] if part.own else [m.start() + 1 for m in self._marker.finditer(part.text)] for part in parts]
        yield strings, *self._apart(strings, cuts)

    def _spelled_out(self, parts: Sequence[Part], strings: Sequence[str], ids: Sequence[int], offsets: Offsets) -> bool:
        """Whether an id is the unknown token where that token's own letters stand, not all in a template's part."""
        if not self._count_unknown(ids):
            return False
        whole, own, place = "".join(strings), [], 0
        for part, string in zip(parts, strings, strict=True):
            own += [(place, place + len(string))] if part.own else []
            place += len(string)
        return any(
            _folded(whole[first:last]) == _folded(self._unknown[each])
            and not any(start <= first and last <= end for start, end in own)
            for each, (first, last) in zip(ids, offsets, strict=True)
            if each in self._unknown
        )

    def _count_unknown(self, ids: Sequence[int]) -> int:
        return sum(each in self._unknown for each in ids) if self._unknown else 0

    def _controls(self, ids: Sequence[int]) -> list[int]:
        return [] if self._control.isdisjoint(ids) else [i for i in ids if i in self._control]

    def _apart(self, strings: Sequence[str], cuts: Sequence[Sequence[int]]) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and offsets of joined strings by the tokenizer without markers, in pieces that end at the cuts."""
        backend, known = self._unmarked[:2]
        places, start = [], 0
        for string, within in zip(strings, cuts, strict=True):
            places += [start + cut for cut in within]
            start += len(string)
        whole, ids, offsets = "".join(strings), [], []
        for first, last in zip([0, *places], [*places, start], strict=True):
            encoding = backend.encode(whole[first:last], add_special_tokens=False)
            ids += [known.get(i, i) for i in encoding.ids]
            offsets += [(a + first, b + first) for a, b in encoding.offsets]
        return ids, offsets

    def _renamed(self, text: str) -> str:
        names = self._unmarked[2]
        pattern = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
        return re.sub(pattern, lambda match: names[match[0]], text) if pattern else text

    @cached_property
    def _unmarked(self) -> tuple[Any, dict[int, int], dict[str, str]]:
        """The tokenizer with other names for its control tokens, by which no text can call them.

        With it come the ids that it gives otherwise, and the new names. It is made when the first text spells a marker:
        for a large vocabulary that takes a second.
        """
        from tokenizers import Tokenizer

        state = json.loads(self._tokenizer.backend_tokenizer.to_str())
        state |= {"truncation": None, "padding": None, "post_processor": None}
        names, salt = {}, secrets.token_hex(8)
        for token in state["added_tokens"]:
            if token["id"] in self._control or token["id"] in self._unknown:
                names[token["content"]] = token["content"] = f"<{salt}:{token['id']}>"
        backend = Tokenizer.from_str(json.dumps(state))
        ids: dict[Any, int] = {backend.token_to_id(token["content"]): token["id"] for token in state["added_tokens"]}
        return backend, {new: old for new, old in ids.items() if new != old}, names


def surround(tokenizer: Any, before: str, after: str, reply: str) -> tuple[Surroundings, Offsets, int]:
    """What surrounds a user's text between a template's texts, the offsets of the tokens before it, and the number of
    the reply's tokens.
    """
    whole = before + ORDINARY + after + reply
    ids, offsets = encoded(tokenizer, whole)
    parts = [Part(before, True), Part(ORDINARY, False), Part(after, True), Part(reply, True)]
    first, last, end = _borders(parts, [part.text for part in parts], offsets)
    # What is found in the normalised text is not cut out before it is normalised.
    hard = {i for i, token in tokenizer.added_tokens_decoder.items() if not token.normalized}
    markers = [place for place, i in enumerate(ids) if i in hard]
    left = max((place for place in markers if place < first), default=None)
    right = min((place for place in markers if place >= last), default=None)
    said = whole[offsets[markers[-1]][0] :] if markers else whole

    def made(left: int | None, right: int | None) -> Surroundings:
        return Surroundings(
            left=before if left is None else before[offsets[left][0] :],
            right=after + reply if right is None else whole[len(before) + len(ORDINARY) : offsets[right][1]],
            lead=ids[: left or 0],
            opening=ids[left or 0 : first],
            closing=ids[last:] if right is None else ids[last : right + 1],
            rest=[] if right is None else ids[right + 1 :],
            said=said,
        )

    found = made(left, right)
    for text in _PROBES:  # a tokenizer of a kind of its own: the whole is tokenised with every text
        within = encoded(tokenizer, found.left + text + found.right)[0]
        if [*found.lead, *within, *found.rest] != encoded(tokenizer, before + text + after + reply)[0]:
            found = made(None, None)
    return found, offsets[:first], len(ids) - end


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold().strip()


def encoded(tokenizer: Any, text: str) -> tuple[list[int], Offsets]:
    """Ids and offsets of a text in which markers are markers."""
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return list(found["input_ids"]), found["offset_mapping"]


def _borders(parts: Sequence[Part], strings: Sequence[str], offsets: Offsets) -> list[int]:
    """The number of tokens before each border, as `WholeTexts.encode` says."""
    borders, place, count = [], 0, 0
    for part, string in zip(parts[:-1], strings, strict=False):
        place += len(string)
        while count < len(offsets) and (offsets[count][1] <= place if part.own else offsets[count][0] < place):
            count += 1
        borders.append(count)
    return borders
