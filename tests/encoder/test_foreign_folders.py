"""Folders that need a library that is not there, or a newer one: one error, and exit code 2 on the command line."""

import json
import re
import shutil
import sys

import numpy as np
import pytest
import torch

from search_r3_mteb import SearchR3Encoder, cli
from search_r3_mteb.encoder.adapters import weights_digest
from search_r3_mteb.encoder.checkpoints import Checkpoint, load, save
from search_r3_mteb.encoder.profiles import Profile
from tests.conftest import build_model, build_tokenizer, without_manifest


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A saved tiny checkpoint; tests work on copies of it."""
    folder = tmp_path_factory.mktemp("checkpoints") / "whole"
    return save(Checkpoint(build_model(), build_tokenizer(), Profile.default(), "tests/tiny"), folder)


@pytest.fixture
def folder(saved, tmp_path):
    return without_manifest(shutil.copytree(saved, tmp_path / "foreign"))


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


# ---- what is right is taken ----------------------------------------------------------------------------------------


def sharded(folder, names=("weights-a.safetensors", "weights-b.safetensors")):
    """The folder with its tensors in two files, which only their index names."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    parts = [dict(list(tensors.items())[start::2]) for start in (0, 1)]
    for name, part in zip(names, parts, strict=True):
        save_file(part, folder / name, {"format": "pt"})
    files = {tensor: name for name, part in zip(names, parts, strict=True) for tensor in part}
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_weight_files_are_those_that_the_index_names(saved, folder):
    digest = weights_digest(folder)
    sharded(folder)
    assert load(folder).fingerprint() == load(saved).fingerprint()
    assert weights_digest(folder) == digest
    (folder / "weights-b.safetensors").write_bytes((folder / "weights-b.safetensors").read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"weights-b\.safetensors is damaged or truncated"):
        load(folder)
    (folder / "weights-b.safetensors").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"weights-b\.safetensors is named in model\.safetensors\.index\.json but"
    ):
        load(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": ["b"]}}')
    with pytest.raises(ValueError, match="'weight_map' must name a file for each tensor"):
        load(folder)


def test_another_file_of_such_a_base_is_another_base(folder, tmp_path):
    sharded(folder)
    before = weights_digest(folder)
    data = bytearray((folder / "weights-a.safetensors").read_bytes())
    data[-2] ^= 1
    (folder / "weights-a.safetensors").write_bytes(data)
    assert weights_digest(folder) != before


def test_a_configuration_that_asks_for_tuples_gives_the_same_vectors(saved, folder):
    set_config(folder, return_dict=False)
    encoders = [SearchR3Encoder(str(each), max_reasoning_tokens=3) for each in (saved, folder)]
    for texts in (["the query"], ["the query", "x"]):
        first, second = (np.concatenate([e.encode_document(texts), e.encode_query(texts)]) for e in encoders)
        assert np.array_equal(first, second)
    assert encoders[0].fingerprint == encoders[1].fingerprint
    model = build_model()
    model.config.return_dict = False
    with pytest.raises(AttributeError, match="last_hidden_state"):  # control: what the model itself gives
        _ = model.model(torch.tensor([[1]])).last_hidden_state
