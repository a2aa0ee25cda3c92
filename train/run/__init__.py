"""One run: its folder, optimizer, evaluation, log and memory, and the command line of both stages."""
