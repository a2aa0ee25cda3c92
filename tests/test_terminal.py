"""What a text says is shown on a terminal, and never acted upon."""

import io

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from search_r3_mteb.terminal import SafeConsole, visible

HOSTILE = "a\x1b[2J\x1b]0;title\x07b\x9b31m\x08\x7f\u202egnp\r\x00"


def shown(kind, what, **keywords):
    stream = io.StringIO()
    kind(file=stream, force_terminal=True, width=80, color_system=None).print(what, **keywords)
    return stream.getvalue()


def table(text):
    made = Table(title=text, caption=text)
    made.add_column(text)
    made.add_row(text)
    made.add_row(Text(text))
    return made


@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize("make", [str, Text, table, lambda text: Text.assemble((text, "bold"))])
def test_no_control_character_of_a_text_reaches_the_terminal(make, soft):
    for keywords in ({}, {"markup": False, "highlight": False}):
        found = shown(SafeConsole, make(HOSTILE), soft_wrap=soft, **keywords)
        assert "[2J" in found
        assert not set(found) & set("\x1b\x07\x9b\x08\x7f\u202e\r\x00")


def test_the_console_of_rich_passes_them_on():
    """The control; and lines, tabs and letters of every language stay."""
    assert "\x1b[2J" in shown(Console, Text(HOSTILE))
    assert visible("a\tb\nnaïve 東京 \u200d") == "a\tb\nnaïve 東京 \u200d"
    stream = io.StringIO()
    SafeConsole(file=stream, force_terminal=True, color_system="standard").print("[bold]x[/bold]")
    assert "\x1b[1m" in stream.getvalue()


def test_errors_and_logs_of_the_command_line(call, tmp_path):
    hostile = tmp_path / "a\x1b[2Jb.txt"
    code, out, err = call("embed", "--input", hostile, "--output", tmp_path / "v.npy")
    assert code == 2
    assert "[2Jb.txt" in err
    assert "\x1b" not in out + err
