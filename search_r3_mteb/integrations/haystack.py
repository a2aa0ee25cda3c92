"""Haystack's text and document embedders: texts are queries and reason, documents do not.

Needs the extra `haystack`.

    from search_r3_mteb.integrations.haystack import SearchR3DocumentEmbedder, SearchR3TextEmbedder
    pipeline.add_component("query", SearchR3TextEmbedder("mini", max_reasoning_tokens=64))

The model is loaded by `warm_up`, which a pipeline calls, or by the first run. A pipeline is written down with model and
settings; to read it back, Haystack asks for `Pipeline.loads(..., allowed_modules=[SearchR3TextEmbedder.__module__])`.
Give both components one `SearchR3Encoder` in place of a name to hold the weights once.
"""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haystack import Document, component, default_from_dict, default_to_dict

from search_r3_mteb.integrations.embedder import Embedder, split_settings

if TYPE_CHECKING:
    from search_r3_mteb.encoder.encoder import SearchR3Encoder


class _Component:
    """What both embedders share: loading, and being written down."""

    def __init__(self, model: "str | Path | SearchR3Encoder" = "nano", **keywords: Any) -> None:
        self._embedder = Embedder(model, **split_settings(keywords, ("settings", "instruction")))

    def warm_up(self) -> None:
        """Load the model."""
        _ = self._embedder.encoder

    async def warm_up_async(self) -> None:
        """Load the model in a thread."""
        await asyncio.to_thread(self.warm_up)

    def to_dict(self) -> dict[str, Any]:
        """Haystack's description of this component; ValueError for an encoder that was made in memory."""
        written: dict[str, Any] = default_to_dict(self, **self._embedder.described(type(self).__name__))
        return written

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Any:
        """The component of such a description."""
        return default_from_dict(cls, data)


@component
class SearchR3TextEmbedder(_Component):
    """Embeds a query, after reasoning.

    `model` is a bundled name, a folder, a hub id, or an encoder. Keyword arguments are the encoder's settings,
    `SearchR3Encoder(model, ...)`; `instruction` goes before every query.
    """

    @component.output_types(embedding=list[float])
    def run(self, text: str) -> dict[str, Any]:
        """The vector of `text` as "embedding" (dim floats)."""
        return {"embedding": self._embedder.queries([text])[0]}

    @component.output_types(embedding=list[float])
    async def run_async(self, text: str) -> dict[str, Any]:
        """As `run`, in a thread."""
        return await asyncio.to_thread(self.run, text)


@component
class SearchR3DocumentEmbedder(_Component):
    """Embeds documents, without reasoning.

    `meta_fields_to_embed` names fields of a document's `meta` that go before its content, with one space between, as
    MTEB and BEIR join a title: `["title"]`. Otherwise as `SearchR3TextEmbedder`.
    """

    def __init__(
        self,
        model: "str | Path | SearchR3Encoder" = "nano",
        *,
        meta_fields_to_embed: list[str] | None = None,
        **keywords: Any,
    ) -> None:
        _Component.__init__(self, model, **keywords)  # Haystack makes the class again, and `super()` would miss it
        self.meta_fields_to_embed = list(meta_fields_to_embed or [])

    def to_dict(self) -> dict[str, Any]:
        """Haystack's description of this component; ValueError for an encoder that was made in memory."""
        written = _Component.to_dict(self)
        written["init_parameters"]["meta_fields_to_embed"] = self.meta_fields_to_embed
        return written

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """Copies of the documents as "documents", each with its `embedding` (dim floats).

        Raises ValueError for a document without content, such as an image or a table.
        """
        empty = [document.id for document in documents if document.content is None]
        if empty:
            raise ValueError(
                f"Document {empty[0]} (and {len(empty) - 1} more) has no content, and this model reads text only. Give "
                "it a text, or keep it from this component with a router."
            )
        vectors = self._embedder.documents([self._text(document) for document in documents])
        return {"documents": [replace(each, embedding=row) for each, row in zip(documents, vectors, strict=True)]}

    @component.output_types(documents=list[Document])
    async def run_async(self, documents: list[Document]) -> dict[str, Any]:
        """As `run`, in a thread."""
        return await asyncio.to_thread(self.run, documents)

    def _text(self, document: Document) -> dict[str, str]:
        said = [document.meta.get(name) for name in self.meta_fields_to_embed]
        title = " ".join(str(each) for each in said if each is not None)
        return {"title": title, "text": document.content or ""}
