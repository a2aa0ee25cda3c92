"""The house: rooms that stay small, names that mean one thing, and files that are where texts say.

Which room may import which is checked by import-linter (`make lint`, contracts in pyproject.toml).
"""

import importlib.util
import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CITED = re.compile(r"(?<![\w./-])(?:results|docs|examples|train|tests)/[\w/-]+\w\w\.(?:md|py|toml)\b")


def structure():
    spec = importlib.util.spec_from_file_location("structure", ROOT / "results" / "house" / "structure.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_folder_of_train_has_more_than_ten_modules():
    folders = Counter(path.parent for path in (ROOT / "train").rglob("*.py"))
    assert len(folders) >= 11
    assert {str(folder): count for folder, count in folders.items() if count > 10} == {}


def test_a_name_means_one_thing():
    assert structure().names(ROOT) == ["names with two meanings: 0"]


def test_a_circle_and_a_second_meaning_would_be_found():
    module = structure()
    assert module._circles({("a", "b"), ("b", "c"), ("c", "b"), ("d", "a")}) == ["b <-> c"]
    assert module._floors({("a", "b"), ("b", "c"), ("a", "c")}) == 3


def texts(*folders):
    """The path of each text in these folders, and of those at the root."""
    names = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "pyproject.toml", ".ci/run")
    yield from (ROOT / name for name in names)
    for folder in folders:
        yield from (path for ending in ("py", "md", "toml") for path in (ROOT / folder).rglob(f"*.{ending}"))


def found_in(paths, pattern):
    """Pairs of a path below the root and what the pattern finds there."""
    for path in paths:
        for match in pattern.finditer(path.read_text(encoding="utf-8")):
            yield path.relative_to(ROOT).as_posix(), match.group()


def test_files_that_the_package_and_its_pages_cite_are_there():
    cited = set(found_in(texts("train", "search_r3_mteb", "docs", "examples"), CITED))
    assert len(cited) > 100
    assert {place for place in cited if not (ROOT / place[1]).exists()} == set()
    assert CITED.search("as measured (`results/speed/none.md`)")
