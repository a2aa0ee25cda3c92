"""Tasks by name: hopworld, stdlib, any BEIR folder, other packages' tasks, and MTEB's retrieval tasks and benchmarks.

A task of another package is a function of what stands behind its name, and of the split that is asked for (or None):

    @TASKS.register("faq")
    def faq(argument, split):          # "questions.csv" of faq:questions.csv, "" of faq
        return MemoryTask("faq", corpus, queries, relevant)

It returns a retrieval task of MTEB's, whose name and revision must stand for its content, as those of
`search_r3_mteb.tasks.mteb_tasks.MemoryTask` do.
"""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeAlias

from search_r3_mteb.evaluation.benchmarks import ALIASES, BENCHMARK_NAMES, benchmark_tasks
from search_r3_mteb.extensions import TASKS, did_you_mean

if TYPE_CHECKING:
    from mteb.abstasks.retrieval import AbsTaskRetrieval

TaskSpec: TypeAlias = "str | AbsTaskRetrieval"
BEIR = "beir:"
LOCAL_TASKS = ("hopworld", "stdlib")
FORMS = (
    "hopworld, hopworld:DOCUMENTS, stdlib, FOLDER or beir:FOLDER[:ignore_identical_ids], an MTEB retrieval task "
    f"or benchmark ({', '.join(BENCHMARK_NAMES)}, ...)"
)


def resolve_tasks(specs: Sequence[TaskSpec], split: str | None = None) -> "list[AbsTaskRetrieval]":
    """The tasks that `specs` name, in order and each once; the name of a benchmark stands for all of its tasks.

    Raises like `resolve_task` and `benchmark_tasks`.
    """
    found: dict[Any, AbsTaskRetrieval] = {}
    for spec in specs:
        several = benchmark_tasks(spec) if isinstance(spec, str) and not is_local(spec) else None
        for each in [spec] if several is None else several:
            task = resolve_task(each, split)
            found.setdefault((task.metadata.name, task.metadata.revision, *task.eval_splits, *task.hf_subsets), task)
    return list(found.values())


def resolve_task(spec: TaskSpec, split: str | None = None) -> "AbsTaskRetrieval":
    """The task that `spec` names, restricted to `split` when one is given; its data are not loaded yet.

    Raises ValueError for an unknown name or split, for tasks other than retrieval and for a benchmark of several tasks,
    FileNotFoundError for no folder.
    """
    from mteb.abstasks.retrieval import AbsTaskRetrieval

    task = _named(spec, split) if isinstance(spec, str) else spec
    if not isinstance(task, AbsTaskRetrieval):
        raise ValueError(
            f"{_name(task)} is not a retrieval task, and this evaluation reports rankings only. Run it with "
            "mteb.evaluate(SearchR3Encoder(...), task)."
        )
    if split is not None and list(task.eval_splits) != [split]:
        known = list(task.metadata.eval_splits)
        if split not in known:
            raise ValueError(f"{_name(task)} has no split {split!r}; it has {', '.join(known)}.")
        task.filter_eval_splits([split])
    return task


def is_local(name: str) -> bool:
    """Whether this is the name of a task of ours or of another package, or a folder here, and not a task of MTEB's."""
    return name.partition(":")[0] in ("beir", *LOCAL_TASKS, *TASKS.names()) or folder_of(name) is not None


def folder_of(spec: str) -> Path | None:
    """The folder that a task's name means: beir:FOLDER, or one that is here; None for other names.

    Raises ValueError for a bare name of both a task and a folder here.
    """
    from search_r3_mteb.tasks.mteb_tasks import IDENTICAL_IDS

    if spec.startswith(BEIR):
        rest = spec.removeprefix(BEIR).removesuffix(IDENTICAL_IDS)
        if not rest:
            raise ValueError(f"--task {spec} does not name a folder; write beir:FOLDER.")
        return Path(rest)
    path = Path(spec.removesuffix(IDENTICAL_IDS))
    if not path.is_dir():
        return None
    if str(path) == spec and len(path.parts) == 1 and spec not in (".", "..") and _is_task(spec):
        raise ValueError(f"--task {spec} is both a task and a folder here. Write ./{spec} for the folder.")
    return path


def _is_task(name: str) -> bool:
    import mteb

    if name in (*LOCAL_TASKS, *BENCHMARK_NAMES, *TASKS.names()):
        return True
    try:
        mteb.get_task(name)
    except KeyError:
        return benchmark_tasks(name) is not None
    return True


def with_identical_ids_ignored(specs: Sequence[str]) -> list[str]:
    """The same tasks by name, the BEIR folders among them with the option `ignore_identical_ids`.

    Raises ValueError where none is a BEIR folder: other tasks leave out what their own definition says.
    """
    local = [folder_of(spec) is not None for spec in specs]
    if not any(local):
        raise ValueError(
            f"--ignore-identical-ids is for BEIR folders (beir:FOLDER), got {', '.join(specs)}: other tasks decide "
            "themselves whether a query may find itself. Leave the option out."
        )
    from search_r3_mteb.tasks.mteb_tasks import IDENTICAL_IDS

    return [
        spec + IDENTICAL_IDS * (folder and not spec.endswith(IDENTICAL_IDS))
        for spec, folder in zip(specs, local, strict=True)
    ]


def _named(name: str, split: str | None) -> Any:
    head, _, rest = name.partition(":")
    if head in TASKS.reserved and head in TASKS.names():
        TASKS.find(head)  # raises: the built-in task would be used in the place of the installed one
    folder = folder_of(name)
    if folder is not None:
        from search_r3_mteb.tasks.mteb_tasks import IDENTICAL_IDS

        return _of_folder(folder, split, ignore_identical_ids=name.endswith(IDENTICAL_IDS))
    if head == "hopworld":
        from search_r3_mteb.tasks.mteb_tasks import HopWorldTask

        settings: dict[str, Any] = {} if split is None else {"split": split}
        if rest:
            if not rest.isdigit():
                raise ValueError(f"--task {name}: expected a number of documents as in hopworld:5000, got {rest!r}.")
            settings["documents"] = int(rest)
        return HopWorldTask(**settings)
    if name == "stdlib":
        from search_r3_mteb.tasks.mteb_tasks import StdlibTask

        return StdlibTask()
    return _from_extension(head, rest, split) if head in TASKS.names() else _from_mteb(name)


def _from_extension(name: str, argument: str, split: str | None) -> Any:
    """The task of another package. Raises ExtensionError where it is none, or where MTEB has one of that name."""
    import mteb
    from mteb.abstasks.retrieval import AbsTaskRetrieval

    extension = TASKS.find(name)
    try:
        mteb.get_task(ALIASES.get(name, name))
    except KeyError:
        known = name in BENCHMARK_NAMES
    else:
        known = True
    if known:
        raise extension.error(f"has the name of one of MTEB's, which could not be reached any more. Rename {name!r}")
    task = extension(argument, split)
    if not isinstance(task, AbsTaskRetrieval):
        raise extension.error(f"gave {type(task).__name__}, not a retrieval task of MTEB's")
    if not task.metadata.revision:
        raise extension.error("has no dataset revision, so that results of other data would be taken for its own")
    return task


def _of_folder(folder: Path, split: str | None, *, ignore_identical_ids: bool) -> Any:
    """The task of a BEIR folder; of one whose files are tables, through a copy that lives as long as the task."""
    from search_r3_mteb.files.columns import ColumnError
    from search_r3_mteb.files.convert import convert
    from search_r3_mteb.files.judgements import has_tables
    from search_r3_mteb.tasks.mteb_tasks import BeirFolder

    if not folder.is_dir() or not has_tables(folder):
        return BeirFolder(folder, split=split, ignore_identical_ids=ignore_identical_ids)
    copy = TemporaryDirectory(prefix="search-r3-")
    name = folder.resolve().name
    try:
        convert(folder, Path(copy.name) / name)
    except ColumnError as error:
        raise ValueError(
            f"{error.what} A task's columns have usual names. Name this one in a conversion: "
            f"search-r3 convert {folder} --output FOLDER --{error.option} {error.name or 'NAME'}"
        ) from error
    task = BeirFolder(Path(copy.name) / name, split=split, ignore_identical_ids=ignore_identical_ids)
    task.kept = copy  # removed with the task
    return task


def _from_mteb(name: str) -> Any:
    import mteb

    try:
        return mteb.get_task(ALIASES.get(name, name))
    except KeyError as error:
        several = benchmark_tasks(name)
        if several is not None and len(several) == 1:
            return several[0]
        if several is not None:
            raise ValueError(
                f"{name} is a benchmark of {len(several)} tasks, and this needs one: "
                f"{', '.join(task.metadata.name for task in several)}."
            ) from error
        if Path(name).is_file():
            raise ValueError(
                f"--task {name} is a file, and a task needs queries and judgements, too. Give a folder of corpus, "
                "queries and qrels, or make one: search-r3 convert FILE --queries FILE --judgements FILE --output F."
            ) from error
        head, colon, _ = name.partition(":")
        known = [*LOCAL_TASKS, BEIR.rstrip(":"), *TASKS.names()]
        if "/" in head or ("/" in name and not colon):
            raise FileNotFoundError(f"There is no folder {name}. Check the path, or name a task: {FORMS}.") from error
        if not colon:
            known += [*BENCHMARK_NAMES, *ALIASES, *(task.metadata.name for task in mteb.get_tasks())]
        raise ValueError(
            f"There is no task {name!r}.{did_you_mean(head, known)} A task is {FORMS}; {TASKS.said()}."
        ) from error


def _name(task: Any) -> str:
    return str(getattr(getattr(task, "metadata", None), "name", type(task).__name__))
