"""What a column of training rows holds, by its name, in the formats of several tools (listed in train/formats).

Ours, FlagEmbedding, sentence-transformers, Tevatron and DPR.
"""

import re
from typing import Literal, TypeAlias

ColumnRole: TypeAlias = Literal["query", "positive", "negative"]
QUERY_COLUMNS = ("query", "anchor", "question", "query_text")
_TEXTS = r"(_(passages?|docs?|documents?|ctxs?|contexts?|texts?))?(_(?P<number>\d+))?"
_POSITIVES = re.compile(rf"answer|(positives?|pos){_TEXTS}")
_NEGATIVES = re.compile(rf"(hard_?)?(negatives?|negs?){_TEXTS}")
ID_COLUMNS = re.compile(
    r"(qid|pid|(query|positive|pos|(hard_)?negative|(hard_)?neg|passage|document|doc|corpus)[_-]p?ids?)(_\d+)?"
)
_LISTED_IDS = re.compile(r"(positive|negative)_document_ids")  # Tevatron's


def role_of(name: str) -> ColumnRole | None:
    """What a column of texts with this name holds in the formats that are known; None for any other name."""
    if name in QUERY_COLUMNS:
        return "query"
    if _POSITIVES.fullmatch(name):
        return "positive"
    return "negative" if _NEGATIVES.fullmatch(name) else None


def role_of_ids(name: str) -> ColumnRole | None:
    """Whose ids a column with this name holds; a document of which no more is said counts as a positive."""
    if not (ID_COLUMNS.fullmatch(name) or _LISTED_IDS.fullmatch(name)):
        return None
    if name.startswith("q"):
        return "query"
    return "negative" if "neg" in name else "positive"
