"""The command line `search-r3`: parses arguments, calls the library, prints results."""

# The order of these imports is that of the commands in --help.
from search_r3_mteb.cli import evaluation, comparing, encoding, checkpoints  # isort: skip  # noqa: F401
from search_r3_mteb.cli.options import app, name_values
from search_r3_mteb.cli.program import main

name_values(app)

__all__ = ["app", "main"]
