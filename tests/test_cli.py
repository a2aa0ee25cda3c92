"""The command line: what it prints and writes, and how it fails."""

import json
import os
import re
import sys

import numpy as np
import pytest

from search_r3_mteb import cli
from search_r3_mteb.cli import program
from search_r3_mteb.encoder.encoder import SearchR3Encoder
from search_r3_mteb.encoder.options import parse_settings
from tests.programs import loaded_after


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("cats sleep\n\ndogs bark\nbirds sing\n")
    return path


def test_evaluate_prints_the_table_and_writes_the_run(call, tmp_path):
    output = tmp_path / "out"
    code, out, err = call("evaluate", "--model", "bm25", "--task", "hopworld:500", "--output", output)
    assert code == 0
    assert "bm25 (direct) on HopWorld" in err
    assert "it/s" not in err  # a log is not a place for moving bars
    rows = json.loads((output / "summary.json").read_text())
    for word in ("nDCG@10", "recall", "tokens", "/query", "ms", "docs", "/s", "bm25", "1 hop", "4 hops"):
        assert word in out
    assert f"{rows[0]['ndcg_at_10']:.3f}" in out
    assert call("evaluate", "--model", "bm25", "--task", "hopworld:500", "--output", output)[:2] == (0, out)
    assert rows[0]["command"] == f"search-r3 evaluate --model bm25 --task hopworld:500 --output {output}"


def test_evaluate_passes_every_option_on(call, tmp_path, monkeypatch):
    from search_r3_mteb.evaluation import evaluate as module

    seen = {}
    monkeypatch.setattr(module, "evaluate", lambda *given, **named: seen.update(named, given=given) or [])
    options = ["--mode", "reason", "--split", "dev", "--cache-folder", tmp_path, "--max-reasoning-tokens", "7"]
    options += ["--engine", "vllm"]
    code, *_ = call(
        *("evaluate", "--model", "a", "--model", "b", "--task", "t", *options),
        *("--output", tmp_path / "o", "--set", "seed=3", "--set", "dtype=bfloat16"),
    )
    assert code == 0
    assert seen["given"] == (["a", "b"], ["t"], "reason", tmp_path / "o")
    assert (seen["split"], seen["cache_folder"]) == ("dev", tmp_path)
    assert seen["settings"] == {"max_reasoning_tokens": 7, "engine": "vllm", "seed": 3, "dtype": "bfloat16"}


def test_embed_shows_the_reasoning(call, tiny_folder, tmp_path):
    source, output = tmp_path / "texts.txt", tmp_path / "vectors.npy"
    source.write_text("who is there\n")
    code, out, _ = call(
        *("embed", "--model", tiny_folder, "--input", source, "--output", output),
        *("--show-reasoning", "--max-reasoning-tokens", 6),
    )
    thought = SearchR3Encoder(tiny_folder, max_reasoning_tokens=6).think(["who is there"])[0]
    assert code == 0
    assert thought.text.strip() in out
    assert f"{len(thought.token_ids)} tokens" in out
    np.testing.assert_allclose(np.load(output)[0], thought.vector, atol=1e-5)


def test_explain_shows_both_rankings_side_by_side(call, tiny_folder, corpus):
    code, out, _ = call(
        *("explain", "--model", tiny_folder, "--corpus", corpus, "--top", 3, "--max-reasoning-tokens", 4, "what barks?")
    )
    assert code == 0
    for word in ("what barks?", "reasoning (", "without reasoning", "with reasoning", "Top documents of 3"):
        assert word in out
    # Every document twice: once in each ranking.
    assert [out.count(text) for text in ("cats sleep", "dogs bark", "birds sing")] == [2, 2, 2]
    encoder = SearchR3Encoder(tiny_folder, max_reasoning_tokens=4)
    scores = (
        encoder.encode_query(["what barks?"]) @ encoder.encode_document(["cats sleep", "dogs bark", "birds sing"]).T
    )
    assert f"{scores.max():.3f}" in out
    # Ids are line numbers of the file, where line 2 is empty.
    assert {"1", "3", "4"} == set(re.findall(r"0\.\d{3} (\d)", out))


@pytest.fixture(scope="session")
def ordinary(tmp_path_factory):
    """A causal LM without an embed token."""
    from tests.encoder.test_initialise import make_base

    return make_base(tmp_path_factory.mktemp("ordinary") / "base")


def test_init_says_what_it_found_and_the_result_embeds(call, ordinary, tmp_path):
    output = tmp_path / "with space"
    options = ("--embed-token", "<embed>", "--dtype", "bfloat16")
    code, out, err = call("init", ordinary, "--output", output, *options)
    assert (code, err) == (0, "")
    for words in (
        "local/base, Qwen2ForCausalLM, 0.03 million parameters, bfloat16",
        "<embed>, free row 300 of 384, of which 300 were used",
        "tied: one row is both",
        "<|endoftext|>, <|im_start|>, <|im_end|>",
        "chat template  yes",
        "system role  yes",
        "thinking  no known tag",
        "date  none",
        "It encodes now, but it is untrained",
        f"--set model.path='{output}'",
    ):
        assert words in out
    source = tmp_path / "texts.txt"
    source.write_text("one\ntwo\n")
    vectors = tmp_path / "vectors.npy"
    code, out, _ = call("embed", "--model", output, "--role", "document", "--input", source, "--output", vectors)
    assert (code, np.load(vectors).shape) == (0, (2, 32))


def test_export_names_the_folder_and_how_to_load_it(call, tiny_folder, tmp_path):
    code, out, _ = call("export", "--model", tiny_folder, "--output", tmp_path / "exported")
    assert code == 0
    assert "from search_r3_mteb import SentenceTransformer" in out
    assert (tmp_path / "exported" / "modules.json").exists()


ROW = {"task": "T", "split": "test", "model": "m", "mode": "direct", "ndcg_at_10": 0.25, "recall_at_10": 0.5}


@pytest.mark.parametrize(("format", "file"), [("md", "report.md"), ("latex", "report.tex")])
def test_report_writes_one_file(call, tmp_path, monkeypatch, format, file):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "summary.json").write_text(json.dumps([ROW]))
    monkeypatch.chdir(tmp_path)
    code, out, _ = call("report", "run", "--format", format)
    assert code == 0
    assert f"Written to {file}" in out
    assert "0.250" in (tmp_path / file).read_text()


def test_doctor_computes_a_vector(call):
    code, out, _ = call("doctor", "--model", "nano")
    assert code == 0
    for word in ("torch", "threads", "device", "dimensions, length 1.0000", "1 thread ", "All well"):
        assert word in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "--model", "./nowhere", "--task", "hopworld"], "There is no model './nowhere'"),
        (["evaluate", "--model", "bm25", "--task", "beir:nowhere"], "nowhere"),
        (
            ["evaluate", "--model", "bm25", "--task", "hopworld", "--mode", "fast"],
            "--mode must be one of both, reason, direct",
        ),
        (["embed", "--input", "none.txt", "--output", "v.npy"], "There is no file none.txt"),
        (["embed", "--input", "none.txt", "--output", "v.txt"], "must end in .npy, .parquet or .jsonl"),
        (["embed", "--input", "a", "--output", "v.npy", "--role", "passage"], "--role must be one of query, document"),
        (["embed", "--input", "a", "--output", "v.npy", "--mode", "direct", "--show-reasoning"], "does not reason"),
        (["explain", "--corpus", "./none.txt", "why?"], "There is no corpus ./none.txt"),
        (["explain", "--corpus", "hopworld", "--set", "sed=1", "why?"], "NAME is one of mode, dtype, device"),
        (["doctor", "--model", "./nowhere"], "There is no model './nowhere'"),
        (["init", "./nowhere", "--output", "new"], "There is no model './nowhere'"),
        (["init", "nano", "--output", "new"], "it is a reason-then-embed checkpoint already"),
        (["init", "nano", "--output", "new", "--dtype", "int4"], "dtype='int4' is not supported"),
    ],
)
def test_a_mistake_gives_one_message_and_exit_code_2(call, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = call(*arguments)
    assert code == 2
    assert err.startswith("Error: ")
    assert message in " ".join(err.split())
    assert "Traceback" not in err


def test_a_model_without_the_token_is_told_the_command(call, ordinary):
    code, _, err = call("doctor", "--model", ordinary)
    assert code == 2
    assert "search-r3 init MODEL --output FOLDER" in " ".join(err.split())
    assert "the special tokens found are <|endoftext|>, <|im_start|>, <|im_end|>" in " ".join(err.split())


def test_wrong_usage_exits_with_2(call):
    for arguments in (["evaluate"], ["nonsense"], ["embed", "--what"]):
        code, _, err = call(*arguments)
        assert code == 2
        assert "Traceback" not in err


@pytest.mark.parametrize("place", [0, -1])
def test_debug_shows_where_it_arose(monkeypatch, place):
    arguments = ["evaluate", "--model", "./nowhere", "--task", "hopworld"]
    arguments.insert(len(arguments) if place else 0, "--debug")
    monkeypatch.setattr(sys, "argv", ["search-r3"])
    with pytest.raises(FileNotFoundError, match="no model"):
        cli.main(arguments)


def test_a_missing_library_is_one_message(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "mteb", None)  # as where the package is installed without its extras
    code, _, err = call("evaluate", "--model", "bm25", "--task", "NoSuchTask", "--output", "out")
    assert code == 2
    assert err.startswith("Error: ")
    assert "mteb" in err
    assert "Traceback" not in err


def test_a_fault_of_the_program_is_not_dressed_up_as_a_mistake(monkeypatch):
    from search_r3_mteb.evaluation import evaluate as module

    def broken(*given, **named):
        raise RuntimeError("a bug")

    monkeypatch.setattr(module, "evaluate", broken)
    monkeypatch.setattr(sys, "argv", ["search-r3"])
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["evaluate", "--model", "bm25", "--task", "hopworld"])


def test_settings_from_text():
    given = ["seed=3", "temperature=0.7", "task-prompts=no", "device=cpu", "max_length=none", "revision=abc"]
    assert parse_settings(given) == {
        "seed": 3,
        "temperature": 0.7,
        "task_prompts": False,
        "device": "cpu",
        "max_length": None,
        "revision": "abc",
    }
    for pair, message in (
        ("seed", "write NAME=VALUE"),
        ("seed=x", "not a whole number"),
        ("temperature=hot", "not a number"),
        ("task_prompts=perhaps", "neither true nor false"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_settings([pair])


def test_help_loads_no_heavy_library():
    heavy = ["torch", "mteb", "transformers", "faiss", "sentence_transformers"]
    statement = "from search_r3_mteb import cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass"
    assert not loaded_after(statement, heavy)


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("a" * 300, "its name is longer than this file system allows"),
        ("file.txt/x", "a part of its path is a file, not a folder|something with that name already exists"),
    ],
)
@pytest.mark.parametrize("command", [["report", "."], ["export", "--model", "nano"]])
def test_a_place_that_cannot_be_used_is_named_in_words(call, tmp_path, monkeypatch, command, place, reason):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.txt").write_text("a file")
    (tmp_path / "summary.json").write_text(json.dumps([ROW]))  # something to report on
    code, _, errors = call(*command, "--output", place)
    assert code == 2
    assert re.search(rf"Error: .*{place.partition('/')[0]}.* cannot be used: ({reason})\. Name another place\.", errors)
    assert "Errno" not in errors


def test_a_report_needs_the_name_of_a_file(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "summary.json").write_text(json.dumps([ROW]))
    assert "The report needs a file to be written to, got '.'" in call("report", ".", "--output", "")[2]
    assert "folder cannot be used: it is a folder, and a file is needed" in call("report", ".", "--output", "folder")[2]


def test_the_folder_that_one_stands_in_has_a_name(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert f"Error: {tmp_path.name}: there is no " in call("init", ".", "--output", "made")[2]


def test_a_home_that_cannot_be_written_is_no_reason_to_stop(monkeypatch, tmp_path):
    """mteb makes its cache there when it is imported; `docker --user` gives such a home."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MTEB_CACHE", raising=False)
    program._find_place_for_mteb()
    assert "MTEB_CACHE" not in os.environ, "the control: it can be made"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    program._find_place_for_mteb()
    assert os.environ.pop("MTEB_CACHE").endswith("search-r3-mteb-cache")
    monkeypatch.setenv("MTEB_CACHE", "mine")
    program._find_place_for_mteb()
    assert os.environ["MTEB_CACHE"] == "mine"
