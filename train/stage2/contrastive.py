"""Stage 2's contrastive term: InfoNCE of the rollouts' vectors, in the same forward as the policy loss.

Positives are the documents of the prompts of all processes, with gradient; hard negatives come from the cache and are constants.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from train.config.loss import ContrastiveSettings
from train.losses.checks import at_least_float32
from train.losses.stage1 import info_nce, negative_mask
from train.model import model as models
from train.model.batches import collate, text_ids
from train.processes import collectives
from train.run.run import Run
from train.stage2.environment import Environment, Judged
from train.stage2.rollouts import Groups


@dataclass
class PositiveDocuments:
    """The positives of this process's prompts, each once. `vectors` (texts, dim) have the gradient; None: no contrastive term.

    Under the `frozen` policy they are the cache's constants: documents are then embedded by the frozen weights for ever, and
    positives that moved would differ from every negative by that alone.
    """

    texts: list[str]
    column: dict[int, int]  # prompt -> place among `texts`
    vectors: Tensor | None

    @classmethod
    def encode(cls, run: Run, environment: Environment, groups: Groups) -> "PositiveDocuments":
        """Encode the positives under the present weights, once each."""
        texts = list(dict.fromkeys(row.positive for row in groups.rows))
        column = {prompt: texts.index(row.positive) for prompt, row in enumerate(groups.rows)}
        if not run.config.contrastive.weight:
            return cls(texts, column, None)
        if run.config.corpus_cache.policy == "frozen":
            first = {row.positive: environment.corpus.positive_id(row) for row in reversed(groups.rows)}
            rows = environment.cache.rows_of([first[text] for text in texts])
            return cls(texts, column, torch.from_numpy(environment.cache.values(rows)).to(run.device))
        with run.accelerator.autocast():
            rendered = run.renderer.render_batch(texts, "direct")
            batch = collate(rendered, run.checkpoint.embed_token_id, run.device)
            return cls(texts, column, models.forward(run.model, batch.token_ids, batch.lengths).vectors)


@dataclass
class RolloutContrast:
    """What the rollouts of a step are contrasted with, and which of them are.

    `leaf` stands for the documents of all processes, so that the gradient of many mini-batches of rollouts is collected there
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
        cls, run: Run, environment: Environment, groups: Groups, judged: Judged, documents: PositiveDocuments
    ) -> "RolloutContrast | None":
        """None where the contrastive term is switched off."""
        settings, device = run.config.contrastive, run.device
        if documents.vectors is None:
            return None
        before = sum(collectives.row_counts(len(documents.texts), device)[: collectives.rank()])
        # Those of all processes, so that a query's negatives do not depend on who else shares its process.
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
        """The share of the rollouts `part`, of which those below `min_reward` teach nothing; `count` stays that of all."""
        rollouts = torch.tensor(list(part), device=vectors.device)
        taught = self.taught[rollouts]
        if not taught.any():
            return vectors.sum() * 0
        index = self.prompt[rollouts][taught]
        positives = self.positives[index]
        return info_nce(
            vectors[taught],
            torch.cat([self.leaf, self.constants.to(self.leaf)]),
            positives=positives,
            negatives=negative_mask(positives, self.ids, query_ids=self.query_ids[index], relevant=self.relevant),
            temperature=self.settings.temperature,
            count=count,
        )

    def finish(self, accelerator: Any) -> None:
        """Send the documents' collected gradient through their forward; constants have none."""
        if self.documents.requires_grad and self.leaf.grad is not None:
            accelerator.backward((at_least_float32(self.documents) * self.leaf.grad).sum())
