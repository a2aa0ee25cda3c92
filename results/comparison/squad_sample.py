"""A BEIR folder of some of SQuAD's questions over all of its paragraphs: those whose ids have the smallest SHA-256.

    python results/comparison/squad_sample.py --data ../shared/data/squad --output runs/comparison/squad-400

The first `TEST` are the split "test", the next `DEV` the split "dev", on which weights are chosen. The sample depends
on the ids alone, so that it is the same everywhere.
"""

import argparse
import hashlib
from collections.abc import Iterable
from pathlib import Path

from search_r3_mteb.tasks.beir_folder import read_corpus, read_qrels, read_queries, write_beir

TEST, DEV = 400, 100


def ordered(ids: Iterable[str]) -> list[str]:
    """The ids by the digest of each."""
    return sorted(ids, key=lambda each: hashlib.sha256(each.encode()).hexdigest())


def write_sample(data: Path, output: Path) -> dict[str, list[str]]:
    """Write the folder; the ids of each split."""
    judged: dict[str, list[tuple[str, str, int]]] = {}
    for row in read_qrels(data, "dev"):
        judged.setdefault(row[0], []).append(row)
    chosen = ordered(judged)[: TEST + DEV]
    if len(chosen) < TEST + DEV:
        raise ValueError(f"{data} has {len(chosen)} judged questions, and {TEST + DEV} are needed.")
    splits = {"test": chosen[:TEST], "dev": chosen[TEST:]}
    write_beir(
        output,
        corpus=((each.id, each.title, each.text) for each in read_corpus(data)),
        queries=((each.id, each.text) for each in read_queries(data) if each.id in set(chosen)),
        qrels={split: [row for each in ids for row in judged[each]] for split, ids in splits.items()},
    )
    return splits


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args(arguments)
    splits = write_sample(given.data, given.output)
    print(", ".join(f"{len(ids)} questions in {split}" for split, ids in splits.items()))


if __name__ == "__main__":
    main()
