"""The log of a run: `log.jsonl` with one event per line, TensorBoard, and a progress bar with the losses."""

import json
from pathlib import Path
from typing import Any

from search_r3_mteb.atomic import write_text
from search_r3_mteb.json_files import NotJsonError, parse_json


class RunLog:
    """Writer of a run's events; only that of the main process is `active`, the others do nothing.

    Lines of steps after `resume_step` are cut off, so that a resumed run's log is the uninterrupted run's. Numbers must
    be finite: a NaN in a log is an error that went unnoticed.
    """

    def __init__(self, folder: Path, *, total: int, resume_step: int, tensorboard: bool, active: bool = True) -> None:
        self.active, self.path = active, folder / "log.jsonl"
        self._board: Any = None
        self._bar: Any = None
        if not active:
            return
        folder.mkdir(parents=True, exist_ok=True)
        cut(self.path, resume_step)
        from tqdm.auto import tqdm

        self._bar = tqdm(total=total, initial=resume_step, unit="step", desc=folder.name, mininterval=1.0)
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=resume_step + 1)

    def event(self, kind: str, step: int, **values: Any) -> None:
        """Append one event; numbers also go to TensorBoard, under `kind`/name."""
        if not self.active:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": kind, "step": step} | values, allow_nan=False) + "\n")
        if self._board is not None:
            label = "/".join(str(values[key]) for key in ("task", "mode", "hops") if values.get(key) is not None)
            for name, value in values.items():
                if isinstance(value, int | float) and not isinstance(value, bool) and name != "hops":
                    self._board.add_scalar(f"{kind}/{label}/{name}" if label else f"{kind}/{name}", value, step)

    def advance(self, **shown: Any) -> None:
        """One step on the bar, with a few values beside it."""
        if self.active:
            self._bar.set_postfix(
                {k: f"{v:.3g}" if isinstance(v, float) else v for k, v in shown.items()}, refresh=False
            )
            self._bar.update(1)

    def say(self, text: str) -> None:
        """A line above the bar."""
        if self.active:
            self._bar.write(text)

    def close(self) -> None:
        """Flush and end the bar."""
        if self._board is not None:
            self._board.close()
        if self._bar is not None:
            self._bar.close()


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
