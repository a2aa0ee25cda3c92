"""Models of sentence-transformers at the one door that loads them: no pickle, nothing asked of a hub, files named."""

import json
import shutil
import socket

import pytest
import torch

from search_r3_mteb.evaluation.systems import open_systems
from search_r3_mteb.integrations.sentence_transformers import load_library_model
from tests.conftest import build_tokenizer, save_sentence_transformer
from train.run.progress import Progress
from train.stage1.distillation import Teacher

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory):
    return save_sentence_transformer(build_tokenizer(), tmp_path_factory.mktemp("library") / "model", seed=0)


@pytest.fixture
def folder(ordinary, tmp_path):
    return shutil.copytree(ordinary, tmp_path / "organisation" / "model")


@pytest.fixture
def asked(monkeypatch):
    """The names of machines for which this process asks."""
    found = []

    def refuse(host, *_, **__):
        found.append(host)
        raise socket.gaierror("no network in this test")

    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return found


@pytest.mark.parametrize("gone", [None, "README.md", "tokenizer_config.json", "sentence_bert_config.json"])
def test_no_hub_is_asked_for_what_a_folder_lacks(folder, asked, monkeypatch, tmp_path, gone):
    if gone is not None:
        (folder / gone).unlink()
    monkeypatch.chdir(tmp_path)  # the folder's path reads like a hub id
    [system] = open_systems("organisation/model", "both", {"device": "cpu"}, None)
    assert system.label == "model"
    assert Teacher("organisation/model", CPU)(["a", "b"], 16).shape == (2, 32)
    assert asked == []
    with pytest.raises(FileNotFoundError, match="neither a folder here nor found on the hub") as caught:
        Teacher("organisation/other", CPU)
    assert ".." not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert asked  # control: this is how a question would be seen


def test_pickled_modules_are_refused_for_a_teacher_as_well(folder):
    assert Teacher(str(folder), CPU)(["a"], 16).shape == (1, 32)
    dense = folder / "2_Dense"
    dense.mkdir()
    torch.save({"linear.weight": torch.zeros(8, 32), "linear.bias": torch.zeros(8)}, dense / "pytorch_model.bin")
    (dense / "config.json").write_text(json.dumps({"in_features": 32, "out_features": 8, "bias": True}))
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    (folder / "modules.json").write_text(json.dumps(modules))
    for load in (lambda: Teacher(str(folder), CPU), lambda: load_library_model(folder, device="cpu")):
        with pytest.raises(ValueError, match=r"pickled \(2_Dense/pytorch_model\.bin\)"):
            load()


def test_what_training_says_does_not_act_on_a_terminal(capsys):
    Progress("run", first=0, total=3).say("a \x1b[2J document\u202e")
    assert capsys.readouterr().out == "a \ufffd[2J document\ufffd\n"
