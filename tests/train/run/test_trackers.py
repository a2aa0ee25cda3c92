"""Accelerate's trackers: a registered one through the library's own interface, and TensorBoard beside it."""

import json

import pytest

from tests.train.loops import sft_config
from train.run.trackers import Trackers, check_trackers
from train.sft import train


@pytest.fixture
def recorder(monkeypatch):
    """A tracker of our own, registered as accelerate's documentation says; returns what it was told."""
    from accelerate import tracking

    told = []

    class Recorder(tracking.GeneralTracker):
        name = "recorder"
        requires_logging_directory = False
        tracker = None

        def __init__(self, run_name, **kwargs):
            super().__init__()
            told.append(("made", run_name))

        def start(self):
            told.append(("start",))

        def store_init_configuration(self, values):
            told.append(("config", values))

        def log(self, values, step=None, **kwargs):
            told.append(("log", step, values))

        def finish(self):
            told.append(("finish",))

    monkeypatch.setattr(tracking, "LOGGER_TYPE_TO_CLASS", dict(tracking.LOGGER_TYPE_TO_CLASS))
    tracking.register_tracker_class(Recorder)
    return told


def test_a_registered_tracker_gets_settings_and_numbers(tmp_path, recorder):
    more = ['output.trackers=["recorder"]', "output.project=mine", "optimization.steps=2", "evaluate.every=2"]
    train(sft_config(tmp_path / "run", *more, evaluation=True))
    assert recorder[0] == ("made", "mine")
    assert recorder[1] == ("start",)
    assert recorder[2][1]["optimization.steps"] == 2
    assert all(isinstance(value, bool | int | float | str) for value in recorder[2][1].values())
    assert recorder[-1] == ("finish",)
    logged = [entry for entry in recorder if entry[0] == "log"]
    assert [step for _, step, values in logged if "step/loss" in values] == [1, 2]
    assert any("evaluate/hopworld/dev/reason/ndcg_at_10" in values for _, step, values in logged if step == 2)
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    first = next(line for line in lines if line["event"] == "step")
    assert next(values for _, _, values in logged)["step/loss"] == first["loss"]


def test_without_the_setting_no_tracker_is_asked(tmp_path, recorder):
    train(sft_config(tmp_path / "run", "optimization.steps=1"))
    assert recorder == []


def test_tensorboard_stays_and_a_resumed_run_purges_what_was_lost(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.summary.writer import event_file_writer

    # Files of one second are read by their number in this process, in the order of text: the tenth before the ninth.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    for resume, values in ((0, [1.0, 2.0, 3.0]), (1, [20.0, 30.0])):
        trackers = Trackers(tmp_path, ["tensorboard"], project="x", config={}, resume_step=resume)
        for step, value in enumerate(values, resume + 1):
            trackers.log({"step/loss": value, "odd (name):": value}, step)
        trackers.finish()
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [(event.step, event.value) for event in board.Scalars("step/loss")] == [(1, 1.0), (2, 20.0), (3, 30.0)]
    assert set(board.Tags()["scalars"]) == {"step/loss", "odd _name__"}
    assert not (tmp_path / "trackers.json").exists()


def test_an_unknown_or_missing_tracker_is_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    from accelerate import tracking

    with pytest.raises(ValueError, match=r"names 'wandbb', which accelerate does not know. It has .*mlflow.*wandb"):
        train(sft_config(tmp_path / "run", 'output.trackers=["wandbb"]'))
    monkeypatch.setattr(tracking, "_available_trackers", [])
    for name in ("wandb", "mlflow"):
        with pytest.raises(ValueError, match=rf"names '{name}', which is not installed here. Run `pip install {name}`"):
            check_trackers([name])
    assert not (tmp_path / "run").exists()
    check_trackers(())


def test_the_real_packages_where_they_are(tmp_path, monkeypatch):
    """Weights & Biases without a network, MLflow in a folder: one run each, continued when ours is."""
    wandb, mlflow = pytest.importorskip("wandb"), pytest.importorskip("mlflow")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(f"file:{tmp_path}/mlruns")
    from accelerate import Accelerator

    Accelerator(cpu=True)  # as a run makes one before its log is opened
    for resume in (0, 2):
        trackers = Trackers(
            tmp_path / "run", ["wandb", "mlflow"], project="ours", config={"steps": 2}, resume_step=resume
        )
        for step in (resume + 1, resume + 2):
            trackers.log({"step/loss": step / 10}, step)
        trackers.finish()
    kept = json.loads((tmp_path / "run/trackers.json").read_text())
    runs = mlflow.search_runs(search_all_experiments=True)
    assert list(runs["run_id"]) == [kept["mlflow"]]
    history = mlflow.MlflowClient().get_metric_history(kept["mlflow"], "step/loss")
    assert [(one.step, one.value) for one in history] == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)]
    assert runs["params.steps"][0] == "2"
    folders = list((tmp_path / "run/wandb").glob(f"offline-run-*-{kept['wandb']}"))
    assert folders
    assert wandb.__version__
