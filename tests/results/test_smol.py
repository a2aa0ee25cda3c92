"""What smol is trained on and judged by: targets, splits, the gate's scores and intervals, by hand."""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from results.smol import base_text, encoder_scores, gates, samples
from results.smol.base_text import BaseWriter
from results.smol.base_text import cut as cut_text
from results.smol.gates import COMPARED, Measure, best_anchor, of_another, run, shown
from results.smol.hits import rows_with_hits, with_hits
from results.smol.judged_split import JudgedSplit, interval, reduced, task, unit
from results.smol.own_text import drawn, encoders, likelihood
from results.smol.smol_data import Sentences, code, cut, digest, judged, prose
from search_r3_mteb import SearchR3Encoder
from search_r3_mteb.encoder.checkpoints import load
from search_r3_mteb.encoder.engine import Engine
from search_r3_mteb.evaluation.perceptron import train_perceptron
from search_r3_mteb.evaluation.provenance import commit
from search_r3_mteb.evaluation.reasoning_variants import filler_text
from search_r3_mteb.tasks.beir_folder import Document, read_queries, read_relevance, write_beir
from tests.conftest import CHAT_TEMPLATE, build_model, build_tokenizer, save_sentence_transformer
from tests.train.loops import byte_folder

ROOT = Path(__file__).resolve().parents[2]
STATINS = "statins and the heart pubmed ncbi abstract a study of statins"


def test_the_nearest_sentence_shares_the_rarest_words():
    texts = [
        "The river is long. The bridge is old and made of stone.",
        "The river is wide.",
        "The river sings at night.",
    ]
    sentences = Sentences(texts)
    assert sentences.best("which old bridge crosses the river", texts[0]) == "The bridge is old and made of stone."
    assert sentences.best("the long river", texts[0]) == "The river is long."
    assert sentences.best("anything", "no sentence here") == "no sentence here"
    assert cut("a b c d", 2) == "a b"


def test_key_terms_and_the_words_that_are_found_by_hand():
    sentences = Sentences(["river bridge bridge stone", "river wide", "river night"])
    assert sentences.key_terms("the river", "river bridge bridge stone", 2) == "bridge stone"
    assert sentences.key_terms("bridge", "river bridge bridge stone", 1) == "stone", "the query has the other"
    rare, common = np.log(4 / 2), np.log(4 / 4)
    assert common == 0
    share = sentences.found_in("the river", "stone wide river night", ["river bridge bridge stone", "a night"])
    assert share == pytest.approx(2 * rare / (3 * rare))
    assert np.isnan(sentences.found_in("the river", "river", ["river"]))


def test_rows_of_pairs():
    pairs = [("old bridge", "The river is long. The bridge is old and made of stone."), ("hill", "A hill.")]
    row = next(prose(pairs))
    assert row["reasoning"] == "The bridge is old and made of stone."
    assert next(code([("add", "def add(a, b):\n    return a + b\n")]))["reasoning"] == "def add(a, b):"


@pytest.fixture
def folder(tmp_path):
    corpus = [
        ("a", "", STATINS),
        ("b", "Bridges", "Stone bridges are old. They last for long."),
        ("c", "", "nothing of note is said here"),
    ]
    qrels = {"dev": [("q", "a", 2), ("q", "b", 1), ("p", "c", 1), ("n", "c", 0)]}
    queries = [("q", "old stone"), ("p", "note"), ("n", "nothing")]
    return write_beir(tmp_path / "set", corpus=corpus, queries=queries, qrels=qrels) or tmp_path / "set"


def test_a_row_per_relevant_document_with_its_title_and_sentence(folder):
    rows = list(judged(folder, "dev"))
    assert [(row["query_id"], row["positive_id"]) for row in rows] == [("p", "c"), ("q", "a"), ("q", "b")]
    assert rows[1]["reasoning"] == "statins and the heart. a study of statins"
    assert rows[2]["reasoning"] == "Bridges. Stone bridges are old."
    assert rows[2]["positive"] == "Bridges Stone bridges are old. They last for long."
    assert [row["positive_id"] for row in judged(folder, "dev", 1)] == ["c", "a"], "the most relevant first"


def test_the_gate_scores_as_pytrec_eval(folder):
    import pytrec_eval

    data = JudgedSplit(folder, "dev", None)
    assert data.ids == ["p", "q"], "a query without a relevant document has no score"
    data.vectors = unit(np.array([[1, 0], [0.6, 0.8], [0, 1]], np.float32))
    queries = unit(np.array([[1, 0.1], [0, 1]], np.float32))
    names = list(data.documents)
    run = {
        id_: {names[d]: float(s) for d, s in enumerate(row)}
        for id_, row in zip(data.ids, queries @ data.vectors.T, strict=True)
    }
    qrels = {"p": {"c": 1}, "q": {"a": 2, "b": 1}}
    wanted = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10"}).evaluate(run)
    np.testing.assert_allclose(data.ndcg(queries), [wanted[id_]["ndcg_cut_10"] for id_ in data.ids], atol=1e-6)


def test_titles_of_the_hits_stand_below_the_query(folder):
    data = JudgedSplit(folder, "dev", None)
    data.vectors = unit(np.array([[1, 0], [0.6, 0.8], [0, 1]], np.float32))
    hits = data.top_titles(unit(np.array([[0.1, 1], [1, 0]], np.float32)), 2)
    assert hits == [["nothing of note is said here", "Bridges"], [cut(data.documents["a"], 12), "Bridges"]]
    assert shown(data, hits)[0] == "note\nnothing of note is said here\nBridges"


def test_the_gate_of_a_tiny_model_has_every_way(folder, writer, tmp_path, monkeypatch):
    """The three ways with the hits' titles are measured beside Rocchio on the same hits, each by its own vectors."""
    base = Path(writer.model.name_or_path)
    how = Measure(dtype="float32", samples=0, store=tmp_path / "store", base=base)
    model = str(byte_folder(tmp_path / "model"))
    first = run(model, folder, "dev", how)
    table, compared = first["table"], first["differences"]
    assert "base, two examples" in first["added_words_found"]
    assert len(compared) == len(COMPARED) - 3, "all but those to the perceptron and to an earlier model's texts"
    at = f"{first['anchor_of_the_texts']:g}"
    by_hand = table["own"][at][0] - table["nothing"][at][0]
    assert compared["own minus nothing"][0] == pytest.approx(by_hand, abs=2e-4)
    assert run(model, folder, "dev", replace(how, anchor=2.0))["anchor_of_the_texts"] == 2
    monkeypatch.setattr(Engine, "embed", None)
    monkeypatch.setattr(Engine, "reason", None)
    assert run(model, folder, "dev", how)["table"] == table, "all of it was kept"
    with pytest.raises(TypeError):  # control: another length is another vector
        run(model, folder, "dev", replace(how, max_length=128))
    ways = {"title of the first hit", "titles of the first 3 hits", "own, the 3 titles in its prompt", "Rocchio, top 3"}
    ways |= {"own, HyDE", "full stops", "nothing", "base, two examples", "base, HyDE", "1 key term", "8 key terms"}
    ways |= {f"{name}, the 3 titles in its prompt" for name in ("direct", "another query's", "nothing")}
    assert ways < table.keys()
    assert all(set(table[way]) == {"alone", "0.2", "0.3", "0.5", "1", "2"} for way in ways)


def test_full_stops_are_as_many_as_the_tokens_of_the_own_text_and_gold_may_be_missing(folder, tmp_path, monkeypatch):
    """A query whose relevant document is not in the corpus scores 0, as pytrec_eval has it."""
    with (folder / "qrels" / "dev.tsv").open("a") as stream:
        stream.write("n\tgone\t1\n")
    asked = []
    monkeypatch.setattr("results.smol.gates.filler_text", lambda tokens: asked.append(tokens) or filler_text(tokens))
    found = run(str(byte_folder(tmp_path / "model")), folder, "dev", Measure(dtype="float32", samples=0))
    assert found["queries"] == 3
    assert np.mean(asked) == pytest.approx(found["tokens"])
    assert next(one for one in found["texts"] if one["query"] == "nothing")["gold"] == ""


def test_queries_of_one_text_have_their_own_relevant_documents(folder, tmp_path):
    with (folder / "qrels" / "dev.tsv").open("a") as stream:
        stream.write("r\tb\t1\n")
    with (folder / "queries.jsonl").open("a") as stream:
        stream.write(json.dumps({"_id": "r", "text": "old stone"}) + "\n")
    found = run(str(byte_folder(tmp_path / "model")), folder, "dev", Measure(dtype="float32", samples=0))
    assert [one["gold"] for one in found["texts"] if one["query"] == "old stone"] == [
        "statins and the heart",
        "Bridges",
    ]
    assert found["added_words_found"]["gold title"] == [1, 1, 1]


def test_a_reduced_corpus_keeps_every_judged_document_and_draws_the_others_once(folder):
    corpus = [Document(f"d{n}", "", f"text {n}") for n in range(40)]
    judgements = {"q": {"d7": 2, "d30": 0, "gone": 1}}
    kept = [document.id for document in reduced(corpus, judgements, 12)]
    assert len(kept) == 12
    assert {"d7", "d30"} < set(kept)
    assert kept == sorted(kept, key=lambda id_: int(id_[1:])), "in the order of the corpus"
    assert kept == [document.id for document in reduced(corpus, judgements, 12)]
    assert reduced(corpus, judgements, 40) == reduced(corpus, judgements, None) == corpus
    with pytest.raises(ValueError, match="--documents 1: 2 documents of the corpus are judged"):
        reduced(corpus, judgements, 1)
    with pytest.raises(ValueError, match="--documents 2: 3 documents"):
        JudgedSplit(folder, "dev", None, 2)


def test_the_text_of_another_is_not_the_neighbour_s_who_asks_about_the_same_article():
    articles = [number // 10 for number in range(120)]  # questions in the order of their ids, ten of each article
    given = [articles[int(text)] for text in of_another([str(number) for number in range(120)])]
    same = sum(one == other for one, other in zip(articles, given, strict=True))
    assert same < 20, "the next one's would be of the same article for 108"
    texts = of_another(["a", "b", "c"])
    assert sorted(texts) == ["a", "b", "c"]
    assert all(one != other for one, other in zip(texts, "abc", strict=True))
    assert texts == of_another(["a", "b", "c"]), "of a fixed seed"


def test_a_choice_among_samples_stands_beside_one_among_another_query_s(folder, tmp_path, monkeypatch):
    read, written, encode, think = [], [], SearchR3Encoder.encode_query, SearchR3Encoder.think

    def thinks(self, texts, **how):
        thoughts = think(self, texts, **how)
        if not how:  # not from `encode_query`
            written.append([thought.text for thought in thoughts])
        return thoughts

    monkeypatch.setattr(SearchR3Encoder, "think", thinks)
    monkeypatch.setattr(
        SearchR3Encoder,
        "encode_query",
        lambda self, texts, **how: read.append(how.get("reasoning")) or encode(self, texts, **how),
    )
    found = run(str(byte_folder(tmp_path / "model")), folder, "dev", Measure(dtype="float32", samples=3))
    assert len(written) == 5
    for first, second in written[1:4]:  # the samples, after the greedy texts
        assert first != second
        assert [second, first] in read
    choice = found["choice_anchored_1"]
    assert {"best of 3, anchored 1", "best of 3 of another's, anchored 1"} < found["table"].keys()
    assert choice["best minus mean of 3"][0] >= 0
    by_hand = choice["best minus mean of 3"][0] - choice["best minus mean of 3 of another's"][0]
    assert choice["own choice minus another's"][0] == pytest.approx(by_hand, abs=2e-4)
    assert found["added_words_found"].keys() == {"own", "another query's", "gold title"}
    assert found["added_words_found"]["gold title"][0] == 1, "a relevant document has the words of its title"


def test_the_texts_of_an_earlier_model_are_read_by_the_one_that_is_measured(folder, tmp_path):
    model = str(byte_folder(tmp_path / "model"))
    how = Measure(dtype="float32", samples=0, brief=True)
    first = run(model, folder, "dev", how)
    texts, asked = ["stone bridges", "the heart"], [one["query"] for one in first["texts"]]
    for one, text in zip(first["texts"], texts, strict=True):
        one["own"] = text
    (tmp_path / "first.json").write_text(json.dumps(first))
    found = run(model, folder, "dev", replace(how, against=tmp_path / "first.json"))
    data = JudgedSplit(folder, "dev", None, None)
    encoder = SearchR3Encoder(model, dtype="float32", max_length=how.max_length, max_reasoning_tokens=48, anchor=None)
    data.vectors = encoder.encode_document(list(data.documents.values()))
    for name, given in (("the earlier model's", texts), ("another query's, the earlier model's", texts[::-1])):
        score = data.ndcg(encoder.encode_query(asked, reasoning=given)) - [one["direct"] for one in first["texts"]]
        assert found["table"][name]["alone"] == interval(score), name
    assert {"own minus the earlier model's", "the earlier model's minus another query's, the earlier model's"} < found[
        "differences"
    ].keys()
    assert not any("earlier" in name for name in first["table"])


def test_the_gate_compares_with_an_earlier_model_and_with_a_perceptron(folder, tmp_path, monkeypatch):
    model = str(byte_folder(tmp_path / "model"))
    how = Measure(dtype="float32", samples=0, store=tmp_path / "store")
    first = run(model, folder, "dev", how)
    for one in first["texts"]:
        one["direct"], one["reason"] = one["direct"] - 0.25, one["reason"] - 0.5
    (tmp_path / "first.json").write_text(json.dumps(first))
    with (folder / "queries.jsonl").open("a") as stream:
        for id_ in ("s", "t", "u"):
            stream.write(json.dumps({"_id": id_, "text": "Old  stone" if id_ == "s" else f"query {id_}"}) + "\n")
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\ns\ta\t1\nt\tb\t1\nu\tc\t1\n")
    trained = []
    monkeypatch.setattr(
        "results.smol.gates.train_perceptron",
        lambda *given: trained.append(given[2].tolist()) or train_perceptron(*given),
    )
    with pytest.raises(ValueError, match="--train dev: all but 0 of its queries are measured here too"):
        run(model, folder, "dev", replace(how, train="dev"))
    found = run(model, folder, "dev", replace(how, against=tmp_path / "first.json", train="train"))
    assert trained == [[[1, 1], [2, 2]]], "the query that is measured, word for word, is left out"
    named = {name: values for name, values in found["differences"].items() if "the earlier model" in name}
    named = {name: values for name, values in named.items() if "the earlier model's" not in name}
    gain = found["table"]["own"][f"{found['anchor_of_the_texts']:g}"][0]
    assert named.pop("own of the earlier model minus direct")[0] == pytest.approx(gain - 0.5, abs=1e-4)
    assert named == {
        "direct minus direct of the earlier model": [0.25] * 3,
        "own minus own of the earlier model": [0.5] * 3,
        "own minus direct of the earlier model": pytest.approx(
            [found["table"]["own"][f"{found['anchor_of_the_texts']:g}"][n] + 0.25 for n in range(3)], abs=1e-4
        ),
    }
    assert "perceptron" in found["table"]
    assert "own minus perceptron" in found["differences"]
    assert "perceptron" not in first["table"]
    of_first = {"model": model, "start": None, "anchor_of_the_texts": first["anchor_of_the_texts"]}
    assert (first["earlier"], found["earlier"]) == ({}, of_first)
    old = {key: value for key, value in first.items() if key not in ("documents", "start")}
    (tmp_path / "old.json").write_text(json.dumps(old))
    with (folder / "corpus.jsonl").open("a") as stream:
        stream.write(json.dumps({"_id": "d", "title": "", "text": "not judged"}) + "\n")
    with pytest.raises(ValueError, match="Give a file of the same --task"):  # of old, of all documents
        run(model, folder, "dev", replace(how, against=tmp_path / "old.json", documents=3))
    first["texts"].pop()
    (tmp_path / "first.json").write_text(json.dumps(first))
    with pytest.raises(ValueError, match="Give a file of the same --task"):
        run(model, folder, "dev", replace(how, against=tmp_path / "first.json"))


def test_a_sentence_encoder_is_scored_on_the_same_queries_and_documents(folder, tmp_path):
    encoder = save_sentence_transformer(build_tokenizer(), tmp_path / "encoder", 0)
    whole = encoder_scores.scores(encoder, folder, "dev")
    assert (whole["queries"], whole["documents"]) == (2, 3)
    assert [one["query"] for one in whole["each"]] == JudgedSplit(folder, "dev", None).queries
    assert np.mean([one["direct"] for one in whole["each"]]) == pytest.approx(whole["ndcg_at_10"], abs=1e-4)
    assert (whole["max_length"], whole["commit"]) == (64, commit())
    assert encoder_scores.scores(encoder, folder, "dev", 1)["queries"] == 1
    write_beir(
        tmp_path / "more",
        corpus=[("a", "", STATINS), *((f"d{n}", "", f"other {n}") for n in range(5))],
        queries=[("q", "old stone")],
        qrels={"dev": [("q", "a", 1)]},
    )
    assert encoder_scores.scores(encoder, tmp_path / "more", "dev", None, 3)["documents"] == 3


def test_the_brief_gate_has_its_own_text_and_the_controls_of_one_pass(folder, tmp_path):
    model = str(byte_folder(tmp_path / "model"))
    how = Measure(dtype="float32", samples=0)
    brief, whole = run(model, folder, "dev", replace(how, brief=True)), run(model, folder, "dev", how)
    controls = {"another query's", "full stops", "nothing", "own, HyDE", "Rocchio, top 3"}
    assert brief["table"].keys() == {"direct", "own"} | controls
    assert brief["table"] == {name: whole["table"][name] for name in brief["table"]}
    assert brief["commit"] == commit()


def test_each_query_has_its_scores_and_hyde_is_the_direct_vector_of_query_and_own_text(folder, tmp_path):
    model = str(byte_folder(tmp_path / "model"))
    found = run(model, folder, "dev", Measure(dtype="float32", samples=0, brief=True))
    encoder = SearchR3Encoder(load(model, dtype="float32"), mode="direct", max_length=256)
    data = JudgedSplit(folder, "dev", None)
    data.vectors = encoder.encode_document(list(data.documents.values()))
    hyde = encoder.encode_query([f"{one['query']} {one['own']}" for one in found["texts"]])
    direct = encoder.encode_query(data.queries)
    used = found["anchor_of_the_texts"]
    gain = interval(data.ndcg(unit(direct + used * hyde)) - data.ndcg(direct))
    assert found["table"]["own, HyDE"][f"{used:g}"] == gain
    means = {name: np.mean([one[name] for one in found["texts"]]) for name in ("direct", "reason", "another")}
    own_minus_another = found["differences"]["own minus another query's"][0]
    assert means["reason"] - means["another"] == pytest.approx(own_minus_another, abs=1e-4)
    assert means["reason"] - means["direct"] == pytest.approx(found["table"]["own"][f"{used:g}"][0], abs=1e-4)


def test_documents_and_direct_vectors_may_be_those_of_the_model_at_the_start(folder, tmp_path):
    model, start = str(byte_folder(tmp_path / "model")), str(byte_folder(tmp_path / "start", num_hidden_layers=3))
    how = Measure(dtype="float32", samples=0, brief=True)
    own, mixed = run(model, folder, "dev", how), run(model, folder, "dev", replace(how, start=start))
    alone = run(start, folder, "dev", how)
    assert mixed["table"]["direct"] == alone["table"]["direct"] != own["table"]["direct"]
    assert [one["own"] for one in mixed["texts"]] == [one["own"] for one in own["texts"]]
    assert mixed["start"] == start
    assert "its own direct" in mixed["table"]
    assert -1 <= mixed["cosine_of_direct_vectors"] < 0.999
    same = run(model, folder, "dev", replace(how, start=model))
    assert same["cosine_of_direct_vectors"] == pytest.approx(1)
    assert same["table"].pop("its own direct")["alone"] == [0, 0, 0]
    assert same["table"] == own["table"]  # control


def test_the_samples_of_a_model_with_an_anchor_are_not_anchored_twice(tmp_path):
    checkpoint = load(str(byte_folder(tmp_path / "model")), device="cpu")
    checkpoint = replace(checkpoint, profile=replace(checkpoint.profile, anchor=0.5))
    direct, writers = encoders(checkpoint, 2, tmp_path / "store")
    assert [writer.anchor for writer in (direct, *writers)] == [None] * 3
    assert [writer.settings["seed"] for writer in writers] == [0, 1]
    assert SearchR3Encoder(checkpoint).anchor == 0.5  # control


def test_a_likelihood_and_an_interval_by_hand():
    documents = np.eye(2, dtype=np.float32)
    found = likelihood(np.array([[1, 0]], np.float32), documents, [[0, 1]])
    sharp = np.log(1 / (1 + np.exp(-20.0)))
    assert found[0] == pytest.approx((sharp + sharp - 20) / 2)
    assert interval(np.full(50, 0.25)) == [0.25, 0.25, 0.25]
    low, high = interval(np.array([1.0, -1.0] * 50))[1:]
    assert low < 0 < high


def test_queries_are_drawn_once_each_under_a_seed(tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = [{"query": f"q{n % 7}", "positive": f"d{n}"} for n in range(21)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first = drawn(file, 4)
    assert len(first) == 4
    assert first == drawn(file, 4)
    assert all(len(own) == 3 for own in first.values())
    assert digest("a") != digest("b")


def test_a_written_text_ends_with_a_sentence_or_at_its_most_words():
    seven, thirty = "One two three four five six seven.", " ".join(["word"] * 30) + "."
    assert cut_text(f"{seven}\n {seven} {seven}") == f"{seven} {seven}"
    assert cut_text(f"{seven} {thirty}") == f"{seven} " + " ".join(["word"] * 25)


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tokenizer = build_tokenizer(False)
    tokenizer.save_pretrained(folder)
    build_model("llama", vocab_size=len(tokenizer)).save_pretrained(folder)
    return BaseWriter(folder)


def test_a_text_depends_on_the_examples_and_not_on_the_other_queries(writer, monkeypatch):
    queries = ["river", "who built the old stone bridge", "mill"]
    assert all(said in writer.prompt(query) for query in queries for _, said in base_text.EXAMPLES)
    alone = [text for query in queries for text in writer.write([query], sample=False)]
    assert writer.write(queries, sample=False) == alone
    monkeypatch.setattr(base_text, "EXAMPLES", ())
    assert writer.write(queries, sample=False) != alone  # control


@pytest.fixture
def base(tmp_path):
    """A function that saves the tiny base with another chat template and without a padding token, and opens it."""

    def opened(template):
        tokenizer = build_tokenizer(False)
        tokenizer.pad_token, tokenizer.chat_template = None, template
        tokenizer.save_pretrained(tmp_path / "other")
        build_model("llama", vocab_size=len(tokenizer)).save_pretrained(tmp_path / "other")
        return BaseWriter(tmp_path / "other")

    return opened


REFUSES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"


@pytest.mark.parametrize("template", [REFUSES + CHAT_TEMPLATE, None], ids=["no system role", "no template"])
def test_a_base_without_padding_token_and_system_role_or_template_is_shown_the_same(template, base):
    other = base(template)
    shown = other.prompt("old mill")
    parts = [base_text.SYSTEM, *(part for example in base_text.EXAMPLES for part in example), "old mill"]
    places = [shown.rindex(part) if part == "old mill" else shown.index(part) for part in parts]
    assert places == sorted(places)
    assert "system" not in shown
    queries = ["river", "who built the old stone bridge"]
    alone = [text for query in queries for text in other.write([query], sample=False)]
    assert other.write(queries, sample=False) == alone


def test_a_base_does_not_think_where_it_can_be_told(base):
    opens = "{% if enable_thinking is not defined or enable_thinking %}<think>{% endif %}"
    assert not base(CHAT_TEMPLATE + opens).prompt("mill").endswith("<think>")


def test_a_text_does_not_depend_on_the_base_s_own_repetition_penalty(writer, monkeypatch):
    before = writer.write(["river", "mill"], sample=False)
    monkeypatch.setattr(writer.model.generation_config, "repetition_penalty", 50.0)
    assert writer.write(["river", "mill"], sample=False) == before


def test_rows_that_a_run_with_other_queries_left_are_refused_and_an_empty_text_is_no_target(tmp_path, monkeypatch):
    """Training refuses a row whose `reasoning` is empty."""
    rows = [{"query": f"q{n}", "positive": f"d{n}", "reasoning": "target"} for n in range(6)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(base_text, "BATCH", 2)
    monkeypatch.setattr(BaseWriter, "__init__", lambda self, base, device: None)
    monkeypatch.setattr(BaseWriter, "identity", lambda self: "one")
    monkeypatch.setattr(
        BaseWriter, "write", lambda self, queries: ["" if "q3" in query else "a text" for query in queries]
    )
    output = tmp_path / "written.jsonl"
    command = ["base_text", "--base", "b", "--data", str(tmp_path), "--output", str(output), "--queries", "a=6"]
    monkeypatch.setattr("sys.argv", command)
    base_text.main()
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert {row["query"]: row.get("reasoning") for row in found} == {
        f"q{n}": None if n == 3 else "a text" for n in range(6)
    }
    lines = output.read_text().splitlines()
    left = tmp_path / "written.jsonl.unfinished"
    first = json.dumps({"writer": "one"})
    left.write_text("".join(f"{line}\n" for line in [first, *lines[2:4], *lines[:2]]))
    with pytest.raises(ValueError, match=r"written.jsonl.unfinished was left by a run with other rows"):
        base_text.main()
    left.write_text("".join(f"{line}\n" for line in [first, *lines[:3]]))
    with monkeypatch.context() as patch:
        patch.setattr(BaseWriter, "identity", lambda self: "another")
        with pytest.raises(ValueError, match=r"was left by a run with another base"):
            base_text.main()
    base_text.main()  # control
    assert output.read_text().splitlines() == lines


def test_the_identity_of_a_writer_is_that_of_its_weights_and_examples(writer, monkeypatch):
    before = writer.identity()
    with monkeypatch.context() as patch:
        patch.setattr(base_text, "EXAMPLES", base_text.EXAMPLES[:1])
        assert writer.identity() != before
    weight = writer.model.lm_head.weight.data
    weight[0, 0] += 1
    changed = writer.identity()
    weight[0, 0] -= 1
    assert changed != before
    assert writer.identity() == before  # control


def test_a_killed_run_goes_on_and_parts_share_the_queries(writer, tmp_path, monkeypatch, capsys):
    rows = [{"query": f"q{n % 5}", "positive": f"d{n}", "reasoning": "target"} for n in range(10)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(base_text, "BATCH", 2)
    calls = []

    def write(self, queries):
        if len(calls) == 1:
            calls.append("killed")
            raise KeyboardInterrupt
        calls.append(queries)
        return [f"about {query}" for query in queries]

    monkeypatch.setattr(BaseWriter, "write", write)
    monkeypatch.setattr(BaseWriter, "__init__", lambda self, base, device: None)
    monkeypatch.setattr(BaseWriter, "identity", lambda self: "one")
    output = tmp_path / "written.jsonl"
    command = ["base_text", "--base", "b", "--data", str(tmp_path), "--output", str(output), "--queries", "a=9"]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(KeyboardInterrupt):
        base_text.main()
    assert not output.exists(), "what is there is complete"
    base_text.main()
    assert len(calls) == 4, "the first batch is not written again"
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["reasoning"] for row in found] == [f"about {row['query']}" for row in found]
    assert {row["query"] for row in found} == {f"q{n}" for n in range(5)}
    shared = []
    for part in ("0", "1"):
        to = tmp_path / f"part{part}.jsonl"
        monkeypatch.setattr("sys.argv", [*command[:6], str(to), *command[7:], "--part", part, "--of", "2"])
        base_text.main()
        shared += [json.loads(line)["query"] for line in to.read_text().splitlines()]
    assert sorted(shared) == [f"q{n}" for n in range(5)]


class Known:
    """The documents stand at these places; every query is nearest to the last one, then to the second."""

    def encode_document(self, texts):
        assert len(texts) == 3
        return unit(np.array([[1, 0], [0.6, 0.8], [0, 1]], np.float32))

    def encode_query(self, texts):
        return unit(np.array([[0.1, 1]] * len(texts), np.float32))


def test_queries_get_the_titles_of_their_hits_and_keep_their_judgements(folder, tmp_path):
    found = with_hits(folder, ["dev"], Known(), tmp_path / "hits")
    queries = {query.id: query.text for query in read_queries(tmp_path / "hits")}
    assert queries["p"].split("\n")[1:] == ["nothing of note is said here", "Bridges", STATINS]
    given = {query: grades for query, grades in read_relevance(folder, "dev").items() if query in queries}
    assert read_relevance(tmp_path / "hits", "dev") == given
    assert found == {"dev": 0.5}, "the last document is relevant to one of the two"


def test_rows_get_the_titles_of_their_hits_and_those_that_judge_are_left_out(folder):
    """A training compares rows with the queries that judge it; one with titles below it would pass."""
    texts = ("nothing", "of another corpus", "old stone", "Note ?")  # the last two are judged
    found = rows_with_hits(folder, ["dev"], Known(), [{"query": text, "reasoning": "r"} for text in texts])
    titled = f"nothing\nnothing of note is said here\nBridges\n{STATINS}"
    assert found == [{"query": titled, "reasoning": "r"}, {"query": "of another corpus", "reasoning": "r"}]
    with pytest.raises(ValueError, match="none of 1 rows has a query of"):
        rows_with_hits(folder, ["dev"], Known(), found[1:])


@pytest.mark.parametrize("goal", ["mini", "smol"])
def test_make_asks_for_the_data_before_it_installs_anything(goal, tmp_path):
    def made(*given):
        command = ["make", "--dry-run", goal, f"VENV={tmp_path / 'none'}", *given]
        # Without what a surrounding make hands down: its variables, and the folder that it says it enters.
        path = {"PATH": os.environ["PATH"]}
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=path, timeout=60)

    asked = made()
    assert asked.returncode != 0
    assert asked.stdout == ""
    assert f"DATA is not set: name the folder, as in make {goal} DATA=../shared/data" in asked.stderr
    control = made("DATA=somewhere")
    assert control.returncode == 0
    assert "pip install" in control.stdout
    assert f"results/{goal}/{goal}.py --data somewhere" in control.stdout


def test_a_task_is_a_folder_and_a_split(tmp_path, monkeypatch, capsys):
    assert task("runs/a:b/c:dev") == (Path("runs/a:b/c"), "dev")
    for script in (gates, encoder_scores):
        monkeypatch.setattr("sys.argv", ["x", "--model", "m", "--task", "folder", "--json", str(tmp_path / "f")])
        with pytest.raises(SystemExit):
            script.main()
        assert "'folder' is not FOLDER:SPLIT, such as" in capsys.readouterr().err


def test_the_anchor_is_the_weight_that_gains_most_or_0():
    own = {"alone": [0.5], "0.2": [0.01], "0.3": [0.03], "0.5": [0.02], "1": [-0.1], "2": [-0.2]}
    assert best_anchor({"own": own}) == 0.3
    assert best_anchor({"own": {weight: [-gain[0]] for weight, gain in own.items() if weight < "1"} | {
        "1": [-1.0], "2": [0.0]}}) == 0  # fmt: skip


def test_samples_are_those_that_gained_and_lost_most():
    scores = {"b": (0.1, 0.4), "a": (0.1, 0.4), "c": (0.0, 0.9), "d": (0.5, 0.5), "e": (0.5, 0.4), "f": (0.9, 0.1)}
    texts = [{"query": q, "own": f"{q}|\n{q}", "direct": d, "reason": r} for q, (d, r) in scores.items()]
    found = samples.chosen(texts, 2)
    assert {name: [one["query"] for one in rows] for name, rows in found.items()} == {
        "Helped": ["c", "a"],
        "Hurt": ["f", "e"],
    }
    given = {"model": "m", "task": "t:dev", "queries": 6, "anchor_of_the_texts": 0.3, "texts": texts}
    shown = samples.page(given, "FILE", 2)
    assert "Of 6 queries 3 gained and 2 lost: here are the 2 that gained most" in shown
    assert "| c | c\\| c | 0.000 | 0.900 |" in shown
