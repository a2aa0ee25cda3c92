"""A causal LM from nothing, for `[model.scratch]`: a Qwen2 shape with random weights and one token per word.

Only the bundled nano begins like this. Its vocabulary is hopworld's word lists; any other text falls back to letters
and bytes, so that nothing is lost and every text has a finite vector.
"""

from typing import Any

import torch

from search_r3_mteb.encoder.checkpoints import Checkpoint
from search_r3_mteb.encoder.profiles import EMBED_TOKEN, Profile, Template
from search_r3_mteb.tasks.hopworld import HopWorld
from train.config.model import ScratchSettings

CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", EMBED_TOKEN)
WINDOW = 1024  # positions; hopworld needs a few hundred, real text is truncated

# ChatML with its line breaks, as Qwen2.5's own template writes it for system, user and assistant turns.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Our choice: short, since a model of this size learns the role from one word, and every word of a prompt costs time.
SCRATCH_PROFILE = Profile(
    embed_token=EMBED_TOKEN,
    reason=Template(system="reason", reply="{reasoning}{embed_token}"),
    direct=Template(system="embed", reply="{embed_token}"),
    instruction="{instruction} ",
    tokenization="apart",  # nano's vectors are published
)


def build(settings: ScratchSettings, seed: int) -> Checkpoint:
    """A random checkpoint of this shape, its tokenizer and its profile; the same for the same seed."""
    from transformers import Qwen2ForCausalLM

    tokenizer = word_tokenizer()
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(shape(settings, tokenizer))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return Checkpoint(model, tokenizer, SCRATCH_PROFILE, "search-r3-mteb/scratch")


def shape(settings: ScratchSettings, tokenizer: Any = None) -> Any:
    """The model's configuration; `tokenizer` is the one of `word_tokenizer`."""
    from transformers import Qwen2Config

    tokenizer = tokenizer or word_tokenizer()
    return Qwen2Config(
        vocab_size=-(-len(tokenizer) // 64) * 64,  # padded as Qwen2.5's is
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.key_value_heads,
        max_position_embeddings=WINDOW,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def word_tokenizer() -> Any:
    """One token per word of hopworld and of the templates; other words in letters, other characters in bytes."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    systems = [SCRATCH_PROFILE.reason.system, SCRATCH_PROFILE.direct.system]
    template_words = ["system", "user", "assistant", *systems]
    words = sorted({*HopWorld.words(), *template_words})
    letters = [chr(code) for code in range(0x21, 0x7F)]
    # Unigram takes the segmentation with the highest sum: one whole word beats its letters, a letter beats its bytes.
    # The control tokens are not pieces: a text that spells one out must fall into letters.
    pieces: dict[str, float] = {"<unk>": -100.0}
    pieces |= {f"<0x{byte:02X}>": -50.0 for byte in range(256)}
    pieces |= {"▁": -20.0, "▁\n": -1.0}
    pieces |= dict.fromkeys(letters, -20.0)
    pieces |= {(word if len(word) == 1 and not word.isalnum() else f"▁{word}"): -1.0 for word in words}
    core = Tokenizer(models.Unigram(list(pieces.items()), unk_id=0, byte_fallback=True))
    # A line break is a word of its own, so that a template tokenised as a whole gives the same ids as its parts.
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\n"), "isolated"), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    core.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always"), decoders.Fuse()]
    )
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=["<|im_start|>", EMBED_TOKEN],
        padding_side="left",
        model_max_length=WINDOW,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
