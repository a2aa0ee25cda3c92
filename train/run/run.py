"""One run folder: model, optimizer, data, log, evaluation and checkpoints, for the loops of both stages.

    FOLDER/config.toml  log.jsonl  tensorboard/  checkpoints/step-000100/ ...  best/  last/

`best` and `last` are models that `SearchR3Encoder` loads. A run is resumed by the same command.
"""

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from search_r3_mteb.atomic import clean, write_json, write_text
from search_r3_mteb.encoder.backbone import unwrap
from search_r3_mteb.encoder.checkpoints import Checkpoint
from search_r3_mteb.encoder.head import Head
from search_r3_mteb.encoder.merging import save_compared
from search_r3_mteb.encoder.prompts import Renderer
from search_r3_mteb.encoder.settings import check_window
from search_r3_mteb.locks import leave, occupy
from train.checkpoint import save_load
from train.checkpoint.folders import TrainingCheckpoint, checkpoints
from train.config.loading import STEPS, dump, flatten
from train.data.beir_source import Unit
from train.data.mixing import TrainingData, load_training_data
from train.data.rows import TrainingRow
from train.model.model import prepare, refuse_dropout
from train.plan.dry_run import check_room
from train.plan.first_rows import MANY, drops_of, read_first, warnings_of
from train.plan.start import check_processes, check_start
from train.processes import collectives, sharding
from train.processes.accelerator import new_accelerator
from train.run import evaluation
from train.run.evaluation import JudgedSet
from train.run.log import RunLog, due
from train.run.mining import mined_data
from train.run.optimizer import learning_rate, make_optimizer
from train.run.trackers import check_trackers

_WHAT = "training"  # of which a folder has one


@dataclass
class Run:
    """One run. `model` is trained; `checkpoint.model` is the same, or with shards a whole copy to sample with."""

    config: Any
    accelerator: Any
    checkpoint: Checkpoint
    model: Any
    optimizer: Any
    renderer: Renderer
    data: TrainingData
    judged: list[JudgedSet]
    folder: Path
    # Lines for people, and warnings, that are known before the log is opened.
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    step: int = 0
    best: float | None = None
    # Of the present weights; None where they were not evaluated.
    score: float | None = None
    resumed_from: TrainingCheckpoint | None = None
    # Stage 2 keeps its corpus cache in the checkpoint: a function that writes it into a folder.
    extra: Callable[[Path], None] | None = None
    # Everything whose position a resumed run needs, by name.
    streams: dict[str, Any] = field(default_factory=dict)
    # Opened by `steps`.
    log: RunLog = field(init=False, repr=False)
    # When this process began, moved back by the duration of the run before it was resumed.
    _started: float = field(default_factory=perf_counter)

    @classmethod
    def begin(cls, config: Any, *, unit: Unit = "judgement") -> "Run":
        """The run of a configuration. `unit` "query" trains on prompts, as stage 2 does.

        Raises ValueError, FileNotFoundError or OSError for whatever would stop it later: a folder that cannot be
        written, or in which another process trains, a tracker that is not installed, a model, source or split that is
        not there, a malformed first row, or too small a max_length or window.
        """
        check_trackers(config.output.trackers)
        notes, folder, shards = check_start(config), Path(config.output.folder), sharding.wanted()
        accelerator = new_accelerator(config.optimization.mixed_precision)
        collectives.on_main(lambda: _enter(folder))
        try:
            return cls._opened(config, accelerator, notes, unit, shards)
        except BaseException:
            _leave(folder)
            raise

    @classmethod
    def _opened(cls, config: Any, accelerator: Any, notes: list[str], unit: Unit, shards: bool) -> "Run":
        optimization = config.optimization
        check_processes(config, collectives.world_size())
        checkpoint = prepare(config.model, optimization.seed, accelerator.device)
        if unit == "query":
            refuse_dropout(checkpoint.model)
        check_window(checkpoint, *_positions(config))
        evaluation.check_sizes(config, Head(unwrap(checkpoint.model)).dim)
        torch.manual_seed(optimization.seed + 1)  # dropout; the weights have been drawn
        model = checkpoint.model
        if shards:
            model, checkpoint.model = sharding.sharded(model, accelerator.device)
        optimizer = make_optimizer(model, optimization, sharded=shards)
        renderer = Renderer(checkpoint.tokenizer, checkpoint.profile, config.data.max_length)
        cramped = check_room(renderer)
        settings = mined_data(config, checkpoint, renderer)
        data = load_training_data(
            settings,
            batch_size=config.rollout.prompts_per_step if unit == "query" else optimization.batch_size,
            seed=optimization.seed,
            rank=collectives.rank(),
            world_size=collectives.world_size(),
            unit=unit,
        )
        opened = zip(data.streams, settings.sources, strict=True)
        first = [read_first(stream.source, source, settings) for stream, source in opened]
        return cls(
            config=config,
            accelerator=accelerator,
            checkpoint=checkpoint,
            model=model,
            optimizer=optimizer,
            renderer=renderer,
            data=data,
            judged=[
                evaluation.load(one, config.evaluate.max_queries, optimization.seed) for one in config.data.evaluation
            ],
            folder=Path(config.output.folder),
            notes=notes,
            warnings=[*cramped, *warnings_of(first, config), *drops_of(first, settings, MANY)],
            streams={"data": data},
        )

    @property
    def device(self) -> Any:
        """The device of the model."""
        return self.accelerator.device

    @property
    def sharded(self) -> bool:
        """Whether the trained weights lie in shards on several processes."""
        return self.model is not self.checkpoint.model

    @property
    def seconds(self) -> float:
        """Wall-clock time of the run so far, without the work that a kill after the last checkpoint lost."""
        return perf_counter() - self._started

    @property
    def last_step(self) -> int:
        """The step after which the run ends."""
        return self.config.checkpoint.last_step(self.config.optimization.steps)

    def steps(self) -> Iterator[int]:
        """Numbers, from 1, of the optimizer steps that are left. Opens the log; resumes unless `resume` was called."""
        if self.resumed_from is None:
            self.resume()
        main = self.accelerator.is_main_process
        total, output = self.last_step, self.config.output
        self.log = RunLog(
            self.folder,
            total=total,
            resume_step=self.step,
            tensorboard=output.tensorboard,
            trackers=output.trackers,
            project=output.project,
            config=flatten(self.config),
            active=main,
        )
        if main:
            write_text(self.folder / "config.toml", dump(self.config))
        for note in self.notes:
            self.log.say(note)
        for text in self.warnings if self.step == 0 else ():
            self.log.warn(0, text)
        yield from range(self.step + 1, total + 1)

    def resume(self) -> None:
        """Continue from the newest checkpoint of the run folder, if there is one."""
        folder, resume = self.folder / "checkpoints", self.config.checkpoint.resume
        if resume == "never":
            if collectives.on_main(lambda: checkpoints(folder)):
                raise FileExistsError(
                    f'{self.folder} holds checkpoints, and checkpoint.resume = "never" begins again. Name another '
                    'output.folder, remove this one, or set checkpoint.resume = "auto".'
                )
            return
        state = self._state()
        found = save_load.load_latest(folder, state, config=flatten(self.config), fallback=resume == "fallback")
        if found is not None:
            if found.step > self.last_step:
                raise ValueError(
                    f"checkpoint.stop_at = {self.last_step}, and {folder} has come to step {found.step}: a run does "
                    f"not go back. Set it to {found.step} or more, or to 0."
                )
            self.step, self.resumed_from, self.best = found.step, found, state.notes["best"]
            self.notes += _extended(found.config[STEPS], self.config.optimization)
            self._started -= float(state.notes["seconds"])
            self._renew_copy()

    @contextmanager
    def guard(self, step: int, rows: Sequence[TrainingRow]) -> Iterator[None]:
        """An error of this step leaves the batch in a file beside the log, and its place in a note of the error.

        The error stays what it is. One that another process caused says nothing about this batch, and passes through.
        """
        try:
            yield
        except (ValueError, FloatingPointError) as error:
            place = self.folder / f"failed-batch-step-{step}-process-{collectives.rank()}.json"
            described = f"{type(error).__name__}: {error}"
            write_json(place, {"step": step, "error": described, "rows": [asdict(row) for row in rows]})
            error.add_note(f"Step {step} failed, its batch is in {place}.")
            raise

    def reduce_gradients(self) -> float:
        """Average over the processes and clip to `max_gradient_norm`; returns the norm before.

        Raises FloatingPointError for a gradient that is not finite.
        """
        if not self.sharded:  # shards average as they are reduced
            collectives.average_gradients(self.model.parameters())
        limit = self.config.optimization.max_gradient_norm or float("inf")
        total: Any = torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        norm = float(total.full_tensor() if self.sharded else total)
        if not norm < float("inf"):
            raise FloatingPointError(f"the gradient's norm is {norm}. Lower the learning rate, or look at the batch.")
        return norm

    def update(self) -> None:
        """One optimizer step with the gradient that was added up."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._renew_copy()

    def after_step(self, number: int, values: dict[str, float]) -> None:
        """Log, evaluate and checkpoint as the settings say."""
        self.step, self.score = number, None
        if number == 1 and (profile := self.config.model.own_profile) is not None:
            self.log.event("extension", number, **profile.to_dict())
        if due(number, self.config.output.log_every):
            self.log.event("step", number, seconds=round(self.seconds, 3), **values)
        self.log.advance(**{k: v for k, v in values.items() if k not in ("gradient_norm", "learning_rate")})
        last = number == self.last_step
        if last or due(number, self.config.evaluate.every):
            self._evaluate()
        if last or due(number, self.config.checkpoint.every):
            self._save()

    def finish(self) -> Path:
        """Write the final model, the model cards and `data.json`; returns the model's folder."""
        found = self.resumed_from
        if self.judged and found is not None and found.step == self.step and found.score is None:
            # `stop_at` ends it at a step at which no evaluation was due: the card's scores are those of this model.
            self._evaluate()
            self._save()
        already = (self.folder / "last").is_dir()

        def write() -> None:
            self._report_data()
            self._export("last")
            self._write_cards()

        collectives.on_main(write)
        self.log.say(self._finished(already))
        self.log.close()
        _leave(self.folder)
        return self.folder / "last"

    def _finished(self, already: bool) -> str:
        """Where the model is and what comes next, for people; `already`: there was one before."""
        total, model = self.config.optimization.steps, self.folder / "last"
        if already and self.resumed_from is not None and self.resumed_from.step >= self.last_step:
            return f"already finished, {self.step} of {total} steps: {model}"
        best = f" (best of its evaluations: {self.folder / 'best'})" if (self.folder / "best").is_dir() else ""
        following = f"search-r3 evaluate --model {shlex.quote(str(model))} --task beir:FOLDER --mode both"
        if not hasattr(self.config, "rollout"):
            path = shlex.quote(f"model.path={model}")
            following += f", and stage 2: python train/rl.py --config CONFIG.toml --set {path}"
        return f"finished, {self.step} of {total} steps: {model}{best}. Next: {following}"

    def _evaluate(self) -> None:
        """Score the held-out sets; the best model is exported at once."""
        if not self.judged:
            return
        settings = self.config.evaluate
        with self.accelerator.autocast():  # as it computes in training
            scores = evaluation.evaluate(
                self.checkpoint,
                self.judged,
                settings,
                self.config.data.max_length,
                evaluation.sizes_of(self.config),
                evaluation.anchor_of(self.config),
            )
        for score in scores:
            self.log.event("evaluate", self.step, **score.fields())
        self.log.say(f"step {self.step}: nDCG@10 {', '.join(map(str, scores))}")
        self.score = evaluation.mean_of(scores, settings.best_by)
        if self.best is None or self.score > self.best:
            self.best = self.score
            collectives.on_main(lambda: self._export("best"))

    def _export(self, name: str) -> None:
        """Write the model as a folder that `SearchR3Encoder` loads, kept only where it gives this model's outputs."""
        save_compared(self.checkpoint, self.folder / name, trust_remote_code=self.config.model.trust_remote_code)

    def _renew_copy(self) -> None:
        if self.sharded:
            sharding.take_over(self.model, self.checkpoint.model)

    def _report_data(self) -> None:
        """Write what each source gave, what was malformed, and what was dropped as a repeat of evaluation texts."""
        reports = {
            name: {
                "sources": [asdict(one) for one in stream.statistics()],
                "decontamination": stream.decontamination_report().to_dict(),
            }
            for name, stream in self.streams.items()
        }
        write_json(self.folder / "data.json", reports.pop("data") | reports)
        for stream in self.streams.values():
            for line in stream.decontamination_report().dropped_lines():
                self.log.say(line)

    def _write_cards(self) -> None:
        from search_r3_mteb.report.model_card import facts_of_run, write_model_card

        facts = facts_of_run(self.folder, name=self.folder.name, license=self.config.output.license)
        for name in ("last", "best"):
            if (place := self.folder / name).is_dir():
                # An absolute path is of this machine alone.
                called = f"PATH/TO/{name}" if place.is_absolute() else place.as_posix()
                write_model_card(place, facts, called=called)

    def _state(self) -> save_load.TrainingState:
        """The state that a resumed run continues from; the schedule is a function of the step and has none."""
        notes = {"best": self.best, "seconds": self.seconds}
        return save_load.TrainingState(self.model, self.optimizer, self.streams, notes)

    def _save(self) -> None:
        save_load.save(
            self.folder / "checkpoints",
            self.step,
            self._state(),
            config=flatten(self.config),
            score=self.score,
            keep=self.config.checkpoint.keep,
            extra=self.extra,
        )


def _enter(folder: Path) -> None:
    """Refuse a folder in which another training works, and remove what killed ones left half-written in it."""
    occupy(folder, _WHAT)
    clean(*(path for path in (folder, folder / "checkpoints", folder / "mined") if path.is_dir()))


def _leave(folder: Path) -> None:
    """Let other trainings in; a folder into which nothing was written goes."""
    leave(folder, _WHAT)
    with suppress(OSError):  # it is not empty, or another process of this run has removed it
        folder.rmdir()


def _extended(before: int, optimization: Any) -> list[str]:
    """What it means that a run has more steps than it had; nothing where it has not."""
    if before >= optimization.steps:
        return []
    rate = learning_rate(before + 1, optimization)
    schedule = f'schedule = "{optimization.schedule}" now ends at step {optimization.steps}'
    return [
        f"the run is extended from {before} to {optimization.steps} steps; {schedule}, and step {before + 1} has the "
        f"rate {rate:g}"
    ]


def _positions(config: Any) -> tuple[int, int]:
    """Positions that the run's longest sequence takes, and the budget of reasoning in it, in tokens."""
    budgets = [0]
    if (rollout := getattr(config, "rollout", None)) is not None:
        budgets.append(rollout.max_reasoning_tokens)
    if config.data.evaluation and "reason" in config.evaluate.modes:
        budgets.append(config.evaluate.max_reasoning_tokens)
    return config.data.max_length + (max(budgets) + 1 if max(budgets) else 0), max(budgets)
