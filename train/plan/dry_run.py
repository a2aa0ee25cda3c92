"""The dry run: settings, sizes, memory, work and time, and the first rows of the data, before a machine is rented.

It needs the base's config.json alone. What else is there is used: a tokenizer beside it for the lengths of the rows,
and the data. What is not there is named.
"""

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from search_r3_mteb.encoder.backbone import unwrap
from search_r3_mteb.encoder.checkpoints import load_tokenizer
from search_r3_mteb.encoder.initialise import profile_of
from search_r3_mteb.encoder.prompts import Renderer
from search_r3_mteb.tasks.beir_folder import read_relevance
from search_r3_mteb.terminal import visible
from train.config.data import JudgedSetSettings, SourceSettings
from train.config.loading import dump
from train.config.stages import RlConfig, SftConfig
from train.data.beir_source import Unit
from train.data.sources import documents_of, open_source
from train.model import scratch
from train.plan.base import PlannedModel, planned_model
from train.plan.cache_size import MILLION, CacheSize, text_bytes
from train.plan.first_rows import FirstRows, drops_of, read_first, warnings_of
from train.plan.memory import estimate
from train.plan.processor import check_processor
from train.plan.start import check_processes, check_start
from train.plan.work import Lengths, Machine, encoding, longest, peak_of, work_of
from train.public_sets.table import PUBLIC_SETS, ROWS_FILE

# The documents that stage 2 would search, with `ids` and `texts`: train/stage2/corpus.py.
OpenCorpus = Callable[..., Any]

LITTLE_ROOM = 32
"""Tokens for a text below which the start warns. Our choice: a sentence or two."""


@dataclass(frozen=True)
class DryRun:
    """Where the configuration stands, where config.json is if not at model.path, and what would compute."""

    config_file: Path | None = None
    base: str | None = None
    machine: Machine = field(default_factory=Machine)


def describe(config: SftConfig | RlConfig, options: DryRun | None = None, corpus: OpenCorpus | None = None) -> None:
    """Print the resolved settings as TOML and the plan as comments behind it.

    Raises ValueError and FileNotFoundError for what would stop the run at its start, data and base that are not here
    apart: those are listed. `corpus` opens what stage 2 searches.
    """
    options = options or DryRun()
    notes = check_start(config)
    check_processes(config, options.machine.gpus)
    planned = planned_model(config.model, options.config_file, options.base)
    absent = _absent_sources(config)
    first = _first_rows(config, absent)
    missing = [*absent.values(), *_missing_sets(config)]
    renderer = _renderer(config, planned)
    cramped = [] if renderer is None else check_room(renderer)
    lengths = _lengths(config, first, renderer)
    machine = options.machine
    lines = [f"model: {step}" for step in planned.steps] + notes
    lines += estimate(planned.model, config, machine.gpus).lines()
    if isinstance(config, RlConfig):
        documents, texts = _corpus(config, absent, corpus)
        dim = unwrap(planned.model).config.get_text_config().hidden_size
        size = CacheSize.of(config.corpus_cache, documents, dim, config.checkpoint.keep, lengths.document)
        lines += size.lines(texts, bound=not lengths.measured)
        lines += _work(planned.model, config, lengths, machine, documents)
        lines += _on_a_processor(
            config,
            documents,
            dim,
            encoding(planned.model, documents, lengths),
            gpus=machine.gpus,
            assumed=texts is None,
        )
    else:
        lines += _work(planned.model, config, lengths, machine, 0)
    lines += [*(one.line() for one in first), *drops_of(first, config.data)]
    lines += [f"warning: {text}" for text in [*cramped, *warnings_of(first, config)]]
    lines += [f"not here: {text}" for text in missing]
    print(dump(config))
    for line in lines:
        print(visible(f"# {line}"))


def _absent_sources(config: SftConfig | RlConfig) -> dict[SourceSettings, str]:
    """A line for every source that is not on this machine. Where the hub cannot be reached, it is asked once."""
    sources = list(config.data.sources)
    if isinstance(config, RlConfig):
        sources += [*config.data.corpus, *config.replay.sources]
    absent: dict[SourceSettings, str] = {}
    unreachable: str | None = None
    for source in dict.fromkeys(sources):
        if source.kind == "hopworld" or Path(str(source.path)).exists():
            continue
        if source.kind != "hub":
            place = Path(str(source.path)).absolute()
            absent[source] = f"source {source.label}: {source.path} (looked for in {place}){how_to_prepare(place)}"
            continue
        reason, unreachable = (unreachable, unreachable) if unreachable else _hub_failure(source)
        if reason is not None:
            absent[source] = f"source {source.label}: the dataset {source.path} of the hub ({reason})"
    return absent


def how_to_prepare(place: Path) -> str:
    """The command that makes a file or folder, where it is named as a public set's; else nothing."""
    folder = place.parent if place.name == ROWS_FILE else place
    if folder.name not in PUBLIC_SETS:
        return ""
    output = "" if folder.parent == Path("data").absolute() else f" --output {folder.parent}"
    return f"; python -m train.prepare {folder.name}{output} makes it"


def _hub_failure(source: SourceSettings) -> tuple[str | None, str | None]:
    """Why the hub does not give a dataset, None where it does; and the same again where the hub is out of reach."""
    from datasets import load_dataset_builder

    try:
        load_dataset_builder(str(source.path), source.configuration, revision=source.revision)
    except ConnectionError:
        return "no network", "no network"
    except (OSError, ValueError) as error:  # an id or a configuration that the hub lacks
        return (str(error).splitlines() or [type(error).__name__])[0], None
    return None, None


def _first_rows(config: SftConfig | RlConfig, absent: Container[SourceSettings]) -> list[FirstRows]:
    """The first rows of every source that is here."""
    found = []
    stage_two = isinstance(config, RlConfig)
    units: list[tuple[SourceSettings, Unit]] = [(s, "query" if stage_two else "judgement") for s in config.data.sources]
    if isinstance(config, RlConfig):
        units += [(source, "judgement") for source in config.replay.sources]
    for source, unit in units:
        if source not in absent:
            opened = open_source(source, unit=unit, on_bad_row=config.data.on_bad_row)
            found.append(read_first(opened, source, config.data))
    return found


def _missing_sets(config: SftConfig | RlConfig) -> list[str]:
    """A line for every judged set that is not here; the judgements of the others are read."""
    missing = []
    judged: list[JudgedSetSettings] = [*config.data.evaluation, *config.data.decontamination.against]
    for one in judged:
        if one.kind == "hopworld":
            continue
        if not Path(str(one.path)).exists():
            place = Path(str(one.path)).absolute()
            missing.append(f"judged set {one.label}: {one.path} (looked for in {place}){how_to_prepare(place)}")
        else:
            read_relevance(str(one.path), one.split)
    loss = config.replay.loss if isinstance(config, RlConfig) else config.loss
    if loss.teacher is not None and not Path(loss.teacher).exists():
        missing.append(f"teacher {loss.teacher}: not a folder here; the run asks the hub for it")
    return missing


def _renderer(config: SftConfig | RlConfig, planned: PlannedModel) -> Renderer | None:
    """The run's renderer, where its tokenizer is here."""
    from tokenizers import AddedToken

    folder = planned.prompts
    if folder is None:
        tokenizer, profile = scratch.word_tokenizer(), scratch.SCRATCH_PROFILE
    elif not (folder / "tokenizer.json").exists():
        return None
    else:
        tokenizer = load_tokenizer(folder, config.model.trust_remote_code)
        profile = profile_of(folder, tokenizer, planned.profile)
        if profile.embed_token not in tokenizer.get_vocab():
            tokenizer.add_tokens([AddedToken(profile.embed_token, special=True, normalized=False)], special_tokens=True)
    return Renderer(tokenizer, profile, config.data.max_length)


def check_room(renderer: Renderer) -> list[str]:
    """A warning where data.max_length leaves little room for a text in one of the two prompts; ValueError for none."""
    try:
        room = renderer.check_room("direct", "reason")
    except ValueError as error:
        raise ValueError(f"data.{error}") from error
    if room >= LITTLE_ROOM:
        return []
    return [
        f"data.max_length = {renderer.max_length} leaves {room} tokens for the text: the larger prompt takes "
        f"{renderer.max_length - room}. Longer texts are cut there. Raise data.max_length."
    ]


def _lengths(config: SftConfig | RlConfig, first: Sequence[FirstRows], renderer: Renderer | None) -> Lengths:
    """Mean lengths of the first rows, the sources by their weights; the bounds where rows or tokenizer are not here."""
    bound = longest(config)
    own = [one for one in first if one.source in config.data.sources]
    if renderer is None or not own:
        return bound

    def mean(of: Callable[[FirstRows], float]) -> float:
        total = sum(one.source.weight for one in own)
        return sum(one.source.weight / total * of(one) for one in own)

    def rendered(texts: Sequence[str], template: Any) -> float:
        return fmean(len(one.token_ids) for one in renderer.render_batch(texts, template))

    traced = mean(lambda one: fmean(row.reasoning is not None for row in one.rows))
    reply = bound.reply
    if isinstance(config, SftConfig):
        traces = [row.reasoning for one in own for row in one.rows if row.reasoning is not None]
        reply = fmean(map(len, renderer.tokenize_text(traces))) if traces else 0.0
    return Lengths(
        document=mean(lambda one: rendered([row.positive for row in one.rows], "direct")),
        query=mean(lambda one: rendered([row.query for row in one.rows], "reason")),
        reply=reply,
        traced=traced,
        measured=True,
    )


def _corpus(config: RlConfig, absent: Container[SourceSettings], corpus: OpenCorpus | None) -> tuple[int, int | None]:
    """Documents of the searched corpus and the bytes of their texts in a process; a million where it is not here.

    Rows over a corpus that is not their own are looked up in it, as the run does before its first step.
    """
    sources = config.data.corpus or config.data.sources
    if any(source in absent for source in sources):
        return MILLION, None
    pairs: Iterator[tuple[str, str]]
    judged = tuple(
        s for s in config.data.sources if s not in absent and (s.kind != "hub" or Path(str(s.path)).exists())
    )
    if config.data.corpus and judged and corpus is not None:
        rows = {s.label: open_source(s, unit="query", on_bad_row=config.data.on_bad_row) for s in judged}
        opened = corpus(config.data.replaced(sources=judged), _no_count, opened=rows)
        pairs = zip(opened.ids, opened.texts.texts, strict=True)
    elif all(source.kind in ("beir", "hopworld") for source in sources):  # read once, not held
        unique = {(source.kind, source.path, source.documents, source.world_seed): source for source in sources}
        pairs = (pair for source in unique.values() for pair in documents_of(source))
    elif corpus is not None:
        opened = corpus(config.data, _no_count)
        pairs = zip(opened.ids, opened.texts.texts, strict=True)
    else:
        return MILLION, None
    count = held = 0
    for id_, text in pairs:
        count, held = count + 1, held + text_bytes(text, id_)
    return count, held


def _no_count(texts: Sequence[str]) -> list[int]:
    return [1] * len(texts)


def _on_a_processor(
    config: RlConfig, documents: int, dim: int, flops: float, *, gpus: int, assumed: bool
) -> Iterator[str]:
    """What the start would say of the corpus without a GPU in `gpus` processes, where that is slow or refused."""
    estimated = "if the corpus has the assumed size" if assumed else "by this estimate"
    cached, rollouts = config.corpus_cache, config.rollout.prompts_per_step * config.rollout.group_size // gpus
    try:
        said = check_processor(documents, dim, rollouts, cached, torch.get_num_threads(), flops)
    except ValueError as error:
        yield f"without a GPU, {estimated}, this run would be refused at its start: {error}"
    else:
        if said:
            yield f"without a GPU, {estimated}: {said}"


def _work(
    model: Any, config: SftConfig | RlConfig, lengths: Lengths, machine: Machine, documents: int
) -> Iterator[str]:
    """Tokens, operations and hours, in words."""
    work = work_of(model, config, lengths, machine.gpus)
    peak, steps = peak_of(config, model, machine), config.checkpoint.last_step(config.optimization.steps)
    how = "measured on the first rows" if lengths.measured else "at most: every text fills max_length"
    parts = ", ".join(f"{name} {count:,.0f}" for name, count in work.tokens.items() if count)
    yield f"tokens per step over all devices: {parts} ({how})"
    yield (
        f"operations per step: {work.passes / 1e12:,.2f} TFLOP in passes"
        + (f", {work.sampling / 1e12:,.2f} in sampling" if work.sampling else "")
        + f"; {steps:,} steps"
    )
    hours = work.hours(steps, machine, peak)
    once = encoding(model, documents, lengths) / (machine.gpus * peak * 1e12 * machine.utilisation) / 3600
    yield (
        f"time estimate: {_duration(hours)} on {machine.gpus} device{'s' * (machine.gpus > 1)} of {peak:g} TFLOP/s at "
        f"{machine.utilisation:.0%} utilisation"
        + (f" ({machine.decode_utilisation:.1%} in sampling)" if work.sampling else "")
        + (f", and {_duration(once)} to encode {documents:,} documents once" if documents else "")
        + "; evaluation, checkpoints and the processor's work come on top (--gpus, --peak-tflops, --utilisation)"
        + ("" if torch.cuda.is_available() else "; no GPU here: this is the time on the one described")
    )


def _duration(hours: float) -> str:
    """Hours, or the seconds of a short run."""
    return f"{hours:,.2f} hours" if hours >= 0.1 else f"{hours * 3600:,.1f} seconds"
