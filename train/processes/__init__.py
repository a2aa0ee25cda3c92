"""Rank, world size and collectives of the process group, and the replicas of the corpus cache."""
