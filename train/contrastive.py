"""Stage 1's contrastive terms over the whole batch of all processes: InfoNCE and triplet margin on the same similarities.

A row's query is embedded directly and, where it has a trace, after its reasoning; both are queries of the same documents, and
the loss is the mean over all of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from train import distributed
from train.losses import info_nce, negative_mask, triplet_margin
from train.settings_sft import Loss
from train.tensors import unit


@dataclass
class Contrast:
    """The share of a batch that lies on this process: which document belongs to which query.

    `rows[name]` are the numbers of the rows whose queries the column `name` holds; `positives[r]` is the column of row r's
    document among this process's documents, `owners[d]` the row that document d belongs to. Ids are equal for equal texts.
    """

    settings: Loss
    rows: Mapping[str, Int[Tensor, " queries"]]
    query_ids: Int[Tensor, " rows"]
    document_ids: Int[Tensor, " documents"]
    positives: Int[Tensor, " rows"]
    owners: Int[Tensor, " documents"]
    parts: dict[str, float] = field(default_factory=dict, init=False)

    def __call__(self, vectors: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """The weighted sum of both terms; `parts` then holds each as a number, unweighted."""
        settings = self.settings
        names = [name for name in vectors if name != "documents"]
        queries = torch.cat([vectors[name] for name in names])
        rows = torch.cat([self.rows[name] for name in names]).to(queries.device)
        counts = distributed.row_counts(len(vectors["documents"]), queries.device)
        documents = distributed.gather_rows(vectors["documents"])
        before = sum(counts[: distributed.rank()])
        positives = self.positives.to(queries.device)[rows] + before
        negatives = self._negatives(rows, positives, before)
        count = distributed.shared_count(len(queries), queries.device)
        loss = queries.new_zeros(())
        if settings.infonce:
            term = info_nce(
                queries,
                documents,
                positives=positives,
                negatives=negatives,
                temperature=settings.temperature,
                count=count,
            )
            self.parts["infonce"] = float(term.detach())
            loss = loss + settings.infonce * term
        if settings.triplet:
            term = self._triplet(queries, documents, positives, negatives, count)
            self.parts["triplet"] = float(term.detach())
            loss = loss + settings.triplet * term
        return loss

    def _negatives(self, rows: Tensor, positives: Tensor, before: int) -> Tensor:
        """Which documents of all processes are negatives of which query."""
        every_id = distributed.gather_rows(self.document_ids.to(rows.device))
        query_ids = self.query_ids.to(rows.device)
        relevant = torch.stack([query_ids, every_id[self.positives.to(rows.device) + before]], dim=1)
        negatives = negative_mask(
            positives, every_id, query_ids=query_ids[rows], relevant=distributed.gather_rows(relevant)
        )
        if not self.settings.in_batch:
            own = torch.full((len(every_id),), -1, device=rows.device)
            own[before : before + len(self.owners)] = self.owners.to(rows.device)
            negatives &= own[None, :] == rows[:, None]
        return negatives

    def _triplet(
        self, queries: Tensor, documents: Tensor, positives: Tensor, negatives: Tensor, count: float
    ) -> Float[Tensor, ""]:
        """Each query against its hardest allowed negative (FaceNet's choice, arXiv 1503.03832, section 3.2)."""
        with torch.no_grad():
            scores = (unit(queries) @ unit(documents).T).masked_fill(~negatives, -torch.inf)
            hardest = scores.argmax(dim=1)
        return triplet_margin(
            queries,
            documents[positives],
            documents[hardest][:, None],
            mask=negatives.any(dim=1)[:, None],
            margin=self.settings.margin,
            count=count,
        )
