"""Models and data that a run will need, looked at before its first model is loaded: hours may lie between."""

import importlib.util
import logging
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_r3_mteb.encoder.folders import check_folder
from search_r3_mteb.evaluation.systems import BM25, ModelSpec, kind_of, split_label
from search_r3_mteb.expansion.names import parse_name

if TYPE_CHECKING:
    from mteb.abstasks.retrieval import AbsTaskRetrieval

_log = logging.getLogger(__name__)
_PATIENCE = 5.0  # seconds for the hub's first answer
_MISTAKES = (ValueError, TypeError, OSError, ImportError)


def check_models(models: Sequence[ModelSpec]) -> None:
    """Raise for models by name that are not there or not whole; weights are looked at, not loaded.

    FileNotFoundError, ValueError or ImportError; of several mistakes one ValueError with all of them.
    """
    named = [each for each in models if isinstance(each, str | Path)]
    together((str(each), partial(_check_model, each)) for each in named)


def together(checks: Iterable[tuple[str, Callable[[], Any]]]) -> None:
    """Run all checks, each with a name; raise the only mistake, or one ValueError that has them all."""
    mistakes: list[tuple[str, Exception]] = []
    for name, check in checks:
        try:
            check()
        except _MISTAKES as error:
            mistakes.append((name, error))
    if len(mistakes) == 1:
        of, mistake = mistakes[0]
        if of[:60] in str(mistake) or not isinstance(mistake, FileNotFoundError | ValueError):
            raise mistake
        kind = FileNotFoundError if isinstance(mistake, FileNotFoundError) else ValueError
        raise kind(f"{_short(of)}: {mistake}") from mistake
    if mistakes:
        raise ValueError(
            f"{len(mistakes)} models cannot be run, and nothing was:\n"
            + "\n".join(f"{_short(of)}: {mistake}" for of, mistake in mistakes)
        )


def _short(name: str) -> str:
    return name if len(name) <= 200 else f"{name[:60]}..."


def _check_model(spec: str | Path) -> None:
    from search_r3_mteb.encoder.model_names import resolve

    path = split_label(spec)[1]
    kind = kind_of(path)
    if kind == BM25 and importlib.util.find_spec("bm25s") is None:
        raise ImportError("bm25 needs the package bm25s. Install it: pip install bm25s")
    expansion = parse_name(path)
    if expansion is not None:
        if expansion.writer is not None:
            check_folder(resolve(expansion.writer), embeds=False)
        check_folder(resolve(expansion.encoder), embeds=True)
    elif kind in ("search-r3", "sentence-transformers"):
        check_folder(resolve(path), embeds=True)


def check_data(tasks: "Sequence[AbsTaskRetrieval]", output: Path) -> None:
    """Load the data of the first task of which `output` has no row yet, so that a task without data fails first.

    Raises what `load_task` raises.
    """
    from search_r3_mteb.evaluation.summary import read_summary

    known = {row.get("task") for row in read_summary(output / "summary.json")}
    for task in tasks:
        if task.metadata.name not in known:
            load_task(task)
            return


def load_task(task: "AbsTaskRetrieval") -> None:
    """MTEB's `load_data`, unless that was done. Raises FileNotFoundError that says what to do where data are not there.

    The hub is asked once whether it answers: where it does not, what is in its cache is taken, without more attempts.
    """
    if task.data_loaded:
        return
    from search_r3_mteb.tasks.mteb_tasks import LocalRetrievalTask

    if isinstance(task, LocalRetrievalTask):
        task.load_data()
        return
    with _hub_or_cache() as reached:
        try:
            task.load_data()
        except (OSError, ValueError) as error:  # the second: `datasets` for a set that its cache lacks
            if reached and not isinstance(error, OSError):
                raise
            about = task.metadata.dataset
            raise FileNotFoundError(
                f"The data of {task.metadata.name} ({about.get('path')}, revision {about.get('revision')}) are not in "
                f"the hub's cache here, and {'could not be loaded' if reached else 'the hub does not answer'}: "
                f"{' '.join(str(error).split())[:300]} ({type(error).__name__}). Run this once where there is a "
                "network (HF_HOME is the folder of the cache, which can be copied), or give the same data as a BEIR "
                "folder: --task beir:FOLDER."
            ) from error


@contextmanager
def _hub_or_cache() -> Iterator[bool]:
    """Whether the hub answers; where it does not, the block runs as with HF_HUB_OFFLINE=1."""
    import datasets
    from huggingface_hub import constants

    reached = False
    if not constants.HF_HUB_OFFLINE:
        try:
            asked = urllib.request.Request(constants.ENDPOINT, method="HEAD")
            with urllib.request.urlopen(asked, timeout=_PATIENCE):
                reached = True
        except urllib.error.HTTPError:
            reached = True  # it answers, whatever it says
        except OSError as error:
            reached = isinstance(getattr(error, "reason", error), ssl.SSLError)  # the hub's client has own certificates
        if not reached:
            _log.warning("%s does not answer: only what is in the cache can be used.", constants.ENDPOINT)
    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    if not reached:
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield reached
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
