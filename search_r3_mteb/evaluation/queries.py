"""Per-query results: reasoning, documents found and their quality, from MTEB's rankings and the task's judgements."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from search_r3_mteb.encoder.documents import join_title

if TYPE_CHECKING:
    from mteb.abstasks.retrieval import AbsTaskRetrieval

    from search_r3_mteb.evaluation.recording import Spoken

DocumentScores: TypeAlias = Mapping[str, Mapping[str, float]]  # {query id: {document id: score}}
CUTOFF = 10
_EXCERPT = 300  # characters of a document in a per-query file


def query_records(
    task: "AbsTaskRetrieval",
    split: str,
    rankings: Mapping[str, DocumentScores],
    thoughts: "Mapping[str, Sequence[Spoken]]",
    *,
    reasoned: bool,
) -> dict[str, list[dict[str, Any]]]:
    """By subset, one record per query: nDCG@10 and recall@10 (pytrec_eval), reasoning, top documents, judged ones.

    `rankings` are MTEB's, by subset. Where a task has several subsets the query ids carry the subset's name. `thoughts`
    are those of `SplitRecord`; where a model `reasoned` but returned no thoughts, tokens are None. The task's data must
    be loaded.
    """
    found = {}
    for subset, ranking in rankings.items():
        prefix = f"{subset}/" if len(rankings) > 1 else ""
        untold = (None, None if reasoned else 0, None)
        data = task.dataset[subset][split]
        count = len(data["queries"])
        spoken = thoughts.get(subset, [untold] * count)
        if len(spoken) != count:
            raise RuntimeError(f"{task.metadata.name}: {len(spoken)} thoughts for {count} queries; please report this.")
        found[subset] = _subset_records(task, data, ranking, spoken, prefix)
    return found


def _subset_records(
    task: "AbsTaskRetrieval",
    data: Any,
    ranking: DocumentScores,
    thoughts: "Sequence[Spoken]",
    prefix: str,
) -> list[dict[str, Any]]:
    judgements = data["relevant_docs"]
    ranking = as_scored(task, ranking)
    scores = score(judgements, ranking)
    tops = {query_id: best(documents) for query_id, documents in ranking.items()}
    wanted = {document for top in tops.values() for document, _ in top}
    wanted.update(document for judged in judgements.values() for document in judged)
    texts = _excerpts(data["corpus"], wanted)
    ids = list(data["queries"]["id"])
    unanswered = [query_id for query_id in ids if query_id not in scores]
    if unanswered:
        raise ValueError(
            f"{task.metadata.name}: the search returned nothing for {len(unanswered)} of {len(ids)} queries, first "
            f"{unanswered[0]!r}; MTEB would leave them out of its mean, and so raise it."
        )
    records = []
    for query_id, text, (reasoning, tokens, finished) in zip(ids, data["queries"]["text"], thoughts, strict=True):
        judged = judgements[query_id]
        record: dict[str, Any] = {
            "query_id": prefix + query_id,
            "query": query_text(text),
            "reasoning": reasoning,
            "reasoning_tokens": tokens,
            "finished": finished,
            "ndcg_at_10": scores[query_id]["ndcg_cut_10"],
            "recall_at_10": scores[query_id]["recall_10"],
        }
        hops = hops_of_query(task, query_id)
        if hops is not None:
            record["hops"] = hops
        record["top"] = [
            {"id": each, "score": value, "relevance": int(judged.get(each, 0)), "text": texts.get(each, "")}
            for each, value in tops[query_id]
        ]
        record["judged"] = [
            {"id": each, "relevance": int(relevance), "text": texts.get(each, "")} for each, relevance in judged.items()
        ]
        records.append(record)
    return records


def score(judgements: Mapping[str, Mapping[str, int]], ranking: DocumentScores) -> dict[str, dict[str, float]]:
    """pytrec_eval's ndcg_cut_10 and recall_10 of every query in `ranking`."""
    import pytrec_eval

    evaluator = pytrec_eval.RelevanceEvaluator(dict(judgements), {f"ndcg_cut.{CUTOFF}", f"recall.{CUTOFF}"})
    found: dict[str, dict[str, float]] = evaluator.evaluate({query: dict(each) for query, each in ranking.items()})
    return found


def hops_of_query(task: "AbsTaskRetrieval", query_id: str) -> int | None:
    """The number of hops of a hopworld query; None for the queries of other tasks."""
    from search_r3_mteb.tasks.hopworld import hops_of
    from search_r3_mteb.tasks.mteb_tasks import HopWorldTask

    return hops_of(query_id) if isinstance(task, HopWorldTask) else None


def as_scored(task: "AbsTaskRetrieval", ranking: DocumentScores) -> DocumentScores:
    """The ranking that MTEB scores: some tasks leave out the query itself, or the first document."""
    if task.ignore_identical_ids:
        ranking = without_identical_ids(ranking)
    if task.skip_first_result:
        # MTEB's own order here: by score alone, ties as they come.
        ranking = {
            q: dict(sorted(documents.items(), key=lambda item: item[1], reverse=True)[1:])
            for q, documents in ranking.items()
        }
    return ranking


def without_identical_ids(ranking: DocumentScores) -> DocumentScores:
    """The ranking without each query's own id: where the queries are documents, the query finds itself first."""
    return {q: {d: value for d, value in documents.items() if d != q} for q, documents in ranking.items()}


def best(documents: Mapping[str, float], most: int = CUTOFF) -> list[tuple[str, float]]:
    """The first `most`, as trec_eval orders them: of equal scores the larger document id first."""
    return sorted(documents.items(), key=lambda item: (item[1], item[0]), reverse=True)[:most]


def _excerpts(corpus: Any, wanted: set[str]) -> dict[str, str]:
    """The beginning of title and text of the wanted documents; only their rows are read."""
    rows = [position for position, document in enumerate(corpus["id"]) if document in wanted]
    texts = {}
    for row in corpus.select(rows):
        texts[row["id"]] = join_title(row.get("title"), row["text"] or "")[:_EXCERPT]
    return texts


def query_text(text: Any) -> str:
    """A query as one text; the turns of a conversation are joined."""
    if isinstance(text, str):
        return text
    return "; ".join(turn if isinstance(turn, str) else f"{turn['role']}: {turn['content']}" for turn in text)
