"""LlamaIndex' `BaseEmbedding`: queries reason, texts do not. Needs the extra `llamaindex`.

    from search_r3_mteb.integrations.llamaindex import SearchR3Embedding
    Settings.embed_model = SearchR3Embedding("mini", max_reasoning_tokens=64)

LlamaIndex puts a node's metadata, such as its title, before the text. Its `embeddings_cache` knows a vector by its text
alone, so that a query would get the vector of a document with the same words, and is refused; `cache_folder=...` is a
cache that knows them apart.
"""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_index.core.base.embeddings.base import BaseEmbedding

from search_r3_mteb.integrations.embedder import Embedder, split_settings

if TYPE_CHECKING:
    from search_r3_mteb.encoder.encoder import SearchR3Encoder

_BATCH = 256  # texts per call; the encoder forms batches by tokens, so that only the progress bar's steps depend on it


class SearchR3Embedding(BaseEmbedding):
    """An embedding model by a model's name, a folder, or an encoder, which is then shared; loaded at once.

    Keyword arguments are those of `BaseEmbedding` (`callback_manager`, ...) and the encoder's settings,
    `SearchR3Encoder(model, ...)`; `instruction` goes before every query.
    """

    settings: dict[str, Any]
    instruction: str | None
    _embedder: Embedder

    def __init__(self, model_name: "str | Path | SearchR3Encoder" = "nano", **keywords: Any) -> None:
        keywords.pop("class_name", None)  # LlamaIndex writes it down and gives it back
        own = split_settings(keywords, tuple(type(self).model_fields))
        if own.get("embeddings_cache") is not None:
            raise ValueError(
                "embeddings_cache was given, but LlamaIndex looks a vector up there by its text alone, and a query and "
                "a document with the same text have different vectors here. Give cache_folder='FOLDER' in its place, "
                "where the encoder keeps them apart."
            )
        embedder = Embedder(model_name, own.pop("settings", None), own.pop("instruction", None))
        described = {"settings": embedder.settings, "instruction": embedder.instruction}
        super().__init__(**({"embed_batch_size": _BATCH} | own | described), model_name=embedder.model)
        self._embedder = embedder
        _ = embedder.encoder  # a model that is missing is found here, and not at the first query

    @classmethod
    def class_name(cls) -> str:
        """The name under which LlamaIndex writes this class down."""
        return "SearchR3Embedding"

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """LlamaIndex' description of this object; ValueError for an encoder that was made in memory."""
        self._embedder.described(type(self).__name__)
        described: dict[str, Any] = super().to_dict(**kwargs)
        return described

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._embedder.queries([query])[0]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._embedder.documents([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._embedder.documents(texts)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)
