"""Training rows of mini with first reasoning traces, corpora of its stage 2, and dev sets that choose checkpoints.

    python results/mini/mini_data.py --data ../shared/data --output runs/mini/data [--traces KIND]

Writes one JSONL file per source (query, positive, reasoning), abstracts.jsonl and functions.jsonl, whose positives are
corpora of stage 2, and two BEIR folders with the splits train and dev. SciFact: a tenth of the training claims is dev;
CosQA: half of the dev questions trains, the other half is dev. Test judgements are not read here.

A trace is what a model of this size can learn to say: the query again, whose words a causal model then reads with all
of the query before them (as in echo embeddings, arXiv 2402.15449), or the key terms of the document that answers it.
`mixed` restates in every row and adds terms in every second. Questions with sub-queries, which a larger model wrote,
have those as traces of every kind but `none`; no document is known for them, so the sub-queries stand for it. Source:
our choice.
"""

import argparse
import gzip
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from search_r3_mteb.encoder.documents import join_title
from search_r3_mteb.tasks.beir_folder import read_corpus, read_queries, read_relevance, write_beir

PAIRS = {
    "arxiv": "arxiv_title_abstract.jsonl.gz",
    "code": "python_docstring_code.jsonl.gz",
    "medical": "medquad_question_answer.jsonl.gz",
}
SUBQUERIES = "query_subqueries.jsonl.gz"
SOURCES = (*PAIRS, "subqueries", "scifact", "cosqa")
TRACES = ("mixed", "both", "restated", "terms", "none")
TERMS = 5
RARE = 2000  # a term is in more than one of so many documents, or the model could never learn to say it
RESTATED_WORDS = 16
CORPORA = {"abstracts": ("arxiv", 20_000), "functions": ("code", 10_000)}  # corpora of stage 2: rows of a source
_TERM = re.compile(r"[a-z][a-z0-9]+(?:-[a-z0-9]+)*")
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|_")

TextRow = dict[str, str]


def words_of(text: str) -> list[str]:
    """Lower-case words in order; identifiers are cut at humps and underscores."""
    return _TERM.findall(_HUMP.sub(" ", text).lower())


def with_traces(pairs: Sequence[tuple[str, str]], kind: str) -> Iterator[TextRow]:
    """A row for each (query, document), its trace of that kind; rarity is counted over the documents."""
    seen = Counter(word for _, document in pairs for word in set(words_of(document)))
    for number, (query, document) in enumerate(pairs):
        row = {"query": query, "positive": document}
        own = ("both", "restated")[number % 2] if kind == "mixed" else kind
        trace = make_trace(query, document, seen, len(pairs), own)
        yield row | ({"reasoning": trace} if trace else {})


def make_trace(query: str, document: str, seen: Counter[str], documents: int, kind: str) -> str:
    """The trace of one row; empty where there is nothing to say."""
    restated = " ".join(query.split()[:RESTATED_WORDS]) if kind in ("both", "restated") else ""
    terms = key_terms(query, document, seen, documents) if kind in ("both", "terms") else []
    return " : ".join(part for part in (restated, " ".join(terms)) if part)


def key_terms(query: str, document: str, seen: Counter[str], documents: int, count: int = TERMS) -> list[str]:
    """Words of the document that the query lacks, by frequency times rarity, without the rarest and those of all."""
    known, here = set(words_of(query)), Counter(words_of(document))
    weight = {
        word: (1 + math.log(times)) * math.log(documents / seen[word])
        for word, times in here.items()
        if word not in known and len(word) > 2 and max(1, documents // RARE) < seen[word] < documents
    }
    return sorted(weight, key=lambda word: (-weight[word], word))[:count]


def pairs_of(file: Path) -> list[tuple[str, str]]:
    """(query, document) of a file of pairs."""
    with gzip.open(file, "rt", encoding="utf-8") as stream:
        rows = map(json.loads, stream)
        return [(row["query"], row["positive"]) for row in rows]


def with_subqueries(file: Path, kind: str) -> Iterator[TextRow]:
    """A row for each question of a file of questions and their sub-queries."""
    with gzip.open(file, "rt", encoding="utf-8") as stream:
        for row in map(json.loads, stream):
            listed = ", ".join(row["subqueries"])
            yield {"query": row["query"], "positive": listed} | ({"reasoning": listed} if kind != "none" else {})


def write_rows(file: Path, rows: Iterable[TextRow]) -> int:
    """Write a JSONL file; its number of rows."""
    count = 0
    with file.open("w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def split_in(folder: Path, output: Path, name: str, split: str, every: int, kind: str) -> dict[str, int]:
    """Make every `every`-th judged query of a split dev, the others train: rows with traces, and one BEIR folder."""
    documents = list(read_corpus(folder))
    corpus = {document.id: join_title(document.title, document.text) for document in documents}
    queries = {query.id: query.text for query in read_queries(folder)}
    relevance = read_relevance(folder, split)
    dev = sorted(relevance)[::every]
    splits = {"train": sorted(set(relevance) - set(dev)), "dev": dev}
    rows = [
        (queries[query], corpus[document])
        for query in splits["train"]
        for document, grade in relevance[query].items()
        if grade > 0
    ]
    write_beir(
        output / name,
        corpus=documents,
        queries=[(query, queries[query]) for query in sorted(relevance)],
        qrels={
            split: [(query, document, grade) for query in members for document, grade in relevance[query].items()]
            for split, members in splits.items()
        },
    )
    return {"rows": write_rows(output / f"{name}.jsonl", with_traces(rows, kind)), "dev_queries": len(dev)}


def spread(file: Path, count: int) -> Iterator[TextRow]:
    """`count` rows spread evenly over a file, without traces."""
    with file.open(encoding="utf-8") as stream:  # not splitlines: it also splits at separators inside a text
        lines = list(stream)
    for line in lines[:: max(1, len(lines) // count)][:count]:
        row = json.loads(line)
        yield {"query": row["query"], "positive": row["positive"]}


def make(data: Path, output: Path, kind: str) -> dict[str, dict[str, int]]:
    """Write everything; the number of rows of each source."""
    output.mkdir(parents=True, exist_ok=True)
    report = {
        name: {"rows": write_rows(output / f"{name}.jsonl", with_traces(pairs_of(data / "pairs" / file), kind))}
        for name, file in PAIRS.items()
    }
    subqueries = with_subqueries(data / "pairs" / SUBQUERIES, kind)
    report["subqueries"] = {"rows": write_rows(output / "subqueries.jsonl", subqueries)}
    for name, (source, count) in CORPORA.items():
        report[name] = {"rows": write_rows(output / f"{name}.jsonl", spread(output / f"{source}.jsonl", count))}
    report["scifact"] = split_in(data / "scifact", output, "scifact", "train", 10, kind)
    report["cosqa"] = split_in(data / "cosqa", output, "cosqa", "dev", 2, kind)
    (output / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with pairs/, scifact/ and cosqa/")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--traces", default="mixed", choices=TRACES)
    options = parser.parse_args()
    print(json.dumps(make(options.data, options.output, options.traces), indent=1))


if __name__ == "__main__":
    main()
