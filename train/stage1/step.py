"""One step of stage 1: the losses of a batch of rows, and their gradient. Stage 2 replays it on stage 1's rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from search_r3_mteb.encoder.checkpoints import Checkpoint
from search_r3_mteb.encoder.prompts import Rendered, Renderer
from train.config.loss import LossSettings
from train.data.rows import TrainingRow
from train.losses.gradcache import Forward, MiniBatch, cached_backward
from train.losses.stage1 import kl_to_base, reply_cross_entropy, select_reply
from train.model import model as models
from train.model.batches import TokenBatch, collate, mini_batches, text_ids
from train.processes import collectives
from train.run.run import Run
from train.stage1.contrastive import BatchContrast
from train.stage1.distillation import Distillation, teacher
from train.stage1.reading import packed, reading_backward


@dataclass
class SupervisedStep:
    """The loss of one batch and its gradient; `base` is needed where the KL has a weight."""

    model: Any
    checkpoint: Checkpoint
    renderer: Renderer
    loss: LossSettings
    mini_batch_size: int | None
    base: models.Base | None
    device: torch.device

    @classmethod
    def of(
        cls, run: Run, loss: LossSettings, mini_batch_size: int | None = None, base: models.Base | None = None
    ) -> "SupervisedStep":
        """A step on the run's model."""
        return cls(run.model, run.checkpoint, run.renderer, loss, mini_batch_size, base, run.device)

    def backward(self, rows: Sequence[TrainingRow], accelerator: Any) -> dict[str, float]:
        """Add the batch's gradient to the parameters; returns the loss and its parts, averaged over processes."""
        columns, contrast = self.prepare(rows)
        counts = self.reply_counts(columns)
        forwards: dict[str, list[MiniBatch]] = {
            name: [partial(self.forward, part, name, counts) for part in parts] for name, parts in columns.items()
        }
        self.sums = dict.fromkeys(("reply", "kl", "reading"), 0.0)
        with accelerator.autocast():
            loss = self.read(rows, accelerator)
            distillation = self.distillation(rows)
            if contrast.needed or distillation is not None:
                found = cached_backward(
                    forwards, partial(_between_rows, contrast, distillation), backward=accelerator.backward
                )
                loss += float(found.contrastive + found.local)
            else:
                loss += self._replies_alone(forwards, accelerator)
        parts = contrast.parts | (distillation.parts if distillation is not None else {})
        return collectives.average({"loss": loss} | parts | self._local_parts(), self.device)

    def prepare(self, rows: Sequence[TrainingRow]) -> tuple[dict[str, list[list[Rendered]]], BatchContrast]:
        """The batch as columns of mini-batches, documents first: DDP synchronises in the last one, which holds replies."""
        size = self.mini_batch_size
        traced = _traced(rows)
        own = self.loss.hard_negatives
        documents = self._documents(rows)
        owners = list(range(len(rows))) + [i for i, row in enumerate(rows) if own for _ in row.negatives]
        weights = self.loss
        contrasted = weights.infonce or weights.triplet or weights.distill
        columns = {
            "documents": self.renderer.render_batch(documents, "direct") if contrasted else [],
            "direct": self.renderer.render_batch([row.query for row in rows], "direct"),
            "reason": [
                self.renderer.render_reply(rows[i].query, "reason", rows[i].reasoning, given=rows[i].given)
                for i in traced
            ],
        }
        contrast = BatchContrast(
            settings=self.loss,
            rows={"direct": torch.arange(len(rows)), "reason": torch.tensor(traced, dtype=torch.long)},
            query_ids=text_ids([row.query for row in rows]),
            document_ids=text_ids(documents),
            positives=torch.arange(len(rows)),
            owners=torch.tensor(owners),
        )
        return {name: mini_batches(column, size) for name, column in columns.items() if column}, contrast

    def distillation(self, rows: Sequence[TrainingRow]) -> Distillation | None:
        """The teacher's vectors of the batch's columns; a reasoned query aims at the vector of the query with its reasoning.

        Our choice: were the query's own vector the aim, the model would learn that what it wrote does not matter.
        """
        weights = self.loss
        if weights.teacher is None:
            return None
        columns = {
            "direct": [row.query for row in rows],
            "reason": [_with_reasoning(rows[i]) for i in _traced(rows)],
            "documents": self._documents(rows),
        }
        vectors = teacher(weights.teacher, self.device)(
            [text for texts in columns.values() for text in texts], self.renderer.max_length
        )
        parts = vectors.split([len(texts) for texts in columns.values()])
        return Distillation(dict(zip(columns, parts, strict=True)), weights.distill, weights.temperature)

    def _documents(self, rows: Sequence[TrainingRow]) -> list[str]:
        return [row.positive for row in rows] + [
            text for row in rows if self.loss.hard_negatives for text in row.negatives
        ]

    def read(self, rows: Sequence[TrainingRow], accelerator: Any) -> float:
        """The weighted loss on the documents' own text, with its gradient; 0 where it is switched off."""
        weights = self.loss
        if not weights.reading:
            return 0.0
        self.sums["reading"] = reading_backward(
            self.model,
            self.checkpoint,
            self.renderer,
            packed([row.positive for row in rows], weights.reading_documents),
            weight=weights.reading,
            mini_batch_size=self.mini_batch_size,
            accelerator=accelerator,
            device=self.device,
        )
        return weights.reading * self.sums["reading"]

    def reply_counts(self, columns: dict[str, list[list[Rendered]]]) -> dict[str, float]:
        """Learned tokens over which each column's cross-entropy is a mean: those of all processes."""
        counts: dict[str, float] = {}
        for name in ("direct", "reason"):
            spans = [rendered.spans["assistant"] for part in columns.get(name, []) for rendered in part]
            here = sum(end - start for start, end in spans)
            counts[name] = collectives.shared_count(here, self.device)
        return counts

    def forward(self, part: Sequence[Rendered], name: str, counts: dict[str, float]) -> Forward:
        """One mini-batch: its vectors, and the losses that need no other row."""
        rows = collate(part, self.checkpoint.embed_token_id, self.device)
        hidden = models.forward(self.model, rows.token_ids, rows.lengths)
        weights = self.loss
        if name == "documents" or not (weights.reply or weights.kl):
            return Forward(hidden.vectors)
        return Forward(hidden.vectors, partial(self.reply_losses, rows, hidden.states, counts[name]))

    def reply_losses(self, rows: TokenBatch, states: Tensor, count: float) -> Tensor:
        """Cross-entropy on the reply and the KL to the base at the same tokens, each a share of the batch's mean."""
        weights, head = self.loss, models.head_of(self.model)
        reply = select_reply(states, rows.token_ids, rows.reply)
        loss = states.new_zeros((), dtype=torch.float32)
        if weights.reply:
            term = reply_cross_entropy(reply.hidden, head, reply.targets, count=count)
            self.sums["reply"] += float(term.detach())
            loss = loss + weights.reply * term
        if weights.kl and self.base is not None:
            before = select_reply(self.base.states(rows.token_ids, rows.lengths), rows.token_ids, rows.reply)
            term = kl_to_base(
                reply.hidden,
                head,
                before.hidden,
                self.base.head,
                direction=weights.kl_direction,
                new_token_id=self.checkpoint.embed_token_id,
                count=count,
            )
            self.sums["kl"] += float(term.detach())
            loss = loss + weights.kl * term
        return loss

    def _replies_alone(self, forwards: dict[str, list[MiniBatch]], accelerator: Any) -> float:
        """The loss without a contrastive term: every mini-batch stands alone and runs once."""
        total = 0.0
        for mini_batch in (one for column in forwards.values() for one in column):
            own = mini_batch().local_loss
            if own is not None:
                loss = own()
                accelerator.backward(loss)
                total += float(loss.detach())
        return total

    def _local_parts(self) -> dict[str, float]:
        weights = dict(self.loss)
        return {name: value for name, value in self.sums.items() if weights[name]}


def _between_rows(contrast: BatchContrast, distillation: Distillation | None, vectors: dict[str, Tensor]) -> Tensor:
    loss = contrast(vectors)
    return loss if distillation is None else loss + distillation(vectors)


def _with_reasoning(row: TrainingRow) -> str:
    return " ".join(part for part in (row.query, row.given, row.reasoning) if part)


def _traced(rows: Sequence[TrainingRow]) -> list[int]:
    return [index for index, row in enumerate(rows) if row.reasoning is not None]
