"""The losses of stage 1: functions over tensors, without model, tokenizer or process group.

The vocabulary is wide (151,936 for Qwen2.5), so nothing here takes logits. Losses over tokens take hidden states at
reply positions, (positions, dim), and `head`, the function from hidden states to logits: a few hundred positions at a
time become logits, forward and again backward, and (batch, length, vocabulary) never exists.

Every loss is a sum divided by `count`. By default `count` is the number of items of the call, which makes a mean; a
mini-batch, or one process of several, passes its share of the whole instead, and the parts then add up to the loss of
the whole (gradcache.py, gathered.py).

Departures from the paper: the paper's summary names the four terms and unit weights, nothing more. Temperature, margin,
the direction of the KL and what counts as a negative are our choices, listed in train/PAPER.md.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from train.config.loss import LossSettings
from train.losses.checks import at_least_float32, require_finite, require_positive, share, unit

ToLogits = Callable[[Tensor], Tensor]
"""Hidden states (positions, dim) -> logits (positions, vocabulary). It is called again during backward."""

LOSS_DEFAULTS = LossSettings()
# Our choice: 256 positions x 151,936 tokens are 156 MB of float32 logits; larger chunks gain no speed.
POSITIONS_AT_ONCE = 256


class Reply(NamedTuple):
    """Hidden states that predict the reply's tokens, and those tokens; row after row, padding gone."""

    hidden: Float[Tensor, "positions dim"]
    targets: Int[Tensor, " positions"]


class TokenScores(NamedTuple):
    """Natural-log probability of each target, and the entropy in nats of its distribution (without gradient)."""

    log_probs: Float[Tensor, " positions"]
    entropies: Float[Tensor, " positions"]


def select_reply(
    hidden: Float[Tensor, "batch length dim"],
    token_ids: Int[Tensor, "batch length"],
    reply: Bool[Tensor, "batch length"],
) -> Reply:
    """The positions that predict the tokens marked in `reply`, the embed token among them; padding on either side.

    The token at t is predicted by the hidden state at t - 1. Raises ValueError when a reply has no token, or begins at
    column 0, where nothing precedes it.
    """
    if bool(reply[:, 0].any()):
        row = int(reply[:, 0].nonzero()[0])
        raise ValueError(
            f"reply[{row}, 0] is True, but no position precedes the first token. Mark the reply alone, not the prompt."
        )
    empty = (~reply.any(dim=1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(
            f"Rows {empty} have no reply token: truncation or a wrong span lost them. Check their Rendered.spans."
        )
    predicts = reply[:, 1:]
    return Reply(hidden[:, :-1][predicts], token_ids[:, 1:][predicts])


def token_scores(
    hidden: Float[Tensor, "positions dim"],
    head: ToLogits,
    targets: Int[Tensor, " positions"],
    *,
    temperature: float = 1.0,
    chunk: int = POSITIONS_AT_ONCE,
) -> TokenScores:
    """Log-probabilities of `targets` under softmax(head(hidden) / temperature), and entropies.

    Stage 2 passes the temperature it sampled with: its log-probabilities are then those of the sampling distribution.
    """
    require_finite(hidden=hidden)
    require_positive(temperature=temperature)

    def part(hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = at_least_float32(head(hidden)) / temperature
        normaliser = logits.logsumexp(dim=-1)
        with torch.no_grad():
            entropy = normaliser - (torch.softmax(logits, dim=-1) * logits).sum(dim=-1)
        return logits.gather(1, targets[:, None])[:, 0] - normaliser, entropy

    parts = [
        checkpoint(part, rows, ids, use_reentrant=False)
        for rows, ids in zip(hidden.split(chunk), targets.split(chunk), strict=True)
    ]
    return TokenScores(torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]))


def reply_cross_entropy(
    hidden: Float[Tensor, "positions dim"],
    head: ToLogits,
    targets: Int[Tensor, " positions"],
    *,
    count: float | None = None,
    chunk: int = POSITIONS_AT_ONCE,
) -> Float[Tensor, ""]:
    """L_SFT: minus the log-probability of the reply's tokens, the embed token among them; nats per token.

    `hidden` and `targets` come from `select_reply`: they hold a reasoning trace, where the reply has one, and no
    prompt.
    """
    return -token_scores(hidden, head, targets, chunk=chunk).log_probs.sum() / share(count, len(targets))


def kl_to_base(
    hidden: Float[Tensor, "positions dim"],
    head: ToLogits,
    base_hidden: Float[Tensor, "positions base_dim"],
    base_head: ToLogits,
    *,
    direction: Literal["forward", "reverse"] = "reverse",
    new_token_id: int | None = None,
    count: float | None = None,
    chunk: int = POSITIONS_AT_ONCE,
) -> Float[Tensor, ""]:
    """L_KL between model and frozen base at the same reply positions; nats per token. No gradient reaches the base.

    "forward" is KL(base || model), "reverse" KL(model || base), our choice: stage 2's estimator measures that one.
    `new_token_id` leaves the embed token out of both distributions: the base has never seen it, and at unit weights the
    penalty would hold its probability at 0.09 (reverse, where the base gives it 1e-6) or 0.5 (forward).

    With LoRA, `base_head` must put the adapter's start back itself: it is called again during backward.
    """
    if direction not in ("forward", "reverse"):
        raise ValueError(
            f"direction={direction!r}: it is 'forward', KL(base || model), or 'reverse', KL(model || base)."
        )
    require_finite(hidden=hidden, base_hidden=base_hidden)

    def part(hidden: Tensor, base_hidden: Tensor) -> Tensor:
        with torch.no_grad():
            base_logits = at_least_float32(base_head(base_hidden))
        logits = at_least_float32(head(hidden))
        if logits.shape != base_logits.shape:
            raise ValueError(
                f"The model gives {logits.shape[1]} logits and the base {base_logits.shape[1]}: they cannot be "
                "compared token by token. Add the embed token to the base as well, before its copy is frozen."
            )
        if new_token_id is not None:
            column = torch.tensor([new_token_id], device=logits.device)
            # Finite, so that 0 * (difference of logs) is 0 and not NaN.
            logits, base_logits = logits.index_fill(1, column, -1e9), base_logits.index_fill(1, column, -1e9)
        model, base = logits.log_softmax(dim=-1), base_logits.log_softmax(dim=-1)
        if direction == "forward":
            return (base.exp() * (base - model)).sum()
        return (model.exp() * (model - base)).sum()

    sums = [
        checkpoint(part, rows, base_rows, use_reentrant=False)
        for rows, base_rows in zip(hidden.split(chunk), base_hidden.detach().split(chunk), strict=True)
    ]
    return torch.stack(sums).sum() / share(count, len(hidden))


def negative_mask(
    positives: Int[Tensor, " queries"],
    document_ids: Int[Tensor, " documents"],
    *,
    query_ids: Int[Tensor, " queries"] | None = None,
    relevant: Int[Tensor, "pairs 2"] | None = None,
    owners: Int[Tensor, " documents"] | None = None,
) -> Bool[Tensor, "queries documents"]:
    """Which documents are negatives of which query.

    `positives[i]` is the column of query i's positive. Never a negative: any copy of that document; the positives of
    other rows with the same `query_ids`; the (query id, document id) pairs of `relevant`, judgements that the caller
    knows. Of several copies of a document the first counts. `owners[j]` is the row that document j was mined for (or is
    the positive of): given, a query sees its own documents only, and there are no in-batch negatives.

    Raises ValueError when `positives` points past the documents, or `relevant` is given without `query_ids`.
    """
    documents = len(document_ids)
    _require_columns(positives, documents)
    positive_ids = document_ids[positives]
    negatives = document_ids[None, :] != positive_ids[:, None]
    if query_ids is None:
        if relevant is not None:
            raise ValueError(
                "`relevant` names queries by id, but `query_ids` is None. Pass the id of each row's query."
            )
    else:
        known = torch.stack([query_ids, positive_ids], dim=1)
        if relevant is not None:
            known = torch.cat([known, relevant.to(known)])
        # Ids may be as wide as int64: they are numbered from 0 first, so that a pair fits one integer.
        _, query_number = torch.unique(torch.cat([query_ids, known[:, 0]]), return_inverse=True)
        _, number = torch.unique(torch.cat([document_ids, known[:, 1]]), return_inverse=True)
        width = int(number.max()) + 1
        pairs = query_number[: len(query_ids), None] * width + number[None, :documents]
        negatives &= ~torch.isin(pairs, query_number[len(query_ids) :] * width + number[documents:])
    if owners is not None:
        negatives &= owners[None, :] == torch.arange(len(positives), device=owners.device)[:, None]
    return negatives & _first_copies(negatives, document_ids)


def info_nce(
    queries: Float[Tensor, "queries dim"],
    documents: Float[Tensor, "documents dim"],
    *,
    positives: Int[Tensor, " queries"] | None = None,
    negatives: Bool[Tensor, "queries documents"] | None = None,
    temperature: float = LOSS_DEFAULTS.temperature,
    count: float | None = None,
) -> Float[Tensor, ""]:
    """L_InfoNCE (arXiv 1807.03748, eq. 4): -log of the positive's share of exp(cos / temperature), mean over queries.

    `positives[i]` is the column of query i's positive, by default i: positives first, hard negatives after them.
    `negatives`, from `negative_mask`, marks the rest of the denominator; by default every other column. Documents may
    have been gathered from other processes, or be constants from a cache.

    Raises ValueError for NaN, for a column out of range, and when no query has a negative: that batch teaches nothing.
    """
    require_finite(queries=queries, documents=documents)
    require_positive(temperature=temperature)
    if positives is None:
        positives = torch.arange(len(queries), device=queries.device)
    _require_columns(positives, len(documents))
    own = torch.zeros(len(queries), len(documents), dtype=torch.bool, device=queries.device)
    own.scatter_(1, positives[:, None], True)
    negatives = ~own if negatives is None else negatives & ~own
    if len(queries) and not bool(negatives.any()):
        raise ValueError(no_negative(f"None of the {len(queries)} queries", len(documents)))
    with torch.autocast(queries.device.type, enabled=False):  # it would compute these cosines in bfloat16
        scores = unit(queries) @ unit(documents).T / temperature
    positive = scores.gather(1, positives[:, None])[:, 0]
    losses = scores.masked_fill(~(negatives | own), -torch.inf).logsumexp(dim=1) - positive
    return losses.sum() / share(count, len(queries))


def no_negative(who: str, documents: int) -> str:
    """The message for a batch that teaches nothing."""
    return (
        f"{who} has a negative among the {documents} documents: the loss is 0 whatever the vectors are. Take a larger "
        "batch, add hard negatives, or allow in-batch negatives."
    )


def triplet_margin(
    queries: Float[Tensor, "queries dim"],
    positives: Float[Tensor, "queries dim"],
    negatives: Float[Tensor, "queries hard dim"],
    *,
    mask: Bool[Tensor, "queries hard"] | None = None,
    margin: float = LOSS_DEFAULTS.margin,
    count: float | None = None,
) -> Float[Tensor, ""]:
    """L_TripletMargin: max(0, margin + cos(query, negative) - cos(query, positive)), mean over the triplets.

    `mask` is False where a query has fewer hard negatives than others. Raises ValueError for NaN, and without a triplet
    where no `count` is given.
    """
    require_finite(queries=queries, positives=positives, negatives=negatives)
    queries = unit(queries)
    positive = (queries * unit(positives)).sum(dim=-1)
    negative = (queries[:, None] * unit(negatives)).sum(dim=-1)
    losses = functional.relu(margin + negative - positive[:, None])
    if mask is not None:
        losses = losses * mask
    return losses.sum() / share(count, losses.numel() if mask is None else int(mask.sum()))


def _first_copies(
    allowed: Bool[Tensor, "queries documents"], document_ids: Int[Tensor, " documents"]
) -> Bool[Tensor, "queries documents"]:
    """True where a document is the first allowed one of its id in its row."""
    _, number = torch.unique(document_ids, return_inverse=True)
    columns = torch.arange(len(document_ids), device=document_ids.device).expand(allowed.shape)
    past = len(document_ids)
    first = torch.full((len(allowed), past + 1), past, device=document_ids.device)
    number = number.expand(allowed.shape)
    first = first.scatter_reduce(1, number, columns.masked_fill(~allowed, past), "amin")
    return first.gather(1, number) == columns


def _require_columns(positives: Tensor, documents: int) -> None:
    outside = ((positives < 0) | (positives >= documents)).nonzero().flatten().tolist()
    if outside:
        raise ValueError(
            f"positives[{outside[0]}] is {int(positives[outside[0]])}, but there are {documents} documents. "
            "Each query needs the column of its positive; without `positives`, the first documents are the positives."
        )
