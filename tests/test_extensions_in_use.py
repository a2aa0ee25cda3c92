"""Tasks, baselines and profiles of the installed example, and of packages that fail; the page about them."""

import json
import shlex
import sys
import tomllib
from pathlib import Path

import pytest

from search_r3_mteb.extensions import BASELINES, PROFILES, REGISTRIES, TASKS, ExtensionError
from tests.conftest import EXAMPLE

ROOT = Path(__file__).resolve().parents[1]


# ---- tasks and baselines ---------------------------------------------------------------------------------------------

QUESTIONS = "question,answer\nwhere do cats sleep,Cats sleep in warm places.\nwhy do birds sing,Birds sing at dawn.\n"


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "pets.csv"
    path.write_text(QUESTIONS)
    return path


def test_task_and_baseline_are_evaluated_by_name(example, call, questions, tmp_path):
    arguments = ["--model", "hashing:64", "--task", f"faq:{questions}", "--output", tmp_path / "out"]
    code, out, err = call("evaluate", *arguments)
    assert code == 0, err
    (row,) = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (row["model"], row["mode"], row["queries"], row["documents"]) == ("hashing-64", "direct", 2, 2)
    assert row["ndcg_at_10"] == 1.0
    assert row["task"].startswith("faq-pets-")
    assert "hashing-64" in out
    questions.write_text(QUESTIONS + "why do fish swim,Fish swim to eat.\n")
    assert call("evaluate", *arguments)[0] == 0
    rows = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [each["queries"] for each in rows] == [2, 3], "other content is another task"
    assert len({each["fingerprint"] for each in rows}) == 1


def test_results_of_a_changed_baseline_are_not_taken_for_its_own(package):
    from search_r3_mteb.evaluation.own_baselines import own_baseline

    code = (
        "from search_r3_mteb.extensions import BASELINES\nclass Model:\n    encode_query = encode_document = len\n"
        "@BASELINES.register('mine')\ndef mine(argument):\n    return Model()\n"
    )
    package("mine", "search_r3_mteb.baselines", {"mine": "own_mine:mine"}, code)
    found = [own_baseline(name).open()[1] for name in ("mine", "mine:1", "mine")]
    file = Path(sys.modules["own_mine"].__file__)
    file.write_text(code + "# another version\n")
    found.append(own_baseline("mine").open()[1])
    assert found[0] == found[2]
    assert len(set(found)) == 3


def test_what_a_baseline_or_task_cannot_be_is_refused(example, call, questions, tmp_path, monkeypatch):
    from mteb.abstasks.retrieval import AbsTaskRetrieval

    from search_r3_mteb.evaluation.explain import read_documents
    from search_r3_mteb.evaluation.system_checks import check_settings
    from search_r3_mteb.evaluation.systems import kind_of
    from search_r3_mteb.evaluation.tasks import resolve_task

    assert kind_of("hashing:64") == "own"
    assert isinstance(resolve_task(f"faq:{questions}"), AbsTaskRetrieval)
    assert resolve_task(f"faq:{questions}", "dev").eval_splits == ["dev"]
    assert [text for _, text in read_documents(f"faq:{questions}")] == [
        "Cats sleep in warm places.",
        "Birds sing at dawn.",
    ]
    with pytest.raises(ExtensionError, match=r"task 'faq' of the package .* failed with FileNotFoundError: .*nowhere"):
        resolve_task("faq:nowhere.csv")
    with pytest.raises(ValueError, match=r"no task 'fqa'.*installed extensions: faq"):
        resolve_task("fqa")
    with pytest.raises(ValueError, match="device would change nothing"):
        check_settings(["hashing"], {"device": "cpu"})
    with pytest.raises(ExtensionError, match=r"baseline 'hashing' .* failed with ValueError: invalid literal"):
        call("evaluate", "--debug", "--model", "hashing:many", "--task", f"faq:{questions}", "--output", tmp_path / "o")
    code, _, err = call("evaluate", "--model", "hasing", "--task", f"faq:{questions}", "--output", tmp_path / "o")
    assert code == 2
    assert "There is no model 'hasing'" in err
    assert "Baselines: bm25, hashing." in " ".join(err.split())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hashing").mkdir()
    with pytest.raises(ValueError, match=r"'hashing' is both a baseline .* and a folder here"):
        kind_of("hashing")

    TASKS.register("NFCorpus")(lambda argument, split: None)
    with pytest.raises(ExtensionError, match="has the name of one of MTEB's"):
        resolve_task("NFCorpus")
    TASKS.register("number")(lambda argument, split: 3)
    with pytest.raises(ExtensionError, match="gave int, not a retrieval task"):
        resolve_task("number")


@pytest.mark.parametrize("name", ["stdlib", "hopworld", "beir"])
def test_a_task_with_the_name_of_a_built_in_one_is_refused_and_marked(package, call, name):
    from search_r3_mteb.evaluation.tasks import resolve_task

    spec = "beir:folder" if name == "beir" else name
    if name != "beir":
        assert resolve_task(spec).metadata.name, "the control: without the package it is ours"
    package("thief", "search_r3_mteb.tasks", {name: "own_thief:x", "mine": "own_thief:x"}, "x = 1\n")
    with pytest.raises(
        ExtensionError, match=rf"'{name}', the name that the package thief 1\.0 .*would be used instead"
    ):
        resolve_task(spec)
    code, out, _ = call("evaluate", "--help")
    assert code == 0
    assert f"{name} (cannot be used: see search-r3 doctor)" in " ".join(out.split())
    assert "mine (cannot" not in " ".join(out.split())


@pytest.mark.parametrize(
    ("spec", "near"), [("fap:../pairs.csv", "faq"), ("hopwrold:500", "hopworld"), ("NFCorpsu", "NFCorpus")]
)
def test_a_task_that_is_not_there_names_the_near_one_and_the_installed(example, spec, near):
    from search_r3_mteb.evaluation.tasks import resolve_task

    with pytest.raises(ValueError, match=rf"There is no task .*Did you mean '{near}'\?.*installed extensions: faq\.$"):
        resolve_task(spec)
    with pytest.raises(ValueError, match="There is no task 'zzzzzz'") as caught:
        resolve_task("zzzzzz")
    assert "Did you mean" not in str(caught.value)
    assert "no similar keys" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"There is no folder \.\./pairs"):
        resolve_task("../pairs")


def test_a_model_that_is_not_there_names_the_near_one_and_a_writer_only_where_one_is_near(example):
    from search_r3_mteb.evaluation.systems import kind_of

    def said(name):
        with pytest.raises(FileNotFoundError) as caught:
            kind_of(name)
        return str(caught.value)

    for name, near in (("hasing:64", "hashing"), ("bm52", "bm25"), ("hydee:nano", "hyde")):
        assert f"Did you mean '{near}'?" in said(name)
    assert "WriterEncoder" in said("hydee:nano")
    for name in ("charz:3", "hasing:64", "bm52"):
        assert "WriterEncoder" not in said(name)
    assert "Did you mean" not in said("charz:3")


@pytest.mark.parametrize(
    ("vectors", "said"),
    [
        ("np.zeros((len(texts), 4))", "gave a vector of zeros, which has no direction, for the text 'where do cats"),
        ("np.ones((1, 4))", r"gave vectors of shape \(1, 4\) for 2 texts"),
        ("np.full((len(texts), 4), np.nan)", "finite numbers"),
        ("texts[99]", "failed to encode with IndexError"),
    ],
)
def test_a_baseline_that_does_not_encode_is_named(package, vectors, said):
    from mteb.types import PromptType

    from search_r3_mteb.evaluation.own_baselines import own_baseline

    code = (
        "import numpy as np\nfrom search_r3_mteb.extensions import BASELINES\nclass Model:\n"
        f"    def encode_query(self, texts):\n        return {vectors}\n"
        "    encode_document = encode_query\n@BASELINES.register('mine')\ndef mine(argument):\n    return Model()\n"
    )
    package("mine", "search_r3_mteb.baselines", {"mine": "own_mine:mine"}, code)
    model, _ = own_baseline("mine").open()
    with pytest.raises(ExtensionError, match=rf"baseline 'mine' of the package mine 1\.0 .*{said}"):
        model.encode([{"text": ["where do cats sleep", "b"]}], prompt_type=PromptType.query)


def test_a_model_of_mteb_s_is_a_baseline_too(registries):
    import mteb

    from search_r3_mteb.evaluation.systems import open_systems

    BASELINES.register("terms")(lambda argument: mteb.get_model("mteb/baseline-bm25s"))
    (system,) = open_systems("terms", "both", {}, None)
    assert (system.label, system.mode) == ("terms", "direct")
    assert system.model.mteb_model_meta.revision == system.fingerprint[:16]
    assert hasattr(system.model, "search")


def test_a_task_in_memory_refuses_judgements_of_nothing():
    from search_r3_mteb.tasks.mteb_tasks import MemoryTask

    documents, queries = {"d": ("Title", "text"), "e": "other"}, {"q": "words"}
    with pytest.raises(ValueError, match="judgements of query 'q': document 'f' is not in the corpus"):
        MemoryTask("mine", documents, queries, {"q": {"f": 1}})
    with pytest.raises(ValueError, match="judgements of query 'r': there is no such query"):
        MemoryTask("mine", documents, queries, {"q": {"d": 1}, "r": {"d": 1}})
    with pytest.raises(ValueError, match="judgements of query 'q': nothing is relevant for it"):
        MemoryTask("mine", documents, queries, {"q": {"d": 0}})
    with pytest.raises(ValueError, match="no judgement of query 'r'"):
        MemoryTask("mine", documents, {**queries, "r": "more"}, {"q": {"d": 1}})
    one, same = (MemoryTask("mine", documents, queries, {"q": {"d": 1}}) for _ in range(2))
    others = [
        MemoryTask("mine", {**documents, "e": "changed"}, queries, {"q": {"d": 1}}),
        MemoryTask("mine", documents, queries, {"q": {"d": 2}}),
        MemoryTask("mine", documents, queries, {"q": {"d": 1}}, instruction="Find it."),
    ]
    assert one.metadata.name == same.metadata.name
    assert len({each.metadata.name for each in (one, *others)}) == 4
    one.load_data()
    assert one.dataset["default"]["test"]["corpus"][0] == {"id": "d", "title": "Title", "text": "text"}


# ---- profiles --------------------------------------------------------------------------------------------------------


def test_a_profile_is_written_by_init_and_taken_by_training(example, call, tmp_path):
    from search_r3_mteb.encoder.profiles import EMBED_TOKEN, Profile
    from tests.encoder.test_initialise import make_base
    from train.config.model import ModelSettings
    from train.model.model import prepare

    base = make_base(tmp_path / "base")
    code, _, err = call("init", base, "--profile", "short", "--output", tmp_path / "new")
    assert code == 0, err
    written = Profile.load(tmp_path / "new")
    assert (written.reason.system, written.direct.reply) == ("Name what the text is about.", "{embed_token}")
    assert written.embed_token == EMBED_TOKEN
    assert prepare(ModelSettings(path=str(base), profile="short"), 0, "cpu").profile == written
    assert prepare(ModelSettings(path=str(base)), 0, "cpu").profile.direct == Profile().direct, "the control"
    with pytest.raises(ValueError, match="The profile 'short' would have no effect: new has its own"):
        prepare(ModelSettings(path=str(tmp_path / "new"), profile="short"), 0, "cpu")
    with pytest.raises(ValueError, match="profile belongs to a base"):
        ModelSettings(scratch={}, profile="short")
    code, _, err = call("init", base, "--profile", "shrot", "--output", tmp_path / "other")
    assert code == 2
    assert "Did you mean 'short'" in err
    PROFILES.register("empty")(dict)
    code, _, err = call("init", base, "--profile", "empty", "--output", tmp_path / "other")
    assert (code, "not a Profile" in " ".join(err.split())) == (2, True)


def test_a_profile_is_in_the_log_and_the_dry_run_and_a_wrong_one_names_the_installed(example, tmp_path):
    from tests.encoder.test_initialise import make_base
    from tests.train.loops import events, sft_config
    from train.config.model import ModelSettings
    from train.plan.start import check_start
    from train.sft import train

    base = make_base(tmp_path / "base")
    short = ("optimization.steps=1", "data.max_length=768", "optimization.batch_size=2", "evaluate.every=0")
    own = sft_config(tmp_path / "own", "model.profile=short", *short, model=base)
    plain = sft_config(tmp_path / "plain", *short, model=base)
    origin = "the package search-r3-extension 0.1.0 (entry point search_r3_extension.profile:short)"
    assert check_start(own) == [f"The prompts come from the profile 'short' of {origin}"]
    assert check_start(plain) == []
    train(own)
    train(plain)
    assert events(tmp_path / "own", "extension") == [
        {"event": "extension", "step": 1, "what": "profile", "name": "short", "origin": origin}
    ]
    assert events(tmp_path / "plain", "extension") == []
    with pytest.raises(ValueError, match=r"no profile 'shrot'\. Did you mean 'short'\? .*nstalled extensions: short\."):
        ModelSettings(path="nano", profile="shrot")


def test_doctor_warns_of_an_extension_that_cannot_be_used(package):
    from itertools import islice

    from search_r3_mteb.doctor import PACKAGES, WARNING, examine

    package("bad", "search_r3_mteb.rewards", {"broken": "own_bad:broken"}, "import no_such_library")
    found = list(islice(examine(), 3 + len(PACKAGES)))  # up to the device: no model is loaded
    ((name, text),) = [each for each in found if "broken" in each[1]]
    assert name == WARNING
    assert text.startswith("reward broken: cannot be used. The reward 'broken' of the package bad 1.0 ")
    assert text.endswith("Fix that package, or uninstall it.")


# ---- the page --------------------------------------------------------------------------------------------------------


def test_the_page_shows_the_example_as_it_is():
    page = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
    for name in ("reward", "refresh_policy", "task", "profile", "baseline"):
        code = (EXAMPLE / "search_r3_extension" / f"{name}.py").read_text(encoding="utf-8")
        assert f"```python\n{code}```" in page, f"{name}.py differs from docs/extend.md"
    for registry in REGISTRIES:
        assert registry.group in page


def test_the_page_s_trainings_begin_in_a_fresh_checkout(example, tmp_path, monkeypatch):
    from tests.encoder.test_initialise import make_base
    from train.config.loading import load_config
    from train.config.stages import RlConfig, SftConfig
    from train.plan.start import check_start

    page = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8").replace("\\\n", " ")
    commands = [shlex.split(line) for line in page.splitlines() if line.startswith("python train/")]
    assert len(commands) == 4
    monkeypatch.chdir(tmp_path)
    make_base(tmp_path / "base")  # as the page copies it
    for _, program, _, file, *rest in commands:
        overrides = [each for each in rest if each not in ("--set", "--dry-run")]
        config = load_config(ROOT / file, overrides, SftConfig if program.endswith("sft.py") else RlConfig)
        assert config.optimization.steps == 3
        assert config.model.path in ("nano", "base"), "what no earlier run has to write"
        assert {each.kind for each in config.data.sources} == {"hopworld"}, "what needs no file"
        assert any("search-r3-extension 0.1.0" in note for note in check_start(config))


def test_the_page_s_whole_pyproject_is_the_example_s_with_one_entry_point():
    page = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
    shown = tomllib.loads("[build-system]" + page.partition("```toml\n[build-system]")[2].partition("```")[0])
    kept = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())
    group = shown["project"].pop("entry-points")
    assert kept["project"].pop("entry-points").items() >= group.items()
    del kept["project"]["description"]
    assert shown == kept


def test_the_page_s_program_makes_the_checkpoints_known_to_mteb(capsys):
    from mteb.models.model_implementations import MODEL_REGISTRY

    page = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
    before = dict(MODEL_REGISTRY)
    try:
        exec(page.partition("```python\nimport mteb\n")[2].partition("```")[0], {"mteb": __import__("mteb")})
    finally:
        MODEL_REGISTRY.clear()
        MODEL_REGISTRY.update(before)
    assert capsys.readouterr().out == "1536\n"
