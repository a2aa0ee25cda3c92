"""One step of stage 1: the losses of a batch of rows, and their gradient. Stage 2 replays it on stage 1's rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from torch import Tensor

from search_r3_mteb.encoder.prompts import Rendered
from train.config.loss import LossSettings
from train.data.mixing import TrainingData
from train.data.rows import TrainingRow, positives_of
from train.losses.gradcache import Forward, MiniBatch, cached_backward
from train.losses.stage1 import kl_to_base, reply_cross_entropy, select_reply
from train.model.batches import TokenBatch, collate, mini_batches, text_ids
from train.model.model import Base, forward, head_of
from train.processes import collectives
from train.run.run import Run
from train.stage1.contrastive import BatchContrast
from train.stage1.distillation import Distillation, teacher
from train.stage1.judgements import JudgedTexts
from train.stage1.reading import own_packs, reading_backward


@dataclass
class SupervisedStep:
    """The losses of a batch on the run's model, and their gradient; `base` is needed where the KL has a weight.

    The rows are those of `data` (default: the run's), whose judgements say what is never a negative.
    """

    run: Run
    loss: LossSettings
    mini_batch_size: int | None = None
    base: Base | None = None
    data: TrainingData | None = None
    # Unweighted losses that need no other row, added up over the mini-batches.
    _sums: dict[str, float] = field(default_factory=dict, init=False)

    def backward(self, rows: Sequence[TrainingRow]) -> dict[str, float]:
        """Add the batch's gradient to the parameters; returns the loss and its parts, averaged over processes."""
        columns, contrast = self.prepare(rows)
        counts = self._reply_counts(columns)
        forwards: dict[str, list[MiniBatch]] = {
            name: [partial(self._mini_batch, part, name, counts) for part in parts] for name, parts in columns.items()
        }
        if self.run.sharded:
            forwards = self._with_idle_passes(forwards, columns["direct"][0][:1], counts)
        self._sums = dict.fromkeys(("reply", "kl", "reading"), 0.0)
        accelerator = self.run.accelerator
        with accelerator.autocast():
            loss = self._read(rows)
            distillation = self.distillation(rows)
            if contrast.needed or distillation is not None:
                between_rows = partial(_between_rows, contrast, distillation)
                found = cached_backward(forwards, between_rows, backward=accelerator.backward)
                loss += float(found.contrastive + found.local)
            elif self.loss.reply or self.loss.kl:
                loss += self._replies_alone(forwards)
        weights = dict(self.loss)
        parts = contrast.parts | (distillation.parts if distillation is not None else {})
        parts |= {name: value for name, value in self._sums.items() if weights[name]}
        return collectives.average({"loss": loss} | parts, self.run.device)

    @cached_property
    def judgements(self) -> JudgedTexts:
        """All judgements of the data, read at the first step that contrasts."""
        return JudgedTexts.of(self.run.data if self.data is None else self.data)

    def prepare(self, rows: Sequence[TrainingRow]) -> tuple[dict[str, list[list[Rendered]]], BatchContrast]:
        """The batch as columns of mini-batches, documents first and replies last, and its contrastive terms."""
        traced, renderer = self._traced(rows), self.run.renderer
        documents, owners = self._documents(rows)
        contrasted = self.loss.infonce or self.loss.triplet or self.loss.distill
        columns = {
            "documents": renderer.render_batch(documents, "direct") if contrasted else [],
            "direct": renderer.render_batch([row.query for row in rows], "direct"),
            "reason": [
                renderer.render_reply(rows[i].query, "reason", rows[i].reasoning, given=rows[i].given) for i in traced
            ],
        }
        queries = text_ids([row.query for row in rows])
        contrast = BatchContrast(
            settings=self.loss,
            rows={"direct": torch.arange(len(rows)), "reason": torch.tensor(traced, dtype=torch.long)},
            query_ids=queries,
            relevant=self._relevant(rows, queries),
            document_ids=text_ids(documents),
            positives=torch.arange(len(rows)),
            owners=torch.tensor(owners),
        )
        return {name: mini_batches(part, self.mini_batch_size) for name, part in columns.items() if part}, contrast

    def _relevant(self, rows: Sequence[TrainingRow], queries: Tensor) -> Tensor:
        """(query, document) of all judgements of these queries: the rows' own, and those of all other rows."""
        if not (self.loss.infonce or self.loss.triplet):
            return queries.new_zeros((0, 2))
        own = [(number, text) for number, row in enumerate(rows) for _, text in positives_of(row)]
        pairs = torch.stack([queries[[n for n, _ in own]], text_ids([text for _, text in own])], dim=1)
        return torch.cat([pairs, self.judgements.of_queries(queries)])

    def distillation(self, rows: Sequence[TrainingRow]) -> Distillation | None:
        """The teacher's vectors as targets of the batch's columns; None without a teacher.

        A reasoned query's target is the vector of the query with its reasoning (our choice: with the query's own
        vector the model would learn that what it wrote does not matter). Under `distill_direct` it is the target of the
        direct vector, and there are no reasoned queries.
        """
        weights = self.loss
        if weights.teacher is None:
            return None
        columns = {
            "direct": [_with_reasoning(row) if weights.distill_direct else row.query for row in rows],
            "reason": [_with_reasoning(rows[i]) for i in self._traced(rows)],
            "documents": self._documents(rows)[0],
        }
        texts = [text for column in columns.values() for text in column]
        vectors = teacher(weights.teacher, self.run.device)(texts, self.run.renderer.max_length)
        parts = vectors.split([len(column) for column in columns.values()])
        targets = dict(zip(columns, parts, strict=True))
        return Distillation(targets, weights.distill, weights.temperature, weights.distill_vectors)

    def _traced(self, rows: Sequence[TrainingRow]) -> list[int]:
        """The rows whose query is trained with its reasoning."""
        return [] if self.loss.distill_direct else _traced(rows)

    def _documents(self, rows: Sequence[TrainingRow]) -> tuple[list[str], list[int]]:
        """The positives, then the hard negatives where those count, and the number of the row that each belongs to."""
        found = [(row.positive, number) for number, row in enumerate(rows)]
        if self.loss.hard_negatives:
            found += [(text, number) for number, row in enumerate(rows) for text in row.negatives]
        return [text for text, _ in found], [number for _, number in found]

    def _read(self, rows: Sequence[TrainingRow]) -> float:
        """The weighted loss on the documents' own text, with its gradient; 0 where it is switched off."""
        weight = self.loss.reading
        if not weight:
            return 0.0
        texts = own_packs([row.positive for row in rows], self.loss.reading_documents)
        passes = self._most(-(-len(texts) // (self.mini_batch_size or max(len(texts), 1)))) if self.run.sharded else 0
        self._sums["reading"] = reading_backward(
            self.run, texts, weight=weight, mini_batch_size=self.mini_batch_size, passes=passes
        )
        return weight * self._sums["reading"]

    def _reply_counts(self, columns: dict[str, list[list[Rendered]]]) -> dict[str, float]:
        """The divisor of each column's cross-entropy: its reply tokens on all processes, as a share of this one."""
        counts: dict[str, float] = {}
        for name in ("direct", "reason"):
            spans = [rendered.spans["assistant"] for part in columns.get(name, []) for rendered in part]
            counts[name] = collectives.shared_count(sum(end - start for start, end in spans), self.run.device)
        return counts

    def _mini_batch(self, part: Sequence[Rendered], name: str, counts: dict[str, float]) -> Forward:
        """Vectors of a mini-batch, and the losses that need no other row."""
        rows = collate(part, self.run.checkpoint.embed_token_id, self.run.device)
        hidden = forward(self.run.model, rows.token_ids, rows.lengths)
        if name == "documents" or not (self.loss.reply or self.loss.kl):
            return Forward(hidden.vectors)
        return Forward(hidden.vectors, partial(self._reply_losses, rows, hidden.states, counts[name]))

    def _with_idle_passes(
        self, forwards: dict[str, list[MiniBatch]], row: list[Rendered], counts: dict[str, float]
    ) -> dict[str, list[MiniBatch]]:
        """The columns with as many mini-batches on every process: passes over `row` that count for nothing are added.

        They touch the weights that the column's own passes touch, since shards reduce the gradients of all processes.
        """

        def idle(name: str) -> Forward:
            forward = self._mini_batch(row, name, counts)
            own = forward.local_loss
            return Forward(forward.vectors[:0], None if own is None else partial(self._idle_loss, own))

        most = {name: self._most(len(forwards.get(name, []))) for name in ("documents", "direct", "reason")}
        return {
            name: [*forwards.get(name, []), *[partial(idle, name)] * (count - len(forwards.get(name, [])))]
            for name, count in most.items()
            if count
        }

    def _idle_loss(self, own: Callable[[], Tensor]) -> Tensor:
        sums = dict(self._sums)
        loss = own() * 0
        self._sums = sums
        return loss

    def _most(self, passes: int) -> int:
        """The largest number of passes of a process."""
        return int(collectives.maximum({"passes": float(passes)}, self.run.device)["passes"])

    def _reply_losses(self, rows: TokenBatch, states: Tensor, count: float) -> Tensor:
        """Cross-entropy on the reply and the KL to the base at the same tokens, each a share of the batch's mean."""
        weights, head = self.loss, head_of(self.run.model)
        reply = select_reply(states, rows.token_ids, rows.reply)
        loss = states.new_zeros((), dtype=torch.float32)
        if weights.reply:
            term = reply_cross_entropy(reply.hidden, head, reply.targets, count=count)
            self._sums["reply"] += float(term.detach())
            loss = loss + weights.reply * term
        if weights.kl and self.base is not None:
            before = select_reply(self.base.states(rows.token_ids, rows.lengths), rows.token_ids, rows.reply)
            term = kl_to_base(
                reply.hidden,
                head,
                before.hidden,
                self.base.head,
                direction=weights.kl_direction,
                new_token_id=self.run.checkpoint.embed_token_id,
                count=count,
            )
            self._sums["kl"] += float(term.detach())
            loss = loss + weights.kl * term
        return loss

    def _replies_alone(self, forwards: dict[str, list[MiniBatch]]) -> float:
        """The loss without a contrastive term: every mini-batch stands alone and runs once."""
        total = 0.0
        for mini_batch in (one for column in forwards.values() for one in column):
            own = mini_batch().local_loss
            if own is not None:
                loss = own()
                self.run.accelerator.backward(loss)
                total += float(loss.detach())
        return total


def _between_rows(contrast: BatchContrast, distillation: Distillation | None, vectors: dict[str, Tensor]) -> Tensor:
    loss = contrast(vectors)
    return loss if distillation is None else loss + distillation(vectors)


def _with_reasoning(row: TrainingRow) -> str:
    return " ".join(part for part in (row.query, row.given, row.reasoning) if part)


def _traced(rows: Sequence[TrainingRow]) -> list[int]:
    return [number for number, row in enumerate(rows) if row.reasoning is not None or row.given is not None]
