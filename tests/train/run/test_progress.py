"""The progress line: its own, with the time left."""

import io

import pytest

from train.run.progress import Progress, clock_time


class Clock:
    """Seconds that a test sets."""

    now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def steps(progress, clock, count, seconds):
    for _ in range(count):
        clock.now += seconds
        progress.advance({"loss": 0.51234})


def test_a_log_gets_a_line_now_and_then_with_the_time_left():
    clock, stream = Clock(), io.StringIO()
    steps(Progress("run", first=10, total=70, stream=stream, clock=clock, every=30.0), clock, 60, 2.0)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "run: step 11/70 (16%), 2.00 s per step, 1:58 left, loss 0.512"
    assert [int(line.split()[2].split("/")[0]) for line in lines] == [11, 26, 41, 56, 70]
    assert "0:00 left" in lines[-1]


def test_the_time_left_follows_the_last_hundred_steps():
    clock, stream = Clock(), io.StringIO()
    progress = Progress("run", first=0, total=1000, stream=stream, clock=clock)
    steps(progress, clock, 100, 1.0)
    steps(progress, clock, 100, 3.0)
    assert "3.00 s per step, 40:00 left" in progress.line({})


def test_a_terminal_has_one_line_that_is_written_over(capsys):
    clock, stream = Clock(), Terminal()
    progress = Progress("run", first=0, total=3, stream=stream, clock=clock)
    steps(progress, clock, 2, 1.0)
    progress.say("a table")
    progress.advance({})
    progress.close()
    shown = stream.getvalue()
    assert shown.count("\r") == 5
    assert shown.count("\n") == 1
    assert capsys.readouterr().out == "a table\n"


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3600, "1:00:00"), (90000, "1 d 1 h")]
)
def test_times_as_people_write_them(seconds, said):
    assert clock_time(seconds) == said


def test_a_run_writes_its_line(tmp_path, capsys):
    from tests.train.loops import sft_config
    from train.sft import train

    train(sft_config(tmp_path / "run", "optimization.steps=2"))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("run: step")]
    assert lines[0].startswith("run: step 1/2 (50%), ")
    assert lines[-1].startswith("run: step 2/2 (100%), ")
    assert all(" left, loss " in line for line in lines)
