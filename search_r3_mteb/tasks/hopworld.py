"""Hopworld, a generated, deterministic multi-hop retrieval task.

Documents state single facts ("Silent River was written by Anna Karel."). A query over k hops nests k relations ("What
is the country of the birthplace of the author of Silent River?"); its one relevant document states the last fact of the
chain, and its trace is the chain's sentences in order: what a model that knows the facts would say before it embeds.

How the world is made (our choice, no published source):

- Facts come in blocks of 500. A block holds its own entities in three *regions* (train 60 %, dev 10 %, test 30 %); a
  fact never leaves its region, and objects come from the same block or the one before. So no entity of a multi-hop dev
  or test query (anchor, bridge or answer) occurs in a multi-hop training query: composing must generalise.
- 1-hop training queries cover every fact of every region, since nothing can be composed from unknown facts. For each
  dev or test fact one of the four phrasings is kept out of training, and its 1-hop query uses that one.
- Worlds are nested: the first n documents are the same in every world of one seed, and dev and test queries come from
  the first 1000 facts only. So a model that knows the default world can be tested on the same queries among 1,000,000
  documents.

The world as an MTEB task is `mteb_tasks.HopWorldTask`.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from search_r3_mteb.tasks import beir_folder
from search_r3_mteb.tasks.hopworld_language import PHRASINGS, RELATIONS, Relation, query_text, template_words
from search_r3_mteb.tasks.hopworld_names import BOOK, CITY, COMPANY, COUNTRY, PERSON, entity_name, name_words

GENERATOR_VERSION = 1  # part of every seed and of the MTEB revision; raise it with any change of the output
DEFAULT_DOCUMENTS = 1000
MIN_DOCUMENTS, MAX_DOCUMENTS = 500, 1_000_000
SPLITS = ("train", "dev", "test")
HOPS = (1, 2, 3, 4)

_BLOCK = 500
_CORE_BLOCKS = 2  # dev and test queries come from these
# Entities of one block by region and kind. With 3 facts per person and 2 per other entity: 300 + 50 + 150 facts.
_BLOCK_ENTITIES: dict[str, dict[str, int]] = {
    "train": {PERSON: 48, BOOK: 30, COMPANY: 18, CITY: 18, COUNTRY: 12},
    "dev": {PERSON: 8, BOOK: 5, COMPANY: 3, CITY: 3, COUNTRY: 2},
    "test": {PERSON: 24, BOOK: 15, COMPANY: 9, CITY: 9, COUNTRY: 6},
}
_QUERIES_PER_BLOCK = {"dev": 50, "test": 150}  # for each of 2, 3 and 4 hops
_QUERIES_PER_POSITIVE = 3  # in one block and hop count: no document may answer many queries, or it could be guessed
_TRAIN_PHRASINGS = 2  # of each multi-hop training chain


@dataclass(frozen=True, slots=True)
class HopQuery:
    """One query; `chain` holds the ids of the documents that state its facts in order, `positive_id` last."""

    id: str
    text: str
    hops: int
    positive_id: str
    chain: tuple[str, ...]
    trace: str  # the chain's sentences, worded as in the documents, joined by spaces
    split: str
    entities: tuple[str, ...]  # names of anchor, bridges and answer: hops + 1


class _Fact(NamedTuple):
    subject: int
    relation: int
    object: int


class HopWorld:
    """A world of `documents` facts (500 to 1,000,000), the same for the same seed on every machine.

    Raises TypeError for sizes or seeds that are not integers, ValueError for a size out of range.
    """

    def __init__(self, documents: int = DEFAULT_DOCUMENTS, seed: int = 0) -> None:
        self.documents = _checked("documents", documents)
        self.seed = _checked("seed", seed)
        if not MIN_DOCUMENTS <= documents <= MAX_DOCUMENTS:
            raise ValueError(
                f"HopWorld: documents must lie between {MIN_DOCUMENTS} and {MAX_DOCUMENTS}, got {documents}: a smaller "
                f"world has too few chains for its splits, a larger one is not what this generator is made for. "
                f"Leave it out for the default of {DEFAULT_DOCUMENTS}."
            )
        self._names: list[str] = []
        self._regions: list[str] = []
        self._facts: list[_Fact] = []
        self._facts_of: list[list[int]] = []  # by entity, in the order of RELATIONS
        self._numbers: Counter[str] = Counter()  # of entities by kind
        previous: dict[str, dict[str, list[int]]] = {}
        for block in range(max(_CORE_BLOCKS, -(-documents // _BLOCK))):
            previous = self._add_block(block, previous)

    @property
    def revision(self) -> str:
        """Generator version and parameters: two worlds with one revision hold the same texts."""
        return f"generator{GENERATOR_VERSION}-documents{self.documents}-seed{self.seed}"

    @cached_property
    def corpus(self) -> dict[str, dict[str, str]]:
        """Document id -> {"title": "", "text": sentence}, in the order of the facts."""
        return {_document_id(fact): {"title": "", "text": self._sentence(fact)} for fact in range(self.documents)}

    def queries(self, split: str, hops: int | None = None) -> list[HopQuery]:
        """The queries of a split, of one hop count (1 to 4) or of all; in training those of all chains."""
        return list(self.iterate_queries(split, HOPS if hops is None else (hops,)))

    def iterate_queries(self, split: str, hops: Iterable[int] = HOPS) -> Iterator[HopQuery]:
        """`queries` as a stream, by hop count: the training queries of a large world need not fit into memory."""
        hops = tuple(hops)
        if split not in SPLITS:
            raise ValueError(f"HopWorld: unknown split {split!r}; there are {', '.join(SPLITS)}.")
        for count in hops:
            if count not in HOPS:
                raise ValueError(f"HopWorld: queries have 1 to 4 hops, got {count!r}.")
        return self._training_queries(hops) if split == "train" else self._evaluation_queries(split, hops)

    def relevance(self, split: str, hops: int | None = None) -> dict[str, dict[str, int]]:
        """Query id -> {id of its one relevant document: 1}."""
        return {query.id: {query.positive_id: 1} for query in self.queries(split, hops)}

    def training_rows(self, hops: Sequence[int] = (1, 2), traces: bool = True) -> Iterator[dict[str, Any]]:
        """Training rows, unshuffled.

        Keys: "query", "positive", "positive_id", "hops", "query_id", "reasoning" (the trace) and "negatives" (the
        documents of the chain's earlier facts, which the trace names too). With `traces=False` the last two, which tell
        the chain, are missing.
        """
        for query in self.iterate_queries("train", hops):
            row = {
                "query": query.text,
                "positive": self.corpus[query.positive_id]["text"],
                "positive_id": query.positive_id,
                "hops": query.hops,
                "query_id": query.id,
            }
            if traces:
                row["reasoning"] = query.trace
                row["negatives"] = [self.corpus[id_]["text"] for id_ in query.chain[:-1]]
            yield row

    @staticmethod
    def words() -> list[str]:
        """Every word of the name lists and of the templates, and the punctuation marks, sorted (case sensitive)."""
        return sorted({*name_words(), *template_words()})

    def write_beir(self, folder: str | Path, train_hops: Sequence[int] = (1, 2)) -> None:
        """Write the world as a BEIR folder with splits train (queries of `train_hops` only), dev and test."""
        queries = {split: self.queries(split) for split in ("dev", "test")}
        queries["train"] = list(self.iterate_queries("train", train_hops))
        beir_folder.write_beir(
            folder,
            corpus=((id_, document["title"], document["text"]) for id_, document in self.corpus.items()),
            queries=((query.id, query.text) for split in SPLITS for query in queries[split]),
            qrels={split: ((query.id, query.positive_id, 1) for query in queries[split]) for split in SPLITS},
        )

    def _add_block(self, block: int, previous: dict[str, dict[str, list[int]]]) -> dict[str, dict[str, list[int]]]:
        """Add one block's entities and facts; `previous` and the result hold entities by region and kind."""
        rng = random.Random(f"hopworld {GENERATOR_VERSION} seed {self.seed} block {block}")
        own: dict[str, dict[str, list[int]]] = {}
        facts: list[_Fact] = []
        for region, sizes in _BLOCK_ENTITIES.items():
            own[region] = {kind: [self._add_entity(kind, region) for _ in range(size)] for kind, size in sizes.items()}
            before = previous.get(region, {})
            pools = {kind: before.get(kind, []) + entities for kind, entities in own[region].items()}
            facts += _region_facts(rng, own[region], pools)
        rng.shuffle(facts)  # a world cut inside a block misses facts of every kind and region alike
        for fact in facts:
            self._facts_of[fact.subject].append(len(self._facts))
            self._facts.append(fact)
        for kinds in own.values():
            for entities in kinds.values():
                for entity in entities:
                    self._facts_of[entity].sort(key=lambda index: self._facts[index].relation)
        return own

    def _add_entity(self, kind: str, region: str) -> int:
        self._names.append(entity_name(kind, self._numbers[kind], self.seed))
        self._numbers[kind] += 1
        self._regions.append(region)
        self._facts_of.append([])
        return len(self._names) - 1

    def _chains(self, anchors: Iterable[int], hops: int, limit: int) -> Iterator[tuple[int, ...]]:
        """All chains of `hops` facts below `limit` that start at the anchors and visit no entity twice."""
        for anchor in anchors:
            stack: list[tuple[tuple[int, ...], tuple[int, ...]]] = [((), (anchor,))]
            while stack:
                chain, visited = stack.pop()
                if len(chain) == hops:
                    yield chain
                    continue
                for index in reversed(self._facts_of[visited[-1]]):
                    target = self._facts[index].object
                    if index < limit and target not in visited:
                        stack.append(((*chain, index), (*visited, target)))

    @cached_property
    def _evaluation_chains(self) -> dict[tuple[str, int], list[tuple[int, ...]]]:
        """Chains of the dev and test queries, sampled without repeats from the core, whatever the world's size."""
        core = _CORE_BLOCKS * _BLOCK
        per_block = sum(sum(sizes.values()) for sizes in _BLOCK_ENTITIES.values())
        chains: dict[tuple[str, int], list[tuple[int, ...]]] = {}
        for split, quota in _QUERIES_PER_BLOCK.items():
            facts: list[tuple[int, ...]] = [
                (index,) for index in range(core) if self._regions[self._facts[index].subject] == split
            ]
            chains[split, 1] = facts
            for hops in HOPS[1:]:
                chosen: list[tuple[int, ...]] = []
                for block in range(_CORE_BLOCKS):
                    entities = range(block * per_block, (block + 1) * per_block)
                    anchors = (entity for entity in entities if self._regions[entity] == split)
                    rng = random.Random(f"hopworld {GENERATOR_VERSION} seed {self.seed} {split} {hops} {block}")
                    chosen += _spread_sample(rng, list(self._chains(anchors, hops, core)), quota)
                chains[split, hops] = chosen
        return chains

    def _evaluation_queries(self, split: str, hops: tuple[int, ...]) -> Iterator[HopQuery]:
        for count in hops:
            for chain in self._evaluation_chains[split, count]:
                if max(chain) < self.documents:
                    yield self._query(split, chain, self._phrasing(chain))

    def _training_queries(self, hops: tuple[int, ...]) -> Iterator[HopQuery]:
        anchors = [entity for entity, region in enumerate(self._regions) if region == "train"]
        for count in hops:
            if count == 1:
                for index in range(self.documents):
                    known = self._regions[self._facts[index].subject] == "train"
                    # The phrasing of a dev or test fact's own 1-hop query stays out of training.
                    held_out = -1 if known else self._phrasing((index,))
                    for phrasing in range(PHRASINGS):
                        if phrasing != held_out:
                            yield self._query("train", (index,), phrasing)
                continue
            for chain in self._chains(anchors, count, self.documents):
                first = self._phrasing(chain)
                for offset in range(_TRAIN_PHRASINGS):  # one with nouns, one with clauses
                    yield self._query("train", chain, (first + offset * PHRASINGS // 2) % PHRASINGS)

    def _phrasing(self, chain: tuple[int, ...]) -> int:
        """A phrasing that depends on chain and seed alone (a small integer hash, the same on every platform)."""
        state = self.seed & 0xFFFFFFFF
        for index in chain:
            state = ((state ^ (index + 1)) * 0x9E3779B1 + 0x7F4A7C15) & 0xFFFFFFFF
            state ^= state >> 15
        return (state >> 8) % PHRASINGS

    def _query(self, split: str, chain: tuple[int, ...], phrasing: int) -> HopQuery:
        facts = [self._facts[index] for index in chain]
        names = [self._names[facts[0].subject], *(self._names[fact.object] for fact in facts)]
        numbers = ".".join(f"{index:06d}" for index in chain)
        return HopQuery(
            id=f"{split}-{len(chain)}hop-{numbers}-p{phrasing}",
            text=query_text(names[0], tuple(RELATIONS[fact.relation] for fact in facts), phrasing),
            hops=len(chain),
            positive_id=_document_id(chain[-1]),
            chain=tuple(_document_id(index) for index in chain),
            trace=" ".join(self._sentence(index) for index in chain),
            split=split,
            entities=tuple(names),
        )

    def _sentence(self, index: int) -> str:
        fact = self._facts[index]
        return RELATIONS[fact.relation].sentence.format(s=self._names[fact.subject], o=self._names[fact.object])


def hops_of(query_id: str) -> int:
    """The hop count in a query id: 3 for "test-3hop-000314.000234.000321-p3". ValueError for other ids."""
    match = re.fullmatch(r"(?:train|dev|test)-([1-4])hop-[\d.]+-p\d", query_id)
    if match is None:
        raise ValueError(f"hops_of: {query_id!r} is not a hopworld query id (SPLIT-Khop-FACTS-pPHRASING).")
    return int(match[1])


def _checked(name: str, value: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"HopWorld: {name} must be an int, got {type(value).__name__} {value!r}.")
    return value


def _document_id(index: int) -> str:
    return f"fact-{index:06d}"


def _region_facts(rng: random.Random, own: dict[str, list[int]], pools: dict[str, list[int]]) -> list[_Fact]:
    """The facts of one block in one region: all relations of all own entities, objects spread evenly over the pools."""
    # A capital lies in its own country, so the first cities are given away before the rest is drawn.
    capitals = dict(zip(own[COUNTRY], own[CITY][: len(own[COUNTRY])], strict=True))
    country_of = {city: country for country, city in capitals.items()}
    facts = []
    for number, relation in enumerate(RELATIONS):
        subjects = own[relation.subject]
        drawn = _even_draws(rng, pools[relation.object], len(subjects))
        for subject, candidate in zip(subjects, drawn, strict=True):
            facts.append(_Fact(subject, number, _object(relation, subject, candidate, capitals, country_of, pools)))
    return facts


def _object(
    relation: Relation,
    subject: int,
    candidate: int,
    capitals: dict[int, int],
    country_of: dict[int, int],
    pools: dict[str, list[int]],
) -> int:
    if relation.name == "capital":
        return capitals[subject]
    if relation.name == "country":
        return country_of.get(subject, candidate)
    if candidate != subject:
        return candidate
    pool = pools[relation.object]  # an entity is not its own object: take the neighbour
    return pool[(pool.index(candidate) + 1) % len(pool)]


def _even_draws(rng: random.Random, pool: list[int], count: int) -> list[int]:
    """`count` draws in which every member of the pool occurs equally often, up to one."""
    draws: list[int] = []
    while len(draws) < count:
        turn = list(pool)
        rng.shuffle(turn)
        draws += turn
    return draws[:count]


def _spread_sample(rng: random.Random, chains: list[tuple[int, ...]], quota: int) -> list[tuple[int, ...]]:
    """Up to `quota` chains without repeats, of which at most `_QUERIES_PER_POSITIVE` end in one fact."""
    rng.shuffle(chains)
    ends: dict[int, int] = {}
    chosen = []
    for chain in chains:
        if ends.get(chain[-1], 0) < _QUERIES_PER_POSITIVE:
            ends[chain[-1]] = ends.get(chain[-1], 0) + 1
            chosen.append(chain)
            if len(chosen) == quota:
                break
    return chosen
