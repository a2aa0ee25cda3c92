"""Model cards of trained checkpoints: data, losses, configuration, results, licence, limits.

huggingface_hub's card classes write the header with its model index. sentence-transformers' template is not used: it
describes a model by the trainer of that library, and its usage section would load ours without the reasoning. The facts
also stand in `model_card.json`.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from search_r3_mteb.atomic import write_json, write_text
from search_r3_mteb.extras import how_to_install
from search_r3_mteb.json_files import read_object
from search_r3_mteb.report.number_text import count, score, span
from search_r3_mteb.report.records import Evidence
from search_r3_mteb.report.run_file import RunFile
from search_r3_mteb.report.training_logs import read_log

LIMITATIONS = (
    "It was trained with the prompts of its profile (search_r3.json); with other prompts it may not emit the embed "
    "token. The encoder then appends the token and counts the query as forced.",
    "Texts longer than the trained length are cut; the authors report weak results on long texts.",
    "Reasoning costs generated tokens for every query; direct embedding of queries (mode=\"direct\") costs none.",
    "The reasoning is a means of retrieval. It may state falsehoods and is not an explanation of the ranking.",
)  # fmt: skip
CARD_FACTS = "model_card.json"
EARLIER = "In an earlier stage."


@dataclass(frozen=True)
class DataSource:
    """One source of training data. `licence` None is shown as not recorded."""

    name: str
    rows: int | None = None
    weight: float | None = None
    licence: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Facts:
    """What a card says. `results` are rows of summary.json, or evaluate events of a training log."""

    name: str
    license: str
    stage: str  # "sft", "rl", or what else made the weights
    base_model: str | None = None
    language: str = "en"
    data: tuple[DataSource, ...] = ()
    losses: tuple[str, ...] = ()
    config: str = ""
    results: tuple[Mapping[str, Any], ...] = ()
    limits: tuple[str, ...] = LIMITATIONS
    max_reasoning_tokens: int | None = None
    training: tuple[tuple[str, str], ...] = ()  # what else is known: steps, seed, commit, command


def write_model_card(folder: Path, facts: Facts, called: str | None = None) -> Path:
    """Write README.md and model_card.json into `folder` and return the path of the card.

    `called` is what the example gives to `SearchR3Encoder`; by default the folder's name. Raises FileNotFoundError
    where the folder does not exist and ValueError for facts without name, licence or stage.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder: save the checkpoint first, then write its card.")
    for key in ("name", "license", "stage"):
        if not str(getattr(facts, key)).strip():
            raise ValueError(f"a model card needs a {key}, got {getattr(facts, key)!r}.")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        autoescape=False,  # Markdown
    )
    text = environment.get_template("model_card.md.j2").render(
        facts=facts,
        folder=called or folder.name,
        card_data=_metadata(facts),
        opening=opening_of(facts),
        install=how_to_install(),
        result_rows=[_result_cells(row) for row in facts.results],
        result_note=_result_note(facts.results),
        training=[("Stage", facts.stage), *facts.training],
    )
    path = folder / "README.md"
    write_text(path, text.rstrip() + "\n")
    write_json(folder / CARD_FACTS, json.loads(json.dumps(asdict(facts), allow_nan=False)))
    return path


def facts_of_run(
    run: Path,
    *,
    name: str,
    license: str,
    licences: Mapping[str, str] | None = None,
    results: Sequence[Mapping[str, Any]] = (),
) -> Facts:
    """The facts that a training run's folder holds: config.toml and log.jsonl.

    `licences` maps the name of a data source to its licence; generated data need none. `results` are rows of
    summary.json; without them the last evaluation of the log is taken. Raises FileNotFoundError without config.toml.
    """
    path = run / "config.toml"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: {run} is not a training run, or it stopped before its first step.")
    text = path.read_text(encoding="utf-8")
    try:
        config = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ValueError(
            f"{path} is not TOML: {error}. Restore the configuration that the run was started with."
        ) from error
    log_file = RunFile(run / "log.jsonl", Evidence())
    log = read_log(log_file) if log_file.path.exists() else None
    last = log.evaluations[-1]["step"] if log and log.evaluations else None
    logged = [row for row in log.evaluations if row["step"] == last] if log else []
    seed = config.get("optimization", {}).get("seed")
    training = [("Optimizer steps", str(log.steps[-1]["step"]))] if log and log.steps else []
    training += [("Seed", str(seed))] if seed is not None else []
    return Facts(
        name=name,
        license=license,
        stage="rl" if "policy" in config or (log is not None and log.kind == "rl") else "sft",
        base_model=_base_name(config.get("model", {}).get("path")),
        data=tuple(_sources(config, licences or {})),
        losses=tuple(_losses(config)),
        config=text,
        results=tuple(dict(row) for row in results) or tuple({**row, "split": "dev", "seed": seed} for row in logged),
        max_reasoning_tokens=config.get("evaluate", {}).get("max_reasoning_tokens"),
        training=tuple(training),
    )


def _metadata(facts: Facts) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="Retrieval",
            dataset_type=_task(row),
            dataset_name=_task(row),
            # The model index joins results of one data set and configuration: here modes and hops are configurations.
            dataset_config=", ".join([str(row.get("mode", "direct")), *_hops(row)]),
            dataset_split=str(row.get("split", "test")),
            metric_type=metric,
            metric_value=round(float(row[metric]), 5),
        )
        for row in facts.results
        for metric in ("ndcg_at_10", "recall_at_10")
        if row.get(metric) is not None
    ]
    data = ModelCardData(
        language=facts.language,
        license=facts.license.lower(),
        library_name="search-r3-mteb",
        pipeline_tag="sentence-similarity",
        tags=["search-r3", "reasoning", "retrieval"],
        base_model=facts.base_model if facts.base_model and "/" in facts.base_model else None,  # a hub id, not a folder
        datasets=None,
        model_name=facts.name if results else None,
        eval_results=results or None,
    )
    return str(data.to_yaml(line_break="\n"))


def opening_of(facts: Facts) -> str:
    """The card's first paragraph: what a Search-R3 model is, and what this one was trained from."""
    made = f"trained from {facts.base_model}" if facts.base_model else "trained from random weights"
    return (
        f"A Search-R3 model, {made}: a causal language model that reasons about a query in text and then emits "
        "one special token, whose last hidden state is the query's embedding. Documents are embedded directly."
    )


def _result_cells(row: Mapping[str, Any]) -> list[str]:
    low, high = row.get("interval") or (None, None)
    dim = [] if row.get("dim") is None else [f"{row['dim']} dimensions"]
    task = ", ".join([_task(row), *_hops(row), *dim])
    tokens = row.get("reasoning_tokens_per_query", row.get("reasoning_tokens"))
    seed = "–" if row.get("seed") is None else str(row["seed"])
    cells = [task, str(row.get("split", "test")), str(row.get("mode", "–")), score(row.get("ndcg_at_10"))]
    cells += [span(low, high), score(row.get("recall_at_10")), count(tokens, 1), count(row.get("queries")), seed]
    return [cell.replace("|", "\\|").replace("\n", " ") for cell in cells]


def _task(row: Mapping[str, Any]) -> str:
    return str(row.get("task") or "held-out queries")


def _hops(row: Mapping[str, Any]) -> list[str]:
    hops = row.get("hops")
    return [] if hops is None else [f"{hops} hop{'s' * (hops != 1)}"]


def _result_note(results: Sequence[Mapping[str, Any]]) -> str:
    if any(row.get("interval") is None for row in results):
        return "A dash: measured while training on held-out queries, without per-query results."
    commits = {str(row["commit"])[:12] for row in results if row.get("commit")}
    return f"Commit {', '.join(sorted(commits))}." if commits else ""


def _base_name(path: str | None) -> str | None:
    """A hub id as it is, a folder by its last part: a card does not name paths of the machine it was made on."""
    if path is None or (path.count("/") == 1 and not Path(path).exists() and not path.startswith((".", "/"))):
        return path
    return Path(path).name


def _sources(config: Mapping[str, Any], licences: Mapping[str, str]) -> Iterator[DataSource]:
    """What a run was trained on: its own data, and those of the other stage that it replayed."""
    for item in config.get("data", {}).get("sources", []):
        yield _source(item, licences)
    for item in config.get("replay", {}).get("sources", []):
        source = _source(item, licences)
        yield replace(source, note=f"{source.note} Replayed in this stage.".strip())
    yield from _earlier_sources(config.get("model", {}).get("path"), licences)


def _earlier_sources(start: str | None, licences: Mapping[str, str]) -> Iterator[DataSource]:
    """What the checkpoint that a run began with was trained on, by its own card; nothing where it has none of ours."""
    card = None if start is None else Path(start, CARD_FACTS)
    if card is None or not card.is_file():
        return
    for item in read_object(card).get("data", []):
        if not (isinstance(item, dict) and set(item) == set(DataSource.__dataclass_fields__)):
            return  # another tool's file of that name
        source = DataSource(**item)
        note = source.note if source.note.endswith(EARLIER) else f"{source.note} {EARLIER}".strip()
        yield replace(source, licence=source.licence or licences.get(source.name), note=note)


def _source(item: Mapping[str, Any], licences: Mapping[str, str]) -> DataSource:
    name = item.get("name") or (str(item.get("path", "")).rstrip("/").rsplit("/", 1)[-1]) or str(item.get("kind"))
    generated = item.get("kind") == "hopworld"
    hops = item.get("hops", [])
    chains = f"chains of {' and '.join(map(str, hops))} hop{'s' * (hops != [1])}"
    note = f"Generated: {chains}." if generated else ""
    licence = licences.get(name) or ("Apache-2.0 (generated by this project)" if generated else None)
    return DataSource(name, None, item.get("weight"), licence, note)


def _losses(config: Mapping[str, Any]) -> list[str]:
    """The losses and rewards whose weight is not 0, with their weights, in the order of the configuration."""
    found = _supervised(config.get("loss", {}))
    for section, title in (
        ("policy", "policy gradient (GRPO)"),
        ("reward", "reward"),
        ("contrastive", "contrastive term"),
    ):
        values = config.get(section)
        if isinstance(values, Mapping) and values.get("weight", 1):
            numbers = ", ".join(f"{k} {v}" for k, v in values.items() if isinstance(v, int | float | str) and v != 0)
            found.append(f"{title}: {numbers}")
    replay = config.get("replay", {})
    if replay.get("rows_per_step"):
        losses = "; ".join(_supervised(replay["loss"]))
        found.append(f"stage 1 replayed on {replay['rows_per_step']} rows per step: {losses}")
    return found


def _supervised(loss: Mapping[str, Any]) -> list[str]:
    """Stage 1's losses with their weights."""
    words = {
        "reply": "cross-entropy on the reply and the embed token",
        "kl": f"KL divergence to the frozen base ({loss.get('kl_direction', 'reverse')})",
        "infonce": f"InfoNCE over cosine, temperature {loss.get('temperature')}",
        "triplet": f"triplet margin loss, margin {loss.get('margin')}",
        "reading": "cross-entropy on the documents' own text",
        "distill": f"cosine and similarities to the vectors of {loss.get('teacher')}",
    }
    return [f"{text}; weight {loss[key]:g}" for key, text in words.items() if loss.get(key)]
