"""Models and texts of the benchmark: random models of three sizes, a tokenizer, and texts of SciFact's lengths.

Nothing is downloaded and no text of a data set is used, only the deciles of SciFact's lengths.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from search_r3_mteb.encoder.checkpoints import Checkpoint
from search_r3_mteb.encoder.profiles import EMBED_TOKEN, Profile

SIZES = ("nano", "30m", "120m")

# Deciles of SciFact's 5,183 documents (title and text) and 1,109 queries in word pieces of BERT's vocabulary.
DOCUMENT_DECILES = (68, 186, 227, 258, 284, 314, 349, 386, 432, 500, 1937)
QUERY_DECILES = (5, 12, 14, 15, 17, 19, 21, 23, 26, 32, 77)

_WORDS = 1500
_CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """A Qwen2 shape; grouped-query attention as in Qwen2.5, but for nano."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    vocabulary: int


SHAPES = {
    "nano": Shape(128, 256, 3, 4, 4, 2048),
    "30m": Shape(384, 1024, 11, 6, 2, 32768),
    "120m": Shape(768, 2176, 15, 12, 2, 32768),
}


def nearest_size(parameters: int) -> str:
    """The size of `SIZES` whose amount of work suits a model of so many parameters: each fits up to twice its own."""
    for size, most in zip(SIZES, (4_000_000, 60_000_000), strict=False):
        if parameters <= most:
            return size
    return SIZES[-1]


def checkpoint(size: str, seed: int = 0) -> Checkpoint:
    """The bundled nano if it is there, else a random float32 Qwen2 of that size with the default prompts."""
    from search_r3_mteb.encoder.checkpoints import load
    from search_r3_mteb.encoder.model_names import ASSETS

    if size == "nano" and (ASSETS / "nano" / "config.json").exists():
        return load("nano", dtype="float32", device="cpu")
    return random_checkpoint(SHAPES[size], f"bench/{size}", seed)


def random_checkpoint(shape: Shape, name: str, seed: int = 0) -> Checkpoint:
    """A checkpoint with random weights in float32 and the published prompts and markers."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    words = tokenizer()
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=max(shape.vocabulary, len(words)),
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    model = Qwen2ForCausalLM(config).eval()
    return Checkpoint(model, words, Profile.default(), name)


@cache
def vocabulary() -> tuple[str, ...]:
    """Made-up words of two or three syllables."""
    draw = np.random.default_rng(0)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    found: dict[str, None] = {}
    while len(found) < _WORDS:
        found["".join(draw.choice(syllables, size=draw.integers(2, 4)))] = None
    return tuple(found)


@cache
def tokenizer() -> Any:
    """A byte-level BPE tokenizer that has every made-up word and most words of the prompts as one token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    profile = Profile.default()
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8192,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>", EMBED_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    lines = [profile.reason.system, profile.direct.system, "system user assistant", " ".join(vocabulary())]
    core.train_from_iterator(lines * 3, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=["<|im_start|>", EMBED_TOKEN],
        padding_side="left",
    )
    fast.chat_template = _CHAT_TEMPLATE
    return fast


def lengths(count: int, deciles: tuple[int, ...], seed: int = 0, longest: int | None = None) -> list[int]:
    """Lengths in words with these deciles; none above `longest`, at which an encoder truncates its text."""
    draw = np.random.default_rng(seed).uniform(0, 100, count)
    found = np.interp(draw, np.linspace(0, 100, len(deciles)), deciles).astype(int)
    return [int(n) for n in (found if longest is None else found.clip(max=longest))]


def texts(words: list[int], known: Any, seed: int = 0) -> list[str]:
    """One text of that many words for each entry; the words are those that the tokenizer `known` has as one token."""
    draw = np.random.default_rng(seed)
    pool = whole_words(known)
    return [" ".join(draw.choice(pool, size=count)) for count in words]


def whole_words(known: Any, marked: bool = False) -> list[str]:
    """Words that are one token in the middle of a text; `marked`: as the vocabulary spells them."""
    marks = ("Ġ", "▁")
    pieces = [
        piece
        for piece in known.get_vocab()
        if piece[:1] in marks and piece[1:].isalpha() and piece[1:].isascii() and len(piece) > 2
    ]
    if not pieces:
        raise ValueError(
            "The benchmark writes texts of words that are one token each, and this tokenizer marks none as the start "
            "of a word (Ġ or ▁). Measure a model with a byte-level or SentencePiece vocabulary."
        )
    return sorted(piece if marked else piece[1:] for piece in pieces)
