"""`search-r3 reproduce`, end to end with a checkpoint and task folders made here, on the path of the real ones."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from search_r3_mteb.encoder.checkpoints import save
from search_r3_mteb.encoder.engine import Engine
from search_r3_mteb.evaluation import reproduce as module
from search_r3_mteb.evaluation.reproduce import (
    CLAIMS,
    RELEASED_MODEL,
    Claim,
    _by_question,
    judge,
    parse_task_folders,
    reproduce,
    table,
)
from search_r3_mteb.evaluation.significance import Difference, interval
from search_r3_mteb.tasks.beir_folder import write_beir
from tests.mteb_running import made_task

SETTINGS = {"max_reasoning_tokens": 4, "probe": False}  # a probe would count as work
WORDS = ["silver", "river", "garden", "stone", "winter", "harbour"]
RESULTS = Path(__file__).resolve().parents[2] / "results"


@pytest.fixture
def folder(checkpoint, tmp_path):
    """The same saved, as a download would be."""
    return save(checkpoint, tmp_path / "Search-R3.0-Small")


@pytest.fixture
def beirs(tmp_path):
    """A BEIR folder for each claim."""
    found = {}
    for claim in CLAIMS:
        documents = [(f"d{n}", "", f"{claim.name} {a} {b}") for n, (a, b) in enumerate(pairs())]
        queries = [(f"q{n}", f"{claim.name}: where is {word}") for n, word in enumerate(WORDS)]
        qrels = {"test": [(f"q{n}", f"d{6 * n}", 1) for n in range(6)]}
        found[claim.name] = tmp_path / "data" / claim.name
        write_beir(found[claim.name], corpus=documents, queries=queries, qrels=qrels)
    return found


def pairs():
    return [(first, second) for first in WORDS for second in WORDS]


@pytest.fixture
def work(monkeypatch):
    """Counts how often the model runs."""
    calls = []
    for name in ("reason", "embed"):
        plain = getattr(Engine, name)
        monkeypatch.setattr(
            Engine,
            name,
            lambda *given, _plain=plain, _name=name, **named: calls.append(_name) or _plain(*given, **named),
        )
    return calls


def test_all_claims_from_a_folder_and_again_without_work(folder, beirs, tmp_path, work):
    output, heard = tmp_path / "run", []
    settings = {"task_folders": beirs, "settings": SETTINGS, "command": "search-r3 reproduce"}
    findings = reproduce(["all"], folder, output, **settings, on_finding=heard.append)
    assert [each["claim"] for each in findings] == ["scifact", "litsearch", "mkqa"]
    assert heard == findings == json.loads((output / "reproduce.json").read_text())
    rows = {(row["task"], row["mode"]): row for row in json.loads((output / "summary.json").read_text())}
    assert len(rows) == 6
    for claim, finding in zip(CLAIMS, findings, strict=True):
        direct, reason = rows[finding["task"], "direct"], rows[finding["task"], "reason"]
        assert finding["task"].startswith(f"beir-{claim.name}")
        assert finding["direct"]["ndcg_at_10"] == pytest.approx(direct["ndcg_at_10"], abs=1e-6)
        assert finding["reason"]["ndcg_at_10"] == pytest.approx(reason["ndcg_at_10"], abs=1e-6)
        assert finding["reason"]["interval"] == pytest.approx(reason["interval"], abs=1e-6)
        assert finding["difference"] == pytest.approx(reason["ndcg_at_10"] - direct["ndcg_at_10"], abs=2e-6)
        assert finding["interval"][0] <= finding["difference"] <= finding["interval"][1]
        assert finding["claimed"]["difference"] == claim.difference
        assert finding["verdict"] in ("confirmed", "not confirmed", "undecided")
        assert finding["rehearsal"] == (
            f"local/Search-R3.0-Small is not known to be {RELEASED_MODEL}; a folder stands in for {claim.task}"
        )
        assert (finding["queries"], finding["questions"], finding["max_reasoning_tokens"]) == (6, 6, 4)
        assert finding["command"] == "search-r3 reproduce"
        assert finding["commit"]
    assert any(finding["difference"] for finding in findings)
    work.clear()
    assert reproduce(["all"], folder, output, **settings) == findings
    assert work == []


def test_a_killed_run_keeps_what_was_settled_and_goes_on(folder, beirs, tmp_path, monkeypatch):
    output, folders = tmp_path / "run", {name: beirs[name] for name in ("scifact", "litsearch")}
    plain = module.evaluate

    def killed(models, tasks, *given, **named):
        if "litsearch" in tasks[0].metadata.name:
            raise KeyboardInterrupt
        return plain(models, tasks, *given, **named)

    monkeypatch.setattr(module, "evaluate", killed)
    with pytest.raises(KeyboardInterrupt):
        reproduce(["scifact", "litsearch"], folder, output, task_folders=folders, settings=SETTINGS)
    settled = json.loads((output / "reproduce.json").read_text())
    assert [each["claim"] for each in settled] == ["scifact"]
    monkeypatch.setattr(module, "evaluate", plain)
    findings = reproduce(["scifact", "litsearch"], folder, output, task_folders=folders, settings=SETTINGS)
    assert findings[:1] == settled
    assert json.loads((output / "reproduce.json").read_text()) == findings


def test_the_run_folder_can_be_reported(folder, beirs, tmp_path):
    from search_r3_mteb.report import report

    chosen = {"task_folders": {"scifact": beirs["scifact"]}, "settings": SETTINGS, "command": "search-r3 reproduce"}
    reproduce(["scifact"], folder, tmp_path / "run", **chosen)
    assert [str(message) for message in report([tmp_path / "run"], tmp_path / "table.md", "md")] == []
    assert "beir-scifact" in (tmp_path / "table.md").read_text()


def test_the_table_shows_claimed_and_measured(folder, beirs, tmp_path):
    from rich.console import Console

    chosen = {"task_folders": {"mkqa": beirs["mkqa"]}, "settings": SETTINGS}
    [finding] = reproduce(["mkqa"], folder, tmp_path / "run", **chosen)
    console = Console(width=200, record=True, file=(tmp_path / "shown").open("w"))
    console.print(table([finding]))
    shown = console.export_text()
    for text in (
        "mkqa",
        "+0.017",
        "(claimed 0.194)",
        "(claimed 0.211)",
        f"{finding['difference']:+.3f}",
        "(rehearsal)",
    ):
        assert text in shown


# ------------------------------------------------------------------------------------- the tasks that MTEB downloads


def downloaded(languages=("en",), load=None):
    """What `mteb.get_task` would give: a task that is none of ours, in several languages."""
    documents = [{"id": f"d{n}", "title": "", "text": " ".join(pair)} for n, pair in enumerate(pairs())]
    subsets = {}
    for number, language in enumerate(languages):
        count = 6 - 2 * number
        queries = [{"id": f"q{n}", "text": f"{language}: {WORDS[n]}?"} for n in range(count)]
        relevant = {f"q{n}": {f"d{6 * n}": 1} for n in range(count)}
        subsets[language if len(languages) > 1 else "default"] = (documents, queries, relevant)
    task = made_task("MKQARetrieval", subsets, split="train")
    if load is not None:
        task.load_data = lambda *given, **named: load()
    return task


@pytest.fixture
def hub(monkeypatch, checkpoint, folder):
    """A hub that has the released checkpoint, under its own name."""

    def install(task):
        import mteb

        monkeypatch.setattr(mteb, "get_task", lambda name: task)
        snapshot = folder.parent / "snapshots" / ("a" * 40)
        shutil.copytree(folder, snapshot)
        monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **options: str(snapshot))

    return install


def test_the_released_checkpoint_on_the_task_itself_is_no_rehearsal(hub, tmp_path):
    hub(downloaded(("en", "de")))
    [finding] = reproduce(["mkqa"], output=tmp_path / "run", settings=SETTINGS)
    assert (finding["model"], finding["task"], finding["split"]) == (RELEASED_MODEL, "MKQARetrieval", "train")
    assert finding["rehearsal"] is None
    assert (finding["queries"], finding["questions"]) == (10, 6)
    rows = {row["mode"]: row for row in json.loads((tmp_path / "run" / "summary.json").read_text())}
    for mode in ("direct", "reason"):
        assert finding[mode]["ndcg_at_10"] == pytest.approx(rows[mode]["ndcg_at_10"], abs=2e-6)


def test_questions_in_several_languages_are_drawn_together():
    rng = np.random.default_rng(0)
    level = rng.random(40)
    values = {f"{language}/q{n}": level[n] for language in ("en", "de", "fr") for n in range(40)}
    together = _by_question(values, several=True)
    assert np.mean(list(together.values())) == pytest.approx(level.mean())
    apart, shared = interval(list(values.values())), interval(list(together.values()))
    # The same 40 questions three times are 40 draws: as 120, the interval would be too narrow by the root of three.
    assert (shared.high - shared.low) / (apart.high - apart.low) == pytest.approx(3**0.5, rel=0.1)
    uneven = {"en/a": 1.0, "en/b": 0.0, "de/a": 0.5}
    assert np.mean(list(_by_question(uneven, several=True).values())) == pytest.approx((0.5 + 0.5) / 2)
    assert _by_question(uneven, several=False) == uneven


def test_without_network_it_is_said_what_is_needed(tmp_path, monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    def unreachable(*given, **named):
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(FileNotFoundError) as caught:
        reproduce(["all"], output=tmp_path / "run")
    message = str(caught.value)
    for needed in (f"the checkpoint {RELEASED_MODEL}", "the data of SciFact", "the data of LitSearchRetrieval",
                   "MKQARetrieval", "machine with network and a GPU", "--claim scifact --claim litsearch --claim mkqa",
                   "--model FOLDER --task-folder scifact=BEIR_FOLDER", "no connection"):  # fmt: skip
        assert needed in message
    assert not (tmp_path / "run").exists()


def test_missing_data_are_told_before_anything_is_computed(hub, tmp_path, work):
    def unreachable():
        raise ConnectionError("Couldn't reach 'tests/made' on the Hub")

    hub(downloaded(load=unreachable))
    with pytest.raises(FileNotFoundError, match=r"the data of MKQARetrieval \(ConnectionError: Couldn't reach"):
        reproduce(["mkqa"], output=tmp_path / "run", settings=SETTINGS)
    assert work == []
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------------------------------------- verdicts


@pytest.mark.parametrize(
    ("low", "high", "verdict", "words"),
    [
        (0.02, 0.06, "confirmed", "a gain that agrees with the claimed +0.048"),
        (0.06, 0.09, "confirmed", "a gain, more than the claimed"),
        (0.001, 0.0476, "confirmed", "agrees"),  # 0.0476 is what would be printed as the claimed 0.048
        (0.01, 0.04, "not confirmed", "a gain, but less than the claimed"),
        (-0.02, 0.03, "not confirmed", ": less than the claimed"),
        (-0.09, -0.01, "not confirmed", "a loss instead of the claimed"),
        (-0.01, 0.07, "undecided", "holds both no gain and the claimed"),
        (0.0, 0.05, "undecided", "more queries"),
    ],
)
def test_the_interval_decides(low, high, verdict, words):
    claim = Claim("scifact", "SciFact", "", "[S]", 0.048)
    found = judge(claim, Difference((low + high) / 2, low, high, 0.5, 300, (1, 1), 10_000))
    assert found[0] == verdict
    assert words in found[1]
    assert f"{low:+.3f} to {high:+.3f}" in found[1]


# ---------------------------------------------------------------------------------------------------- wrong inputs


@pytest.mark.parametrize(
    ("claims", "folders", "message"),
    [
        (["scifacts"], {}, "no claim scifacts; the claims are scifact, litsearch, mkqa, all"),
        ([], {}, "the claims are scifact"),
        (["scifact"], {"mkqa": "x"}, "given for mkqa, which is not among the claims that are measured"),
    ],
)
def test_wrong_claims_are_named(tmp_path, claims, folders, message):
    with pytest.raises(ValueError, match=message):
        reproduce(claims, "nowhere", tmp_path / "run", task_folders=folders)


def test_wrong_folders_and_models_are_named(folder, beirs, tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"):
        reproduce(["scifact"], folder, tmp_path / "run", task_folders={"scifact": tmp_path / "missing"})
    with pytest.raises(FileNotFoundError, match="nowhere"):
        reproduce(["scifact"], "nowhere", tmp_path / "run", task_folders={"scifact": beirs["scifact"]})
    with pytest.raises(ValueError, match="compares both modes"):
        reproduce(["scifact"], folder, tmp_path / "run", settings={"mode": "direct"})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("pairs", [["scifact"], ["scifact="], ["scifact=a", "scifact=b"]])
def test_task_folders_of_the_command_line(pairs):
    assert parse_task_folders(["scifact=a", "mkqa=b=c"]) == {"scifact": Path("a"), "mkqa": Path("b=c")}
    with pytest.raises(ValueError, match="--task-folder"):
        parse_task_folders(pairs)


def test_the_page_of_claims_has_every_claim_and_its_command():
    page = (RESULTS / "CLAIMS.md").read_text()
    for claim in CLAIMS:
        assert claim.statement in page
        assert f"search-r3 reproduce --claim {claim.name}" in page


def test_the_command_prints_claim_value_interval_and_verdict(folder, beirs, tmp_path, call):
    options = ["--model", folder, "--task-folder", f"scifact={beirs['scifact']}", "--output", tmp_path / "run"]
    code, out, _ = call("reproduce", "--claim", "scifact", *options, "--max-reasoning-tokens", 4)
    [finding] = json.loads((tmp_path / "run" / "reproduce.json").read_text())
    assert code == 0
    assert finding["command"].startswith("search-r3 reproduce --claim scifact --model")
    flat = " ".join(out.split())
    for text in (CLAIMS[0].statement, finding["explanation"], finding["verdict"], f"{finding['interval'][0]:+.3f} to"):
        assert text in flat


def test_the_command_names_what_is_wrong(folder, tmp_path, call):
    for options, message in (
        (["--claim", "scifakt"], "There is no claim scifakt"),
        (["--task-folder", "scifact"], "write CLAIM=PATH"),
        (["--claim", "mkqa", "--model", folder, "--task-folder", f"mkqa={tmp_path / 'nothing'}"], "nothing"),
    ):
        code, _, err = call("reproduce", *options, "--output", tmp_path / "run")
        assert code == 2
        assert message in " ".join(err.split())
