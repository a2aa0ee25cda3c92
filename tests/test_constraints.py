"""constraints.txt holds every requirement, and what those need, at one public version that pyproject.toml allows."""

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.resolved import PYPROJECT, requirements, resolved

ROOT = Path(__file__).resolve().parents[1]


def pinned(text):
    """Name and version of each line, which must be NAME==VERSION and nothing else."""
    lines = [Requirement(line) for line in text.splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][a-z0-9.]*", str(line)) for line in lines)
    found = {line.name: Version(str(line.specifier)[2:]) for line in lines}
    assert len(found) == len(lines)
    return found


def missing_or_refused(declared, found):
    """Requirements that the constraints do not hold, or hold at a version that is not allowed."""
    return {
        line.name
        for line in map(Requirement, declared)
        if canonicalize_name(line.name) not in found or found[canonicalize_name(line.name)] not in line.specifier
    }


@pytest.fixture
def declared():
    return requirements(tomllib.loads(PYPROJECT.read_text(encoding="utf-8")))


@pytest.fixture
def text():
    return (ROOT / "constraints.txt").read_text(encoding="utf-8")


def test_every_requirement_is_held_at_a_version_that_is_allowed(declared, text):
    found = pinned(text)
    assert len(declared) > 40
    assert missing_or_refused(declared, found) == set()
    assert found["torch"].local is None  # the plain version, which its builds for a processor and for CUDA both are
    assert Version("2.13.0+cpu") in Requirement(f"torch=={found['torch']}").specifier


def test_a_line_that_is_missing_or_too_old_would_be_found(declared, text):
    found = pinned(text)
    for name in ("torch", "pytest", "trl", "pydantic", "uvicorn", "pyarrow"):
        assert missing_or_refused(declared, {n: v for n, v in found.items() if n != name}) == {name}
        assert missing_or_refused(declared, found | {name: Version("0.0.1")}) == {name}


def test_what_requirements_need_is_held_too(declared, text):
    """Their own requirements in this environment; on other versions and machines there may be some more or less."""
    here = resolved(declared)
    assert {"markupsafe", "regex", "networkx"} <= here.keys()
    assert here.keys() >= {canonicalize_name(Requirement(line).name) for line in declared}
    assert len(pinned(text).keys() & here.keys()) > 0.9 * len(here)
    assert here["torch"] == version("torch").partition("+")[0]
    assert "pip" not in here


def test_what_is_not_installed_is_named():
    with pytest.raises(RuntimeError, match=r"no-such-package, which pyproject\.toml needs, is not installed here"):
        resolved(["no-such-package>=1"])


def test_readme_says_how_to_use_it():
    assert "-c constraints.txt" in (ROOT / "README.md").read_text(encoding="utf-8")
