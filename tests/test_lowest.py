"""`make test-lowest` takes every lower bound of pyproject.toml: none is forgotten, and nothing goes above one."""

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.lowest import PYPROJECT, ceilings

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def pyproject():
    return tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))


def requirements(pyproject):
    """All requirements, by the packaging library's own reading."""
    project = pyproject["project"]
    lines = pyproject["build-system"]["requires"] + project["dependencies"]
    lines += [line for extra in project["optional-dependencies"].values() for line in extra]
    read = [Requirement(line) for line in lines]
    return [requirement for requirement in read if requirement.name != project["name"]]


def not_held(pyproject, lines):
    """Names of requirements of which another version than the lower bound is left, or not even that one."""
    ceiling = {canonicalize_name(line.name): line.specifier for line in map(Requirement, lines)}
    names = set()
    for requirement in requirements(pyproject):
        left = requirement.specifier & ceiling.get(canonicalize_name(requirement.name), SpecifierSet())
        (bound,) = [part.version for part in requirement.specifier if part.operator == ">="]
        if not left.contains(bound) or left.contains(f"{bound}.0.0.1") or left.contains("9999"):
            names.add(requirement.name)
    return names


def test_every_lower_bound_is_held(pyproject):
    lines = list(ceilings(pyproject))
    assert len(requirements(pyproject)) > 30
    assert not_held(pyproject, lines) == set()
    assert SpecifierSet("<=2.13").contains("2.13.0+cpu")  # the processor's build of torch is not above the bound


def test_a_bound_that_is_forgotten_or_loose_would_be_found(pyproject):
    lines = list(ceilings(pyproject))
    for index, line in enumerate(lines):
        name, bound = line.split("<=")
        others = lines[:index] + lines[index + 1 :]
        assert not_held(pyproject, others) == {name}
        assert not_held(pyproject, [*others, f"{name}<={bound}.1"]) == {name}
        assert not_held(pyproject, [*others, f"{name}<{bound}"]) == {name}


def test_a_new_extra_is_read_too(pyproject):
    pyproject["project"]["optional-dependencies"]["serve"] = ["some-server[fast]>=3.2,<4", "search-r3-mteb[trl]"]
    assert "some-server<=3.2" in list(ceilings(pyproject))


@pytest.mark.parametrize(
    "line", ["rich", "rich<16", "rich>15", "rich==15", "rich>=15,!=15.1", "rich>=15; python_version<'3.12'"]
)
@pytest.mark.parametrize("group", ["build", "run", "extra"])
def test_a_requirement_without_a_bound_to_test_is_refused_by_name(pyproject, line, group):
    project = pyproject["project"]
    homes = {
        "build": pyproject["build-system"]["requires"],
        "run": project["dependencies"],
        "extra": project["optional-dependencies"]["trl"],
    }
    homes[group].append(line)
    with pytest.raises(ValueError, match=r"rich.* has no lower bound that can be tested; write NAME>=VERSION"):
        list(ceilings(pyproject))


# Modules that a distribution of another name provides.
PROVIDED_BY = {"faiss": "faiss-cpu", "Stemmer": "pystemmer", "pytrec_eval": "pytrec-eval-terrier", "yaml": "pyyaml"}
PROVIDED_BY |= {"haystack": "haystack-ai", "haystack_integrations": "sentence-transformers-haystack"}
PROVIDED_BY |= {"PIL": "pillow", "llama_index": "llama-index-core", "pydantic_core": "pydantic"}
FRAMEWORKS = ["langchain", "llamaindex", "haystack"]  # each an extra, for one module of the package
OPTIONAL = [*FRAMEWORKS, "serve", "parquet", "vllm"]


def imported(*folders):
    """Third-party modules that the Python files in these folders import, with one of the files each."""
    own = {"search_r3_mteb", "train", "tests", "results"} | {path.stem for path in (ROOT / "results").rglob("*.py")}
    found = {}
    for path in (path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            for name in (name.split(".")[0] for name in names):
                if name not in sys.stdlib_module_names and name not in own:
                    found.setdefault(name, path.relative_to(ROOT))
    return found


def undeclared(pyproject, extras, *folders):
    """Modules imported in these folders that no dependency of the project with these extras declares."""
    project = pyproject["project"]
    lines = project["dependencies"] + [line for extra in extras for line in project["optional-dependencies"][extra]]
    names = {canonicalize_name(Requirement(line).name) for line in lines}
    return {
        module: file
        for module, file in imported(*folders).items()
        if canonicalize_name(PROVIDED_BY.get(module, module)) not in names
    }


def test_what_is_imported_is_declared(pyproject):
    """Else its version is left to others, and no lower bound of it is tested."""
    assert undeclared(pyproject, OPTIONAL, "search_r3_mteb") == {}
    assert undeclared(pyproject, ["train", "trl"], "train") == {}
    assert undeclared(pyproject, ["train", "trl", "dev", "frameworks", *OPTIONAL], "tests", "results") == {}


@pytest.mark.parametrize(
    "name", ["numpy", "tqdm", "tokenizers", "huggingface_hub", "safetensors", "pytrec-eval-terrier"]
)
def test_an_import_that_is_not_declared_is_found(pyproject, name):
    lines = pyproject["project"]["dependencies"]
    lines[:] = [line for line in lines if not line.startswith(f"{name}>")]
    assert list(undeclared(pyproject, OPTIONAL, "search_r3_mteb")) == [name.replace("-eval-terrier", "_eval")]


def planned(target, **variables):
    """What make would run, from the commands that install to the last."""
    words = ["make", "--dry-run", target, *(f"{name}={value}" for name, value in variables.items())]
    # Without what a surrounding make hands down: its own VENV and BOUNDS would win.
    done = subprocess.run(
        words, capture_output=True, text=True, check=True, cwd=ROOT, env={"PATH": os.environ["PATH"]}, timeout=60
    )
    return done.stdout.splitlines()


def test_make_installs_with_these_bounds_and_runs_the_suite(tmp_path):
    commands = planned("test-lowest", LOWEST=tmp_path)
    assert f"python3 tests/lowest.py > {tmp_path}/bounds.txt" in commands
    first, second = (command for command in commands if "pip install" in command)
    assert '"torch==2.13.0"' in first
    assert '--editable ".[train,dev]"' in second
    assert all(f"--constraint {tmp_path}/bounds.txt" in command for command in (first, second))
    assert any(command.startswith(f"{tmp_path}/bin/pytest") for command in commands)
    newest = planned("test", VENV=tmp_path)
    assert any(command.startswith(f"{tmp_path}/bin/pytest") for command in newest)
    assert not any("--constraint" in command for command in newest)


def test_the_torch_that_make_installs_first_is_the_lowest(pyproject):
    (torch,) = [requirement for requirement in requirements(pyproject) if requirement.name == "torch"]
    (line,) = [line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith("TORCH ?= torch==")]
    (bound,) = [part.version for part in torch.specifier if part.operator == ">="]
    assert Version(line.removeprefix("TORCH ?= torch==")) == Version(bound)


def test_the_gate_runs_the_newest_and_the_lowest():
    gate = [line.split("#")[0].strip() for line in (ROOT / ".ci" / "run").read_text().splitlines()]
    assert {"make lint", "make test", "make test-lowest", "make test-frameworks"} <= set(gate)


def test_frameworks_have_an_environment_of_their_own_where_nothing_is_skipped(tmp_path, pyproject):
    commands = planned("test-frameworks", FRAMEWORKS=tmp_path)
    (extra,) = [command for command in commands if "frameworks]" in command]
    assert extra.startswith(f"{tmp_path}/bin/pip install")
    assert '--editable ".[train,dev,frameworks]"' in extra
    (tests,) = [command for command in commands if "/bin/pytest" in command]
    assert tests.startswith(f"SEARCH_R3_FRAMEWORKS=1 {tmp_path}/bin/pytest")
    assert "slow" not in tests
    files = {ROOT / word for word in tests.split() if word.endswith(".py")}
    mentioned = {
        path for path in (ROOT / "tests").rglob("test_*.py") if "\nfrom tests.integrations.ranked " in path.read_text()
    }
    assert files == mentioned | {ROOT / "tests" / "integrations" / "test_roles.py"}
    assert not any("--editable" in command and "frameworks]" in command for command in planned("test", VENV=tmp_path))
    dev = {line.split(">")[0] for line in pyproject["project"]["optional-dependencies"]["dev"]}
    assert not {"langchain-core", "llama-index-core", "haystack-ai"} & dev
