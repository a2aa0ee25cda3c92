"""An exported folder knows queries from documents, whoever calls it, and says what plain `encode` takes texts for."""

import importlib.util
import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.utils import logging as transformers_logging

import search_r3_mteb
from search_r3_mteb.encoder.encoder import SearchR3Encoder
from search_r3_mteb.integrations.sentence_transformers import REMEDIES, ROLES, export
from search_r3_mteb.integrations.transformers_tokenizer import QUERY_PROMPT

ROOT = Path(__file__).resolve().parents[2]
TEXTS = ["which city is it?", "iron rusts"]


@pytest.fixture
def encoder(tiny_checkpoint):
    return SearchR3Encoder(tiny_checkpoint, max_reasoning_tokens=6)


@pytest.fixture
def folder(encoder, tmp_path):
    return export(encoder, tmp_path / "search-r3")


@pytest.fixture
def model(folder):
    return search_r3_mteb.SentenceTransformer(str(folder), device="cpu")


def same(first, second):
    return np.abs(first - second).max() <= 1e-5


# ---- the prompt "query" carries the reasoning ----------------------------------------------------------------------


def test_every_way_to_say_query_reasons(model, encoder):
    expected, direct = encoder.encode_query(TEXTS), encoder.encode_document(TEXTS)
    assert not np.allclose(expected, direct, atol=1e-2)
    assert model.prompts["query"] == QUERY_PROMPT
    for keywords in (
        {"prompt_name": "query"},
        {"task": "query"},
        {"prompt": QUERY_PROMPT},
        {"prompt": f" {QUERY_PROMPT}\n"},  # as a configuration file may hold it
        {"prompt_name": "query", "task": "query"},
    ):
        assert same(model.encode(TEXTS, **keywords), expected), keywords
    assert same(model.encode_query(TEXTS), expected)
    for keywords in ({}, {"prompt_name": "document"}, {"task": "document"}):
        assert same(model.encode(TEXTS, **keywords), direct), keywords


def test_a_budget_and_an_instruction_go_with_it(model, encoder):
    found = model.encode(TEXTS, prompt=f"{QUERY_PROMPT} Find the page", max_reasoning_tokens=2)
    assert same(found, encoder.encode_query(TEXTS, instruction="Find the page", max_reasoning_tokens=2))
    assert not same(found, model.encode(TEXTS, prompt=QUERY_PROMPT, max_reasoning_tokens=2))


def test_a_folder_without_that_prompt_loses_the_reasoning(folder, encoder):
    """As every folder did that was exported before, and as one does whose user replaces its prompts."""
    model = search_r3_mteb.SentenceTransformer(str(folder), device="cpu", prompts={"query": "", "document": ""})
    assert same(model.encode(TEXTS, prompt_name="query"), encoder.encode_document(TEXTS))
    assert same(model.encode_query(TEXTS), encoder.encode_query(TEXTS))


def test_the_default_prompt_makes_plain_encode_a_querys(folder, encoder):
    model = search_r3_mteb.SentenceTransformer(str(folder), device="cpu", default_prompt_name="query")
    assert same(model.encode(TEXTS), encoder.encode_query(TEXTS))
    assert same(model.encode_document(TEXTS), encoder.encode_document(TEXTS))


def test_conversations_keep_their_own_instruction(model, encoder):
    """sentence-transformers puts the prompt before a conversation that may begin with an instruction already."""
    user = [{"role": "user", "content": text} for text in TEXTS]
    system = {"role": "system", "content": "Find the page"}
    assert same(
        model.encode_query([[system, each] for each in user]), encoder.encode_query(TEXTS, instruction="Find the page")
    )
    assert same(model.encode_query([[each] for each in user]), encoder.encode_query(TEXTS))
    with pytest.raises(ValueError, match=r"got the roles \['system', 'system', 'user'\]"):
        model.encode([[system, user[0]]], prompt=f"{QUERY_PROMPT} Find the fact")


def test_the_prompt_in_a_text_is_text(model, encoder):
    texts = [f"{QUERY_PROMPT} which city is it?", QUERY_PROMPT]
    assert same(model.encode(texts), encoder.encode_document(texts))
    assert same(model.encode(texts, prompt="Find it"), encoder.encode_document(texts, instruction="Find it"))


def test_a_document_that_the_prompt_calls_a_query_is_refused(model):
    with pytest.raises(ValueError, match="by which it is a query, but the task is 'document'"):
        model.encode_document(TEXTS, prompt_name="query")
    user = {"role": "user", "content": "x"}
    mixed = [[{"role": "system", "content": QUERY_PROMPT}, user], [user]]
    with pytest.raises(ValueError, match="by which it is a query, but others beside it have not"):
        model.tokenizer.apply_chat_template(mixed)


def test_the_chat_template_says_the_same(model):
    user, marked = {"role": "user", "content": "which city?"}, {"role": "system", "content": QUERY_PROMPT}
    told = {"role": "system", "content": f"{QUERY_PROMPT} Find the page"}
    other = {"role": "system", "content": "Find the page"}
    tokenizer = model.tokenizer
    for messages, task in (
        *(([marked, user], task) for task in (None, "query")),
        *(([told, user], task) for task in (None, "query")),
        *(([marked, other, user], task) for task in (None, "query")),
        *(([other, user], task) for task in (None, "query", "document")),
        *(([user], task) for task in (None, "query", "document")),
    ):
        text = tokenizer.apply_chat_template(messages, task=task, tokenize=False)
        ids = tokenizer.apply_chat_template(messages, task=task)["input_ids"]
        assert text == tokenizer.decode(ids), (messages, task)
    assert QUERY_PROMPT not in tokenizer.apply_chat_template([marked, user], tokenize=False)
    with pytest.raises(Exception, match="by which it is a query"):
        tokenizer.apply_chat_template([marked, user], task="document", tokenize=False)


# ---- what is lost is said ------------------------------------------------------------------------------------------


@pytest.fixture
def said():
    """What our tokenizer logs; what is said once is said again."""
    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logger = transformers_logging.get_logger("search_r3_mteb.integrations.transformers_tokenizer")
    transformers_logging.warning_once.cache_clear()
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


def test_plain_encode_says_once_that_it_takes_texts_for_documents(model, said):
    model.encode_query(TEXTS)
    model.encode_document(TEXTS)
    model.encode(TEXTS, prompt_name="query")
    with torch.enable_grad():
        model.preprocess(TEXTS)  # as training does, where no query is lost
    assert said == []
    model.encode(TEXTS)
    model.encode(TEXTS)
    assert len(said) == 1
    assert "without reasoning. For queries call encode_query(texts), or encode(texts, prompt_name='query')" in said[0]


def test_export_says_it_and_the_card_begins_with_it(folder, call, tiny_folder):
    card = (folder / "README.md").read_text(encoding="utf-8")
    first = card.split("---")[2].strip().split("\n\n")
    assert first[0].startswith("# ")
    assert first[1].startswith(f"**{' '.join(ROLES)}**")
    code, out, _ = call("export", "--model", tiny_folder, "--output", folder)
    assert code == 0
    for line in ROLES:
        assert line in out
    assert len(REMEDIES) == 4
    for who, remedy in REMEDIES:
        assert f"- {who}: `{remedy.replace('FOLDER', repr(folder.name))}`" in card
        assert f"{who}: {remedy.replace('FOLDER', repr(str(folder)))}" in out
    assert any(QUERY_PROMPT in remedy for _, remedy in REMEDIES)


# ---- every wrapper of the published table, where it is installed ---------------------------------------------------


def script():
    spec = importlib.util.spec_from_file_location("wrappers", ROOT / "results" / "serving" / "wrappers.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


WRAPPERS = script()
PUBLISHED = {row["call"]: row for row in json.loads(WRAPPERS.FILE.read_text(encoding="utf-8"))}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return WRAPPERS.export_to(tmp_path_factory.mktemp("wrappers") / "nano")


@pytest.mark.filterwarnings("ignore:.*get_sentence_embedding_dimension")
@pytest.mark.parametrize("row", WRAPPERS.ROWS, ids=lambda row: row.call)
def test_wrappers_do_as_published(row, exported):
    found = WRAPPERS.measured(row, exported)
    if found is None:
        assert not os.environ.get("SEARCH_R3_FRAMEWORKS"), f"{row.package} is not installed"
        pytest.skip(f"{row.package} is not installed; `make test-frameworks` runs this")
    assert found["reasoning"] == PUBLISHED[row.call]["reasoning"]


def test_the_published_page_is_that_of_its_rows():
    assert WRAPPERS.main(["--check"]) == 0
    assert list(PUBLISHED) == [row.call for row in WRAPPERS.ROWS]
    calls = {call.replace("FOLDER", "X") for call in PUBLISHED}
    for _, remedy in REMEDIES:  # each remedy that export prints is a row, and its reasoning arrives
        assert remedy.replace("FOLDER", "X") in calls
        assert PUBLISHED[remedy]["reasoning"] == "yes"
    assert WRAPPERS.PROMPT == QUERY_PROMPT


def test_a_vector_of_neither_role_is_found(exported):
    with pytest.raises(ValueError, match="neither that of encode_query nor that of encode_document"):
        WRAPPERS.role_of(np.zeros(128), exported)
