"""Which code made a number."""

import subprocess
from functools import cache
from pathlib import Path

import search_r3_mteb


@cache
def commit() -> str:
    """The commit of this source tree, with "+changes" when files differ from it; outside of one, the package's version."""
    root = Path(search_r3_mteb.__file__).resolve().parent.parent
    if not (root / ".git").exists():  # installed from a wheel; a repository further up would be somebody else's
        return search_r3_mteb.__version__
    try:
        head = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return (
            search_r3_mteb.__version__
        )  # no git here, or a repository without a commit: the version still says something
    return head + ("+changes" if changed else "")


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True)
    return done.stdout.strip()
