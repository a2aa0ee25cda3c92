"""Keys of texts: 64 bits, the same in every process and Python version."""

import hashlib


def key_of(*parts: object) -> int:
    """64 bits that depend on every part."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
