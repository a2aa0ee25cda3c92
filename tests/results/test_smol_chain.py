"""smol from nothing to the released adapter, on tiny bases of two kinds; rows and teacher are made here, small."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from results.qwen import SHAPES
from results.smol import smol
from search_r3_mteb import SearchR3Encoder
from search_r3_mteb.encoder.profiles import Profile
from search_r3_mteb.tasks.beir_folder import write_beir
from tests.conftest import build_model, build_tokenizer, save_sentence_transformer
from train import rl, sft
from train.config.loading import load_config
from train.config.stages import RlConfig, SftConfig

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("nfcorpus", "medical", "arxiv", "squad", "code", "scifact")
WORDS = ("river", "stone", "bridge", "harbor", "wheat", "valley", "winter", "farmer", "tower", "garden", "mill", "road")
FEW = [
    "evaluate.max_queries=2",
    "evaluate.max_reasoning_tokens=4",
    "optimization.steps=2",
    "optimization.mixed_precision=no",
    "optimization.warmup_steps=1",
]


def prepared(folder):
    """Rows, BEIR folders and a teacher as the steps `data` and `teacher` leave them."""
    data = folder / "data"
    data.mkdir(parents=True)
    for name in SOURCES:
        rows = [
            {"query": f"{name} {word}", "positive": f"The {word} of {name}.", "reasoning": f"the {word}",
             "query_id": f"q{n}", "positive_id": f"d{n}"}
            for n, word in enumerate(WORDS)
        ]  # fmt: skip
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        corpus = [(f"d{n}", "", f"A {word} that is new in {name}.") for n, word in enumerate(WORDS)]
        queries = [(f"q{n}", f"which {word}") for n, word in enumerate(WORDS)]
        half = len(WORDS) // 2
        judged = [(f"q{n}", f"d{n}", 1) for n in range(len(WORDS))]
        qrels = {"train": judged[:half], "dev": judged[half:-1], "test": judged[-1:]}
        write_beir(data / name, corpus=corpus, queries=queries, qrels=qrels)
    (data / "report.json").write_text("{}")
    save_sentence_transformer(build_tokenizer(False), folder / "teacher", 0)


@pytest.mark.slow  # a minute each; its parts are in the suite below
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_every_step_of_any_base(kind, tmp_path, monkeypatch, capsys, fresh_accelerate):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr("results.smol.release.LIMIT", 1)  # that of the package alone
    tokenizer = build_tokenizer(False)
    tokenizer.save_pretrained("base")
    build_model(kind, vocab_size=len(tokenizer)).save_pretrained("base")
    prepared(Path("runs/tiny"))
    stage = [*FEW, "optimization.batch_size=4", "model.lora.rank=2", "evaluate.every=2"]
    command = ["--data", "nowhere", "--base", "base", "--folder", "runs/tiny", "--sft", *stage]
    command += ["--sft2", *stage, "optimization.mini_batch_size=2"]
    command += ["--direct", *stage, "optimization.mini_batch_size=2"]
    command += ["--rl", *FEW, "model.lora.rank=2", "rollout.prompts_per_step=2", "rollout.group_size=2"]
    command += ["rollout.max_reasoning_tokens=4"]
    command += ["--written=--queries nfcorpus=3 medical=3", "--gates=--samples 2 --dtype float32"]
    smol.main(command)
    folder = Path("runs/tiny")
    assert Profile.load(folder / "start") == smol.PROFILE
    gates = {f"{stage}-{name}.json" for stage in ("sft2", "direct", "rl") for name in smol.GATES}
    assert {path.name for path in (folder / "gates").iterdir()} == gates
    found = {name: json.loads((folder / "gates" / name).read_text())["differences"] for name in gates}
    assert all(("own minus own of the earlier model" in found[name]) != name.startswith("sft2") for name in gates)
    assert all("own minus perceptron" in found[name] for name in gates)
    model = SearchR3Encoder(str(folder / "model"), mode="direct", device="cpu")
    trained = SearchR3Encoder(str(folder / "rl" / "last"), mode="direct", device="cpu")
    assert (model.encode_query(["a river"]) * trained.encode_query(["a river"])).sum() >= 0.9999
    capsys.readouterr()
    smol.main(command)
    assert capsys.readouterr().out.count("there already") == len(smol.STEPS) - 1


def test_a_configuration_goes_to_the_folder_or_is_missed_by_name(tmp_path):
    made = smol.configuration("sft", tmp_path / "other").read_text()
    assert "runs/smol/" not in made
    assert made.count(f"{(tmp_path / 'other').as_posix()}/data/") == 8
    with pytest.raises(FileNotFoundError, match=r"smol_none.toml is missing"):
        smol.configuration("none", tmp_path)


def test_the_prompts_are_those_that_the_first_run_was_trained_with():
    from search_r3_mteb.encoder.model_names import ASSETS

    # The first run's profile does not say how texts are tokenised; a new one does. The anchor came with the gates.
    assert replace(Profile.load(ASSETS / "smol"), anchor=None) == replace(smol.PROFILE, tokenization=None)


def test_a_step_is_skipped_where_its_result_lies(tmp_path, capsys):
    for name in ("start", "data"):
        (tmp_path / name).mkdir()
    (tmp_path / "data" / "report.json").write_text("{}")
    smol.main(["--data", "nowhere", "--base", "nowhere", "--folder", str(tmp_path), "--until", "data"])
    assert capsys.readouterr().out.count("there already") == 2
    with pytest.raises(FileNotFoundError, match="nowhere"):  # control
        smol.main(["--data", "no", "--base", "nowhere", "--folder", str(tmp_path / "new"), "--until", "start"])


def test_a_training_that_was_killed_before_its_card_is_taken_up_again(tmp_path, monkeypatch, capsys):
    """The model is exported before its card; the step `model` reads both."""
    begun = []
    monkeypatch.setitem(smol.TRAINERS, "sft", begun.append)
    for name in ("base", "start", "data", "teacher", "sft/last"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "data" / "report.json").write_text("{}")
    command = ["--data", "nowhere", "--folder", str(tmp_path), "--until", "sft"]
    smol.main(command)
    assert len(begun) == 1
    (tmp_path / "sft" / "last" / "model_card.json").write_text("{}")
    smol.main(command)  # control
    assert len(begun) == 1
    assert capsys.readouterr().out.count("there already") == 4 + 5


def test_the_base_that_the_release_is_compared_with_is_made_first(tmp_path, monkeypatch):
    """In the user's cache, which a chain that has made its own copy in --folder may leave empty."""
    monkeypatch.setenv("SEARCH_R3_CACHE", str(tmp_path / "cache"))
    for name in ("base", "start", "data", "teacher", "sft/last", "sft2/last", "direct/last", "rl/last", "gates"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("data/report.json", "written.jsonl", *(f"{stage}/last/model_card.json" for stage in smol.TRAINERS)):
        (tmp_path / name).write_text("{}")
    done = []
    monkeypatch.setattr(smol, "make_base", lambda *given: done.append(("base", given)))
    monkeypatch.setattr(smol, "release", lambda *given: done.append(("release", given[2])))
    smol.main(["--data", "nowhere", "--folder", str(tmp_path)])
    smol.main(["--data", "nowhere", "--base", "nowhere", "--folder", str(tmp_path)])  # control
    assert done == [("base", ("smol",)), ("release", "smol"), ("release", None)]


@pytest.mark.parametrize(
    ("begun", "given"), [("local/base", "Qwen/Qwen2.5-0.5B-Instruct"), ("Qwen/Qwen2.5-0.5B-Instruct", None)]
)
def test_the_steps_of_one_base_are_not_continued_with_another(begun, given, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(smol, "make_base", lambda *given: None)
    (tmp_path / "start").mkdir()
    record = tmp_path / "start" / "search_r3_init.json"
    record.write_text(json.dumps({"base": begun}))
    command = ["--data", "nowhere", *(["--base", given] if given else []), "--folder", str(tmp_path)]
    with pytest.raises(SystemExit):
        smol.main([*command, "--until", "start"])
    assert f"holds the steps of the base {begun}" in capsys.readouterr().err
    record.write_text(json.dumps({"base": given or "local/base"}))
    smol.main([*command, "--until", "start"])  # control


@pytest.mark.parametrize("step", smol.TRAINERS)
def test_a_wrong_setting_of_a_later_step_is_refused_before_the_first(step, tmp_path, capsys):
    for name in smol.DATA:
        (tmp_path / "data" / name).mkdir(parents=True)
    command = ["--data", str(tmp_path / "data"), "--base", "nowhere", "--folder", str(tmp_path / "f"), f"--{step}"]
    with pytest.raises(SystemExit):
        smol.main([*command, "steps=5"])
    assert "There is optimization.steps." in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match="nowhere"):  # control
        smol.main([*command, "optimization.seed=5"])


def test_a_folder_that_the_rows_are_made_of_is_missed_before_the_first_step(tmp_path, capsys):
    for name in smol.DATA[:-2]:
        (tmp_path / "data" / name).mkdir(parents=True)
    command = ["--data", str(tmp_path / "data"), "--base", "nowhere", "--folder", str(tmp_path / "f")]
    with pytest.raises(SystemExit):
        smol.main(command)
    assert f"--data {tmp_path / 'data'} has no folder scifact, cosqa" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match="nowhere"):  # control: the step before reads none
        smol.main([*command, "--until", "start"])


LARGER = {"Qwen/Qwen2.5-0.5B-Instruct": 13_198_208, "Qwen/Qwen2.5-1.5B-Instruct": 27_698_688}
"""Trained numbers: rank 24 times inputs and outputs of the seven linear layers of each layer, and the token's row."""


@pytest.mark.parametrize("name", LARGER)
@pytest.mark.parametrize("stage", smol.TRAINERS)
def test_every_stage_is_planned_for_a_larger_base_as_it_is(name, stage, tmp_path, capsys, monkeypatch):
    """What `smol.py --base` would train, from the base's config.json alone; before anything is rented."""
    from transformers import Qwen2Config

    monkeypatch.chdir(tmp_path)
    shape = Qwen2Config(**SHAPES[name])
    shape.save_pretrained("base")
    config = smol.configuration(stage, Path("runs/larger"))
    (rl if stage == "rl" else sft).main(["--config", str(config), "--dry-run", "--base", "base"])
    shown = capsys.readouterr().out
    assert f", trainable: {LARGER[name]:,}" in shown
    assert ("# corpus cache: " in shown) == (stage == "rl")
    total = float(re.search(r"memory estimate per device in GiB: .*total ([\d.]+)", shown)[1])
    assert 4 * shape.num_hidden_layers * shape.hidden_size**2 / 2**30 < total < 80, "one GPU of 80 GB holds it"


@pytest.mark.parametrize("stage", smol.TRAINERS)
def test_no_stage_trains_on_a_query_that_judges_it(stage, tmp_path):
    """Regression: four training queries of NFCorpus are dev queries, word for word, and stage 2 kept them."""
    kind = RlConfig if stage == "rl" else SftConfig
    data = load_config(smol.configuration(stage, tmp_path), (), kind).data
    against = {(Path(one.path).name, one.split) for one in (*data.evaluation, *data.decontamination.against)}
    assert {("nfcorpus", "dev"), ("nfcorpus", "test")} <= against
    guarded = {source.name for source in data.sources if "queries" in (source.decontaminate or ())}
    assert guarded >= {source.name for source in data.sources} & {"nfcorpus", "squad", "scifact", "written"}
