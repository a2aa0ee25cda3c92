"""Models of this kind: their sources are named, and what can be run is what is registered and on the page."""

import importlib.util
from dataclasses import fields
from pathlib import Path

import pytest

from search_r3_mteb.encoder.family import FAMILY, known_tokens
from search_r3_mteb.encoder.profiles import PROFILE_FILE, Profile

FOLDER = Path(__file__).resolve().parents[2] / "results" / "checkpoints"


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("make_profiles", FOLDER / "make_profiles.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(script):
    assert (FOLDER / "profiles.md").read_text(encoding="utf-8") == script.page()
    assert "results/checkpoints/profiles.md" in (FOLDER.parents[1] / "docs" / "checkpoints.md").read_text(
        encoding="utf-8"
    )


def test_the_file_on_the_page_is_complete_and_loads(tmp_path):
    page = (FOLDER / "profiles.md").read_text(encoding="utf-8")
    (tmp_path / PROFILE_FILE).write_text(page.split("```json\n")[1].split("```")[0], encoding="utf-8")
    profile = Profile.load(tmp_path)
    assert [*profile.to_dict(), "anchor"] == [field.name for field in fields(Profile)], "null there, so undecided"
    assert {**profile.to_dict(), "thinking": None, "date": None} == {
        **Profile.default().to_dict(), "thinking": None, "date": None,
    }  # fmt: skip


def test_a_key_that_is_not_explained_is_found(script, monkeypatch):
    monkeypatch.delitem(script.KEYS, "date")
    with pytest.raises(ValueError, match="Explain each one"):
        script.page()


def test_every_member_runs_or_says_why_not():
    assert {"Search-R3", "MRE-T1", "CRE-T1 (Thought 1)", "GRACE", "O1-Embedder", "ReasonEmbed"} <= {
        member.name for member in FAMILY
    }
    for member in FAMILY:
        assert member.source
        assert (member.profile is None) == bool(member.reason)
        assert member.profile is None or member.profile.embed_token == member.token


def test_what_can_be_run_is_registered_with_mteb():
    from search_r3_mteb.integrations.mteb_models import SEARCH_R3_MODELS

    runs = {name for member in FAMILY if member.profile for name in member.checkpoints}
    assert {meta.name for meta in SEARCH_R3_MODELS} == runs


def test_a_member_is_named_by_its_token():
    assert known_tokens(["<s>", "<emb>"]).startswith(" <emb> is the token of O1-Embedder: a profile has one layout")
    assert known_tokens(["<s>", "<|embed_token|>"]) == ""
