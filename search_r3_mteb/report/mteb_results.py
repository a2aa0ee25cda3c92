"""MTEB's own files: result JSON (`results/ORG__MODEL/REVISION[/experiments/...]/Task.json`) and prediction files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from search_r3_mteb.evaluation.queries import best
from search_r3_mteb.json_files import read_json
from search_r3_mteb.report.records import EvaluationRecord, QueryOutcome, mean
from search_r3_mteb.report.run_file import RunFile

_MODE = re.compile(r"(?:^|_)mode_(reason|direct|given|if-unsure)(?:_|$)")
_BUDGET = re.compile(r"(?:^|_)max_reasoning_tokens_(\d+)(?:_|$)")


def read_result(file: RunFile) -> list[EvaluationRecord]:
    """One evaluation for each split and subset of an MTEB result file, none for any other file."""
    data = file.json()
    if data is None:
        return []
    if not isinstance(data, dict) or "scores" not in data or "task_name" not in data:
        file.note("is not an MTEB result file (no task_name and scores): left out.")
        return []
    scores = data["scores"]
    if not isinstance(scores, dict) or not scores:
        file.error(f"holds no scores for {data['task_name']}: left out.")
        return []
    identity = _identity(file.path)
    found = []
    for split, entries in scores.items():
        for entry in entries if isinstance(entries, list) else []:
            if not isinstance(entry, dict):
                continue
            ndcg = file.number(entry, "ndcg_at_10")
            if ndcg is None:
                file.warn(f"split {split} has no ndcg_at_10 (not a retrieval task?): left out.")
                continue
            found.append(
                EvaluationRecord(
                    task=str(data["task_name"]),
                    source=file.where,
                    origin="mteb",
                    split=str(split),
                    subset=_subset(entry.get("hf_subset")),
                    ndcg_at_10=ndcg,
                    recall_at_10=file.number(entry, "recall_at_10"),
                    seconds=file.number(data, "evaluation_time"),
                    dataset_revision=str(data["dataset_revision"]) if data.get("dataset_revision") else None,
                    **identity,
                )
            )
    return found


def read_predictions(file: RunFile) -> list[EvaluationRecord]:
    """The rankings of an MTEB prediction file, ten documents per query, without quality: `judge` adds it."""
    data = file.json()
    if data is None:
        return []
    if not isinstance(data, dict):
        file.error("is not an MTEB prediction file (no object at the top): left out.")
        return []
    path = file.path
    meta = data.get("mteb_model_meta")
    named = str(meta.get("model_name")) if isinstance(meta, dict) and meta.get("model_name") else path.parent.name
    mode = path.parent.name if path.parent.name in ("reason", "direct", "given", "if-unsure") else "direct"
    task = path.name.removesuffix("_predictions.json")
    _, mark = split_mark(path.parent.parent.name)
    found = []
    for subset, splits in data.items():
        if subset == "mteb_model_meta" or not isinstance(splits, dict):
            continue
        for split, rankings in splits.items():
            outcomes, broken = _rankings(rankings)
            if broken:
                file.warn(f"{broken} queries of {subset}/{split} hold no ranking: left out.")
            if outcomes:
                found.append(
                    EvaluationRecord(
                        task=task,
                        model=named,
                        mode=mode,
                        source=file.where,
                        origin="predictions",
                        mark=mark,
                        split=str(split),
                        subset=_subset(subset),
                        queries=len(outcomes),
                        outcomes=outcomes,
                    )
                )
    return found


def split_mark(model: str) -> tuple[str, str]:
    """Name and mark of a model: ("nano", "1a2b3c4d") for `nano@1a2b3c4d`, and an empty mark without `@`.

    A second budget of one model is a point on that model's line, so it must have the model's name. Two checkpoints of
    one name come out as one model evaluated twice, and `repeats` tells them apart by this mark.
    """
    found = re.fullmatch(r"(.+)@([0-9a-f]{8})", model)
    return (found.group(1), found.group(2)) if found else (model, "")


def judge(outcomes: Mapping[str, QueryOutcome], judgements: Mapping[str, QueryOutcome]) -> dict[str, QueryOutcome]:
    """Rankings with nDCG@10 and recall@10 by pytrec_eval, from the judgements that another run of the task holds.

    Queries without judgements keep None: they cannot be scored.
    """
    import pytrec_eval

    qrels = {
        key: {document: int(relevance) for document, relevance in judgements[key].judged}
        for key in outcomes
        if key in judgements and judgements[key].judged
    }
    run = {key: {document: score or 0.0 for document, score in outcomes[key].top} for key in qrels}
    scores = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "recall.10"}).evaluate(run) if qrels else {}
    judged = {}
    for key, outcome in outcomes.items():
        known = judgements.get(key)
        judged[key] = QueryOutcome(
            query_id=key,
            text=known.text if known else "",
            ndcg_at_10=scores[key]["ndcg_cut_10"] if key in scores else None,
            recall_at_10=scores[key]["recall_10"] if key in scores else None,
            hops=known.hops if known else None,
            top=outcome.top,
            judged=known.judged if known else (),
        )
    return judged


def means(outcomes: Mapping[str, QueryOutcome]) -> dict[str, Any]:
    """The fields of an evaluation that its queries give."""
    tokens = mean(item.reasoning_tokens for item in outcomes.values())
    flags = [item.finished for item in outcomes.values() if item.finished is not None]
    return {
        "ndcg_at_10": mean(item.ndcg_at_10 for item in outcomes.values()),
        "recall_at_10": mean(item.recall_at_10 for item in outcomes.values()),
        "queries": len(outcomes),
        "reasoning_tokens_per_query": tokens,
        "forced_share": 1 - sum(flags) / len(flags) if flags else None,
    }


def _subset(name: Any) -> str | None:
    """The name of a subset, None for "default": that is what MTEB calls the only subset of a task."""
    return None if name in (None, "default") else str(name)


def _rankings(rankings: Any) -> tuple[dict[str, QueryOutcome], int]:
    outcomes: dict[str, QueryOutcome] = {}
    broken = 0
    for query_id, scores in rankings.items() if isinstance(rankings, dict) else []:
        numbers = isinstance(scores, dict) and all(isinstance(value, int | float) for value in scores.values())
        if not numbers or not scores:
            broken += 1
            continue
        top = tuple((key, float(value)) for key, value in best(scores))
        outcomes[query_id] = QueryOutcome(query_id=query_id, text="", top=top)
    return outcomes, broken


def _identity(path: Path) -> dict[str, Any]:
    """Model, mode, seed and budget from model_meta.json where it is readable, otherwise from the folder names."""
    experiment = path.parent.name if path.parent.parent.name == "experiments" else ""
    folder = path.parent.parent.parent if experiment else path.parent
    model = folder.parent.name.replace("__", "/", 1) or folder.name
    settings: dict[str, Any] = {}
    for candidate in (path.parent / "model_meta.json", folder / "model_meta.json"):
        try:
            meta = read_json(candidate)
        except (OSError, ValueError):
            continue  # the folder names say the same
        if isinstance(meta, dict):
            model = str(meta.get("name") or model)
            kwargs = meta.get("experiment_kwargs")
            settings = kwargs if isinstance(kwargs, dict) else {}
            break
    mode, budget = _MODE.search(experiment), _BUDGET.search(experiment)
    tokens = settings.get("max_reasoning_tokens", int(budget.group(1)) if budget else None)
    seed = settings.get("seed", 0)
    return {
        "model": model,
        "mode": str(settings.get("mode") or (mode.group(1) if mode else "direct")),
        "max_reasoning_tokens": tokens if isinstance(tokens, int) else None,
        "seed": seed if isinstance(seed, int) else 0,
    }
