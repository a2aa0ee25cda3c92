"""What is wrong with a built site: `python docs/check_site.py site`; nothing is fetched.

Each page is read: what it loads must lie in the site, and what it links to in the site must be there, with its anchor.
"""

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

_LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
_NOT_LOADED = {"canonical", "next", "prev", "alternate"}  # kinds of <link> that a browser does not fetch
_STYLE = re.compile(r"@import\s+(?:url\()?[\"']?(?P<imported>[^\"')\s;]+)|url\(\s*[\"']?(?P<url>[^\"')]+)")


class _Page(HTMLParser):
    """Ids of a page, what it loads and what it links to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep what a tag names."""
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given[name] for name in ("id", "name") if given.get(name)}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        loaded = given.get(_LOADED.get(tag, ""))
        if loaded and not _NOT_LOADED & set(given.get("rel", "").split()):
            self.loads.append(loaded)


def faults(site: Path) -> Iterator[str]:
    """One line for each thing that is wrong. A folder without pages is one."""
    pages = {path: _Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    if not pages:
        yield f"{site} holds no pages"
    for path, page in pages.items():
        shown = path.relative_to(site)
        for address in page.loads:
            if _outside(address):
                yield f"{shown} loads {address}, which is not in the site"
            elif not _place(path, site, address).is_file():
                yield f"{shown} loads {address}, which is not there"
        for address in page.links:
            if not _outside(address):
                yield from _link_faults(address, path, site, pages)
    for path in sorted(site.rglob("*.css")):
        for match in _STYLE.finditer(path.read_text(encoding="utf-8")):
            address = match["imported"] or match["url"]
            if _outside(address):
                yield f"{path.relative_to(site)} loads {address}, which is not in the site"


def _outside(address: str) -> bool:
    parts = urlsplit(address)
    return bool(parts.netloc) or parts.scheme not in ("", "data")


def _place(page: Path, site: Path, address: str) -> Path:
    path = unquote(urlsplit(address).path)
    if not path:
        return page
    found = site / path.lstrip("/") if path.startswith("/") else page.parent / path
    return found / "index.html" if found.is_dir() else found


def _link_faults(address: str, path: Path, site: Path, pages: dict[Path, _Page]) -> Iterator[str]:
    shown = path.relative_to(site)
    if address.startswith("data:"):
        return
    target = Path(*_place(path, site, address).resolve().parts)
    if not target.is_file():
        yield f"{shown} links to {address}, which is not there"
        return
    anchor = unquote(urlsplit(address).fragment)
    page = pages.get(target) or pages.get(site / target.relative_to(site.resolve()))
    if anchor and page is not None and anchor not in page.ids:
        yield f"{shown} links to {address}, and that page has no #{anchor}"


def main(arguments: list[str] | None = None) -> int:
    """Print the faults; returns 1 where there are some."""
    (site,) = sys.argv[1:] if arguments is None else arguments
    found = list(faults(Path(site)))
    for line in found:
        print(line)
    print(f"{site}: {'no faults' if not found else f'{len(found)} faults'}")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
