"""Stage 1's contrastive terms over the batch of all processes: InfoNCE and triplet margin on the same similarities.

A row's query is embedded directly and, where it has a trace, after its reasoning; both are queries of the same
documents, and the loss is the mean over all of them.

With `matryoshka_dims` InfoNCE is added up over the whole vectors and over their first dimensions in each of these sizes
(Matryoshka, arXiv 2205.13147, eq. 1), with the same negatives: the value of sentence-transformers' MatryoshkaLoss.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from train.config.loss import LossSettings
from train.losses.checks import unit
from train.losses.gathered import own_info_nce, require_negatives
from train.losses.stage1 import negative_mask, triplet_margin
from train.processes import collectives


@dataclass
class BatchContrast:
    """The share of a batch on this process: which document belongs to which query.

    `rows[name]` are the numbers of the rows whose queries the column `name` holds; `positives[r]` is the place of row
    r's document among this process's documents, `owners[d]` the row of document d. Ids are equal for equal texts.
    `relevant` are the (query, document) pairs of further judgements: other rows', other sources'.
    """

    settings: LossSettings
    rows: Mapping[str, Int[Tensor, " queries"]]
    query_ids: Int[Tensor, " rows"]
    document_ids: Int[Tensor, " documents"]
    positives: Int[Tensor, " rows"]
    owners: Int[Tensor, " documents"]
    relevant: Int[Tensor, "pairs 2"] = field(default_factory=lambda: torch.zeros((0, 2), dtype=torch.long))
    parts: dict[str, float] = field(default_factory=dict, init=False)

    @property
    def needed(self) -> bool:
        """Whether any weight is above 0."""
        return bool(self.settings.infonce or self.settings.triplet)

    def __call__(self, vectors: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """The weighted sum of both terms; each is put into `parts`, unweighted."""
        settings = self.settings
        names = [name for name in vectors if name != "documents"]
        queries = torch.cat([vectors[name] for name in names])
        rows = [self.rows[name].to(queries.device) for name in names]
        before = collectives.rows_before(len(vectors["documents"]), queries.device)
        documents = collectives.gather_rows(vectors["documents"])
        positives = self.positives.to(queries.device)[torch.cat(rows)] + before
        negatives = self._negatives(rows, before)
        count = collectives.shared_count(len(queries), queries.device)
        if self.needed:
            require_negatives(negatives)
        loss = queries.new_zeros(())
        if settings.infonce:
            for size, weight in ((None, 1.0), *settings.nested):
                nested = queries[:, :size], documents[:, :size]
                term = own_info_nce(*nested, positives, negatives, temperature=settings.temperature, count=count)
                self.parts["infonce" if size is None else f"infonce_{size}"] = float(term.detach())
                loss = loss + settings.infonce * weight * term
        if settings.triplet:
            term = self._triplet(queries, documents, positives, negatives, count)
            self.parts["triplet"] = float(term.detach())
            loss = loss + settings.triplet * term
        return loss

    def _negatives(self, columns: Sequence[Tensor], before: int) -> Tensor:
        """Which documents of all processes are negatives of which query; `columns` are the queries' rows, by column."""
        device = columns[0].device
        every_id = collectives.gather_rows(self.document_ids.to(device))
        query_ids, positives = self.query_ids.to(device), self.positives.to(device) + before
        own = torch.stack([query_ids, every_id[positives]], dim=1)
        relevant = collectives.gather_rows(torch.cat([own, self.relevant.to(device)]))
        masks = []
        for rows in columns:
            owners = None
            if not self.settings.in_batch:  # documents by the place of their row in this column, -1 for none
                place = torch.full((len(query_ids),), -1, device=device)
                place[rows] = torch.arange(len(rows), device=device)
                owners = torch.full((len(every_id),), -1, device=device)
                owners[before : before + len(self.owners)] = place[self.owners.to(device)]
            masks.append(
                negative_mask(positives[rows], every_id, query_ids=query_ids[rows], relevant=relevant, owners=owners)
            )
        return torch.cat(masks)

    def _triplet(
        self, queries: Tensor, documents: Tensor, positives: Tensor, negatives: Tensor, count: float
    ) -> Float[Tensor, ""]:
        """Each query against its hardest allowed negative (FaceNet's choice, arXiv 1503.03832, section 3.2)."""
        with torch.no_grad(), torch.autocast(queries.device.type, enabled=False):
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
