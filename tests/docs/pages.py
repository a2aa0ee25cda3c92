"""The pages of docs/ as blocks of code and links.

A block says its language. A title after it is a file's name, which the block is then written to where a page is run, or
begins with "not run by the tests: ", with the reason.
"""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
NOT_RUN = "not run by the tests: "
LANGUAGES = ("bash", "python", "toml", "json", "jsonl", "csv", "nginx", "text")
_FENCE = re.compile(
    r"^(?P<indent> *)(?P<fence>```+)(?P<language>[\w-]*)(?P<rest>[^\n]*)\n(?P<text>.*?)^ *(?P=fence) *$", re.M | re.S
)
_TITLE = re.compile(r'\s*title="(?P<title>[^"]*)"\s*')


@dataclass(frozen=True)
class Block:
    """A block of code of a page; `line` is that of its first line."""

    page: str
    line: int
    language: str
    title: str
    text: str

    @property
    def reason(self) -> str | None:
        """Why it is not run, where it says so."""
        return self.title.removeprefix(NOT_RUN) if self.title.startswith(NOT_RUN) else None

    @property
    def place(self) -> str:
        """For messages, and as the name of a test."""
        return f"{self.page}:{self.line}"


def blocks_of(text: str, page: str) -> list[Block]:
    """The blocks of a page. Raises ValueError for what follows the language and is no title."""
    found = []
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start("text")) + 1
        title = _TITLE.fullmatch(match["rest"]) if match["rest"].strip() else None
        if match["rest"].strip() and title is None:
            raise ValueError(f'{page}:{line}: write title="..." behind the language, got {match["rest"].strip()!r}')
        found.append(Block(page, line, match["language"], title["title"] if title else "", match["text"]))
    return found


def read(page: str) -> str:
    """The text of a page."""
    return (DOCS / page).read_text(encoding="utf-8")


def blocks(*languages: str) -> list[Block]:
    """The blocks of all pages, of these languages where some are named."""
    return [
        block for page in PAGES for block in blocks_of(read(page), page) if not languages or block.language in languages
    ]


def prose(text: str) -> str:
    """A page without its blocks, with as many lines."""
    return _FENCE.sub(lambda match: "\n" * match[0].count("\n"), text)


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as the site (and GitHub) makes them."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#+ +(.*?) *#*$", prose(text), re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())
        found[slug] = found.get(slug, 0) + 1
    return set(found)
