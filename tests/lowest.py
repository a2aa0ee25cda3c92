"""Every lower bound of pyproject.toml as a ceiling, for pip: with `>=1.2` declared, `<=1.2` leaves that version alone.

    python tests/lowest.py > bounds.txt && pip install --editable ".[train,dev]" --constraint bounds.txt

Ceilings, not pins: `==1.2` would also take a release that was withdrawn, which nobody gets who asks for `>=1.2`. A
resolver that looks for the lowest versions (uv's `lowest-direct`) goes above a bound that cannot be installed, and says
nothing; here that is an error. Standard library only: it runs before anything is installed.
"""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9._-]+)(\[[^]]*\])?>=(?P<bound>[0-9.]+)(,<[0-9.]+)?")


def declared(pyproject: dict[str, Any]) -> list[str]:
    """Every requirement: to build, to run, and of the extras, without the project's own extras."""
    project = pyproject["project"]
    extras = project.get("optional-dependencies", {}).values()
    groups = [pyproject["build-system"]["requires"], project["dependencies"], *extras]
    own = f"{project['name']}["
    return sorted({requirement for group in groups for requirement in group if not requirement.startswith(own)})


def ceilings(pyproject: dict[str, Any]) -> Iterator[str]:
    """One constraint per requirement, such as `torch<=2.13`; ValueError where there is no lower bound."""
    for requirement in declared(pyproject):
        parts = REQUIREMENT.fullmatch(requirement)
        if not parts:
            raise ValueError(
                f"pyproject.toml: {requirement!r} has no lower bound that can be tested; write NAME>=VERSION or "
                "NAME>=VERSION,<VERSION, with the oldest version that `make test-lowest` passes on"
            )
        yield f"{parts['name']}<={parts['bound']}"


if __name__ == "__main__":
    print("\n".join(ceilings(tomllib.loads(PYPROJECT.read_text(encoding="utf-8")))))
