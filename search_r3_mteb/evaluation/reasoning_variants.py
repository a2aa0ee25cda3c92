"""Reasonings that are given in place of a query's own: another query's, or its own in shuffled words.

They are token ids, as they were sampled: decoding them and tokenising the text again may give other ids (and drops an
end-of-turn token), and then the control would differ from the encoder in more than the reasoning.
`SearchR3Encoder.think(texts, reasoning=...)` embeds them.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from search_r3_mteb.near_duplicates import UNSPACED

if TYPE_CHECKING:
    from search_r3_mteb.encoder.prompts import Renderer

Ids = Sequence[int]
FILLER = " ."
_WORD = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")


def others(count: int, rng: np.random.Generator) -> Int[np.ndarray, " queries"]:
    """For each of `count` queries the place of another one, each used once, by a random cycle."""
    round_ = rng.permutation(count)
    other = np.empty(count, dtype=np.int64)
    other[round_] = np.roll(round_, -1)
    return other


def shuffled_words(
    ids: Sequence[Ids], renderer: "Renderer", rng: np.random.Generator, most_tokens: int
) -> list[list[int]]:
    """The reasonings with their words in a random order: same words, same white space, same control tokens at the end.

    In scripts without spaces every character counts as a word. Shuffled words are tokenised again (one at the start of
    a text has other pieces than one after a space); what then exceeds `most_tokens` is cut. A reasoning without another
    order comes back unchanged.
    """
    tokenizer = renderer.tokenizer
    special = set(tokenizer.all_special_ids)
    ends = [_end(row, special) for row in ids]
    spoken = [list(row[:end]) for row, end in zip(ids, ends, strict=True)]
    texts = tokenizer.batch_decode(spoken, skip_special_tokens=True) if spoken else []
    shuffled = [shuffled_text(text, rng) for text in texts]
    changed = renderer.tokenize_text([text.encode("utf-8", "replace").decode() for text in shuffled])
    return [
        list(row) if before == after else [*new[: most_tokens - (len(row) - end)], *row[end:]]
        for row, end, before, after, new in zip(ids, ends, texts, shuffled, changed, strict=True)
    ]


def filler(ids: Sequence[Ids], renderer: "Renderer") -> list[list[int]]:
    """The same numbers of tokens that say nothing: full stops, as in arXiv 2404.15758 (from memory)."""
    [stop] = renderer.tokenize_text([FILLER])
    return [[stop[-1]] * len(row) for row in ids]


def filler_text(tokens: int) -> str:
    """As many full stops, each after a space: one token each for the tokenizers that we know."""
    return " ".join([FILLER.strip()] * tokens)


def _end(ids: Ids, special: set[int]) -> int:
    """The place where the control tokens at the end begin."""
    end = len(ids)
    while end and ids[end - 1] in special:
        end -= 1
    return end


def shuffled_text(text: str, rng: np.random.Generator) -> str:
    """The text's words in another order, its white space in place; unchanged where there is no other order."""
    words = _WORD.findall(text)
    if len(set(words)) < 2:
        return text
    while (order := [words[place] for place in rng.permutation(len(words))]) == words:
        continue
    remaining = iter(order)
    return _WORD.sub(lambda _: next(remaining), text)
