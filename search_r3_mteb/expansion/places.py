"""METHOD:WRITER+ENCODER: which model stands where."""

from pathlib import Path

from search_r3_mteb.encoder.folders import can_write
from search_r3_mteb.encoder.model_names import resolve
from search_r3_mteb.expansion.methods import Method


def check_places(method: Method, writer: str | Path | None, encoder: str | Path) -> None:
    """Raises FileNotFoundError for a model that is not there, ValueError for an encoder in the writer's place."""
    folders = [resolve(model) for model in (writer, encoder) if model is not None]
    if writer is None or can_write(folders[0]):
        return
    turned = f" Perhaps {method.name}:{encoder}+{writer} is meant." if can_write(folders[1]) else ""
    raise ValueError(
        f"{str(writer)!r} is in the writer's place of {method.name}:WRITER+ENCODER, but it is an encoder, which "
        f"writes nothing: the writer comes before the '+', the encoder after it.{turned}"
    )
