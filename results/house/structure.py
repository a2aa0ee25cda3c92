"""Counts of the tree: files, lines, folders, imports between rooms, circles, names with two meanings.

    python results/house/structure.py [--tree FOLDER]      # a clone of another commit, to compare with

A room is a folder of `train/` or of `search_r3_mteb/`; in a tree without rooms each module is its own. The number of
floors is that of the rooms on the longest way down to one that imports nothing of ours.
"""

import argparse
import ast
import statistics
import sys
from collections import Counter, defaultdict
from pathlib import Path

import grimp
import networkx

PARTS = ("train", "search_r3_mteb", "results", "tests")


def python_files(tree: Path) -> list[Path]:
    """The Python files of the four parts, relative to the tree."""
    return sorted(path.relative_to(tree) for part in PARTS for path in (tree / part).rglob("*.py"))


def sizes(tree: Path) -> list[str]:
    """One line per part: files, lines, median, longest file, most files in one folder."""
    texts = {path: (tree / path).read_text(encoding="utf-8").splitlines() for path in python_files(tree)}
    lines = {path: len(text) for path, text in texts.items()}
    shown = []
    for part in PARTS:
        own = {path: count for path, count in lines.items() if path.parts[0] == part}
        folder, most = Counter(path.parent for path in own).most_common(1)[0]
        shown.append(
            f"{part}: {len(own)} files, {sum(own.values())} lines, median {statistics.median(own.values()):g}, "
            f"longest {max(own.values())}, most files in a folder {most} ({folder})"
        )
    long = sum(len(line) > 120 for text in texts.values() for line in text)
    return [*shown, f"all: {len(lines)} files, {sum(lines.values())} lines, {long} of them longer than 120 characters"]


def imports(tree: Path) -> list[str]:
    """Arrows and floors of `train`, and circles of both packages, between modules and between rooms."""
    sys.path.insert(0, str(tree))
    graph = grimp.build_graph("train", "search_r3_mteb", cache_dir=None)
    arrows = {(a, b) for a in graph.modules for b in graph.find_modules_directly_imported_by(a)}
    rooms = {(_room(a), _room(b)) for a, b in arrows if _room(a) != _room(b)}
    inside = sum(a.startswith("train.") and b.startswith("train.") for a, b in arrows)
    own = {(a, b) for a, b in rooms if a.startswith("train.") and b.startswith("train.")}
    return [
        f"imports between modules of train: {inside}",
        f"rooms of train: {len({room for pair in own for room in pair})}, arrows between them: {len(own)}, "
        f"floors: {_floors(own)}",
        *(f"circle of modules: {circle}" for circle in _circles(arrows)),
        *(f"circle of rooms: {circle}" for circle in _circles(rooms)),
    ]


def names(tree: Path) -> list[str]:
    """Classes and capitalised aliases that two modules define."""
    found = defaultdict(list)
    for path in python_files(tree):
        if path.parts[0] == "tests":
            continue
        for node in ast.parse((tree / path).read_text(encoding="utf-8")).body:
            target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
            name = node.name if isinstance(node, ast.ClassDef) else getattr(target, "id", "")
            if name[:1].isupper() and not name.isupper() and len(name) > 1:
                found[name].append(str(path))
    twice = {name: paths for name, paths in sorted(found.items()) if len(paths) > 1}
    return [
        f"names with two meanings: {len(twice)}",
        *(f"  {name}: {', '.join(paths)}" for name, paths in twice.items()),
    ]


def _room(module: str) -> str:
    return ".".join(module.split(".")[:2])


def _floors(arrows: set[tuple[str, str]]) -> int:
    """Rooms on the longest way down; those of a circle are one floor."""
    return networkx.dag_longest_path_length(networkx.condensation(networkx.DiGraph(arrows))) + 1


def _circles(arrows: set[tuple[str, str]]) -> list[str]:
    """Groups of modules that reach each other."""
    groups = map(sorted, networkx.strongly_connected_components(networkx.DiGraph(arrows)))
    return [" <-> ".join(group) for group in sorted(groups) if len(group) > 1]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Counts of the tree.")
    parser.add_argument("--tree", type=Path, default=Path(__file__).resolve().parents[2], help="a clone to count in")
    given = parser.parse_args()
    print(*sizes(given.tree), *imports(given.tree), *names(given.tree), sep="\n")
