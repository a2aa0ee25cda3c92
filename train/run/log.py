"""The log of a run: `log.jsonl` with one event per line, the trackers, and a progress line."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from search_r3_mteb.atomic import write_text
from search_r3_mteb.disk import naming
from search_r3_mteb.json_files import NotJsonError, parse_json
from train.run.progress import Progress
from train.run.trackers import Trackers


class RunLog:
    """Writer of a run's events; only that of the main process is `active`, the others do nothing.

    Lines of steps after `resume_step` are cut off, so that a resumed run's log is the uninterrupted run's. Numbers must
    be finite: a NaN in a log is an error that went unnoticed. `trackers` are names that accelerate knows; they get the
    numbers under `kind`/name, and at the start `config`, the flattened settings.
    """

    def __init__(
        self,
        folder: Path,
        *,
        total: int,
        resume_step: int,
        tensorboard: bool,
        trackers: Sequence[str] = (),
        project: str = "search-r3",
        config: Mapping[str, Any] | None = None,
        active: bool = True,
    ) -> None:
        self.active, self.path = active, folder / "log.jsonl"
        if not active:
            return
        folder.mkdir(parents=True, exist_ok=True)
        cut(self.path, resume_step)
        names = ["tensorboard"] * tensorboard + list(trackers)
        self._trackers = Trackers(folder, names, project=project, config=config or {}, resume_step=resume_step)
        self._progress = Progress(folder.name, first=resume_step, total=total)

    def event(self, kind: str, step: int, /, **values: Any) -> None:
        """Append one event; numbers also go to the trackers, under `kind`/name."""
        if not self.active:
            return
        with naming(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": kind, "step": step} | values, allow_nan=False) + "\n")
        label = "/".join(str(values[key]) for key in ("task", "mode", "hops") if values.get(key) is not None)
        numbers = {
            f"{kind}/{label}/{name}" if label else f"{kind}/{name}": value
            for name, value in values.items()
            if isinstance(value, int | float) and not isinstance(value, bool) and name != "hops"
        }
        if numbers:
            self._trackers.log(numbers, step)

    def advance(self, **shown: float) -> None:
        """One step on the progress line, with a few values beside it."""
        if self.active:
            self._progress.advance(shown)

    def say(self, text: str) -> None:
        """A line of its own."""
        if self.active:
            self._progress.say(text)

    def warn(self, step: int, text: str) -> None:
        """A line of its own that also stays in the log."""
        self.event("warning", step, text=text)
        self.say(f"warning: {text}")

    def close(self) -> None:
        """Flush, and end the line."""
        if self.active:
            self._trackers.finish()
            self._progress.close()


def due(step: int, every: int) -> bool:
    """Whether what happens every `every` steps happens after this one; with 0 it never does."""
    return every > 0 and step % every == 0


def cut(path: Path, step: int) -> None:
    """Keep the events up to `step` of a file with one JSON object per line, and no line that a kill left incomplete."""
    if not path.exists():
        return
    kept: list[str] = []
    # Not splitlines: texts may hold line separators of Unicode.
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
        try:
            event = parse_json(line, path)
        except NotJsonError:
            break  # only the last line can be cut short; nothing after it was written
        if event["step"] <= step:
            kept.append(line)
    write_text(path, "".join(line + "\n" for line in kept))
