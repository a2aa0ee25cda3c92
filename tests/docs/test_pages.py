"""Every page of docs/: its commands could be given, its settings are read, its links lead somewhere.

What is run: tests/docs/test_running.py.
"""

import dataclasses
import json
import re
import tomllib
from collections import Counter

import pytest

from tests.docs import commands
from tests.docs.pages import DOCS, LANGUAGES, PAGES, ROOT, Block, anchors, blocks, blocks_of, prose, read

BASH = blocks("bash")
EXTERNAL = re.compile(r"\w+:")
LINK = re.compile(r"!?\[(?:[^\]]|\n)*?\]\((?P<target>[^)\s]+)\)")


def test_every_block_says_its_language():
    assert {block.place for block in blocks() if block.language not in LANGUAGES} == set()
    assert len(blocks()) > 60
    with pytest.raises(ValueError, match=r'p.md:2: write title="..." behind the language, got \'linenums\''):
        blocks_of("```python linenums\npass\n```\n", "p.md")


def test_what_is_not_run_is_marked_with_a_reason_and_is_known():
    marked = {block.page: block.reason for block in blocks() if block.reason is not None}
    assert marked == {
        "paper.md": "MTEB's own command, and a pull request",
        "serve.md": "nginx is not here",
        "try.md": "it serves until it is stopped",
        "vllm.md": "vLLM has an environment of its own",
    }
    assert sum(block.reason is not None for block in blocks()) == len(marked)
    languages = Counter(block.language for block in blocks())
    assert languages["nginx"] == 1
    for block in blocks("text"):
        starts = ("search-r3 ", "python ", "make ", "pip ", "curl ", "$ ")
        assert not any(line.startswith(starts) for line in block.text.splitlines()), f"{block.place} hides a command"


# ---- commands --------------------------------------------------------------------------------------------------------


@pytest.fixture
def extensions(example, monkeypatch):
    """The example package is installed, as extend.md says."""


@pytest.mark.parametrize("page", sorted({block.page for block in BASH}))
def test_commands_can_be_given_as_they_are(page, extensions):
    given = 0
    for block in BASH:
        if block.page != page:
            continue
        for words in commands.commands(block.text):
            given += 1
            if block.reason is None or words[0] == "search-r3":
                commands.check(words)
    assert given


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("search-r3 evaluate --model mini --tsak shop", "No such option"),
        ("search-r3 evaluate --model mini", "Missing option|Missing parameter"),
        ("search-r3 evalaute --model mini --task shop", "no command"),
        ("search-r3 evaluate --model mini --task shop --set anchr=1", "NAME is one of"),
        ("cat x | search-r3 embed --input - --output v.npy --presicion int8", "No such option"),
        ("python train/sft.py --config train/configs/nanoo.toml", "refused"),
        ("python train/sft.py --config train/configs/nano.toml --set optimization.stesp=3", "refused"),
        ("python train/rl.py --config train/configs/rl_nano.toml --dryrun", "refused"),
        ("python train/sfft.py", "no script"),
        ("python results/mini/mini.py --dta x", "no option --dta"),
        ("python -m train.prepare scifcat", "refused"),
        ("accelerate launch --num_procs 8 train/sft.py --config train/configs/nano.toml", "no options"),
        ("make instal", "no target"),
        ("make install TROCH=x", "no variable"),
        ('pip install ".[srve]"', "no extra"),
        ("pip install -e examples/none", "there is no"),
        ("""curl http://127.0.0.1:8000/v1/search -d '{"qery": "x"}'""", "refuses"),
        ("""curl http://127.0.0.1:8000/v1/serach -d '{"query": "x"}'""", "not /v1/serach"),
        ("serach-r3 doctor", "no test knows"),
    ],
)
def test_a_wrong_command_is_noticed(line, message, capsys):
    [words] = list(commands.commands(line))[-1:]
    with pytest.raises(commands.CommandError, match=message):
        commands.check(words)


def test_a_block_is_taken_apart_as_a_shell_does():
    text = "A=1 search-r3 doctor > x  # why\nzcat a.gz | search-r3 embed \\\n  --input -\nexport B='c d' && make lint\n"
    assert list(commands.commands(text)) == [
        ["search-r3", "doctor"],
        ["zcat", "a.gz"],
        ["search-r3", "embed", "--input", "-"],
        ["export", "B=c d"],
        ["make", "lint"],
    ]


# ---- settings, profiles, rows ----------------------------------------------------------------------------------------


def check_toml(block, folder):
    """A plan of a comparison, entry points of a package, or settings of a training, laid over a shipped file."""
    from search_r3_mteb.compare.plan import read_plan
    from search_r3_mteb.extensions import REGISTRIES
    from train.config.loading import load_config
    from train.config.stages import RlConfig, SftConfig

    table = tomllib.loads(block.text)
    if "systems" in table:
        path = folder / "plan.toml"
        path.write_text(block.text)
        read_plan(path)
    elif "project" in table:
        groups = {registry.group for registry in REGISTRIES}
        assert set(table["project"]["entry-points"]) <= groups, block.place
    else:
        stage_one = set(table) <= set(SftConfig.model_fields)
        name, kind = ("own_sft", SftConfig) if stage_one else ("own_rl", RlConfig)
        shipped = tomllib.loads((ROOT / "train" / "configs" / f"{name}.toml").read_text())
        path = folder / "settings.toml"
        path.write_text(_dumped(_over(shipped, table)))
        load_config(path, (), kind)


def _over(below, above):
    return {**below, **{k: _over(below.get(k, {}), v) if isinstance(v, dict) else v for k, v in above.items()}}


def _dumped(table):
    import tomlkit

    return tomlkit.dumps(table)


@pytest.mark.parametrize("block", blocks("toml"), ids=lambda block: block.place)
def test_settings_are_read(block, tmp_path, extensions):
    check_toml(block, tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "[loss]\nmatryoshka_dim = [64]\n",
        "[reward]\nmargni = 1.0\n",
        "[reward.own.recal]\nweight = 1.0\n",
        'tasks = ["x"]\n[[systems]]\nmodle = "mini"\n',
        '[project.entry-points."search_r3_mteb.reward"]\nx = "a:b"\n',
    ],
)
def test_a_wrong_setting_is_noticed(text, tmp_path, extensions):
    with pytest.raises((ValueError, AssertionError)):
        check_toml(Block("p.md", 1, "toml", "", text), tmp_path)


def check_profile(text):
    """The whole profile: every key, and the values that a folder without the file has."""
    from search_r3_mteb.encoder.profiles import Profile

    data = json.loads(text)
    assert set(data) == {field.name for field in dataclasses.fields(Profile)}
    assert Profile.from_dict(data) == Profile.default()


def test_json_is_a_whole_profile():
    [block] = blocks("json")
    assert (block.page, block.title) == ("checkpoints.md", "search_r3.json")
    check_profile(block.text)
    with pytest.raises(AssertionError):
        check_profile(block.text.replace('  "plain": null,\n', ""))
    with pytest.raises(AssertionError):
        check_profile(block.text.replace('"embed_token"', '"embed_tokn"'))


def check_lines(block, folder):
    """Training rows, or reasonings by query id, as the readers of such files read them."""
    from search_r3_mteb.evaluation.given_file import ID_KEYS, TEXT_KEYS
    from train.config.data import SourceSettings
    from train.data.sources import all_rows, open_source

    lines = [json.loads(line) for line in block.text.splitlines()]
    if block.title.startswith("rows"):
        path = folder / block.title
        path.write_text(block.text)
        rows = list(all_rows(open_source(SourceSettings(kind="jsonl", path=str(path))), "stop"))
        assert len(rows) == len(lines)
    else:
        assert all(set(line) & set(ID_KEYS) and set(line) & set(TEXT_KEYS) for line in lines), block.place


@pytest.mark.parametrize("block", blocks("jsonl"), ids=lambda block: block.place)
def test_lines_of_json_are_read(block, tmp_path):
    check_lines(block, tmp_path)


def test_a_row_without_a_positive_is_noticed(tmp_path):
    with pytest.raises(ValueError, match="positive"):
        check_lines(Block("p.md", 1, "jsonl", "rows.jsonl", '{"query": "a", "positves": "b"}\n'), tmp_path)


# ---- links and numbers -----------------------------------------------------------------------------------------------


def link_faults(text, page):
    """Links of a page that lead nowhere: files that are not there, and anchors that no heading has."""
    for match in LINK.finditer(prose(text)):
        target, _, anchor = match["target"].partition("#")
        if EXTERNAL.match(match["target"]):
            if not match["target"].startswith("https://"):
                yield match["target"]
            continue
        path = (DOCS / page).parent / target if target else DOCS / page
        if not path.exists() or (anchor and anchor not in anchors(path.read_text(encoding="utf-8"))):
            yield match["target"]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    assert list(link_faults(read(page), page)) == []


def test_a_link_that_leads_nowhere_is_noticed():
    text = (
        "[a](none.md) [b](how.md#nothing) [c](how.md#the-corpus-cache) ![d](images/no.svg) [e](http://x.y)\n[f](#g)\n"
    )
    assert list(link_faults(text, "index.md")) == ["none.md", "how.md#nothing", "images/no.svg", "http://x.y", "#g"]


def test_every_page_is_in_the_menu_and_every_public_name_on_a_page():
    import search_r3_mteb

    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    assert {page for page in PAGES if f": {page}\n" not in menu} == set()
    described = set(re.findall(r"^::: (\S+)$", "\n".join(read(page) for page in PAGES), re.M))
    homes = {f"{home}.{name}" for name, home in search_r3_mteb._HOMES.items()}
    assert homes - described == {"search_r3_mteb.integrations.sentence_transformers.SentenceTransformer"}  # not ours
    for name in described:
        home, _, last = name.rpartition(".")
        source = (ROOT / (home.replace(".", "/") + ".py")).read_text(encoding="utf-8")
        assert re.search(rf"^(class|def) {last}\b", source, re.M), f"{name} is not there"


def test_the_number_of_architectures_is_that_of_the_table():
    found = json.loads((ROOT / "results" / "checkpoints" / "architectures.json").read_text(encoding="utf-8"))
    verdicts = Counter(each["verdict"] for each in found["kinds"].values())
    said = f"{verdicts['works']} causal architectures of transformers pass, {verdicts['refused']} are refused"
    assert said in read("how.md")


def test_results_are_written_by_the_script_alone():
    """No decimal number stands in the prose of the results, where none would follow the data."""
    text = re.sub(r"<!-- begin: (.*?) -->.*?<!-- end: \1 -->", "", read("results.md"), flags=re.S)
    assert re.findall(r"\d\.\d\d", text) == []
    assert len(re.findall(r"\d\.\d\d", read("results.md"))) > 100


# Endings and numbers that the code adds to a name of its own.
MADE = re.compile(r"^reward_recall(_spread)?$|_total$|(?<=infonce)_\d+$")
SNAKE = re.compile(r"`([a-z]+(?:_[a-z0-9]+)+)`")


def sources():
    """All code in which a name of a setting, a column or a part of the log may stand."""
    folders = ("search_r3_mteb", "train", "examples", "results")
    return "\n".join(path.read_text(encoding="utf-8") for name in folders for path in (ROOT / name).rglob("*.py"))


def unknown_names(text, code):
    """Names in the prose that no code has, and settings of a training that there are not."""
    from train.config.loading import _paths
    from train.config.stages import RlConfig, SftConfig

    settings = {".".join(path) for kind in (SftConfig, RlConfig) for path in _paths(kind, ())}
    sections = {name.partition(".")[0] for name in settings}
    yield from (name for name in SNAKE.findall(prose(text)) if MADE.sub("", name) not in code)
    for quoted in re.findall(r"`([^`\n]+)`", prose(text)):
        for match in re.finditer(rf"(?<![\w./\[-])((?:{'|'.join(sections)})(?:\.[a-z_]+)+)(?![\w./(])", quoted):
            if match[1] not in settings and not (ROOT / match[1]).exists():
                yield match[1]


def test_names_in_the_prose_are_names_of_the_code():
    code = sources()
    assert {(page, name) for page in PAGES for name in unknown_names(read(page), code)} == set()
    text = "`forced_shares`, `data.hard_negative` and `optimization.steps`, `forced_share`\n"
    assert list(unknown_names(text, code)) == ["forced_shares", "data.hard_negative"]


# ---- commands in the prose -------------------------------------------------------------------------------------------


def options_of(command):
    """The options of a command, and those that may stand anywhere."""
    anywhere = {"-q", "--quiet", "--debug", "--version", "-h", "--help"}
    return anywhere | {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


def prose_faults(text):
    """Commands and options in inline code that there are not; they may be shortened, so that none need be whole."""
    from typer.main import get_command

    from search_r3_mteb import cli

    known = get_command(cli.app).commands
    others = set(re.findall(r'"(--[a-z-]+)"', sources()))
    everywhere = others.union(*map(options_of, known.values()))
    for quoted in re.findall(r"`([^`\n]+)`", prose(text)):
        words = quoted.split()
        if words[0] == "search-r3" and len(words) > 1 and words[1] != "...":
            given = [word.partition("=")[0] for word in words[2:] if word.startswith("--")]
            if words[1] not in known or set(given) - options_of(known[words[1]]):
                yield quoted
        elif words[0].startswith("--"):
            if words[0].partition("=")[0] not in everywhere:
                yield quoted
        elif words[0] == "make" and len(words) > 1:
            try:
                commands.check(words)
            except commands.CommandError:
                yield quoted
        elif words[0] == "python" and words[1:2] != ["-m"] and not (ROOT / words[-1]).is_file():
            yield quoted


def test_commands_in_the_prose_are_there():
    assert {(page, fault) for page in PAGES for fault in prose_faults(read(page))} == set()
    text = "`search-r3 serch`, `search-r3 serve --require-roles`, `--kinds`, `make instal`, `python docs/no.py`, "
    right = "`search-r3 serve --require-role`, `--kind`, `make install`, `python docs/tables.py`\n"
    assert list(prose_faults(text + right)) == [each.strip("`") for each in text.strip(", ").split(", ")]
