"""Stage 2's contrastive term: InfoNCE of the rollouts' vectors, in the same forward as the policy loss.

Positives are the documents of all processes' prompts, with gradient; hard negatives are constants from the cache.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from train.config.loss import ContrastiveSettings
from train.data.rows import TrainingRow
from train.losses.checks import at_least_float32
from train.losses.stage1 import info_nce, negative_mask
from train.model.batches import text_ids
from train.processes import collectives
from train.stage2.environment import Environment, Judged
from train.stage2.rollouts import Groups


@dataclass
class PositiveDocuments:
    """The positives of this process's prompts, each once; `column[p]` is the place of prompt p's among `texts`.

    `vectors` (texts, dim) have the gradient; None without a contrastive term.
    """

    texts: list[str]
    column: list[int]
    vectors: Tensor | None

    @classmethod
    def of(cls, rows: Sequence[TrainingRow], encode: Callable[[list[str]], Tensor | None]) -> "PositiveDocuments":
        """The positives of these rows, given to `encode` once each."""
        texts = list(dict.fromkeys(row.positive for row in rows))
        return cls(texts, [texts.index(row.positive) for row in rows], encode(texts))


@dataclass
class RolloutContrast:
    """The documents that a step's rollouts are contrasted with, and which rollouts are.

    `leaf` stands for the documents of all processes: the gradient of many mini-batches of rollouts is collected there
    and goes through the documents' own forward once, in `finish`. Columns are the documents, then the constants.
    """

    settings: ContrastiveSettings
    documents: Float[Tensor, "documents dim"]
    leaf: Float[Tensor, "documents dim"]
    constants: Float[Tensor, "negatives dim"]
    ids: Int[Tensor, " columns"]
    relevant: Int[Tensor, "pairs 2"]
    query_ids: Int[Tensor, " prompts"]
    positives: Int[Tensor, " prompts"]
    prompt: Int[Tensor, " rollouts"]
    taught: Bool[Tensor, " rollouts"]

    @classmethod
    def of(
        cls,
        settings: ContrastiveSettings,
        environment: Environment,
        groups: Groups,
        judged: Judged,
        documents: PositiveDocuments,
    ) -> "RolloutContrast | None":
        """None where the contrastive term is switched off."""
        if documents.vectors is None:
            return None
        device = documents.vectors.device
        before = collectives.rows_before(len(documents.texts), device)
        # Those of all processes, so that a query's negatives do not depend on the other queries of its process.
        own_rows = torch.from_numpy(environment.negatives(groups, judged, settings.hard_negatives)).to(device)
        hard = list(dict.fromkeys(collectives.gather_rows(own_rows).tolist()))
        constants = torch.from_numpy(environment.cache.values(np.array(hard, dtype=np.int64))).to(device)
        corpus = environment.corpus.texts
        gathered = collectives.gather_rows(documents.vectors)
        queries = text_ids([row.query for row in groups.rows]).to(device)
        known = [
            (prompt, corpus.texts[int(row)])
            for prompt, relevant in enumerate(judged.relevance)
            for row in corpus.rows_of(list(relevant))
        ]
        pairs = torch.stack(
            [queries[[prompt for prompt, _ in known]], text_ids([text for _, text in known]).to(device)], dim=1
        )
        ids = collectives.gather_rows(text_ids(documents.texts).to(device))
        return cls(
            settings=settings,
            documents=gathered,
            leaf=at_least_float32(gathered.detach()).clone().requires_grad_(),
            constants=constants,
            ids=torch.cat([ids, text_ids([corpus.texts[row] for row in hard]).to(device)]),
            relevant=collectives.gather_rows(pairs),
            query_ids=queries,
            positives=torch.tensor([documents.column[p] + before for p in range(len(groups.rows))], device=device),
            prompt=torch.tensor(groups.prompt, device=device),
            taught=torch.from_numpy(judged.rewards.total >= settings.min_reward).to(device),
        )

    def loss(self, part: Sequence[int], vectors: Float[Tensor, "rollouts dim"], count: float) -> Float[Tensor, ""]:
        """The share of the rollouts `part`, without those below `min_reward`; `count` is the divisor for all.

        It is 0 where no rollout has a negative.
        """
        rollouts = torch.tensor(list(part), device=vectors.device)
        taught = self.taught[rollouts]
        if not taught.any():
            return vectors.sum() * 0
        index = self.prompt[rollouts][taught]
        positives = self.positives[index]
        negatives = negative_mask(positives, self.ids, query_ids=self.query_ids[index], relevant=self.relevant)
        if not negatives.any():  # every document here is relevant to every query here
            return vectors.sum() * 0
        return info_nce(
            vectors[taught],
            torch.cat([self.leaf, self.constants.to(self.leaf)]),
            positives=positives,
            negatives=negatives,
            temperature=self.settings.temperature,
            count=count,
        )

    def finish(self, accelerator: Any) -> None:
        """Send the documents' collected gradient through their forward; constants have none."""
        if self.documents.requires_grad and self.leaf.grad is not None:
            accelerator.backward((at_least_float32(self.documents) * self.leaf.grad).sum())
