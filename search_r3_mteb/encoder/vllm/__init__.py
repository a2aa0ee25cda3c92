"""vLLM as an engine: queries reason there, in one pass, beside our own engine for what is embedded directly."""
