"""Fuzzed files: TOML of training, BEIR folders, model folders: read as another reader reads them, or one message.

BEIR folders and a user's own model have no checksums, so a change that leaves them readable is not a damage: what is
read must be what the bytes say.
"""

import base64
import json
import random
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.attack.fuzzing import OnModel, ask, mutated, text, value
from tests.attack.trials import Case, Outcome, failure

ROOT = Path(__file__).resolve().parents[2]


def _packed(content: bytes) -> str:
    return base64.b64encode(content).decode()


class FuzzedConfigs:
    """A shipped configuration with a changed value, an unknown key, changed bytes, or overrides."""

    def __init__(self, counts: dict[str, int]) -> None:
        self.name, self.counts = "fuzz/configs", counts

    def absent(self) -> str:
        return ""

    def prepare(self, folder: Path) -> None:
        return None

    def draw(self, rng: random.Random) -> Case:
        import tomlkit

        path = rng.choice(sorted((ROOT / "train/configs").glob("*.toml")))
        content, overrides = path.read_bytes(), []
        kind = rng.choice(["value", "value", "key", "bytes", "override", "override"])
        table: Any = tomllib.loads(content.decode())
        leaves = sorted(".".join(map(str, keys)) for keys, _ in _leaves(table))
        if kind in ("value", "key"):
            keys = rng.choice(leaves).split(".")
            target = table
            for key in keys[:-1]:
                target = target[int(key)] if isinstance(target, list) else target[key]
            name = (
                keys[-1]
                if kind == "value" or isinstance(target, list)
                else keys[-1] + rng.choice(["s", "_", "x y", "é"])
            )
            target[int(name) if isinstance(target, list) else name] = value(rng)
            content = tomlkit.dumps(table).encode()
        elif kind == "bytes":
            content = mutated(rng, content)
        else:
            keys_ = rng.choice([*leaves, "optimization.no_such", text(rng, surrogates=False)[:20], "a.b.c"])
            given = rng.choice([str(value(rng)), json.dumps(value(rng)), "none", ""])
            overrides = [rng.choice([f"{keys_}={given}"] * 4 + [keys_])]
        return {"file": path.name, "content": _packed(content), "overrides": overrides}

    def attempt(self, case: Case, place: Path) -> Outcome:
        from train.config.loading import flatten, load_config
        from train.config.stages import RlConfig, SftConfig

        path, content = place / case["file"], base64.b64decode(case["content"])
        path.write_bytes(content)
        cls: Any = RlConfig if "rl" in case["file"] else SftConfig
        answer = ask(lambda: load_config(path, case["overrides"], cls))
        if answer.failed is not None:
            return answer.failed
        if answer.message is not None:
            named = case["file"] in answer.message or "--set" in answer.message
            return Outcome("refused") if named else failure("unnamed", answer.message)
        if case["overrides"]:
            return Outcome("read")  # its text is TOML or a bare word, which only `load_config` tells apart
        table, kept = tomllib.loads(content.decode("utf-8-sig")), flatten(answer.value)
        for keys, leaf in _leaves(table):
            name = ".".join(map(str, keys))
            if name not in kept and _container(leaf):
                continue
            if name not in kept:
                return failure("silent", f"{name} was swallowed")
            if not _same(leaf, kept[name]):
                return failure("silent", f"{name} = {leaf!r} became {kept[name]!r}")
        return Outcome("read")


def _leaves(table: Any, prefix: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    items = table.items() if isinstance(table, dict) else enumerate(table)
    for key, item in items:
        if (isinstance(item, dict) and item) or (isinstance(item, list) and item and isinstance(item[0], dict)):
            yield from _leaves(item, (*prefix, key))
        else:
            yield (*prefix, key), item


def _container(leaf: Any) -> bool:
    return isinstance(leaf, dict | list) and not leaf


def _same(given: Any, kept: Any) -> bool:
    """Whether a value is what the file says: a whole number may have become a float, nothing else may change."""
    if isinstance(given, list):
        return isinstance(kept, list | tuple) and len(kept) == len(given) and all(map(_same, given, kept))
    if isinstance(given, bool) or isinstance(kept, bool):
        return given is kept
    if isinstance(given, int | float) and isinstance(kept, int | float):
        return given == kept
    return type(given) is type(kept) and given == kept


class FuzzedBeir:
    """A BEIR folder with changes in one of its files: its rows are what json and split say, or one message."""

    def __init__(self, counts: dict[str, int]) -> None:
        self.name, self.counts = "fuzz/BEIR folders", counts

    def absent(self) -> str:
        return ""

    def prepare(self, folder: Path) -> None:
        return None

    def draw(self, rng: random.Random) -> Case:
        def lines(rows: list[dict[str, Any]]) -> bytes:
            return "".join(json.dumps(row, ensure_ascii=rng.random() < 0.5) + "\n" for row in rows).encode()

        count = rng.randrange(1, 5)
        files = {
            "corpus.jsonl": lines(
                [
                    {
                        "_id": f"d{n}",
                        "title": text(rng, surrogates=False)[:20],
                        "text": text(rng, surrogates=False)[:60],
                    }
                    for n in range(count)
                ]
            ),
            "queries.jsonl": lines([{"_id": f"q{n}", "text": text(rng, surrogates=False)[:40]} for n in range(count)]),
            "qrels/test.tsv": (
                "query-id\tcorpus-id\tscore\n" + "".join(f"q{n}\td{n}\t{n % 3}\n" for n in range(count))
            ).encode(),
        }
        changed = rng.choice(sorted(files))
        files[changed] = mutated(rng, files[changed])
        return {"changed": changed, "files": {name: _packed(content) for name, content in files.items()}}

    def attempt(self, case: Case, place: Path) -> Outcome:
        from search_r3_mteb.tasks.beir_folder import read_corpus, read_qrels, read_queries

        for name, content in case["files"].items():
            (place / name).parent.mkdir(exist_ok=True)
            (place / name).write_bytes(base64.b64decode(content))
        answer = ask(lambda: [list(read_corpus(place)), list(read_queries(place)), list(read_qrels(place))])
        if answer.failed is not None:
            return answer.failed
        if answer.message is not None:
            return (
                Outcome("refused")
                if Path(case["changed"]).name in answer.message
                else failure("unnamed", answer.message)
            )
        try:
            wanted = _said(place)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return failure("silent", f"{answer.value!r:.500} was read from what is malformed ({error})")
        for name, rows, said in zip(("documents", "queries", "judgements"), answer.value, wanted, strict=True):
            if [tuple(row) for row in rows] != said:
                return failure("silent", f"the {name} are {rows!r:.500} for {said!r:.500}")
        return Outcome("read")


def _said(place: Path) -> list[list[tuple[Any, ...]]]:
    """Documents, queries and judgements as json and split read them."""
    documents, queries = (_rows(place / name) for name in ("corpus.jsonl", "queries.jsonl"))
    content = (place / "qrels/test.tsv").read_bytes().decode("utf-8-sig")
    lines = [line.rstrip("\r").split("\t") for line in content.split("\n") if line.strip()][1:]
    return [
        [(str(row["_id"]), row.get("title") or "", row["text"]) for row in documents],
        [(str(row["_id"]), row["text"]) for row in queries],
        [(query, document, int(score)) for query, document, score in lines],
    ]


def _rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file, as json reads them."""
    lines = path.read_bytes().decode("utf-8-sig").split("\n")
    return [json.loads(line) for line in lines if line.strip()]


class FuzzedModels(OnModel):
    """A model folder without a manifest, with changes in one of its text files: it loads, or one message."""

    def __init__(self, counts: dict[str, int]) -> None:
        super().__init__("fuzz/model folders", counts)

    def draw(self, rng: random.Random) -> Case:
        return {"file": rng.random(), "seed": rng.randrange(1 << 30)}

    def attempt(self, case: Case, place: Path) -> Outcome:
        import shutil

        from search_r3_mteb import SearchR3Encoder
        from search_r3_mteb.encoder.manifest import MANIFEST_FILE

        shutil.copytree(self.model, place / "model")
        (place / "model" / MANIFEST_FILE).unlink()
        files = sorted(path for path in (place / "model").iterdir() if path.suffix != ".safetensors")
        path = files[int(case["file"] * len(files))]
        path.write_bytes(mutated(random.Random(case["seed"]), path.read_bytes()))
        answer = ask(
            lambda: SearchR3Encoder(place / "model", mode="direct", show_progress_bar=False).encode_query("a text")
        )
        if answer.failed is not None:
            return failure(answer.failed.what, f"{path.name}: {answer.failed.detail}")
        return Outcome("loaded" if answer.message is None else "refused")
