"""InfoNCE over the documents of all processes."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from train.losses.stage1 import LOSS_DEFAULTS, info_nce, negative_mask
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
) -> Float[Tensor, ""]:
    """`info_nce` of this process's queries against the documents of all processes, with gradient to all of them.

    Arguments are this process's own; `positives` are columns of its own `documents`, and ids mean the same on all
    processes. The average over processes is the loss of the whole batch. `relevant` are (query id, document id) pairs
    of further judgements, whose documents are no negatives either.
    """
    own = torch.stack([query_ids, document_ids[positives]], dim=1)
    pairs = collectives.gather_rows(own if relevant is None else torch.cat([own, relevant.to(own)]))
    positives = positives + collectives.rows_before(len(documents), documents.device)
    every_id = collectives.gather_rows(document_ids)
    return info_nce(
        queries,
        collectives.gather_rows(documents),
        positives=positives,
        negatives=negative_mask(positives, every_id, query_ids=query_ids, relevant=pairs),
        temperature=temperature,
        count=collectives.shared_count(len(queries), queries.device),
    )
