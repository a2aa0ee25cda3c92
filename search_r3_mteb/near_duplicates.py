"""Index of near duplicates: texts equal after normalisation, or with a word-shingle Jaccard at or above a threshold.

Why exact Jaccard with an inverted index and not MinHash: most evaluation texts are queries, and a query of ten words
has eight shingles, where a MinHash of 128 permutations errs by 0.04 around the threshold, costs 512 bytes instead of
64, and draws 128 hashes per shingle. The prefix filter (Chaudhuri et al. 2006; Bayardo et al. 2007, "Scaling up all
pairs similarity search") finds every pair above the threshold and no other: two sets that similar must share one of
their few rarest members, so only those are indexed. Deterministic, without a parameter to tune or a dependency.
"""

import math
import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt64
from numpy.typing import NDArray

from search_r3_mteb.keys import key_of

_ASCII_WORD = re.compile(r"[a-z0-9]+")
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""In scripts without spaces (Thai, Lao, Burmese, Khmer, kana, Han) each character counts as a word, or a whole sentence
would be one. The inside of a character class."""
_ANY_WORD = re.compile(rf"[{UNSPACED}]|(?:(?![{UNSPACED}])[^\W_])+")
_CACHED_WORDS = 1 << 20


class Signature(NamedTuple):
    """The numbers by which two texts are compared."""

    exact: int
    """64 bits of the normalised text."""
    shingles: UInt64[np.ndarray, " n"]
    """Sorted, distinct."""


class Twin(NamedTuple):
    """The indexed text that a text repeats."""

    number: int
    """Its place among the indexed texts."""
    similarity: float
    """Jaccard of the shingle sets; 1.0 where the normalised texts are equal."""
    exact: bool


def words(text: str) -> list[str]:
    """The words of a text without case, punctuation and compatibility forms: "Ｗhat is X-ray?" -> what, is, x, ray."""
    if text.isascii():
        return _ASCII_WORD.findall(text.lower())
    return _ANY_WORD.findall(unicodedata.normalize("NFKC", text).casefold())


class Signer:
    """Texts -> signatures over shingles of `width` words; a shorter text is one shingle."""

    def __init__(self, width: int) -> None:
        if width < 1:
            raise ValueError(f"A shingle has at least one word, got the width {width}.")
        self._width = width
        self._word_keys: dict[str, int] = {}

    def sign(self, text: str) -> Signature:
        """The signature of one text. Of a text without any word (only signs) the signs themselves count."""
        tokens = words(text)
        if not tokens:
            return Signature(key_of("signs", "".join(text.split())), np.zeros(0, dtype=np.uint64))
        keys = np.array([self._word_key(token) for token in tokens], dtype=np.uint64)
        width = min(self._width, len(tokens))
        # a sum of the words' keys, each times another odd number by its place in the shingle
        total = np.zeros(len(tokens) - width + 1, dtype=np.uint64)
        for place in range(width):
            total = total * np.uint64(0x9E3779B97F4A7C15) + keys[place : place + len(total)]
        return Signature(key_of(*tokens), np.unique(total))

    def _word_key(self, word: str) -> int:
        key = self._word_keys.get(word)
        if key is None:
            key = key_of(word)
            if len(self._word_keys) < _CACHED_WORDS:
                self._word_keys[word] = key
        return key


class DuplicateIndex:
    """Finds, for one text at a time, the most similar of the texts that it was built from.

    `threshold` is the least Jaccard, above 0 and at most 1. Memory: 8 bytes per distinct shingle of a text, and about
    as much again for the index.
    """

    def __init__(self, signatures: Iterable[Signature], threshold: float) -> None:
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold = {threshold}: a Jaccard similarity is above 0 and at most 1.")
        self._threshold = threshold
        keys, sets = [], []
        for signature in signatures:
            keys.append(signature.exact)
            sets.append(signature.shingles)
        self.count = len(sets)
        exact = np.array(keys, dtype=np.uint64)
        self._exact_order = np.argsort(exact, kind="stable")
        self._exact = exact[self._exact_order]
        self._sizes = np.array([len(s) for s in sets], dtype=np.int64)
        self._starts = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(self._sizes)])
        self._members = np.concatenate([np.zeros(0, dtype=np.uint64), *sets])
        self._known, inverse, self._frequency = np.unique(self._members, return_inverse=True, return_counts=True)
        self._index_prefixes(self._frequency[inverse])

    def find(self, signature: Signature) -> Twin | None:
        """The indexed text that equals this one or is most similar to it, None when none reaches the threshold."""
        key, shingles = np.uint64(signature.exact), signature.shingles
        place = int(np.searchsorted(self._exact, key))
        if place < self.count and self._exact[place] == key:
            return Twin(int(self._exact_order[place]), 1.0, True)
        return max(self._similar(shingles), key=lambda twin: twin.similarity, default=None)

    def all(self, signature: Signature) -> list[Twin]:
        """Every indexed text that equals this one or is similar enough, in their order."""
        key = np.uint64(signature.exact)
        left, right = (int(np.searchsorted(self._exact, key, side=side)) for side in ("left", "right"))
        equal = {int(number) for number in self._exact_order[left:right]}
        near = [twin for twin in self._similar(signature.shingles) if twin.number not in equal]
        return sorted([*(Twin(number, 1.0, True) for number in equal), *near])

    def _similar(self, shingles: UInt64[np.ndarray, " n"]) -> Iterator[Twin]:
        for number in self._candidates(shingles):
            theirs = self._members[self._starts[number] : self._starts[number + 1]]
            shared = len(np.intersect1d(shingles, theirs, assume_unique=True))
            similarity = shared / (len(shingles) + len(theirs) - shared)
            if similarity >= self._threshold - 1e-12:
                yield Twin(int(number), similarity, False)

    def _candidates(self, shingles: UInt64[np.ndarray, " n"]) -> Int64[np.ndarray, " candidates"]:
        """Indexed texts that share one of the rarest shingles and are neither too short nor too long."""
        if not len(shingles) or not len(self._known):
            return np.zeros(0, dtype=np.int64)
        places = np.minimum(np.searchsorted(self._known, shingles), len(self._known) - 1)
        frequency = np.where(self._known[places] == shingles, self._frequency[places], 0)
        rarest = shingles[np.lexsort((shingles, frequency))][: self._prefix(len(shingles))]
        left = np.searchsorted(self._posting_keys, rarest, side="left")
        right = np.searchsorted(self._posting_keys, rarest, side="right")
        found = [self._posting_sets[a:b] for a, b in zip(left, right, strict=True) if a < b]
        if not found:
            return np.zeros(0, dtype=np.int64)
        numbers = np.unique(np.concatenate(found))
        sizes = self._sizes[numbers]
        least, most = len(shingles) * self._threshold - 1e-9, len(shingles) / self._threshold + 1e-9
        return numbers[(sizes >= least) & (sizes <= most)]

    def _index_prefixes(self, frequency: NDArray[Any]) -> None:
        owner = np.repeat(np.arange(self.count), self._sizes)
        order = np.lexsort((self._members, frequency, owner))  # within each text, rarest first
        rank = np.arange(len(owner)) - np.repeat(self._starts[:-1], self._sizes)
        prefixes = np.array([self._prefix(int(size)) for size in self._sizes], dtype=np.int64)
        kept = order[rank < np.repeat(prefixes, self._sizes)]
        by_key = np.argsort(self._members[kept], kind="stable")
        self._posting_keys, self._posting_sets = self._members[kept][by_key], owner[kept][by_key]

    def _prefix(self, size: int) -> int:
        """How many of the rarest members must be looked at: |x| - ceil(threshold |x|) + 1."""
        return size - math.ceil(self._threshold * size - 1e-9) + 1
