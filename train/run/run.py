"""What both training loops stand on: model, optimizer, data, log, evaluation and checkpoints of one run folder.

    FOLDER/config.toml  log.jsonl  tensorboard/  checkpoints/step-000100/ ...  best/  last/

`best` and `last` are models that `SearchR3Encoder` loads. A run is resumed by the same command.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from search_r3_mteb.atomic import replaced_folder, write_json, write_text
from search_r3_mteb.encoder.checkpoints import Checkpoint, default_device, save
from search_r3_mteb.encoder.engine import Engine
from search_r3_mteb.encoder.prompts import Renderer
from train.checkpoint import save_load as checkpointing
from train.config import loading as config
from train.data.mixing import TrainingData, TrainingRow, load_training_data
from train.model import model as models
from train.processes import collectives
from train.run import evaluation, memory
from train.run.evaluation import JudgedSet, Score
from train.run.log import RunLog
from train.run.optimizer import make_optimizer


@dataclass
class Run:
    """One run. `model` is the distributed wrapper that is called, `checkpoint.model` what is inside it."""

    config: Any
    accelerator: Any
    checkpoint: Checkpoint
    model: Any
    optimizer: Any
    renderer: Renderer
    data: TrainingData
    judged: list[JudgedSet]
    folder: Path
    base_copy: bool
    step: int = 0
    best: float = float("-inf")
    log: RunLog | None = None
    resumed_from: checkpointing.TrainingCheckpoint | None = None
    # Stage 2 keeps its corpus cache in the checkpoint: a function that writes it into a folder.
    extra: Callable[[Path], None] | None = None
    # Everything whose position a resumed run needs, by name.
    streams: dict[str, Any] = field(default_factory=dict)
    # When this process began, moved back by what the run took before it was resumed.
    _started: float = field(default_factory=perf_counter)

    @classmethod
    def begin(cls, settings: Any, *, base_copy: bool, unit: Any = "judgement", mine: bool = True) -> "Run":
        """Make the run that `settings` describe. `mine` False leaves negatives unmined: a dry run needs none."""
        accelerator = _accelerator(settings)
        optimization = settings.optimization
        checkpoint = models.prepare(settings.model, optimization.seed, accelerator.device)
        torch.manual_seed(optimization.seed + 1)  # dropout; the weights have been drawn
        optimizer = make_optimizer(checkpoint.model, optimization, sharded=_is_sharded(accelerator))
        model = checkpoint.model
        if _is_sharded(accelerator):
            model, optimizer = accelerator.prepare(model, optimizer)
        renderer = Renderer(checkpoint.tokenizer, checkpoint.profile, settings.data.max_length)
        data = load_training_data(
            _with_mined(settings, checkpoint, renderer) if mine and settings.data.mining is not None else settings.data,
            batch_size=_batch_size(settings),
            seed=optimization.seed,
            rank=collectives.rank(),
            world_size=collectives.world_size(),
            unit=unit,
        )
        return cls(
            config=settings,
            accelerator=accelerator,
            checkpoint=checkpoint,
            model=model,
            optimizer=optimizer,
            renderer=renderer,
            data=data,
            judged=[
                evaluation.load(one, settings.evaluate.max_queries, optimization.seed)
                for one in settings.data.evaluation
            ],
            folder=Path(settings.output.folder),
            base_copy=base_copy,
        )

    def __post_init__(self) -> None:
        self.streams["data"] = self.data

    @property
    def device(self) -> Any:
        """Where the model is."""
        return self.accelerator.device

    @property
    def seconds(self) -> float:
        """Wall-clock time of the run so far; what a killed process did after its last checkpoint is not counted."""
        return perf_counter() - self._started

    def describe(self, rows: int) -> None:
        """`--dry-run`: the resolved settings, the sizes, and what the data holds."""
        settings = self.config
        print(config.dump(settings))
        half = settings.optimization.mixed_precision == "bf16" or settings.model.dtype == "bfloat16"
        estimated = memory.estimate(
            self.checkpoint.model,
            rows=rows,
            length=settings.data.max_length,
            gradient_checkpointing=settings.model.gradient_checkpointing,
            base_copy=self.base_copy,
            compute_bytes=2 if half else 4,
        )
        for line in estimated.lines():
            print(f"# {line}")
        for statistics in self.data.statistics():
            print(f"# source {statistics.label}: epoch {statistics.epoch}, rows given {statistics.rows}")

    def steps(self) -> Iterator[int]:
        """Numbers of the optimizer steps that are left, from 1; resumes where that has not been done, and opens the log."""
        if self.resumed_from is None:
            self.resume()
        self.log = RunLog(
            self.folder,
            total=self.config.optimization.steps,
            resume_step=self.step,
            tensorboard=self.config.output.tensorboard,
            active=self.accelerator.is_main_process,
        )
        if self.accelerator.is_main_process:
            write_text(self.folder / "config.toml", config.dump(self.config))
        yield from range(self.step + 1, self.config.optimization.steps + 1)

    def report_data(self) -> None:
        """`data.json`: what each source gave, what was malformed, and what was dropped as a repeat of evaluation texts."""
        if self.accelerator.is_main_process:
            report = {"sources": [asdict(one) for one in self.data.statistics()]}
            write_json(
                self.folder / "data.json", report | {"decontamination": asdict(self.data.decontamination_report())}
            )

    @contextmanager
    def guard(self, step: int, rows: Sequence[TrainingRow]) -> Iterator[None]:
        """An error of this step leaves the batch in `failed-batch.json`, so that it can be looked at."""
        try:
            yield
        except (ValueError, FloatingPointError) as error:
            place = self.folder / f"failed-batch-step-{step}-process-{collectives.rank()}.json"
            place.parent.mkdir(parents=True, exist_ok=True)
            write_json(place, {"step": step, "error": str(error), "rows": [asdict(row) for row in rows]})
            raise FloatingPointError(f"Step {step} failed, its batch is in {place}: {error}") from error

    def reduce_gradients(self) -> float:
        """Average over the processes and clip to `max_gradient_norm`; the norm before.

        Raises FloatingPointError for a gradient that is not finite.
        """
        if not _is_sharded(self.accelerator):
            collectives.average_gradients(self.model.parameters())
        limit = self.config.optimization.max_gradient_norm or float("inf")
        norm = float(self.accelerator.clip_grad_norm_(self.model.parameters(), limit))
        if not norm < float("inf"):
            raise FloatingPointError(f"the gradient's norm is {norm}. Lower the learning rate, or look at the batch.")
        return norm

    def weights_fingerprint(self) -> str:
        """Digest of the present weights. Of a Checkpoint of its own, since one keeps the digest that it was asked for first."""
        own = self.checkpoint
        return Checkpoint(own.model, own.tokenizer, own.profile, own.name).fingerprint()

    def event(self, kind: str, number: int, values: dict[str, Any] | None) -> None:
        """One event in the log; None is not an event."""
        assert self.log is not None
        if values is not None:
            self.log.event(kind, number, **values)

    def after_step(self, number: int, values: dict[str, float]) -> None:
        """Log, evaluate and checkpoint as the settings say."""
        self.step = number
        assert self.log is not None
        if number % self.config.output.log_every == 0:
            self.log.event("step", number, seconds=round(self.seconds, 3), **values)
        shown = {k: v for k, v in values.items() if k not in ("gradient_norm", "learning_rate")}
        self.log.advance(**shown)
        last = number == self.config.optimization.steps
        if last or _due(number, self.config.evaluate.every):
            self._evaluate()
        if last or _due(number, self.config.checkpoint.every):
            self._save()

    def finish(self) -> Path:
        """Write the final model; its folder."""
        assert self.log is not None
        self.report_data()
        if self.accelerator.is_main_process:
            self._export("last")
            self._write_cards()
        self.accelerator.wait_for_everyone()
        self.log.close()
        return self.folder / "last"

    def _evaluate(self) -> None:
        """Scores on the held-out sets; the best checkpoint is exported at once."""
        if not self.judged:
            return
        settings = self.config.evaluate
        with self.accelerator.autocast():  # as it computes in training
            scores = evaluation.evaluate(self.checkpoint, self.judged, settings, self.config.data.max_length)
        assert self.log is not None
        for score in scores:
            self.log.event("evaluate", self.step, **asdict(score))
        self.log.say(_table(self.step, scores))
        value = evaluation.mean_of(scores, settings.best_by)
        if value > self.best:
            self.best = value
            if self.accelerator.is_main_process:
                self._export("best")

    def _export(self, name: str) -> None:
        """The model as a folder that `SearchR3Encoder` loads, complete or not there."""
        with replaced_folder(self.folder / name) as folder:
            model = self.accelerator.unwrap_model(self.model)
            save(Checkpoint(model, self.checkpoint.tokenizer, self.checkpoint.profile, self.checkpoint.name), folder)

    def _write_cards(self) -> None:
        """What the models are, beside their weights."""
        from search_r3_mteb.report.model_card import facts_of_run, write_model_card

        facts = facts_of_run(self.folder, name=self.folder.name, license=self.config.output.license)
        for name in ("last", "best"):
            if (self.folder / name).is_dir():
                write_model_card(self.folder / name, facts)

    def _state(self) -> checkpointing.TrainingState:
        """What a resumed run continues from; the schedule is a function of the step and has no state."""
        return checkpointing.TrainingState(
            model=self.checkpoint.model,
            optimizer=self.optimizer,
            data=_Streams(self.streams),
            notes={"best": self.best if self.best > float("-inf") else None, "seconds": self.seconds},
        )

    def _save(self) -> None:
        checkpointing.save(
            self.folder / "checkpoints",
            self.step,
            self._state(),
            config=config.flatten(self.config),
            score=self.best if self.best > float("-inf") else None,
            keep=self.config.checkpoint.keep,
            extra=self.extra,
        )

    def resume(self) -> None:
        """Take up the newest checkpoint of the run folder, where there is one; stage 2 does so before it opens its cache."""
        folder, resume = self.folder / "checkpoints", self.config.checkpoint.resume
        if resume == "never":
            if checkpointing.checkpoints(folder):
                raise FileExistsError(
                    f'{self.folder} holds checkpoints, and checkpoint.resume = "never" begins anew. Name another output.folder, '
                    'remove this one, or set checkpoint.resume = "auto".'
                )
            return
        state = self._state()
        found = checkpointing.load_latest(
            folder, state, config=config.flatten(self.config), fallback=resume == "fallback"
        )
        if found is not None:
            best = state.notes["best"]
            self.step, self.resumed_from = found.step, found
            self._started -= float(state.notes["seconds"])
            self.best = float("-inf") if best is None else float(best)


@dataclass
class _Streams:
    """Several data positions as one."""

    streams: dict[str, Any]

    def state_dict(self) -> dict[str, Any]:
        return {name: stream.state_dict() for name, stream in self.streams.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, stream in self.streams.items():
            stream.load_state_dict(state[name])


def _is_sharded(accelerator: Any) -> bool:
    """FSDP and DeepSpeed wrap the model. Plain data parallelism does not: its gradients are averaged after the backward passes
    (train/processes/collectives.py), of which cached gradients need several in one step.
    """
    return str(accelerator.distributed_type.value) in ("FSDP", "DEEPSPEED", "MEGATRON_LM")


def _with_mined(settings: Any, checkpoint: Checkpoint, renderer: Renderer) -> Any:
    """The data settings with hard negatives mined by the starting model, kept in the run folder for a resumed run."""
    from train.data.hard_negatives import mine_sources

    folder, seed = Path(settings.output.folder) / "mined", settings.optimization.seed
    return mine_sources(settings.data, _Miner(checkpoint, renderer, settings.evaluate.batch_tokens), folder, seed=seed)


class _Miner:
    """Vectors for mining, which one process does for all: a `SearchR3Encoder` would wait for the others to take their share."""

    def __init__(self, checkpoint: Checkpoint, renderer: Renderer, batch_tokens: int) -> None:
        self._engine = Engine(checkpoint.model, checkpoint.embed_token_id, token_budget=batch_tokens)
        self._renderer = renderer

    def encode_query(self, texts: Sequence[str], *, batch_size: int) -> Any:
        """(n, dim) unit vectors; batches are formed by tokens."""
        return models.embed(self._engine, self._renderer, texts)

    encode_document = encode_query


def _batch_size(settings: Any) -> int:
    """Rows of a step: stage 2 counts prompts."""
    return int(settings.rollout.prompts_per_step if hasattr(settings, "rollout") else settings.optimization.batch_size)


def _accelerator(settings: Any) -> Any:
    from accelerate import Accelerator

    return Accelerator(mixed_precision=settings.optimization.mixed_precision, cpu=default_device() == "cpu")


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _table(step: int, scores: Sequence[Score]) -> str:
    """One line: nDCG@10 by mode and hop count."""
    shown = [
        f"{score.task} {score.mode}{f' {score.hops}-hop' if score.hops else ''} {score.ndcg_at_10:.3f}"
        for score in scores
    ]
    return f"step {step}: nDCG@10 " + ", ".join(shown)
