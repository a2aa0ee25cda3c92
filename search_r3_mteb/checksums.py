"""Size and sha256 of files, and whether a file still has them."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def described(path: Path) -> dict[str, Any]:
    """Size in bytes and sha256 (hex) of a file."""
    with path.open("rb") as stream:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def difference(path: Path, wanted: Mapping[str, Any]) -> str | None:
    """How a file differs from what `described` once said of it, None where it does not; sizes are compared first.

    Raises OSError for a file that is there and cannot be read.
    """
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    if size != wanted["bytes"]:
        return f"has {size} bytes instead of {wanted['bytes']}"
    return None if described(path) == wanted else "does not match its checksum"
