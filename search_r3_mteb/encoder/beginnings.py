r"""Beginnings of long texts that have the same first tokens as the whole.

A tokenizer needs some 150 bytes of memory per character, and of a long text only the first `max_length` tokens are
kept. Where a pre-tokenizer always splits, what stands before is tokenised without a look at what follows: the tokens of
that beginning are the first tokens of the whole. Too few of them are noticed by their number, so that no guess is made
of the characters per token.

The places are after a letter (Latin without accents, Russian, Chinese) and before a space, a line break or an
ideographic full stop. They are proved for the parts listed here only:
- regular expressions of the GPT-2, Qwen and Llama 3 kind: in no alternative does a letter stand before something else,
  and the only look ahead, `\s+(?!\S)`, ends at a letter that is in the beginning;
- WordPiece's (BERT's) and other splits at white space; Metaspace that splits, before a space;
- normalizers that change a character with its neighbours at most, none of which joins over such a place.
A tokenizer with any other part, or with an added token that could lie over such a place, gets the whole text.
"""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

_LETTER = "[A-Za-z\u0410-\u044f\u4e00-\u9fa5]"
_FOLLOWERS = " \n\u3002"
_NEAR = 2000  # characters before the wanted length in which a place is looked for
_LOCAL_NORMALIZERS = ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "BertNormalizer", "Strip", "StripAccents", "Prepend")
_WHITE_SPACE_SPLITS = ("BertPreTokenizer", "Whitespace")  # both also split at punctuation
_CONTRACTIONS = r"\(\?i:'[a-z]+(?:\|'[a-z]+)*\)"
_ALTERNATIVES = frozenset(
    {
        *(r"[^\r\n\p{L}\p{N}]?\p{L}+", r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+", r" ?\p{L}+", r"\p{L}+"),
        *(r"\p{N}", r"\p{N}+", r" ?\p{N}+", r"\p{N}{1,3}", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"),
        *(r" ?[^\s\p{L}\p{N}]+", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"),
    }
)


class Beginnings:
    """Cuts long texts for one fast tokenizer; `followers` are the characters before which it can ("": nowhere)."""

    def __init__(self, tokenizer: Any) -> None:
        # Without the vocabulary, which may be large: of the tokenizer's parts only the first are looked at.
        backend = tokenizer.backend_tokenizer
        added = [token.content for token in tokenizer.added_tokens_decoder.values()]
        plain = all(not token.single_word for token in tokenizer.added_tokens_decoder.values())
        followers = ""
        if plain and not any(_crosses(content) for content in added) and _is_local(_state(backend.normalizer)):
            followers = _followers(_state(backend.pre_tokenizer))
        self.followers = followers
        self._place = re.compile(f"{_LETTER}(?=[{re.escape(followers)}])") if followers else None

    def cut(self, text: str, characters: int) -> str:
        """A beginning of about `characters` that has the first tokens of the whole; the text where there is none."""
        if self._place is None or len(text) <= 2 * characters:
            return text
        places = [match.end() for match in self._place.finditer(text, max(0, characters - _NEAR), characters + 1)]
        if places:
            return text[: places[-1]]
        behind = self._place.search(text, characters)
        return text if behind is None else text[: behind.end()]


def groups(texts: Sequence[str], characters: int) -> Iterator[range]:
    """Rows that are tokenised together: as many as have `characters` together, at least one."""
    start, held = 0, 0
    for row, text in enumerate(texts):
        if row > start and held + len(text) > characters:
            yield range(start, row)
            start, held = row, 0
        held += len(text)
    if start < len(texts):
        yield range(start, len(texts))


def _state(part: Any) -> dict[str, Any] | None:
    """A part of a tokenizer as tokenizer.json holds it."""
    if part is None:
        return None
    state: dict[str, Any] = json.loads(part.__getstate__())
    return state


def _crosses(content: str) -> bool:
    """Whether a token may lie over a place, also in a text that is normalised."""
    return any(character.isspace() or character in _FOLLOWERS for character in content[1:])


def _is_local(normalizer: dict[str, Any] | None) -> bool:
    if normalizer is None:
        return True
    if normalizer["type"] == "Sequence":
        return all(_is_local(part) for part in normalizer["normalizers"])
    if normalizer["type"] == "Replace":  # several spaces by one
        return normalizer["pattern"] == {"Regex": " {2,}"} and normalizer["content"] == " "
    return normalizer["type"] in _LOCAL_NORMALIZERS


def _followers(pre_tokenizer: dict[str, Any] | None) -> str:
    """The characters before which a pre-tokenizer splits after a letter; none for one that is not known."""
    if pre_tokenizer is None:
        return ""
    parts = pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]
    found: set[str] = set()
    for place, part in enumerate(parts):
        last = place == len(parts) - 1
        splits = _splits(part)
        if splits is None or (part["type"] in ("ByteLevel", "Metaspace") and not last):  # they rename characters
            return ""
        found |= set(splits)
    return "".join(character for character in _FOLLOWERS if character in found)


def _splits(part: dict[str, Any]) -> str | None:
    """The same for one part; None for one that is not known."""
    kind = part["type"]
    if kind in _WHITE_SPACE_SPLITS or (kind == "ByteLevel" and part.get("use_regex", True)):
        return _FOLLOWERS
    if kind in ("ByteLevel", "Digits"):
        return ""
    if kind == "WhitespaceSplit":
        return " \n"
    if kind == "Metaspace":
        return " " if part.get("split", True) else ""
    if kind == "Split" and part["behavior"] == "Isolated" and not part["invert"]:
        pattern = part["pattern"].get("Regex") or part["pattern"].get("String")
        if pattern in ("\n", r"\n"):
            return "\n"
        if "Regex" in part["pattern"] and _known(pattern):
            return _FOLLOWERS
    return None


def _known(pattern: str) -> bool:
    """Whether a regular expression consists of known alternatives, and takes every character."""
    rest = re.sub(rf"^{_CONTRACTIONS}\|", "", pattern)
    alternatives = rest.split("|")
    letters = any(each.endswith(("\\p{L}+", "[\\p{L}\\p{M}]+")) for each in alternatives)
    return (
        letters
        and r"\s+" in alternatives
        and all(each in _ALTERNATIVES or re.fullmatch("'[a-z]+", each) for each in alternatives)
    )
