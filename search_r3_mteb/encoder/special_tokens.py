"""The special tokens of a tokenizer: the embed token's id, and what a message says of the others."""

from collections.abc import Sequence
from typing import Any

from search_r3_mteb.encoder.family import known_tokens
from search_r3_mteb.encoder.profiles import PROFILE_FILE
from search_r3_mteb.json_files import parse_json


def embed_token_id(tokenizer: Any, token: str) -> int:
    """The id of the embed token, read from the tokenizer; ValueError when it is not one token there."""
    ids = tokenizer(token, add_special_tokens=False)["input_ids"]
    if len(ids) != 1 or tokenizer.convert_ids_to_tokens(ids[0]) != token:
        added = list_special_tokens(tokenizer)
        raise ValueError(
            f"The tokenizer has no token {token!r} (it gives {len(ids)} pieces), so there is no place to read a vector "
            "from. To make an ordinary causal LM a reason-then-embed checkpoint, run `search-r3 init MODEL --output "
            "FOLDER`, then train it with `python train/sft.py`. If it is one whose token has another name, give the "
            f'name as "embed_token" in {PROFILE_FILE}; the special tokens found are {shown_tokens(added)}.'
            + known_tokens(added)
        )
    if ids[0] not in tokenizer.added_tokens_decoder:
        raise ValueError(
            f'"embed_token" in {PROFILE_FILE} is {token!r}, an ordinary piece of text: any text may hold it, and '
            "behind the template it is read as another token. Name an added token; the special tokens found are "
            f"{shown_tokens(list_special_tokens(tokenizer))}."
        )
    return int(ids[0])


def unknown_token(tokenizer: Any) -> dict[int, str]:
    """Id and text of what the tokenizer's model makes of characters that it does not know; empty where it knows all.

    What `unk_token` declares does not count: byte-level models declare one that they never give.
    """
    backend = tokenizer.backend_tokenizer
    if hasattr(backend.model, "unk_token"):
        number = backend.token_to_id(backend.model.unk_token) if backend.model.unk_token else None
    else:
        number = parse_json(backend.to_str(), "the tokenizer")["model"].get("unk_id")  # Unigram's
    return {} if number is None else {int(number): str(backend.id_to_token(number))}


def can_spell_unknown(tokenizer: Any) -> bool:
    """Whether some text spells the unknown token, declared or the model's, and can be tokenised without it.

    In prompts that are tokenised as one text, earlier versions left that token in: they have another identity.
    """
    for token in {*unknown_token(tokenizer).values(), tokenizer.unk_token} - {None}:
        number = tokenizer.convert_tokens_to_ids(token)
        pieces = tokenizer([token[:1], token[1:]], add_special_tokens=False, split_special_tokens=True)["input_ids"]
        spelled = tokenizer(f"a {token} a", add_special_tokens=False, split_special_tokens=False)["input_ids"]
        if number in spelled and not any(number in ids for ids in pieces):
            return True
    return False


def list_special_tokens(tokenizer: Any) -> list[str]:
    """The special and added tokens of a tokenizer, in the order of their ids."""
    ids = {**tokenizer.get_added_vocab()}
    ids |= dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    return sorted(ids, key=lambda each: ids[each])


def shown_tokens(tokens: Sequence[str], most: int = 12) -> str:
    """Tokens for a message: those that speak of embedding first, and the number of those left out."""
    if not tokens:
        return "none"
    first = sorted(tokens, key=lambda token: "emb" not in token.lower())[:most]
    rest = f" and {len(tokens) - most} more" if len(tokens) > most else ""
    return ", ".join(first) + rest
