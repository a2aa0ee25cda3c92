"""An HTTP server: OpenAI's embeddings by reason-then-embed, search over an index, and a page to try it."""
