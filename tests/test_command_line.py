"""What people expect of a program: version, help, completion, JSON, quiet, and lines that stand beside bars."""

import io
import json
import os
import shlex
import subprocess
import sys
import warnings
from contextlib import redirect_stderr

import pytest
import torch
from rich.console import Console
from typer.main import get_command

import search_r3_mteb
from search_r3_mteb import cli
from search_r3_mteb.cli import program, shared
from search_r3_mteb.report import report
from search_r3_mteb.report.records import Message, summarised
from search_r3_mteb.tasks.beir_folder import write_beir
from search_r3_mteb.terminal import SafeConsole
from tests.programs import ROOT

COMMANDS = sorted(get_command(cli.app).commands)
WITH_TABLES = ("evaluate", "compare", "tune", "contamination", "diagnose", "reproduce", "bench", "explain", "doctor")


@pytest.fixture(autouse=True)
def loud():
    yield
    shared.be_quiet(False)


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("cats sleep\ndogs bark\nbirds sing\n")
    return path


# ---- help ------------------------------------------------------------------------------------------------------------


def test_version(call):
    assert call("--version")[:2] == (0, f"search-r3 {search_r3_mteb.__version__}\n")


def test_help_speaks_of_a_writer_where_one_can_be_given_and_of_the_commands_in_their_order(call):
    def help_of(command):
        return " ".join(call(command, "--help")[1].split())

    for command, writes in (
        ("evaluate", True),
        ("compare", True),
        ("tune", True),
        ("diagnose", False),
        ("embed", False),
    ):
        assert ("text of a writer" in help_of(command)) == writes, command
    assert "One split of each task" in help_of("evaluate")
    assert "A split of the task." in help_of("diagnose")
    text = " ".join(call("--help")[1].split())
    order = list(get_command(cli.app).commands)
    groups = [("evaluate", "contamination"), ("embed", "convert"), ("init", "export")]
    for first, last in groups:
        assert f"({first} to {last})" in text
    assert [order.index(name) for pair in groups for name in pair] == [0, 7, 8, 14, 15, len(order) - 1]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_and_shows_every_default(call, command):
    code, text, _ = call(command, "-h")
    assert code == 0
    assert call(command, "--help")[1] == text
    assert max(map(len, text.splitlines())) <= 80
    words = " ".join(text.split())
    for parameter in get_command(cli.app).commands[command].params:
        said = parameter.help or ""
        if "[default:" in said:  # rich took these for its markup, and dropped them
            assert " ".join(said.split()) in words
        elif isinstance(parameter.default, str | int | float) and not isinstance(parameter.default, bool):
            assert f"[default: {parameter.default}" in words
    options = text.partition("Options:")[2]
    assert not {"<str>", "<int", "<path>", "<list", "<float"} & {*options.split()}, "a value is called by one word"


def test_the_list_of_commands_is_not_cut(call):
    _, text, _ = call("-h")
    listed = text.partition("Commands:")[2].splitlines()[1:]
    assert len(listed) == len(COMMANDS) >= 15
    assert all(line.endswith(".") and not line.endswith("...") for line in listed)


def test_a_shell_completes_commands():
    def completed(words, position):
        environment = os.environ | {"_SEARCH_R3_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": position}
        environment["PYTHONPATH"] = str(ROOT)
        done = subprocess.run([sys.executable, "-m", "search_r3_mteb"], env=environment, capture_output=True, text=True)
        return done.stdout.split()

    assert completed("search-r3 e", "1") == ["evaluate", "embed", "explain", "export"]


# ---- JSON and quiet --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [*WITH_TABLES, "verify"])
def test_every_command_with_a_table_has_json(command):
    options = [option for each in get_command(cli.app).commands[command].params for option in each.opts]
    assert "--json" in options


def test_json_is_the_result_and_nothing_else(call, tmp_path, corpus, tiny_folder):
    code, out, _ = call(
        "explain", "who barks", "--corpus", corpus, "--model", tiny_folder, "--max-reasoning-tokens", 4, "--json"
    )
    found = json.loads(out)
    assert code == 0
    assert sorted(hit["text"] for hit in found["without"]) == ["birds sing", "cats sleep", "dogs bark"]
    assert found["tokens"] <= 4
    code, out, _ = call("reproduce", "--published", "BRIGHT", "--json")
    assert {row["benchmark"] for row in json.loads(out)} == {"BRIGHT"}
    assert "not measured" not in out.lower()


def test_quiet_leaves_the_result_and_errors(call, tmp_path, corpus, tiny_folder):
    given = ("embed", "--input", corpus, "--output", tmp_path / "v.npy", "--model", tiny_folder, "--role", "document")
    assert "3 x 32 float32" in call(*given)[1], "the control"
    for place in (("-q", *given), (*given, "--quiet")):
        (tmp_path / "v.npy").unlink()
        assert call(*place) == (0, "", "")
        assert (tmp_path / "v.npy").exists()
    code, _, err = call("embed", "-q", "--input", tmp_path / "nowhere.txt", "--output", tmp_path / "w.npy")
    assert code == 2
    assert "Error:" in err


@pytest.mark.slow
def test_an_evaluation_quietly_as_json_and_as_ever(call, tmp_path):
    documents = [("d1", "", "cats sleep"), ("d2", "", "dogs bark"), ("d3", "", "birds sing")]
    write_beir(tmp_path / "pets", corpus=documents, queries=[("q", "who barks")], qrels={"test": [("q", "d2", 1)]})
    evaluated = ("evaluate", "--model", "bm25", "--task", f"beir:{tmp_path / 'pets'}", "--output", tmp_path / "out")
    code, out, err = call(*evaluated, "-q")
    assert (code, err) == (0, "")
    assert "nDCG@10" in out
    assert "Written to" not in out
    code, out, _ = call(*evaluated, "--json")
    assert (code, json.loads(out)) == (0, json.loads((tmp_path / "out" / "summary.json").read_text()))
    code, out, err = call(*evaluated)
    assert "Written to" in out
    assert err.count("\n") == len(err.splitlines()) == err.count("bm25 (direct) on"), "a line for each"
    assert "complete in" in err


def test_what_follows_two_dashes_is_no_option():
    assert program._taken_out(["explain", "-q", "--", "--debug"]) == (["explain", "--", "--debug"], {"-q"})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-q", "compare", "plan.toml"], "What is complete is kept"),
        (["tune", "--task", "t"], "What is complete is kept"),
        (["convert", "search", "--output", "evaluate"], "What was written is complete, or as it was before"),
        (["search", "evaluate", "why?"], "It writes nothing"),
        (["--help"], "What was written is complete"),
    ],
)
def test_what_a_stopped_command_has_kept_is_said_by_its_name_alone(arguments, said):
    assert program._kept(arguments).startswith(said)


# ---- texts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [":key:", "beir:smile:test", "a :warning: b"])
def test_a_text_between_colons_stays_text(text):
    shown = []
    for kind in (SafeConsole, Console):
        console = kind(file=io.StringIO(), width=80)
        console.print(text)
        shown.append(console.file.getvalue().strip())
    assert shown[0] == text
    assert shown[1] != text, "the control: rich makes a picture of it"


# ---- warnings and bars -----------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    """Standard error that says it is a terminal."""

    def isatty(self):
        return True


def after_carriage_returns(text):
    """What a terminal shows: of each line what was written last."""
    return [line.rpartition("\r")[2].rstrip() for line in text.split("\n")]


@pytest.mark.parametrize("above", [True, False])
def test_a_line_stands_above_a_moving_bar(monkeypatch, above):
    from tqdm import tqdm

    def plain(*about, **_):
        stream.write(warnings.formatwarning(*about[:4]))  # as Python does, which pytest keeps from it

    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with program._warnings(bars=above, quiet=False), tqdm(total=2, file=stream, ascii=True, ncols=40) as bar:
        warnings.simplefilter("always")
        if not above:
            warnings.showwarning = plain
        warnings.warn("a library says something", FutureWarning, stacklevel=1)
        with shared.long_work():
            shared.logging.getLogger("search_r3_mteb.tests").info("nano (reason) on T: running")
        bar.update(2)
    shown = after_carriage_returns(stream.getvalue())
    assert "nano (reason) on T: running" in shown
    clean = any("FutureWarning: a library says" in line and "%" not in line for line in shown)
    assert clean is above, "the control: Python writes it behind the bar"
    assert "100%" in shown[-2]


def test_quiet_takes_warnings_away(recwarn):
    with program._warnings(bars=False, quiet=True):
        warnings.warn("a library says something", FutureWarning, stacklevel=1)
    assert not recwarn.list


@pytest.mark.slow
def test_no_library_s_warning_is_the_user_s(tmp_path, corpus):
    """In a process of its own, without pytest's filters: nothing of a library stands on standard error."""
    commands = [
        ["evaluate", "--model", "nano", "--model", "bm25", "--task", "hopworld:500", "--output", "out"],
        ["embed", "--input", str(corpus), "--output", "v.npy"],
        ["explain", "who barks", "--corpus", str(corpus)],
        ["doctor"],
        ["export", "--output", "exported"],
        ["evaluate", "--model", "exported", "--task", "hopworld:500", "--output", "out2"],
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for arguments in commands:
        done = subprocess.run(
            [sys.executable, "-m", "search_r3_mteb", *arguments],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert "Warning" not in done.stderr, (arguments, done.stderr)


# ---- report ----------------------------------------------------------------------------------------------------------

ROW = {"task": "T", "split": "test", "model": "m", "mode": "direct", "ndcg_at_10": 0.25, "recall_at_10": 0.5}


def test_a_report_of_nothing_leaves_the_good_page(call, tmp_path):
    run, page = tmp_path / "run", tmp_path / "report.html"
    run.mkdir()
    (run / "summary.json").write_text(json.dumps([ROW]))
    assert call("report", run, "--output", page)[0] == 0
    good = page.read_bytes()
    for content in ("[]", "[{", '[{"task": "T"}]'):
        (run / "summary.json").write_text(content)
        code, _, err = call("report", run, "--output", page)
        assert code == 2
        said = " ".join(err.split())
        assert "There is nothing to show in" in said
        assert "error:" not in said  # once is enough
        assert ".." not in said.replace(str(tmp_path), "")
        assert page.read_bytes() == good
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds no summary.json.*was not written"):
        report([tmp_path / "empty"], tmp_path / "new.md", "md")
    assert not (tmp_path / "new.md").exists()


def test_messages_are_counted_by_file(call, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    entries = [{"task": "T"} for _ in range(113)]
    (run / "summary.json").write_text(json.dumps([ROW, *entries]))
    code, out, _ = call("report", run, "--output", tmp_path / "report.html")
    assert code == 0
    lines = out.strip().splitlines()
    assert len(lines) <= 4
    assert sum("113 errors, the first: " in line or "errors, the first: entry 2" in line for line in lines) == 1


def test_errors_come_first_and_the_rest_is_counted():
    files = [Message("note", f"n{number}", "is small") for number in range(30)]
    messages = [*files, Message("error", "summary.json entry 3", "is broken"), Message("error", "summary.json", "ends")]
    shown = summarised(messages, lines=5)
    assert shown[0] == "error: summary.json: 2 errors, the first: is broken"
    assert shown[1] == "note: n0: is small"
    assert shown[5] == "notes of 26 more files or models: the page has them all."
    assert len(shown) == 6
    assert summarised(messages[:2]) == ["note: n0: is small", "note: n1: is small"]


# ---- doctor ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def always(tmp_path):
    """`always(token)` is the folder of a model that says this token whatever it reads."""
    from search_r3_mteb.encoder.checkpoints import Checkpoint, save
    from search_r3_mteb.encoder.profiles import Profile
    from tests.conftest import build_model, build_tokenizer

    def make(token):
        model, tokenizer = build_model("gpt2"), build_tokenizer()
        with torch.no_grad():
            model.transformer.ln_f.weight.zero_()
            row = model.transformer.wte.weight[tokenizer.convert_tokens_to_ids(token)]
            model.transformer.ln_f.bias.copy_(100 * row / row.norm())
        return save(Checkpoint(model, tokenizer, Profile.default(), "tests/always"), tmp_path / "model")

    return make


@pytest.mark.parametrize(
    ("token", "said"),
    [
        ("<|embed_token|>", "wrote no reasoning to any of 4"),
        pytest.param("a", "ended none of 4 reasonings", marks=pytest.mark.slow),
    ],
)
def test_doctor_warns_of_a_model_that_says_nothing(call, always, token, said):
    code, out, err = call("doctor", "--model", always(token))
    assert code == 0, err
    assert said in out
    assert out.rstrip().endswith("1 warning: see above.")


@pytest.mark.slow
def test_doctor_warns_of_no_model_that_speaks(call):
    assert call("doctor")[1].endswith("All well.\n")
    _, out, _ = call("doctor", "--model", "nano", "--json")
    assert "warning" not in [each["name"] for each in json.loads(out)], "the control"


# ---- names of options, and what the README says -----------------------------------------------------------


def test_the_budget_has_the_same_two_names_in_every_command():
    found = {}
    for name, command in get_command(cli.app).commands.items():
        for parameter in command.params:
            if {"--budget", "--max-reasoning-tokens"} & set(parameter.opts):
                found[name] = set(parameter.opts)
    assert {"evaluate", "compare", "tune"} <= set(found)
    assert set(map(frozenset, found.values())) == {frozenset({"--budget", "--max-reasoning-tokens"})}


@pytest.mark.parametrize("command", ["evaluate", "compare", "tune"])
def test_help_names_the_settings_of_writers(call, command):
    words = " ".join(call(command, "--help")[1].split())
    for name in ("samples", "weight", "prompt", "feedback_documents", "abstain_margin", "batch_invariant"):
        assert name in words.partition("--set")[2]


def readme_commands():
    """Every command line of README and docs that stands in a block of code."""
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for block in path.read_text(encoding="utf-8").replace("\\\n", " ").split("```")[1::2]:
            for line in block.splitlines():
                if line.startswith("search-r3 "):
                    yield line


@pytest.mark.parametrize("line", sorted(set(readme_commands())))
def test_commands_of_the_readme_can_be_given_as_they_are(line):
    """Options exist and none is missing; nothing is run."""
    words = shlex.split(line, comments=True)[1:]
    command = get_command(cli.app).commands[words[0]]
    with command.make_context(words[0], words[1:]):
        pass


def test_a_command_that_lacks_an_option_is_noticed():
    with pytest.raises(Exception, match="Missing parameter: task"):
        test_commands_of_the_readme_can_be_given_as_they_are("search-r3 tune --model hyde:LLM+ENCODER --split dev")


def test_a_line_beside_bars_keeps_its_end():
    import tqdm  # noqa: F401  where it is loaded, bars may be moving

    shown = io.StringIO()
    with redirect_stderr(program._WithoutBars(shown)):
        shared.above_bars("one")
        shared.above_bars("two")
    assert shown.getvalue() == "one\ntwo\n"
