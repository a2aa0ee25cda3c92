"""Folders of one name are told apart by their paths, in every mode alike."""

import shutil

import pytest

from search_r3_mteb.compare.plan import ComparedSystem, ComparisonPlan
from search_r3_mteb.compare.run import run_plan
from search_r3_mteb.encoder.checkpoints import Checkpoint, save
from search_r3_mteb.encoder.model_names import ASSETS
from search_r3_mteb.evaluation.evaluate import evaluate
from search_r3_mteb.evaluation.systems import names_apart
from search_r3_mteb.report.runs import read_runs
from search_r3_mteb.tasks.beir_folder import write_beir


@pytest.fixture
def trained(tiny_checkpoint, make_model, tmp_path, monkeypatch):
    """A start and what two trainings made of it, as docs/train.md names them."""
    monkeypatch.chdir(tmp_path)
    names = ["own/start", "own/sft/last", "own/rl/last"]
    for seed, name in enumerate(names):
        save(Checkpoint(make_model(seed=seed), tiny_checkpoint.tokenizer, tiny_checkpoint.profile, "a/b"), name)
    write_beir(
        "judged",
        corpus=[(f"d{n}", "", f"the river number {n}") for n in range(12)],
        queries=[(f"q{n}", f"which river is number {n}") for n in range(6)],
        qrels={"test": [(f"q{n}", f"d{n}", 1) for n in range(6)]},
    )
    return names


def test_two_models_called_last_are_one_model_each_in_both_modes(trained, tmp_path):
    rows = evaluate(trained, ["beir:judged"], output="out", settings={"max_reasoning_tokens": 2})
    named = [(row["model"], row["mode"]) for row in rows]
    assert named == [(name, mode) for name in ("start", "sft/last", "rl/last") for mode in ("reason", "direct")]
    [alone, _] = evaluate(trained[1:2], ["beir:judged"], output="alone", settings={"max_reasoning_tokens": 2})
    assert alone["model"] == "last"  # nothing to tell apart
    messages = read_runs([tmp_path / "out"]).messages
    assert not [message.text for message in messages if "different results" in message.text]


def test_a_comparison_names_them_alike(trained):
    systems = tuple(ComparedSystem(model, mode="direct") for model in trained)
    found = run_plan(ComparisonPlan(systems, ("beir:judged",)))
    assert [each.row["model"] for each in found.rows] == ["start", "sft/last", "rl/last"]


def test_names_grow_by_folders_until_they_differ(trained, tmp_path):
    shutil.copytree("own/sft", "other/sft")
    assert names_apart(["own/sft/last", "other/sft/last"]) == ["own/sft/last", "other/sft/last"]
    assert names_apart(["own/sft/last", str(tmp_path / "own/sft/last")]) == [None, None]
    assert names_apart(["last=own/sft/last", "own/rl/last", "bm25"]) == [None, "rl/last", None]
    shutil.copytree(ASSETS / "nano", "here/nano")
    assert names_apart(["search-r3-mteb/nano", "here/nano"]) == [None, "here/nano"]
