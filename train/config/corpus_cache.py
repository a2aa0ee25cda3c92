"""Settings of the corpus cache: which vectors are refreshed, how they are stored and searched, how they are audited."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from search_r3_mteb.extensions import REFRESH_POLICIES
from train.config.settings import (
    Count,
    CountOrZero,
    Names,
    OwnPolicies,
    OwnSettings,
    OwnTables,
    Positive,
    Settings,
    Share,
    StrictBool,
    Weight,
    settings_class,
)

Memory = Annotated[float, Field(strict=True, ge=0, lt=1)]
CachePolicy = Annotated[str, Field(strict=True), Names(REFRESH_POLICIES)]


class CorpusCacheSettings(Settings):
    """The corpus vectors and how they stay fresh (measured in results/corpus_cache)."""

    policy: CachePolicy = "local+map"
    """Which rows are re-encoded. Our choice: the best of those measured at equal cost."""
    budget_tokens: CountOrZero = 65536
    """Document tokens re-encoded per step. Our choice: about 500 documents of 128 tokens."""
    top_k: Count = 10
    """Candidates for the refresh per rollout. Our choice: the ranks that nDCG@10 sees."""
    hops: CountOrZero = 1
    """Neighbours of candidates within so many edges are candidates too. Our choice: 1."""
    neighbors: Count = 16
    """Edges per document in the neighbour graph. Our choice: HNSW's usual M."""
    sweep_share: Share = 0.5
    """Part of the budget for the oldest rows, whatever the queries touch. Our choice: no row is forgotten."""
    map_ridge: Positive = 0.3
    """Ridge of the drift map, times pairs / dimensions + 3. Our choice: 0.3, measured on simulated drift."""
    map_memory: Memory = 0.5
    """How much of the earlier refreshes' Gram matrix the drift map's fit keeps; 0 fits each refresh alone. Our choice:
    0.5, measured on held-out queries along a real run (results/corpus_cache)."""
    max_maps: Count = 64
    """Composed maps held at once, (dim + 1) x dim float32 each. Our choice: 64, 0.6 GB at 1,536 dimensions."""
    storage: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the vectors that are scanned. In half precision the float32 originals stay on disk and score the best
    rows. Our choice: float32, half precision is for corpora that do not fit in memory."""
    device: Literal["run", "cpu"] = "run"
    """Where rows are searched and mapped. run: on the run's GPU, in blocks; cpu: with numpy. Our choice: run."""
    device_gigabytes: Weight = 8.0
    """Vectors that stay on the GPU between steps, in 10^9 bytes; the others travel at every use. Our choice: 8, room
    beside the training for 2.6 million values of 1,536 dimensions in half precision."""
    block_megabytes: Count = 64
    """Size of a block that travels to the GPU, of which four wait in pinned memory. Our choice: 64."""
    keep_originals: StrictBool | None = None
    """Keep every row's encoded float32 vector beside its value. Our choice: absent, where policy or storage need it."""
    index: Literal["exact", "ivf"] = "exact"
    """exact: every row is scored; ivf: FAISS with in-place updates. Our choice: exact until it no longer fits."""
    index_maps: Count = 50
    """Drift maps after which the IVF index, which ignores them, is rebuilt at the next search. Our choice: 50."""
    encode_rows: Count = 1024
    """Documents per call of the encoder when the whole corpus is encoded. Our choice: 1,024, it batches by tokens."""
    log_megabytes: CountOrZero = 64
    """Size of the change log at which it is folded into the state. Our choice: 64, read again within a second."""
    tokens_folder: str | None = None
    """Folder of the documents' token ids, which are made once for a corpus, tokenizer and length. Runs that name the
    same one share them. Our choice: absent, `tokens` in the run's folder."""
    durable: StrictBool = False
    """Wait for the disk at every refresh: needed against power cuts, not against killed processes. Our choice: off."""
    audit_every: CountOrZero = 20
    """Steps between audits against fresh vectors; 0 = never. Our choice: 20."""
    audit_rows: Count = 256
    """Documents re-encoded per audit. Our choice: standard error of a share below 0.03."""
    error_bound: Positive = 0.02
    """Reward error of an audit above which the budget grows. Our choice: a fiftieth of the reward's range."""
    budget_growth: Positive = 2.0
    """Factor by which the budget grows at such an audit, and shrinks below half of the bound. Our choice: doubling."""
    budget_limit_tokens: Count = 524288
    """Limit of the growing budget; beyond it the log advises a rebuild. Our choice: eight times the start."""
    own: OwnPolicies = OwnTables()
    """Settings of a policy that another package brings (docs/extend.md), in a table of its name. Our choice: none."""

    def check(self) -> None:
        """A refreshing policy has a budget, the budget can grow, and the originals that values need are kept."""
        for name in self.own.tables:
            if name != self.policy:
                raise ValueError(
                    f'own.{name} would have no effect: policy = "{self.policy}". Set policy = "{name}", or remove it.'
                )
        _ = self.own_settings  # raises where they are missing
        if self.policy not in ("none", "frozen", "full") and self.budget_tokens == 0:
            raise ValueError(
                f'policy = "{self.policy}" re-encodes documents, but budget_tokens = 0 lets it encode none. Set a '
                'budget, or policy = "none".'
            )
        if self.budget_growth < 1:
            raise ValueError(
                f"budget_growth = {self.budget_growth} would shrink the budget when the error is too large."
            )
        if self.budget_limit_tokens < self.budget_tokens:
            raise ValueError(
                f"budget_limit_tokens = {self.budget_limit_tokens} is below the first budget, {self.budget_tokens}."
            )
        if self.keep_originals is False and self.needs_originals:
            raise ValueError(
                f'keep_originals = false, but policy = "{self.policy}" with storage = "{self.storage}" computes values '
                "from the encoded originals. Leave keep_originals out, or choose a policy without map and float32."
            )

    @property
    def max_budget_factor(self) -> float:
        """The largest factor by which audits multiply the budget."""
        return self.budget_limit_tokens / max(self.budget_tokens, 1)

    @property
    def own_settings(self) -> OwnSettings | None:
        """The settings of a policy that another package brings; None for one of ours."""
        if self.policy in REFRESH_POLICIES.reserved:
            return None
        if self.policy in self.own.tables:
            found: OwnSettings = self.own.tables[self.policy]
            return found
        cls = settings_class(REFRESH_POLICIES.find(self.policy), OwnSettings)
        needed = [name for name, each in cls.model_fields.items() if each.is_required()]
        if needed:
            raise ValueError(
                f'policy = "{self.policy}" needs {", ".join(needed)}: add a table [corpus_cache.own.{self.policy}].'
            )
        return cls()

    @property
    def uses_map(self) -> bool:
        """Whether the drift map moves the rows that are not re-encoded."""
        if self.policy in REFRESH_POLICIES.reserved:
            return self.policy.endswith("+map")
        return bool(REFRESH_POLICIES.find(self.policy).options.get("uses_map", False))

    @property
    def needs_originals(self) -> bool:
        """Whether values are computed from encoded originals."""
        return self.uses_map or self.storage != "float32"

    @property
    def originals(self) -> bool:
        """Whether the cache holds encoded originals beside the values."""
        return self.needs_originals if self.keep_originals is None else self.keep_originals

    def place_of_tokens(self, run_folder: Path) -> Path:
        """The folder of token ids of a run in `run_folder`."""
        return run_folder / "tokens" if self.tokens_folder is None else Path(self.tokens_folder)

    def compute_device(self, run_device: Any) -> Any:
        """The device that searches and maps in a run on `run_device`; None is the processor, with numpy."""
        return None if self.device == "cpu" or run_device.type == "cpu" else run_device
