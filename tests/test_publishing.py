"""What a release is made of: metadata, citation, changelog, the files that ship, and the rehearsal that refuses."""

import email
import re
import shutil
import subprocess
import tomllib
import zipfile
from datetime import date
from pathlib import Path

import pytest
import yaml

from tests import packaged, release

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ALWAYS = {"pyproject.toml", ".gitignore"}  # hatchling takes them in by itself


def builder(kind):
    if kind == "wheel":
        return pytest.importorskip("hatchling.builders.wheel").WheelBuilder(str(ROOT))
    return pytest.importorskip("hatchling.builders.sdist").SdistBuilder(str(ROOT))


def shipped(kind):
    """The files of the wheel or the sdist: their place there, and here."""
    files = builder(kind).recurse_included_files()
    return {str(file.distribution_path): Path(file.path) for file in files}


# ---- what ships ---------------------------------------------------------------------------------------------


def test_the_sdist_is_what_git_tracks():
    """`make evaluate` and `make test` work from it; nothing that is ignored or private comes along."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this is not a checkout")
    tracked = set(listed.stdout.splitlines())
    assert tracked - ALWAYS - shipped("sdist").keys() == set()
    assert {"results/picture/one_query.svg", "Makefile", ".ci/run", "CITATION.cff"} <= tracked


def test_the_wheel_holds_nothing_that_the_sdist_lacks():
    """And so nothing that `test_english.py` does not read, which looks at all that git tracks."""
    assert {"search_r3_mteb/py.typed"} <= shipped("wheel").keys() <= shipped("sdist").keys()


def test_the_metadata_are_complete(tmp_path):
    metadata = email.message_from_string(core_metadata(tmp_path))
    assert metadata["Author"]
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata["Summary"]
    assert len(metadata["Summary"]) < 200
    urls = dict(line.split(", ", 1) for line in metadata.get_all("Project-URL"))
    assert urls["Paper"] == "https://arxiv.org/abs/2510.07048"
    assert all(url.startswith("https://") for url in urls.values())
    classifiers = metadata.get_all("Classifier")
    for version in packaged.PYTHONS:
        assert f"Programming Language :: Python :: {version}" in classifiers
    assert {"Typing :: Typed", "Intended Audience :: Science/Research"} <= set(classifiers)
    assert len(metadata["Keywords"].split(",")) >= 5


def core_metadata(folder):
    """METADATA of an editable wheel, which hatchling writes without the weights; it refuses unknown classifiers."""
    (wheel,) = builder("wheel").build(directory=str(folder), versions=["editable"])
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("METADATA")]
        return archive.read(name).decode()


def test_the_project_says_how_to_cite_report_and_behave():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == PROJECT["version"]
    assert cited["license"] == PROJECT["license"]
    assert {"cff-version", "message", "title", "authors", "type"} <= cited.keys()
    (paper,) = cited["references"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"title = {{{paper['title']}}}" in readme
    names = " and ".join(f"{author['family-names']}, {author['given-names']}" for author in paper["authors"])
    assert f"author = {{{names}}}" in readme
    for name in ("SECURITY.md", "CODE_OF_CONDUCT.md", ".github/PULL_REQUEST_TEMPLATE.md"):
        assert len((ROOT / name).read_text(encoding="utf-8")) > 300


def test_issue_forms_are_forms():
    """Each field has an id and a label, and no id comes twice: else the form is not shown."""
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert len(forms) >= 3
    for path in forms:
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        if path.name == "config.yml":
            continue
        assert {"name", "description", "body"} <= form.keys(), path.name
        ids = [field["id"] for field in form["body"]]
        assert len(ids) == len(set(ids))
        assert all(field["attributes"]["label"] for field in form["body"])


def test_installation_is_told_as_it_is_until_the_package_is_published():
    """`pip install search-r3-mteb` and its extras would install what somebody else may have published."""
    form = re.compile(r"pip install (-[-\w]+ )*['\"]?search-r3-mteb\b")
    found = {name for name, path in shipped("sdist").items()
             if path.suffix in (".py", ".md", ".j2") and form.search(path.read_text(encoding="utf-8"))}  # fmt: skip
    assert found - {"tests/release.py", "tests/test_publishing.py", "CHANGELOG.md"} == set()
    assert form.search("pip install 'search-r3-mteb[serve]'")
    assert not form.search("pip install '.[serve]' in a checkout of search-r3-mteb")


# ---- the changelog ------------------------------------------------------------------------------------------

CHANGELOG = """# Changelog

## [Unreleased]

### Added
- a

## [0.2.0] - 2026-10-01

### Fixed
- b

## [0.1.0] - 2026-09-01

### Added
- c
"""


def test_the_changelog_is_in_the_form_that_it_names():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "keepachangelog.com/en/1.1.0" in text
    assert next(iter(release.sections(text))) == "Unreleased"
    assert list(release.sections(CHANGELOG)) == ["Unreleased", "0.2.0", "0.1.0"]


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("## [0.2.0] - 2026-10-01", "## 0.2.0", "'## 0.2.0' is not '## .VERSION. - YYYY-MM-DD'"),
        ("## [0.2.0] - 2026-10-01", "## [0.2.0]", r"\[0.2.0\] needs a date"),
        ("## [0.2.0] - 2026-10-01", "## [0.2.0] - 2026-08-01", "newest first"),
        ("[0.2.0]", "[0.1.0]", "twice"),
        ("### Fixed", "### Bugs", "Added, Changed, Deprecated, Removed, Fixed, Security"),
        ("### Fixed\n", "", "stands under none of"),
        ("2026-10-01", "2026-13-01", "month"),
    ],
)
def test_another_form_is_refused(before, after, said):
    with pytest.raises(ValueError, match=said):
        release.sections(CHANGELOG.replace(before, after))


# ---- the release, rehearsed ---------------------------------------------------------------------------------


@pytest.fixture
def ready(tmp_path):
    """A checkout that could be released: this project's metadata, with a section for its version, committed."""
    for name in ("pyproject.toml", "CITATION.cff", "search_r3_mteb/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    section = f"## [{PROJECT['version']}] - {date(2026, 11, 1)}\n\n### Added\n- everything\n"
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n## [Unreleased]\n\n{section}")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "config", "user.email", "someone@example.org")
    git(tmp_path, "config", "user.name", "someone")
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "--message", "all")
    return tmp_path


def git(folder, *words):
    subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True)


def test_a_release_that_nothing_forbids_is_told_step_by_step_and_not_made(ready, capsys):
    assert release.main([str(ready)]) == 0
    said = capsys.readouterr().out
    version = PROJECT["version"]
    assert "none of them was taken" in said
    places = [said.index(word) for word in (".ci/run", "make package", f"git tag -a v{version}", "twine upload")]
    assert places == sorted(places)
    assert "add Repository, Documentation, Changelog, Issues to [project.urls]" in said
    tags = subprocess.run(["git", "tag"], cwd=ready, capture_output=True, text=True, check=True).stdout
    assert tags == ""


def test_a_release_is_refused_with_every_reason_at_once(ready, capsys):
    git(ready, "tag", f"v{PROJECT['version']}")
    (ready / "CHANGELOG.md").write_text("# Changelog\n\n## [Unreleased]\n")
    citation = ready / "CITATION.cff"
    citation.write_text(citation.read_text().replace(f"version: {PROJECT['version']}", "version: 9.9"))
    (ready / "new.txt").write_text("x")
    assert release.main([str(ready)]) == 1
    found = capsys.readouterr()
    assert found.out == ""
    for reason in ("the tree is not clean", "?? new.txt", "exists: 0.1.0 has been released", "no section for 0.1.0",
                   "CITATION.cff says version 9.9"):  # fmt: skip
        assert reason in found.err, reason


def test_each_reason_forbids_alone(ready):
    assert release.forbids(ready) == []
    (ready / "new.txt").write_text("x")
    (only,) = release.forbids(ready)
    assert "not clean: ?? new.txt" in only
    (ready / "new.txt").unlink()
    git(ready, "tag", f"v{PROJECT['version']}")
    (only,) = release.forbids(ready)
    assert "the tag v0.1.0 exists" in only


# ---- the package, tried out ---------------------------------------------------------------------------------


def wheel(folder, *, without=(), more=()):
    path = folder / "search_r3_mteb-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name in {*packaged.NEEDED, "search_r3_mteb-0.1.0.dist-info/METADATA", *more} - {*without}:
            archive.writestr(name, "x")
    return path


def test_a_wheel_that_lacks_or_holds_too_much_is_named(tmp_path, monkeypatch):
    assert packaged.wrong_in_wheel(wheel(tmp_path)) == []
    (lacks,) = packaged.wrong_in_wheel(wheel(tmp_path, without=("search_r3_mteb/py.typed",)))
    assert lacks.endswith("lacks search_r3_mteb/py.typed")
    (holds,) = packaged.wrong_in_wheel(wheel(tmp_path, more=("train/sft.py",)))
    assert holds.endswith("holds train, which is not the package")
    monkeypatch.setattr(packaged, "LIMIT", 100)
    (large,) = packaged.wrong_in_wheel(wheel(tmp_path))
    assert "more than 100" in large


def test_what_a_wheel_needs_is_in_ours():
    assert set(packaged.NEEDED) <= shipped("wheel").keys()
    assert packaged.interpreters(["2.0"]) == {}


def test_a_command_that_fails_ends_with_what_it_said():
    with pytest.raises(SystemExit, match=r"(?s)failed:.*cannot open|No such file"):
        packaged.run(["ls", "/no/such/place"])
    packaged.run(["true"])
