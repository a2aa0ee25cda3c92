"""The manifest of a model folder: who writes it, what loading compares, and what `search-r3 verify` says."""

import json
import os
import re
import shutil
import stat

import numpy as np
import pytest
import torch

from search_r3_mteb.encoder import manifest as module
from search_r3_mteb.encoder.checkpoints import Checkpoint, load, save
from search_r3_mteb.encoder.encoder import SearchR3Encoder
from search_r3_mteb.encoder.initialise import initialise
from search_r3_mteb.encoder.manifest import MANIFEST_FILE, differences, read_manifest
from search_r3_mteb.encoder.merging import merge, save_compared
from search_r3_mteb.encoder.model_names import ASSETS
from search_r3_mteb.encoder.profiles import Profile, Template
from search_r3_mteb.encoder.verification import accept, verify
from search_r3_mteb.evaluation.systems import open_systems
from search_r3_mteb.integrations.sentence_transformers import export
from tests.conftest import build_model, build_tokenizer, without_manifest
from train.config.model import ModelSettings
from train.model.model import prepare


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    return save(Checkpoint(build_model(), build_tokenizer(), Profile.default(), "tests/tiny"), folder)


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def adapter_on(base, folder):
    from peft import LoraConfig, get_peft_model

    found = load(base)
    model = get_peft_model(found.model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    return save(Checkpoint(model, found.tokenizer, found.profile, "tests/adapter"), folder)


def flip(path, place=-5):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def vectors(folder):
    encoder = SearchR3Encoder(str(folder), max_reasoning_tokens=3, show_progress_bar=False, device="cpu")
    return np.concatenate([encoder.encode_query(["the query"]), encoder.encode_document(["a document"])])


# ---- who writes it -------------------------------------------------------------------------------------------------


def test_whatever_saves_a_checkpoint_writes_the_manifest(saved, tmp_path):
    base = tmp_path / "plain"
    build_model().save_pretrained(base)
    build_tokenizer(with_embed_token=False).save_pretrained(base)
    adapter = adapter_on(saved, tmp_path / "adapter")
    written = {
        "save": saved,
        "save_compared": save_compared(load(saved), tmp_path / "compared"),
        "init": initialise(base, tmp_path / "init").folder,
        "adapter": adapter,
        "merge": merge(adapter, tmp_path / "merged"),
        "export": export(str(saved), tmp_path / "export"),
        "nano": ASSETS / "nano",
        "mini": ASSETS / "mini",
    }
    for name, place in written.items():
        assert differences(place) == {}, name
        listed = set(read_manifest(place))
        there = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}
        beside = {MANIFEST_FILE, "README.md", "model_card.json", "search_r3_init.json"}
        assert listed == there - beside, name
        assert any(each.endswith(".safetensors") for each in listed), name
    assert {"1_Pooling/config.json", "modules.json", "modeling_search_r3.py"} <= set(read_manifest(written["export"]))
    assert not (base / MANIFEST_FILE).exists()


def test_the_manifest_is_the_last_file(monkeypatch, saved, tmp_path):
    """A kill while a folder is written over leaves half of each model: the older manifest refuses that."""
    folder = tmp_path / "model"
    save(load(saved), folder)
    other = Checkpoint(build_model(seed=1), build_tokenizer(), Profile(plain="{system} {text}"), "tests/other")
    monkeypatch.setattr(module, "write_text", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save(other, folder)
    with pytest.raises(ValueError, match=r"model: .*search_r3.json has \d+ bytes instead of"):
        load(folder)
    monkeypatch.undo()
    save(other, folder)
    assert load(folder).fingerprint() == other.fingerprint()


def test_the_manifest_is_no_part_of_vectors_and_fingerprints(saved, folder, tmp_path):
    without_manifest(folder)
    assert load(folder).fingerprint() == load(saved).fingerprint()
    assert np.array_equal(vectors(folder), vectors(saved))
    nano = without_manifest(shutil.copytree(ASSETS / "nano", tmp_path / "nano"))
    assert load("nano", device="cpu").fingerprint() == load(nano, device="cpu").fingerprint()


# ---- what loading compares -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["chat_template.jinja", "search_r3.json", "tokenizer_config.json"])
def test_a_side_file_that_is_gone_is_named(tmp_path, name):
    profile = Profile(direct=Template("Another system prompt.", "{embed_token}"))
    saved = save(Checkpoint(build_model(), build_tokenizer(), profile, "tests/own"), tmp_path / "own")
    before = load(saved).fingerprint()
    (saved / name).unlink()
    with pytest.raises(ValueError, match=rf"^own: {name} is missing\. .*search-r3 verify \S*/own --accept$"):
        load(saved)
    assert load(without_manifest(saved), probe=False).fingerprint() != before  # control: it loads, as another model


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("added_tokens.json", "{}"),
        ("chat_template.json", "{}"),
        ("adapter_config.json", "{}"),
        ("additional_chat_templates/other.jinja", "x"),
        ("special_tokens_map.json", "{}"),
    ],
)
def test_a_file_that_came_is_named_where_it_matters(folder, name, text):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=f"^copy: {re.escape(name)} was added"):
        load(folder)


def test_a_chat_template_that_came_is_named(tmp_path):
    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    profile = Profile(plain="{system}\n{text}\n")
    folder = save(Checkpoint(build_model(), tokenizer, profile, "tests/plain"), tmp_path / "model")
    before = load(folder).fingerprint()
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}{{ messages[1].content }}")
    with pytest.raises(ValueError, match=r"chat_template\.jinja was added"):
        load(folder)
    assert load(without_manifest(folder)).fingerprint() != before  # control


def test_cards_notes_copies_and_names_are_free(folder, tmp_path):
    (folder / "README.md").write_text("# Mine")
    (folder / "model_card.json").write_text("not JSON")
    (folder / "notes.txt").write_text("x")
    (folder / "run.py").write_text("print()")
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "checkpoint-5").mkdir()
    (folder / "checkpoint-5" / "config.json").write_text("{}")
    os.utime(folder / "config.json", (0, 0))
    accept(folder)
    (folder / "run.py").write_text("print(1)")  # a script of one's own: no configuration names it
    moved = folder.rename(tmp_path / "another name")
    assert load(moved, verify=True).verified
    assert verify(moved).differences == {}


def test_links_as_the_hub_s_cache_has_them_and_folders_that_cannot_be_written(saved, tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "models--a--b" / "snapshots" / "0123abcd"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(saved.iterdir())):
        shutil.copy(path, blobs / str(number))
        (snapshot / path.name).symlink_to(blobs / str(number))
    snapshot.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        assert load(snapshot, verify=True).name == "a/b"
        assert differences(snapshot) == {}
    finally:
        snapshot.chmod(0o755)
    (snapshot / MANIFEST_FILE).unlink()
    (snapshot / MANIFEST_FILE).symlink_to("nowhere")  # half of a download
    with pytest.raises(ValueError, match=r"there is no search_r3_manifest\.json"):
        load(snapshot)
    (snapshot / MANIFEST_FILE).unlink()
    (snapshot / MANIFEST_FILE).symlink_to(saved / MANIFEST_FILE)
    flip(blobs / str(sorted(path.name for path in saved.iterdir()).index("tokenizer.json")), 100)
    with pytest.raises(ValueError, match=r"tokenizer.json does not match its checksum"):
        load(snapshot)


def test_a_base_that_differs_is_refused_with_its_adapter(folder, tmp_path):
    adapter = adapter_on(folder, tmp_path / "adapter")
    assert load(adapter, verify=True).verified
    (folder / "generation_config.json").write_text('{"eos_token_id": 7}')
    with pytest.raises(ValueError, match=r"^copy: generation_config.json has \d+ bytes"):
        load(adapter)
    assert load(without_manifest(folder)).stop_token_ids == (2, 7)  # control: this is what it would have been
    assert load(adapter, verify=True).verified  # a base of others has no manifest


def test_a_folder_without_a_manifest_loads_as_before(folder):
    (without_manifest(folder) / "search_r3.json").unlink()
    assert not load(folder).verified
    with pytest.raises(ValueError, match=r"copy: there is no search_r3_manifest.json.*writes one of the files"):
        load(folder, verify=True)


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", "{", "{}", '{"format": "search-r3 model folder", "version": 1, "files": []}', "[" * 10_000),
        '{"format": "search-r3 model folder", "version": 1, "files": {"../a": {"bytes": 1, "sha256": "0"}}}',
        '{"format": "search-r3 model folder", "version": 1, "files": {"/a": {"bytes": 1, "sha256": "0"}}}',
        '{"format": "search-r3 model folder", "version": 1, "files": {"a": {"bytes": "1", "sha256": "0"}}}',
        '{"format": "search-r3 model folder", "version": 1, "files": {"a": 3}}',
        '{"format": "search-r3 model folder", "version": 2, "files": {}}',
    ],
)
def test_a_damaged_manifest_is_named(folder, call, content):
    (folder / MANIFEST_FILE).write_text(content)
    with pytest.raises(ValueError, match=r"search_r3_manifest\.json.* --accept` writes one"):
        load(folder)
    code, _, err = call("verify", folder)
    assert (code, err.count("\n")) == (2, 1)
    assert call("verify", folder, "--accept")[0] == 0
    load(folder)


# ---- weights on request --------------------------------------------------------------------------------------------


def settings_of(folder):
    """Every place that takes the setting, as a function of its value."""
    return {
        "load": lambda value: load(folder, verify=value),
        "SearchR3Encoder": lambda value: SearchR3Encoder(folder, verify=value, device="cpu"),
        "training": lambda value: prepare(ModelSettings(path=str(folder), verify=value), seed=0),
        "evaluate": lambda value: list(open_systems(str(folder), "both", {"verify": value, "device": "cpu"}, None)),
    }


@pytest.mark.parametrize("place", settings_of(None))
def test_weights_are_compared_where_that_is_asked_for(folder, place):
    run = settings_of(folder)[place]
    run(True)
    flip(folder / "model.safetensors")
    run(False)  # control: sizes are the same, and the model still is one
    with pytest.raises(ValueError, match=r"copy: model.safetensors does not match its checksum"):
        run(True)


def test_weights_are_compared_on_the_command_line(folder, tmp_path, call):
    (tmp_path / "texts.txt").write_text("the query\n")
    embed = ("embed", "--model", folder, "--input", tmp_path / "texts.txt", "--output", tmp_path / "a.npy")
    embed += ("--max-reasoning-tokens", 2)
    assert call(*embed, "--set", "verify=true")[0] == 0
    flip(folder / "model.safetensors")
    assert call(*embed)[0] == 0
    code, _, err = call(*embed, "--set", "verify=true")
    assert code == 2
    assert "model.safetensors does not match its checksum" in err


def test_an_adapter_in_training_is_compared(saved, tmp_path):
    folder = adapter_on(saved, tmp_path / "adapter")
    settings = {"path": str(folder), "lora": {"rank": 2, "alpha": 8.0, "target_modules": ("q_proj",)}}
    settings["lora"]["train_embed_token"] = False
    prepare(ModelSettings(**settings, verify=True), seed=0)
    flip(folder / "adapter_model.safetensors")
    prepare(ModelSettings(**settings), seed=0)
    with pytest.raises(ValueError, match=r"adapter_model.safetensors does not match"):
        prepare(ModelSettings(**settings, verify=True), seed=0)


def test_weights_of_another_size_are_refused_without_being_read(folder):
    with (folder / "model.safetensors").open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(ValueError, match=r"model.safetensors has \d+ bytes instead of"):
        load(folder)


def test_a_checkpoint_in_memory_that_was_not_verified_is_not_said_to_be(saved):
    assert SearchR3Encoder(load(saved, verify=True), verify=True).checkpoint.verified
    with pytest.raises(ValueError, match=r"verify=True was given, but the checkpoint in memory was loaded without it"):
        SearchR3Encoder(load(saved), verify=True)
    with pytest.raises(TypeError, match=r"verify='true' .*must be True or False"):
        SearchR3Encoder(saved, verify="true")
    with pytest.raises(ValueError, match="weights come from scratch"):
        ModelSettings(scratch={}, verify=True)


# ---- the command ---------------------------------------------------------------------------------------------------


def test_verify_says_what_differs_file_by_file(folder, call):
    assert call("verify", folder)[:2] == (0, f"{folder}: {len(read_manifest(folder))} files are as they were saved.\n")
    assert call("verify", "nano")[0] == call("verify", "search-r3-mteb/mini")[0] == 0
    flip(folder / "model.safetensors")
    (folder / "chat_template.jinja").unlink()
    (folder / "added_tokens.json").write_text("{}")
    code, out, err = call("verify", folder)
    assert (code, err) == (1, "")
    assert out.splitlines()[:3] == [
        "chat_template.jinja is missing",
        "model.safetensors does not match its checksum",
        "added_tokens.json was added",
    ]
    assert f"{folder} is not the model that was saved" in out
    code, out, _ = call("verify", folder, "--json")
    found = json.loads(out)
    assert (code, found["same"], found["folder"]) == (1, False, str(folder))
    assert found["differences"]["chat_template.jinja"] == "is missing"


def test_a_change_that_was_meant_is_accepted(folder, call):
    (folder / "generation_config.json").write_text('{"eos_token_id": 7}')
    code, out, _ = call("verify", folder, "--accept")
    assert code == 0
    assert out.splitlines()[0].startswith("generation_config.json has 19 bytes instead of")
    assert call("verify", folder)[0] == 0
    assert load(folder, verify=True).stop_token_ids == (2, 7)
    without_manifest(folder)
    assert json.loads(call("verify", folder, "--accept", "--json")[1])["accepted"] is True
    assert call("verify", folder, "--json")[0] == 0


def test_what_cannot_be_compared_is_exit_code_2(folder, call, tmp_path):
    (tmp_path / "empty").mkdir()
    for place, why in (
        (without_manifest(folder), "there is no search_r3_manifest.json, so nothing says how the files should be"),
        (tmp_path / "nowhere", "There is no model"),
        (tmp_path / "empty", "there is no search_r3_manifest.json"),
    ):
        code, out, err = call("verify", place)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert why in err
    for place, why in ((tmp_path / "empty", "so it is not a model folder"), ("nano", "nano is bundled")):
        code, _, err = call("verify", place, "--accept")
        assert code == 2
        assert why in err
    assert list((tmp_path / "empty").iterdir()) == []


def test_an_adapter_s_base_is_compared_by_itself(saved, tmp_path, call):
    code, out, _ = call("verify", adapter_on(saved, tmp_path / "adapter"))
    assert code == 0
    assert "Its base has a folder of its own" in out


def test_names_of_files_do_not_act_on_a_terminal(folder, call):
    (folder / "a\x1b[31m.model").write_text("x")
    code, out, _ = call("verify", folder)
    assert code == 1
    assert "a\ufffd[31m.model was added" in out
    assert "\x1b" not in call("verify", folder, "--json")[1]
    with pytest.raises(ValueError, match="was added"):
        load(folder)


def test_accepting_is_a_function_too(folder):
    torch.save({}, folder / "training_args.bin")  # is never read, so it does not matter
    assert accept(folder).differences == {}


def test_a_manifest_that_was_touched_vouches_for_nothing(folder):
    """It has no checksum of its own, so it must be as it was written; other ends of lines, as git makes them, are."""
    path = folder / MANIFEST_FILE
    content = path.read_bytes()
    path.write_bytes(content.replace(b"\n", b"\r\n"))
    assert differences(folder) == {}
    for touched in (content + b"\t", content[:-1], content.replace(b'"version": 1', b'"version":  1')):
        path.write_bytes(touched)
        with pytest.raises(ValueError, match="is not as it was written"):
            differences(folder)


def test_hidden_files_of_a_system_are_no_model_files(folder):
    """macOS leaves ._NAME beside every file on a foreign disk, and no library reads it."""
    (folder / "._model.safetensors").write_bytes(b"x")
    assert differences(folder) == {}
    (folder / "model-2.safetensors").write_bytes(b"x")
    assert differences(folder) == {"model-2.safetensors": "was added"}, "the control"
