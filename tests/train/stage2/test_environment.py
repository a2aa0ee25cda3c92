"""The environment: the documents that rollouts retrieve from the refreshed cache, their rewards, and their log."""

import copy
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import tokenizers
import torch
import transformers

import search_r3_mteb
from tests.train.loops import rl_config
from train.config.corpus_cache import CorpusCacheSettings
from train.config.run import RlOutputSettings
from train.corpus_cache.texts import CorpusTexts
from train.plan.processor import check_processor, processor_seconds
from train.rl import open_environment, sample
from train.run.run import Run
from train.stage2.corpus import SearchedCorpus, encoding_flops
from train.stage2.documents import DocumentEncoder
from train.stage2.rollout_log import RolloutLog


@pytest.fixture
def begun(tmp_path, trained):
    """A run, its environment, and one step's rollouts."""

    def begin(*overrides):
        run = Run.begin(rl_config(tmp_path / "run", trained / "last", *overrides), unit="query")
        environment = open_environment(run, None)
        return run, environment, sample(run, environment.encoder.engine, run.data.next_batch(), 1)

    return begin


def test_rankings_and_rewards_are_those_of_the_cache(begun):
    _, environment, groups = begun("reward.margin=0.5")
    judged = environment.judge(groups, 1)
    vectors = environment.cache.values(np.arange(500))
    for rollout, vector in enumerate(groups.vectors):
        similarities = vectors @ vector
        np.testing.assert_allclose(judged.similarities[rollout], np.sort(similarities)[::-1][:20], atol=1e-5)
        positive = int(environment.cache.rows_of(list(judged.relevance[groups.prompt[rollout]]))[0])
        rank = int((similarities > similarities[positive] + 1e-6).sum())
        dcg = max(similarities[positive], 0) / np.log2(rank + 2) if rank < 20 else 0.0
        best = max(s for row, s in enumerate(similarities) if row != positive)
        margin = (similarities[positive] - best + 2) / 4
        forced = 0.0 if groups.rollouts.finished[rollout] else 0.1
        assert judged.rewards.total[rollout] == pytest.approx(dcg + 0.5 * margin - forced, abs=1e-4)


def test_known_vectors_are_forgotten_after_the_refresh(begun):
    _, environment, groups = begun()
    texts = [groups.rows[0].positive]
    other = torch.nn.functional.normalize(torch.ones(1, 32), dim=-1)
    environment.encoder.know(texts, other * 3)
    environment.judge(groups, 1)
    row = environment.cache.rows_of([environment.corpus.positive_id(groups.rows[0])])
    np.testing.assert_allclose(environment.cache.values(row), other.numpy(), atol=1e-6)
    assert np.abs(environment.encoder(texts) - other.numpy()).max() > 1e-3
    environment.encoder.know(texts, None)  # no contrastive term: nothing is known


def test_negatives_are_the_highest_ranked_that_are_not_relevant(begun):
    _, environment, groups = begun()
    judged = environment.judge(groups, 1)
    relevant = {int(r) for one in judged.relevance for r in environment.cache.rows_of(list(one))}
    found = environment.negatives(groups, judged, 2)
    first = {int(judged.rows[r][0]) for r in range(len(groups.prompt))} - relevant
    assert len(found) == len(set(found.tolist())) <= 2 * len(groups.rows)
    assert first & set(found.tolist()), "what ranked first is a hard negative"
    own = {int(r) for r in environment.cache.rows_of(list(judged.relevance[0]))}
    from dataclasses import replace

    one_prompt = replace(judged, relevance=judged.relevance[:1])
    assert not set(environment.negatives(groups, one_prompt, 50).tolist()) & own
    assert len(environment.negatives(groups, judged, 0)) == 0


def test_a_row_that_the_index_did_not_find_is_no_document(begun, monkeypatch):
    """Regression: row -1 was read as the corpus's last document, and could be rewarded."""
    _, environment, groups = begun("corpus_cache.index=ivf")
    original = environment.cache.search
    calls = []

    def search(vectors, k, exact):
        assert exact is False
        calls.append(k)
        found = original(vectors, k, exact=True)
        if len(calls) == 2:
            found.rows[0, -1], found.scores[0, -1] = -1, -np.inf
        return found

    monkeypatch.setattr(environment.cache, "search", search)
    with pytest.raises(ValueError, match="fewer than k documents"):
        environment.judge(groups, 1)


def test_a_corpus_smaller_than_k(begun):
    _, environment, groups = begun("reward.k=5000")
    assert environment.judge(groups, 1).rows.shape[1] == len(environment.cache) == 500


def test_stop_tokens_are_those_of_inference(begun):
    run, environment, _ = begun()
    assert environment.encoder.engine.stop_token_ids == run.checkpoint.stop_token_ids


def test_the_cost_of_a_document_is_its_rendered_length(begun):
    run, environment, _ = begun()
    rendered = run.renderer.render_batch(list(environment.corpus.texts.texts[:5]), "direct")
    assert environment.corpus.texts.count()[:5].tolist() == [len(one.token_ids) for one in rendered]
    assert isinstance(environment.corpus, SearchedCorpus)


def test_old_rollouts_are_cut_when_a_run_begins(tmp_path):
    (tmp_path / "rollouts.jsonl").write_text(json.dumps({"step": 4, "query": "of a run that was killed"}) + "\n")
    RolloutLog(tmp_path, None, RlOutputSettings(), step=0, active=False)
    assert (tmp_path / "rollouts.jsonl").read_text()
    RolloutLog(tmp_path, None, RlOutputSettings(), step=0, active=True)
    assert (tmp_path / "rollouts.jsonl").read_text() == ""


def test_vectors_from_kept_token_ids_are_those_of_the_texts(begun, tmp_path):
    """Bit for bit, in the same batches; the encoder renders nothing, and the ids are exactly what it would render."""
    run, environment, _ = begun()
    texts = list(environment.corpus.texts.texts)
    token_ids = environment.cache.texts.token_ids
    rendered = [prompt.token_ids for prompt in run.renderer.render_batch(texts, "direct")]
    assert token_ids.take(np.arange(len(texts))) == rendered
    assert next((run.folder / "tokens").iterdir()).is_dir()
    some = [*texts[:20], texts[3]]
    plain = environment.encoder(some)
    environment.encoder._renderer = None
    rows = np.array([*range(20), 3])
    assert np.array_equal(environment.encoder(some, token_ids.take(rows)), plain)
    wrong = token_ids.take(rows[::-1])
    assert not np.array_equal(environment.encoder(some, wrong), plain), "the ids decide, not the texts"
    unit = plain / np.linalg.norm(plain, axis=1, keepdims=True)
    np.testing.assert_allclose(environment.cache.values(rows), unit, atol=1e-5)


def test_runs_that_name_one_folder_share_the_token_ids(begun, tmp_path, monkeypatch):
    tokens = tmp_path / "tokens"
    _, first, _ = begun(f"corpus_cache.tokens_folder={tokens}")
    parts = {file: file.stat().st_mtime_ns for file in tokens.rglob("*.tokens")}
    assert parts
    shutil.rmtree(tmp_path / "run")
    asked = []
    monkeypatch.setattr(DocumentEncoder, "tokenize", lambda self, texts: asked.append(texts))
    _, second, _ = begun(f"corpus_cache.tokens_folder={tokens}")
    assert asked == []
    assert {file: file.stat().st_mtime_ns for file in tokens.rglob("*.tokens")} == parts
    assert np.array_equal(first.cache.vectors, second.cache.vectors)


def test_all_that_decides_the_ids_is_in_the_tokenizers_name(begun, monkeypatch):
    """Another tokenizer, template, length or code makes them again; what a call left in the tokenizer does not."""
    _, environment, _ = begun()
    encoder = environment.encoder
    renderer = encoder._renderer
    name = encoder.tokenizer_name()
    profile = renderer.profile
    other = copy.deepcopy(renderer.tokenizer)
    other.add_tokens(["zzyzx"])
    templated = copy.deepcopy(renderer.tokenizer)
    templated.chat_template = (templated.chat_template or "") + " "
    direct = replace(profile.direct, system=profile.direct.system + " Now.")
    found = [name]
    for changed in (
        replace(renderer, max_length=40),
        replace(renderer, profile=replace(profile, direct=direct)),
        replace(renderer, profile=replace(profile, instruction=profile.instruction + " ")),
    ):
        encoder._renderer = changed
        found.append(encoder.tokenizer_name())
    for tokenizer in (other, templated):
        encoder._renderer = copy.copy(renderer)
        encoder._renderer.tokenizer = tokenizer
        found.append(encoder.tokenizer_name())
    assert len(set(found)) == 6
    encoder._renderer = renderer
    for package in (search_r3_mteb, transformers, tokenizers):
        with monkeypatch.context() as patch:
            patch.setattr(package, "__version__", "0.0.1")
            found.append(encoder.tokenizer_name())
    encoder._renderer = whole = replace(renderer, profile=replace(profile, tokenization="whole"))
    found.append(encoder.tokenizer_name())
    said = whole.render("<|im_end|>").token_ids
    whole._control = frozenset()  # as other code would, which takes a spelled marker for the marker
    assert whole.render("<|im_end|>").token_ids != said
    found.append(encoder.tokenizer_name())
    assert len(set(found)) == 11
    encoder._renderer = renderer
    renderer.tokenizer(["a", "a b c"], padding=True, truncation=True, max_length=2)
    assert encoder.tokenizer_name() == name, "the control"


def test_a_corpus_that_a_processor_cannot_keep_up_with_is_refused(begun, monkeypatch, caplog):
    """The default corpus of the 1.5B configuration: MS MARCO, HotpotQA and FiQA, 14 million documents."""
    settings = CorpusCacheSettings(storage="bfloat16")
    with pytest.raises(ValueError, match=r"14,100,000 documents .* too much to train with. Train on a GPU"):
        check_processor(14_100_000, 1536, 512, settings, threads=1)
    with pytest.raises(ValueError, match=r"about 193.5 hours to encode"):
        check_processor(14_100_000, 1536, 512, settings, threads=100, encoding_flops=14.1e6 * 120 * 3.0876e9)
    assert "A GPU, or a smaller" in check_processor(1_000_000, 1536, 64, settings, threads=1)
    assert check_processor(2_000, 64, 64, CorpusCacheSettings(), threads=1) is None
    # By hand: a map of 2 * 1e6 * 100^2 and two searches of 2 * 1e6 * 100 * 50, at 7.5e10 per second.
    assert processor_seconds(10**6, 100, 50, CorpusCacheSettings(), 1) == pytest.approx(4e10 / 7.5e10)
    assert processor_seconds(10**6, 100, 50, CorpusCacheSettings(policy="local"), 2) == pytest.approx(2e10 / 15e10)
    monkeypatch.setattr("train.plan.processor.WARNED_SECONDS", 0.0)
    begun()
    assert "500 documents of 32 dimensions on a CPU with" in caplog.text
    texts = CorpusTexts(["abcd" * 9] * 50)
    assert encoding_flops(texts, parameters=7, max_length=100) == 2 * 7 * 10 * 50
    assert encoding_flops(texts, parameters=7, max_length=5) == 2 * 7 * 5 * 50


def test_the_cache_lies_on_the_device_that_the_settings_name(begun, monkeypatch):
    """A run on a GPU gives its device; here the settings name the processor's torch, through the same blocks."""
    _, plain, groups = begun()
    assert plain.cache._state.device is None
    asked = []

    def compute_device(settings, run_device):
        asked.append(run_device)
        return torch.device("cpu")

    monkeypatch.setattr(CorpusCacheSettings, "compute_device", compute_device)
    run, environment, _ = begun("corpus_cache.device_gigabytes=0.5", "corpus_cache.block_megabytes=3")
    assert asked == [run.device]
    copies = environment.cache._state.device
    assert copies.values.resident_rows == len(environment.cache)
    assert environment.settings.block_megabytes == 3
    found, wanted = environment.judge(groups, 1), plain.judge(groups, 1)
    assert (found.rows == wanted.rows).all()
    np.testing.assert_allclose(found.rewards.total, wanted.rewards.total, atol=1e-5)
