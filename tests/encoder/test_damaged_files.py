"""Whatever is done to a checkpoint's files is one message that names the file, at every door, and never a traceback.

Damages are drawn from a seed (damages.py). A folder with a manifest refuses all of them; one without loads what still
is a model, as a folder of others might be.
"""

import json
import re
import shutil
from pathlib import Path

import pytest

from search_r3_mteb.encoder.checkpoints import Checkpoint, load, save
from search_r3_mteb.encoder.encoder import SearchR3Encoder
from search_r3_mteb.encoder.manifest import MANIFEST_FILE, differences, write_manifest
from search_r3_mteb.encoder.profiles import Profile
from search_r3_mteb.evaluation.systems import open_systems
from search_r3_mteb.integrations.sentence_transformers import export
from tests.conftest import build_model, build_tokenizer, save_sentence_transformer
from tests.encoder.damages import drawn
from tests.programs import mostly_slow
from train import sft

SEED = 20
FILES = {
    "base": (
        *("config.json", "generation_config.json", "model.safetensors", "search_r3.json", "chat_template.jinja"),
        *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    ),
    "adapter": ("adapter_config.json", "base_model.json", "adapter_model.safetensors", "token_rows.safetensors"),
    "sharded": ("model.safetensors.index.json",),
}
EACH = [(kind, name) for kind, names in FILES.items() for name in names]
FEW = [("base", "config.json"), ("base", "tokenizer.json"), ("adapter", "adapter_model.safetensors")]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A whole model, an adapter on it, and the model in several files; each with a manifest."""
    from peft import LoraConfig, get_peft_model

    root, tokenizer = tmp_path_factory.mktemp("saved"), build_tokenizer()
    base = save(Checkpoint(build_model(), tokenizer, Profile.default(), "tests/base"), root / "base")
    # As tokenizers of earlier versions of transformers have it.
    (base / "special_tokens_map.json").write_text('{"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}')
    write_manifest(base)
    adapted = get_peft_model(load(base).model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapter = save(Checkpoint(adapted, tokenizer, Profile.default(), "tests/adapter"), root / "adapter")
    sharded = shutil.copytree(base, root / "sharded")
    (sharded / "model.safetensors").unlink()
    build_model().save_pretrained(sharded, max_shard_size="40KB")
    write_manifest(sharded)
    return {"base": base, "adapter": adapter, "sharded": sharded}


def damaged(folder, name, place, count, *, manifest=False, every=1):
    """(what was done, a copy of the folder) for damages of one of its files; the copies lie at one place."""
    content = (folder / name).read_bytes()
    for what, write in drawn(name, content, SEED, count)[::every]:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(folder, place)
        write(place / name)
        same = (place / name).is_file() and (place / name).read_bytes() == content
        if not manifest:
            (place / MANIFEST_FILE).unlink(missing_ok=True)
        if not same:
            yield what, place


def encode(folder):
    encoder = SearchR3Encoder(str(folder), max_reasoning_tokens=2, show_progress_bar=False, device="cpu")
    return encoder.encode_query(["the query"]), encoder.encode_document(["a document"])


@pytest.mark.parametrize(("kind", "name"), mostly_slow(EACH, *FEW))
def test_every_damage_is_one_error_that_names_the_file_or_none(saved, tmp_path, kind, name):
    encode(saved[kind])  # control
    tried = damaged(saved[kind], name, tmp_path / "copy", 2)
    found = {what: message_of(lambda: encode(folder)) for what, folder in tried}  # noqa: B023
    found = {what: message for what, message in found.items() if message is not None}
    unnamed = {what: message for what, message in found.items() if name not in message}
    if name.endswith(".safetensors"):  # other numbers: weights without checksums look like any others
        unnamed = {what: message for what, message in unnamed.items() if "not finite" not in message}
    assert unnamed == {}
    assert len(found) >= 10
    assert "nested" in found or name == "chat_template.jinja"


@pytest.mark.parametrize(("kind", "name"), EACH)
def test_a_manifest_refuses_every_damage(saved, tmp_path, kind, name):
    """Control: without one, some of these load, as other models."""
    assert differences(saved[kind]) == {}
    for what, folder in damaged(saved[kind], name, tmp_path / "copy", 6, manifest=True):
        assert list(differences(folder)) == [name], what
        if not name.endswith(".safetensors") or not (folder / name).is_file():
            with pytest.raises(ValueError, match=rf"copy: {re.escape(name)} .*search-r3 verify .*copy --accept"):
                load(folder)


def one_message(code, err, name):
    return code == 2 and err.count("Error: ") == 1 and "Traceback" not in err and name in err


@pytest.mark.parametrize(("kind", "name"), mostly_slow(EACH, *FEW))
def test_commands_show_one_message(saved, tmp_path, call, kind, name):
    texts = tmp_path / "texts.txt"
    texts.write_text("the query\n")
    embed = ("embed", "--input", texts, "--output", tmp_path / "a.npy", "--max-reasoning-tokens", 2, "--model")
    assert call(*embed, saved[kind])[0] == call("verify", saved[kind])[0] == 0
    done = []
    for what, folder in damaged(saved[kind], name, tmp_path / "copy", 1, manifest=True, every=3):
        code, out, err = call("verify", folder)
        assert (code, err) == (1, ""), what
        assert out.startswith(f"{name} "), what
        code, _, err = call(*embed, folder)
        weights = name.endswith(".safetensors") and code == 0
        assert weights or one_message(code, err, name), (what, err)
        done.append(code)
    assert done.count(2) >= 3


def code_of(run):
    """The exit code with which something ends the program, None where it does not."""
    try:
        run()
    except SystemExit as end:
        return end.code
    return None


def message_of(run):
    """What one of the errors that both command lines show as one message says, None where there is none."""
    try:
        run()
    except (ValueError, TypeError, OSError) as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", mostly_slow(FILES["base"], "tokenizer.json", "search_r3.json"))
def test_a_dry_run_shows_one_message(saved, tmp_path, capsys, name):
    copy = tmp_path / "copy"
    (tmp_path / "run.toml").write_text(
        f'[model]\npath = "{copy}"\n[data]\nmax_length = 512\n[[data.sources]]\nkind = "hopworld"\ndocuments = 500\n'
        "[optimization]\nsteps = 1\nbatch_size = 8\n"
    )
    arguments = ["--config", str(tmp_path / "run.toml"), "--dry-run"]
    shutil.copytree(saved["base"], copy)
    sft.main(arguments)  # control
    capsys.readouterr()
    refused = 0
    for manifest, every in ((True, 6), (False, 2)):
        for what, _ in damaged(saved["base"], name, copy, 1, manifest=manifest, every=every):
            code = code_of(lambda: sft.main(arguments))
            err = capsys.readouterr().err
            assert code in (None, 2), what
            if code == 2:
                assert re.search(rf"^sft\.py: .*{re.escape(name)}", err, re.MULTILINE | re.DOTALL), (what, err)
                refused += 1
    assert refused >= (1 if name == "model.safetensors" else 4)


@pytest.fixture(scope="module")
def library_folders(saved, tmp_path_factory):
    """An export, and an ordinary model of sentence-transformers."""
    root = tmp_path_factory.mktemp("library")
    ordinary = save_sentence_transformer(build_tokenizer(), root / "ordinary", seed=0)
    return {"export": export(str(saved["base"]), root / "export"), "ordinary": ordinary}


@pytest.mark.parametrize("kind", ["export", "ordinary"])
@pytest.mark.parametrize(
    "name",
    [
        *("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json", "1_Pooling/config.json"),
        *("config.json", "tokenizer.json", "tokenizer_config.json"),
    ],
)
def test_the_door_of_sentence_transformers(library_folders, tmp_path, kind, name):
    """Control: what loads at this door embeds; a folder without its modules.json did, with another pooling."""
    folder = library_folders[kind]
    [system] = open_systems(str(folder), "both", {"device": "cpu"}, None)
    assert system.fingerprint
    refused = 0
    for what, copy in damaged(folder, name, tmp_path / "copy", 1, manifest=kind == "export", every=2):
        message = message_of(lambda: list(open_systems(str(copy), "both", {"device": "cpu"}, None)))  # noqa: B023
        if message is None:
            assert kind == "ordinary", what
        else:
            assert Path(name).name in message, (what, message)
            refused += 1
    assert refused >= 4


def test_the_library_s_own_class_refuses_an_export_that_lost_a_file(library_folders, tmp_path):
    """Without modules.json sentence-transformers makes up another pooling, with a line in a log."""
    from search_r3_mteb import SentenceTransformer

    for name in ("modules.json", "chat_template.jinja", "1_Pooling/config.json"):
        copy = shutil.copytree(library_folders["export"], tmp_path / name.replace("/", "-"))
        SentenceTransformer(str(copy), device="cpu")  # control
        (copy / name).unlink()
        with pytest.raises((ValueError, OSError), match=re.escape(name)):
            SentenceTransformer(str(copy), device="cpu")


def test_a_number_of_layers_that_no_model_has_does_not_run_for_ever(tmp_path):
    folder = tmp_path / "model"
    build_model("gpt2").save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    load(folder)
    config = json.loads((folder / "config.json").read_text())
    for layers in (10**6, 10**30, 1e30):
        (folder / "config.json").write_text(json.dumps(config | {"n_layer": layers}))
        with pytest.raises(ValueError, match=r"model/config.json: 'n_layer' is 1.*Restore the file"):
            load(folder)
