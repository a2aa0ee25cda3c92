"""Fuzzed command lines: each ends with exit code 0, 1 or 2, with a message where it is not 0, without a traceback.

The values of options are drawn so that nothing outside the trial's folder is written, nothing takes long, and nothing
is asked of a hub.
"""

import contextlib
import io
import json
import os
import random
import shutil
import sys
import traceback
from pathlib import Path
from typing import Any

from tests.attack.fuzzing import LIMIT, HangError, OnModel, limited, text, value
from tests.attack.trials import Case, Outcome, failure

PLACES = (
    "out",
    "out/a/b",
    "file.txt/x",
    "é ü",
    "a" * 300,
    ".hidden",
    "in.txt",
    "folder",
    "out.npy",
    "report.html",
    "x\ny",
    "-x",
    "",
)
INPUTS = (
    "in.txt",
    "in.txt",
    "in.txt",
    "in.jsonl",
    "in.jsonl",
    "in.json",
    "in.csv",
    "folder/corpus.jsonl",
    "broken.jsonl",
    "binary.bin",
    "empty.txt",
    "missing.txt",
    "folder",
    ".",
    "",
)
TASKS = (
    *["beir:folder"] * 6,
    "beir:missing",
    "folder",
    "beir:",
    "beir:folder:ignore_identical_ids",
    "beir:folder:x",
    "hopworld:x",
    "hopworld:-1",
    "hopworld:",
    "nonsense",
    "",
    "beir:in.txt",
    ":",
)
MODELS = (
    *["MODEL"] * 14,
    "bm25",
    "bm25",
    "missing",
    "folder",
    "in.txt",
    "",
    ".",
    "name=MODEL",
    "=MODEL",
    "a/b=bm25",
    "..=bm25",
    "nano2",
)
COMMANDS = (
    "evaluate",
    "embed",
    "explain",
    "convert",
    "index",
    "search",
    "init",
    "merge",
    "export",
    "report",
    "diagnose",
    "verify",
    "sft.py",
    "rl.py",
    "prepare",
)
SETTINGS = (
    "max_length",
    "batch_tokens",
    "seed",
    "temperature",
    "dtype",
    "device",
    "mode",
    "trust_remote_code",
    "probe",
    "revision",
    "max-reasoning-tokens",
    "nothing",
    "",
)
CONFIG_KEYS = (
    "optimization.steps",
    "output.folder",
    "model.path",
    "data.max_length",
    "model.lora.rank",
    "data.sources.0.path",
    "x.y",
    "loss",
)


class FuzzedCommands(OnModel):
    """Command lines of `search-r3`, and of both stages with --dry-run, from valid ones by random changes."""

    def __init__(self, counts: dict[str, int]) -> None:
        super().__init__("fuzz/command lines", counts)
        self.index = Path()

    def prepare(self, folder: Path) -> None:
        """A model, and an index that it has built, of which each trial has a copy."""
        from search_r3_mteb import SearchIndex, SearchR3Encoder

        super().prepare(folder)
        self.index = folder / "index"
        if not self.index.exists():  # another worker's preparation
            encoder = SearchR3Encoder(self.model, mode="direct", show_progress_bar=False)
            documents = [{"id": f"d{number}", "text": f"{number} storms"} for number in range(3)]
            SearchIndex.build(documents, encoder, self.index, model=self.model)

    def draw(self, rng: random.Random) -> Case:
        command = rng.choice(COMMANDS)
        words = _words(rng, command)
        for _ in range(rng.choice([0, 0, 0, 0, 1, 1, 2])):
            at = rng.randrange(len(words) + 1)
            change = rng.choice(["drop", "repeat", "text", "option", "value"])
            if change == "drop" and words:
                del words[at - 1]
            elif change == "repeat" and words:
                words.insert(at, words[at - 1])
            elif change == "text":
                words.insert(at, text(rng)[:60].replace("/", "_").replace("\0", ""))
            elif change == "option":
                words.insert(
                    at, rng.choice(["--no-such", "--help", "--debug=1", "-q", "--", "-", "--set", "--model", "--json"])
                )
            elif change == "value" and words:
                words[at - 1] = str(value(rng)).replace("/", "_").replace("\0", "")[:60]
        return {"command": command, "words": words}

    def attempt(self, case: Case, place: Path) -> Outcome:
        _fill(place)
        shutil.copytree(self.index, place / "indexed")
        before = Path.cwd()
        os.chdir(place)
        try:
            return self._ended(case["command"], [word.replace("MODEL", str(self.model)) for word in case["words"]])
        finally:
            os.chdir(before)

    def _ended(self, command: str, words: list[str]) -> Outcome:
        call = _entry(command)
        output, errors, program, code = io.StringIO(), io.StringIO(), [*sys.argv], None
        words = words if command in ("sft.py", "rl.py", "prepare") else [command, *words]
        if command in ("sft.py", "rl.py"):
            words.append("--dry-run")
        try:
            with limited(), contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
                sys.argv = [command, *words]
                call(words)
                code = 0
        except SystemExit as ended:
            code = ended.code
        except HangError:
            return failure("hang", f"more than {LIMIT} seconds: {words}")
        except BaseException:  # noqa: BLE001  this is what is looked for
            return failure("traceback", f"{words} {traceback.format_exc()}")
        finally:
            sys.argv = program
        said = errors.getvalue() + output.getvalue()
        if "Traceback (most recent call last)" in said:
            return failure("traceback", f"{words} {said}")
        if code not in (0, None, 1, 2):
            return failure("exit code", f"{words}: {code} {said}")
        if code and (blurred := _blurred(said)):
            return failure("unclear", f"{words}: {blurred} in {said[-1500:]}")
        if code and not said.strip():
            return failure("empty message", f"{words}: {code}")
        return Outcome("done" if not code else "refused")


def _blurred(said: str) -> str:
    """What in a message is meant for programmers, or is left empty."""
    return next(
        (words for words in ("[Errno", "PosixPath(", "Error: :", "<class '", "object at 0x") if words in said), ""
    )


def _entry(command: str) -> Any:
    if command == "sft.py":
        from train.sft import main
    elif command == "rl.py":
        from train.rl import main
    elif command == "prepare":
        from train.prepare import main  # type: ignore[assignment]
    else:
        from search_r3_mteb.cli import main  # type: ignore[assignment]
    return main


def _words(rng: random.Random, command: str) -> list[str]:
    """A command line that is mostly valid; every place that is written lies in the trial's folder."""
    number = rng.choice(["0", "1", "4", "-1", "1.5", "x", "99999999999999999999", ""])
    setting = f"{rng.choice(SETTINGS)}={rng.choice([str(value(rng)), number, 'none', 'true'])}"
    always: dict[str, list[str]] = {
        "evaluate": [
            "--model",
            rng.choice(MODELS),
            "--task",
            rng.choice(TASKS),
            "--output",
            "out",
            "--max-reasoning-tokens",
            "2",
        ],
        "embed": [
            "--model",
            "MODEL",
            "--input",
            rng.choice(INPUTS),
            "--output",
            rng.choice([*["out.npy"] * 8, *PLACES]),
        ],
        "explain": [
            text(rng, surrogates=False)[:40].replace("\0", ""),
            "--model",
            "MODEL",
            "--corpus",
            rng.choice([*INPUTS, "folder"]),
        ],
        "convert": [rng.choice([*INPUTS, "folder"]), "--output", rng.choice([*["out"] * 4, *PLACES])],
        "index": rng.choice(
            [
                [rng.choice([*INPUTS, "folder"]), "--model", "MODEL", "--output", rng.choice([*["out"] * 4, *PLACES])],
                ["indexed", "--add", rng.choice([*INPUTS, "folder"])],
                ["indexed", "--remove", rng.choice(["d1", "d9", ""])],
                ["indexed", "--remove-file", rng.choice(INPUTS)],
                [rng.choice(["indexed", "folder", "out"]), *rng.choice([[], ["--compact"]])],
            ]
        ),
        "search": [
            rng.choice([*["indexed"] * 6, "out", "folder", "missing", ""]),
            *rng.choice([[text(rng, surrogates=False)[:40].replace("\0", "")], ["--file", rng.choice(INPUTS)]]),
            *rng.choice([[], ["--k", number], ["--json"], ["--no-verify"]]),
        ],
        "init": [rng.choice(MODELS), "--output", rng.choice(PLACES)],
        "merge": [rng.choice(MODELS), "--output", rng.choice(PLACES)],
        "export": ["--model", rng.choice(MODELS), "--output", rng.choice(PLACES)],
        "report": [rng.choice([*INPUTS, "folder", "out"]), "--output", rng.choice(PLACES)],
        "diagnose": [
            "--model",
            rng.choice(MODELS),
            "--task",
            rng.choice(TASKS[1:]),
            "--output",
            "out",
            "--rollouts",
            "2",
        ],
        "verify": [rng.choice([*MODELS, *INPUTS])],
        "sft.py": ["--config", rng.choice([*["sft.toml"] * 8, "missing.toml", "folder", "in.txt"])],
        "rl.py": ["--config", rng.choice([*["rl.toml"] * 8, "sft.toml", "missing.toml", "binary.bin"])],
        "prepare": [
            rng.choice(["scifact", "fiqa", "nothing", ""]),
            "--from",
            rng.choice(["folder", "missing", ""]),
            "--output",
            "out",
        ],
    }
    words = always[command]
    if command in ("sft.py", "rl.py"):
        given = rng.choice([str(value(rng)), number, "none", "out"]).replace("/", "_")
        more = ["--set", f"{rng.choice(CONFIG_KEYS)}={given}"]
        extra = rng.choice(
            [[], ["--gpus", number], ["--peak-tflops", number], ["--utilisation", number], ["--base", "MODEL"]]
        )
        return words + (more if rng.random() < 0.7 else []) + extra
    if command in ("evaluate", "embed", "explain", "diagnose", "search"):
        words += rng.choice(
            [
                [],
                ["--set", setting],
                ["--max-reasoning-tokens", number],
                ["--mode", rng.choice(["direct", "reason", "x"])],
            ]
        )
    if command == "embed":
        words += rng.choice([[], ["--role", rng.choice(["query", "document", "x"])], ["--show-reasoning"]])
        words += rng.choice([[], ["--precision", rng.choice(["int8", "binary", "x"])], ["--dim", number]])
    if command == "index":
        words += rng.choice([[], ["--kind", rng.choice(["flat", "ivf", "hnsw", "x"])], ["--set", setting]])
    if command in ("embed", "explain", "convert", "index"):
        words += rng.choice([[], ["--text", rng.choice(["text", "2", "x", ""])], ["--id", rng.choice(["id", "1", ""])]])
    if command == "convert":
        words += rng.choice([[], ["--queries", rng.choice(INPUTS)], ["--judgements", rng.choice(INPUTS)]])
    if command == "report":
        words += rng.choice(
            [[], ["--format", rng.choice(["html", "md", "csv", "latex", "x"])], ["--peers", rng.choice(INPUTS)]]
        )
    if command in ("init", "merge"):
        words += rng.choice([[], ["--dtype", rng.choice(["float32", "bfloat16", "int8", ""])]])
    return words


def _fill(place: Path) -> None:
    """The files that the command lines name."""
    (place / "folder/qrels").mkdir(parents=True)
    (place / "folder/corpus.jsonl").write_text('{"_id": "d1", "text": "a storm"}\n{"_id": "d2", "text": "a farm"}\n')
    (place / "folder/queries.jsonl").write_text('{"_id": "q1", "text": "storm"}\n{"_id": "q2", "text": "farm"}\n')
    (place / "folder/qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td2\t1\n")
    (place / "in.txt").write_text("one\ntwo\n")
    (place / "file.txt").write_text("a file\n")
    (place / "in.jsonl").write_text('{"text": "one"}\n')
    (place / "in.json").write_text(json.dumps([{"text": "one", "title": "t"}]))
    (place / "broken.jsonl").write_text('{"text": "one"\n{')
    (place / "in.csv").write_text("id,text,query-id,corpus-id\na,one,a,a\n")
    (place / "binary.bin").write_bytes(bytes(range(256)))
    (place / "empty.txt").write_text("")
    source = '[[data.sources]]\nkind = "jsonl"\npath = "rows.jsonl"\n'
    (place / "rows.jsonl").write_text('{"query": "a", "positive": "b", "negatives": ["c"]}\n' * 4)
    shape = "[model.scratch]\nhidden_size = 32\nintermediate_size = 64\nlayers = 1\nheads = 2\nkey_value_heads = 2\n"
    rest = "[optimization]\nsteps = 2\n[output]\nfolder = 'out'\ntensorboard = false\n"
    (place / "sft.toml").write_text(shape + source + rest.replace("steps = 2", "steps = 2\nbatch_size = 2"))
    (place / "rl.toml").write_text("[model]\npath = 'nano'\n" + source + rest)
