"""Tables on a narrow terminal: labels stay, names are shortened in the middle, columns leave in a stated order."""

import io

import pytest

from search_r3_mteb.narrow_tables import NarrowColumn, NarrowTable, shortened
from search_r3_mteb.terminal import SafeConsole

TASKS = ("beir-a-very-long-name-of-a-data-set-0123abcd", "beir-a-very-long-name-of-another-set-4567cdef")
MODEL = "organisation/a-model-with-a-long-name-3B-Instruct"


def lines(table, width):
    console = SafeConsole(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue().rstrip("\n").split("\n")


def made(tasks=TASKS):
    names = [NarrowColumn(name, name=True) for name in ("task", "model", "mode")]
    numbers = [NarrowColumn("nDCG@10"), NarrowColumn("95 %\ninterval", leaves=2), NarrowColumn("docs\n/s", leaves=1)]
    table = NarrowTable([*names, *numbers])
    for task in tasks:
        table.add_row(task, MODEL, "reason", "0.512", "0.480-0.544", "1,234")
    return table


def test_where_there_is_room_nothing_is_changed():
    shown = lines(made(), 160)
    assert all(task in "\n".join(shown) for task in TASKS)
    assert MODEL in shown[3]
    assert "1,234" in shown[3]
    assert not any("Left out" in line for line in shown)


@pytest.mark.parametrize("width", [80, 70, 60, 50])
def test_task_model_mode_and_the_score_are_always_there(width):
    shown = lines(made(), width)
    assert max(map(len, shown)) <= width
    rows = [line for line in shown if "0.512" in line]
    assert len(rows) == 2, "no row is folded"
    for row in rows:
        task, model, mode, score = row.split()[:4]
        assert task.startswith("beir")
        assert task.endswith(("abcd", "cdef"))
        assert model.startswith("organ")
        assert model.endswith("ruct")
        assert (mode, score) == ("reason", "0.512")
    assert rows[0].split()[0] != rows[1].split()[0], "different names stay different"


def test_columns_leave_in_their_order_and_the_line_below_names_them():
    kept = {}
    for width in range(100, 40, -1):
        text = " ".join(" ".join(lines(made(), width)).split())
        kept[width] = ("1,234" in text, "0.480-0.544" in text)
        assert ("docs/s" in text.partition("Left out")[2]) is not kept[width][0]
        assert ("95 % interval" in text.partition("Left out")[2]) is not kept[width][1]
    assert list(dict.fromkeys(kept.values())) == [(True, True), (False, True), (False, False)]


def test_names_that_would_become_equal_are_shortened_less():
    tasks = ("a" * 20 + "x" + "b" * 20, "a" * 20 + "y" + "b" * 20)
    rows = [line.split()[0] for line in lines(made(tasks), 60) if "0.512" in line]
    assert len(set(rows)) == 2
    assert shortened(tasks[0], 12) == shortened(tasks[1], 12), "the control"


def test_a_cell_is_text():
    table = NarrowTable([NarrowColumn("task", name=True)], title=":key: [bold]", notes=["[1] a :smile:"])
    table.add_row("[red]:key:[/red]")
    text = "\n".join(lines(table, 60))
    assert "[red]:key:[/red]" in text
    assert "[1] a :smile:" in text
    assert ":key:" in text.splitlines()[0]
    with pytest.raises(ValueError, match="2 cells were given for 1 columns"):
        table.add_row("a", "b")


@pytest.mark.parametrize(("text", "width", "short"), [("abcdefgh", 8, "abcdefgh"), ("abcdefgh", 5, "ab\u2026gh")])
def test_the_middle_goes(text, width, short):
    assert shortened(text, width) == short
    assert len(shortened(text, width)) <= width
