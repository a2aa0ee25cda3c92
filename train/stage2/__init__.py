"""Stage 2: reinforcement learning on rollouts."""
