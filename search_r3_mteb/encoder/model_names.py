"""Names of models: the folder that a bundled name, a path or a hub id means, and the name that MTEB is told."""

from pathlib import Path

from search_r3_mteb.atomic import put_back
from search_r3_mteb.encoder.adapters import ADAPTER_CONFIG
from search_r3_mteb.encoder.folders import check_name, method_hint

ASSETS = Path(__file__).resolve().parent.parent / "assets"
BUNDLED_PREFIX = "search-r3-mteb/"
"""What the names of bundled models begin with: MTEB asks for an organisation."""


def bundled_names() -> list[str]:
    """Names of the models that came with this package, adapters among them."""
    return sorted({path.parent.name for name in ("config.json", ADAPTER_CONFIG) for path in ASSETS.glob(f"*/{name}")})


def is_bundled(folder: Path) -> bool:
    """Whether this is the folder of a model that came with this package."""
    return folder.parent == ASSETS


def resolve(path_or_id: str | Path, revision: str | None = None) -> Path:
    """The local folder of a bundled name, a path, or a hub id (downloaded when it is not in the hub's cache).

    A `Path` is always the folder. Raises ValueError for a string that means both a bundled model and a folder here.
    """
    name = str(path_or_id)
    check_name(name)
    put_back(Path(name))  # a kill while the folder was replaced has left it under another name
    is_folder = bool(name) and Path(name).is_dir()
    if isinstance(path_or_id, Path) and not is_folder:
        raise FileNotFoundError(
            f"There is no folder {name!r}, and a Path is always a folder. Check it, or give a bundled name or a hub id "
            "as a string."
        )
    stem = name.removeprefix(BUNDLED_PREFIX)
    bundled = ASSETS / stem
    if not isinstance(path_or_id, Path) and "/" not in stem and stem in bundled_names():
        if is_folder and not bundled.samefile(name):
            other = f"{BUNDLED_PREFIX}{name}" if "/" not in name else "its name from another working directory"
            raise ValueError(
                f"{name!r} is both a bundled model and a folder here ({Path(name).absolute()}). Write './{name}' or "
                f"Path({name!r}) for the folder, {other!r} for the bundled model."
            )
        return bundled
    if is_folder:
        return Path(name)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        known = ", ".join(bundled_names()) or "none"
        raise FileNotFoundError(
            f"There is no model {name!r}: not a folder, not a hub id of the form organisation/model, and not bundled "
            f"(bundled: {known}). Check the path.{method_hint(name)}"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        patterns = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model", "*.tiktoken", "*.py"]
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        said = " ".join(str(error).split()).rstrip(".")
        raise FileNotFoundError(
            f"The model {name!r} (revision {revision or 'main'}) is neither a folder here nor found on the hub: "
            f"{said}. Check the name and the network, or download it elsewhere and give the folder."
        ) from error


def display_name(name: str, folder: Path) -> str:
    """The name as organisation/model, the form that MTEB requires; a snapshot in the hub's cache has its hub id."""
    if is_bundled(folder):
        return f"{BUNDLED_PREFIX}{folder.name}"
    place = folder.resolve()
    if place.parent.name == "snapshots" and place.parent.parent.name.startswith("models--"):
        hub_id = place.parent.parent.name.removeprefix("models--").replace("--", "/")
        return hub_id if "/" in hub_id else f"local/{hub_id}"
    if name.count("/") == 1 and not Path(name).is_dir():
        return name
    return f"local/{place.name}"
