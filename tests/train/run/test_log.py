"""A run's log: one event per line, cut back on resume."""

import json

import pytest

from train.run.log import RunLog, cut, due


def write(path, *lines, end="\n"):
    path.write_text("\n".join(lines) + end, encoding="utf-8")


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def log(folder, **more):
    return RunLog(folder, **({"total": 4, "resume_step": 0, "tensorboard": False} | more))


def test_events_are_lines(tmp_path):
    writer = log(tmp_path / "run")
    writer.event("step", 1, loss=0.5)
    writer.event("evaluate", 1, mode="direct", hops=None, ndcg_at_10=0.25)
    writer.advance(loss=0.5)
    writer.close()
    assert read(tmp_path / "run/log.jsonl") == [
        {"event": "step", "step": 1, "loss": 0.5},
        {"event": "evaluate", "step": 1, "mode": "direct", "hops": None, "ndcg_at_10": 0.25},
    ]


def test_resuming_forgets_later_steps_and_a_line_cut_short(tmp_path):
    path = tmp_path / "log.jsonl"
    write(path, '{"step": 1}', '{"step": 2}', '{"step": 3}', '{"st', end="")
    writer = log(tmp_path, resume_step=2)
    writer.event("step", 3, loss=1.0)
    writer.close()
    assert [event["step"] for event in read(path)] == [1, 2, 3]
    assert read(path)[-1]["loss"] == 1.0


def test_a_line_cut_short_goes_even_when_it_is_json(tmp_path):
    """Regression: `{"step": 1}` without its line break was kept, and the next event was written behind it."""
    path = tmp_path / "log.jsonl"
    write(path, '{"step": 1}', '{"step": 2}', end="")
    cut(path, 5)
    assert read(path) == [{"step": 1}]


def test_separators_of_unicode_end_no_line(tmp_path):
    path = tmp_path / "rollouts.jsonl"
    write(path, json.dumps({"step": 1, "text": "a\u2028b\x85c"}, ensure_ascii=False), '{"step": 2}')
    cut(path, 1)
    assert json.loads(path.read_text(encoding="utf-8"))["text"] == "a\u2028b\x85c"
    cut(tmp_path / "nothing", 1)


def test_what_is_due():
    assert [step for step in range(1, 10) if due(step, 3)] == [3, 6, 9]
    assert not any(due(step, 0) for step in range(10))


def test_nan_is_an_error(tmp_path):
    writer = log(tmp_path)
    with pytest.raises(ValueError, match="Out of range"):
        writer.event("step", 1, loss=float("nan"))
    writer.close()
    assert not (tmp_path / "log.jsonl").exists() or not (tmp_path / "log.jsonl").read_text()


def test_other_processes_write_nothing(tmp_path):
    writer = log(tmp_path / "run", active=False)
    writer.event("step", 1, loss=0.5)
    writer.advance(loss=0.5)
    writer.say("a table")
    writer.close()
    assert not (tmp_path / "run").exists()


def test_tensorboard_gets_the_numbers_under_readable_names(tmp_path):
    pytest.importorskip("tensorboard")
    writer = log(tmp_path, tensorboard=True)
    writer.event("step", 1, loss=0.5)
    writer.event("evaluate", 1, task="hopworld/dev", mode="reason", hops=2, ndcg_at_10=0.25)
    writer.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert set(board.Tags()["scalars"]) == {"step/loss", "evaluate/hopworld/dev/reason/2/ndcg_at_10"}
    assert board.Scalars("step/loss")[0].value == 0.5
