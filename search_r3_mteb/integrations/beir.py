"""BEIR's two methods: `DenseRetrievalExactSearch(encoder)` calls `encode_queries` and `encode_corpus`.

Known limits of beir 2.2 that no encoder can mend: its exact search crashes on a single query, its FAISS and parallel searches
cannot be instantiated, and `EvaluateRetrieval.evaluate` averages over the queries present in a run. Where that matters,
evaluate the same folder through MTEB (`search_r3_mteb.tasks.beir_folder`).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from search_r3_mteb.encoder.documents import Documents, document_texts

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float32
    from torch import Tensor

    from search_r3_mteb.encoder.encoder import SearchR3Encoder


def encode_queries(
    encoder: "SearchR3Encoder",
    queries: Sequence[str],
    batch_size: int | None = None,
    show_progress_bar: bool | None = None,
    convert_to_tensor: bool = False,
) -> "Float32[np.ndarray, 'queries dim'] | Float32[Tensor, 'queries dim']":
    """Query vectors (queries, dim), unit length, in order; a tensor on the CPU when `convert_to_tensor`."""
    return encoder.encode_query(
        list(queries),
        batch_size=batch_size,
        show_progress_bar=show_progress_bar,
        convert_to_tensor=convert_to_tensor,
    )


def encode_corpus(
    encoder: "SearchR3Encoder",
    corpus: Documents,
    batch_size: int | None = None,
    show_progress_bar: bool | None = None,
    convert_to_tensor: bool = False,
) -> "Float32[np.ndarray, 'documents dim'] | Float32[Tensor, 'documents dim']":
    """Document vectors (documents, dim), unit length, in order; title and text are both embedded.

    `corpus` is a list of {"title"?, "text"} or columns {"title": [...], "text": [...]}: BEIR has used both.
    """
    return encoder.encode_document(
        document_texts(corpus),
        batch_size=batch_size,
        show_progress_bar=show_progress_bar,
        convert_to_tensor=convert_to_tensor,
    )
