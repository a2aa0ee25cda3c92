"""Search-R3: a causal LM reasons about a query in text, then one token's hidden state is the query's embedding.

The names below are loaded when first used; importing the package does not load torch, mteb, faiss or transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer as SentenceTransformer

    from search_r3_mteb.encoder.encoder import SearchR3Encoder as SearchR3Encoder
    from search_r3_mteb.encoder.thoughts import Thought as Thought
    from search_r3_mteb.expansion.feedback import FeedbackEncoder as FeedbackEncoder
    from search_r3_mteb.expansion.writer_encoder import WriterEncoder as WriterEncoder
    from search_r3_mteb.indexing.index import SearchIndex as SearchIndex
    from search_r3_mteb.integrations.sentence_transformers import register as register
    from search_r3_mteb.tasks.hopworld import HopWorld as HopWorld
    from search_r3_mteb.tasks.mteb_tasks import BeirFolder as BeirFolder

_HOMES = {
    "SearchR3Encoder": "search_r3_mteb.encoder.encoder",
    "Thought": "search_r3_mteb.encoder.thoughts",
    "SearchIndex": "search_r3_mteb.indexing.index",
    "SentenceTransformer": "search_r3_mteb.integrations.sentence_transformers",
    "register": "search_r3_mteb.integrations.sentence_transformers",
    "BeirFolder": "search_r3_mteb.tasks.mteb_tasks",
    "FeedbackEncoder": "search_r3_mteb.expansion.feedback",
    "WriterEncoder": "search_r3_mteb.expansion.writer_encoder",
    "HopWorld": "search_r3_mteb.tasks.hopworld",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    """A public name, from the module that holds it, which is imported now."""
    if name not in _HOMES:
        raise AttributeError(f"module 'search_r3_mteb' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """The public names."""
    return __all__
