"""What an encoder asks of an engine, and which engines there are."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from search_r3_mteb.encoder.checkpoints import Checkpoint
from search_r3_mteb.encoder.engine import Engine, Rollouts
from search_r3_mteb.encoder.processes import process_count
from search_r3_mteb.encoder.sampling import Sampling
from search_r3_mteb.encoder.settings import EngineName


class TextEngine(Protocol):
    """Token ids in, vectors out: all that an encoder uses of `Engine` and `VllmEngine`.

    `causal` is the causal LM in memory, whose dtype both have; `forward_tokens` counts the tokens that went through the
    model. `stop_token_ids` end a row's reasoning.
    """

    embed_token_id: int
    stop_token_ids: tuple[int, ...]
    token_budget: int
    batch_invariant: bool
    forward_tokens: int
    causal: Any
    dim: int

    @property
    def device(self) -> Any:
        """Where the model runs."""

    @property
    def vocabulary(self) -> int:
        """Number of logits."""

    def identity(self, reasons: bool) -> dict[str, Any]:
        """What of the engine decides a vector beside the arithmetic, of a row that `reasons` or of a direct one."""

    def embed(self, prompts: Sequence[Sequence[int]], on_batch: Callable[[int], None] | None = None) -> Any:
        """Vectors (n, dim), float32 on the CPU, of prompts that already end in the embed token."""

    def reason(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        group_size: int = 1,
        log_probs: bool = ...,
        on_batch: Callable[[int], None] | None = None,
    ) -> Rollouts:
        """Reason from each prompt and embed, in one pass. An encoder asks for no log-probabilities."""


def open_engine(
    name: EngineName,
    checkpoint: Checkpoint,
    own: Engine,
    *,
    folder: Path | None,
    positions: int,
    trust_remote_code: bool,
    options: Mapping[str, Any] | None,
) -> TextEngine:
    """`own`, or vLLM beside it; `positions` in tokens of a row, `folder` where the checkpoint was read from.

    Raises ImportError where vLLM is not installed, ValueError for options that it may not have.
    """
    if name == "own":
        return own
    if process_count() > 1:
        raise ValueError(
            f"engine='vllm' was given to {process_count()} processes of one program, each of which would start vLLM on "
            "the same device. Run one process, and give vLLM several GPUs by "
            "engine_options={'tensor_parallel_size': ...}."
        )
    from search_r3_mteb.encoder.vllm.engine import VllmEngine

    return VllmEngine(
        checkpoint, own, folder=folder, positions=positions, trust_remote_code=trust_remote_code, options=options
    )
