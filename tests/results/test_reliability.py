"""The page of the attack is made from its JSON files, and says what failed."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "results" / "reliability"


@pytest.fixture
def module():
    spec = importlib.util.spec_from_file_location("reliability_page", FOLDER / "page.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture
def folder(tmp_path):
    for path in FOLDER.glob("*"):
        if path.is_file():
            shutil.copy(path, tmp_path / path.name)
    return tmp_path


def test_the_page_is_up_to_date(module):
    assert module.main(["--check"]) == 0


def test_a_failure_is_on_the_page_with_the_command_that_shows_it_again(module, folder, capsys):
    content = json.loads((folder / "attack.json").read_text())
    for row in content["attacks"]:
        row["failures"] = []
    row = next(row for row in content["attacks"] if row["attack"] == "flips/store")
    row["failures"] = [{"number": 7, "what": "accepted", "detail": "flip of vectors.npy"}]
    (folder / "attack.json").write_text(json.dumps(content))
    assert module.main(["--check", "--folder", str(folder)]) == 1
    assert "is not what the JSON files say" in capsys.readouterr().err
    assert module.main(["--folder", str(folder)]) == 0
    text = (folder / "README.md").read_text()
    assert f"`make attack ONLY='flips/store' SEED={row['seed']} NUMBER=7`" in text
    assert "1 failed." in text
    assert "none failed" not in text


def test_an_attack_that_was_not_done_is_said(module, folder):
    content = json.loads((folder / "attack.json").read_text())
    content["attacks"] = [{**content["attacks"][0], "trials": 0, "outcomes": {}, "failures": [], "absent": "no root"}]
    content["not_run"] = ["kills/stage 9"]
    (folder / "attack.json").write_text(json.dumps(content))
    module.main(["--folder", str(folder)])
    text = (folder / "README.md").read_text()
    assert "not done: no root" in text
    assert "Not run: kills/stage 9." in text
