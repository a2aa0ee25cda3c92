"""The folder from which vLLM reads the weights of a loaded checkpoint."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from search_r3_mteb.encoder.adapters import ADAPTER_CONFIG
from search_r3_mteb.encoder.backbone import unwrap
from search_r3_mteb.encoder.checkpoints import Checkpoint
from search_r3_mteb.encoder.merging import merged


@contextmanager
def readable_folder(checkpoint: Checkpoint, folder: Path | None) -> Iterator[Path]:
    """The checkpoint's own folder, or a temporary one with its weights as they are in memory.

    vLLM knows neither our adapters with their rows of new tokens nor weights in memory: both are written out, adapters
    merged by the same code as `search-r3 merge`. Raises ValueError for what has no whole weights in a plain folder.
    """
    if folder is not None and not (folder / ADAPTER_CONFIG).exists():
        yield folder
        return
    with TemporaryDirectory(prefix="search-r3-vllm-") as place:
        whole = unwrap(merged(checkpoint.model, keep=True))
        whole.save_pretrained(place)
        yield Path(place)
