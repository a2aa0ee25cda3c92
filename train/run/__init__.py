"""One run: optimizer, evaluation, log, memory, and the command line of both stages."""
