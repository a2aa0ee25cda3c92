"""Stage-1 rows mixed into stage 2, so that what was learned is not forgotten."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from train import distributed
from train import model as models
from train.batches import collate
from train.data import TrainingData, load_training_data
from train.losses import reply_cross_entropy, select_reply
from train.reading import packed, reading_backward
from train.rows import TrainingRow
from train.run import Run


@dataclass
class Replay:
    """Stage 1's reply and reading losses on its rows beside the policy's loss; nothing where the weight is 0."""

    run: Run
    data: TrainingData | None

    @classmethod
    def begin(cls, run: Run) -> "Replay":
        """The replayed rows; the run saves and restores their position with its own."""
        settings = run.config.replay
        if not settings.weight:
            return cls(run, None)
        data = load_training_data(
            replace(run.config.data, sources=settings.sources),
            batch_size=settings.rows_per_step,
            seed=run.config.optimization.seed,
            rank=run.accelerator.process_index,
            world_size=run.accelerator.num_processes,
        )
        run.streams["replay"] = data
        return cls(run, data)

    def backward(self) -> dict[str, float]:
        """Add the gradients on the next replayed rows; returns both cross-entropies."""
        if self.data is None:
            return {}
        batch = self.data.next_batch()
        return {"replay": self._replies(batch)} | self._reading(batch)

    def _replies(self, batch: Sequence[TrainingRow]) -> float:
        run = self.run
        rendered = [
            run.renderer.render_reply(
                row.query, "direct" if row.reasoning is None else "reason", row.reasoning, given=row.given
            )
            for row in batch
        ]
        rows = collate(rendered, run.checkpoint.embed_token_id, run.device)
        with run.accelerator.autocast():
            hidden = models.forward(run.model, rows.token_ids, rows.lengths)
            reply = select_reply(hidden.states, rows.token_ids, rows.reply)
            count = distributed.shared_count(rows.reply_tokens, run.device)
            loss = reply_cross_entropy(reply.hidden, models.head_of(run.model), reply.targets, count=count)
            run.accelerator.backward(run.config.replay.weight * loss)
        return float(loss.detach())

    def _reading(self, batch: Sequence[TrainingRow]) -> dict[str, float]:
        run, settings = self.run, self.run.config.replay
        if not settings.reading:
            return {}
        with run.accelerator.autocast():
            loss = reading_backward(
                run.model,
                run.checkpoint,
                run.renderer,
                packed([row.positive for row in batch], settings.reading_documents),
                weight=settings.reading,
                mini_batch_size=None,
                accelerator=run.accelerator,
                device=run.device,
            )
        return {"reading": loss}
