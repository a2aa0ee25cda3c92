"""The state of this process's random generators (Python's, numpy's, torch's) as a tree that a checkpoint holds."""

import random

import numpy as np
import torch

from search_r3_mteb.keys import key_of
from train.checkpoint.trees import Tree


def capture_random_state() -> Tree:
    """The state of all generators in this process."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),  # noqa: NPY002  libraries draw from the global one
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
    }


def restore_random_state(tree: Tree) -> None:
    """Continue the draws where `tree` was captured."""
    random.setstate(tree["python"])
    np.random.set_state(tree["numpy"])  # noqa: NPY002
    torch.set_rng_state(tree["torch"])
    if tree["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(tree["cuda"])


def seed_random_state(*parts: object) -> None:
    """Seed all generators from `parts`: for a process without a saved state."""
    seed = key_of(*parts) >> 1  # torch takes 63 bits
    random.seed(seed)
    np.random.seed(seed % (1 << 32))  # noqa: NPY002
    torch.manual_seed(seed)
