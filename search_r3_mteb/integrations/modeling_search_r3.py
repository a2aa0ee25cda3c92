"""Classes that let this folder load with `trust_remote_code=True`. Needs the package search-r3-mteb."""

from search_r3_mteb.integrations.sentence_transformers import register
from search_r3_mteb.integrations.transformers_model import SearchR3Config, SearchR3Model
from search_r3_mteb.integrations.transformers_tokenizer import SearchR3Tokenizer

register()

__all__ = ["SearchR3Config", "SearchR3Model", "SearchR3Tokenizer"]
