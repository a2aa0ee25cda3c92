"""The commit that a number was made with."""

import subprocess
from functools import cache
from pathlib import Path

import search_r3_mteb


@cache
def commit() -> str:
    """The commit of this source tree, with "+changes" if files differ from it; without git, the package's version."""
    root = Path(search_r3_mteb.__file__).resolve().parent.parent
    if not (root / ".git").exists():  # installed from a wheel; a repository further up is not ours
        return search_r3_mteb.__version__
    try:
        head = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):  # git is missing, or the repository has no commit
        return search_r3_mteb.__version__
    return head + ("+changes" if changed else "")


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True)
    return done.stdout.strip()
