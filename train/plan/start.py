"""What must hold before anything is loaded: a folder that can be written, and an adapter that fits the settings."""

from pathlib import Path

from search_r3_mteb.atomic import temporary_folder
from train.config.stages import RlConfig, SftConfig
from train.data.mixing import check_shares
from train.model.model import adapter_start


def check_start(config: SftConfig | RlConfig) -> list[str]:
    """Check what needs no model and no data; returns what is worth knowing, for people.

    Raises OSError for an output folder that cannot be written, ValueError for an adapter that cannot be trained as the
    settings say.
    """
    check_writable(Path(config.output.folder))
    path = config.model.path
    start = None if path is None else adapter_start(config.model, Path(path))
    notes = config.extension_notes() if isinstance(config, RlConfig) else []
    if (profile := config.model.own_profile) is not None:
        notes.append(f"The prompts come from the {profile}")
    if start is None:
        return notes
    if start == "merge":
        return [
            *notes,
            f"model: {path} is an adapter and there is no [model.lora]: it is merged, and every weight is trained",
        ]
    return [*notes, f"model: the training of the adapter {path} goes on; its base stays as it is"]


def check_processes(config: SftConfig | RlConfig, processes: int) -> None:
    """ValueError where the rows of a step cannot be shared evenly by that many processes."""
    if isinstance(config, SftConfig):
        check_shares("optimization.batch_size", config.optimization.batch_size, processes)
        return
    check_shares("rollout.prompts_per_step", config.rollout.prompts_per_step, processes)
    if config.replay.rows_per_step:
        check_shares("replay.rows_per_step", config.replay.rows_per_step, processes)


def check_writable(folder: Path) -> None:
    """OSError unless `folder` is, or can be made, a folder that this process can write into. Nothing is left behind."""
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        with temporary_folder(place / "search-r3"):
            pass
    except OSError as error:
        raise OSError(
            f"output.folder = {str(folder)!r} cannot be written ({error.strerror or error}): the run would have no "
            "place for its checkpoints. Name another folder."
        ) from error
