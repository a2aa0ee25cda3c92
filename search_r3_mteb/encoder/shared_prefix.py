"""Attention of a decode step on a processor, with the rows' common beginning multiplied once for all of them.

A step's attention is bound by memory: every row reads its own keys and values. Where the rows begin with the same
tokens, the first row's keys and values of these are everybody's, so that all rows' queries meet them in one product
that reads them once. What remains is attended row by row, and the two softmaxes are joined by their sums (as in Hydra
attention, arXiv 2402.05099, and vLLM's cascade attention).

Numbers differ from plain attention's in the order of summation. Keys and values stay complete in the cache: a layer
that does not ask for this function, and a call that it cannot serve, attend to them as always.
"""

import inspect
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from search_r3_mteb.encoder.masks import DecodeMasks

NAME = "search_r3_shared_prefix"
# Below this many rows x shared columns the second kernel call costs what it saves, or nearly: results/speed/smol.md.
LEAST_SHARED, LEAST_COLUMNS = 2048, 32
_shared: ContextVar[int] = ContextVar("search_r3_shared_prefix", default=0)  # columns that all rows have in common


def can_share(backbone: Any, masks: DecodeMasks) -> bool:
    """Whether steps of this model may attend so: on a processor, by sdpa through transformers' attention interface.

    Layers with a window do not see the whole beginning. A model whose own code compares the implementation's name
    would take another path under ours.
    """
    device = next(backbone.parameters()).device
    if device.type != "cpu" or masks.form != "sdpa" or masks.kinds != ["full_attention"]:
        return False
    if not hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu"):
        return False
    try:
        source = inspect.getsource(sys.modules[type(backbone).__module__])
    except (KeyError, OSError, TypeError):
        return False
    return re.search(r"_attn_implementation\W*(==|!=|\bin\b|\bnot\b)", source) is None


@contextmanager
def sharing(backbone: Any, columns: int, rows: int) -> Iterator[bool]:
    """A context in which the model's one-token passes share the first `columns` columns, where that pays; whether so.

    All `rows` must hold the same keys and values there and see all of them. For models of `can_share` only. The
    implementation's name is the model's, so another thread's pass may find it: it shares nothing, as the number of
    columns is this thread's, and computes what sdpa does.
    """
    if columns < LEAST_COLUMNS or columns * rows < LEAST_SHARED:
        yield False
        return
    config = backbone.config.get_text_config()
    token = _shared.set(columns)
    config._attn_implementation = NAME
    try:
        yield True
    finally:
        config._attn_implementation = "sdpa"
        _shared.reset(token)


def _forward(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **keywords: Any
) -> tuple[Tensor, None]:
    """Attention of queries (rows, heads, 1, dim), as transformers calls it; returns (rows, 1, heads, dim)."""
    shared = _shared.get()
    if shared and _fits(query, key, value, attention_mask, shared, keywords):
        return _attend(query, key, value, attention_mask, shared, keywords.get("scaling")), None
    found: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **keywords)
    return found


# What changes the scores beside mask and scale, and what plain attention drops: any of these is left to sdpa.
_CHANGES = ("softcap", "position_bias", "s_aux", "output_attentions")


def _fits(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, shared: int, keywords: dict[str, Any]
) -> bool:
    rows, heads, tokens, dim = query.shape
    changes = [keywords.get(name) for name in _CHANGES]
    plain = not keywords.get("dropout") and all(each is None or each is False for each in changes)
    same = query.dtype == key.dtype == value.dtype and dim == key.shape[3] == value.shape[3]
    masked = mask is None or (mask.dtype == torch.bool and mask.shape == (rows, 1, 1, key.shape[2]))
    here = tokens == 1 and len(key) == rows and heads % key.shape[1] == 0 and key.shape[2] > shared
    return plain and same and masked and here and not query.requires_grad


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, shared: int, scale: float | None) -> Tensor:
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    (rows, heads, _, dim), groups = query.shape, key.shape[1]
    grouped = query.reshape(rows, groups, heads // groups, dim)
    together = grouped.transpose(0, 1).reshape(1, groups, -1, dim)
    begin, begin_sum = kernel(together, key[:1, :, :shared], value[:1, :, :shared], scale=scale)
    if mask is not None:
        seen = mask[..., shared:]
        mask = torch.zeros(seen.shape, dtype=query.dtype).masked_fill_(~seen, float("-inf"))
    rest, rest_sum = kernel(grouped, key[:, :, shared:], value[:, :, shared:], attn_mask=mask, scale=scale)
    begin = begin.reshape(groups, rows, -1, dim).transpose(0, 1)
    begin_sum = begin_sum.reshape(groups, rows, -1).transpose(0, 1)
    share = torch.sigmoid(begin_sum - rest_sum.reshape(begin_sum.shape))[..., None]
    wide = torch.promote_types(query.dtype, torch.float32)
    joined = torch.lerp(rest.to(wide), begin.to(wide), share.to(wide))
    return joined.to(query.dtype).reshape(rows, 1, heads, dim)


AttentionInterface.register(NAME, _forward)
AttentionMaskInterface.register(NAME, sdpa_mask)  # without, transformers would drop the mask of a padded batch
