"""How the package and its optional parts are installed: the words of every message and card that says so.

The package is not on an index of packages; until it is, it is installed from a checkout of its repository.
"""


def how_to_install(extra: str = "") -> str:
    """What to run, and where: of the package, or of one of its optional parts, such as "serve"."""
    part = f"'.[{extra}]'" if extra else "."
    return f"`pip install {part}` in a checkout of search-r3-mteb"
