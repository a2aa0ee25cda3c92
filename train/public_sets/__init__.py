"""Public training sets: which repository of the hub holds each, and how it becomes the files that configs name."""
