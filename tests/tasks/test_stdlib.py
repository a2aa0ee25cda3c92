"""The standard library as a code-search task: sentences without names, functions without docstrings."""

import ast
import doctest
import platform
import re
import sysconfig
import textwrap
from pathlib import Path

import pytest

from search_r3_mteb.tasks import beir_folder, stdlib
from search_r3_mteb.tasks.mteb_tasks import StdlibTask
from search_r3_mteb.tasks.stdlib import collect, first_sentence


@pytest.fixture(scope="module")
def collection():
    return collect()  # cached: the sources are parsed once for all tests


@pytest.fixture
def library(tmp_path):
    """make({path: source}) -> root of a small library."""

    def make(files):
        for name, source in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(textwrap.dedent(source), encoding="utf-8")
        return tmp_path

    return make


def test_size_and_shape(collection):
    assert 4000 < len(collection.documents) < 8000
    assert 3500 < len(collection.queries) <= len(collection.documents)
    assert set(collection.relevant) == set(collection.queries)
    assert set(collection.relevant.values()) <= set(collection.documents)
    assert len(set(collection.queries.values())) == len(collection.queries)
    assert len(set(collection.documents.values())) == len(collection.documents)


def test_no_query_holds_its_functions_name(collection):
    for query_id, id_ in collection.relevant.items():
        name = id_.split(":")[1].split("#")[0].split(".")[-1]
        assert not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", collection.queries[query_id], re.IGNORECASE), query_id


def test_documents_parse_and_hold_no_docstring(collection):
    for id_, text in list(collection.documents.items())[::7]:
        (function,) = ast.parse(text).body
        assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef), id_
        assert function.name == id_.split(":")[1].split("#")[0].split(".")[-1]
        assert text.startswith(("def ", "async def "))


def test_only_the_library_itself(collection):
    for id_ in collection.documents:
        assert {"test", "tests", "idlelib", "lib2to3", "site-packages"}.isdisjoint(id_.split(":")[0].split("/"))


def test_a_known_function(collection):
    id_ = "textwrap.py:dedent"
    assert collection.queries[f"q:{id_}"] == "Remove any common leading whitespace from every line in `text`."
    assert collection.documents[id_].startswith("def dedent(text):\n")
    assert "Remove any common" not in collection.documents[id_]


def test_deterministic_and_versioned(collection):
    package = Path(sysconfig.get_path("stdlib")) / "email"
    assert collect.__wrapped__(package) == collect.__wrapped__(package)
    assert {text for id_, text in collection.documents.items() if id_.startswith("email/message.py")} == {
        text for id_, text in collect.__wrapped__(package).documents.items() if id_.startswith("message.py")
    }
    assert re.fullmatch(rf"python{re.escape(platform.python_version())}-[0-9a-f]{{16}}", collection.revision)


SMALL = {
    "b.py": '''
        class Box:
            @property
            def size(self):
                """Return the size of this box in bytes."""
                # counted again
                return 1

            @size.setter
            def size(self, value): """Set how many bytes fit."""; self.value = value

            def empty(self):
                """Do nothing at all here, ever."""
        ''',
    "a.py": '''
        if True:
            async def load(path):
                r"""load(path) -> bytes

                Read the whole file. Then close it.
                """
                def inner():
                    """This one is part of the outer document."""
                    return 0
                return "é" + """
        flush left
        """
        def undocumented(): return 1
        def short():
            """Too short."""
            return 2
        ''',
    "test/c.py": 'def f():\n    """Return one and nothing else."""\n    return 1\n',
    "site-packages/d.py": 'def f():\n    """Return one and nothing else."""\n    return 1\n',
}


def test_cuts_and_names_by_hand(library):
    made = collect(library(SMALL))
    assert made.documents == {
        "a.py:load": 'async def load(path):\n    def inner():\n        """This one is part of the outer document."""\n'
        '        return 0\n    return "é" + """\nflush left\n"""\n',
        "a.py:short": "def short():\n    return 2\n",
        "b.py:Box.size": "def size(self):\n    # counted again\n    return 1\n",
        "b.py:Box.size#2": "def size(self, value): self.value = value\n",
    }
    assert made.queries == {
        "q:a.py:load": "Read the whole file.",
        "q:b.py:Box.size": "Return the of this box in bytes.",
        "q:b.py:Box.size#2": "Set how many bytes fit.",
    }
    assert made.relevant == {query_id: query_id.removeprefix("q:") for query_id in made.queries}


def test_content_changes_the_revision(library):
    first = collect.__wrapped__(library(SMALL)).revision
    changed = library({"b.py": SMALL["b.py"].replace("return 1", "return 3")})
    assert collect.__wrapped__(changed).revision != first


def test_shared_sentences_are_no_query_and_equal_documents_are_one(library):
    source = 'def {0}(x):\n    """Return the value of x twice."""\n    return {1}\n'
    made = collect(
        library(
            {
                "a.py": source.format("f", "x + x"),
                "b.py": source.format("g", "2 * x"),
                "c.py": source.format("f", "x + x"),
            }
        )
    )
    assert list(made.documents) == ["a.py:f", "b.py:g"]
    assert made.queries == {}


@pytest.mark.parametrize(
    ("docstring", "name", "sentence"),
    [
        ("Return the sum\n    of numbers.  More.\n", "total", "Return the sum of numbers."),
        ("Use e.g. the first entry, i.e. number one. Second.", "f", "Use e.g. the first entry, i.e. number one."),
        ("Line one without stop\n\nNext paragraph.", "f", "Line one without stop"),
        ("os.walk(top) -> generator\n\nYield every folder below a root.", "walk", "Yield every folder below a root."),
        ("walk(top): yield every folder below", "walk", "yield every folder below"),
        ("walk(top) yields every folder below", "walk", "yields every folder below".replace("yields", "(top) yields")),
        ("Close the 'close' hook, or Close() itself now.", "close", "the hook, or itself now."),
        ("Creates the .pth file for us", "f", "Creates the .pth file for us"),
        ("Reset enclosed things in reset_all calls.", "reset", "enclosed things in reset_all calls."),
        ("Close it.", "f", None),
        ("walk(top) -> generator", "walk", None),
        ("", "f", None),
    ],
)
def test_first_sentence(docstring, name, sentence):
    assert first_sentence(docstring, name) == sentence


def test_errors_name_the_place(tmp_path, library):
    with pytest.raises(FileNotFoundError, match="no Python sources below"):
        collect(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"broken\.py does not parse"):
        collect(library({"broken.py": "def f(:\n"}))


def test_round_trip_as_beir_folder(collection, tmp_path):
    stdlib.write_beir(tmp_path)
    assert {d.id: d.text for d in beir_folder.read_corpus(tmp_path)} == collection.documents
    assert {q.id: q.text for q in beir_folder.read_queries(tmp_path)} == collection.queries
    assert beir_folder.read_relevance(tmp_path) == {q: {d: 1} for q, d in collection.relevant.items()}


def test_mteb_task(collection, hash_encoder, evaluate, monkeypatch):
    # A slice of the library: the whole one is evaluated by `search-r3 evaluate --task stdlib`.
    ids = [id_ for id_ in collection.documents if id_.startswith("textwrap.py")]
    queries = {q: text for q, text in collection.queries.items() if q.removeprefix("q:") in ids}
    small = stdlib.Collection(
        {id_: collection.documents[id_] for id_ in ids}, queries, {q: q.removeprefix("q:") for q in queries}, "3.x"
    )
    monkeypatch.setattr(stdlib, "collect", lambda: small)
    task = StdlibTask()
    assert task.metadata.dataset["revision"] == small.revision != collection.revision
    assert 0.3 < evaluate(hash_encoder(), task)["ndcg_at_10"] < 1.0


def test_docstring_examples():
    from search_r3_mteb.tasks import hopworld_language

    for module in (stdlib, hopworld_language):
        result = doctest.testmod(module)
        assert result.attempted > 0
        assert result.failed == 0
