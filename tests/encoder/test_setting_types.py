"""Settings are checked by type at the door of the Python interface: only True is true."""

import inspect
import json

import numpy as np
import pytest
import torch

from search_r3_mteb.encoder.checkpoints import load, load_model, load_tokenizer
from search_r3_mteb.encoder.encoder import SearchR3Encoder
from search_r3_mteb.encoder.settings import EncoderSettings
from search_r3_mteb.evaluation.system_checks import check_settings
from tests.conftest import without_manifest

NOT_FLAGS = ["false", "False", "no", "", 0, 1, 1.0, [], np.True_]
RUNS = "raise SystemExit('the folder ran its code')\n"


@pytest.fixture
def hostile_folder(tiny_folder):
    """A checkpoint whose code ends the process that loads it."""
    config = json.loads((tiny_folder / "config.json").read_text())
    config |= {"model_type": "hostile", "auto_map": {"AutoConfig": "hostile.C", "AutoModelForCausalLM": "hostile.M"}}
    (tiny_folder / "config.json").write_text(json.dumps(config))
    (tiny_folder / "hostile.py").write_text(RUNS)
    return without_manifest(tiny_folder)


@pytest.mark.parametrize("value", NOT_FLAGS, ids=repr)
def test_only_true_runs_a_folders_code(hostile_folder, value):
    for call in (
        lambda: SearchR3Encoder(hostile_folder, trust_remote_code=value),
        lambda: load(hostile_folder, trust_remote_code=value),
        lambda: load_model(hostile_folder, "auto", value),
        lambda: load_tokenizer(hostile_folder, value),
        lambda: check_settings([hostile_folder], {"trust_remote_code": value}),
    ):
        with pytest.raises(TypeError, match=r"trust_remote_code=.* it must be True or False"):
            call()


def test_true_runs_it(hostile_folder):
    """The control: with True the code does run, and with False it does not."""
    with pytest.raises(SystemExit, match="ran its code"):
        load(hostile_folder, trust_remote_code=True)
    with pytest.raises(ValueError, match="cannot load this folder"):
        load(hostile_folder, trust_remote_code=False)


@pytest.mark.parametrize("name", [f.name for f in EncoderSettings.__dataclass_fields__.values() if f.type is bool])
def test_every_flag_of_the_encoder(name):
    assert getattr(EncoderSettings(**{name: True}), name) is True
    for value in (*NOT_FLAGS, None):
        with pytest.raises(TypeError, match=f"{name}=.* it must be True or False"):
            EncoderSettings(**{name: value})


@pytest.mark.parametrize(
    ("name", "values"),
    [
        *((name, ["3", True, 3.0, np.int64(3)]) for name in ("batch_tokens", "max_length", "max_reasoning_tokens")),
        ("seed", ["0", False, 0.5]),
        ("temperature", ["0", True, None]),
        ("show_progress_bar", ["false", 0]),
        ("device", [True, 1]),
        ("cache_folder", [b"store", True]),
    ],
)
def test_every_other_setting(name, values):
    for value in values:
        with pytest.raises(TypeError, match=f"{name}=.* is of type"):
            EncoderSettings(**{name: value})
    assert EncoderSettings(device=torch.device("cpu"), temperature=1, max_length=None, show_progress_bar=None)


def test_every_setting_is_checked():
    """A setting that is added later is checked as well: an object of no use is refused under every name."""
    for name in EncoderSettings.__dataclass_fields__:
        if name != "dtype":  # `load` reads it, with the names that there are
            with pytest.raises((TypeError, ValueError), match=f"{name}=<object"):
                EncoderSettings(**{name: object()})


@pytest.mark.parametrize("method", ["encode_query", "encode_document", "think"])
def test_keywords_of_a_call(tiny_checkpoint, method):
    encoder = SearchR3Encoder(tiny_checkpoint, max_reasoning_tokens=2)
    call = getattr(encoder, method)
    known = inspect.signature(call).parameters
    for name, value in {
        "convert_to_tensor": "false",
        "show_progress_bar": "no",
        "batch_size": "8",
        "max_reasoning_tokens": "3",
    }.items():
        if name in known:
            with pytest.raises(TypeError, match=f"{name}='{value}' is of type str"):
                call(["one"], **{name: value})


@pytest.mark.parametrize("load_it", [load, SearchR3Encoder])
def test_what_is_no_model_and_no_revision(load_it, tiny_folder):
    for wrong in (None, 3, b"nano", ["nano"]):
        with pytest.raises(TypeError, match="is of type"):
            load_it(wrong)
    with pytest.raises(TypeError, match="revision=3 is of type int"):
        load_it(tiny_folder, revision=3)
