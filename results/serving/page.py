"""The page of this folder: each script writes the section of its own numbers, between two marks."""

from pathlib import Path

from search_r3_mteb.atomic import write_text

PAGE = Path(__file__).resolve().parent / "README.md"
_TITLE = "# From vectors to search: measured\n"


def write_section(name: str, lines: list[str]) -> None:
    """Put `lines` between the marks of `name`, behind the other sections if they are new."""
    begin, end = f"<!-- {name}: generated -->", f"<!-- {name}: end -->"
    section = "\n".join([begin, "", "\n".join(lines).rstrip(), "", end])
    text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else _TITLE
    if begin in text:
        before, _, rest = text.partition(begin)
        text = before + section + rest.partition(end)[2]
    else:
        text = f"{text.rstrip()}\n\n{section}\n"
    write_text(PAGE, text)
