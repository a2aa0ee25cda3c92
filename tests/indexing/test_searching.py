"""The commands `index` and `search`."""

import io
import json
import re
from pathlib import Path

import pytest

from search_r3_mteb import SearchIndex
from search_r3_mteb.cli.shared import model_or_nano
from search_r3_mteb.encoder.checkpoints import save
from search_r3_mteb.indexing.state import read_state
from tests.indexing.conftest import pairs

ROWS = [("a", "Cats", "Cats purr, and sleep."), ("b", "Dogs", "Dogs bark."), ("c", "", "Fish swim.")]


@pytest.fixture(scope="module")
def model(encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save(encoder.checkpoint, folder)
    return folder


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.csv"
    path.write_text("id,title,text\n" + "".join(f'{id_},{title},"{text}"\n' for id_, title, text in ROWS))
    return path


@pytest.fixture
def folder(call, corpus, model, tmp_path):
    code, out, err = call("index", corpus, "--model", model, "--output", tmp_path / "index", "--set", "max_length=512")
    assert code == 0, err
    assert "the text is in 'text'" in err
    assert "3 documents in part-000001, searched by: flat" in err
    assert f"search-r3 search {tmp_path / 'index'} 'QUESTION'" in out
    return tmp_path / "index"


def test_quiet_says_what_is_in_the_index_alone(call, corpus, model, tmp_path):
    code, out, err = call("index", corpus, "--model", model, "--output", tmp_path / "index", "-q")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == ["documents", "model", "flat"]


def asked(call, folder, *arguments):
    code, out, err = call("search", folder, *arguments, "--json", "--max-reasoning-tokens", 3)
    assert code == 0, err
    return [json.loads(line) for line in out.splitlines()]


def test_a_wrong_file_is_found_before_the_model_is_loaded_and_leaves_nothing(call, folder, tmp_path):
    """Regression: the model was loaded first, and a folder that held nothing stayed."""
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "twice.csv").write_text("id,text\n" + "".join(f"d{row % 50},text {row}\n" for row in range(60)))
    for name, message in (("empty.csv", "it is empty"), ("twice.csv", "two documents have the id 'd0'")):
        code, _, err = call("index", tmp_path / name, "--model", "no-such-model", "--output", tmp_path / "new")
        assert (code, message in " ".join(err.split())) == (2, True), err
        assert not (tmp_path / "new").exists()
        code, _, err = call("index", folder, "--add", tmp_path / name, "--model", "no-such-model")
        assert (code, message in " ".join(err.split())) == (2, True), err


@pytest.mark.parametrize("mode", ["reason", "direct"])
def test_questions_find_what_the_index_finds(call, folder, mode):
    found = asked(call, folder, "who purrs?", "swimming", "--mode", mode, "--k", 2)
    results = SearchIndex.open(folder, max_reasoning_tokens=3).search(["who purrs?", "swimming"], mode, 2)
    assert [[(hit["id"], hit["score"]) for hit in each["hits"]] for each in found] == pairs(results)
    assert [each["query"] for each in found] == ["who purrs?", "swimming"]
    assert [each["reasoning"] for each in found] == [r.thought and r.thought.text for r in results]
    assert found[0]["hits"][0].keys() == {"id", "score", "title", "text"}


def test_a_reasoning_and_documents_are_shown(call, folder):
    code, out, _ = call("search", folder, "who [bold]purrs?", "--max-reasoning-tokens", 3)
    assert code == 0
    assert "who [bold]purrs?" in out
    assert "reasoning (3 tokens, token forced" in out
    assert "Cats purr, and sleep." in out
    assert "reasoning" not in call("search", folder, "x", "--mode", "direct")[1]


def test_what_is_long_is_shown_by_its_beginning(call, folder, tmp_path):
    """Regression: rich wraps one word of 100,000 characters for a minute."""
    long, more = "x" * 3000, tmp_path / "more.jsonl"
    more.write_text(json.dumps({"_id": long, "title": long, "text": long}) + "\n")
    assert call("index", folder, "--add", more)[0] == 0
    code, out, _ = call("search", folder, long, "--mode", "direct", "--k", 4)
    assert code == 0
    assert out.count("x") < 4 * 310
    assert out.count("…") == 4
    assert asked(call, folder, long, "--mode", "direct", "--k", 4)[0]["query"] == long
    code, out, _ = call("explain", long, "--corpus", more, "--model", "nano", "--max-reasoning-tokens", 2)
    assert (code, out.count("…")) == (0, 5)


def test_ids_to_remove_are_read_as_they_stand(call, folder, tmp_path):
    """Regression: spaces and line separators of Unicode, which ids may hold, ended or cut them; UTF-16 was refused."""
    names = [" e ", "c\u2028d", "\tf", "plain"]
    (tmp_path / "more.jsonl").write_text("".join(json.dumps({"_id": id_, "text": "x"}) + "\n" for id_ in names))
    assert call("index", folder, "--add", tmp_path / "more.jsonl")[0] == 0
    (tmp_path / "ids.txt").write_text("\r\n".join([*names[:3], "", ""]), encoding="utf-16", newline="")
    code, out, err = call("index", folder, "--remove-file", tmp_path / "ids.txt")
    assert (code, "3 documents removed." in out) == (0, True), err
    assert len(SearchIndex.open(folder)) == 4


def test_questions_of_a_file_and_of_standard_input(call, folder, tmp_path, monkeypatch):
    (tmp_path / "queries.jsonl").write_text('{"_id": "q7", "text": "who purrs?"}\n{"_id": "q8", "text": "bark"}\n')
    found = asked(call, folder, "--file", tmp_path / "queries.jsonl", "--mode", "direct")
    assert [each["id"] for each in found] == ["q7", "q8"]

    class Input(io.StringIO):
        buffer = io.BytesIO(b"who purrs?\n\nbark\n")

    monkeypatch.setattr("sys.stdin", Input())
    piped = asked(call, folder, "-", "--mode", "direct")
    assert [each["query"] for each in piped] == ["who purrs?", "bark"]
    assert [each["hits"] for each in piped] == [each["hits"] for each in found]


def test_documents_are_added_replaced_and_removed(call, folder, tmp_path):
    (tmp_path / "more.jsonl").write_text('{"_id": "d", "text": "Birds sing."}\n')
    code, out, _ = call("index", folder, "--add", tmp_path / "more.jsonl")
    assert (code, "1 document added." in out, len(SearchIndex.open(folder))) == (0, True, 4)
    code, _, err = call("index", folder, "--add", tmp_path / "more.jsonl")
    assert (code, "has a document 'd' already" in err) == (2, True)
    (tmp_path / "more.jsonl").write_text('{"_id": "d", "text": "Birds sang."}\n{"_id": "e", "text": "Bees hum."}\n')
    code, out, _ = call("index", folder, "--add", tmp_path / "more.jsonl", "--replace")
    assert (code, "1 document added, 1 replaced." in out) == (0, True)
    assert call("index", folder, "--remove", "e")[0] == 0
    code, _, err = call("index", folder, "--remove", "a", "--remove", "zz")
    assert (code, "the first is 'zz'. Nothing was removed" in err, len(SearchIndex.open(folder))) == (2, True, 4)
    code, out, _ = call("index", folder, "--remove", "a", "--remove", "zz", "--missing-ok")
    assert (code, "1 document removed." in out) == (0, True)
    (tmp_path / "ids.txt").write_text("b\n\nc\n")
    code, out, _ = call("index", folder, "--remove-file", tmp_path / "ids.txt")
    assert (code, "2 documents removed." in out) == (0, True)
    code, out, _ = call("index", folder, "--compact")
    assert (code, "documents  1\n" in out) == (0, True)
    assert [hit["id"] for hit in asked(call, folder, "x", "--mode", "direct")[0]["hits"]] == ["d"]


def test_the_kind_and_its_settings_are_those_of_the_options(call, corpus, model, tmp_path):
    options = ["--model", model, "--kind", "hnsw", "--set", "hnsw_links=7", "--set", "max_length=480"]
    assert call("index", corpus, "--output", tmp_path / "index", *options)[0] == 0
    state = read_state(tmp_path / "index")
    assert (state.settings.kind, state.settings.hnsw_links, state.encoding["max_length"]) == ("hnsw", 7, 480)
    assert [part.kind for part in state.parts] == ["hnsw"]
    assert len(asked(call, tmp_path / "index", "x", "--mode", "direct")[0]["hits"]) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("index", "{corpus}"), "is not an index. To build one from it, say where: search-r3 index"),
        (("index", "{corpus}", "--output", "{folder}"), "holds an index already"),
        (("index", "{folder}", "--output", "{folder}x", "--remove", "a"), "--output builds a new index, --remove"),
        (("index", "{folder}", "--remove", "a", "--compact"), "--remove and --compact are separate changes"),
        (("index", "{folder}", "--kind", "ivf"), "is chosen when it is built"),
        (("index", "{folder}", "--set", "ivf_probes=3"), "is chosen when it is built"),
        (("index", "{corpus}", "--output", "{folder}x", "--kind", "tree"), "kind='tree' does not exist"),
        (("index", "{folder}x/none", "--output", "{folder}x"), "There is no"),
        (("search", "{folder}x", "q"), "there is no index.json, so this is not an index"),
        (("search", "{corpus}", "q"), "corpus.csv is a file, not an index. If it holds documents, build one of it"),
        (("index", "{corpus}", "--output", "/proc/x", "--model", "no-such"), "nothing can be written in /proc ("),
        (("search", "{folder}"), "Give questions (or - for standard input), or --file"),
        (("search", "{folder}", "q", "--file", "x"), "one of the two"),
        (("index", "{folder}", "--remove-file", "nowhere"), "There is no file nowhere"),
        (("index", "{folder}", "--remove-file", "."), ". is a folder, and one file is needed"),
        (("index", "{folder}", "--remove-file", "{folder}/vectors-0.npy"), "vectors-0.npy"),
        (("search", "{folder}", ""), "A question is empty"),
        (("search", "{folder}", "q", " "), "A question is empty"),
        (("search", "{folder}", "q", "-"), "no others can stand beside it"),
        (("search", "{folder}", "q", "--mode", "both"), "--mode must be one of reason, direct"),
        (("search", "{folder}", "q", "--model", "nano"), "vectors of 128 dimensions"),
        (("verify", "{folder}"), "is an index, not a model. Its files have checksums of their own"),
        (("verify", "{folder}", "--accept"), "is an index, not a model"),
        # mini has no room for these prompts either, but that is not what is wrong
        (("search", "{folder}", "q", "--model", "mini"), "holds documents encoded by another model than mini"),
        (("search", "{folder}", "q", "--model", "{model}", "--max-reasoning-tokens", "99999"), "positions are needed"),
        (("index", "{folder}", "--replace"), "--replace is about documents that are added"),
        (("index", "{corpus}", "--output", "{folder}x", "--replace"), "--replace is about documents"),
        (("index", "{folder}", "--compact", "--missing-ok"), "--missing-ok is about ids"),
    ],
)
def test_what_cannot_be_is_said(call, folder, corpus, model, arguments, message):
    given = [each.format(folder=folder, corpus=corpus, model=model) for each in arguments]
    code, _, err = call(*given)
    assert code == 2
    assert message in " ".join(err.split())
    assert len(SearchIndex.open(folder)) == 3


def test_the_hint_repeats_what_was_given(call, corpus):
    code, _, err = call("index", corpus, "--model", "mini", "--id", "id", "--text", "text")
    assert code == 2
    said = " ".join(err.split())
    assert said.endswith(f"search-r3 index {corpus} --model mini --id id --text text --output FOLDER")


def test_nano_on_real_text_is_warned_of_unless_it_was_named(call, corpus, tmp_path, caplog):
    warning = "nano knows only its generated world; for real text: --model mini"
    for place, named in (("new", ()), ("named", ("--model", "nano"))):
        code, _, err = call("index", corpus, "--output", tmp_path / place, *named)
        assert (code, err.count(warning)) == (0, 0 if named else 1)
    caplog.clear()
    assert (model_or_nano(None, "hopworld:500"), caplog.text) == ("nano", "")
    assert (model_or_nano(None, "shop.csv"), warning in caplog.text) == ("nano", True)


def test_another_model_is_answered_with_the_command_that_works(call, folder):
    for other in ("nano", "mini"):
        code, _, err = call("search", folder, "q", "--model", other)
        assert code == 2
        command = " ".join(err.split()).rpartition("loaded as it was then: ")[2]
        assert command == f"search-r3 search {folder} QUESTION"
    assert call(*command.split()[1:])[0] == 0


def test_a_damaged_index_is_refused_unless_only_sizes_are_compared(call, folder):
    [file] = folder.glob("part-*/vectors.npy")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    code, _, err = call("search", folder, "x", "--mode", "direct")
    assert (code, "vectors.npy does not match its checksum" in " ".join(err.split())) == (2, True)
    assert call("search", folder, "x", "--mode", "direct", "--no-verify")[0] == 0


@pytest.mark.slow
def test_the_page_about_search_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    page = (Path(__file__).resolve().parents[2] / "docs" / "search.md").read_text(encoding="utf-8")
    [block] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(block)
    assert "Cats purr." in capsys.readouterr().out
    assert len(SearchIndex.open("my-index")) == 2
