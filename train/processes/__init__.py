"""Rank, world size and collectives: the only home of what several processes tell each other."""
