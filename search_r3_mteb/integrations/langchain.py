"""LangChain's `Embeddings`: queries reason, documents do not. Needs the extra `langchain`.

    from search_r3_mteb.integrations.langchain import SearchR3Embeddings
    store = InMemoryVectorStore(SearchR3Embeddings("mini", max_reasoning_tokens=64))

`aembed_query` and `aembed_documents` are LangChain's own, which run the methods below in a thread. A store embeds a
document's `page_content` alone: put the title there. `langchain_core.load.dumps` writes model and settings down.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_core.embeddings import Embeddings
from langchain_core.load.serializable import Serializable

from search_r3_mteb.integrations.embedder import Embedder, split_settings

if TYPE_CHECKING:
    from search_r3_mteb.encoder.encoder import SearchR3Encoder


class SearchR3Embeddings(Serializable, Embeddings):
    """Embeddings by a model's name, a folder, or an encoder, which is then shared; loaded at once.

    Keyword arguments are the encoder's settings, `SearchR3Encoder(model, ...)`; `instruction` goes before every query.
    """

    model: str
    settings: dict[str, Any]
    instruction: str | None
    _embedder: Embedder
    model_config = {"extra": "forbid", "frozen": True, "protected_namespaces": ()}  # noqa: RUF012  # pydantic's form

    def __init__(self, model: "str | Path | SearchR3Encoder" = "nano", **keywords: Any) -> None:
        given = split_settings(keywords, ("settings", "instruction"))
        embedder = Embedder(model, **given)
        super().__init__(model=embedder.model, settings=embedder.settings, instruction=embedder.instruction)
        self._embedder = embedder
        _ = embedder.encoder  # a model that is missing is found here, and not at the first query

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """True: by model, settings and instruction."""
        return True

    def to_json(self) -> Any:
        """LangChain's description of this object; ValueError for an encoder that was made in memory."""
        self._embedder.described(type(self).__name__)
        return super().to_json()

    def embed_query(self, text: str) -> list[float]:
        """The vector of a query (dim floats), after reasoning."""
        return self._embedder.queries([text])[0]

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """One vector per document (dim floats), without reasoning."""
        return self._embedder.documents(texts)
