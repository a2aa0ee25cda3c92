"""A checkpoint's JSON files with values of a wrong kind: one ValueError that names the file, also as a command."""

import json
import shutil

import pytest

from search_r3_mteb.encoder.checkpoints import Checkpoint, load, save
from search_r3_mteb.encoder.encoder import SearchR3Encoder
from search_r3_mteb.encoder.profiles import Profile
from tests.conftest import build_model, build_tokenizer, without_manifest

DEEP = "[" * 200_000 + "]" * 200_000
LONG = "1" * 5000
HEAVY = {"nested": DEEP, "long": LONG}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A whole model, and a LoRA adapter on it."""
    from peft import LoraConfig, get_peft_model

    root = tmp_path_factory.mktemp("saved")
    base = save(Checkpoint(build_model(), build_tokenizer(), Profile.default(), "tests/base"), root / "base")
    adapted = get_peft_model(load(base).model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapter = save(Checkpoint(adapted, build_tokenizer(), Profile.default(), "tests/adapter"), root / "adapter")
    return {"base": base, "adapter": adapter}


def changed(folder, tmp_path, file, **values):
    """A copy of the folder with other values in a JSON file, each as the text that stands there."""
    copy = tmp_path / "copy"
    without_manifest(shutil.copytree(folder, copy))
    path = copy / file
    found = json.loads(path.read_text()) if path.exists() else {}
    text = json.dumps(found | {key: f"@{key}@" for key in values})
    for key, value in values.items():
        text = text.replace(f'"@{key}@"', value)
    path.write_text(text)
    return copy


@pytest.mark.parametrize("value", HEAVY)
@pytest.mark.parametrize(
    ("which", "file"),
    [
        ("base", "config.json"),
        ("base", "generation_config.json"),
        ("base", "tokenizer.json"),
        ("base", "tokenizer_config.json"),
        ("base", "search_r3.json"),
        ("base", "model.safetensors.index.json"),
        ("adapter", "adapter_config.json"),
        ("adapter", "base_model.json"),
    ],
)
def test_what_python_cannot_parse_is_named(saved, tmp_path, which, file, value):
    with pytest.raises(ValueError, match=rf"copy/{file}, line 1: not JSON \((nested too|an integer of more)"):
        load(changed(saved[which], tmp_path, file, extra=HEAVY[value]))


@pytest.mark.parametrize(
    ("which", "file", "key", "value", "message"),
    [
        ("base", "generation_config.json", "eos_token_id", '"abc"', "'eos_token_id' must be a token's id .* got 'abc'"),
        ("base", "generation_config.json", "eos_token_id", "1.5", "'eos_token_id' must be a token's id .* got 1.5"),
        ("base", "generation_config.json", "eos_token_id", "true", "'eos_token_id' must be"),
        ("base", "generation_config.json", "eos_token_id", "[2, [3]]", r"'eos_token_id' must be .* got \[2, \[3\]\]"),
        ("base", "generation_config.json", "eos_token_id", "{}", "'eos_token_id' must be"),
        (
            "base",
            "config.json",
            "quantization_config",
            '"gptq"',
            "'quantization_config' must be an object, got a string",
        ),
        (
            "base",
            "config.json",
            "rope_parameters",
            '{"rope_type": "tomorrow", "rope_theta": 1e4}',
            "'rope_type' under 'rope_parameters' in config.json is 'tomorrow'; this version knows default",
        ),
        ("base", "model.safetensors.index.json", "weight_map", "[]", "'weight_map' must name a file .* got an array"),
        ("base", "model.safetensors.index.json", "weight_map", '{"a": 3}', "'weight_map' must name a file"),
        (
            "base",
            "tokenizer_config.json",
            "model_max_length",
            '"x"',
            "tokenizer_config.json: 'model_max_length' cannot",
        ),
        ("base", "search_r3.json", "embed_token", "[1]", r"search_r3.json: 'embed_token' .* must be a text"),
        ("base", "search_r3.json", "thinking", "2", "search_r3.json: 'thinking' of a profile must be true"),
        ("base", "search_r3.json", "reason", "3", "search_r3.json: 'reason' must hold 'system' and 'reply'"),
        (
            "adapter",
            "adapter_config.json",
            "base_model_name_or_path",
            "3",
            "'base_model_name_or_path' must be a string",
        ),
        (
            "adapter",
            "adapter_config.json",
            "base_model_name_or_path",
            '["a"]',
            "must be a string or null, got an array",
        ),
        ("adapter", "adapter_config.json", "revision", "3", "adapter_config.json: 'revision' must be a string or null"),
        ("adapter", "adapter_config.json", "r", '"x"', "copy: peft .* cannot put this adapter on its base model"),
        ("adapter", "adapter_config.json", "target_modules", "[3]", "copy: peft .* by its adapter_config.json"),
        ("adapter", "adapter_config.json", "target_modules", '"["', "copy: peft .* by its adapter_config.json"),
        ("adapter", "adapter_config.json", "trainable_token_indices", "[9999]", "copy: peft .* by its adapter_config"),
        ("adapter", "base_model.json", "path", "3", "base_model.json: 'path' must be a string or null, got a number"),
        ("adapter", "base_model.json", "name", "[]", "base_model.json: 'name' must be a string or null, got an array"),
        ("adapter", "base_model.json", "digest", "null", "base_model.json lacks 'path' or 'digest'"),
    ],
)
def test_values_of_a_wrong_kind_are_named(saved, tmp_path, which, file, key, value, message):
    with pytest.raises(ValueError, match=message):
        load(changed(saved[which], tmp_path, file, **{key: value}))


def test_values_of_the_right_kind_are_taken(saved, tmp_path):
    assert load(changed(saved["base"], tmp_path, "generation_config.json", eos_token_id="[2, 7]")).stop_token_ids == (
        2,
        7,
    )
    assert load(saved["adapter"]).stop_token_ids == load(saved["base"]).stop_token_ids == (2,)


@pytest.mark.parametrize(
    ("template", "cause"),
    [
        ("{% for tool in tools %}{% endfor %}{{ messages[0].content }}", "'NoneType' object is not iterable"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ messages.content.strip() + 1 }}", "has no attribute"),
        ("{% broken", "unknown tag 'broken'"),
    ],
)
def test_a_template_that_fails_is_named_with_its_cause(saved, tmp_path, template, cause):
    copy = tmp_path / "copy"
    without_manifest(shutil.copytree(saved["base"], copy))
    (copy / "chat_template.jinja").write_text(template)
    with pytest.raises(ValueError, match=rf"The chat template cannot show a system prompt and a text: .*{cause}"):
        SearchR3Encoder(load(copy)).encode_document(["a"])


def test_the_command_line_shows_one_message(saved, tmp_path, call):
    folder = changed(saved["base"], tmp_path, "config.json", extra=DEEP)
    (tmp_path / "texts.txt").write_text("a\n")
    code, _, err = call("embed", "--input", tmp_path / "texts.txt", "--output", tmp_path / "a.npy", "--model", folder)
    assert code == 2
    assert err.count("Error: ") == 1
    assert f"{folder}/config.json, line 1: not JSON (nested too deeply to be read)" in err.splitlines()[-1]
