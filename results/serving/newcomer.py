"""How long it takes from a CSV to a running search page on a machine that has Python and make alone.

    python results/serving/newcomer.py

A clone of this commit, and in it the commands that the README and docs/ name, one after the other: `make install`,
`search-r3 index`, `search-r3 search`, `search-r3 serve`. The CSV has 200 rows of the Python library's documentation,
with quotes, line breaks and empty cells. Each command is timed; what a person needs to read and to type is not in it.
Writes newcomer.json and its section of README.md.
"""

import argparse
import csv
import json
import os
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from results.pages import table
from results.serving.page import write_section
from results.serving.running import serving
from search_r3_mteb.atomic import write_json
from search_r3_mteb.evaluation.provenance import commit
from search_r3_mteb.tasks.stdlib import collect

HERE = Path(__file__).resolve().parent
ROWS = 200
QUESTION = "How do I read a file that is packed?"
_ROOT = HERE.parent.parent


def write_table(path: Path) -> None:
    """A CSV as a shop or a wiki would export it: own names of columns, and cells that need quotes."""
    documents = list(collect().documents.items())[:ROWS]
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("sku", "name", "description", "price"))
        for place, (id_, text) in enumerate(documents):
            title = "" if place % 9 == 0 else f'The "{id_}", größer'
            writer.writerow((f"sku-{place}", title, text, f"{place * 3.5:.2f}"))


class Clock:
    """The steps so far, with their seconds."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []

    def __call__(self, command: str, work: Callable[[], Any]) -> Any:
        """Do a step, and note how long it took."""
        began = time.perf_counter()
        done = work()
        self.steps.append({"command": command, "seconds": round(time.perf_counter() - began, 1)})
        return done


def measure(place: Path) -> list[dict[str, Any]]:
    """The steps, in a clone in this folder. Raises where a command fails, or the page or its answer is not there."""
    clone, timed = place / "search-r3-mteb", Clock()

    def run(command: str) -> str:
        return subprocess.run(
            command, cwd=clone, shell=True, check=True, stdout=subprocess.PIPE, text=True, env=_bare(place)
        ).stdout

    subprocess.run(["git", "clone", "--quiet", str(_ROOT), str(clone)], check=True)
    write_table(clone / "shop.csv")
    for command in (
        "make install",
        ".venv/bin/search-r3 index shop.csv --id sku --title name --model mini --output my-index",
        f".venv/bin/search-r3 search my-index '{QUESTION}'",
    ):
        said = timed(command, lambda command=command: run(command))
    if "reasoning (" not in said or "sku-" not in said:
        raise RuntimeError(f"No reasoning or no document was found: {said}")
    options = ["--model", "mini", "--index", str(clone / "my-index")]
    with ExitStack() as stack:
        server = serving(options, [str(clone / ".venv/bin/search-r3")])
        running = timed(".venv/bin/search-r3 serve --model mini --index my-index", lambda: stack.enter_context(server))
        timed("the page, and its first question with its reasoning", lambda: _asked(running.url))
    return timed.steps


def _bare(place: Path) -> dict[str, str]:
    """An environment without what this process has set for Python."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return kept | {"HOME": str(place)}


def _asked(url: str) -> None:
    """What a browser loads and asks."""
    with urllib.request.urlopen(f"{url}/") as answer:
        page = answer.read().decode()
    body = json.dumps({"query": QUESTION, "stream": True, "mode": "reason"}).encode()
    request = urllib.request.Request(f"{url}/v1/search", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        events = answer.read().decode()
    if "<title>Search-R3" not in page or "event: result" not in events or "sku-" not in events:
        raise RuntimeError(f"The page or its answer is not there: {page[:200]} {events[-500:]}")


def section(found: dict[str, Any]) -> list[str]:
    """The lines of the page."""
    together = sum(step["seconds"] for step in found["steps"])
    return [
        "## From a CSV to a running search page",
        "",
        f"`{found['command']}` at commit {found['commit'][:7]}, {found['machine']}: **{together / 60:.1f} minutes** of "
        f"waiting, from a clone without an environment and a CSV of {found['rows']} rows.",
        "",
        *table(["step", "seconds"], [[f"`{step['command']}`", step["seconds"]] for step in found["steps"]]),
    ]


def main() -> None:
    """Measure, and write both files."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--machine", default="two cores that other programs used, too")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        made_with = commit()
        steps = measure(Path(place))
    found = {
        "command": "python results/serving/newcomer.py",
        "commit": made_with,
        "machine": given.machine,
        "rows": ROWS,
        "steps": steps,
    }
    write_json(HERE / "newcomer.json", found)
    write_section("newcomer", section(found))
    print(*section(found), sep="\n")


if __name__ == "__main__":
    main()
