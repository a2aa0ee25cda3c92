"""Names of models: what a string means, what a Path means, and what a folder is called."""

import re
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from search_r3_mteb.encoder import model_names
from search_r3_mteb.encoder.checkpoints import Checkpoint, load, save
from search_r3_mteb.encoder.model_names import display_name, resolve
from search_r3_mteb.encoder.profiles import Profile
from search_r3_mteb.evaluation.systems import kind_of, open_systems, split_label
from tests.conftest import build_model, build_tokenizer


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A saved tiny checkpoint; tests work on copies of it."""
    folder = tmp_path_factory.mktemp("checkpoints") / "whole"
    return save(Checkpoint(build_model(), build_tokenizer(), Profile.default(), "tests/tiny"), folder)


@pytest.fixture
def bundled(saved, tmp_path, monkeypatch):
    """A bundled model "nano", and a working directory that has a folder "nano" with other weights."""
    monkeypatch.setattr(model_names, "ASSETS", tmp_path / "assets")
    shutil.copytree(saved, tmp_path / "assets" / "nano")
    own = shutil.copytree(saved, tmp_path / "here" / "nano")
    tensors = load_file(own / "model.safetensors")
    save_file({name: 2 * tensor for name, tensor in tensors.items()}, own / "model.safetensors", {"format": "pt"})
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "assets" / "nano"


def test_a_name_of_two_models_is_refused_and_both_can_be_said(bundled):
    with pytest.raises(
        ValueError, match=r"'nano' is both a bundled model and a folder here .* '\./nano' or Path.'nano'"
    ):
        load("nano")
    own = load(Path("nano"))
    assert own.name == "local/nano"
    for folder in ("./nano", "nano/", Path("nano").absolute(), str(Path("nano").absolute())):
        assert load(folder).fingerprint() == own.fingerprint()
    other = load("search-r3-mteb/nano")
    assert other.name == "search-r3-mteb/nano"
    assert other.fingerprint() != own.fingerprint()
    assert resolve("search-r3-mteb/nano") == bundled
    Path("search-r3-mteb/nano").mkdir(parents=True)
    with pytest.raises(
        ValueError, match=r"or Path.'search-r3-mteb/nano'.* 'its name from another working directory' for"
    ):
        resolve("search-r3-mteb/nano")


def test_a_name_is_the_bundled_model_where_no_folder_has_it(bundled, monkeypatch):
    shutil.rmtree("nano")
    assert resolve("nano") == bundled
    Path("nano").write_text("a file is not a model")
    assert resolve("nano") == bundled
    with pytest.raises(FileNotFoundError, match="There is no folder 'nano', and a Path is always a folder"):
        resolve(Path("nano"))
    with pytest.raises(FileNotFoundError, match="a Path is always a folder"):
        resolve(Path("organisation/model"))
    monkeypatch.chdir(bundled.parent)
    assert resolve("nano") == bundled  # the folder here is the bundled model


def test_a_snapshot_is_known_by_its_hub_id_however_it_is_reached(saved, tmp_path, monkeypatch):
    """The hub's cache: files are links into blobs, the folder's name is a commit."""
    commit = "ab" * 20
    cache = tmp_path / "hub" / "models--some-org--some-model"
    snapshot = cache / "snapshots" / commit
    for folder in (snapshot, cache / "blobs", cache / "refs"):
        folder.mkdir(parents=True)
    (cache / "refs" / "main").write_text(commit)
    for number, path in enumerate(sorted(saved.iterdir())):
        shutil.copy(path, cache / "blobs" / str(number))
        (snapshot / path.name).symlink_to(Path("../../blobs") / str(number))
    monkeypatch.chdir(tmp_path)
    Path("link").symlink_to(snapshot)
    for given in (snapshot, str(snapshot), "link", Path("link"), "./link", f"{snapshot}/"):
        found = load(given)
        assert (found.name, found.revision) == ("some-org/some-model", commit)
    found = load("link", revision="v1")
    assert (found.name, found.revision) == ("some-org/some-model", "v1")
    old = tmp_path / "hub" / "models--gpt2" / "snapshots" / commit
    assert display_name(str(old), old) == "local/gpt2"
    own = tmp_path / "snapshots" / "step-100"  # somebody's own folder of that name
    assert display_name(str(own), own) == "local/step-100"


@pytest.mark.parametrize("name", ["Mein Ordner/модель №1 = ü", "a=b", "100%", "spaces at the end "])
def test_odd_paths_load_and_have_a_name_that_mteb_takes(saved, tmp_path, monkeypatch, name):
    from search_r3_mteb.encoder.identity import name_for_mteb

    monkeypatch.chdir(tmp_path)
    shutil.copytree(saved, name)
    found = load(name)
    assert found.name == f"local/{Path(name).name}"
    assert re.fullmatch(r"local/[\w.-]+", name_for_mteb(found.name))


def test_evaluation_and_diagnosis_take_a_path_as_the_folder(bundled, tmp_path):
    Path("bm25").symlink_to("nano")
    assert split_label(Path("a=b")) == (None, Path("a=b"))
    assert kind_of(Path("bm25")) == kind_of("./bm25") == kind_of(Path("nano")) == "search-r3"
    for name in ("bm25", "nano"):
        with pytest.raises(ValueError, match=f"'{name}' is both .* and a folder here"):
            kind_of(name)
    [system] = open_systems(Path("nano"), "direct", {}, tmp_path / "store")
    [other] = open_systems("./nano", "direct", {}, tmp_path / "store")
    [third] = open_systems("search-r3-mteb/nano", "direct", {}, tmp_path / "store")
    assert system.fingerprint == other.fingerprint != third.fingerprint
