"""From documents to search: a folder that holds vectors, ids and texts, and answers questions."""
