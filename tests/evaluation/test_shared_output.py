"""Several evaluations in one output lose no row, and a damaged unit is named and done again."""

import json
import os
import random
import signal
import time

import pytest

from search_r3_mteb.atomic import write_json
from search_r3_mteb.checksums import difference
from search_r3_mteb.evaluation.evaluate import evaluate
from search_r3_mteb.evaluation.reproduce import _keep
from search_r3_mteb.evaluation.summary import by_identity, has_checksum, intact_rows, read_summary, with_checksum
from search_r3_mteb.locks import locked
from tests.mteb_running import made_task
from tests.programs import printed, python, started

DOCUMENTS = [{"id": f"d{n}", "title": "", "text": f"{word} and tea"} for n, word in enumerate(("bread", "salt", "oil"))]
QUERIES = [{"id": f"q{n}", "text": document["text"].split()[0]} for n, document in enumerate(DOCUMENTS)]
JUDGED = {f"q{n}": {f"d{n}": 1} for n in range(3)}


def tiny():
    return made_task("Tiny", {"default": (DOCUMENTS, QUERIES, JUDGED)})


# The processes are forked, so that the libraries are imported once.
WRITERS = """
import contextlib, json, os, pathlib, sys
import mteb, bm25s
from search_r3_mteb.evaluation import evaluate as module
from tests.evaluation.test_shared_output import tiny
folder, processes, rows, rounds, lock = sys.argv[1], *map(int, sys.argv[2:])
if not lock:
    module.locked = lambda folder: contextlib.nullcontext()
module.evaluate(["warm=bm25"], [tiny()], output=folder + "/warm")
for number in range(rounds):
    output = pathlib.Path(folder) / str(number)
    output.mkdir()
    children = []
    for process in range(processes):
        if not (child := os.fork()):
            models = [f"p{process}-{row}=bm25" for row in range(rows)]
            module.evaluate(models, [tiny()], output=output)
            os._exit(0)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    kept = {row["model"] for row in json.loads((output / "summary.json").read_text())}
    print(f"found {len(kept)} {codes}")
"""


def writers(folder, *, processes=4, rows, rounds, lock=True):
    """Rows in summary.json and exit codes of each round."""
    said = python("-c", WRITERS, folder, processes, rows, rounds, int(lock))
    return [line for line in said.splitlines() if line.startswith("found")]


@pytest.mark.slow  # in the suite: tests/attack, "writers/summary rows"
@pytest.mark.skipif(os.name != "posix", reason="fork")
def test_four_evaluations_in_one_output_keep_every_row(tmp_path):
    assert writers(tmp_path, rows=3, rounds=2) == ["found 12 [0, 0, 0, 0]"] * 2


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="fork")
def test_four_evaluations_of_25_rows_ten_times(tmp_path):
    assert writers(tmp_path / "locked", rows=25, rounds=10) == ["found 100 [0, 0, 0, 0]"] * 10


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="fork")
def test_without_the_lock_rows_are_lost(tmp_path):
    assert set(writers(tmp_path, rows=25, rounds=2, lock=False)) != {"found 100 [0, 0, 0, 0]"}


ADDING = """
import json, pathlib, sys, time
from contextlib import nullcontext
from search_r3_mteb.locks import locked
folder, lock = pathlib.Path(sys.argv[1]), int(sys.argv[2])
print("ready", flush=True)
while not (folder / "start").exists():
    time.sleep(0.001)
for _ in range(50):
    with locked(folder) if lock else nullcontext():
        count = int((folder / "count").read_text() or 0)
        time.sleep(0.001)
        (folder / "count").write_text(str(count + 1))
"""


@pytest.mark.parametrize(("lock", "all_there"), [(1, True), (0, False)], ids=["locked", "control"])
def test_what_is_read_changed_and_written_under_the_lock_loses_nothing(tmp_path, lock, all_there):
    (tmp_path / "count").write_text("0")
    processes = [started("-c", ADDING, tmp_path, lock) for _ in range(3)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    (tmp_path / "start").touch()
    printed(*processes)
    assert ((tmp_path / "count").read_text() == "150") is all_there


HOLDING = """
import pathlib, sys, time
from search_r3_mteb.locks import locked
with locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif(os.name != "posix", reason="kill -9")
def test_a_lock_dies_with_its_process(tmp_path):
    holder = started("-c", HOLDING, tmp_path)
    assert holder.stdout.readline() == "held\n"
    waiting = started("-c", HOLDING.replace("time.sleep(600)", ""), tmp_path)
    time.sleep(0.5)
    assert waiting.poll() is None  # it waits
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    assert printed(waiting, timeout=60) == ["held\n"]
    with locked(tmp_path):
        pass


def test_findings_of_several_claims_are_kept_under_the_lock(tmp_path, monkeypatch):
    """`_keep` would wait for another writer: it takes the lock of the output."""
    entered = []
    monkeypatch.setattr(
        "search_r3_mteb.evaluation.reproduce.locked", lambda folder: entered.append(folder) or locked(folder)
    )
    for claim in ("a", "b"):
        _keep(tmp_path / "reproduce.json", {"claim": claim, "model": "m", "task": "t"})
    assert [row["claim"] for row in json.loads((tmp_path / "reproduce.json").read_text())] == ["a", "b"]
    assert entered == [tmp_path, tmp_path]


def run(output, *models):
    return evaluate(models or ("bm25",), [tiny()], output=output)


def scores(rows):
    return [{key: row[key] for key in ("model", "ndcg_at_10", "recall_at_10", "queries")} for row in rows]


def unit_files(output):
    return sorted(path for path in output.rglob("*") if path.is_file() and path.name not in (".lock", "summary.json"))


@pytest.mark.parametrize("kind", ["flip", "cut", "gone"])
@pytest.mark.parametrize("number", range(5))
def test_a_damaged_file_of_a_unit_is_named_and_made_again(tmp_path, caplog, kind, number):
    first = run(tmp_path)
    files = unit_files(tmp_path)
    assert len(files) == 5  # queries, predictions, and three of MTEB
    path = files[number]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink() if kind == "gone" else path.write_bytes(content if kind == "flip" else content[:-3])
    caplog.clear()
    again = run(tmp_path)
    assert str(path) in caplog.text
    assert scores(again) == scores(first)
    assert unit_files(tmp_path) == sorted([*files, *path.parent.glob("*.damaged-*")])
    assert len([*path.parent.glob("*.damaged-*")]) == (kind != "gone")
    assert all(difference(tmp_path / name, wanted) is None for name, wanted in again[0]["files"].items())
    caplog.clear()
    assert run(tmp_path) == again
    assert "damaged" not in caplog.text


def test_flips_of_the_summary_never_change_a_number(tmp_path):
    """A row that does not match is left out, and a file that is not a list of rows is refused by name."""
    row = {"task": "T", "split": "test", "mode": "direct", "ndcg_at_10": 0.785, "queries_file": "queries/T.jsonl"}
    rows: list = []
    for model in ("a", "b"):
        each = {**row, "model": model}
        rows += with_checksum([{**each, "files": {}}, {**each, "hops": 1}, {**each, "hops": 2, "ndcg_at_10": 0.5}])
    path, rng = tmp_path / "summary.json", random.Random(0)
    write_json(path, rows)
    assert intact_rows(read_summary(path), path) == rows
    whole = path.read_bytes()
    left_out, refused = 0, []
    for _ in range(500):
        content = bytearray(whole)
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        try:
            kept = intact_rows(read_summary(path), path)
        except ValueError as error:
            refused.append(str(error))
        else:
            vouched = [mine for mine in by_identity(kept).values() if has_checksum(mine[0])]
            assert all(mine in (rows[:3], rows[3:]) for mine in vouched)
            left_out += len(vouched) < 2
    assert left_out > 100
    assert len(refused) > 100
    assert all(str(path) in message for message in refused)


def test_a_unit_whose_row_was_changed_is_done_again(tmp_path, caplog):
    first = run(tmp_path)
    path = tmp_path / "summary.json"
    rows = json.loads(path.read_text())
    path.write_text(json.dumps([{**rows[0], "ndcg_at_10": 0.123}]))
    assert scores(run(tmp_path)) == scores(first)
    assert f"{path}: the row of Tiny, test, bm25, direct does not match its checksum" in caplog.text


def test_rows_without_checksums_are_done_again(tmp_path, caplog):
    first = run(tmp_path)
    path = tmp_path / "summary.json"
    rows = json.loads(path.read_text())
    old = [{key: value for key, value in row.items() if key not in ("checksum", "files")} for row in rows]
    other = {**old[0], "model": "another"}
    path.write_text(json.dumps([*old, other]))
    assert scores(run(tmp_path)) == scores(first)
    assert "was written without checksums, and is done again" in caplog.text
    assert json.loads(path.read_text())[1] == other  # rows of other models stay


@pytest.mark.slow
def test_another_unit_whose_part_of_a_shared_file_was_lost_is_done_again(caplog, tmp_path):
    """Two splits lie in one prediction file: the split that is not asked for must not count as whole afterwards."""
    dev, *_ = evaluate(["bm25"], ["hopworld:500"], output=tmp_path, split="dev")
    evaluate(["bm25"], ["hopworld:500"], output=tmp_path, split="test")
    [path] = tmp_path.rglob("*_predictions.json")
    path.write_bytes(path.read_bytes()[:-5])
    evaluate(["bm25"], ["hopworld:500"], output=tmp_path, split="test")
    assert set(json.loads(path.read_text())["default"]) == {"test"}
    caplog.clear()
    again, *_ = evaluate(["bm25"], ["hopworld:500"], output=tmp_path, split="dev")
    assert again["ndcg_at_10"] == dev["ndcg_at_10"]
    assert path.name in caplog.text
    assert "dev" in json.loads(path.read_text())["default"]
