"""Rendered texts as the tensors of a forward: right-padded token ids, lengths, and which tokens are the reply."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from search_r3_mteb.encoder.prompts import Rendered


@dataclass(frozen=True)
class TokenBatch:
    """Sequences that run together; `reply` marks the assistant's tokens, the embed token among them."""

    token_ids: Int[Tensor, "rows length"]
    lengths: Int[Tensor, " rows"]
    reply: Bool[Tensor, "rows length"]


def collate(rendered: Sequence[Rendered], pad_id: int, device: torch.device, learned: str = "assistant") -> TokenBatch:
    """Right-padded rows, with the span `learned` marked as the tokens that the model learns to say.

    Under causal attention no real token reads the pad id, and it is never counted: any id will do.
    """
    lengths = torch.tensor([len(row.token_ids) for row in rendered])
    token_ids = torch.full((len(rendered), int(lengths.max())), pad_id)
    reply = torch.zeros(token_ids.shape, dtype=torch.bool)
    for index, row in enumerate(rendered):
        token_ids[index, : len(row.token_ids)] = torch.tensor(row.token_ids)
        start, end = row.spans[learned]
        reply[index, start:end] = True
    return TokenBatch(token_ids.to(device), lengths.to(device), reply.to(device))


def mini_batches(rendered: Sequence[Rendered], size: int | None) -> list[list[Rendered]]:
    """Consecutive parts of `size` rows; None leaves the batch whole."""
    size = size or max(len(rendered), 1)
    return [list(rendered[start : start + size]) for start in range(0, len(rendered), size)]


def text_ids(texts: Sequence[str]) -> Int[Tensor, " texts"]:
    """An integer for each text, the same on every process: equal texts are equal documents."""
    digests = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts]
    return torch.tensor([int.from_bytes(digest, "big", signed=True) for digest in digests], dtype=torch.long)
