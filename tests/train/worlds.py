"""Worlds whose queries have several relevant documents: vectors in a plane, and a hopworld with more judgements."""

from math import cos, radians, sin

import numpy as np
import torch

from search_r3_mteb.encoder.engine import Rollouts
from search_r3_mteb.tasks.beir_folder import write_beir
from search_r3_mteb.tasks.hopworld import HopWorld
from train.config.corpus_cache import CorpusCacheSettings
from train.config.data import RlDataSettings, SourceSettings
from train.config.grpo import RewardSettings
from train.corpus_cache.cache import CorpusCache
from train.data.beir_source import BeirSource
from train.stage2.corpus import SearchedCorpus
from train.stage2.environment import Environment
from train.stage2.rollouts import Groups


def directions(degrees):
    """Unit vectors (n, 2) at these angles."""
    return np.array([[cos(radians(d)), sin(radians(d))] for d in degrees], dtype=np.float32)


class Plane:
    """An encoder that looks the angle of a document up; `degrees` maps ids to angles, and may be changed."""

    def __init__(self, degrees):
        self.degrees, self.known = dict(degrees), {}

    def __call__(self, texts):
        return directions(self.degrees[text.split()[-1]] for text in texts)

    def forget(self):
        self.known = {}


def plane(folder, degrees, judged, rollouts, *, reward=None, lengths=None, **cache):
    """An environment over documents in a plane, and the rollouts of its queries, for rewards computed by hand.

    `judged` maps each query to {document: grade}; `rollouts` are pairs of a query and an angle, query by query;
    `lengths` counts the reasoning tokens of each. Every rollout has ended by itself.
    """
    queries = list(judged)
    write_beir(
        folder / "beir",
        corpus=[(id_, "", f"text of {id_}") for id_ in degrees],
        queries=[(query, f"query {query}") for query in queries],
        qrels={"train": [(query, id_, grade) for query in queries for id_, grade in judged[query].items()]},
    )
    source = SourceSettings(kind="beir", path=str(folder / "beir"))
    reader = BeirSource(source, "query")
    rows = {row.query_id: row for row in (reader.parse(reader.at(n), 0) for n in range(reader.count))}
    corpus = SearchedCorpus(RlDataSettings(sources=(source,)), lambda texts: [1] * len(texts))
    encoder = Plane(degrees)
    settings = CorpusCacheSettings(**({"policy": "full", "neighbors": 2, "top_k": 2} | cache))
    built = CorpusCache.build(corpus.texts, encoder, folder=folder / "cache", settings=settings)
    lengths = lengths or [1] * len(rollouts)
    prompt = [queries.index(query) for query, _ in rollouts]
    vectors = directions(angle for _, angle in rollouts)
    drawn = Rollouts(
        vectors=torch.from_numpy(vectors),
        token_ids=[[5] * length + [9] for length in lengths],
        log_probs=[[-1.0] * (length + 1) for length in lengths],
        finished=[True] * len(rollouts),
        prompt_index=prompt,
        forward_tokens=0,
        computed_tokens=0,
    )
    groups = Groups([rows[query] for query in queries], drawn, [], vectors, torch.tensor(prompt))
    return Environment(corpus, built, encoder, settings, reward or RewardSettings(k=len(degrees))), groups


def several_relevant(folder, documents=500, hops=2):
    """A hopworld whose queries are judged in full, as a BEIR folder; returns a `[[data.sources]]` table (TOML).

    The document that answers a query and a copy of it under another id have grade 2, so that two positives take turns;
    the other documents of the query's chain have grade 1.
    """
    world = HopWorld(documents)
    corpus = [(id_, document["title"], document["text"]) for id_, document in world.corpus.items()]
    queries = world.queries("train", hops)
    assert queries
    ends = {query.positive_id for query in queries}
    copies = [(f"{id_}-copy", title, f"It is said: {text}") for id_, title, text in corpus if id_ in ends]
    judged = []
    for query in queries:
        grades = dict.fromkeys(query.chain, 1) | {query.positive_id: 2, f"{query.positive_id}-copy": 2}
        judged += [(query.id, id_, grade) for id_, grade in grades.items()]
    texts = [(query.id, query.text) for query in queries]
    write_beir(folder, corpus=[*corpus, *copies], queries=texts, qrels={"train": judged})
    return f'[[data.sources]]\nkind = "beir"\npath = "{folder}"\n'
