"""Stage 1: a causal LM learns to emit the embed token, and the hidden state there becomes a good vector.

    python train/sft.py --config train/configs/nano.toml [--set optimization.steps=100 ...] [--dry-run]
    accelerate launch train/sft.py --config ...                                          # several GPUs or machines

L = reply * L_SFT + kl * L_KL + infonce * L_InfoNCE + triplet * L_TripletMargin, with unit weights, as a summary of the
paper says.

Departures from the paper, and what it leaves open (each value and its source: train/PAPER.md):
- A query is embedded directly and, where its row has a reasoning trace, after the trace; both are contrasted with the
  documents in one batch, so that one checkpoint serves both modes. Of the paper's only the direct turn is known.
- The triplet's negative is the hardest allowed document of the batch. The paper's 100k synthetic triples are not
  published; rows with hard negatives of their own bring them into the same batch.
- A model may also learn the documents' own text (`loss.reading`, train/stage1/reading.py), and a sentence encoder's
  vectors (`loss.distill`, train/stage1/distillation.py).
- Large batches are computed in parts with cached gradients (train/losses/gradcache.py).
"""

import sys
from collections.abc import Sequence
from pathlib import Path

# Under `python train/sft.py` Python looks for modules here first: our `data` or `losses` would hide a library's.
_FOLDER = Path(__file__).resolve().parent
sys.path[:] = [str(_FOLDER.parent) if Path(entry).resolve() == _FOLDER else entry for entry in sys.path]

from search_r3_mteb.stopping import command_line, end_on_signals
from search_r3_mteb.threads import spin_briefly

if __name__ == "__main__":  # before torch is imported, which takes seconds
    spin_briefly()
    end_on_signals("sft.py", lambda: f"Nothing had begun. Start it again: {command_line('python train/sft.py')}")

from train.config.stages import SftConfig
from train.model.model import Base
from train.run.allocation import keep_freed_memory
from train.run.command import start
from train.run.optimizer import learning_rate, set_learning_rate
from train.run.run import Run
from train.stage1.step import SupervisedStep


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: see the module's docstring."""
    start("sft.py", SftConfig, train, arguments)


def train(config: SftConfig) -> Path:
    """Run the stage; returns the folder of the final checkpoint."""
    run = Run.begin(config)
    base = Base.of(run.checkpoint) if config.loss.kl else None
    step = SupervisedStep(run, config.loss, config.optimization.mini_batch_size, base)

    for number in run.steps():
        rows = run.data.next_batch()
        rate = learning_rate(number, config.optimization)
        set_learning_rate(run.optimizer, rate)
        with run.guard(number, rows):  # a NaN stops the run and leaves the batch behind
            losses = step.backward(rows)
            norm = run.reduce_gradients()
        run.update()
        run.after_step(number, losses | {"learning_rate": rate, "gradient_norm": norm})
    return run.finish()


if __name__ == "__main__":
    keep_freed_memory()
    main()
