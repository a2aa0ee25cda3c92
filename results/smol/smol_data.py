"""Training rows of smol with first reasoning targets, and the splits that choose and test it.

    python results/smol/smol_data.py --data ../shared/data --output runs/smol/data

Writes one JSONL file per source (query, positive, reasoning, and ids where the source judges), and BEIR folders:

    squad      by article: train, dev, test; the corpus is always all paragraphs
    nfcorpus   train as given; of the given dev queries a third is `test`, this repository's own, the rest is `dev`
    scifact    a tenth of the training claims is dev       } test judgements are not read here
    cosqa      half of the dev questions is dev, half train }

The splits are a function of ids and titles alone (their SHA-256), and splits.json holds them as they were written down
before the first run.

A target is what a small model can predict of the document that answers: its title, and one sentence of it, cut to
`WORDS` words; for code its first line. As in GAR (Mao et al. 2021, arXiv 2009.08553), which generates the title and a
sentence that holds the answer, the target is taken from a relevant document. The sentence is the one whose words are
shared with the query most, weighted by rarity; ties go to the first. Source: our choice.
"""

import argparse
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from results.mini.mini_data import PAIRS, pairs_of, split_in, words_of, write_rows
from search_r3_mteb.atomic import write_json
from search_r3_mteb.encoder.documents import join_title
from search_r3_mteb.tasks.beir_folder import read_corpus, read_queries, read_relevance, write_beir

WORDS = 30
"""Words of a target: some 45 tokens, so that 48 hold it. """
PER_QUERY = 24
"""Judged documents of an NFCorpus query that become rows, the most relevant first, then by the digest of their ids."""
TEST_ARTICLES, DEV_ARTICLES = 12, 6
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
_NFCORPUS_TITLE = " pubmed ncbi "

Row = dict[str, str]


def digest(text: str) -> int:
    """A number that depends on the text alone."""
    return int(hashlib.sha256(text.encode()).hexdigest(), 16)


class Sentences:
    """The sentence of a document that is nearest to a query, by rarity counted over the given documents."""

    def __init__(self, documents: Iterable[str]) -> None:
        texts = list(documents)
        self._count = len(texts)
        self._seen = Counter(word for text in texts for word in set(words_of(text)))

    def best(self, query: str, document: str) -> str:
        """The sentence, white space collapsed; of documents without sentences their beginning."""
        wanted = set(words_of(query))
        sentences = [" ".join(part.split()) for part in _SENTENCE.split(document)]
        sentences = [part.lstrip("-* ") for part in sentences if len(part.split()) > 3] or [" ".join(document.split())]
        return max(sentences, key=lambda part: self._shared(wanted, part))

    def key_terms(self, query: str, document: str, count: int) -> str:
        """The words of the document that the query lacks, those of largest frequency times rarity first."""
        asked, found = set(words_of(query)), Counter(words_of(document))
        terms = sorted((word for word in found if word not in asked), key=lambda w: (-found[w] * self._rarity(w), w))
        return " ".join(terms[:count])

    def found_in(self, query: str, text: str, documents: Iterable[str]) -> float:
        """Of the words that a text adds to its query, the share by rarity that these documents have; nan for none."""
        added = set(words_of(text)) - set(words_of(query))
        there = {word for document in documents for word in words_of(document)}
        whole = sum(map(self._rarity, sorted(added)))
        return sum(map(self._rarity, sorted(added & there))) / whole if whole else math.nan

    def _shared(self, wanted: set[str], sentence: str) -> float:
        return sum(map(self._rarity, sorted(wanted & set(words_of(sentence)))))

    def _rarity(self, word: str) -> float:
        return math.log((1 + self._count) / (1 + self._seen[word]))


def cut(text: str, words: int = WORDS) -> str:
    """The first words of a text."""
    return " ".join(text.split()[:words])


def prose(pairs: Sequence[tuple[str, str]]) -> Iterator[Row]:
    """Rows of (query, document) whose target is the nearest sentence."""
    sentences = Sentences(document for _, document in pairs)
    for query, document in pairs:
        yield {"query": query, "positive": document, "reasoning": cut(sentences.best(query, document))}


def code(pairs: Sequence[tuple[str, str]]) -> Iterator[Row]:
    """Rows of (description, function) whose target is the function's first line."""
    for query, document in pairs:
        yield {"query": query, "positive": document, "reasoning": cut(document.strip().split("\n", 1)[0])}


def judged(folder: Path, split: str, per_query: int | None = None) -> Iterator[Row]:
    """A row per judged document of a BEIR folder's split: the target is its title and the nearest sentence."""
    documents = {document.id: (document.title, document.text) for document in read_corpus(folder)}
    queries = {query.id: query.text for query in read_queries(folder)}
    sentences = Sentences(text for _, text in documents.values())
    for query, grades in sorted(read_relevance(folder, split).items()):
        found = [(id_, grade) for id_, grade in grades.items() if grade > 0 and id_ in documents]
        found.sort(key=lambda one: (-one[1], digest(f"{query} {one[0]}")))
        for id_, _ in found[:per_query]:
            title, text = documents[id_]
            before, mark, after = text.partition(_NFCORPUS_TITLE)
            if not title and mark:
                title, text = before, after.removeprefix("abstract ")
            sentence = sentences.best(queries[query], text)
            target = f"{cut(title, 14)}. {sentence}" if title else sentence
            yield {
                "query": queries[query],
                "query_id": query,
                "positive": join_title(*documents[id_]),
                "positive_id": id_,
                "reasoning": cut(target),
            }


def squad_splits(data: Path) -> dict[str, list[str]]:
    """Titles of the articles of each split."""
    titles = sorted({document.title or "" for document in read_corpus(data / "squad")}, key=digest)
    ends = TEST_ARTICLES, TEST_ARTICLES + DEV_ARTICLES
    return {
        "test": sorted(titles[: ends[0]]),
        "dev": sorted(titles[ends[0] : ends[1]]),
        "train": sorted(titles[ends[1] :]),
    }


def resplit(folder: Path, output: Path, qrels: dict[str, dict[str, dict[str, int]]]) -> None:
    """The BEIR folder with other splits; queries that no split judges are left out."""
    kept = {query for split in qrels.values() for query in split}
    write_beir(
        output,
        corpus=read_corpus(folder),
        queries=[(query.id, query.text) for query in read_queries(folder) if query.id in kept],
        qrels={
            split: [(query, id_, grade) for query, grades in members.items() for id_, grade in grades.items()]
            for split, members in qrels.items()
        },
    )


def splits(data: Path) -> dict[str, object]:
    """What is written down: articles of SQuAD, and the ids of NFCorpus' dev queries that are our own test."""
    dev = sorted(read_relevance(data / "nfcorpus", "dev"))
    return {"squad": squad_splits(data), "nfcorpus": {"test": [query for query in dev if digest(query) % 3 == 0]}}


def make(data: Path, output: Path) -> dict[str, int]:
    """Write everything; the number of rows per source."""
    output.mkdir(parents=True, exist_ok=True)
    chosen = splits(data)
    write_json(output / "splits.json", chosen)
    article = {document.id: document.title for document in read_corpus(data / "squad")}
    questions = read_relevance(data / "squad", "dev")
    of = {title: split for split, titles in squad_splits(data).items() for title in titles}
    by_split: dict[str, dict[str, dict[str, int]]] = {"train": {}, "dev": {}, "test": {}}
    for query, grades in questions.items():
        by_split[of[article[next(iter(grades))] or ""]][query] = dict(grades)
    resplit(data / "squad", output / "squad", by_split)

    own = {query for query in read_relevance(data / "nfcorpus", "dev") if digest(query) % 3 == 0}
    medical: dict[str, dict[str, dict[str, int]]] = {"train": {}, "dev": {}, "test": {}}
    for split in ("train", "dev"):
        for query, grades in read_relevance(data / "nfcorpus", split).items():
            medical["test" if query in own else split][query] = dict(grades)
    resplit(data / "nfcorpus", output / "nfcorpus", medical)

    split_in(data / "scifact", output, "scifact", "train", 10, "none")
    split_in(data / "cosqa", output, "cosqa", "dev", 2, "none")
    rows = {
        "arxiv": prose(pairs_of(data / "pairs" / PAIRS["arxiv"])),
        "medical": prose(pairs_of(data / "pairs" / PAIRS["medical"])),
        "code": code(pairs_of(data / "pairs" / PAIRS["code"])),
        "nfcorpus": judged(output / "nfcorpus", "train", PER_QUERY),
        "squad": judged(output / "squad", "train"),
        "scifact": judged(output / "scifact", "train"),
        "cosqa": (
            row | {"reasoning": cut(row["positive"].strip().split("\n", 1)[0])}
            for row in judged(output / "cosqa", "train")
        ),
    }
    counts = {name: write_rows(output / f"{name}.jsonl", some) for name, some in rows.items()}
    write_json(output / "report.json", counts)
    return counts


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with pairs/, squad/, nfcorpus/, scifact/, cosqa/"
    )
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    print(json.dumps(make(options.data, options.output), indent=1))


if __name__ == "__main__":
    main()
