"""Hard negatives that the starting model mines before a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from search_r3_mteb.encoder.checkpoints import Checkpoint
from search_r3_mteb.encoder.engine import Engine
from search_r3_mteb.encoder.prompts import Renderer
from search_r3_mteb.search.arrays import Vectors
from train.config.data import DataSettings
from train.data.hard_negatives import mine_sources
from train.model.model import embed


class StartingModel:
    """Vectors for mining, all from the main process; a `SearchR3Encoder` would wait for the other processes."""

    def __init__(self, checkpoint: Checkpoint, renderer: Renderer, batch_tokens: int) -> None:
        self._engine = Engine(checkpoint.model, checkpoint.embed_token_id, token_budget=batch_tokens)
        self._renderer = renderer

    def encode_query(self, texts: Sequence[str], *, batch_size: int) -> Vectors:
        """(n, dim) unit vectors; batches are formed by tokens, not by `batch_size`."""
        return embed(self._engine, self._renderer, texts)

    encode_document = encode_query


def mined_data(config: Any, checkpoint: Checkpoint, renderer: Renderer) -> DataSettings:
    """The data settings of `config`, with mined rows, kept in the run folder, where it asks for mining."""
    data: DataSettings = config.data
    if data.mining is None:
        return data
    encoder = StartingModel(checkpoint, renderer, config.evaluate.batch_tokens)
    return mine_sources(data, encoder, Path(config.output.folder) / "mined", seed=config.optimization.seed)
