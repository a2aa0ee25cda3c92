"""Folders that need a library that is not there, or a newer one: one error, and exit code 2 on the command line."""

import json
import re
import shutil
import sys

import pytest

from search_r3_mteb import cli
from search_r3_mteb.encoder.checkpoints import Checkpoint, load, save
from search_r3_mteb.encoder.profiles import Profile
from tests.conftest import build_model, build_tokenizer


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A saved tiny checkpoint; tests work on copies of it."""
    folder = tmp_path_factory.mktemp("checkpoints") / "whole"
    return save(Checkpoint(build_model(), build_tokenizer(), Profile.default(), "tests/tiny"), folder)


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "foreign")


def set_config(folder, name="config.json", **values):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def newer_tensors(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"F99"'))


QUANTISED = ["bitsandbytes", "gptq", "awq", "compressed-tensors", "torchao", "hqq", "auto-round"]
FOREIGN = {
    **{
        method: lambda folder, method=method: set_config(
            folder, quantization_config={"quant_method": method, "bits": 4, "load_in_4bit": True, "config_groups": {}}
        )
        for method in QUANTISED
    },
    "flash_attention_2": lambda folder: set_config(folder, _attn_implementation="flash_attention_2"),
    "kernels": lambda folder: set_config(folder, _attn_implementation="kernels-community/flash-attn"),
    "an attention to come": lambda folder: set_config(folder, _attn_implementation="tomorrow"),
    "an architecture to come": lambda folder: set_config(folder, model_type="qwen99"),
    "layers to come": lambda folder: set_config(folder, layer_types=["tomorrow", "tomorrow"]),
    "a field of another type": lambda folder: set_config(folder, hidden_size="thirty"),
    "a dtype to come": lambda folder: set_config(folder, dtype="float4_e2m1"),
    "a quantisation to come": lambda folder: set_config(folder, quantization_config={"quant_method": "tomorrow"}),
    "an activation to come": lambda folder: set_config(folder, hidden_act="tomorrow"),
    "a tokenizer to come": lambda folder: set_config(folder, "tokenizer.json", model={"type": "Tomorrow"}),
    "a version to come": lambda folder: set_config(folder, "tokenizer.json", version="9.0"),
    "tensors to come": newer_tensors,
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_the_installed_libraries_cannot_read_is_one_error(folder, name, monkeypatch, capsys):
    """Each of these escaped as an ImportError, an AttributeError or a plain Exception, or loaded with a warning."""
    load(folder)
    FOREIGN[name](folder)
    with pytest.raises(ValueError, match=rf"^{folder.name}\b.*(transformers|tokenizer|safetensors)"):
        load(folder)
    monkeypatch.setattr(sys, "argv", ["search-r3"])
    with pytest.raises(SystemExit) as stopped:
        cli.main(["doctor", "--model", str(folder)])
    shown = capsys.readouterr().err
    assert stopped.value.code == 2
    assert len(re.findall(r"^Error: ", shown, re.M)) == 1
    assert "Traceback" not in shown
