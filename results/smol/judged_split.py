"""Queries, documents and judgements of one split of a BEIR folder, and the scores of query vectors on it."""

import argparse
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from results.smol.smol_data import Sentences, cut
from search_r3_mteb.encoder.documents import join_title
from search_r3_mteb.search.arrays import Vectors
from search_r3_mteb.tasks.beir_folder import Document, read_corpus, read_queries, read_relevance

SEED = 0
TITLE_WORDS = 12  # of a hit: three titles fit into the budget of a text


def task(text: str) -> tuple[Path, str]:
    """The folder and the split in FOLDER:SPLIT. Raises argparse's error where one of them is missing."""
    folder, _, split = text.rpartition(":")
    if not folder or not split:
        raise argparse.ArgumentTypeError(f"{text!r} is not FOLDER:SPLIT, such as runs/smol/data/nfcorpus:dev")
    return Path(folder), split


class JudgedSplit:
    """Queries, documents and judgements of one split, and the score of query vectors."""

    def __init__(self, folder: Path, split: str, most: int | None, documents: int | None = None) -> None:
        relevance = read_relevance(folder, split)
        whole = list(read_corpus(folder))
        read, self.whole = reduced(whole, relevance, documents), len(whole)
        self.documents = {document.id: join_title(document.title, document.text) for document in read}
        # Where a document has no title its first words stand for it.
        self.titles = [cut(document.title or document.text, TITLE_WORDS) for document in read]
        self.ids = sorted(query for query, grades in relevance.items() if any(g > 0 for g in grades.values()))
        if most is not None and len(self.ids) > most:
            self.ids = sorted(random.Random(SEED).sample(self.ids, most))
        texts = {query.id: query.text for query in read_queries(folder)}
        self.queries = [texts[query] for query in self.ids]
        place = {id_: number for number, id_ in enumerate(self.documents)}
        self.grades = [
            {place[id_]: grade for id_, grade in relevance[query].items() if grade > 0 and id_ in place}
            for query in self.ids
        ]
        self.ideal = [
            sum(g / np.log2(r + 2) for r, g in enumerate(sorted(relevance[query].values(), reverse=True)[:10]))
            for query in self.ids
        ]
        self.vectors: Vectors = np.empty((0, 0), np.float32)

    def top(self, queries: Vectors, k: int = 10) -> Any:
        """Positions (queries, k) of the nearest documents; equal scores in the order of the corpus."""
        return np.argsort(-(queries @ self.vectors.T), axis=1, kind="stable")[:, :k]

    def top_titles(self, queries: Vectors, k: int) -> list[list[str]]:
        """The titles of each query's k nearest documents, best first."""
        return [[self.titles[int(place)] for place in row] for row in self.top(queries, k)]

    def found_by_their_words(self, sentences: Sentences, texts: Sequence[str]) -> list[float]:
        """Of the words that texts add to their queries, the share by rarity in relevant documents: mean, interval."""
        documents = list(self.documents.values())
        shares = [
            sentences.found_in(query, text, [documents[place] for place in grades])
            for query, text, grades in zip(self.queries, texts, self.grades, strict=True)
        ]
        known = np.array([share for share in shares if not np.isnan(share)])
        return interval(known) if len(known) else []

    def ndcg(self, queries: Vectors) -> Any:
        """nDCG@10 (queries,) with linear gains, as pytrec_eval has it."""
        return np.array(
            [
                sum(grades.get(int(p), 0) / np.log2(r + 2) for r, p in enumerate(row)) / ideal
                for row, grades, ideal in zip(self.top(queries), self.grades, self.ideal, strict=True)
            ]
        )


def reduced(
    corpus: list[Document], relevance: Mapping[str, Mapping[str, int]], documents: int | None
) -> list[Document]:
    """The judged documents of the split and others drawn with a fixed seed, `documents` in all, in the corpus' order.

    Raises ValueError where more than that are judged.
    """
    if documents is None or documents >= len(corpus):
        return corpus
    judged_ids = {document for grades in relevance.values() for document in grades}
    others = sorted(document.id for document in corpus if document.id not in judged_ids)
    room = documents - (len(corpus) - len(others))
    if room < 0:
        raise ValueError(
            f"--documents {documents}: {len(corpus) - len(others)} documents of the corpus are judged in this split, "
            "and each of them stays. Give at least as many."
        )
    kept = judged_ids | set(random.Random(SEED).sample(others, room))
    return [document for document in corpus if document.id in kept]


def unit(rows: Vectors) -> Vectors:
    """Rows of unit length."""
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def interval(difference: Any) -> list[float]:
    """Mean and the 95 % interval of a paired bootstrap, 2,000 draws."""
    rng = np.random.default_rng(SEED)
    means = difference[rng.integers(0, len(difference), (2000, len(difference)))].mean(axis=1)
    return [round(float(x), 4) for x in (difference.mean(), *np.quantile(means, [0.025, 0.975]))]
