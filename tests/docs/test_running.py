"""What the pages say is run: Python page by page, and the walk through *Try it on your data* command by command."""

import json
import shlex
from pathlib import Path

import pytest

from tests.docs import commands
from tests.docs.pages import ROOT, blocks, blocks_of, read

HERE = ("index.md", "how.md", "checkpoints.md", "paper.md")
ELSEWHERE = {
    "extend.md": "tests/test_extensions_in_use.py",
    "recipes.md": "tests/test_recipes.py",
    "search.md": "tests/indexing/test_searching.py",
    "serve.md": "tests/serving/test_embeddings.py",
}


def prepare_paper(folder):
    """A tiny base with the token, and rows, where the page has the paper's."""
    from search_r3_mteb.encoder.initialise import initialise
    from tests.encoder.test_initialise import make_base

    initialise(make_base(folder / "base"), folder / "runs" / "start")
    rows = folder / "data" / "triviaqa" / "rows.jsonl"
    rows.parent.mkdir(parents=True)
    rows.write_text(
        "".join(json.dumps({"query": f"the query {n}", "positive": "the document"}) + "\n" for n in range(3))
    )


def check_paper(folder):
    """The page's own traces are rows that training reads, each with its reasoning."""
    from train.config.data import SourceSettings
    from train.data.sources import all_rows, open_source

    path = str(folder / "data" / "synthetic_triples.jsonl.gz")
    rows = list(all_rows(open_source(SourceSettings(kind="jsonl", path=path)), "stop"))
    assert rows
    assert all(row.reasoning for row in rows)


PREPARED = {"paper.md": prepare_paper}
CHECKED = {"paper.md": check_paper}


def test_every_page_with_python_is_run():
    pages = {block.page for block in blocks("python") if block.reason is None}
    assert pages == {*HERE, *ELSEWHERE}
    for page, test in ELSEWHERE.items():
        assert page in (ROOT / test).read_text(encoding="utf-8"), f"{test} does not run {page}"


@pytest.mark.parametrize("page", HERE)
def test_the_python_of_a_page_runs_in_one_session(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    PREPARED.get(page, lambda folder: None)(tmp_path)
    names, shown = {"__name__": "__main__"}, ""
    for block in blocks_of(read(page), page):
        if block.language == "python" and block.reason is None:
            exec(compile("\n" * (block.line - 1) + block.text, page, "exec"), names)
            shown = capsys.readouterr().out
        elif block.title == "output" and shown:
            assert shown == block.text, f"{block.place} is not what the lines before it print"
            shown = ""
    CHECKED.get(page, lambda folder: None)(tmp_path)


def test_a_wrong_name_on_a_page_is_noticed():
    [block] = blocks_of("```python\nfrom search_r3_mteb import SearchEncoder\n```\n", "p.md")
    with pytest.raises(ImportError, match="SearchEncoder"):
        exec(compile(block.text, block.page, "exec"), {})


# ---- the walk through try.md -----------------------------------------------------------------------------------------


def walk(page, call, folder):
    """Give the page's commands of search-r3 as they stand; returns what each has printed."""
    shown = {}
    for block in blocks_of(read(page), page):
        if block.language == "csv":
            (folder / block.title).write_text(block.text, encoding="utf-8")
        if block.language != "bash" or block.reason is not None:
            continue
        for words in commands.commands(block.text):
            if words[0] == "search-r3":
                code, out, err = call(*words[1:])
                assert code == 0, f"{block.place}: {shlex.join(words)}\n{out}\n{err}"
                shown[words[1], len(shown)] = out
    return shown


@pytest.fixture
def models(tmp_path, monkeypatch, tiny_tokenizer):
    """Tiny models under the names that stand for the reader's own."""
    from tests.conftest import build_model, build_tokenizer, save_sentence_transformer

    monkeypatch.chdir(tmp_path)
    build_model().save_pretrained("LLM")
    build_tokenizer(with_embed_token=False).save_pretrained("LLM")
    save_sentence_transformer(tiny_tokenizer, Path("ENCODER").absolute(), seed=1)
    return tmp_path


@pytest.mark.slow
def test_the_walk_through_own_data(models, call):
    shown = walk("try.md", call, models)
    assert [name for name, _ in shown] == [
        *("convert", "evaluate", "report", "explain", "compare", "compare", "index", "search", "search"),
    ]
    [evaluated] = [out for (name, _), out in shown.items() if name == "evaluate"]
    assert "nDCG@10" in evaluated
    for path in ("report.html", "runs/shop/summary.json", "runs/shop-compare/comparison.html", "my-index/index.json"):
        assert (models / path).is_file()


def test_the_beginning_of_the_walk(models, call):
    """The page's files are read as it says; the rest of the walk is slow."""
    for block in blocks_of(read("try.md"), "try.md"):
        if block.language == "csv":
            (models / block.title).write_text(block.text, encoding="utf-8")
    first = next(words for block in blocks("bash") if block.page == "try.md" for words in commands.commands(block.text))
    code, out, err = call(*first[1:])
    assert code == 0, err
    assert "Written to shop: 12 documents, 6 queries" in out
    assert len((models / "shop" / "qrels" / "test.tsv").read_text().splitlines()) == 7


@pytest.mark.slow
def test_the_dry_runs_of_the_paper_need_a_config_alone(tmp_path, monkeypatch, capsys):
    from train import rl, sft

    monkeypatch.chdir(tmp_path)
    [shape] = [block.text for block in blocks("python") if block.page == "paper.md" and '"BASE"' in block.text]
    exec(shape, {})
    given = 0
    for block in blocks("bash"):
        for words in commands.commands(block.text) if block.page == "paper.md" else ():
            if "--dry-run" in words:
                stage = {"train/sft.py": sft, "train/rl.py": rl}[words[1]]
                stage.main([str(ROOT / word) if word.endswith(".toml") else word for word in words[2:]])
                assert "# time estimate: " in capsys.readouterr().out
                given += 1
    assert given == 2
