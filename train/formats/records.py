"""Records of other tools' formats: which column is what, by the names of the columns.

| format | columns | read as |
|---|---|---|
| ours | query, positive, negatives or negative, negative_1 .. negative_n | as it is |
| FlagEmbedding | query, pos [text], neg [text] | all of pos, all of neg |
| sentence-transformers | anchor, query or question; positive or answer; negative, negatives, negative_n | the same |
| Tevatron | query_id, query, positive_passages, negative_passages [{docid, title, text}] | with ids and titles |
| DPR | question, positive_ctxs, hard_negative_ctxs, negative_ctxs [{title, text}] | with titles |

The rule behind the table: no column that some format uses for queries, positives, negatives, labels or scores is passed
over without a word (`column_roles.role_of`). One column of queries and one of positives are read, two of either are
refused; all columns of negatives are read. Scores of teachers are not read, since no loss here uses them: `pos_scores`
and `neg_scores`, and beside one positive and its negatives a `label` or `score` that is a margin, or a list with a
number for each text. A `label` of 1 beside a pair says that it is one; anything else in `label` or `score` says that
the text may not be relevant, and the record is refused. What holds ids or tokens instead of texts, lists of texts with
labels, pairs of equals (sentence1, sentence2) and prompts of single rows are refused with what to do.

Only where `query`, `positive` and `negatives` of `columns` are left as they are: a user who names one of them has said
which column is what, and the record is read so. Other names (reasoning, ids, title) are kept beside the format's.

Sources: FlagEmbedding's data format (its examples/finetune/embedder README), sentence-transformers' dataset overview
and `mine_hard_negatives`, Tevatron's README ("training data"), DPR's README ("retriever input data format").
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from search_r3_mteb.column_roles import ID_COLUMNS, QUERY_COLUMNS, role_of
from train.config.data import ColumnSettings

KNOWN = "FlagEmbedding, sentence-transformers, Tevatron and DPR"
_SCORES = {"pos_scores": "pos", "neg_scores": "neg"}
_JUDGED = ("label", "labels", "score", "scores")
_LISTS = ("docs", "documents", "passages")
_EQUALS = (("sentence1", "sentence2"), ("premise", "hypothesis"), ("text1", "text2"), ("sentence_A", "sentence_B"))
_DEFAULT = (ColumnSettings().query, ColumnSettings().positive, ColumnSettings().negatives)
_SAY_WHICH = 'columns = { query = "...", positive = "...", negatives = ["..."] }'


class FormatError(ValueError):
    """Why rows of a known format cannot be trained on, and what to do; without a full stop."""


def columns_of(columns: ColumnSettings, record: Mapping[str, Any]) -> ColumnSettings:
    """The columns of a record: `columns` where the user has named those of texts, else those of the format it has.

    Raises FormatError for a record whose format is known and cannot be trained on. A record of no known format gets
    `columns`.
    """
    if (columns.query, columns.positive, columns.negatives) != _DEFAULT:
        return columns
    keys = {key for key, value in record.items() if value is not None}
    _refuse_without_texts(keys, record)
    queries, positives, found = (_named(role, keys, record) for role in ("query", "positive", "negative"))
    if not queries or not positives:
        return columns
    if len(queries) > 1 or len(positives) > 1:
        raise FormatError(
            f"{' and '.join(map(repr, queries))} may be the query, {' and '.join(map(repr, positives))} the positive. "
            f"Say which is which: {_SAY_WHICH}"
        )
    if positives == ["pos"] and record.get("prompt"):
        raise FormatError(
            "FlagEmbedding's 'prompt' is an instruction for this query alone, and queries here have one prompt, "
            "the profile's. Write it into 'query' where the model is to read it; to leave it out, name "
            'the columns: columns = { query = "query", positive = "pos", negatives = ["neg"] }'
        )
    negatives = tuple(dict.fromkeys((*(name for name in columns.negatives if name in found), *found)))
    counts = (_count(record[positives[0]]), sum(_count(record[name]) for name in negatives))
    _refuse_judged(keys, record, *counts)
    return _columns(columns, queries[0], positives[0], negatives)


def _named(role: str, keys: set[str], record: Mapping[str, Any]) -> list[str]:
    """The columns of a role by number, then name; of several the empty ones do not count."""
    names = [key for key in keys if role_of(key) == role]
    names.sort(key=lambda name: (int((re.search(r"\d+$", name) or ["0"])[0]), name))
    return [name for name in names if record[name] not in ([], "")] or names[:1]


def _count(value: Any) -> int:
    return len(value) if isinstance(value, list | tuple) else 1


@lru_cache(maxsize=64)
def _columns(columns: ColumnSettings, query: str, positive: str, negatives: tuple[str, ...]) -> ColumnSettings:
    return columns.replaced(query=query, positive=positive, negatives=negatives)


def _refuse_judged(keys: set[str], record: Mapping[str, Any], positives: int, negatives: int) -> None:
    """Judgements that may say that a positive is none; numbers of a teacher for one positive and negatives pass."""
    for name in _JUDGED:
        if name not in keys or (name == "label" and record[name] == 1):
            continue
        if positives == 1 and negatives and _is_a_teachers(record[name], negatives):
            continue
        raise FormatError(
            f"{name!r} is {record[name]!r:.60}, a judgement beside {positives} text{'s' * (positives != 1)} called "
            f"relevant and {negatives} called not: it may say that a text is not relevant. Keep the rows whose texts "
            "are relevant and leave that column out of the file"
        )
    for name, texts in _SCORES.items():
        count = positives if texts == "pos" else negatives
        if record.get(name) and _count(record[name]) != count:
            raise FormatError(
                f"{name!r} holds {_count(record[name])} scores for {count} texts, so texts or scores are missing. "
                "Correct the record or leave the scores out"
            )


def _is_a_teachers(value: Any, negatives: int) -> bool:
    """A margin, or numbers for the negatives, or for the positive and the negatives; none says "not relevant"."""
    if not isinstance(value, list | tuple):
        return isinstance(value, int | float) and value != 0
    numbers = all(isinstance(one, int | float) for one in value)
    if not numbers or len(value) not in (negatives, negatives + 1):
        return False
    labels = all(one in (0, 1) for one in value)
    return not labels or list(value) == [1] + [0] * negatives


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
    if "qid" in keys and {"pos", "neg", "pid", "positive_pids"} & keys and not set(QUERY_COLUMNS) & keys:
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
    rest = {key for key in keys if key not in (*QUERY_COLUMNS, *_JUDGED) and not ID_COLUMNS.fullmatch(key)}
    if not rest and any(ID_COLUMNS.fullmatch(key) for key in keys - {"query_id", "query-id", "qid"}):
        raise FormatError(
            f"{', '.join(map(repr, sorted(keys)))}: these are ids, whose texts are in other files, as in "
            "sentence-transformers' sets of triplets of ids. To name such columns would train on the ids as if they "
            f"were texts. Join the texts into 'query', 'positive' and 'negatives'. For MS MARCO, {MS_MARCO}"
        )
    _refuse_lists(keys, record)
    for pair in _EQUALS:
        if set(pair) <= keys:
            raise FormatError(
                f"{pair[0]!r} and {pair[1]!r} are two texts of one kind, and a score or label says how they relate: "
                "neither is a query that the other answers. Keep the pairs that mean the same, and name the columns: "
                f'columns = {{ query = "{pair[0]}", positive = "{pair[1]}" }}'
            )


def _refuse_lists(keys: set[str], record: Mapping[str, Any]) -> None:
    """Texts of one query in one list, with what is relevant in another."""
    passages = record.get("passages")
    selected = passages if isinstance(passages, list) and passages else [passages]
    if all(isinstance(one, Mapping) and "is_selected" in one for one in selected):
        raise FormatError(
            "this is MS MARCO's layout for question answering: 'passages' holds the texts, and is_selected which of "
            "them somebody used for the answer; 'answers' are not documents. "
            f"{MS_MARCO}; or write the selected texts into 'positive', and leave out the rows that have none. The "
            "others are not judged, so they are not negatives"
        )
    labelled = sorted(keys & set(_LISTS)), sorted(keys & set(_JUDGED))
    if all(labelled) and not any(role_of(key) == "positive" for key in keys):
        texts, labels = labelled[0][0], labelled[1][0]
        raise FormatError(
            f"{texts!r} are texts of which {labels!r} says how relevant each is, as in sentence-transformers' lists "
            f"for rerankers. To name {texts!r} as the positive would train on all of them. Write the relevant ones "
            "into 'positive' and those that are not into 'negatives', and leave out the rows without a relevant one"
        )


MS_MARCO = (
    "`python -m train.prepare msmarco` makes a BEIR folder with the same queries, passages, judgements and ids, and "
    "`python -m train.prepare msmarco-triplets` rows with hard negatives"
)
