"""Settings of the server: its limits, and how requests are read."""

import os
from dataclasses import dataclass

from search_r3_mteb.encoder.setting_types import check_flag, check_number, check_whole_number

API_KEY = "SEARCH_R3_API_KEY"
"""The environment variable of the key; nobody sees it in a list of processes."""


@dataclass(frozen=True)
class ServeSettings:
    """Limits of a server. Lengths are in texts, seconds and bytes; the defaults are our choice.

    `max_queue`: texts that may wait or be computed at once; who comes then gets 429. `max_inputs`: texts of one request
    (2048 are OpenAI's). `max_bytes`: of one request's body. `timeout`: seconds until a request is given up with 504.
    `grace`: seconds that SIGTERM leaves to what runs. `require_role`: a request that does not say whether its texts are
    queries or documents is refused; otherwise they are documents. `max_hits`: the largest k of a search.
    """

    max_queue: int = 4096
    max_inputs: int = 2048
    max_bytes: int = 16 << 20
    timeout: float = 300.0
    grace: float = 30.0
    require_role: bool = False
    max_hits: int = 1000

    def __post_init__(self) -> None:
        for name in ("max_queue", "max_inputs", "max_bytes", "max_hits"):
            check_whole_number(name, getattr(self, name))
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        for name in ("timeout", "grace"):
            check_number(name, getattr(self, name))
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name)} must be a positive number of seconds.")
        check_flag("require_role", self.require_role)
        if self.max_inputs > self.max_queue:
            raise ValueError(
                f"max_inputs={self.max_inputs} texts of one request cannot wait in a queue of "
                f"max_queue={self.max_queue}: it would be refused for ever. Raise max_queue, or lower max_inputs."
            )


def api_key() -> str | None:
    """The key that requests must bring, None where the variable is not set. Raises ValueError for an empty one."""
    key = os.environ.get(API_KEY)
    if key is not None and (not key.strip() or not key.isascii() or not key.isprintable()):
        raise ValueError(
            f"{API_KEY} is set, but it is blank or holds characters that no HTTP header can carry: requests could not "
            "be let in by it. Give it printable ASCII characters, or unset it to serve without a key."
        )
    return key
