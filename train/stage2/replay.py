"""Stage-1 rows mixed into stage 2, so that what was learned is not forgotten."""

from dataclasses import dataclass

from train.data.mixing import TrainingData, load_training_data
from train.processes import collectives
from train.run.run import Run
from train.stage1.step import SupervisedStep


@dataclass
class Replay:
    """A step of stage 1 on stage 1's rows, beside the policy's; without rows it does nothing."""

    run: Run
    data: TrainingData | None
    step: SupervisedStep | None = None

    @classmethod
    def begin(cls, run: Run) -> "Replay":
        """The replayed rows; the run saves and restores their position with its own."""
        settings = run.config.replay
        if not settings.rows_per_step:
            return cls(run, None)
        data = load_training_data(
            run.config.data.replaced(sources=settings.sources),
            batch_size=settings.rows_per_step,
            seed=run.config.optimization.seed,
            rank=collectives.rank(),
            world_size=collectives.world_size(),
        )
        run.streams["replay"] = data
        return cls(run, data, SupervisedStep(run, settings.loss, data=data))

    def backward(self) -> dict[str, float]:
        """Add the gradient of stage 1's losses on the next rows; returns the losses as "replay" and "replay_NAME"."""
        if self.data is None or self.step is None:
            return {}
        losses = self.step.backward(self.data.next_batch())
        return {"replay": losses.pop("loss")} | {f"replay_{name}": value for name, value in losses.items()}
