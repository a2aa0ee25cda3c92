"""A writer and an encoder as one: vectors by hand for each method, settings, given texts, store and resume."""

import json
from pathlib import Path

import numpy as np
import pytest

from search_r3_mteb.encoder.encoder import SearchR3Encoder
from search_r3_mteb.expansion import writer_encoder
from search_r3_mteb.expansion.methods import METHODS
from search_r3_mteb.expansion.settings import ExpansionSettings
from search_r3_mteb.expansion.writer import Writer
from search_r3_mteb.expansion.writer_encoder import WriterEncoder
from tests.expansion.conftest import QUERIES

BUDGET = 8


def make(writer, sentences, method="query2doc", **settings):
    return WriterEncoder(writer, sentences, method=method, **{"max_reasoning_tokens": BUDGET} | settings)


def unit(vector):
    return vector / np.linalg.norm(vector)


def written(folder, method, query, **settings):
    """The writer's texts for one query, by the writer alone."""
    chosen = ExpansionSettings(**{"max_reasoning_tokens": BUDGET} | settings)
    made = Writer(folder, METHODS[method], chosen)
    return made.write(made.prompts([query], [None], [[]]))[0].texts


@pytest.mark.parametrize("method", ["hyde", "query2doc", "mugi", "keywords", "gar", "search-r3-prompt"])
def test_each_methods_vector_is_what_its_paper_computes(writer, sentences, embed, method):
    made = make(writer, sentences, method)
    thoughts = made.think(QUERIES)
    vectors = made.encode_query(QUERIES)
    for query, thought, vector in zip(QUERIES, thoughts, vectors, strict=True):
        texts = written(writer, method, query)
        assert thought.texts == texts
        said = [text for text in texts if text]
        assert said  # else this test would show nothing
        separator = made.encoder.separator
        if method == "hyde":
            assert len(texts) == 8
            want = unit(embed([query])[0] + sum(embed(said)))
        elif method == "mugi":
            assert len(texts) == 5
            joined = " ".join(said)
            times = max(1, len(joined) // len(query) // 6)
            want = embed([f"{query} " * times + joined])[0]
        elif method == "keywords":
            want = embed([f"{query}{separator}{', '.join(said[0].splitlines())}"])[0]
        else:
            want = embed([f"{query}{separator}{said[0]}"])[0]
        np.testing.assert_allclose(thought.vector, want, atol=1e-5)
        np.testing.assert_allclose(vector, thought.vector, atol=1e-6)
        assert np.abs(vector - embed([query])[0]).max() > 1e-3  # the text counts
        assert abs(np.linalg.norm(vector) - 1) < 1e-6


def test_the_separator_is_the_encoders_own_token(writer, sentences):
    from sentence_transformers import SentenceTransformer

    special = SentenceTransformer(str(sentences), device="cpu").tokenizer.sep_token
    assert make(writer, sentences).encoder.separator == (f" {special} " if special else " ")


def test_several_samples_are_a_mean_and_an_anchor_adds_them_to_the_query(writer, sentences, embed):
    settings = {"samples": 3, "temperature": 1.0}
    texts = written(writer, "query2doc", "the query", **settings)
    assert len(set(texts)) == 3
    separator = make(writer, sentences).encoder.separator
    expanded = unit(embed([f"the query{separator}{text}" for text in texts if text]).mean(axis=0))
    own = embed(["the query"])[0]
    plain = make(writer, sentences, **settings).encode_query("the query")
    np.testing.assert_allclose(plain, expanded, atol=1e-5)
    anchored = make(writer, sentences, anchor=0.5, **settings).encode_query("the query")
    np.testing.assert_allclose(anchored, unit(own + 0.5 * expanded), atol=1e-5)
    alone = make(writer, sentences, weight=0, **settings).encode_query("the query")
    np.testing.assert_allclose(alone, unit(embed([text for text in texts if text]).mean(axis=0)), atol=1e-5)


CHANGES = {
    "samples": {"samples": 2},
    "max_reasoning_tokens": {"max_reasoning_tokens": 3},
    "temperature": {"temperature": 1.3},
    "seed": {"seed": 5},
    "weight": {"weight": 3},
    "anchor": {"anchor": 0.3},
    "prompt": {"prompt": "Say something of {query}"},
}


@pytest.mark.parametrize("name", CHANGES)
def test_each_setting_changes_vector_and_fingerprint(writer, sentences, name):
    usual = {"samples": 3, "temperature": 0.9}
    one, other = make(writer, sentences, **usual), make(writer, sentences, **usual | CHANGES[name])
    assert one.fingerprint != other.fingerprint
    assert one.fingerprint == make(writer, sentences, **usual).fingerprint
    assert one.settings[name] != other.settings[name]
    assert np.abs(one.encode_query(QUERIES) - other.encode_query(QUERIES)).max() > 1e-4


def test_another_writer_method_or_encoder_is_another_fingerprint(writer, base, sentences, tmp_path):
    from tests.conftest import build_tokenizer, save_sentence_transformer

    second = save_sentence_transformer(build_tokenizer(), tmp_path / "second", 1)
    made = [make(writer, sentences), make(base, sentences), make(writer, sentences, "gar"), make(writer, second)]
    assert len({each.fingerprint for each in made}) == 4
    assert len({str(each.mteb_model_meta.experiment_kwargs) for each in made}) == 4


@pytest.mark.parametrize("method", ["hyde", "query2doc"])
def test_given_texts_stand_for_the_writers_own(writer, sentences, embed, method):
    made = make(writer, sentences, method)
    own = made.think(QUERIES)
    for given in (own, [each.token_ids for each in own]):
        again = made.think(QUERIES, reasoning=given)
        np.testing.assert_array_equal([each.vector for each in again], [each.vector for each in own])
        assert [each.texts for each in again] == [each.texts for each in own]
        assert all(each.given for each in again)
    mixed = made.think(QUERIES, reasoning=[None, "the document"])
    np.testing.assert_allclose(mixed[0].vector, own[0].vector, atol=1e-6)
    assert not mixed[0].given
    want = f"{QUERIES[1]}{made.encoder.separator}the document"
    want = unit(embed([QUERIES[1]])[0] + embed(["the document"])[0]) if method == "hyde" else embed([want])[0]
    np.testing.assert_allclose(mixed[1].vector, want, atol=1e-5)
    np.testing.assert_allclose(made.encode_query(QUERIES, reasoning=["", ""]), embed(QUERIES), atol=1e-5)
    assert made.statistics.given == 7  # twice two, one of two, twice an empty one
    with pytest.raises(ValueError, match="3 reasonings were given for 2 texts"):
        made.think(QUERIES, reasoning=["a", "b", "c"])


def test_a_given_text_is_cut_to_the_budget(writer, sentences):
    made = make(writer, sentences)
    (thought,) = made.think(["the query"], reasoning=["the query and the document " * 9])
    assert len(thought.token_ids) == BUDGET
    assert not thought.finished
    assert thought.text == made.writer.tokenizer.decode(thought.token_ids).strip()


def test_a_given_thought_is_cut_to_the_budget_sample_by_sample(writer, sentences, tiny_folder):
    long = make(writer, sentences, samples=2, temperature=1.0, max_reasoning_tokens=24)
    short = make(writer, sentences, samples=2, temperature=1.0, max_reasoning_tokens=4)
    thoughts = long.think(QUERIES)
    end = short.writer.end_id
    for thought, cut in zip(thoughts, short.think(QUERIES, reasoning=thoughts), strict=True):
        place = thought.token_ids.index(end)
        parts = thought.token_ids[:place], thought.token_ids[place + 1 :]
        assert max(map(len, parts)) > 4  # else nothing would be cut
        assert cut.texts == short.writer.texts_of([*parts[0][:4], end, *parts[1][:4]])
        assert len(cut.token_ids) <= 2 * 4 + 1
        assert not cut.finished
    # Another model's thoughts are given by their texts, a thought of this writer that fits as it is.
    other = make(tiny_folder, sentences, max_reasoning_tokens=24).think(["the query"])
    found = short.think(["the query"], reasoning=other)[0]
    assert found.texts == short.think(["the query"], reasoning=[other[0].text])[0].texts
    assert len(found.token_ids) <= 4
    for fits in (
        long.think(QUERIES, reasoning=thoughts),
        long.think(QUERIES, reasoning=[t.token_ids for t in thoughts]),
    ):
        assert [(each.texts, each.token_ids) for each in fits] == [(each.texts, each.token_ids) for each in thoughts]
    assert [e.finished for e in long.think(QUERIES, reasoning=thoughts)] == [e.finished for e in thoughts]


def test_a_search_r3_checkpoint_writes_for_its_own_prompt_what_it_reasons(tiny_folder, sentences):
    reasoned = SearchR3Encoder(tiny_folder, max_reasoning_tokens=BUDGET, max_length=1024).think(QUERIES)
    found = make(tiny_folder, sentences, "search-r3-prompt").think(QUERIES)
    assert [each.text for each in found] == [each.text.strip() for each in reasoned]
    assert [each.token_ids for each in found] == [each.token_ids for each in reasoned]
    hyde = make(tiny_folder, sentences, samples=1, temperature=0).think(QUERIES)
    assert [each.token_ids for each in hyde] != [each.token_ids for each in reasoned]
    with pytest.raises(ValueError, match="writes for 'search-r3-prompt' by its own prompt"):
        make(tiny_folder, sentences, "search-r3-prompt", prompt="{query}")


def test_a_search_r3_checkpoint_embeds_directly(writer, tiny_folder):
    direct = SearchR3Encoder(tiny_folder, mode="direct", max_length=300)
    made = make(writer, tiny_folder, max_length=300)
    np.testing.assert_allclose(made.encode_document(QUERIES), direct.encode_document(QUERIES), atol=1e-6)
    (thought,) = made.think(["the query"], instruction="Find it")
    np.testing.assert_allclose(thought.direct, direct.encode_query("the query", instruction="Find it"), atol=1e-6)
    want = direct.encode_query(f"the query {thought.text}", instruction="Find it")
    np.testing.assert_allclose(thought.vector, want, atol=1e-6)
    assert made.task_prompts
    assert not make(writer, tiny_folder, task_prompts=False).task_prompts


def test_statistics_count_tokens_and_seconds(writer, sentences):
    made = make(writer, sentences, samples=2, temperature=1.0)
    thoughts = made.think(QUERIES)
    made.encode_document(["a", "b", "c"])
    found = made.statistics
    assert (found.queries, found.documents) == (2, 3)
    assert found.reasoning_tokens == sum(len(each.token_ids) for each in thoughts) > 2 * BUDGET
    assert found.forced == sum(not each.finished for each in thoughts)
    assert found.query_seconds > 0
    assert found.document_seconds > 0


# ---- store ---------------------------------------------------------------------------------------------------------


def counted(monkeypatch, fail_at=None):
    """The numbers of prompts of each call of the writer; the call numbered `fail_at` dies."""
    calls, original = [], Writer.write

    def write(self, prompts, *arguments, **keywords):
        if len(calls) == fail_at:
            raise KeyboardInterrupt
        calls.append(len(prompts))
        return original(self, prompts, *arguments, **keywords)

    monkeypatch.setattr(Writer, "write", write)
    return calls


def test_a_killed_run_resumes_and_gives_what_an_uninterrupted_one_does(writer, sentences, tmp_path, monkeypatch):
    texts = [*QUERIES, "third", "the system", "an assistant"]
    settings = {"samples": 2, "temperature": 1.0}
    whole = make(writer, sentences, **settings).think(texts)
    monkeypatch.setattr(writer_encoder, "CHUNK_QUERIES", 2)
    with monkeypatch.context() as patch:
        counted(patch, fail_at=2)
        with pytest.raises(KeyboardInterrupt):
            make(writer, sentences, cache_folder=tmp_path, **settings).think(texts)
    calls = counted(monkeypatch)
    resumed = make(writer, sentences, cache_folder=tmp_path, **settings)
    found = resumed.think(texts)
    assert calls == [1]
    assert [each.texts for each in found] == [each.texts for each in whole]
    assert [each.token_ids for each in found] == [each.token_ids for each in whole]
    np.testing.assert_allclose([e.vector for e in found], [e.vector for e in whole], atol=1e-6)
    again = make(writer, sentences, cache_folder=tmp_path, **settings)
    again.think(texts)
    assert calls == [1]
    assert again.statistics.query_seconds == pytest.approx(resumed.statistics.query_seconds)


def test_texts_are_written_once_for_all_encoders_and_weights(writer, sentences, tiny_folder, tmp_path, monkeypatch):
    calls = counted(monkeypatch)
    for encoder, settings in ((sentences, {}), (sentences, {"anchor": 1.0}), (tiny_folder, {"weight": 2})):
        make(writer, encoder, cache_folder=tmp_path, **settings).think(QUERIES)
    assert calls == [2]
    for settings in ({"seed": 1, "temperature": 1.0}, {"max_reasoning_tokens": 3}, {"prompt": "x {query}"}):
        make(writer, sentences, cache_folder=tmp_path, **settings).think(QUERIES)
    make(writer, sentences, "gar", cache_folder=tmp_path).think(QUERIES)
    assert calls == [2] * 5
    lines = [json.loads(line) for file in Path(tmp_path).rglob("thoughts.jsonl") for line in file.open()]
    assert {line["text"] for line in lines} == set(QUERIES)


# ---- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "hyd"}, "no method 'hyd'.*hyde, query2doc"),
        ({"samples": 4}, "the same text 4 times"),
        ({"weight": 0.5}, "must be a whole number"),
        ({"method": "hyde", "weight": 2, "anchor": 1}, "both say how much the query counts"),
        ({"anchor": -1}, "anchor=-1 must be 0 or a positive number"),
        ({"prompt": "write"}, "must hold {query} exactly once"),
        ({"feedback_documents": 2}, "does not use feedback_documents"),
        ({"method": "feedback"}, "FeedbackEncoder"),
        ({"max_reasoning_tokens": 4096}, "leaves no room for a prompt"),
    ],
)
def test_what_cannot_work_is_refused(writer, sentences, settings, message):
    with pytest.raises(ValueError, match=message):
        make(writer, sentences, **settings)


def test_unknown_settings_and_keywords_are_refused(writer, sentences):
    with pytest.raises(TypeError, match="no setting sample"):
        make(writer, sentences, sample=2)
    with pytest.raises(TypeError, match="must be a whole number"):
        make(writer, sentences, samples="2")
    with pytest.raises(TypeError, match="no keyword tempereture"):
        make(writer, sentences).think(QUERIES, tempereture=1)
    with pytest.raises(ValueError, match="needs a writer"):
        make(None, sentences)


def test_an_encoder_that_does_not_compare_by_cosine_is_refused(writer, sentences, tmp_path):
    import shutil

    folder = tmp_path / "dot"
    shutil.copytree(sentences, folder)
    config = folder / "config_sentence_transformers.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"similarity_fn_name": "dot"}))
    with pytest.raises(ValueError, match="compares vectors by 'dot'"):
        make(writer, folder)


# ---- doors ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow  # in the suite: that of feedback
def test_mteb_conformity(writer, sentences, monkeypatch):
    import mteb

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = mteb.mock_run(make(writer, sentences, max_reasoning_tokens=1))
    failed = {name: status.exception for name, status in result.task_results.items() if hasattr(status, "exception")}
    # Warnings are errors here: scikit-learn's about classes that a random encoder never predicts says nothing of ours.
    assert {name: said for name, said in failed.items() if "Precision is ill-defined" not in said} == {}
    assert sum(status is not None for status in result.task_results.values()) >= 20


def test_beir_and_single_texts(writer, sentences):
    made = make(writer, sentences)
    np.testing.assert_allclose(made.encode_queries(QUERIES)[0], made.encode_query(QUERIES[0]), atol=1e-6)
    assert made.encode_query([]).shape == (0, made.dim)
    assert made.encode_corpus({"d": {"title": "a", "text": "b"}}).shape == (1, made.dim)
    np.testing.assert_allclose(made.encode(QUERIES, prompt_type="query"), made.encode_query(QUERIES), atol=1e-6)
    np.testing.assert_allclose(made.encode(QUERIES), made.encode_document(QUERIES), atol=1e-6)
    assert make(writer, sentences).encode_query("the query", convert_to_tensor=True).shape == (made.dim,)
