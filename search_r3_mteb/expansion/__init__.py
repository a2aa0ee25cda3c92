"""Query expansion without training: any causal LM writes, any encoder embeds."""
