"""The model in training: loading, batches, and a model from nothing."""
