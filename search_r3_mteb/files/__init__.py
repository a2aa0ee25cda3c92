"""Documents and queries from the files that people have, and vectors into the files that they need."""

from search_r3_mteb.files.columns import Columns
from search_r3_mteb.files.documents import iter_documents, iter_queries
from search_r3_mteb.tasks.beir_folder import Document, Query

__all__ = ["Columns", "Document", "Query", "iter_documents", "iter_queries"]
