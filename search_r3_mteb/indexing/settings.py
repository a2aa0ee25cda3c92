"""Settings of an index: how its parts are searched."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from search_r3_mteb.encoder.setting_types import check_names, check_whole_number

IndexKind = Literal["flat", "ivf", "hnsw"]
KINDS: tuple[IndexKind, ...] = get_args(IndexKind)


@dataclass(frozen=True)
class IndexSettings:
    """How an index finds the nearest documents. Counts are of rows unless stated otherwise.

    `kind`: "flat" compares a query with every document, and finds exactly the best. "ivf" compares it with those of
    the nearest `ivf_probes` of `ivf_lists` clusters, "hnsw" walks a graph of neighbours; both read a compressed copy,
    propose candidates, and score those from the float32 vectors. "auto" is flat below `flat_below` rows, and ivf from
    there on. Documents that are added lie in a part of their own, which is flat while it is smaller than that.

    Our choice, from 1,000,000 made rows of 384 on one core (results/serving): a flat scan of half of them takes an
    eighth of a second for a query alone, and misses nothing. IVF answers in 10 ms with a recall@10 of 0.999, and is
    built in 15 seconds more than flat; HNSW answers in 1 ms with 0.987, and its graph takes a quarter of an hour.

    `ivf_lists` None: the square root of the number of rows. `ivf_probes` None: 1/16 of the lists, at least 32.
    `hnsw_links` is the number of neighbours per row (M), `hnsw_build` and `hnsw_search` are the candidates that are
    kept while a row is entered and while a query walks (efConstruction, efSearch).
    """

    kind: Literal["auto", "flat", "ivf", "hnsw"] = "auto"
    flat_below: int = 500_000
    ivf_lists: int | None = None
    ivf_probes: int | None = None
    hnsw_links: int = 32
    hnsw_build: int = 40
    hnsw_search: int = 128

    def __post_init__(self) -> None:
        if self.kind not in ("auto", *KINDS):
            raise ValueError(f"kind={self.kind!r} does not exist; it is one of auto, {', '.join(KINDS)}.")
        for name, least in {"flat_below": 0, "hnsw_links": 2, "hnsw_build": 1, "hnsw_search": 1}.items():
            check_whole_number(name, getattr(self, name))
            _check_least(name, getattr(self, name), least)
        for name in ("ivf_lists", "ivf_probes"):
            check_whole_number(name, getattr(self, name), optional=True)
            _check_least(name, getattr(self, name), 1)

    def kind_of(self, rows: int, *, added: bool = False) -> IndexKind:
        """How a part of so many rows is searched; `added`: the part lies beside others."""
        if self.kind == "auto":
            return "flat" if rows < self.flat_below else "ivf"
        return "flat" if added and rows < self.flat_below else self.kind

    @classmethod
    def from_keywords(cls, keywords: Mapping[str, Any]) -> "IndexSettings":
        """Settings from keyword arguments; TypeError for an unknown one, with the valid ones."""
        check_names(keywords, cls, "SearchIndex")
        return cls(**keywords)


def _check_least(name: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        raise ValueError(f"{name}={value} must be at least {least}.")
