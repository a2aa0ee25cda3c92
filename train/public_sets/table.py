"""The public sets that the shipped configurations name: repository, revision, layout, and what is made of them.

How sure each layout is, in `Certainty`:

- "mteb": MTEB reads this repository at this revision in this layout. Source: mteb 2.26.24, the tasks' `dataset`
  (`mteb/tasks/retrieval`) and `RetrievalDatasetLoader`: configurations "corpus", "queries" and "default" (or "qrels")
  with the columns "_id" (or "id"), "title", "text", and "query-id", "corpus-id", "score". The splits are those of BEIR
  (Thakur et al., arXiv 2104.08663, table 1, and the folders that `beir` downloads) or of the task.
- "card": the columns are those that the data set's card on the hub describes, read before this table was written and
  not again at a known commit. The newest commit is taken, and its hash is written into the manifest.

A repository that is laid out otherwise is refused with the expected and the found columns; nothing is guessed.

Sources of the sets themselves: MS MARCO (arXiv 1611.09268), HotpotQA (1809.09600), FiQA (Maia et al. 2018), SciFact
(2004.14974), TriviaQA (1705.03551), CodeSearchNet (1909.09436), MIRACL (2210.09984), S2ORC (1911.02782). Licences are
not in this table: they are read from the card of the commit that is fetched.
"""

from dataclasses import dataclass
from typing import Literal

Certainty = Literal["mteb", "card"]
ROWS_FILE = "rows.jsonl"


@dataclass(frozen=True)
class JudgedLayout:
    """Corpus, queries and judgements of BEIR's kind; they become a BEIR folder with every split of the repository."""

    splits: tuple[str, ...]
    """Splits of the judgements that must be there; the repository's other ones are written too."""
    prefix: str = ""
    """Before the configurations' names, in repositories of several languages ("en-")."""

    def configurations(self) -> tuple[str, str, tuple[str, ...]]:
        """Names of the corpus, of the queries, and those that the judgements may have."""
        judgements = (f"{self.prefix}qrels",) if self.prefix else ("default", "qrels")
        return f"{self.prefix}corpus", f"{self.prefix}queries", judgements


@dataclass(frozen=True)
class RowLayout:
    """Pairs or triplets; they become rows.jsonl, one row per run of records with one query where `grouped`."""

    configuration: str
    query: str
    positive: str
    negatives: tuple[str, ...] = ()
    grouped: bool = False
    split: str = "train"

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the repository must have, and no others."""
        return (self.query, self.positive, *self.negatives)


@dataclass(frozen=True)
class PublicSet:
    """One set by the name of its folder."""

    name: str
    repository: str
    layout: JudgedLayout | RowLayout
    certainty: Certainty
    revision: str | None = None
    """Commit; absent is the newest one at the time of the command."""


_SETS = (
    PublicSet(
        "msmarco", "mteb/msmarco", JudgedLayout(("train", "dev")), "mteb", "c5a29a104738b98a9e76336939199e264163d4a0"
    ),
    PublicSet(
        "hotpotqa",
        "mteb/hotpotqa",
        JudgedLayout(("train", "dev", "test")),
        "mteb",
        "ab518f4d6fcca38d87c25209f94beba119d02014",
    ),
    PublicSet(
        "fiqa",
        "mteb/fiqa",
        JudgedLayout(("train", "dev", "test")),
        "mteb",
        "27a168819829fe9bcd655c2df245fb19452e8e06",
    ),
    PublicSet(
        "scifact", "mteb/scifact", JudgedLayout(("train", "test")), "mteb", "d56462d0e63a25450459c4f213e49ffdb866f7f9"
    ),
    PublicSet(
        "miracl-dev",
        "mteb/MIRACLRetrievalHardNegatives",
        JudgedLayout(("dev",), prefix="en-"),
        "mteb",
        "d7d94fa4b946cec4a27c84653aa0cf6b33f74a3c",
    ),
    PublicSet(
        "msmarco-triplets",
        "sentence-transformers/msmarco-bm25",
        RowLayout("triplet", "query", "positive", ("negative",), grouped=True),
        "card",
    ),
    PublicSet(
        "triviaqa",
        "sentence-transformers/trivia-qa-triplet",
        RowLayout("triplet", "anchor", "positive", ("negative",), grouped=True),
        "card",
    ),
    PublicSet(
        "miracl",
        "sentence-transformers/miracl",
        RowLayout("en-triplet", "anchor", "positive", ("negative",), grouped=True),
        "card",
    ),
    PublicSet("codesearchnet", "sentence-transformers/codesearchnet", RowLayout("pair", "comment", "code"), "card"),
    PublicSet("s2orc", "sentence-transformers/s2orc", RowLayout("title-abstract-pair", "title", "abstract"), "card"),
)
PUBLIC_SETS = {one.name: one for one in _SETS}
