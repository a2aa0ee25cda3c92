"""A release, rehearsed: what forbids it, and the commands that would make it. Nothing is changed, tagged or sent.

    python tests/release.py [FOLDER]      (make release)

Exit code 0: it could be made, and its steps are printed; 1: what forbids it, all of it at once.
"""

import re
import subprocess
import sys
import tomllib
from datetime import date
from pathlib import Path
from typing import Any

KINDS = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")  # of Keep a Changelog 1.1
SECTION = re.compile(r"^## \[(?P<name>[^]]+)\](?: - (?P<day>\S+))?$", re.M)
ADDRESSES = ("Repository", "Documentation", "Changelog", "Issues")


def sections(changelog: str) -> dict[str, str]:
    """The text of each section by its version, newest first, "Unreleased" among them.

    Raises ValueError for a changelog that is not in the form of Keep a Changelog: a section without a date or twice,
    sections that are not in order of their dates, a heading of another kind, an entry outside of one.
    """
    found: dict[str, str] = {}
    parts = list(SECTION.finditer(changelog))
    headings = re.findall(r"^## .*$", changelog, re.M)
    if [match.group() for match in parts] != headings:
        odd = [heading for heading in headings if not SECTION.fullmatch(heading)]
        raise ValueError(f"CHANGELOG.md: {odd[0]!r} is not '## [VERSION] - YYYY-MM-DD' or '## [Unreleased]'.")
    days = []
    for match, after in zip(parts, [*parts[1:], None], strict=True):
        name, day = match["name"], match["day"]
        if name in found:
            raise ValueError(f"CHANGELOG.md has the section [{name}] twice.")
        if (name == "Unreleased") == (day is not None):
            raise ValueError(f"CHANGELOG.md: [{name}] needs a date, and [Unreleased] has none, got {match.group()!r}.")
        if day is not None:
            days.append(date.fromisoformat(day))
        text = changelog[match.end() : after.start() if after else None]
        _check_section(name, text)
        found[name] = text
    if days != sorted(days, reverse=True) or "Unreleased" in list(found)[1:]:
        raise ValueError("CHANGELOG.md: [Unreleased] comes first, then the versions, newest first.")
    return found


def _check_section(name: str, text: str) -> None:
    kinds = re.findall(r"^### (.*)$", text, re.M)
    odd = [kind for kind in kinds if kind not in KINDS]
    if odd or len(set(kinds)) < len(kinds):
        raise ValueError(f"CHANGELOG.md, [{name}]: {odd or kinds} should be of {', '.join(KINDS)}, each once.")
    if text.split("### ", 1)[0].strip():
        raise ValueError(f"CHANGELOG.md, [{name}]: {text.strip()[:40]!r} stands under none of {', '.join(KINDS)}.")


def forbids(root: Path) -> list[str]:
    """What keeps the version that pyproject.toml names from being released from the tree as it is."""
    project = _project(root)
    version = project["version"]
    reasons = []
    changed = _git(root, "status", "--porcelain").splitlines()
    if changed:
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        reasons.append(f"the tree is not clean: {', '.join(changed[:5])}{more}. Commit or remove what is there.")
    if _git(root, "tag", "--list", f"v{version}").strip():
        reasons.append(f"the tag v{version} exists: {version} has been released. Raise the version in pyproject.toml.")
    try:
        entries = sections((root / "CHANGELOG.md").read_text(encoding="utf-8"))
        if not entries.get(version, "").strip():
            reasons.append(
                f"CHANGELOG.md has no section for {version}. Give what stands under [Unreleased] the heading "
                f"'## [{version}] - YYYY-MM-DD', and leave an empty [Unreleased] above it."
            )
    except ValueError as error:
        reasons.append(str(error))
    for place, other in _other_versions(root).items():
        if other != version:
            reasons.append(f"{place} says version {other}, pyproject.toml {version}.")
    return reasons


def _other_versions(root: Path) -> dict[str, str | None]:
    """The version by the file that repeats it; None where it says none."""
    places = {"search_r3_mteb/__init__.py": r'^__version__ = "(.*)"$', "CITATION.cff": r"^version: (.*)$"}
    found = {place: re.search(form, (root / place).read_text(encoding="utf-8"), re.M) for place, form in places.items()}
    return {place: match[1] if match else None for place, match in found.items()}


def steps(root: Path) -> list[str]:
    """What would be done, in order, as commands where it is one."""
    project = _project(root)
    version, name = project["version"], project["name"].replace("-", "_")
    files = f"dist/{name}-{version}.tar.gz dist/{name}-{version}-py3-none-any.whl"
    missing = [address for address in ADDRESSES if address not in project.get("urls", {})]
    addresses = [f"add {', '.join(missing)} to [project.urls] of pyproject.toml, and commit"]
    links = "make README.md's links absolute where PyPI shows it (hatch-fancy-pypi-readme does), and commit"
    return [
        *([*addresses, links] if missing else []),
        "bash .ci/run                          # the gate, on this commit",
        "make package                          # builds, checks, installs and runs both files on every Python here",
        f"git tag -a v{version} -m 'search-r3-mteb {version}'",
        f"twine upload {files}",
        f"git push origin v{version}",
        "after the first release: search_r3_mteb/extras.py, README.md and docs/ say `pip install search-r3-mteb`, and "
        "`python results/cards.py` writes the cards again",
    ]


def _project(root: Path) -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project


def _git(root: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout


def main(arguments: list[str]) -> int:
    """Print what forbids the release, or its steps."""
    root = Path(arguments[0]) if arguments else Path(__file__).resolve().parents[1]
    version = _project(root)["version"]
    reasons = forbids(root)
    for reason in reasons:
        print(f"release {version}: {reason}", file=sys.stderr)
    if reasons:
        return 1
    print(f"release {version}: nothing forbids it. These would be the steps; none of them was taken.")
    for number, step in enumerate(steps(root), start=1):
        print(f"  {number}. {step}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
