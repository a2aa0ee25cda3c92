"""Records of other tools' formats: which column is what, by the names of the columns.

| format | columns | read as |
|---|---|---|
| ours | query, positive, negatives or negative, negative_1 .. negative_n | as it is |
| FlagEmbedding | query, pos [text], neg [text] | all of pos, all of neg |
| sentence-transformers | anchor, query or question; positive or answer; negative, negatives, negative_n | the same |
| Tevatron | query_id, query, positive_passages, negative_passages [{docid, title, text}] | with ids and titles |
| DPR | question, positive_ctxs, hard_negative_ctxs, negative_ctxs [{title, text}] | with titles |

Scores of teachers (`pos_scores`, `neg_scores`, and `score` or `label` beside negatives) are not read: no loss here uses
them. A `label` of 1 beside a pair says that it is one; any other `label` or `score` says that the text may not be
relevant, and the record is refused. What holds ids or tokens instead of texts, pairs of equals (sentence1, sentence2)
and prompts of single rows are refused with what to do.

Only where `columns` is left as it is: columns that are named are read as they are named.

Sources: FlagEmbedding's data format (its examples/finetune/embedder README), sentence-transformers' dataset overview
and `mine_hard_negatives`, Tevatron's README ("training data"), DPR's README ("retriever input data format").
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from train.config.data import ColumnSettings

KNOWN = "FlagEmbedding, sentence-transformers, Tevatron and DPR"
_QUERIES = ("query", "anchor", "question")
_POSITIVES = ("positive", "answer")
_NUMBERED = re.compile(r"negative_(\d+)")
_JUDGED = ("label", "labels", "score", "scores")
_EQUALS = (("sentence1", "sentence2"), ("premise", "hypothesis"), ("text1", "text2"), ("sentence_A", "sentence_B"))


class FormatError(ValueError):
    """Why rows of a known format cannot be trained on, and what to do; without a full stop."""


def columns_of(columns: ColumnSettings, record: Mapping[str, Any]) -> ColumnSettings:
    """The columns of a record: `columns` where the user has named any, else those of the format that it has.

    Raises FormatError for a record whose format is known and cannot be trained on. A record of no known format gets
    `columns`.
    """
    if columns != ColumnSettings():
        return columns
    keys = {key for key, value in record.items() if value is not None}
    _refuse_without_texts(keys, record)
    if "positive_passages" in keys and "positive" not in keys:
        return _columns("query", "positive_passages", ("negative_passages",))
    if "positive_ctxs" in keys:
        return _columns("question", "positive_ctxs", ("hard_negative_ctxs", "negative_ctxs"))
    if "pos" in keys and "positive" not in keys:
        if record.get("prompt"):
            raise FormatError(
                "FlagEmbedding's 'prompt' is an instruction for this query alone, and queries here have one prompt, "
                "the profile's. Write it into 'query' where the model is to read it; to leave it out, name "
                'the columns: columns = { query = "query", positive = "pos", negatives = ["neg"] }'
            )
        return _columns("query", "pos", ("neg",))
    return _by_names(columns, keys, record)


@lru_cache(maxsize=64)
def _columns(query: str, positive: str, negatives: tuple[str, ...]) -> ColumnSettings:
    return ColumnSettings(query=query, positive=positive, negatives=negatives)


def _by_names(columns: ColumnSettings, keys: set[str], record: Mapping[str, Any]) -> ColumnSettings:
    queries, positives = ([name for name in names if name in keys] for names in (_QUERIES, _POSITIVES))
    if not queries or not positives:
        return columns
    if "query" in keys and "positive" in keys:  # ours, whatever else the record holds
        queries, positives = ["query"], ["positive"]
    if len(queries) > 1 or len(positives) > 1:
        raise FormatError(
            f"{' and '.join(map(repr, queries))} may be the query, {' and '.join(map(repr, positives))} the positive. "
            'Say which is which: columns = { query = "...", positive = "...", negatives = ["..."] }'
        )
    numbered = sorted((int(found[1]), found[0]) for key in keys if (found := _NUMBERED.fullmatch(key)))
    negatives = (*columns.negatives, *(name for _, name in numbered))
    if not keys & set(negatives):
        _refuse_unless_relevant(keys, record)
    return _columns(queries[0], positives[0], negatives)


def _refuse_unless_relevant(keys: set[str], record: Mapping[str, Any]) -> None:
    for name in _JUDGED:
        if name not in keys or (name == "label" and record[name] == 1):
            continue
        raise FormatError(
            f"{name!r} is {record[name]!r:.60}, so this is a pair with a judgement, which may say that it is no pair. "
            "Keep the rows whose text is relevant and leave that column out of the file"
        )


def _refuse_without_texts(keys: set[str], record: Mapping[str, Any]) -> None:
    """Formats with ids, tokens or no query."""
    if {"positive_document_ids", "negative_document_ids"} & keys:
        raise FormatError(
            "this is Tevatron's format with document ids, whose texts are in another file. Join them into "
            "positive_passages and negative_passages, or write a BEIR folder (corpus.jsonl, queries.jsonl, qrels/) and "
            'set kind = "beir"'
        )
    if "positives" in keys and isinstance(record.get("query"), list):
        raise FormatError(
            "this is Tevatron's format of tokenised texts, and the tokens are another model's. Use the file with the "
            "texts (query, positive_passages, negative_passages)"
        )
    if "qid" in keys and {"pos", "neg", "pid", "positive_pids"} & keys and not set(_QUERIES) & keys:
        raise FormatError(
            "this is MS MARCO's format with the ids of queries and passages, whose texts are in other files. "
            f"{MS_MARCO}, or join the texts into 'query', 'positive' and 'negatives'"
        )
    if {"query-id", "corpus-id"} <= keys:
        raise FormatError(
            "these are the judgements of a BEIR set, without its texts. Put corpus.jsonl, queries.jsonl and "
            'qrels/SPLIT.tsv into one folder and set kind = "beir"; `python -m train.prepare --list` names sets that '
            "it makes so"
        )
    for pair in _EQUALS:
        if set(pair) <= keys:
            raise FormatError(
                f"{pair[0]!r} and {pair[1]!r} are two texts of one kind, and a score or label says how they relate: "
                "neither is a query that the other answers. Keep the pairs that mean the same, and name the columns: "
                f'columns = {{ query = "{pair[0]}", positive = "{pair[1]}" }}'
            )


MS_MARCO = (
    "`python -m train.prepare msmarco` makes a BEIR folder with the same queries, passages, judgements and ids, and "
    "`python -m train.prepare msmarco-triplets` rows with hard negatives"
)
