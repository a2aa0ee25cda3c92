"""MTEB: its batches are read into queries and instructions, and no model is given another one's stored results."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from search_r3_mteb.encoder.encoder import SearchR3Encoder
from search_r3_mteb.encoder.identity import name_for_mteb
from search_r3_mteb.encoder.inputs import read_batches
from search_r3_mteb.integrations.mteb import register_models
from tests.mteb_running import made_task, mteb_scores

INSTRUCTION = "Ignore opinions"
PROMPT = "Find the page"


def make_task(instruction=None, prompt=None):
    """Twelve documents, two of them with a title, and six queries."""
    documents = [{"id": f"d{n}", "title": "Cats" if n < 2 else "", "text": f"document number {n}"} for n in range(12)]
    own = {"instruction": instruction} if instruction else {}
    queries = [{"id": f"q{n}", "text": f"question {n}", **own} for n in range(6)]
    relevant = {f"q{n}": {f"d{2 * n}": 1} for n in range(6)}
    return made_task("TinyRetrieval", {"default": (documents, queries, relevant)}, prompt=prompt)


def make_encoder(checkpoint, **settings):
    return SearchR3Encoder(checkpoint, **{"max_reasoning_tokens": 4, "max_length": 512, **settings})


def prompts_of(encoder, task):
    """Every prompt that one evaluation runs, decoded."""
    seen = []
    original = encoder.renderer.render_batch

    def spy(*arguments, **keywords):
        rendered = original(*arguments, **keywords)
        seen.extend(encoder.tokenizer.decode(each.token_ids) for each in rendered)
        return rendered

    encoder.renderer.render_batch = spy
    mteb_scores(encoder, task)
    return seen


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


def test_mteb_conformity(tiny_checkpoint):
    import mteb

    result = mteb.mock_run(make_encoder(tiny_checkpoint, max_reasoning_tokens=1))
    failed = {name: status.exception for name, status in result.task_results.items() if hasattr(status, "exception")}
    assert failed == {}
    assert sum(status is not None for status in result.task_results.values()) >= 20


@pytest.mark.parametrize("mode", ["reason", "direct"])
def test_the_row_instruction_goes_into_the_prompt_once_in_its_own_place(tiny_checkpoint, mode):
    encoder = make_encoder(tiny_checkpoint, mode=mode)
    seen = prompts_of(encoder, make_task(instruction=INSTRUCTION, prompt={"query": PROMPT}))
    queries = [prompt for prompt in seen if "question" in prompt]
    assert len(queries) == 6
    for prompt in queries:
        assert prompt.count(INSTRUCTION) == 1
        assert PROMPT not in prompt  # the row's own wins
        assert prompt.index(INSTRUCTION) < prompt.index("question")
    documents = [prompt for prompt in seen if "document number" in prompt]
    assert len(documents) == 12
    assert not any(INSTRUCTION in prompt for prompt in documents)


@pytest.mark.parametrize("prompt", [PROMPT, {"query": PROMPT}])
def test_the_task_prompt_is_the_instruction_of_rows_without_one(tiny_checkpoint, prompt):
    seen = prompts_of(make_encoder(tiny_checkpoint), make_task(prompt=prompt))
    assert [each.count(PROMPT) for each in seen if "question" in each] == [1] * 6
    assert not any(PROMPT in each for each in seen if "document number" in each)
    # Switched off, and where there is none, nothing of it is left in the prompt.
    off = prompts_of(make_encoder(tiny_checkpoint, task_prompts=False), make_task(prompt=prompt))
    none = prompts_of(make_encoder(tiny_checkpoint), make_task())
    assert off == none
    assert not any(PROMPT in each for each in off)


def test_title_and_body_are_both_embedded(tiny_checkpoint):
    seen = prompts_of(make_encoder(tiny_checkpoint), make_task())
    assert sum("Cats document number" in prompt for prompt in seen) == 2


def test_batches_are_read_in_order_and_apart():
    batches = [
        {"id": ["a", "b"], "text": ["one do", "two do"], "query": ["one", "two"], "instruction": ["do", ""]},
        {"id": ["c"], "text": ["three"], "query": ["three"]},
    ]
    assert read_batches(batches, is_query=True) == (["one", "two", "three"], ["do", "", None])
    assert read_batches(batches, is_query=False) == (["one do", "two do", "three"], [None] * 3)
    assert read_batches(["x", "y"], is_query=True) == (["x", "y"], [None, None])
    with pytest.raises(TypeError, match="holds 'text', got \\['image'\\]"):
        read_batches([{"image": [0]}], is_query=False)
    with pytest.raises(TypeError, match="one string 'x'"):
        read_batches("x", is_query=True)


def test_symmetric_tasks_embed_both_sides_directly(tiny_checkpoint):
    encoder = make_encoder(tiny_checkpoint)
    batches = [{"text": ["one", "two"]}]
    symmetric = encoder.encode(iter(batches), prompt_type=None)
    np.testing.assert_allclose(symmetric, encoder.encode_document(["one", "two"]), atol=1e-6)
    reasoned = encoder.encode(iter(batches), prompt_type="query")
    assert np.abs(reasoned - symmetric).max() > 1e-3
    with pytest.raises(ValueError, match="prompt_type must be"):
        encoder.encode(iter(batches), prompt_type="passage")


def test_settings_that_the_result_cache_would_not_see_are_refused(tiny_checkpoint):
    with pytest.raises(TypeError, match="max_reasoning_tokens; it takes batch_size, show_progress_bar"):
        make_encoder(tiny_checkpoint).encode(iter([{"text": ["a"]}]), prompt_type="query", max_reasoning_tokens=9)


def score(encoder, cache):
    """Scores (five digits: what MTEB stores is rounded) of one evaluation."""
    scores = mteb_scores(encoder, make_task(), cache)
    return {key: round(value, 5) for key, value in scores.items() if key.startswith(("ndcg", "map", "mrr"))}


def test_checkpoints_of_one_name_never_get_each_others_results(tiny_checkpoint, make_model, tmp_path):
    import mteb

    from search_r3_mteb.encoder.checkpoints import Checkpoint

    cache = mteb.ResultCache(tmp_path)
    retrained = Checkpoint(make_model(seed=5), tiny_checkpoint.tokenizer, tiny_checkpoint.profile, "tests/tiny")
    encoders = {
        "first": make_encoder(tiny_checkpoint),
        "retrained": make_encoder(retrained),
        "direct": make_encoder(tiny_checkpoint, mode="direct"),
        "budget": make_encoder(tiny_checkpoint, max_reasoning_tokens=8),
        "seed": make_encoder(tiny_checkpoint, seed=1),
        "temperature": make_encoder(tiny_checkpoint, temperature=1.0),
        "length": make_encoder(tiny_checkpoint, max_length=500),
        "prompts": make_encoder(tiny_checkpoint, task_prompts=False),
    }
    places = {
        name: cache.get_task_result_path("TinyRetrieval", encoder.mteb_model_meta) for name, encoder in encoders.items()
    }
    assert len(set(places.values())) == len(encoders)
    for name in ("first", "retrained", "direct"):
        assert score(encoders[name], cache) == score(encoders[name], None)
        assert json.loads(places[name].read_text())["task_name"] == "TinyRetrieval"
    # The control: with the name alone as identity, the second checkpoint is given the first one's numbers.
    bare = [
        make_encoder(checkpoint, mode="direct", max_reasoning_tokens=0) for checkpoint in (tiny_checkpoint, retrained)
    ]
    for encoder in bare:
        encoder._mteb_model_meta = encoder.mteb_model_meta.model_copy(
            update={"revision": "same", "experiment_kwargs": None}
        )
    trapped = [score(encoder, cache) for encoder in bare]
    assert trapped[0] == trapped[1] != score(bare[1], None)


def test_the_same_encoder_finds_its_own_result_again(tiny_checkpoint, tmp_path):
    import mteb

    cache = mteb.ResultCache(tmp_path)
    first = score(make_encoder(tiny_checkpoint), cache)
    again = make_encoder(tiny_checkpoint)
    again.think = again.encode_document = None  # a hit calls neither
    assert score(again, cache) == first


@pytest.mark.parametrize("size", ["Small", "Large"])
def test_the_released_models_load_through_mteb(tiny_folder, monkeypatch, size):
    import mteb

    from search_r3_mteb.encoder import model_names

    register_models()
    name = f"ytgui/Search-R3.0-{size}"
    meta = mteb.get_model_meta(name)
    assert meta.license == "afl-3.0"
    assert {"MSMARCO", "CosQA"} <= meta.training_datasets
    monkeypatch.setattr(model_names, "resolve", lambda path_or_id, revision=None: tiny_folder)
    model = mteb.get_model(name, mode="direct", max_length=512)
    found = model.mteb_model_meta
    assert (found.name, found.revision) == (name, meta.revision)
    # MTEB assigned only what the caller named; the rest of the identity is back.
    assert found.experiment_kwargs["mode"] == "direct"
    assert found.experiment_kwargs["fingerprint"] == model.fingerprint[:16]
    assert found.license == "afl-3.0"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ytgui/Search-R3.0-Small", "ytgui/Search-R3.0-Small"),
        ("nano", "local/nano"),
        ("/home/someone/runs/step 100", "local/step-100"),
        ("../x/", "local/x"),
        ("/", "local/model"),
    ],
)
def test_names_never_show_a_path(name, expected):
    assert name_for_mteb(name) == expected


def test_a_folder_that_looks_like_a_hub_id_is_local(tmp_path, monkeypatch):
    (tmp_path / "runs" / "ckpt").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert name_for_mteb("runs/ckpt") == "local/ckpt"


def test_a_missing_prompt_is_no_prompt(tiny_checkpoint):
    encoder = make_encoder(tiny_checkpoint)
    batches = [{"text": ["a"], "query": ["a"], "instruction": [""]}]
    for metadata in (None, SimpleNamespace(prompt=None), SimpleNamespace(prompt={"document": "x"})):
        vectors = encoder.encode(iter(batches), task_metadata=metadata, prompt_type="query")
        np.testing.assert_array_equal(vectors, encoder.encode_query(["a"]))
