"""A hook of mkdocs: what a page links to outside of docs/ comes along, as the site's repository/PATH.

Markdown files become pages, other files are copied, and what those pages link to comes along too; a link to a folder
leads to its README.md. So the same link works in the repository and in the site, and nothing is fetched.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDER = "repository"
LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)(?P<path>[^)\s#]+)(?P<anchor>#[^)\s]*)?(?=\))")
_FENCED = re.compile(r"^(```|~~~).*?^\1", re.M | re.S)


def targets(text: str, page: str) -> dict[str, str]:
    """The relative links of a page at `page`, a path in the repository: as written, and as paths in the repository."""
    prose = _FENCED.sub("", text)
    return {
        m["path"]: _file(posixpath.normpath(posixpath.join(posixpath.dirname(page), m["path"])))
        for m in LINK.finditer(prose)
    }


def _file(path: str) -> str:
    """The file that a path stands for: of a folder, its README.md."""
    place = ROOT / path
    return f"{path}/README.md" if place.is_dir() and (place / "README.md").is_file() else path


def place_in_site(path: str) -> str:
    """Where a file of the repository lies in the site's sources."""
    return path.removeprefix("docs/") if path.startswith("docs/") else f"{FOLDER}/{path}"


def linked_files(start: list[str]) -> list[str]:
    """What these pages link to outside of docs/, and what is linked from there, in the order in which it is found."""
    found: dict[str, None] = {}
    waiting = list(start)
    while waiting:
        page = waiting.pop(0)
        for path in targets((ROOT / page).read_text(encoding="utf-8"), page).values():
            if path.startswith(("docs/", "..")) or path in found or not (ROOT / path).is_file():
                continue
            found[path] = None
            if path.endswith(".md"):
                waiting.append(path)
    return list(found)


def on_files(files: Any, config: Any) -> Any:
    """Add what is linked."""
    from mkdocs.structure.files import File, InclusionLevel

    pages = [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    for path in linked_files(pages):
        files.append(
            File.generated(
                config, place_in_site(path), abs_src_path=str(ROOT / path), inclusion=InclusionLevel.NOT_IN_NAV
            )
        )
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Write the links as they are in the site, and bars in tables' code without GitHub's backslash."""
    uri = page.file.src_uri
    own = uri.removeprefix(f"{FOLDER}/") if uri.startswith(f"{FOLDER}/") else f"docs/{uri}"
    here = posixpath.dirname(uri) or "."
    known = targets(markdown, own)

    def moved(match: re.Match[str]) -> str:
        target = known.get(match["path"])
        if target is None:
            return match[0]
        return posixpath.relpath(place_in_site(target), here) + (match["anchor"] or "")

    lines = LINK.sub(moved, markdown).split("\n")
    return "\n".join(_bars(line) if line.startswith("|") else line for line in lines)


def _bars(row: str) -> str:
    return re.sub(r"`[^`]*`", lambda code: code[0].replace("\\|", "|"), row)
