"""Settings of the training rows: where they come from, how they are mixed, and what must not be among them."""

from typing import Annotated, Literal

from pydantic import Field

from train.config.settings import Count, CountOrZero, Positive, Seed, Settings, Share, StrictBool

Threshold = Annotated[float, Field(strict=True, gt=0, le=1)]
Hops = Annotated[tuple[Annotated[int, Field(strict=True, ge=1, le=4)], ...], Field(min_length=1)]
"""Chain lengths that hopworld has."""
SourceKind = Literal["beir", "jsonl", "hub", "hopworld"]
_OWN_FIELDS = {  # fields that have a meaning for each kind; any other that is set is a mistake
    "beir": {"path", "split"},
    "jsonl": {"path", "columns"},
    "hub": {"path", "split", "columns", "configuration", "revision"},
    "hopworld": {"documents", "world_seed", "hops", "traces", "continued"},
}


class ColumnSettings(Settings):
    """Which field of a JSONL or hub row is what."""

    query: str = "query"
    """Column of the query's text. Our choice: the name used throughout."""
    positive: str = "positive"
    """Column of the relevant document: text, {title, text}, or a list of either. Our choice: the usual name."""
    positive_title: str | None = None
    """Column of the document's title where it is separate. Our choice: absent."""
    positive_id: str = "positive_id"
    """Column of the document's id, absent in many files. Our choice: the name used throughout."""
    query_id: str = "query_id"
    """Column of the query's id, absent in many files. Our choice: the name used throughout."""
    negatives: tuple[str, ...] = ("negatives", "negative")
    """Columns of hard negatives, each a text, {title, text}, or a list of either. Our choice: both usual names."""
    reasoning: str = "reasoning"
    """Column of the reasoning trace for the cold start. Our choice: the name used throughout."""
    given: str = "given"
    """Column of reasoning that precedes the trace as if it had been said: it is read, not learned. Our choice: the name
    used throughout; absent in most files. A model's own samples stand here, so that its vector learns to read them."""


class SourceSettings(Settings):
    """Training rows from one place."""

    kind: SourceKind
    """beir: a folder with qrels/train.tsv; jsonl: a row per line, .gz too; hub: a datasets id; hopworld: generated."""
    path: str | None = None
    """Folder, file or hub id, relative to the working directory. Our choice: none, hopworld has no file."""
    name: str | None = None
    """Display name in logs and reports. Our choice: absent is the last part of the path."""
    configuration: str | None = None
    """hub: the dataset's configuration, where it has several. Our choice: absent."""
    split: str = "train"
    """Which judgements or rows. Our choice: train; never the split that is evaluated."""
    revision: str | None = None
    """Commit of a hub dataset. Our choice: absent is the newest, pin it for a result that is published."""
    weight: Positive = 1.0
    """Rows of this source per row of a source with weight 1. Our choice: equal shares."""
    columns: ColumnSettings = ColumnSettings()
    """Names of the fields in jsonl and hub rows. Our choice: ours; where query, positive and negatives are left as they
    are, those of FlagEmbedding, sentence-transformers, Tevatron and DPR are known (train/formats/records.py)."""
    decontaminate: tuple[Literal["queries", "documents"], ...] | None = None
    """Judged queries and relevant documents of evaluation sets that rows must not repeat. Our choice: both; only
    queries for beir, whose training and test judgements share one corpus; none for hopworld, whose splits share
    phrasing and no entity."""
    documents: Count = 1000
    """hopworld: number of documents. Our choice: the default world."""
    world_seed: Seed = 0
    """hopworld: seed of the world. Our choice: 0."""
    hops: Hops = (1, 2)
    """hopworld: lengths of the query chains. Our choice: one and two for stage 1, so that three are new in stage 2."""
    traces: StrictBool = True
    """hopworld: rows carry the reasoning trace. Our choice: true for stage 1; stage 2 learns without traces."""
    continued: Share = 0.0
    """hopworld: chance that a row of several hops starts inside its trace: some sentences, perhaps dropped or doubled,
    are given, and what follows is learned. Our choice: 0; nano sets it, since with exactly one sentence per hop a
    model learns to stop by counting instead of reading the query, and stage 2 has no third sentence to reward."""

    def check(self) -> None:
        """Each kind has its own fields."""
        if self.kind == "hopworld" and self.path is not None:
            raise ValueError(
                f'path = "{self.path}" has no meaning for kind = "hopworld": the world is generated. Remove path.'
            )
        if self.kind != "hopworld" and not self.path:
            raise ValueError(f'kind = "{self.kind}" needs path: the folder, file or hub id that holds the rows.')
        every = set().union(*_OWN_FIELDS.values())
        for key in sorted(every - _OWN_FIELDS[self.kind]):
            default = type(self).model_fields[key].default
            if getattr(self, key) != default:
                owners = " or ".join(kind for kind, keys in _OWN_FIELDS.items() if key in keys)
                raise ValueError(f'{key} belongs to kind = {owners}, not to "{self.kind}". Remove {key}.')

    @property
    def label(self) -> str:
        """The name in logs and reports."""
        if self.kind == "hopworld":
            return self.name or f"hopworld-{''.join(map(str, self.hops))}{'-traces' if self.traces else ''}"
        return self.name or str(self.path).rstrip("/").rsplit("/", 1)[-1]


class JudgedSetSettings(Settings):
    """Judged queries that are held out: a BEIR folder, or hopworld."""

    kind: Literal["beir", "hopworld"]
    """beir: a folder; hopworld: generated."""
    path: str | None = None
    """The BEIR folder, relative to the working directory. Our choice: none, hopworld has no folder."""
    name: str | None = None
    """Display name. Our choice: absent is the folder's name."""
    split: str = "dev"
    """Which judgements. Our choice: dev; a checkpoint that was chosen on test has seen the test."""
    documents: Count = 1000
    """hopworld: number of documents. Our choice: the default world."""
    world_seed: Seed = 0
    """hopworld: seed of the world. Our choice: 0."""
    hops: Hops = (1, 2)
    """hopworld: lengths of the query chains. Our choice: one and two, those that stage 1 trains on."""
    ignore_identical_ids: StrictBool = False
    """beir: leave the document with a query's own id out of its ranking, as `beir:FOLDER:ignore_identical_ids` does.
    Our choice: off; on where the queries are documents of the corpus (ArguAna)."""

    def check(self) -> None:
        """A folder for beir, none for hopworld."""
        if (self.kind == "beir") != bool(self.path):
            raise ValueError('path belongs to kind = "beir" (required) and has no meaning for kind = "hopworld".')
        if self.ignore_identical_ids and self.kind != "beir":
            raise ValueError("ignore_identical_ids is for BEIR folders: no query of hopworld is a document. Remove it.")

    @property
    def label(self) -> str:
        """The name in logs and reports."""
        base = self.name or (str(self.path).rstrip("/").rsplit("/", 1)[-1] if self.path else "hopworld")
        return f"{base}/{self.split}"


class DecontaminationSettings(Settings):
    """Removal of training rows that repeat evaluation texts; dropped rows are counted."""

    enabled: StrictBool = True
    """Our choice: on; a score on texts that were trained on means nothing."""
    threshold: Threshold = 0.8
    """Word-shingle Jaccard from which texts are near duplicates. 0.8 as in Lee et al. 2022, arXiv 2107.06499, 4.2."""
    shingle_words: Count = 3
    """Words per shingle. Our choice: 3, since queries are short (Lee et al. use 5 on documents)."""
    against: tuple[JudgedSetSettings, ...] = ()
    """Further evaluation sets beside data.evaluation, typically the test splits. Our choice: none."""
    examples: CountOrZero = 5
    """Dropped rows shown in the report, per source and kind. Our choice: enough to judge the rule by eye."""


class MiningSettings(Settings):
    """Hard negatives mined with the current model through sentence_transformers.util.mine_hard_negatives."""

    count: Count = 4
    """Negatives per row. Our choice: a tenth of the candidates; NV-Retriever (arXiv 2407.15831) advises 10 or less."""
    relative_margin: Share = 0.05
    """Drop candidates scored above 95 % of the positive: probably unjudged positives. NV-Retriever, TopK-PercPos. At 0
    only what scores above the positive itself is dropped."""
    absolute_margin: Share | None = None
    """Drop candidates within this cosine of the positive. Our choice: absent, the relative margin adapts to queries."""
    max_score: Share | None = None
    """Drop candidates above this cosine. Our choice: absent."""
    skip_top: CountOrZero = 0
    """Top ranks that are skipped. Our choice: 0, the margin does it."""
    depth: Count | None = None
    """Ranks looked at per query. Our choice: absent, ten per negative wanted."""
    strategy: Literal["top", "random"] = "top"
    """The hardest that pass, or a seeded draw among them. NV-Retriever's best setting is top."""
    batch_size: Count = 64
    """Texts per encoder call. Our choice; the encoder batches by tokens inside."""


class DataSettings(Settings):
    """Training rows, and the judged queries that are held out."""

    sources: tuple[SourceSettings, ...]
    """Where rows come from; at least one."""
    evaluation: tuple[JudgedSetSettings, ...] = ()
    """Evaluated during the run; their texts are removed from the training rows. Our choice: none unless named."""
    mixing: Literal["rows", "batches"] = "rows"
    """Draw the source per row, or per batch (all in-batch negatives of one kind). Our choice: rows; where the sources'
    texts differ much, they make easy negatives of each other: then set batches."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """A malformed row stops the run with file, line and reason, or is skipped and counted. Our choice: stop."""
    max_length: Count = 512
    """Tokens of a rendered text; the user's text is truncated, never the markers. The encoder's default."""
    hard_negatives: CountOrZero = 0
    """Negatives used per row, at most; another draw in every epoch. Our choice: 0, most files have none."""
    shuffle_rows: Count = 10_000
    """Rows held in memory to shuffle what can only be read in order (.gz, hub). Our choice: some tens of megabytes."""
    decontamination: DecontaminationSettings = DecontaminationSettings()
    """Removal of rows that repeat evaluation texts."""
    mining: MiningSettings | None = None
    """Mine negatives with the starting model before the run. Our choice: absent, mining reads the whole corpus."""

    def check(self) -> None:
        """There is something to train on, every source has its own name, and mined negatives are used."""
        if not self.sources:
            raise ValueError("sources is empty: there is nothing to train on. Add a [[data.sources]] section.")
        labels = [source.label for source in self.sources]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ValueError(
                f"two sources are both called {twice[0]!r}, so their counts would be mixed up. Give each a name = ..."
            )
        if self.mining is not None and any(source.continued for source in self.sources):
            raise ValueError(
                "mining and a source's continued exclude each other: mined rows are written once, with whole traces. "
                "Remove one."
            )
        if self.mining is not None and self.hard_negatives == 0:
            raise ValueError(
                "mining is set but hard_negatives = 0, so what is mined would never be used. Set hard_negatives or "
                "remove [data.mining]."
            )


class RlDataSettings(DataSettings):
    """Prompts with judgements, and the corpus that is searched."""

    corpus: tuple[SourceSettings, ...] = ()
    """Documents that are searched. Our choice: none named, then the corpora of `sources`."""
    direct_rank: tuple[Count, Count] | None = None
    """Train on the queries alone whose best relevant document the starting model's direct vector ranks within these
    two ranks, counted from 1; measured once, over the searched corpus. Our choice: absent, all queries; [2, 100] leaves
    out those that need no reasoning and those that it will hardly help."""

    def check(self) -> None:
        """A searched corpus has document ids, which hub datasets do not; what is mined would not be used."""
        super().check()
        if self.direct_rank is not None and self.direct_rank[0] > self.direct_rank[1]:
            raise ValueError(
                f"direct_rank = {list(self.direct_rank)}: the first rank is above the second, so no query would be "
                "left. Write the better rank first, for example [2, 100]."
            )
        if self.mining is not None:
            raise ValueError(
                "mining belongs to stage 1: in stage 2 the hard negatives come from the corpus cache as it is at each "
                "step (contrastive.hard_negatives), and rows that were mined would never be used. Remove [data.mining]."
            )
        for source in self.corpus:
            if source.kind not in ("beir", "hopworld", "jsonl"):
                raise ValueError(f'corpus: kind = "{source.kind}" has no corpus with ids. Use beir, jsonl or hopworld.')
