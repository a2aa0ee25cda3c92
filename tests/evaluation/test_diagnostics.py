"""The diagnosis: controls, cosines and verdict, on models for which it is known whether the reasoning matters."""

import itertools
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from search_r3_mteb.encoder.checkpoints import Checkpoint
from search_r3_mteb.encoder.encoder import SearchR3Encoder
from search_r3_mteb.encoder.engine import Engine, Rollouts
from search_r3_mteb.encoder.prompts import Renderer
from search_r3_mteb.evaluation.diagnosis_groups import BudgetRun, Measured, _bins, group_record, hop_groups, verdict
from search_r3_mteb.evaluation.diagnosis_runs import DiagnosisPlan
from search_r3_mteb.evaluation.diagnostics import diagnose, table
from search_r3_mteb.evaluation.evaluate import evaluate
from search_r3_mteb.evaluation.movement import Cosines, SampledReasonings, cosines, pooled
from search_r3_mteb.evaluation.query_scorer import QueryScorer
from search_r3_mteb.evaluation.reasoning_variants import others, shuffled_words
from search_r3_mteb.evaluation.tasks import resolve_task
from search_r3_mteb.tasks.beir_folder import write_beir
from tests.evaluation.conftest import SHORT
from tests.mteb_running import made_task

WORDS = ["silver", "river", "garden", "stone", "winter", "harbour", "letter", "engine"]
SETTINGS = {"max_reasoning_tokens": 8}
PLAN = DiagnosisPlan(max_queries=None, rollouts=4, budgets=(0, 4), pools=(1, 2, 4))


@pytest.fixture
def beir(tmp_path):
    """One document per word and its question; a second document that shares the question's other words."""
    documents = [(f"d{n}", "", f"the {word} is here") for n, word in enumerate(WORDS)]
    documents += [(f"x{n}", "About", f"where was it, {word}?") for n, word in enumerate(WORDS)]
    queries = [(f"q{n}", f"where is number {n}") for n in range(8)]
    qrels = {"test": [(f"q{n}", f"d{n}", 1) for n in range(8)]}
    write_beir(tmp_path / "little", corpus=documents, queries=queries, qrels=qrels)
    return tmp_path / "little"


class Scripted:
    """Engine methods of a model that says the word its query asks for, and whose vectors hold the tokens it read.

    `listens` False: the vector ignores what was said after the prompt.
    """

    def __init__(self, tokenizer, listens=True):
        self.tokenizer, self.listens, self.calls = tokenizer, listens, 0
        self.table = torch.nn.functional.normalize(torch.randn(512, 32, generator=torch.Generator().manual_seed(0)))
        self.open = tokenizer("<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]

    def parts(self, ids):
        ids = list(ids)
        start = max(i for i in range(len(ids)) if ids[i : i + len(self.open)] == self.open) + len(self.open)
        return ids[:start], ids[start:-1]

    def vector(self, ids):
        prompt, said = self.parts(ids)
        system = self.tokenizer.decode(prompt).split("user\n")[-1]
        plain = self.tokenizer(system.replace("<|im_end|>\n<|im_start|>assistant\n", ""))["input_ids"]
        heard = 3.0 * self.bag(said) if said and self.listens else 0.0
        return self.bag(plain) + heard

    def bag(self, ids):
        return torch.stack([self.table[i] for i in ids]).sum(dim=0)

    def embed(self, engine, prompts, *given, **named):
        return torch.stack([self.vector(prompt) for prompt in prompts])

    def reason(self, engine, prompts, sampling, **named):
        self.calls += 1
        ids, finished = [], []
        for prompt in prompts:
            number = int(self.tokenizer.decode(list(prompt)).split("number ")[1][0])
            filler = " indeed" * (sampling.seed % 3 + 1) if sampling.temperature else ""
            said = self.tokenizer(f"the {WORDS[number]} is here{filler}", add_special_tokens=False)["input_ids"]
            finished.append(len(said) <= sampling.max_reasoning_tokens)
            ids.append([*said[: sampling.max_reasoning_tokens], engine.embed_token_id])
        vectors = torch.stack([self.vector([*prompt, *said]) for prompt, said in zip(prompts, ids, strict=True)])
        return Rollouts(vectors, ids, [[0.0] * len(row) for row in ids], finished, list(range(len(ids))), 0, 0)


@pytest.fixture
def scripted(tiny_tokenizer, monkeypatch):
    def install(listens=True):
        fake = Scripted(tiny_tokenizer, listens)
        monkeypatch.setattr(Engine, "embed", lambda engine, *given, **named: fake.embed(engine, *given, **named))
        monkeypatch.setattr(Engine, "reason", lambda engine, *given, **named: fake.reason(engine, *given, **named))
        return fake

    return install


# ---------------------------------------------------------------------------------------------------- the controls


def embed_after(encoder, texts, instructions, ids):
    return encoder.encode_query(texts, instruction=instructions, reasoning=ids)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "seed": 3}])
def test_own_reasoning_gives_the_vectors_of_encode_query(checkpoint, sampling):
    texts = [f"{'where is the ' * (n % 3)}{word}" for n, word in enumerate(WORDS)]
    instructions = [None, "Find it"] * 4
    encoder = SearchR3Encoder(checkpoint, max_reasoning_tokens=12, **sampling)
    thoughts = encoder.think(texts, instruction=instructions)
    own = [thought.token_ids for thought in thoughts]
    expected = encoder.encode_query(texts, instruction=instructions)
    np.testing.assert_allclose(embed_after(encoder, texts, instructions, own), expected, atol=1e-4)
    # Negative controls: another query's reasoning, and the reasoning behind a prompt without its instruction.
    assert np.abs(embed_after(encoder, texts, instructions, own[1:] + own[:1]) - expected).max() > 1e-3
    assert np.abs(embed_after(encoder, texts, [None] * 8, own) - expected).max() > 1e-3


def test_a_given_reasoning_is_placed_as_in_a_training_reply(checkpoint):
    encoder = SearchR3Encoder(checkpoint, max_reasoning_tokens=12)
    texts, said = ["a river", "the stone"], ["the query and", "embedding is the document"]
    replies = [encoder.renderer.render_reply(t, "reason", s).token_ids for t, s in zip(texts, said, strict=True)]
    ids = encoder.renderer.tokenize_text(said)
    unit = torch.nn.functional.normalize(encoder.engine.embed(replies)).numpy()
    np.testing.assert_allclose(embed_after(encoder, texts, [None, None], ids), unit, atol=1e-5)


def test_decoding_and_tokenising_again_would_embed_something_else(checkpoint):
    # Why the controls work on ids: what a model samples is not what the tokenizer makes of the same text.
    encoder = SearchR3Encoder(checkpoint, max_reasoning_tokens=12, temperature=1.0)
    thoughts = encoder.think(WORDS)
    again = encoder.renderer.tokenize_text([thought.text for thought in thoughts])
    assert any(ids != thought.token_ids for ids, thought in zip(again, thoughts, strict=True))


def test_empty_reasoning_is_the_budget_of_zero(checkpoint):
    encoder = SearchR3Encoder(checkpoint, max_reasoning_tokens=12)
    none = embed_after(encoder, WORDS, [None] * 8, [[]] * 8)
    np.testing.assert_allclose(none, encoder.encode_query(WORDS, max_reasoning_tokens=0), atol=1e-4)


@pytest.mark.parametrize("count", [2, 3, 8, 101])
def test_every_query_gets_another_ones_reasoning_and_each_is_given_once(count):
    other = others(count, np.random.default_rng(count))
    assert sorted(other) == list(range(count))
    assert (other != np.arange(count)).all()


def word_level_tokenizer():
    from train.model.scratch import word_tokenizer

    return word_tokenizer()


@pytest.mark.parametrize("kind", ["byte-level", "word-level"])
def test_shuffling_keeps_every_word_whole(tiny_tokenizer, kind):
    renderer = Renderer(tiny_tokenizer if kind == "byte-level" else word_level_tokenizer(), SHORT)
    texts = ["the query and the document\n\nis embedding ", "Xqz zebra naïve founder, the end.", "one two"]
    ids = renderer.tokenize_text(texts)
    for before, after in zip(ids, shuffled_words(ids, renderer, np.random.default_rng(0), 99), strict=True):
        text, found = renderer.tokenizer.batch_decode([before, after])
        assert found.split() != text.split()
        assert Counter(found.split()) == Counter(text.split())
        if kind == "byte-level":  # the other one writes a space around every line break
            assert re.findall(r"\s+", found) == re.findall(r"\s+", text)


def test_shuffling_where_it_is_not_plain(tiny_tokenizer):
    renderer, rng = Renderer(tiny_tokenizer, SHORT), np.random.default_rng(0)
    end = tiny_tokenizer.convert_tokens_to_ids("<|im_end|>")
    same, ended, empty, spaceless, cut = (
        renderer.tokenize_text([text])[0] for text in ("word word", "one two three", "", "日本語です", "a b c d e")
    )
    given = [same, [*ended, end], empty, spaceless, cut]
    found = shuffled_words(given, renderer, rng, 14)
    assert found[0] == same  # no other order exists
    assert found[1][-1] == end
    assert found[1][:-1] != ended
    assert Counter(tiny_tokenizer.decode(found[1][:-1]).split()) == Counter(["one", "two", "three"])
    assert found[2] == []
    assert len(found[3]) == 14  # 15 bytes were cut: the window has no room for more
    whole = shuffled_words([spaceless], renderer, rng, 99)[0]
    assert sorted(tiny_tokenizer.decode(whole)) == sorted("日本語です")
    assert tiny_tokenizer.decode(whole) != "日本語です"


# ---------------------------------------------------------------------------------------------------- cosines


def sampled(vectors, token_ids):
    vectors = np.array(vectors, dtype=np.float32)
    zeros = np.zeros(vectors.shape[:2])
    return SampledReasonings(vectors, token_ids, zeros + 1, zeros, zeros)


def test_cosines_by_hand():
    # Query 0: (1,0) and (0.6,0.8), cosine 0.6. Query 1: (0,1) twice, after the same words. Across: 0, 0.8, 0, 0.8.
    found = cosines(sampled([[[1, 0], [0, 1]], [[0.6, 0.8], [0, 1]]], [[[5], [6]], [[7], [6]]]))
    np.testing.assert_allclose(found.same, [0.6, 1.0], atol=1e-6)
    np.testing.assert_allclose(found.different, [0.4, 0.4], atol=1e-6)
    np.testing.assert_allclose(found.reworded, [0.6, np.nan], atol=1e-6)
    assert found.distinct.tolist() == [2, 1]


def test_cosines_are_means_over_all_pairs():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(5, 4, 3))
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    ids = [[[int(rng.integers(3))] for _ in range(4)] for _ in range(5)]
    found = cosines(sampled(vectors, ids))
    for q in range(4):
        pairs = [(s, t) for s in range(5) for t in range(s)]
        dots = {pair: vectors[pair[0], q] @ vectors[pair[1], q] for pair in pairs}
        assert found.same[q] == pytest.approx(np.mean(list(dots.values())), abs=1e-6)
        differ = [value for (s, t), value in dots.items() if ids[s][q] != ids[t][q]]
        assert found.reworded[q] == pytest.approx(np.mean(differ), abs=1e-6)
        across = [vectors[s, q] @ vectors[t, o] for s in range(5) for t in range(5) for o in range(4) if o != q]
        assert found.different[q] == pytest.approx(np.mean(across), abs=1e-6)
    with pytest.raises(ValueError, match="two of each"):
        cosines(sampled(vectors[:1], ids[:1]))


def test_pooling_takes_full_groups_of_unit_means():
    vectors = np.array([[[1, 0]], [[0, 1]], [[-1, 0]], [[0, 1]], [[1, 0]]], dtype=np.float32)
    found = pooled(vectors, 2)
    half = np.sqrt(0.5)
    np.testing.assert_allclose(np.concatenate(found), [[half, half], [-half, half]], atol=1e-6)


def test_length_bins_never_part_equal_lengths_and_lose_no_query():
    tokens = np.array([3] * 10 + [4] * 3 + [9, 12, 30, 256, 256])
    wanted = tokens < 256
    bins = _bins(tokens, wanted)
    assert bins[0][:2] == (3, 3)
    assert all(first[1] < second[0] for first, second in itertools.pairwise(bins))
    assert (sum(inside.astype(int) for *_, inside in bins) == wanted).all()
    assert _bins(tokens, tokens < 0) == []


# ---------------------------------------------------------------------------------------------------- quality


def per_query(output, row):
    return [json.loads(line)["ndcg_at_10"] for line in (output / row["queries_file"]).read_text().splitlines()]


def test_quality_is_that_of_evaluate(checkpoint, beir, tmp_path):
    task, output = f"beir:{beir}", tmp_path / "run"
    rows = [row for row in evaluate([checkpoint], [task], output=output, settings=SETTINGS) if "hops" not in row]
    encoder = SearchR3Encoder(checkpoint, **SETTINGS, cache_folder=output / "store")
    scorer = QueryScorer(resolve_task(task), encoder)
    direct = SearchR3Encoder(checkpoint, mode="direct", cache_folder=output / "store")
    assert sum(per_query(output, rows[0])) > 0
    for row, one in zip(rows, (encoder, direct), strict=True):
        vectors = one.encode_query(scorer.texts, instruction=scorer.instructions)
        np.testing.assert_allclose(scorer.quality(vectors).ndcg_at_10, per_query(output, row), atol=1e-6)


@pytest.mark.parametrize("copies", [5, 60, 300])
def test_equal_scores_are_ordered_as_in_evaluate(checkpoint, tmp_path, copies):
    """Documents of one text have one score; trec_eval puts the largest ids first, wherever they stand in the corpus."""
    documents = [(f"d{n + 1:04d}", "", "the river is here") for n in range(copies)]
    documents += [(f"x{n}", "About", f"a {word}") for n, word in enumerate(WORDS)]
    queries = [("q0", "where is the river"), ("q1", "the river?")]
    first, tenth = f"d{copies:04d}", f"d{max(copies - 9, 1):04d}"
    qrels = {"test": [("q0", tenth, 1), ("q0", "d0001", 1), ("q1", first, 1), ("q1", "x3", 1)]}
    write_beir(tmp_path / "equal", corpus=documents, queries=queries, qrels=qrels)
    task, output = f"beir:{tmp_path / 'equal'}", tmp_path / "run"
    [row] = evaluate([checkpoint], [task], "direct", output)
    encoder = SearchR3Encoder(checkpoint, mode="direct", cache_folder=output / "store")
    vectors = encoder.encode_query([text for _, text in queries])
    found = QueryScorer(resolve_task(task), encoder).quality(vectors).ndcg_at_10
    np.testing.assert_allclose(found, per_query(output, row), atol=1e-6)
    assert found.min() > 0


class Known:
    """An encoder whose vectors are known: every text names its own."""

    task_prompts = True

    def encode_document(self, texts):
        vectors = np.array([[float(x) for x in text.split()[-2:]] for text in texts], dtype=np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def known_task(top_ranked=None, subsets=("default",)):
    documents = [{"id": i, "title": "", "text": text} for i, text in (("a", "1 0"), ("b", "0 1"), ("c", "1 1"))]
    queries = [{"id": i, "text": f"query {i}"} for i in ("a", "q", "unjudged")]
    relevant = {"a": {"b": 1, "c": 0}, "q": {"a": 1, "c": 2}, "unjudged": {}}
    parts = dict.fromkeys(subsets, (documents, queries, relevant))
    task = made_task("Known", parts, prompt="Find", top_ranked=top_ranked)
    task.ignore_identical_ids = True
    return task


def test_quality_and_margin_by_hand():
    scorer = QueryScorer(known_task(), Known())
    assert (scorer.ids, scorer.texts, scorer.instructions) == (["a", "q"], ["query a", "query q"], ["Find", "Find"])
    assert (scorer.documents, scorer.queries_in_task, scorer.hops) == (3, 2, [None, None])
    found = scorer.quality(np.array([[1, 0], [1, 0]], dtype=np.float32))
    # Query a: its own document is left out, so c comes first and b second. Query q: a (1), c (2), b.
    ideal = 2 + 1 / np.log2(3)
    np.testing.assert_allclose(found.ndcg_at_10, [1 / np.log2(3), (1 + 2 / np.log2(3)) / ideal], atol=1e-6)
    np.testing.assert_allclose(found.margin, [0 - np.sqrt(0.5), 1 - 0], atol=1e-6)


def test_a_task_in_the_form_of_older_mteb_is_read():
    # LitSearchRetrieval, for one, fills dictionaries, which MTEB turns into tables when it evaluates.
    task = known_task()

    def load_data(num_proc=None, **kwargs):
        texts = {"a": "1 0", "b": "0 1", "c": "1 1"}
        task.corpus = {"test": {key: {"title": "", "text": text} for key, text in texts.items()}}
        task.queries = {"test": {"p": "query p", "q": "query q"}}
        task.relevant_docs = {"test": {"p": {"a": 1}, "q": {"b": 1}}}
        task.data_loaded = True

    task.load_data = load_data
    scorer = QueryScorer(task, Known())
    found = scorer.quality(np.array([[1, 0], [1, 0]], dtype=np.float32))
    np.testing.assert_allclose(found.ndcg_at_10, [1, 0.5], atol=1e-6)


def test_candidates_of_a_reranking_task_are_the_only_ones_ranked():
    scorer = QueryScorer(known_task({"a": ["b"], "q": ["b", "c"]}), Known())
    found = scorer.quality(np.array([[1, 0], [1, 0]], dtype=np.float32))
    np.testing.assert_allclose(found.ndcg_at_10, [1, 2 / (2 + 1 / np.log2(3))], atol=1e-6)
    assert np.isnan(found.margin[0])  # no document but the relevant one


def test_subsets_are_searched_apart_and_queries_are_drawn_with_a_seed():
    scorer = QueryScorer(known_task(subsets=("en", "de")), Known())
    assert scorer.ids == ["en/a", "en/q", "de/a", "de/q"]
    one = QueryScorer(known_task(subsets=("en", "de")), Known(), 3, seed=1)
    assert len(one) == 3
    assert one.queries_in_task == 4
    assert one.ids == QueryScorer(known_task(subsets=("en", "de")), Known(), 3, seed=1).ids
    drawn = {tuple(QueryScorer(known_task(subsets=("en", "de")), Known(), 2, seed=seed).ids) for seed in range(9)}
    assert len(drawn) > 1


# ---------------------------------------------------------------------------------------------------- the diagnosis


@pytest.fixture
def told(checkpoint, beir, tmp_path, scripted):
    """The diagnosis of the model that finds by what it says."""
    scripted()
    return diagnose(checkpoint, f"beir:{beir}", tmp_path / "out", settings={"max_reasoning_tokens": 40}, plan=PLAN)


def test_a_model_that_finds_by_what_it_says(told, beir, tmp_path):
    assert json.loads((tmp_path / "out" / "diagnose.json").read_text()) == {
        key: value for key, value in told.items() if key != "file"
    }
    [everything] = told["groups"]
    controls = everything["controls"]
    assert (everything["hops"], everything["queries"], told["documents"]) == (None, 8, 16)
    assert controls["own"]["ndcg_at_10"]["mean"] == 1
    for name in ("other", "none", "direct"):
        assert controls[name]["own_minus_this"]["difference"] > 0.3
        assert controls[name]["own_minus_this"]["interval"][0] > 0
        assert controls[name]["own_minus_this"]["significant"]
        assert controls[name]["cosine_to_own"]["mean"] < 0.95
    # It hears a bag of words: their order means nothing to it, and the control says so.
    assert controls["shuffled"]["own_minus_this"]["difference"] == pytest.approx(0, abs=0.2)
    assert told["verdict"]["matters"]
    assert told["verdict"]["helps"]
    assert "the reasoning matters and helps" in told["verdict"]["text"]
    assert re.search(r"\(95 % interval \+0\.\d+ to \+\d\.\d+\)", told["verdict"]["text"])
    movement = everything["movement"]
    assert movement["distinct_reasonings"]["mean"] == 3  # "indeed" once, twice, three times
    assert movement["different_queries"]["mean"] < movement["same_query_other_words"]["mean"]
    assert movement["same_query_other_words"]["mean"] < movement["same_query"]["mean"] < 1
    assert 0 < movement["distance_ratio"]["mean"] < 1
    assert [each["max_reasoning_tokens"] for each in everything["budgets"]] == [0, 4, 40]
    assert everything["budgets"][0]["forced"]["mean"] == 1
    assert everything["budgets"][0]["ndcg_at_10"]["mean"] == controls["none"]["ndcg_at_10"]["mean"]
    assert everything["budgets"][2]["ndcg_at_10"]["mean"] == 1
    assert everything["budgets"][2]["minus_smallest"]["significant"]
    assert [each["rollouts"] for each in everything["pooling"]] == [1, 2, 4]
    assert sum(each["queries"] for each in everything["lengths"]) == 8
    assert everything["lengths"][0]["own_minus_direct"]["difference"] > 0
    assert told["rollouts"] == {"seeds": [0, 1, 2, 3], "temperature": 1.0}
    assert {len(column) for column in told["per_query"].values()} == {8}
    example = told["examples"][0]
    assert example["reasoning"]["own"] != example["reasoning"]["other"]
    assert Counter(example["reasoning"]["own"].split()) == Counter(example["reasoning"]["shuffled"].split())


def test_a_model_that_does_not_listen_to_itself(checkpoint, beir, tmp_path, scripted):
    # Negative control of the test above: same words, same pipeline, and nothing may be found.
    scripted(listens=False)
    result = diagnose(checkpoint, f"beir:{beir}", tmp_path / "deaf", settings={"max_reasoning_tokens": 40}, plan=PLAN)
    [group] = result["groups"]
    assert not result["verdict"]["matters"]
    assert not result["verdict"]["helps"]
    assert "no effect of the reasoning can be shown" in result["verdict"]["text"]
    for name in ("other", "shuffled", "none"):
        assert group["controls"][name]["own_minus_this"]["interval"] == [0, 0]
        assert group["controls"][name]["cosine_to_own"]["mean"] == pytest.approx(1, abs=1e-5)
    assert group["movement"]["distinct_reasonings"]["mean"] == 3
    assert group["movement"]["same_query_other_words"]["mean"] == pytest.approx(1, abs=1e-5)
    assert group["movement"]["distance_ratio"]["mean"] == pytest.approx(0, abs=1e-4)
    assert group["movement"]["correlation_movement_ndcg_spread"] is None


def test_a_second_run_reasons_about_nothing_again(checkpoint, beir, tmp_path, scripted):
    fake = scripted()
    where = (checkpoint, f"beir:{beir}", tmp_path / "out")
    first = diagnose(*where, settings={"max_reasoning_tokens": 40}, plan=PLAN)
    calls = fake.calls
    assert calls == 1 + 2 + 4  # own, two further budgets, four rollouts
    assert diagnose(*where, settings={"max_reasoning_tokens": 40}, plan=PLAN) == first
    assert fake.calls == calls
    other = diagnose(*where, settings={"max_reasoning_tokens": 40}, plan=DiagnosisPlan(None, 4, (0, 4), (1,), seed=7))
    assert other["rollouts"]["seeds"] == [7, 8, 9, 10]
    assert fake.calls == calls + 4


def test_hopworld_is_diagnosed_by_hop_count(checkpoint, tmp_path):
    from rich.console import Console

    plan = DiagnosisPlan(max_queries=24, rollouts=2, budgets=(0, 8), pools=(1, 2))
    result = diagnose(
        checkpoint, "hopworld:500", tmp_path / "out", settings=SETTINGS, plan=plan, command="search-r3 ..."
    )
    assert [group["hops"] for group in result["groups"]] == [None, 1, 2, 3, 4]
    assert sum(group["queries"] for group in result["groups"][1:]) == result["queries"] == 24
    assert result["queries_in_task"] > 24
    assert (result["model"], result["command"], result["seed"]) == ("tests/short", "search-r3 ...", 0)
    assert result["settings"]["max_reasoning_tokens"] == 8
    console = Console(width=160, record=True, file=(tmp_path / "table").open("w"))
    console.print(table(result))
    shown = console.export_text()
    assert "all (24)" in shown
    assert "4 hops" in shown


def measured(own, other, direct, none):
    size = 60
    level = {"own": own, "other": other, "shuffled": own, "none": none, "direct": direct}
    noise = np.random.default_rng(0).normal(0, 0.05, size)
    ndcg = {name: mean + noise + np.random.default_rng(len(name)).normal(0, 0.05, size) for name, mean in level.items()}
    ones, runs = np.ones(size), np.zeros((2, size))
    return Measured(
        ndcg=ndcg, cosine_to_own=dict.fromkeys(level, ones), tokens=ones.astype(int), forced=ones * 0,
        budgets={8: BudgetRun(ndcg["own"], ones.astype(int), ones * 0)},
        cosines=Cosines(ones, ones, ones * 0, ones.astype(int)),
        rollout_ndcg=runs, rollout_margin=runs, rollout_forced=runs, pools={1: ones},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("own", "other", "direct", "none", "said", "without"),
    [
        (0.9, 0.3, 0.5, 0.2, "the reasoning matters and helps", "direct"),
        (0.9, 0.3, 0.9, 0.2, "matters, but it cannot be told apart from no reasoning", "direct"),
        (0.6, 0.3, 0.2, 0.9, "matters, but no reasoning at all is better", "none"),
        (0.9, 0.9, 0.5, 0.2, "helps, but another query's cannot be told apart", "direct"),
        (0.5, 0.5, 0.5, 0.4, "no effect of the reasoning can be shown", "direct"),
        (0.5, 0.5, 0.9, 0.2, "hurts, whatever it says", "direct"),
        (0.5, 0.9, 0.2, 0.1, "another query's reasoning helps more:", "direct"),
        (0.5, 0.9, 0.5, 0.1, "the query's own reasoning misleads: another query's is better:", "direct"),
        (0.5, 0.9, 0.8, 0.1, "the query's own reasoning misleads: another query's is better, and so is none", "direct"),
    ],
)
def test_the_verdict_says_what_the_intervals_say(own, other, direct, none, said, without):
    [(hops, rows)] = hop_groups([None] * 60)
    group = group_record(measured(own, other, direct, none), rows, hops)
    found = verdict(group, "m", "t")
    assert said in found["text"]
    assert found["without"] == without
    assert found["matters"] == (own > other + 0.1)
    assert found["helps"] == (own > max(direct, none) + 0.1)


def test_a_budget_beyond_the_window_is_noted(make_model, tiny_tokenizer, beir, tmp_path, scripted):
    scripted()
    model = Checkpoint(make_model(max_position_embeddings=128), tiny_tokenizer, SHORT, "tests/narrow")
    plan = DiagnosisPlan(rollouts=2, budgets=(0, 256), pools=(1,))
    result = diagnose(model, f"beir:{beir}", tmp_path / "out", settings={"max_reasoning_tokens": 30}, plan=plan)
    assert [each["max_reasoning_tokens"] for each in result["groups"][0]["budgets"]] == [0, 30]
    assert [each["max_reasoning_tokens"] for each in result["skipped"]] == [256]
    assert "the model has 128" in result["skipped"][0]["why"]


# ---------------------------------------------------------------------------------------------------- wrong inputs


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"mode": "direct"}, "leave the mode out"), ({"max_reasoning_tokens": 0}, "nothing to diagnose")],
)
def test_settings_without_reasoning_are_refused(checkpoint, beir, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        diagnose(checkpoint, f"beir:{beir}", tmp_path / "out", settings=settings)
    assert not (tmp_path / "out").exists()


def test_a_model_that_does_not_reason_is_refused(beir, tmp_path):
    with pytest.raises(ValueError, match="bm25 does not reason"):
        diagnose("bm25", f"beir:{beir}", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        diagnose("nowhere", f"beir:{beir}", tmp_path / "out")


def test_another_diagnosis_is_not_overwritten(checkpoint, beir, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "diagnose.json").write_text(json.dumps({"task": "T", "model": "m"}))
    with pytest.raises(ValueError, match=r"holds the diagnosis of m on T\. Name another --output"):
        diagnose(checkpoint, f"beir:{beir}", out)
    (out / "diagnose.json").write_text('{"task": "T')
    with pytest.raises(ValueError, match=r"diagnose\.json, line 1: not JSON .* Name another --output"):
        diagnose(checkpoint, f"beir:{beir}", out)


@pytest.mark.parametrize(
    ("given", "message"),
    [({"rollouts": 1}, "at least two"), ({"temperature": 0.0}, "above 0"), ({"max_queries": 1}, "at least two"),
     ({"budgets": ()}, "at least one"), ({"budgets": (-1,)}, "none below 0")],
)  # fmt: skip
def test_a_plan_that_cannot_be_measured_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        DiagnosisPlan(**given)


def test_tasks_that_leave_no_choice_are_named(checkpoint):
    task = known_task()
    task.metadata = task.metadata.model_copy(update={"eval_splits": ["a", "b"]})
    with pytest.raises(ValueError, match="has the splits a, b; name one of them with --split"):
        QueryScorer(task, Known())
    lonely = known_task()
    lonely.load_data()
    lonely.dataset["default"]["test"]["relevant_docs"] = {"a": {"b": 1}}
    with pytest.raises(ValueError, match="has 1 judged queries"):
        QueryScorer(lonely, Known())


def test_the_default_folder_names_task_and_model(checkpoint, beir, scripted, tmp_path, monkeypatch):
    scripted()
    monkeypatch.chdir(tmp_path)
    result = diagnose(
        checkpoint, f"beir:{beir}", settings={"max_reasoning_tokens": 40}, plan=DiagnosisPlan(rollouts=2, budgets=(0,))
    )
    assert Path(result["file"]) == Path("runs/diagnose") / f"{result['task']}__tests__short" / "diagnose.json"
    assert Path(result["file"]).exists()


def test_the_command_prints_the_verdict(checkpoint, beir, scripted, tmp_path, call):
    from search_r3_mteb.encoder.checkpoints import save

    scripted()
    options = ["--rollouts", "2", "--max-queries", "6", "--max-reasoning-tokens", "40", "--set", "seed=5"]
    options += ["--set", "probe=false"]  # the script is not what the model itself says
    model, out = save(checkpoint, tmp_path / "told"), tmp_path / "out"
    code, shown, progress = call("diagnose", "--model", model, "--task", f"beir:{beir}", "--output", out, *options)
    assert code == 0
    result = json.loads((out / "diagnose.json").read_text())
    assert result["verdict"]["text"] in " ".join(shown.split())
    assert "the reasoning matters and helps" in result["verdict"]["text"]
    assert "all (6)" in shown
    assert "rollout 2 of 2" in progress
    assert (result["queries"], result["seed"], result["rollouts"]["seeds"]) == (6, 5, [5, 6])
    assert result["command"].startswith("search-r3 diagnose --model")


def test_the_command_names_a_mistake(tmp_path, call):
    code, _, errors = call("diagnose", "--model", "bm25", "--task", "hopworld:500", "--output", tmp_path / "out")
    assert code == 2
    assert "bm25 does not reason" in errors
