"""What our side tells vLLM's worker of a row: how its turn goes and ends."""

from dataclasses import asdict, dataclass
from typing import Any

EXTRA = "search_r3"
"""The name of a row's rules among the `extra_args` of vLLM's sampling parameters."""


@dataclass(frozen=True)
class TurnRules:
    """The rules of one row, whose results are kept under `key`.

    `direct`: the prompt already ends in the embed token, and nothing is said. `budget` counts tokens before the embed
    token. `draws` are a number in [0, 1) per token and one for the embed token, where there is a `temperature`.
    """

    key: str
    embed_token_id: int
    budget: int = 0
    stop_token_ids: tuple[int, ...] = ()
    direct: bool = False
    temperature: float = 0.0
    draws: tuple[float, ...] = ()

    @property
    def max_tokens(self) -> int:
        """Tokens that vLLM generates at most: the reasoning, the embed token, and one that the step reading it gives.

        The last generated token of a row is never fed, so that the embed token may not be the last.
        """
        return 1 if self.direct else self.budget + 2

    def extra_args(self) -> dict[str, Any]:
        """As vLLM's sampling parameters carry them to the worker."""
        return {EXTRA: asdict(self)}
