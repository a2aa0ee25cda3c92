"""A profile: short prompts, for small models with little room."""

from search_r3_mteb.encoder.profiles import Profile, Template
from search_r3_mteb.extensions import PROFILES


@PROFILES.register("short")
def short() -> Profile:
    """What `search-r3 init --profile short` writes into search_r3.json."""
    return Profile(
        reason=Template("Name what the text is about.", "{reasoning}{embed_token}"),
        direct=Template("Represent the text.", "{embed_token}"),
    )
