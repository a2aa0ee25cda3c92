"""Hard negatives mined with the current model, through sentence_transformers.util.mine_hard_negatives.

That function searches exactly, excludes the judged positives that it is given, and keeps a margin to unjudged ones.
Added here: an adapter, since a `SearchR3Encoder` rejects the keywords that the function passes on; rows that are kept
when fewer negatives pass than were wanted; a seed for the random strategy; and the other judged positives of a query,
which the function would take for negatives where only some of a query's rows are mined.

A source is mined in memory: its texts, and vectors of (documents + queries) x dimensions x 4 bytes.

    python train/data/hard_negatives.py --config train/configs/X.toml --model runs/sft/best --output mined/

writes mined/SOURCE.jsonl, which is a source of kind "jsonl", and mined/report.json.
"""

import argparse
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from search_r3_mteb.atomic import write_json
from search_r3_mteb.json_files import read_object
from search_r3_mteb.keys import key_of
from train.config.data import DataSettings, MiningSettings, SourceSettings
from train.config.loading import load_config
from train.config.stages import SftConfig
from train.data.decontamination import roles_of
from train.data.jsonl import write_rows
from train.data.rows import TrainingRow, positives_of, text_id
from train.data.sources import all_rows, documents_of, open_source
from train.processes.collectives import on_main

_SCORES_AT_ONCE = 1 << 26  # similarities held at a time: 256 MB in float32
REPORT = "report.json"


class MiningEncoder(Protocol):
    """The two methods that mining needs: `SearchR3Encoder` in direct mode has them."""

    def encode_query(self, texts: Sequence[str], *, batch_size: int) -> NDArray[Any]:
        """(n, dim) vectors of queries."""

    def encode_document(self, texts: Sequence[str], *, batch_size: int) -> NDArray[Any]:
        """(n, dim) vectors of documents."""


@dataclass(frozen=True)
class MiningReport:
    """Counts of what was mined. Cosines are means over the mined rows and negatives, None where there are none."""

    rows: int
    documents: int
    """Distinct texts that were searched."""
    negatives: int
    complete: int
    """Rows with as many negatives as were wanted."""
    without: int
    """Rows for which nothing passed the margins."""
    positive_cosine: float | None
    negative_cosine: float | None

    def line(self, label: str) -> str:
        """The report in words."""
        return (
            f"mining: {label}: {self.negatives} negatives for {self.rows} rows among {self.documents} documents; "
            f"{self.complete} rows have all, {self.without} none"
        )


def mine(
    rows: Sequence[TrainingRow],
    encoder: MiningEncoder,
    settings: MiningSettings,
    *,
    corpus: Mapping[str, str],
    seed: int = 0,
) -> tuple[list[TrainingRow], MiningReport]:
    """The rows with mined negatives in place of their own, in the same order, and a report.

    `corpus` is id -> text; the rows' positives are searched as well. A row for which nothing passes keeps no negatives.
    Raises ValueError for no rows.
    """
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    if not rows:
        raise ValueError("There are no rows to mine negatives for.")
    pairs = _judged_pairs(rows, corpus)
    texts = list(dict.fromkeys([*corpus.values(), *(positive for _, positive in pairs)]))
    state = random.getstate()
    random.seed(key_of("mining", seed))  # the random strategy draws from Python's global generator
    try:
        mined = mine_hard_negatives(
            Dataset.from_dict(
                {"query": [query for query, _ in pairs], "positive": [positive for _, positive in pairs]}
            ),
            _AsSentenceTransformer(encoder),
            corpus=texts,
            num_negatives=settings.count,
            range_min=settings.skip_top,
            range_max=None if settings.depth is None else settings.skip_top + settings.depth,
            relative_margin=settings.relative_margin,
            absolute_margin=settings.absolute_margin,
            max_score=settings.max_score,
            sampling_strategy=settings.strategy,
            batch_size=settings.batch_size,
            faiss_batch_size=max(1, _SCORES_AT_ONCE // len(texts)),
            output_format="labeled-list",  # keeps rows with fewer negatives than wanted; "n-tuple" drops them
            output_scores=True,
            verbose=False,
        )
    finally:
        random.setstate(state)
    found = {(row["query"], row["positive"][0]): (row["positive"][1:], row["scores"]) for row in mined}
    result = [replace(row, negatives=tuple(found.get((row.query, row.positive), ([],))[0])) for row in rows]
    scores = [found[row.query, row.positive][1] for row in rows if (row.query, row.positive) in found]
    report = MiningReport(
        rows=len(rows),
        documents=len(texts),
        negatives=sum(len(row.negatives) for row in result),
        complete=sum(len(row.negatives) == settings.count for row in result),
        without=sum(not row.negatives for row in result),
        positive_cosine=fmean(score[0] for score in scores) if scores else None,
        negative_cosine=fmean(value for score in scores for value in score[1:]) if scores else None,
    )
    return result, report


def mine_sources(data: DataSettings, encoder: MiningEncoder, folder: str | Path, *, seed: int = 0) -> DataSettings:
    """Mine every source of `data`; the settings of jsonl sources that read the result, with the same names and weights.

    A result that `folder` holds from the same settings is used again, so that a resumed run trains on the negatives of
    its starting model. The main process mines, the others wait. Raises ValueError without [data.mining].
    """
    settings = data.mining
    if settings is None:
        raise ValueError("Nothing says how negatives are mined. Add a [data.mining] section.")
    folder = Path(folder)
    request = json.loads(
        json.dumps({"mining": settings.model_dump(), "sources": [s.model_dump() for s in data.sources], "seed": seed})
    )

    def work() -> None:
        if _report(folder).get("request") == request:
            return
        (folder / REPORT).unlink(missing_ok=True)  # it must not vouch for a mixture of old and new files
        reports = {}
        for source in data.sources:
            rows = list(all_rows(open_source(source, on_bad_row=data.on_bad_row), data.on_bad_row))
            mined, reports[source.label] = mine(rows, encoder, settings, corpus=corpus_of(source, rows), seed=seed)
            write_rows(mined, _file(folder, source))
        counts = {label: asdict(report) for label, report in reports.items()}
        write_json(folder / REPORT, {"request": request, "sources": counts})  # last: the files are complete

    on_main(work)
    sources = tuple(
        SourceSettings(
            kind="jsonl",
            path=str(_file(folder, source)),
            name=source.label,
            weight=source.weight,
            decontaminate=roles_of(source),
        )
        for source in data.sources
    )
    return data.replaced(sources=sources, mining=None)


def corpus_of(source: SourceSettings, rows: Iterable[TrainingRow]) -> dict[str, str]:
    """Id -> text of the documents among which a source's negatives are sought; for pairs, their positives."""
    if source.kind in ("beir", "hopworld"):
        return dict(documents_of(source))
    # By their texts: two rows may give one id to two documents.
    return {text_id(text): text for row in rows for _, text in positives_of(row)}


class _AsSentenceTransformer:
    """The part of a SentenceTransformer that mine_hard_negatives uses, with vectors of unit length."""

    def __init__(self, encoder: MiningEncoder) -> None:
        import torch

        self._encoder, self.device = encoder, torch.device("cpu")

    def encode_query(self, texts: list[str], *, batch_size: int, **_: Any) -> Float[np.ndarray, "n dim"]:
        """Query vectors; prompts are the encoder's own, pools and progress bars are not passed on."""
        return _unit(self._encoder.encode_query(texts, batch_size=batch_size))

    def encode_document(self, texts: list[str], *, batch_size: int, **_: Any) -> Float[np.ndarray, "n dim"]:
        """Document vectors, likewise."""
        return _unit(self._encoder.encode_document(texts, batch_size=batch_size))

    def similarity(self, left: Any, right: Any) -> Any:
        """Cosine of all pairs."""
        import torch

        return torch.as_tensor(left) @ torch.as_tensor(right).T

    def similarity_pairwise(self, left: Any, right: Any) -> Any:
        """Cosine row by row."""
        import torch

        return (torch.as_tensor(left) * torch.as_tensor(right)).sum(dim=-1)


def _judged_pairs(rows: Sequence[TrainingRow], corpus: Mapping[str, str]) -> list[tuple[str, str]]:
    """Every (query, relevant document): of the rows, and of the other judgements that the rows know of."""
    pairs = [(row.query, text) for row in rows for _, text in positives_of(row)]
    pairs += [(row.query, corpus[id_]) for row in rows for id_, _ in row.relevant if id_ in corpus]
    return list(dict.fromkeys(pairs))


def _unit(vectors: Any) -> Float[np.ndarray, "n dim"]:
    values = np.asarray(vectors, dtype=np.float32)
    if not np.isfinite(values).all():
        raise ValueError(
            "The encoder gave vectors with NaN or infinity; negatives mined with them would be random. Check the model."
        )
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def _file(folder: Path, source: SourceSettings) -> Path:
    return folder / f"{source.label.replace('/', '_')}.jsonl"


def _report(folder: Path) -> dict[str, Any]:
    path = folder / REPORT
    return read_object(path, "Remove it: the negatives are mined again.") if path.exists() else {}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    from search_r3_mteb.encoder.encoder import SearchR3Encoder

    parser = argparse.ArgumentParser(description="Mine hard negatives for the sources of a configuration.")
    parser.add_argument("--config", required=True, help="a configuration of train/sft.py with [data.mining]")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting")
    parser.add_argument("--model", required=True, help="a folder, bundled name or hub id")
    parser.add_argument("--output", required=True, help="folder for the rows and report.json")
    given = parser.parse_args(arguments)
    data = load_config(given.config, given.set, SftConfig).data
    mine_sources(data, SearchR3Encoder(given.model, mode="direct"), given.output)
    for label, counts in _report(Path(given.output))["sources"].items():
        print(MiningReport(**counts).line(label))


if __name__ == "__main__":
    main()
