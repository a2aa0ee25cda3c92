"""Shapes of Qwen2.5's models by their published config.json, for transformers' Qwen2Config; no weights are here."""

from typing import Any


def _shape(
    hidden: int, inner: int, heads: int, kept: int, vocabulary: int, *, tied: bool, layers: int = 28
) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kept,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "dtype": "bfloat16",
    }


SHAPES = {
    "Qwen/Qwen2.5-0.5B-Instruct": _shape(896, 4864, 14, 2, 151936, tied=True, layers=24),
    "Qwen/Qwen2.5-1.5B-Instruct": _shape(1536, 8960, 12, 2, 151936, tied=True),
    "Qwen/Qwen2.5-7B-Instruct": _shape(3584, 18944, 28, 4, 152064, tied=False),
}
