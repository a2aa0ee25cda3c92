"""What the site is built with: the extra `docs` of pyproject.toml, one requirement per line, for pip."""

import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"

if __name__ == "__main__":
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    print(*project["optional-dependencies"]["docs"], sep="\n")
