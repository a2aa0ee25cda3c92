"""InfoNCE over the documents of all processes."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from train.losses.stage1 import LOSS_DEFAULTS, info_nce, negative_mask, no_negative
from train.processes import collectives


def gathered_info_nce(
    queries: Float[Tensor, "queries dim"],
    documents: Float[Tensor, "documents dim"],
    positives: Int[Tensor, " queries"],
    document_ids: Int[Tensor, " documents"],
    query_ids: Int[Tensor, " queries"],
    *,
    relevant: Int[Tensor, "pairs 2"] | None = None,
    temperature: float = LOSS_DEFAULTS.temperature,
    taught: Bool[Tensor, " queries"] | None = None,
) -> Float[Tensor, ""]:
    """`info_nce` of this process's queries against the documents of all processes, with gradient to all of them.

    Arguments are this process's own; `positives` are columns of its own `documents`, and ids mean the same on all
    processes. The average over processes is the loss of the whole batch. `relevant` are (query id, document id) pairs
    of further judgements, whose documents are not negatives either. Of the queries only those that are `taught` have a
    loss; the mean stays that over all, and a process without one takes part with a loss of 0.
    """
    count = collectives.shared_count(len(queries), queries.device)
    own = torch.stack([query_ids, document_ids[positives]], dim=1)
    pairs = collectives.gather_rows(own if relevant is None else torch.cat([own, relevant.to(own)]))
    positives = positives + collectives.rows_before(len(documents), documents.device)
    every_id = collectives.gather_rows(document_ids)
    if taught is not None:
        queries, positives, query_ids = queries[taught], positives[taught], query_ids[taught]
    negatives = negative_mask(positives, every_id, query_ids=query_ids, relevant=pairs)
    require_negatives(negatives)
    return own_info_nce(
        queries, collectives.gather_rows(documents), positives, negatives, temperature=temperature, count=count
    )


def require_negatives(negatives: Bool[Tensor, "queries documents"]) -> None:
    """Raise ValueError, on every process alike, where there are queries and none of any process has a negative."""
    shape, device = negatives.shape, negatives.device
    queries, pairs = (collectives.shared_count(number, device) for number in (shape[0], int(negatives.sum())))
    if queries and not pairs:
        raise ValueError(no_negative("No query of any process", shape[1]))


def own_info_nce(
    queries: Float[Tensor, "queries dim"],
    documents: Float[Tensor, "documents dim"],
    positives: Int[Tensor, " queries"],
    negatives: Bool[Tensor, "queries documents"],
    *,
    temperature: float,
    count: float,
) -> Float[Tensor, ""]:
    """`info_nce` of this process's queries against gathered documents; 0 where only other processes have negatives."""
    if not negatives.any():
        return (queries.sum() + documents.sum()) * 0  # a backward pass, as on the other processes
    return info_nce(queries, documents, positives=positives, negatives=negatives, temperature=temperature, count=count)
