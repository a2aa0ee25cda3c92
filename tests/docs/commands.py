"""Command lines of the pages, checked against what they would start; nothing is run."""

import json
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from typer.main import get_command

from tests.docs.pages import ROOT

MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SHELL = ("cat", "cd", "cp", "rm", "export", "mkdir", "source", "zcat")
"""Of the shell and its usual company: their arguments are theirs."""
_ENDS = ("|", "&&", ";", "||")
_ROUTES = {"/v1/embeddings": "EmbeddingRequest", "/v1/search": "SearchRequest"}


class CommandError(AssertionError):
    """A command line that could not be given; the text says why."""


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command of a block, without comments, variables before it, and where its output goes."""
    for line in re.sub(r"\\\n", " ", text).splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word in _ENDS:
                command = _bare(words)
                if command:
                    yield command
                words = []
            else:
                words.append(word)


def _bare(words: Sequence[str]) -> list[str]:
    if ">" in words:
        words = words[: list(words).index(">")]
    start = next((i for i, word in enumerate(words) if not re.fullmatch(r"[A-Z_][A-Z0-9_]*=.*", word)), len(words))
    return list(words[start:])


def check(words: Sequence[str]) -> None:
    """Raises CommandError for a program, an option, a file or a value that there is not."""
    program, given = re.sub(r"^\.venv[\w-]*/bin/", "", words[0]), list(words[1:])
    reader = _READERS.get(program)
    if reader is not None:
        reader(given)
    elif program == "hf":
        _need(given[:1] == ["download"] and len(given) >= 3, f"hf {given}: write hf download NAME FILE")
    elif program not in SHELL:
        raise CommandError(f"no test knows the program {program!r}: {' '.join(words)}")


def _need(holds: bool, message: str) -> None:
    if not holds:
        raise CommandError(message)


def _search_r3(given: list[str]) -> None:
    from search_r3_mteb import cli
    from search_r3_mteb.cli.shared import settings_of
    from search_r3_mteb.evaluation.abstaining import SearchSettings
    from search_r3_mteb.expansion.settings import ExpansionSettings
    from search_r3_mteb.indexing.settings import IndexSettings

    known = get_command(cli.app).commands
    _need(bool(given) and given[0] in known, f"search-r3 has no command {given[:1]}")
    further = {
        "index": (IndexSettings,),
        **dict.fromkeys(("evaluate", "compare", "tune"), (ExpansionSettings, SearchSettings)),
    }
    try:
        with known[given[0]].make_context(given[0], given[1:]) as context:
            settings_of(list(context.params.get("setting") or []), *further.get(given[0], ()))
    except Exception as error:  # typer has click's errors of its own
        if not isinstance(error, ValueError) and not hasattr(error, "format_message"):
            raise
        message = str(error) if isinstance(error, ValueError) else error.format_message()
        raise CommandError(f"search-r3 {' '.join(given)}: {message}") from error


def _python(given: list[str]) -> None:
    from train import rl, sft
    from train.config.stages import RlConfig, SftConfig
    from train.run.command import parse

    if given[:1] == ["-m"]:
        if given[1] == "train.prepare":
            _train_prepare(given[2:])
            return
        if given[1] in ("venv", "http.server"):
            return
        raise CommandError(f"no test knows python -m {given[1]}")
    script = ROOT / given[0]
    _need(script.is_file(), f"there is no script {given[0]}")
    stages = {"train/sft.py": (sft, SftConfig), "train/rl.py": (rl, RlConfig)}
    if given[0] in stages:
        _, settings = stages[given[0]]
        arguments = [_from_root(word) for word in given[1:]]
        _quietly(lambda: parse(script.name, settings, arguments), given)
        return
    text = script.read_text(encoding="utf-8")
    for word in given[1:]:
        if word.startswith("--"):
            name = word.partition("=")[0]
            _need(f'"{name}"' in text, f"{given[0]} has no option {name}")


def _from_root(word: str) -> str:
    return str(ROOT / word) if word.endswith(".toml") else word


def _train_prepare(given: list[str]) -> None:
    from train.prepare import parse

    _quietly(lambda: parse(given), given)


def _quietly(parse: Callable[[], object], given: list[str]) -> None:
    try:
        parse()
    except SystemExit as stopped:
        raise CommandError(f"refused: {' '.join(given)}") from stopped


def _accelerate(given: list[str]) -> None:
    from accelerate.commands.launch import launch_command_parser

    _need(given[:1] == ["launch"], f"accelerate {given}: only launch is known")
    script = next((i for i, word in enumerate(given) if word.endswith(".py")), None)
    _need(script is not None, f"accelerate launches no script: {given}")
    _, unknown = _known_options(launch_command_parser(), given[1:script])
    _need(not unknown, f"accelerate launch has no options {unknown}")
    _python(given[script:])


def _known_options(parser, given):
    try:
        return parser.parse_known_args([*given, "script.py"])
    except SystemExit as stopped:
        raise CommandError(f"accelerate refuses {given}") from stopped


def _make(given: list[str]) -> None:
    for word in given:
        name, sign, _ = word.partition("=")
        pattern = rf"^{name} \?=|\$\({name}\)" if sign else rf"^{name}:"
        _need(
            re.search(pattern, MAKEFILE, re.M) is not None,
            f"the Makefile has no {'variable' if sign else 'target'} {name}",
        )


def _pip(given: list[str]) -> None:
    if given[0] == "uninstall":
        return
    _need(given[0] == "install", f"pip {given}: install or uninstall")
    values = {"-e", "--editable", "-c", "--constraint", "-r"}
    for before, word in pairwise(given):
        if word.startswith("-"):
            _need(word in (*values, "--quiet", "--no-deps", "--yes"), f"pip install {word}: no test knows this option")
            continue
        own = re.fullmatch(rf"(?P<where>\.|{PROJECT['name']})(\[(?P<extras>[\w,]+)\])?", word)
        if own:
            for extra in (own["extras"] or "").split(","):
                _need(not extra or extra in PROJECT["optional-dependencies"], f"there is no extra {extra!r}")
        elif before in values or "/" in word:
            _need((ROOT / word).exists(), f"there is no {word}")


def _curl(given: list[str]) -> None:
    from search_r3_mteb.serving import protocol

    (address,) = (word for word in given if word.startswith("http"))
    path = address.partition("127.0.0.1:8000")[2]
    _need(path in _ROUTES, f"the server answers {', '.join(_ROUTES)}, not {path}")
    body = given[given.index("-d") + 1]
    try:
        getattr(protocol, _ROUTES[path]).model_validate(json.loads(body))
    except ValueError as error:
        raise CommandError(f"{path} refuses {body}: {error}") from error


_READERS = {
    "search-r3": _search_r3,
    "python": _python,
    "accelerate": _accelerate,
    "make": _make,
    "pip": _pip,
    "curl": _curl,
}
