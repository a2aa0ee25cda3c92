"""What a store has on disk."""

import json


def files_of(folder):
    """Every file's bytes, without the time that a chunk took."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            if path.name == "chunk.json":
                content = json.dumps({**json.loads(content), "seconds": None, "checksum": None}).encode()
            found[str(path.relative_to(folder))] = content
    return found
