"""Texts that a stranger reads: plain phrases (STYLE.md), and no reference that only the authors can follow."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# What ships, or stands on a page: everything but the tests, which quote what they look for.
SHIPPED = ("search_r3_mteb", "train", "results", "docs", "examples")
# Unedited output of models, and the page that quotes the phrases.
QUOTES = {"results/mini/samples.md", "STYLE.md"}

COUNTED = "tokens|nats|characters|documents|queries|rows|texts|rollouts|negatives|seconds|milliseconds|bytes|steps"
WHOLE = "query|document|text|row|step|token|rollout|prompt|batch|page|hop|group|call|question|file|task|second"
# Words after which "is no" is what one says: "is no longer", "are no more than".
IDIOMS = "longer|more|larger|smaller|slower|faster|better|worse|less|fewer|later|earlier|higher|use|good|other|one"
PHRASES = {
    "is not a ...": rf"(?<![Tt]here )\b(?:is|are|was|were) no (?!(?:{IDIOMS})\b)[\w']+",
    "per": rf"(?:\b(?:{COUNTED}|re-encoded|sentence)|%) an? (?:{WHOLE})\b(?! (?:of|that|which|matrix))",
    "again": r"\banew\b",
    "found, obtained": r"\bto be had\b",
    "the first N": r"\bfirst so many\b",
    "separated by": r"\bparted by\b",
    "the same thing twice": r"\bsay the same twice\b",
    "fix": r"\bMend (?:that|the|it)\b",
    "its own": r"\bthe own (?!test\b)\w+",
    "differs from": r"\botherwise than\b",
    "a few hundred": r"\b(?:some|better some) hundred\b",
    "silently": r"\blearns nothing without a word\b",
    "before a machine is rented": r"\banything is rented\b",
    "frees its space": r"\bgives (?:its|their) room back\b",
    "a broken link": r"\bleads nowhere\b",
    "are required": r"\baddress are due\b",
    "the same ... N times": r"\d\}? times the same\b",
    "what happens to": r"\bsays what becomes of\b",
    "is cut at its end": r"\bloses its own end\b",
    "got": r"\bis no number of\b",
}
# What has no meaning outside of the room in which it was written.
PRIVATE = {
    "a ticket": r"\b[Ii]ssue #?\d+\b|\bthe issue (?:asks|says|names)\b",
    "notes that are not here": r"\b[Dd]esign,\s+section\b|\b(?:DESIGN|LIBRARIES|PERFORMANCE)(?:\.md| notes)\b",
    "a past session": r"\bsession \d\b|\b[Tt]he audit's case\b|\b[Tt]he auditor\b",
    "who wrote it": r"\b(?:another|a|the) helper (?:session|wrote|does|did)\b|\bworktree\b|\bClaude\b",
    "a machine's folder": r"(?<![\w.])/(?:work|tmp/(?:wt|house|h\d+))\b",
}


def tracked():
    """The files of the repository, by name; without git, as in an unpacked archive, all that lie here."""
    found = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if found.returncode == 0:
        return [name for name in found.stdout.split("\0") if name and (ROOT / name).is_file()]
    folders = (*SHIPPED, "tests")
    return [path.relative_to(ROOT).as_posix() for folder in folders for path in (ROOT / folder).rglob("*.*")]


def shipped():
    for name in tracked():
        root = "/" not in name
        if name.endswith((".py", ".md", ".j2")) and (root or name.startswith(SHIPPED)) and name not in QUOTES:
            yield name


def found_in(names, patterns):
    """File, line and what stands there, for each of the patterns."""
    for name in names:
        text = (ROOT / name).read_text(encoding="utf-8", errors="replace")
        for what, pattern in patterns.items():
            for match in re.finditer(pattern, text):
                line = text.count("\n", 0, match.start()) + 1
                yield f"{name}:{line}: {match.group()!r} (rather: {what})"


def test_phrases_are_plain():
    names = list(shipped())
    assert len(names) > 300
    assert list(found_in(names, PHRASES)) == []


def test_nothing_cites_what_a_reader_cannot_open():
    kinds = {".py", ".md", ".toml", ".yml", ".yaml", ".cff", ".j2", ".html", ".js", ".css", ""}
    texts = [name for name in tracked() if Path(name).suffix in kinds]
    assert list(found_in([name for name in texts if name != "tests/test_english.py"], PRIVATE)) == []


@pytest.mark.parametrize(
    "text",
    [
        *("'x' does not exist or is no folder", "lines that are no JSON", "ours are no texts"),
        *("256 tokens a text", "5 rows a step", "2 % a step", "written anew", "nor to be had from the hub"),
        *("The first so many dimensions", "parted by commas", "say the same twice", "Mend that package"),
        *("apart from the own reasoning", "laid out otherwise than the table", "better some hundred"),
        *("learns nothing without a word", "before anything is rented", "gives its room back", "leads nowhere"),
        *("a source and an address are due", "4 times the same text", "says what becomes of queries"),
        *("too long a text loses its own end", "'abc' is no number of documents"),
    ],
)
def test_a_phrase_would_be_found(text):
    assert any(re.search(pattern, text) for pattern in PHRASES.values())


@pytest.mark.parametrize(
    "text",
    ["there is no folder", "is no longer there", "are no more than two", "tokens per text", "rows a token matrix had"],
)
def test_plain_english_is_left_alone(text):
    assert not any(re.search(pattern, text) for pattern in PHRASES.values())


@pytest.mark.parametrize(
    "text",
    [
        # In pieces: whole, they would stand in this file.
        *(f"as issue {4} asks", f"(design, {'section'} 1)", f"see {'DESIGN'}.md", f"in session {3}"),
        *(f"the {'audit'}'s case", f"another {'helper'} wrote this", f"in its {'worktree'}"),
        *(f"see /{'work'}/shared", f"under /{'tmp'}/h32/out"),
    ],
)
def test_a_private_reference_would_be_found(text):
    assert any(re.search(pattern, text) for pattern in PRIVATE.values())


def test_every_phrase_has_a_pair_on_the_page():
    """STYLE.md has 20 pairs or more; what stands on its left is found, and what stands on its right is not."""
    rows = re.findall(r"^\| (.+?) \| (.+?) \|$", (ROOT / "STYLE.md").read_text(encoding="utf-8"), re.MULTILINE)[1:]
    assert len(rows) >= 20
    found = {what for before, _ in rows for what, pattern in PHRASES.items() if re.search(pattern, before)}
    assert found == set(PHRASES)
    assert [after for _, after in rows if any(re.search(pattern, after) for pattern in PHRASES.values())] == []
