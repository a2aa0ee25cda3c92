"""The same query after another reasoning: its own, another query's, its own in shuffled words, or none.

Everything is done in token ids. What a rollout sampled is what is embedded here: decoding it and tokenising the text again may
give other ids (and drops an end-of-turn token), and then the control would differ from the encoder in more than the reasoning.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, Int

from search_r3_mteb.encoder.chunks import progress_bar

if TYPE_CHECKING:
    from search_r3_mteb.encoder.encoder import SearchR3Encoder

Ids = Sequence[int]
_TRIES = 20


def embed_after(
    encoder: "SearchR3Encoder",
    texts: Sequence[str],
    instructions: Sequence[str | None],
    reasonings: Sequence[Ids],
    what: str = "embedding",
) -> Float32[np.ndarray, "queries dim"]:
    """Unit vectors (queries, dim) of prompt + given reasoning + embed token, each in one forward pass.

    `reasonings` are token ids without the embed token, [] for none. With a query's own sampled ids the result is the vector of
    `encode_query` (another batch rounds differently: 1e-4). Raises ValueError where a vector has no direction.
    """
    given = instructions if any(instructions) else None
    prompts = encoder.renderer.render_batch(texts, "reason", given)
    end = encoder.checkpoint.embed_token_id
    sequences = [[*prompt.token_ids, *ids, end] for prompt, ids in zip(prompts, reasonings, strict=True)]
    with progress_bar(what, "query", None) as bar:
        bar.total = len(sequences)
        vectors = encoder.engine.embed(sequences, bar.update).numpy()
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    bad = np.flatnonzero(~(np.isfinite(lengths[:, 0]) & (lengths[:, 0] > 0)))
    if len(bad):
        raise ValueError(
            f"{encoder.name}: with {what}, the vector of query {texts[bad[0]]!r:.60} (and {len(bad) - 1} more) is not finite or "
            f"zero. The weights or the dtype ({encoder.model.dtype}) are at fault: try --set dtype=float32."
        )
    unit: Float32[np.ndarray, "queries dim"] = (vectors / lengths).astype(np.float32)
    return unit


def others(count: int, rng: np.random.Generator) -> Int[np.ndarray, " queries"]:
    """For each of `count` queries the place of another one, each used once: a random round, never a query itself."""
    round_ = rng.permutation(count)
    other = np.empty(count, dtype=np.int64)
    other[round_] = np.roll(round_, -1)
    return other


def shuffled_words(ids: Sequence[Ids], tokenizer: Any, rng: np.random.Generator) -> list[list[int]]:
    """The reasonings with their words in a random order: the same tokens, so the same words and the same length.

    A word is the tokens up to the next white space. A reasoning of one word (a script without spaces) has its tokens shuffled.
    Control tokens at the end (an ended turn) stay there. A reasoning comes back unchanged only where no other order exists or
    twenty draws found none.
    """
    begins = _word_starts(ids, tokenizer)
    special = set(tokenizer.all_special_ids)
    return [_shuffled(list(row), begins, special, rng) for row in ids]


def _shuffled(
    ids: list[int], begins: Callable[[int, int], bool], special: set[int], rng: np.random.Generator
) -> list[int]:
    end = len(ids)
    while end and ids[end - 1] in special:
        end -= 1
    words: list[list[int]] = []
    for place, token in enumerate(ids[:end]):
        if place == 0 or begins(ids[place - 1], token):
            words.append([])
        words[-1].append(token)
    if len(words) == 1:
        words = [[token] for token in words[0]]
    for _ in range(_TRIES):
        shuffled = [token for place in rng.permutation(len(words)) for token in words[place]]
        if shuffled != ids[:end]:
            return shuffled + ids[end:]
    return ids


def _word_starts(ids: Sequence[Ids], tokenizer: Any) -> Callable[[int, int], bool]:
    """Whether white space lies between two neighbouring tokens, read off what the tokenizer decodes them to.

    Decoding is the only thing that all tokenizers agree on: one marks a word's beginning in the piece, another its end.
    """
    pairs = sorted({pair for row in ids for pair in itertools.pairwise(row)})
    firsts = sorted({first for first, _ in pairs})
    alone = dict(zip(firsts, _decoded(tokenizer, [[first] for first in firsts]), strict=True))
    found = {}
    for pair, text in zip(pairs, _decoded(tokenizer, [list(pair) for pair in pairs]), strict=True):
        before, after = alone[pair[0]], text[len(alone[pair[0]]) :]
        found[pair] = before[-1:].isspace() or after[:1].isspace()
    return lambda first, second: found[first, second]


def _decoded(tokenizer: Any, rows: list[list[int]]) -> list[str]:
    return list(tokenizer.batch_decode(rows, skip_special_tokens=False)) if rows else []
