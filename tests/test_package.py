"""The package as a whole: a light import, few public names, and a wheel that holds nothing else."""

import email
import importlib
import importlib.util
import os
import tomllib
import zipfile
import zlib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import search_r3_mteb
from tests.programs import loaded_after

ROOT = Path(__file__).resolve().parent.parent
HEAVY = (
    *("torch", "mteb", "faiss", "transformers", "sentence_transformers"),
    *("datasets", "pandas", "peft", "accelerate", "numpy"),
)


def test_importing_the_package_loads_nothing_heavy():
    assert loaded_after("import search_r3_mteb; dir(search_r3_mteb)", HEAVY) == set()
    assert loaded_after("import search_r3_mteb.cli", HEAVY) <= {"numpy"}


def test_this_check_can_fail():
    assert loaded_after("import numpy; import search_r3_mteb", HEAVY) == {"numpy"}
    assert "torch" in loaded_after("from search_r3_mteb.encoder.engine import Engine", HEAVY)


def test_public_names_are_few_and_all_of_them_exist():
    names = search_r3_mteb.__all__
    assert len(names) == len(set(names)) <= 12
    assert {"SearchR3Encoder", "SentenceTransformer", "register"} <= set(names)
    assert set(dir(search_r3_mteb)) == set(names)
    for name, module in search_r3_mteb._HOMES.items():
        spec = importlib.util.find_spec(module)
        assert spec is not None, f"{name} has no home"
        if module.startswith(
            "search_r3_mteb.encoder."
        ):  # the others load mteb or sentence-transformers: see their tests
            assert getattr(search_r3_mteb, name) is getattr(importlib.import_module(module), name)
    with pytest.raises(AttributeError, match=r"has no attribute 'Encoder'; it has __version__, BeirFolder"):
        search_r3_mteb.Encoder  # noqa: B018 - the access is the test


def test_types_and_version_are_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == search_r3_mteb.__version__
    assert (ROOT / "search_r3_mteb" / "py.typed").exists()


def test_nothing_in_the_package_imports_what_the_wheel_does_not_hold():
    for path in (ROOT / "search_r3_mteb").rglob("*.py"):
        for line in path.read_text(encoding="utf-8").splitlines():
            words = line.split()
            imports = words[:1] in (["import"], ["from"])
            assert not (imports and words[1].split(".")[0] in ("train", "tests")), f"{path.name}: {line}"


def test_the_wheel_holds_the_package_only(tmp_path):
    hatch = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]
    assert hatch["targets"]["wheel"]["packages"] == ["search_r3_mteb"]
    builder = pytest.importorskip("hatchling.builders.wheel").WheelBuilder(str(ROOT))
    files = {os.path.relpath(file.distribution_path, ".") for file in builder.recurse_included_files()}
    assert files, "nothing would be built"
    assert {Path(name).parts[0] for name in files} == {"search_r3_mteb"}
    assert {"search_r3_mteb/__init__.py", "search_r3_mteb/encoder/engine.py"} <= files
    weights = {f"search_r3_mteb/assets/{name}/model.safetensors" for name in ("nano", "mini")}
    assert weights <= files
    # Packed as zip packs them; the names and dates that a wheel adds are small.
    sizes = [len(zlib.compress((ROOT / name).read_bytes())) for name in files]
    assert sum(sizes) < 60_000_000


def test_the_build_tool_writes_what_is_declared(tmp_path):
    """An editable build: the metadata of the wheel, without the weights."""
    builder = pytest.importorskip("hatchling.builders.wheel").WheelBuilder(str(ROOT))
    (wheel,) = builder.build(directory=str(tmp_path), versions=["editable"])
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("METADATA")]
        metadata = email.message_from_bytes(archive.read(name))
        assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = {Requirement(line) for line in metadata.get_all("Requires-Dist") if "extra ==" not in line}
    assert needed == {Requirement(line) for line in project["dependencies"]}
    assert set(metadata.get_all("Provides-Extra")) == set(project["optional-dependencies"])
    assert "Apache-2.0" in (metadata["License"], metadata["License-Expression"])
