"""Accelerate's trackers of a run: TensorBoard's files, Weights & Biases, MLflow, and any other that it knows.

Which run of a tracker belongs to a folder is kept in FOLDER/trackers.json, so that a resumed run goes on in it.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from search_r3_mteb.atomic import write_json
from search_r3_mteb.disk import naming
from search_r3_mteb.json_files import read_object

_KEPT = "trackers.json"
_UNNAMEABLE = re.compile(r"[^\w./ -]")  # what MLflow refuses in a metric's name


def check_trackers(names: Sequence[str]) -> None:
    """ValueError for a name that accelerate does not know, and for one whose package is not installed."""
    if not names:
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
    from accelerate.utils import LoggerType

    installed = {str(tracker) for tracker in get_available_trackers()}
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise ValueError(
                f"output.trackers names {name!r}, which accelerate does not know. It has "
                f"{', '.join(sorted(LOGGER_TYPE_TO_CLASS))}."
            )
        if name in LoggerType.list() and name not in installed:
            raise ValueError(
                f"output.trackers names {name!r}, which is not installed here. Run `pip install "
                f"{name.replace('_', '-')}`, or remove it."
            )


class Trackers:
    """The trackers of one run, on its main process. Numbers go to all of them under the same names.

    `resume_step` is the step that the run continues after, 0 for a new one; `config` are its flattened settings.
    """

    def __init__(
        self, folder: Path, names: Sequence[str], *, project: str, config: Mapping[str, Any], resume_step: int
    ) -> None:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        check_trackers(names)
        self._folder = folder
        kept = folder / _KEPT
        runs: dict[str, str] = read_object(kept, "Delete it: new runs begin.") if resume_step and kept.exists() else {}
        self._open: list[Any] = []
        for name in dict.fromkeys(names):
            cls: Any = LOGGER_TYPE_TO_CLASS[name]
            tracker = _made(cls, name, folder, project, runs.get(name), resume_step)
            tracker.start()
            if name != "tensorboard" and name not in runs:  # there settings would be a second run
                tracker.store_init_configuration({key: _plain(value) for key, value in config.items()})
            if (run := _run_of(name, tracker)) is not None:
                runs[name] = run
            self._open.append(tracker)
        if runs:
            write_json(kept, runs)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Numbers of one step."""
        named = {_UNNAMEABLE.sub("_", name): value for name, value in values.items()}
        with naming(self._folder):
            for tracker in self._open:
                tracker.log(named, step=step)

    def finish(self) -> None:
        """Flush and end."""
        with naming(self._folder):
            for tracker in self._open:
                tracker.finish()


def _made(cls: Any, name: str, folder: Path, project: str, run: str | None, resume_step: int) -> Any:
    """The tracker, not started; `run` is the run of an earlier process that it continues."""
    if name == "tensorboard":  # its files lie in FOLDER/tensorboard
        return cls(name, folder, purge_step=resume_step + 1)
    if name == "wandb":
        return cls(project, name=folder.name, dir=str(folder), id=run, resume="allow")
    if name == "mlflow":
        return cls(experiment_name=project, run_name=folder.name, run_id=run)
    return cls(project, folder) if cls.requires_logging_directory else cls(project)


def _run_of(name: str, tracker: Any) -> str | None:
    """What the tracker calls its run, where it can be continued by that."""
    if name == "wandb":
        return str(tracker.tracker.id)
    return str(tracker.tracker.info.run_id) if name == "mlflow" else None


def _plain(value: Any) -> Any:
    """A setting as trackers take it: lists as text."""
    return value if isinstance(value, bool | int | float | str) else str(value)
