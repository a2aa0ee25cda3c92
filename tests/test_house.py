"""The house: rooms that stay small, names that mean one thing, and no text that only its authors can follow.

Which room may import which is checked by import-linter (`make lint`, contracts in pyproject.toml).
"""

import importlib.util
import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PRIVATE = re.compile(r"[Ii]ssue \d+\b|\bdesign, section|PERFORMANCE notes|\bsession \d", re.M)


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


def test_no_text_cites_what_a_reader_cannot_open():
    folders = [ROOT / part for part in ("train", "search_r3_mteb", "results", "tests", "docs", "examples")]
    names = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "pyproject.toml", ".ci/run")
    texts = [ROOT / name for name in names]
    texts += [path for folder in folders for ending in ("py", "md", "toml") for path in folder.rglob(f"*.{ending}")]
    found = {
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in texts
        if path != Path(__file__)
        for match in PRIVATE.finditer(path.read_text(encoding="utf-8"))
    }
    assert found == set()
    assert PRIVATE.search("as issue 4 asks")
    assert PRIVATE.search("(design, section 1)")
