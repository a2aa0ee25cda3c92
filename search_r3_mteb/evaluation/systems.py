"""The systems that can be evaluated: Search-R3 checkpoints in each mode, writers with encoders, and baselines.

Baselines are sentence-transformers folders, BM25, and those of other packages. The modes of a system are "reason",
"direct", "given" (queries are read with the reasonings of a file), and "if-unsure" (a query reasons where its direct
ranking is unsure).

Each has a model that `mteb.evaluate` takes and an identity that no other checkpoint shares.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

from search_r3_mteb.encoder.arithmetic import arithmetic
from search_r3_mteb.encoder.folders import built_from, is_sentence_transformer, is_there
from search_r3_mteb.encoder.manifest import deciding_files
from search_r3_mteb.encoder.store import fingerprint_of
from search_r3_mteb.evaluation.abstaining import AbstainingSearch
from search_r3_mteb.evaluation.own_baselines import OwnBaseline, own_baseline
from search_r3_mteb.evaluation.recording import RecordedEncoder, RecordedSearch, Thinker
from search_r3_mteb.expansion.names import SETTINGS, open_expansion, parse_name
from search_r3_mteb.expansion.places import check_places
from search_r3_mteb.extensions import BASELINES, did_you_mean

if TYPE_CHECKING:
    from search_r3_mteb.encoder.checkpoints import Checkpoint
    from search_r3_mteb.encoder.encoder import SearchR3Encoder
    from search_r3_mteb.encoder.settings import Mode
    from search_r3_mteb.evaluation.given_file import GivenFile
    from search_r3_mteb.expansion.encoders import BesideWriter
    from search_r3_mteb.expansion.writer_encoder import WriterEncoder

BM25 = "bm25"
_LIBRARY_CONFIG = "config_sentence_transformers.json"
_BM25_IN_MTEB = "mteb/baseline-bm25s"
ModeChoice: TypeAlias = 'Mode | Literal["both"]'
MODE_CHOICES: tuple[ModeChoice, ...] = ("both", "reason", "direct")
GIVEN: Literal["given"] = "given"
UNSURE: Literal["if-unsure"] = "if-unsure"
SystemMode: TypeAlias = 'Mode | Literal["given", "if-unsure"]'
ModelKind = Literal["bm25", "sentence-transformers", "search-r3", "expansion", "own"]
SAMPLING = ("max_reasoning_tokens", "temperature", "seed")
SHARED = ("device", "revision", "trust_remote_code", "verify")  # settings that ordinary models take too
ModelSpec: TypeAlias = "str | Path | Checkpoint | SearchR3Encoder | WriterEncoder"


@dataclass(frozen=True)
class System:
    """One model in one mode. `model` is run by MTEB and records times and thoughts.

    `fingerprint` (hex) stands for everything that decides its vectors or scores. `encoder_fingerprint` is that of the
    system which a writer's encoder, or Rocchio's, would be by itself.
    """

    label: str
    mode: SystemMode
    model: RecordedEncoder | RecordedSearch
    fingerprint: str
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    encoder_fingerprint: str | None = None


def split_label(spec: str | Path) -> tuple[str | None, str | Path]:
    """NAME=PATH as (NAME, PATH), any other text as (None, text), a Path as (None, Path).

    Raises ValueError for a name that cannot be a part of file names.
    """
    if isinstance(spec, Path):
        return None, spec
    label, sign, path = spec.partition("=")
    if not sign or is_there(spec) or parse_name(spec) is not None:
        return None, spec
    if label and (not label.strip(". ") or not label.isprintable() or "\\" in label):
        raise ValueError(
            f"{label!r} in {spec!r} cannot be the name of a model: files and folders of the output are named after "
            "it. Use letters, digits, '-', '_', '.' and '/'."
        )
    return label, path


def names_apart(specs: Sequence[ModelSpec]) -> list[str | None]:
    """For each model the name that tells folders of one name apart, None where its own name does.

    Trainings end in folders of the same name: `own/sft/last` and `own/rl/last` are "sft/last" and "rl/last", in every
    mode alike. Raises FileNotFoundError for a name that no model has.
    """
    from search_r3_mteb.encoder.model_names import display_name, resolve

    places: dict[int, Path] = {}
    taken = set()
    for number, spec in enumerate(specs):
        label, path = split_label(spec) if isinstance(spec, str | Path) else (None, "")
        if label:
            taken.add(label)
        elif isinstance(spec, str | Path) and kind_of(path) in ("search-r3", "sentence-transformers"):
            folder = resolve(path)
            name = short_name(display_name(str(path), folder))
            if Path(path).is_dir() and name == folder.resolve().name:
                places[number] = folder.resolve()
            else:
                taken.add(name)
    found: list[str | None] = [None] * len(specs)
    for name in {place.name for place in places.values()}:
        same = {number: place for number, place in places.items() if place.name == name}
        different, parts = set(same.values()), 1
        while parts < max(len(place.parts) for place in different) - 1 and (
            len(ends := {_end(place, parts) for place in different}) < len(different) or ends & taken
        ):
            parts += 1
        for number, place in same.items() if parts > 1 else ():
            found[number] = _end(place, parts)
    return found


def _end(place: Path, parts: int) -> str:
    """The last parts of a path."""
    return "/".join(place.parts[1:][-parts:])


def kind_of(path: str | Path) -> ModelKind:
    """The kind of model that a name stands for. Raises FileNotFoundError if there is no such model.

    ValueError is raised for a name that means both the baseline and a folder here.

    A folder of sentence-transformers (modules.json) without a profile of ours is an ordinary one; every other folder
    must be a Search-R3 checkpoint, and loading says what it lacks.
    """
    from search_r3_mteb.encoder.model_names import resolve
    from search_r3_mteb.encoder.profiles import PROFILE_FILE

    expansion = parse_name(path)
    if expansion is not None:
        check_places(expansion.method, expansion.writer, expansion.encoder)
        return "expansion"
    if own_baseline(path) is not None:
        return "own"
    if path == BM25:
        if Path(BM25).is_dir():
            raise ValueError(f"{BM25!r} is both the baseline and a folder here. Write ./{BM25}, or rename the folder.")
        return "bm25"
    try:
        folder = resolve(path)
    except FileNotFoundError as error:
        near = did_you_mean(str(path).partition(":")[0], [*BASELINES.reserved, *BASELINES.names()])
        names = ", ".join([BM25, *BASELINES.marked()])
        raise FileNotFoundError(f"{error}{near} Baselines: {names}.") from error
    if is_sentence_transformer(folder):
        return "sentence-transformers"
    if (folder / _LIBRARY_CONFIG).exists() and not (folder / PROFILE_FILE).exists():
        raise FileNotFoundError(
            f"{folder.name}: there is no modules.json beside {_LIBRARY_CONFIG}, so that nothing says how this model of "
            "sentence-transformers pools. Copy it there."
        )
    return "search-r3"


def open_systems(
    spec: ModelSpec,
    mode: ModeChoice,
    settings: Mapping[str, Any],
    cache_folder: Path | str | None,
    given: "GivenFile | None" = None,
    dims: Sequence[int] = (),
    label: str | None = None,
) -> Iterator[System]:
    """The systems of one model, one after the other; modes and sizes share the weights.

    Baselines do not reason, so they run directly whatever `mode` is, and a writer with an encoder always writes.
    `settings` are those of SearchR3Encoder, and of `ExpansionSettings`. With `given` reasonings, mode "given" takes the
    place of "reason", but where the corpus decides what is written. `dims` are further sizes of a Search-R3 checkpoint:
    the first dimensions of its vectors. `label` names a model whose name gives none (`names_apart`).
    """
    from search_r3_mteb.encoder.encoder import SearchR3Encoder

    if isinstance(spec, Thinker) and not isinstance(spec, SearchR3Encoder):
        yield _expansion(spec, None, given)
        return
    if not isinstance(spec, str | Path):
        yield from _search_r3(spec, None, mode, settings, cache_folder, given, dims)
        return
    own_label, path = split_label(spec)
    label = own_label or label
    kind = kind_of(path)
    if kind == "bm25":
        yield _bm25(label or BM25)
    elif kind == "sentence-transformers":
        yield _sentence_transformer(path, label, mode, settings)
    elif (own := own_baseline(path)) is not None:
        yield _own_baseline(own, label)
    elif (expansion := parse_name(path)) is not None:
        yield _expansion(open_expansion(expansion, {**settings, "cache_folder": cache_folder}), label, given)
    else:
        yield from _search_r3(path, label, mode, settings, cache_folder, given, dims)


def _search_r3(
    spec: ModelSpec,
    label: str | None,
    mode: ModeChoice,
    settings: Mapping[str, Any],
    cache_folder: Path | str | None,
    given: "GivenFile | None",
    dims: Sequence[int],
) -> Iterator[System]:
    from search_r3_mteb.encoder.encoder import SearchR3Encoder
    from search_r3_mteb.encoder.settings import EncoderSettings

    if isinstance(spec, SearchR3Encoder):
        if given is not None and spec.mode == "direct":
            raise ValueError(
                f"The reasonings in {given.name} have no place in an encoder of mode 'direct'. Make it with "
                "mode='reason'."
            )
        if dims:
            raise ValueError(
                f"The sizes {', '.join(map(str, dims))} have no place beside an encoder in memory, which has one size. "
                "Make an encoder with truncate_dim for each, or give the model's name."
            )
        yield _system(spec, label, given)
        return
    model: Any = spec
    own = {each.name for each in fields(EncoderSettings)}
    chosen = {name: value for name, value in settings.items() if name in own or name not in SETTINGS}
    chosen["cache_folder"] = cache_folder
    margin = chosen.pop("abstain_margin", None)
    if margin is not None and given is not None:
        raise ValueError(
            f"abstain_margin={margin} decides which queries reason, but with {given.name} none does. Leave one out."
        )
    revision = chosen.pop("revision", None)
    sizes = [chosen.pop("truncate_dim", None), *dims]
    for each, size in product(("reason", "direct") if mode == "both" else (mode,), sizes):
        chosen["truncate_dim"] = size
        encoder = SearchR3Encoder(model, revision=revision, **{**chosen, "mode": each})
        model = encoder.checkpoint  # the next ones run on the weights that the first one loaded
        if size is None:  # before its vectors are computed, which may take hours
            check_sizes(dims, encoder.dim)
        if margin is not None and each == "reason":
            direct = SearchR3Encoder(model, **{**chosen, "mode": "direct", "max_length": encoder.max_length})
            yield _unsure(AbstainingSearch(encoder, direct, margin), label)
        else:
            yield _system(encoder, label, given if each == "reason" else None)


def check_sizes(sizes: Sequence[int], dim: int) -> None:
    """Raises ValueError for a size that vectors of `dim` dimensions do not have."""
    from search_r3_mteb.encoder.settings import EncoderSettings

    for size in sizes:
        EncoderSettings(truncate_dim=size).fit_dim(dim)


def _system(encoder: "SearchR3Encoder", label: str | None, given: "GivenFile | None" = None) -> System:
    settings = encoder.settings
    if encoder.mode == "direct":
        # Budget, temperature and seed change nothing here: two direct runs that differ only in them are one system.
        settings = {key: value for key, value in settings.items() if key not in SAMPLING}
    elif given is not None:  # nothing is sampled
        settings = {key: value for key, value in settings.items() if key not in SAMPLING[1:]}
        settings |= {"mode": GIVEN, "reasoning": given.digest}
    size = "" if encoder.truncate_dim is None else f"-{encoder.truncate_dim}d"
    run_by = arithmetic(encoder.engine, reasons=encoder.mode == "reason")
    found = System(
        label=(label or short_name(encoder.name)) + size,
        mode=encoder.mode,
        model=RecordedEncoder(encoder, encoder.mteb_model_meta),
        fingerprint=fingerprint_of({"checkpoint": encoder.checkpoint.fingerprint(), **settings, **run_by}),
        seed=int(encoder.settings["seed"]),
        settings=settings,
    )
    return found if given is None else _reading(found, given)


def _unsure(search: AbstainingSearch, label: str | None) -> System:
    """The same encoder where a query reasons only if its direct ranking is unsure."""
    found = _system(search.encoder, label)
    settings = {**found.settings, "mode": UNSURE, "abstain_margin": float(search.abstain_margin)}
    parts = {"checkpoint": search.encoder.checkpoint.fingerprint(), **settings, **arithmetic(search.encoder.engine)}
    fingerprint = fingerprint_of(parts)
    model = RecordedSearch(search, search.mteb_model_meta)
    return replace(found, mode=UNSURE, model=model, fingerprint=fingerprint, settings=settings)


def _reading(system: System, given: "GivenFile") -> System:
    """The same system in mode "given"; its fingerprint holds the reasonings, and so does MTEB's identity of it."""
    meta = system.model.mteb_model_meta
    experiment = {**(meta.experiment_kwargs or {}), "mode": GIVEN, "reasoning": given.digest[:16]}
    meta = meta.model_copy(update={"experiment_kwargs": experiment})
    encoder = cast("RecordedEncoder", system.model).encoder
    settings = {**system.settings, "mode": GIVEN, "reasoning": given.digest, "reasoning_file": given.name}
    return replace(system, mode=GIVEN, model=RecordedEncoder(encoder, meta, given), settings=settings)


def _expansion(encoder: "WriterEncoder", label: str | None, given: "GivenFile | None") -> System:
    """A writer with an encoder; one that looks at the corpus is a search model for MTEB."""
    record = RecordedSearch if encoder.method.needs_corpus else RecordedEncoder
    found = System(
        label=label or encoder.name,
        mode=encoder.mode,
        model=record(encoder, encoder.mteb_model_meta),
        fingerprint=encoder.fingerprint,
        seed=int(encoder.settings.get("seed", 0)),
        settings=encoder.settings,
        encoder_fingerprint=_alone(encoder.encoder),
    )
    if given is None or encoder.method.needs_corpus:
        return found
    return _reading(replace(found, fingerprint=fingerprint_of({"is": found.fingerprint, "reads": given.digest})), given)


def _alone(encoder: "BesideWriter") -> str:
    """The fingerprint of the system that this encoder is by itself."""
    ours = getattr(encoder, "encoder", None)
    return encoder.fingerprint if ours is None else _system(ours, None).fingerprint


def _sentence_transformer(path: str | Path, label: str | None, mode: ModeChoice, settings: Mapping[str, Any]) -> System:
    """A sentence-transformers model, run by MTEB's own wrapper; an export of ours reasons there too.

    MTEB gives every local folder the same identity, so that a second checkpoint would get the first one's scores (mteb
    2.26, model_meta.py); name and revision from the folder's content prevent that. Weights come from safetensors only.
    """
    from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper

    from search_r3_mteb.encoder.identity import name_for_mteb
    from search_r3_mteb.encoder.model_names import display_name
    from search_r3_mteb.expansion.encoders import open_sentence_transformer

    chosen = {name: settings[name] for name in SHARED if name in settings}
    folder, model, exported, fingerprint = open_sentence_transformer(path, **chosen)
    if exported and mode == "direct":
        raise ValueError(
            f"mode='direct': {folder.name} is an export, which always reasons about queries. Evaluate the checkpoint "
            "that it was exported from."
        )
    name = label or short_name(name_for_mteb(display_name(str(path), folder)))
    with warnings.catch_warnings():
        # mteb 2.26 calls sentence-transformers' method by its old name.
        warnings.filterwarnings("ignore", "The `get_sentence_embedding_dimension` method", FutureWarning)
        wrapped = SentenceTransformerEncoderWrapper(model)
    # A library's first call sets up what later ones use: it is not counted, as it is not for ours, which are probed.
    try:
        model.encode_document(["a"], show_progress_bar=False)
    except Exception as error:  # libraries raise errors of their own for what a folder's files say
        raise ValueError(
            f"{folder.name}: sentence-transformers {version('sentence-transformers')} loads this folder and cannot "
            f"embed with it: {type(error).__name__}: {error}. {built_from(folder, deciding_files(folder))}"
        ) from error
    meta = wrapped.mteb_model_meta.model_copy(
        update={
            "name": name if "/" in name else f"local/{name}",
            "revision": fingerprint[:16],
            "experiment_kwargs": {"fingerprint": fingerprint[:16]},
        }
    )
    wrapped.mteb_model_meta = meta
    return System(name, "reason" if exported else "direct", RecordedEncoder(wrapped, meta), fingerprint)


def _bm25(label: str) -> System:
    """MTEB's own BM25 baseline (bm25s): stemmed, with stop words of the task's language."""
    import mteb

    model = mteb.get_model(_BM25_IN_MTEB)
    meta = model.mteb_model_meta
    fingerprint = fingerprint_of({"name": meta.name, "revision": meta.revision, "bm25s": version("bm25s")})
    return System(label, "direct", RecordedSearch(model, meta), fingerprint)


def _own_baseline(baseline: OwnBaseline, label: str | None) -> System:
    """A baseline that another package brings."""
    model, fingerprint = baseline.open()
    searches = hasattr(model, "index") and hasattr(model, "search")
    record = (RecordedSearch if searches else RecordedEncoder)(model, model.mteb_model_meta)
    return System(label or baseline.label, "direct", record, fingerprint)


def short_name(name: str) -> str:
    """A model's name without the organisation that MTEB's form needs but no hub knows."""
    from search_r3_mteb.encoder.model_names import BUNDLED_PREFIX

    return name.removeprefix(BUNDLED_PREFIX).removeprefix("local/")
