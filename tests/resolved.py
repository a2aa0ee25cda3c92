"""The versions that the project's requirements came to in this environment, as constraints for pip.

    python tests/resolved.py > constraints.txt        (make constraints)

Every requirement of pyproject.toml and, from there, of what is installed: nothing else that happens to lie in the
environment. Versions are the public ones: `torch==2.13.0` also holds for its build for a processor, 2.13.0+cpu.
"""

import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
EXTRAS = ("train", "dev", "trl", "serve", "parquet")
HEADER = """# The versions that the suite last passed on: Python {python}, Linux, no GPU. By make constraints.
# pyproject.toml says what works; for exactly these: pip install -c constraints.txt ...
"""


def requirements(pyproject: dict[str, Any]) -> list[str]:
    """To build, to run, and of the extras that the suite is installed with, without the project's own extras."""
    project = pyproject["project"]
    groups = [pyproject["build-system"]["requires"], project["dependencies"]]
    groups += [project["optional-dependencies"][extra] for extra in EXTRAS]
    return [line for group in groups for line in group if Requirement(line).name != project["name"]]


def resolved(lines: list[str]) -> dict[str, str]:
    """Public versions by canonical name, of what these requirements need here, and of what that needs in turn.

    Raises RuntimeError for a requirement that is not installed.
    """
    found: dict[str, str] = {}
    left = [(Requirement(line), "pyproject.toml") for line in lines]
    seen: set[tuple[str, frozenset[str]]] = set()
    while left:
        requirement, asked_by = left.pop()
        extras = requirement.extras or {""}
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            continue
        name = canonicalize_name(requirement.name)
        if (name, frozenset(extras)) in seen:
            continue
        seen.add((name, frozenset(extras)))
        try:
            installed = distribution(name)
        except PackageNotFoundError as error:
            raise RuntimeError(f"{name}, which {asked_by} needs, is not installed here. Run make install.") from error
        found[name] = re.sub(r"\+.*", "", installed.version)
        for line in installed.requires or ():
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                needed.marker = None
                left.append((needed, name))
    return dict(sorted(found.items()))


def main() -> None:
    """Print the constraints."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    print(HEADER.format(python=version), end="")
    for name, pinned in resolved(requirements(tomllib.loads(PYPROJECT.read_text(encoding="utf-8")))).items():
        print(f"{name}=={pinned}")


if __name__ == "__main__":
    main()
