"""The headroom gate of smol: what a text before the embed token does to the ranking, by where the text comes from.

    python results/smol/gates.py --model runs/smol/sft/last --task runs/smol/data/nfcorpus:dev --json FILE
        [--samples 4] [--queries 400] [--documents 1500] [--dtype float32] [--max-length 256] [--store FOLDER]
        [--base runs/smol/base] [--train train] [--anchor 0.5] [--against FILE] [--start MODEL] [--brief]

For each query, nDCG@10 of its direct vector, of the vector after a text, and of both anchored: normalise(direct +
lambda x reasoned). Texts:

- the model's own (greedy), the mean vector of several sampled ones, the best of them by the judgements;
- of a relevant document the title, the sentence nearest to the query, and 1 to 8 key terms that the query lacks;
- another query's own text, its own one shuffled, as many full stops, nothing; its own one as HyDE reads a text: the
  direct vector of query and text;
- the titles of the first direct hit and of the first three;
- with these three titles below the query in the prompt: its own text, another query's, none, and the direct vector of
  that prompt; beside them Rocchio on the top three direct documents, which needs no text;
- with --base, what this language model, untrained, writes after two examples, read as the reasoning, and as HyDE reads
  it.

With --train also a perceptron on direct vectors, trained on that split's judgements but for the queries that are
measured here too. --brief leaves out relevant documents, titles and shuffled words.

`differences` are between two ways under the anchor that is best for the model's own text, or --anchor; --against adds
those to what an earlier model's FILE has for the same queries and documents, under that file's own anchor (`earlier`):
"own of the earlier model minus direct" is what writing gains over distilled-direct, the model that is measured. The row
"the earlier model's" is its text, read by the model that is measured: who writes and who reads are told apart. It is
tokenised again, where "own" has the very tokens that were written.
--start takes documents and direct vectors from another model: with that at which stage 2 began, what a run with frozen
documents has been rewarded for.
`choice_anchored_1` is what choosing one of the samples by the judgements gains over taking any, beside the same for
samples of another query: what a choice gains by chance alone. `added_words_found`: of the words that a text adds to its
query, the share, by rarity, in relevant documents. Intervals: paired bootstrap, 95 %.
"""

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from results.mini.mini_data import words_of
from results.smol.base_text import BaseWriter
from results.smol.judged_split import SEED, JudgedSplit, interval, task, unit
from results.smol.smol_data import Sentences, cut, judged
from search_r3_mteb import SearchR3Encoder
from search_r3_mteb.atomic import write_text
from search_r3_mteb.encoder.checkpoints import load
from search_r3_mteb.evaluation.perceptron import PerceptronPlan, train_perceptron, training_pairs
from search_r3_mteb.evaluation.provenance import commit
from search_r3_mteb.evaluation.reasoning_variants import filler_text, others
from search_r3_mteb.search.arrays import Vectors

WEIGHTS = (0.2, 0.3, 0.5, 1.0, 2.0)
SHOWN = "the 3 titles in its prompt"
COMPARED = (
    ("own", "another query's"),
    ("own", "shuffled"),
    ("own", "full stops"),
    ("own", "nothing"),
    ("own", "Rocchio, top 3"),
    ("own", "own, HyDE"),
    ("own", "base, HyDE"),
    ("own", "perceptron"),
    ("own", "the earlier model's"),
    ("the earlier model's", "another query's, the earlier model's"),
    (f"own, {SHOWN}", f"another query's, {SHOWN}"),
    (f"own, {SHOWN}", f"nothing, {SHOWN}"),
    (f"own, {SHOWN}", f"direct, {SHOWN}"),
    (f"own, {SHOWN}", "Rocchio, top 3"),
)
"""Ways whose difference under one anchor is given with its interval."""
TERMS = (1, 2, 4, 8)
EARLIER = ("model", "start", "anchor_of_the_texts")
"""What is said of an earlier model: its scores are under an anchor of its own."""


def of_another(texts: Sequence[str]) -> list[str]:
    """To each query the text of another, drawn with a fixed seed: the next one's is often about the same article."""
    return [texts[place] for place in others(len(texts), np.random.default_rng(SEED))]


def shown(data: JudgedSplit, hits: Sequence[Sequence[str]]) -> list[str]:
    """Each query with the titles of its hits below it, one a line, as the text that the prompt is about."""
    return ["\n".join([query, *titles]) for query, titles in zip(data.queries, hits, strict=True)]


@dataclass(frozen=True)
class Measure:
    """How much is measured, and how: the options of the command line."""

    dtype: str = "bfloat16"
    queries: int | None = None
    documents: int | None = None
    samples: int = 4
    temperature: float = 0.7
    max_length: int = 256
    store: Path | None = None
    base: Path | None = None
    train: str | None = None
    anchor: float | None = None
    against: Path | None = None
    start: str | None = None
    brief: bool = False


def run(model: str, folder: Path, split: str, how: Measure) -> dict[str, Any]:
    """All rows of the table, and each query's texts and scores. What `store` holds already is not computed again."""
    samples = how.samples
    data = JudgedSplit(folder, split, how.queries, how.documents)
    earlier = None if how.against is None else earlier_scores(how.against, data)
    checkpoint = load(model, dtype=how.dtype, device=device())
    options: dict[str, Any] = {
        "max_length": how.max_length,
        "max_reasoning_tokens": 48,
        "anchor": None,  # each weight is tried below
        "cache_folder": how.store,
    }
    embedding = checkpoint if how.start is None else load(how.start, dtype=how.dtype, device=device())
    encoder = SearchR3Encoder(embedding, mode="direct", **options)
    writer = SearchR3Encoder(checkpoint, **options)
    data.vectors = encoder.encode_document(list(data.documents.values()))
    direct = encoder.encode_query(data.queries)

    def after(texts: Sequence[str]) -> Vectors:
        """Vectors of the queries after given texts; for the empty one after nothing."""
        vectors: Vectors = writer.encode_query(data.queries, reasoning=list(texts))
        return vectors

    own = writer.think(data.queries)
    words = [thought.text for thought in own]
    sampled = [
        SearchR3Encoder(checkpoint, temperature=how.temperature, seed=seed, **options).think(data.queries)
        for seed in range(samples)
    ]
    ways: dict[str, Vectors] = {
        "own": np.stack([thought.vector for thought in own]),
        "another query's": after(of_another(words)),
        "full stops": after([filler_text(len(thought.token_ids)) for thought in own]),
        "nothing": after([""] * len(words)),
        "own, HyDE": encoder.encode_query([f"{query} {text}" for query, text in zip(data.queries, words, strict=True)]),
        "Rocchio, top 3": unit(data.vectors[data.top(direct, 3)].mean(axis=1)),
    }
    if earlier is not None:
        ways["the earlier model's"] = after(earlier["own"])
        ways["another query's, the earlier model's"] = after(of_another(earlier["own"]))
    cosine = None
    if how.start is not None:
        ways["its own direct"] = SearchR3Encoder(checkpoint, mode="direct", **options).encode_query(data.queries)
        cosine = float((unit(direct) * unit(ways["its own direct"])).sum(axis=1).mean())
    # Where no relevant document is in the corpus there is nothing to say.
    gold: dict[str, tuple[str, str]] = dict.fromkeys(data.ids, ("", ""))
    added: dict[str, list[float]] = {}
    sentences = Sentences(data.documents.values())
    if not how.brief:
        terms: dict[str, list[str]] = dict.fromkeys(data.ids, [""] * len(TERMS))
        for row in judged(folder, split, 1):
            id_, query, document = row["query_id"], row["query"], row["positive"]
            gold[id_] = (cut(row["reasoning"].split(". ")[0]), cut(sentences.best(query, document)))
            terms[id_] = [sentences.key_terms(query, document, count) for count in TERMS]
        ways |= {
            f"{count} key term{'s' * (count > 1)}": after([terms[id_][n] for id_ in data.ids])
            for n, count in enumerate(TERMS)
        }
        said = {
            "own": words,
            "another query's": of_another(words),
            "gold title": [gold[id_][0] for id_ in data.ids],
        }
        added = {name: data.found_by_their_words(sentences, texts) for name, texts in said.items()}
        rng = random.Random(SEED)
        ways |= {
            "shuffled": after([" ".join(rng.sample(text.split(), len(text.split()))) for text in words]),
            "gold title": after([gold[id_][0] for id_ in data.ids]),
            "gold sentence": after([gold[id_][1] for id_ in data.ids]),
        }
        ways |= with_titles(data, direct, encoder, writer)
    each = np.stack([[thought.vector for thought in one] for one in sampled]) if samples else np.empty((0,))
    if samples:
        ways[f"mean of {samples}"] = unit(each.mean(axis=0))
        swapped = np.stack([after(of_another([thought.text for thought in one])) for one in sampled])
        ways["mean of another's"] = unit(swapped.mean(axis=0))
    if how.base is not None:
        hyde = BaseWriter(how.base, device())
        texts = [hyde.write(data.queries[n : n + 64], sample=False) for n in range(0, len(data.queries), 64)]
        found = [text for part in texts for text in part]
        added["base, two examples"] = data.found_by_their_words(sentences, found)
        ways["base, two examples"] = after(found)
        ways["base, HyDE"] = encoder.encode_query(
            [f"{query} {text}" for query, text in zip(data.queries, found, strict=True)]
        )
    if how.train is not None:
        ways["perceptron"] = by_perceptron(encoder, PerceptronPlan(str(folder), how.train), data.queries, direct)
    base = data.ndcg(direct)
    table: dict[str, Any] = {"direct": round(float(base.mean()), 4)}
    for name, vectors in ways.items():
        scores = {"alone": data.ndcg(vectors)} | {f"{w:g}": data.ndcg(unit(direct + w * vectors)) for w in WEIGHTS}
        table[name] = {how: interval(score - base) for how, score in scores.items()}
    chosen: dict[str, list[float]] = {}
    if samples:
        own_scores, others_scores = (
            np.stack([data.ndcg(unit(direct + vectors)) for vectors in rows]) for rows in (each, swapped)
        )
        table[f"best of {samples}, anchored 1"] = interval(own_scores.max(axis=0) - base)
        table[f"best of {samples} of another's, anchored 1"] = interval(others_scores.max(axis=0) - base)
        gains = [scores.max(axis=0) - scores.mean(axis=0) for scores in (own_scores, others_scores)]
        chosen = {
            f"best minus mean of {samples}": interval(gains[0]),
            f"best minus mean of {samples} of another's": interval(gains[1]),
            "own choice minus another's": interval(gains[0] - gains[1]),
        }
    anchor = best_anchor(table) if how.anchor is None else how.anchor
    used = anchor or WEIGHTS[0]
    under = {name: data.ndcg(unit(direct + used * vectors)) for name, vectors in ways.items()}
    reasoned = under["own"]
    differences = {
        f"{one} minus {other}": interval(under[one] - under[other])
        for one, other in COMPARED
        if {one, other} <= under.keys()
    }
    compared: dict[str, Any] = {}
    if earlier is not None:
        differences["direct minus direct of the earlier model"] = interval(base - earlier["direct"])
        differences["own minus own of the earlier model"] = interval(reasoned - earlier["reason"])
        differences["own minus direct of the earlier model"] = interval(reasoned - earlier["direct"])
        differences["own of the earlier model minus direct"] = interval(earlier["reason"] - base)
        compared = {name: earlier[name] for name in EARLIER}
    return {
        "model": model,
        "commit": commit(),
        "start": how.start,
        "cosine_of_direct_vectors": cosine,
        "dtype": how.dtype,
        "max_length": how.max_length,
        "task": f"{folder.name}:{split}",
        "queries": len(data.queries),
        "documents": len(data.documents),
        "whole_corpus": data.whole,
        "finished": float(np.mean([thought.finished for thought in own])),
        "tokens": float(np.mean([len(thought.token_ids) for thought in own])),
        "anchor": anchor,
        "anchor_of_the_texts": used,
        "table": table,
        "differences": differences,
        "earlier": compared,
        "choice_anchored_1": chosen,
        "added_words_found": added,
        "texts": [
            {
                "query": query,
                "own": text,
                "gold": gold[id_][0],
                "direct": float(d),
                "reason": float(r),
                "another": float(a),
            }
            for id_, query, text, d, r, a in zip(
                data.ids, data.queries, words, base, reasoned, under["another query's"], strict=True
            )
        ],
    }


def with_titles(
    data: JudgedSplit, direct: Vectors, encoder: SearchR3Encoder, writer: SearchR3Encoder
) -> dict[str, Vectors]:
    """The titles of the first direct hits as the text, and below the query in the prompt."""
    hits = data.top_titles(direct, 3)
    asked = shown(data, hits)
    thoughts = writer.think(asked)
    said = [thought.text for thought in thoughts]
    first, all_three = [titles[0] for titles in hits], [". ".join(titles) for titles in hits]
    return {
        "title of the first hit": writer.encode_query(data.queries, reasoning=first),
        "titles of the first 3 hits": writer.encode_query(data.queries, reasoning=all_three),
        f"own, {SHOWN}": np.stack([thought.vector for thought in thoughts]),
        f"another query's, {SHOWN}": writer.encode_query(asked, reasoning=of_another(said)),
        f"nothing, {SHOWN}": writer.encode_query(asked, reasoning=[""] * len(asked)),
        f"direct, {SHOWN}": encoder.encode_query(asked),
    }


def by_perceptron(encoder: SearchR3Encoder, plan: PerceptronPlan, queries: Sequence[str], direct: Vectors) -> Vectors:
    """Direct vectors of `queries` after a perceptron that learned from the plan's judgements.

    Training queries that are among `queries`, word for word, are left out, as stage 2 leaves them out. Raises
    ValueError where fewer than two are left.
    """
    asked, read, pairs = training_pairs(plan)
    measured = {tuple(words_of(query)) for query in queries}
    pairs = pairs[[tuple(words_of(asked[query])) not in measured for query in pairs[:, 0]]]
    if len(np.unique(pairs[:, 0])) < 2:
        raise ValueError(
            f"--train {plan.split}: all but {len(np.unique(pairs[:, 0]))} of its queries are measured here too, and a "
            "perceptron learns from two others at least. Give another split."
        )
    perceptron = train_perceptron(unit(encoder.encode_query(asked)), unit(encoder.encode_document(read)), pairs, plan)
    with torch.inference_mode():
        moved: Vectors = perceptron(torch.from_numpy(unit(direct))).numpy()
    return moved


def earlier_scores(file: Path, data: JudgedSplit) -> dict[str, Any]:
    """The texts and scores of each query, direct and anchored, of another model in `file`, and what they are of.

    Raises ValueError where it was measured on other queries or another number of documents.
    """
    found = json.loads(file.read_text(encoding="utf-8"))
    # Files of the first rounds do not say how many documents there were: all.
    queries, documents = [one["query"] for one in found["texts"]], found.get("documents", data.whole)
    if queries != data.queries or documents != len(data.documents):
        raise ValueError(
            f"{file} has {found['task']}, {found['queries']} queries: they or the documents are not those measured "
            "here. Give a file of the same --task, --queries and --documents."
        )
    scores = {name: np.array([one[name] for one in found["texts"]]) for name in ("direct", "reason")}
    texts = {"own": [one["own"] for one in found["texts"]]}
    return scores | texts | {name: found.get(name) for name in EARLIER}


def best_anchor(table: dict[str, Any]) -> float:
    """The weight under which the model's own greedy text gains most over the direct vector; 0 where none gains."""
    gains = {weight: table["own"][f"{weight:g}"][0] for weight in WEIGHTS}
    best = max(gains, key=lambda weight: gains[weight])
    return best if gains[best] > 0 else 0.0


def device() -> str:
    """Where models run: the GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--task", type=task, required=True, metavar="FOLDER:SPLIT")
    parser.add_argument("--queries", type=int, help="the largest number, drawn with a fixed seed")
    parser.add_argument("--documents", type=int, help="all judged ones, and others drawn with a fixed seed")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--dtype", default="bfloat16", help="bfloat16 where the processor has it, else float32")
    parser.add_argument("--max-length", type=int, default=256, help="of queries and documents, in tokens")
    parser.add_argument("--store", type=Path, help="vectors and texts are kept here, and read by the next command")
    parser.add_argument("--base", type=Path, help="folder of the language model that the adapter is of")
    parser.add_argument("--start", help="the model whose documents and direct vectors these texts are added to")
    parser.add_argument("--brief", action="store_true", help="without relevant documents, titles and shuffled words")
    parser.add_argument("--train", help="the split of the same folder on which a perceptron is trained")
    parser.add_argument("--against", type=Path, help="what this script wrote for an earlier model")
    parser.add_argument("--anchor", type=float, help="chosen elsewhere, for a test split; default: the best one here")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    how = Measure(**{field.name: getattr(options, field.name) for field in fields(Measure)})
    found = run(options.model, *options.task, how)
    write_text(options.json, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps({key: value for key, value in found.items() if key != "texts"}, indent=1))


if __name__ == "__main__":
    main()
