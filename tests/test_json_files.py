"""JSON that is handed over: one ValueError names file and line, whatever is wrong with it."""

import json
import re
from pathlib import Path

import pytest

from search_r3_mteb.json_files import NotJsonError, parse_json, read_json, read_object

DEEP = "[" * 200_000 + "]" * 200_000
LONG = "1" * 5000


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ('{"a":\n 1,\n 2}', 3, "Expecting property name enclosed in double quotes at column 2"),
        ('{"a": [\n"x"\n\n', 2, r"Expecting ',' delimiter"),  # cut short: its last line, not an empty one behind it
        ("", 1, "Expecting value at column 1"),
        (f'{{"a": 1,\n"b": "[[",\n"c": {DEEP}}}', 3, "nested too deeply to be read"),
        (f'{{"a": 1,\n"b": {LONG}}}', 2, "an integer of more than 4300 digits"),
        (f'[1.5,\n"{LONG}",\n-{LONG}]', 2, "an integer of more than 4300 digits"),
    ],
)
def test_what_cannot_be_parsed_is_named_by_file_and_line(tmp_path, text, line, reason):
    path = tmp_path / "a.json"
    path.write_text(text)
    for read in (read_json, read_object):
        with pytest.raises(NotJsonError, match=rf"{path}, line {line}: not JSON \(.*\)\. Copy it") as caught:
            read(path, "Copy it.")
        assert reason.replace("\\", "") in caught.value.reason
        assert caught.value.line == line
    with pytest.raises(NotJsonError, match=rf"x\.jsonl, line {line + 6}: not JSON"):
        parse_json(text, "x.jsonl", 7)


def test_python_alone_names_nothing():
    """The errors that are turned into one: without this module they reach the user as they are."""
    with pytest.raises(RecursionError):
        json.loads(DEEP)
    with pytest.raises(ValueError, match="Exceeds the limit") as caught:
        json.loads(LONG)
    assert not isinstance(caught.value, json.JSONDecodeError)


def test_bytes_that_are_not_utf8_are_named(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'{"a": 1,\n"b": "\xff"}')
    with pytest.raises(NotJsonError, match=r"line 2: not JSON \(not UTF-8, invalid start byte at byte 6 of the line\)"):
        read_json(path)


def test_an_object_is_wanted(tmp_path):
    path = tmp_path / "a.json"
    for text, got in (
        ("[1]", "an array"),
        ("null", "null"),
        ("true", "a boolean"),
        ("1", "a number"),
        ('"x"', "a str"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=rf"{path}: must hold a JSON object, got {got}"):
            read_object(path)
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n')
    assert read_object(path) == read_json(path) == {"a": 1}


def test_no_other_module_parses_what_is_handed_over():
    """`json.loads` elsewhere is for text that this program made in the same breath."""
    root = Path(__file__).resolve().parents[1]
    own = {
        "search_r3_mteb/encoder/beginnings.py",  # a tokenizer's state, from the library
        "search_r3_mteb/encoder/fingerprint.py",  # the same
        "search_r3_mteb/encoder/whole_texts.py",  # the same
        "search_r3_mteb/evaluation/bench_memory.py",  # the argument of a process of ours
        "search_r3_mteb/evaluation/bench_vllm.py",  # the same
        "search_r3_mteb/json_files.py",
        "search_r3_mteb/locks.py",  # who holds a lock: a wrong guess is only a worse message
        "search_r3_mteb/report/model_card.py",  # the others: a value made plain
        "search_r3_mteb/report/plot.py",
        "train/checkpoint/save_load.py",
        "train/data/decontamination.py",
        "train/data/hard_negatives.py",
        "train/data/rows.py",  # a temporary file without a name
        "train/stage2/documents.py",  # a tokenizer's state
    }
    files = [path for folder in ("search_r3_mteb", "train") for path in (root / folder).rglob("*.py")]
    found = {path.relative_to(root).as_posix() for path in files if re.search(r"\bjson\.loads?\b", path.read_text())}
    assert found == own
