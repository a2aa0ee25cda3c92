"""What is attacked: pieces of work that leave something on the disk, and go on when they are started again.

A subject's `end` says, name by name, what the work left, without what may differ between two runs (times, the order of
events on the clock, the number of a generation). Two ends are equal when vectors, weights and rows are, bit for bit.
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

End = dict[str, str]
TIMES = ("seconds", "milliseconds_per_query", "queries_per_second", "documents_per_second", "refresh_seconds")
_DIM = 8


@dataclass(frozen=True)
class Subject:
    """One piece of work in one folder."""

    name: str
    work: Callable[[Path], object]
    """Does the work in the folder, or what is left of it."""
    end: Callable[[Path], End]
    part: Callable[[Path], object]
    """Leaves the folder as in the middle of the work: finished files, and work left to do."""
    damageable: Callable[[Path], list[Path]]
    """The files that have a checksum, in a folder that `part` has left."""
    used: Callable[[Path], object]
    """What reads those files: the work, or whatever loads them."""


def subject(name: str, folder: Path) -> Subject:
    """One of WRITERS, or `model`; the tiny model and texts that it needs are made in `folder`, once."""
    made: dict[str, Callable[[], Subject]] = {
        "evaluation": lambda: evaluation(_model(folder / "model"), _beir(folder / "texts")),
        "stage 1": stage1,
        "stage 2": lambda: stage2(_model(folder / "model")),
        "cache": cache,
        "store": store,
        "export": lambda: export(_model(folder / "model")),
        "embed": lambda: embedding(_model(folder / "model"), folder),
        "model": lambda: loading(_model(folder / "model")),
    }
    return made[name]()


WRITERS = ("evaluation", "stage 1", "stage 2", "cache", "store", "export", "embed")
"""Those that are killed, and find a full disk; `model` is only read."""


def ended(one: Subject, place: Path) -> End:
    """Its end; one that cannot be read is one, too, and equal to no other."""
    try:
        return one.end(place)
    except Exception as error:  # noqa: BLE001  a reader that fails shows a difference
        return {"cannot be read": f"{type(error).__name__}: {error}"}


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def files_of(folder: Path) -> list[Path]:
    """The files below a folder that hold something and are not locks."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock" and path.stat().st_size)


def _digests(folder: Path, *without: str) -> End:
    return {str(p.relative_to(folder)): digest(p.read_bytes()) for p in files_of(folder) if p.name not in without}


def _arrays(arrays: dict[str, Any]) -> End:
    return {name: digest(np.ascontiguousarray(array).tobytes()) for name, array in arrays.items()}


def _model(folder: Path) -> Path:
    from tests.train.loops import byte_folder

    return folder if folder.is_dir() else byte_folder(folder)


def _beir(folder: Path) -> Path:
    from search_r3_mteb.tasks.beir_folder import write_beir

    if not folder.is_dir():
        write_beir(
            folder,
            corpus=[(f"d{n}", "", f"text number {n} about {n % 3}") for n in range(12)],
            queries=[(f"q{n}", f"number {n}?") for n in range(6)],
            qrels={"test": [(f"q{n}", f"d{n}", 1) for n in range(6)]},
        )
    return folder


def evaluation(model: Path, texts: Path) -> Subject:
    """Both modes on a small BEIR folder, by the command line, several chunks each."""

    def run(place: Path, mode: str) -> None:
        from search_r3_mteb import cli
        from search_r3_mteb.encoder.chunks import CHUNK

        CHUNK.update(query=2, document=4)
        cli.main(
            [
                "evaluate",
                "--model",
                f"tiny={model}",
                "--task",
                f"beir:{texts}",
                "--mode",
                mode,
                "--output",
                str(place / "out"),
                "--max-reasoning-tokens",
                "6",
            ]
        )

    def end(place: Path) -> End:
        rows = json.loads((place / "out/summary.json").read_text())
        left_out = (*TIMES, "command", "commit", "checksum", "files")
        found = {
            f"row of {row['mode']}": json.dumps({k: v for k, v in row.items() if k not in left_out}, sort_keys=True)
            for row in rows
        }
        for part in ("queries", "predictions"):
            whole = [path for path in files_of(place / "out" / part) if ".damaged-" not in path.name]
            found |= {path.name + path.parent.name: digest(path.read_bytes()) for path in whole}
        return found

    def damageable(place: Path) -> list[Path]:
        return files_of(place / "out")

    work, part = (lambda place: run(place, "both")), (lambda place: run(place, "direct"))
    return Subject("evaluation", work, end, part, damageable, work)


def _training(name: str, run: Callable[[Path, int | None], object], end: Callable[[Path], End]) -> Subject:
    def damageable(place: Path) -> list[Path]:
        return files_of(place / "run/checkpoints")

    def work(place: Path) -> object:
        return run(place, None)

    return Subject(name, work, end, lambda place: run(place, 2), damageable, work)


def _trained(program: Any, config: Any, overrides: list[str], until: int | None) -> None:
    """A training by its command line, or up to the checkpoint of a step."""
    from tests.train.loops import StoppedError, stop_after
    from train.run.run import Run

    folder = config.output.folder
    if until is None:
        changes = [f"output.folder={folder}", *overrides]
        program.main(["--config", f"{folder}.toml", *(word for change in changes for word in ("--set", change))])
        return
    Run.after_step = stop_after(until)  # type: ignore[method-assign]  # this process ends with it
    with contextlib.suppress(StoppedError):
        program.train(config)


def _run_end(place: Path) -> End:
    from tests.train.loops import events

    found = {
        f"{name} weights": digest((place / "run" / name / "model.safetensors").read_bytes())
        for name in ("last", "best")
    }
    return found | {"log": digest(json.dumps(events(place / "run")).encode())}


_STEPS = ["optimization.steps=4", "optimization.batch_size=4", "checkpoint.keep=1", "evaluate.max_queries=3"]


def stage1() -> Subject:
    """Stage 1 from random weights, with evaluations; every step is a checkpoint."""

    def run(place: Path, until: int | None) -> None:
        from tests.train.loops import sft_config
        from train import sft

        _trained(sft, sft_config(place / "run", *_STEPS, evaluation=True), _STEPS, until)

    return _training("stage 1", run, _run_end)


def stage2(model: Path) -> Subject:
    """Stage 2 with its corpus cache in every checkpoint."""

    def run(place: Path, until: int | None) -> None:
        from tests.train.loops import rl_config
        from train import rl

        settings = [one for one in _STEPS if "batch_size" not in one] + ["rollout.max_reasoning_tokens=4"]
        _trained(rl, rl_config(place / "run", model, *settings, evaluation=True), settings, until)

    def end(place: Path) -> End:
        from tests.train.loops import cache_arrays

        arrays, scalars = cache_arrays(place / "run", 4)
        rollouts = (place / "run/rollouts.jsonl").read_bytes()
        rest = {"scalars": json.dumps(scalars, sort_keys=True), "rollouts": digest(rollouts)}
        return _run_end(place) | _arrays(arrays) | rest

    return _training("stage 2", run, end)


@dataclass
class _CacheWork:
    """A corpus cache of a model that drifts: built, refreshed, rebuilt and saved."""

    documents: int = 120
    steps: int = 8

    @cached_property
    def texts(self) -> list[str]:
        return [f"document {row}" for row in range(self.documents)]

    @cached_property
    def base(self) -> Any:
        return np.random.default_rng(0).normal(size=(self.documents, _DIM))

    def encoder(self, step: int) -> Callable[[list[str]], Any]:
        turned = self.base @ (np.eye(_DIM) + 0.01 * step * np.random.default_rng(1).normal(size=(_DIM, _DIM)))
        return lambda given: turned[[int(text.split()[1]) for text in given]]

    def load(self, folder: Path) -> Any:
        from train.corpus_cache.cache import CorpusCache

        return CorpusCache.load(folder, self.texts, fingerprint="weights", dim=_DIM)

    def opened(self, folder: Path) -> Any:
        from train.config.corpus_cache import CorpusCacheSettings
        from train.corpus_cache.cache import CorpusCache
        from train.corpus_cache.files import MANIFEST

        if (folder / MANIFEST).is_file():
            return self.load(folder)
        settings = CorpusCacheSettings(policy="local+map", neighbors=4, encode_rows=32)
        first = self.encoder(0)
        return CorpusCache.build(self.texts, first, folder=folder, settings=settings, fingerprint="weights")

    def advance(self, cache: Any, step: int, place: Path) -> None:
        from tests.vectors import unit
        from train.corpus_cache.refresh_policies import Hits

        queries = unit(self.base[np.random.default_rng(step).integers(self.documents, size=4)])
        found = cache.search(queries, 5)
        if step == 3:
            cache.rebuild(self.encoder(step), step=step)
        else:
            hits = Hits(queries, found.rows, found.rows[:, :1].tolist())
            cache.refresh(hits, self.encoder(step), 120, step=step)
        if step == 4:
            cache.save(place / "snapshot")

    def run(self, place: Path, until: int) -> None:
        cache = self.opened(place / "cache")
        for step in range(cache.step + 1, until + 1):
            self.advance(cache, step, place)
        if until == self.steps:  # a kill between the last refresh and its snapshot leaves the snapshot to be taken
            cache.save(place / "snapshot")

    def end(self, place: Path) -> End:
        found: End = {}
        for name in ("cache", "snapshot"):
            cache = self.load(place / name)
            drift = cache._state.drift
            maps = {"keys": drift.keys, "composed": drift.composed, "gram": drift.gram, "step": np.array(cache.step)}
            every = _arrays(dict(cache._state.folder.arrays) | maps)
            found |= {f"{name} {key}": value for key, value in every.items() if not key.startswith("map_")}
        return found


def cache() -> Subject:
    """The corpus cache by itself; damages meet it between two refreshes."""
    one = _CacheWork()

    def work(place: Path) -> None:
        one.run(place, one.steps)

    def damageable(place: Path) -> list[Path]:
        return files_of(place / "cache")

    return Subject("cache", work, one.end, lambda place: one.run(place, 6), damageable, work)


def store(texts: int = 40) -> Subject:
    """The encoder's store, filled chunk by chunk with vectors and thoughts."""
    every = [f"text {number}" for number in range(texts)]

    def opened(place: Path) -> Any:
        from search_r3_mteb.encoder.store import Store

        return Store(place / "store", "ab" * 32, "query", _DIM)

    def fill(place: Path) -> None:
        from search_r3_mteb.encoder.store import StoredThought

        kept = opened(place)
        for start in range(0, texts, 8):
            part = every[start : start + 8]
            part = [part[position] for position in kept.missing(part)]
            numbers = [int(text.split()[1]) for text in part]
            vectors = np.array([np.random.default_rng(number).normal(size=_DIM) for number in numbers], np.float32)
            thoughts = [StoredThought(f"about {number}", [number, 7], True) for number in numbers]
            kept.append(part, vectors, thoughts, seconds=1.0)

    def end(place: Path) -> End:
        kept = opened(place)
        thoughts = [(one.text, one.token_ids, one.finished) for one in kept.thoughts(every)]
        return _arrays({"vectors": kept.lookup(every)}) | {"thoughts": digest(json.dumps(thoughts).encode())}

    return Subject("store", fill, end, fill, lambda place: files_of(place / "store"), fill)


def export(model: Path) -> Subject:
    """An export into a sentence-transformers folder, in place of an earlier one."""

    def run(place: Path, budget: int) -> None:
        from search_r3_mteb import cli

        output = str(place / "exported")
        cli.main(["export", "--model", str(model), "--output", output, "--max-reasoning-tokens", str(budget)])

    def part(place: Path) -> None:
        run(place, 4)

    def used(place: Path) -> None:
        """What somebody who was given the folder can do: compare it, and load it."""
        from search_r3_mteb import cli

        cli.main(["verify", str(place / "exported")])

    def end(place: Path) -> End:
        return _digests(place / "exported")

    def damageable(place: Path) -> list[Path]:
        return [path for path in files_of(place / "exported") if path.name != "README.md"]

    return Subject("export", lambda place: run(place, 6), end, part, damageable, used)


def embedding(model: Path, folder: Path) -> Subject:
    """A file of texts to a file of vectors; the file has no checksum."""
    texts = folder / "lines.txt"
    texts.write_text("".join(f"line {number}\n" for number in range(300)))

    def work(place: Path) -> None:
        from search_r3_mteb import cli

        settings = ["--mode", "direct"]
        cli.main(["embed", "--model", str(model), "--input", str(texts), "--output", str(place / "v.npy"), *settings])

    return Subject("embed", work, lambda place: _digests(place), work, lambda place: [], work)


def loading(model: Path) -> Subject:
    """A saved model, loaded by the encoder with its weights compared: vectors of a query and of a document."""

    def part(place: Path) -> None:
        shutil.copytree(model, place / "model")

    def used(place: Path) -> None:
        from search_r3_mteb import SearchR3Encoder

        encoder = SearchR3Encoder(place / "model", verify=True, max_reasoning_tokens=4, show_progress_bar=False)
        texts = ["a storm over the harbour", "<|im_start|> é"]
        np.savez(place / "vectors.npz", queries=encoder.encode_query(texts), documents=encoder.encode_document(texts))

    def work(place: Path) -> None:
        part(place)
        used(place)

    def end(place: Path) -> End:
        with np.load(place / "vectors.npz") as found:
            return _arrays({name: found[name] for name in found.files})

    return Subject("model", work, end, part, lambda place: files_of(place / "model"), used)
