"""The share of mutants that the tests kill, of the losses, of stage 2 and of the corpus cache.

    python results/mutants/mutants.py                            # all of them: `make mutants`, some hours on one core
    python results/mutants/mutants.py --room stage2 --sample 200 # of one room, a sample by a fixed seed
    python results/mutants/mutants.py --room losses --retry      # after new tests: what had survived, once more
    python results/mutants/mutants.py --report                   # mutants.json and README.md from what has run

A mutant is the code with one small change. mutmut makes them and runs, for each, those of the room's tests that reach
the changed function, until one fails; they run in forks of a process that has imported everything. Each room has a copy
of the tree of its own in `runs/mutants`, so that rooms can run at once; whoever is killed goes on where it stopped.

Not mutated, by mutmut's rules: code outside functions, and functions with a decorator other than `staticmethod` and
`classmethod`. Not mutated, by ours: lines of messages (what an error says in which words), and the TRL adapter, whose
tests take minutes.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
# The tests of each room; mutmut chooses among these by what reaches a function.
ROOMS = {name: [f"tests/train/{name}"] for name in ("losses", "stage2", "corpus_cache")}
# Left out: TRL's trainer, and tests that start other processes, which take seconds and are reached by everything.
LEFT_OUT = {
    "stage2": "not trl_adapter",
    "corpus_cache": "not kill_9 and not large_corpora and not importing and not replicas_are_equal",
}
SURVIVED, UNTESTED = 0, 33  # mutmut's exit codes; 33: no test reaches the function
PARTS = ("search_r3_mteb", "train", "tests", "pyproject.toml")
AT_ONCE = 60  # named mutants per call of mutmut
NOT_LOOKED_AT = "not looked at"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--room", choices=ROOMS, action="append", help="default: all")
    parser.add_argument("--sample", type=int, help="mutants of each room, drawn by --seed; default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--children", type=int, default=1, help="mutants that run at once")
    parser.add_argument("--retry", action="store_true", help="take the present tests, and run what had survived again")
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "mutants")
    options = parser.parse_args()
    rooms = options.room or list(ROOMS)
    for room in () if options.report else rooms:
        tree = options.folder / room
        if options.retry:
            copy_tests(tree, room)
        elif not (tree / "pyproject.toml").exists():
            make_tree(tree, room)
        check_code(tree, room)
        run(tree, options)
    report(options.folder, rooms)


def make_tree(tree: Path, room: str) -> None:
    """A copy of what is checked out (and tracked by git), with the settings of mutmut."""
    copy(tracked(*PARTS), tree)
    write_settings(tree, room)


def copy(names: Sequence[str], tree: Path) -> None:
    """Copy these files of the checkout."""
    for name in names:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tree / name)


def write_settings(tree: Path, room: str) -> None:
    """The checkout's pyproject.toml with a section for mutmut, and the commit that the copy was made at."""
    settings = {
        "source_paths": ["train"],
        "only_mutate": [f"train/{room}/*.py"],
        "do_not_mutate": ["train/stage2/trl_adapter.py"],
        "do_not_mutate_patterns": [r'^\s*f?".*"$', r'^\s*raise \w+\(f?".*"\)$'],
        "also_copy": ["search_r3_mteb"],
        "pytest_add_cli_args": ["-p", "no:cacheprovider", "-q", "-k", LEFT_OUT.get(room, "")],
        "pytest_add_cli_args_test_selection": ROOMS[room],
        "use_git_change_detection": False,
    }
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8") + "\n[tool.mutmut]\n" + "\n".join(lines) + "\n"
    tomllib.loads(text)
    (tree / "pyproject.toml").write_text(text, encoding="utf-8")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    (tree / "commit").write_text(commit.stdout.strip() or "unknown", encoding="utf-8")


def copy_tests(tree: Path, room: str) -> None:
    """Replace the tests by the present ones, and let mutmut find out again which of them reach what."""
    for old in (tree / "tests", tree / "mutants" / "tests"):
        shutil.rmtree(old, ignore_errors=True)
    copy(tracked("tests"), tree)
    write_settings(tree, room)
    for stale in (tree / "mutants").glob("mutmut-stats*.json"):
        stale.unlink()


def check_code(tree: Path, room: str) -> None:
    """Stop where the copy holds other code than what is checked out."""
    one, other = (
        {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (root / "train" / room).glob("*.py")}
        for root in (ROOT, tree)
    )
    changed = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    if changed:
        raise SystemExit(
            f"{tree} was made from other code ({', '.join(changed)}): its results are not those of this checkout. "
            "Remove the folder to begin again."
        )


def tracked(*paths: str) -> list[str]:
    """Files that git knows, or would add, below these paths."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *paths]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout.decode()
    return sorted(name for name in listed.split("\0") if name and (ROOT / name).is_file())


def run(tree: Path, options: argparse.Namespace) -> None:
    """Run the room's mutants that have no result yet; with `retry`, those that had survived."""
    found = results(tree)
    if options.retry:
        for names in chunks([name for name, code in found.items() if code in (SURVIVED, UNTESTED)]):
            mutmut(tree, options.children, names)
        return
    if options.sample is None:
        mutmut(tree, options.children, [])
        return
    if not found:  # a run of one mutant makes them all; one that does not exist would make mutmut run everything
        mutmut(tree, options.children, [], stop_before_mutants=True)
        found = results(tree)
    left = [name for name in drawn(found, options.sample, options.seed) if found[name] is None]
    for names in chunks(left):
        mutmut(tree, options.children, names)


def drawn(names: Sequence[str] | dict[str, Any], count: int, seed: int) -> list[str]:
    """`count` of the mutants, by the seed alone: a larger sample holds the smaller one."""
    shuffled = sorted(names)
    random.Random(f"mutants {seed}").shuffle(shuffled)
    return shuffled[:count]


def chunks(names: Sequence[str]) -> Iterator[Sequence[str]]:
    """So many names as one call takes."""
    return (names[start : start + AT_ONCE] for start in range(0, len(names), AT_ONCE))


def mutmut(tree: Path, children: int, names: Sequence[str], *, stop_before_mutants: bool = False) -> None:
    """One call of mutmut, with its output in `mutmut.log`."""
    program = ["-m", "mutmut", "run", "--max-children", str(children), *names]
    if stop_before_mutants:  # the mutants are made by the same function that `mutmut run` calls first
        program = [
            "-c",
            "from pathlib import Path; from mutmut import __main__ as m; Path('mutants').mkdir(exist_ok=True); "
            "m.copy_src_dir(); m.copy_also_copy_files(); m.setup_source_paths(); m.create_mutants(1)",
        ]
    settings = {"PYTHONPATH": str(tree / "mutants"), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with (tree / "mutmut.log").open("ab") as log:
        subprocess.run([sys.executable, *program], cwd=tree, env=os.environ | settings, stdout=log, check=True)


def results(tree: Path) -> dict[str, int | None]:
    """Mutant -> mutmut's exit code, None where it has not run."""
    found: dict[str, int | None] = {}
    for path in sorted(tree.glob("mutants/train/**/*.meta")):
        found |= json.loads(path.read_text(encoding="utf-8"))["exit_code_by_key"]
    return found


def change(tree: Path, name: str) -> list[str]:
    """The lines of a mutant's difference."""
    shown = subprocess.run([sys.executable, "-m", "mutmut", "show", name], cwd=tree, capture_output=True, text=True)
    lines = shown.stdout.splitlines()
    return [line[0] + line[1:].strip() for line in lines if line[:1] in "+-" and line[:3] not in ("---", "+++")]


def report(folder: Path, wanted: Sequence[str]) -> None:
    """`mutants.json`, with the verdicts that it had and the other rooms as they were, and the tables of README.md.

    A run of fewer mutants than the file holds of a room does not replace them.
    """
    file = HERE / "mutants.json"
    old = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"rooms": {}}
    rooms = dict(old["rooms"])
    for room in wanted:
        if (folder / room / "mutants").is_dir():
            verdicts = {
                (one["mutant"].rsplit("__mutmut", 1)[0], *one["change"]): one["verdict"]
                for one in rooms.get(room, {}).get("survivors", [])
            }
            found = measured(folder / room, verdicts)
            held, now = ran(rooms.get(room, {"modules": {}})), ran(found)
            if now < held:
                shown = list(lines_of({room: found}))[-1].strip("| ")
                print(
                    f"{file} keeps what it has of {room}: {held} mutants that ran, and here {now}. "
                    f"Remove its {room!r} to replace them. Here: {shown}"
                )
                continue
            rooms[room] = found
    file.write_text(json.dumps({"rooms": rooms}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    text = (HERE / "README.md").read_text(encoding="utf-8")
    before, after = text.split("<!-- table -->\n")[0], text.split("<!-- end of the table -->\n")[1]
    table = "<!-- table -->\n" + "\n".join(lines_of(rooms)) + "\n<!-- end of the table -->\n"
    (HERE / "README.md").write_text(before + table + after, encoding="utf-8")


def ran(room: dict[str, Any]) -> int:
    """How many mutants of a room have run."""
    return sum(counts.get("run", 0) for counts in room["modules"].values())


def measured(tree: Path, verdicts: dict[tuple[str, ...], str]) -> dict[str, Any]:
    """Counts by module, and every survivor with its verdict."""
    found = results(tree)
    modules: dict[str, Counter[str]] = {}
    survivors = []
    for name, code in found.items():
        counts = modules.setdefault(name.rsplit(".", 1)[0], Counter())
        counts["mutants"] += 1
        if code is None:
            continue
        counts["run"] += 1
        if code not in (SURVIVED, UNTESTED):  # a failing test, a crash, or a mutant that never ends
            counts["killed"] += 1
            continue
        lines = change(tree, name)
        verdict = verdicts.get((name.rsplit("__mutmut", 1)[0], *lines), NOT_LOOKED_AT)
        if code == UNTESTED:
            verdict = "no test of this selection reaches it" if verdict == NOT_LOOKED_AT else verdict
        survivors.append({"mutant": name, "change": lines, "verdict": verdict})
    commit = (tree / "commit").read_text(encoding="utf-8").strip() if (tree / "commit").exists() else "unknown"
    return {
        "commit": commit,
        "modules": {name: dict(counts) for name, counts in modules.items()},
        "survivors": survivors,
    }


def lines_of(rooms: dict[str, Any]) -> Iterator[str]:
    """The tables, in Markdown."""
    yield "| module | mutants | run | killed | survived | of these equivalent | share killed | without the equivalent |"
    yield "|---|---|---|---|---|---|---|---|"
    for room, found in rooms.items():
        whole: Counter[str] = Counter()
        for name, counts in sorted(found["modules"].items()):
            mine = [one for one in found["survivors"] if one["mutant"].startswith(f"{name}.")]
            equal = sum(one["verdict"].startswith("equivalent") for one in mine)
            counted = Counter(counts) + Counter({"equal": equal, "survived": len(mine)})
            whole += counted
            yield row(f"`{name.removeprefix('train.')}`", counted)
        yield row(f"**{room}** at {found['commit']}", whole)


def row(name: str, counts: Counter[str]) -> str:
    """A line of the table; the share of a sample has the interval of a sample (Wilson's, 95 %)."""
    ran, killed, equal = counts["run"], counts["killed"], counts["equal"]
    shares = [share(killed, of, sampled=ran < counts["mutants"]) for of in (ran, ran - equal)]
    return (
        f"| {name} | {counts['mutants']} | {ran} | {killed} | {counts['survived']} | {equal} | {' | '.join(shares)} |"
    )


def share(killed: int, of: int, *, sampled: bool) -> str:
    """A percentage, with its interval where it is that of a sample."""
    if not of:
        return "-"
    if not sampled:
        return f"{killed / of:.1%}"
    low, high = binomtest(killed, of).proportion_ci(method="wilson")
    return f"{killed / of:.0%} ({low:.0%} to {high:.0%})"


if __name__ == "__main__":
    main()
