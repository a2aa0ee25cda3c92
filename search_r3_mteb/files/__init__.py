"""Documents, queries and judgements from the files that people have, and vectors into the files that they need."""

from search_r3_mteb.files.columns import Columns
from search_r3_mteb.files.documents import READABLE, iter_documents, iter_queries
from search_r3_mteb.files.opening import STANDARD_INPUT
from search_r3_mteb.tasks.beir_folder import Document, Query

__all__ = ["READABLE", "STANDARD_INPUT", "Columns", "Document", "Query", "iter_documents", "iter_queries"]
