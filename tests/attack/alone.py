"""What the programs of the attack set before numpy, torch and the libraries of the hub are imported."""

import os
import threading


def one_thread_and_no_network() -> None:
    """Threads do not survive a fork, and two processes share two cores; nothing may be asked of a hub."""
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    # tqdm's own lock is shared by forked processes: one that is killed while it holds it would stop all others.
    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())
