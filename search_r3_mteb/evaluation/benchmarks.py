"""Benchmarks: names that stand for several of MTEB's tasks.

| name | MTEB's tasks |
|---|---|
| BRIGHT | the 12 of BRIGHT(v1.1) with documents of ordinary length; published figures are their mean |
| BRIGHT-long | the 8 of BRIGHT(v1.1) with long documents |
| BRIGHT-Pro | the benchmark of that name |
| RTEB | the tasks of RTEB(beta) whose data are public |
| LitSearch | the task LitSearchRetrieval |

Every other benchmark of MTEB goes by MTEB's name for it, but for MTEB's "BRIGHT", an older version that leaves the
excluded ids in and has no instructions: its one task is called BrightRetrieval (BrightLongRetrieval).

Excluded ids are MTEB's own: what a query must not find is missing from its candidates (`top_ranked`).
"""

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mteb.abstasks.retrieval import AbsTaskRetrieval

logger = logging.getLogger(__name__)
_OURS: Mapping[str, tuple[str, str | None]] = {  # MTEB's benchmark, and the one split of it
    "BRIGHT": ("BRIGHT(v1.1)", "standard"),
    "BRIGHT-long": ("BRIGHT(v1.1)", "long"),
    "BRIGHT-Pro": ("BRIGHT-Pro", None),
    "RTEB": ("RTEB(beta)", None),
}
ALIASES: Mapping[str, str] = {"LitSearch": "LitSearchRetrieval"}
BENCHMARK_NAMES = (*_OURS, *ALIASES)


def benchmark_tasks(name: str) -> "list[AbsTaskRetrieval] | None":
    """The tasks of a benchmark, each an object of its own; None where there is no such benchmark.

    Tasks whose data nobody can have are left out with a warning. Raises ValueError for a benchmark that is not
    retrieval alone, and for one of ours that the installed MTEB lacks.
    """
    parts = _parts(name)
    return None if parts is None else [task for part in parts for task in part]


def benchmark_means(specs: Sequence[Any], rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """For each benchmark among `specs`: its name, and a sentence with each model's mean nDCG@10 over its tasks.

    The mean is MTEB's: over splits, then over tasks; those of CQADupstack are one. A model without a row on every task
    gets none.
    """
    for spec in specs:
        parts = _parts(spec) if isinstance(spec, str) else None
        if parts is None or len(parts) < 2:
            continue
        names = [[task.metadata.name for task in part] for part in parts]
        wanted = {name for part in names for name in part}
        of_model: dict[tuple[str, str], dict[str, list[float]]] = {}
        for row in rows:
            if "hops" not in row and row["task"] in wanted:
                found = of_model.setdefault((row["model"], row["mode"]), {})
                found.setdefault(row["task"], []).append(row["ndcg_at_10"])
        for (model, mode), values in of_model.items():
            if len(values) == len(wanted):
                mean = fmean(fmean(fmean(values[name]) for name in part) for part in names)
                yield spec, f"{spec}: mean nDCG@10 over {len(parts)} tasks {mean:.4f} ({model}, {mode})"


def _parts(name: str) -> "list[list[AbsTaskRetrieval]] | None":
    """The tasks that count as one each: mostly one, those of CQADupstack together."""
    import mteb
    from mteb.abstasks.retrieval import AbsTaskRetrieval

    theirs, split = _OURS.get(name, (name, None))
    try:
        found = list(mteb.get_benchmark(theirs).tasks)
    except KeyError as error:
        if name in _OURS:
            raise ValueError(
                f"{name}: the installed mteb {mteb.__version__} has no benchmark {theirs!r}. Install a newer one: "
                "pip install -U mteb."
            ) from error
        return None
    parts = [_members(task) for task in found if split is None or list(task.eval_splits) == [split]]
    others = [task.metadata.name for part in parts for task in part if not isinstance(task, AbsTaskRetrieval)]
    if others:
        own = [task.metadata.name for part in parts for task in part if isinstance(task, AbsTaskRetrieval)]
        raise ValueError(
            f"{name} holds {len(others)} tasks that are not retrieval ({_some(others)}), and this evaluation reports "
            f"rankings only; the mean of the rest would not be {name}'s. Name its retrieval tasks one by one: "
            f"{', '.join(own) or 'it has none'}."
        )
    closed = [task.metadata.name for part in parts for task in part if task.metadata.is_public is False]
    if closed:
        logger.warning("%s: %d tasks with closed data are left out: %s", name, len(closed), ", ".join(closed))
    # MTEB hands out the same objects every time, and splits and data are kept in them.
    copies = [[copy.deepcopy(task) for task in part if task.metadata.is_public is not False] for part in parts]
    return [part for part in copies if part]


def _members(task: Any) -> list[Any]:
    """The task itself, or those whose mean it is."""
    from mteb.abstasks.aggregated_task import AbsTaskAggregate

    return (
        [each for member in task.tasks for each in _members(member)] if isinstance(task, AbsTaskAggregate) else [task]
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
