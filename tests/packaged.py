"""The wheel and the sdist as a user gets them: built, checked, installed, and run, on every Python that is here.

    python tests/packaged.py [--python 3.11 ...] [--only wheel] [--torch REQUIREMENT]      (make package)

The wheel is built from the sdist, so that one which lacks something shows in both. Each file is installed into a new
environment of each Python, by pip, with everything that it needs, and there, from an empty folder without a model hub,
`search-r3 doctor` and an evaluation of nano run. Exit code 1 and a message where anything is not as it should be.
Standard library only.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
LIMIT = 60_000_000  # bytes of the wheel; PyPI takes 100 MB, and mini's weights are 45
MODEL = ("model.safetensors", "tokenizer.json", "search_r3.json", "search_r3_manifest.json", "README.md")
NEEDED = (
    *("search_r3_mteb/py.typed", "search_r3_mteb/report/model_card.md.j2"),
    *(f"search_r3_mteb/assets/{name}/{file}" for name in ("nano", "mini") for file in MODEL),
    *(f"search_r3_mteb/assets/smol/{file}" for file in ("adapter_model.safetensors", "base_model.json", *MODEL[1:])),
)
EXPECTED = (0.80, 0.33)  # nDCG@10 of nano on hopworld with and without reasoning: results/nano.json
TOOLS = ("build>=1.3", "twine>=6.2", "cffconvert>=2")


def wrong_in_wheel(path: Path) -> list[str]:
    """What a wheel should not be, in words: too large, files that are missing, or that are not the package's."""
    problems = []
    if path.stat().st_size > LIMIT:
        problems.append(f"{path.name} has {path.stat().st_size:,} bytes, more than {LIMIT:,}")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    rooms = {name.split("/")[0] for name in names}
    others = {room for room in rooms if room != "search_r3_mteb" and not room.endswith(".dist-info")}
    problems += [f"{path.name} holds {other}, which is not the package" for other in sorted(others)]
    problems += [f"{path.name} lacks {name}" for name in NEEDED if name not in names]
    problems += [f"{path.name} holds {name}" for name in names if name.endswith((".pyc", ".orig", ".rej"))]
    return problems


def interpreters(wanted: Sequence[str]) -> dict[str, str]:
    """The program of each of these Pythons that this machine has, by version: on the path, or pyenv's."""
    found = {}
    for version in wanted:
        places = [shutil.which(f"python{version}"), *Path.home().glob(f".pyenv/versions/{version}.*/bin/python")]
        for place in filter(None, places):
            asked = [str(place), "-c", "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"]
            said = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
            if said == version:
                found[version] = str(place)
                break
    return found


def build(tools: Path, output: Path) -> tuple[Path, Path]:
    """The sdist, and the wheel that is made from it; both checked. Raises SystemExit with what is wrong."""
    if not (tools / "bin" / "twine").exists():
        run([sys.executable, "-m", "venv", str(tools)])
        run([str(tools / "bin" / "pip"), "install", "--quiet", *TOOLS])
    shutil.rmtree(output, ignore_errors=True)
    run([str(tools / "bin" / "python"), "-m", "build", "--outdir", str(output), str(ROOT)], quiet=True)
    (sdist,), (wheel,) = output.glob("*.tar.gz"), output.glob("*.whl")
    run([str(tools / "bin" / "twine"), "check", "--strict", str(sdist), str(wheel)])
    run([str(tools / "bin" / "cffconvert"), "--validate", "-i", str(ROOT / "CITATION.cff")])
    problems = wrong_in_wheel(wheel)
    if problems:
        raise SystemExit("package: " + "; ".join(problems))
    print(
        f"package: {wheel.name} {wheel.stat().st_size / 1e6:.1f} MB, {sdist.name} {sdist.stat().st_size / 1e6:.1f} MB"
    )
    return sdist, wheel


def try_out(python: str, file: Path, torch: str) -> None:
    """Install `file` into a new environment and run it there. Raises SystemExit with what is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        place, empty = Path(folder) / "venv", Path(folder) / "empty"
        empty.mkdir()
        start = time.monotonic()
        run([python, "-m", "venv", str(place)])
        run([str(place / "bin" / "pip"), "install", "--quiet", "--no-compile", torch, str(file)])
        installed = time.monotonic() - start
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
        offline = kept | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HOME": folder}
        program = str(place / "bin" / "search-r3")
        run([program, "--version"], empty, offline)
        run([program, "doctor"], empty, offline)
        task = ["--task", "hopworld", "--mode", "both", "--output", "scores"]
        run([program, "evaluate", "--model", "nano", *task], empty, offline, quiet=True)
        rows = json.loads((empty / "scores" / "summary.json").read_text(encoding="utf-8"))
        reached = {row["mode"]: row["ndcg_at_10"] for row in rows if row.get("hops") is None}
        total = time.monotonic() - start
        if not (round(reached["reason"], 2), round(reached["direct"], 2)) == EXPECTED:
            raise SystemExit(f"package: {file.name}: nano scores {reached}, not {EXPECTED} (reason, direct)")
        size = sum(each.stat().st_size for each in place.rglob("*") if each.is_file() and not each.is_symlink())
        took = f"installed in {installed:.0f} s ({size / 1e9:.1f} GB), all in {total:.0f} s"
        print(f"package: {file.name} on {python}: {took}", flush=True)


def run(words: Sequence[str], folder: Path | None = None, environment: dict[str, str] | None = None, *,
        quiet: bool = False) -> None:  # fmt: skip
    """Run a command; SystemExit with what it printed where it fails."""
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"package: {' '.join(words)} failed:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    if not quiet:
        print(done.stdout, end="", flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tools", type=Path, default=ROOT / ".venv-package", help="environment of build and twine")
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="emptied first")
    parser.add_argument("--python", nargs="*", default=list(PYTHONS), help="versions that are tried")
    parser.add_argument("--only", choices=("wheel", "sdist"), help="install this file alone")
    parser.add_argument("--torch", default="torch", help="installed first, such as a build without CUDA")
    given = parser.parse_args()
    sdist, wheel = build(given.tools, given.output)
    found = interpreters(given.python)
    absent = [version for version in given.python if version not in found]
    print(f"package: Python {', '.join(found) or 'none'} here" + f"; not here: {', '.join(absent)}" * bool(absent))
    if not found:
        raise SystemExit("package: no Python to install it on")
    for python in found.values():
        for kind, file in (("wheel", wheel), ("sdist", sdist)):
            if given.only in (None, kind):
                try_out(python, file, given.torch)


if __name__ == "__main__":
    main()
