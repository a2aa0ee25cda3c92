import json
import random
import zlib

import numpy as np
import pytest

from search_r3_mteb.tasks.beir_folder import write_beir
from train.config.data import DataSettings, DecontaminationSettings, JudgedSetSettings, MiningSettings, SourceSettings
from train.data.hard_negatives import corpus_of, main, mine, mine_sources
from train.data.jsonl import write_rows
from train.data.mixing import load_training_data
from train.data.rows import TrainingRow
from train.data.sources import all_rows, open_source


class Angles:
    """Texts "name@0.8" have cosine 0.8 with every query; queries are the first axis."""

    def __init__(self):
        self.encoded = []

    def encode_query(self, texts, *, batch_size):
        self.encoded.append(("query", tuple(texts), batch_size))
        return np.array([[3.0, 0.0]] * len(texts))  # not of unit length: cosine is meant

    def encode_document(self, texts, *, batch_size):
        self.encoded.append(("document", tuple(texts), batch_size))
        cosines = [float(text.rsplit("@", 1)[1]) for text in texts]
        return np.array([[c, np.sqrt(1 - c * c)] for c in cosines])


class Hashing:
    """A bag of words, hashed: texts that share words are near."""

    def encode_query(self, texts, *, batch_size):
        vectors = np.zeros((len(texts), 64))
        for row, text in enumerate(texts):
            for word in text.lower().split():
                vectors[row, zlib.crc32(word.encode()) % 64] += 1
        return vectors

    encode_document = encode_query


CORPUS = {f"d{i}": text for i, text in enumerate(["a@0.95", "b@0.89", "c@0.86", "d@0.85", "e@0.5", "f@0.1", "g@-0.4"])}


def row(positive="good@0.9", **keywords):
    return TrainingRow(query="q", positive=positive, source="s", **keywords)


def negatives(rows=None, encoder=None, corpus=CORPUS, seed=0, **settings):
    mined, report = mine(rows or [row()], encoder or Angles(), MiningSettings(**settings), corpus=corpus, seed=seed)
    return [r.negatives for r in mined], report


def test_the_relative_margin_drops_what_may_be_an_unjudged_positive():
    """The positive has 0.9, so everything above 0.855 goes: 0.95, 0.89 and 0.86."""
    assert negatives(count=2, relative_margin=0.05)[0] == [("d@0.85", "e@0.5")]
    assert negatives(count=2, relative_margin=0.0)[0] == [("b@0.89", "c@0.86")]  # only 0.95 beats the positive
    assert negatives(count=9, relative_margin=0.05)[0] == [("d@0.85", "e@0.5", "f@0.1", "g@-0.4")]


def test_absolute_margin_maximum_score_and_skipped_ranks():
    assert negatives(count=1, relative_margin=0.0, absolute_margin=0.3)[0] == [("e@0.5",)]
    assert negatives(count=1, relative_margin=0.0, max_score=0.3)[0] == [("f@0.1",)]
    assert negatives(count=1, relative_margin=0.05, skip_top=1)[0] == [("e@0.5",)]


def test_a_negative_positive_cosine_keeps_its_margin():
    """0.05 of a cosine of -0.2 is still a margin below it: -0.21."""
    found, _ = negatives([row("good@-0.2")], count=3, relative_margin=0.05)
    assert found == [("g@-0.4",)]


def test_rows_with_fewer_negatives_stay_and_are_counted():
    rows = [row(), TrainingRow(query="r", positive="bad@-0.9"), TrainingRow(query="s", positive="fine@0.99")]
    found, report = negatives(rows, count=3)
    assert [len(n) for n in found] == [3, 0, 3]
    assert (report.rows, report.negatives, report.complete, report.without) == (3, 6, 2, 1)
    assert report.documents == 10
    assert report.positive_cosine == pytest.approx((0.9 + 0.99) / 2, abs=1e-6)
    assert report.negative_cosine < 0.9
    assert report.line("x") == "mining: x: 6 negatives for 3 rows among 10 documents; 2 rows have all, 1 none"


def test_other_judged_documents_of_the_query_are_no_negatives():
    """d@0.85 is relevant as well. Its cosine is the lower one, so margins are taken from it: 0.8075."""
    judged = row(relevant=(("d3", 1), ("unknown", 1)))
    found, _ = negatives([judged], count=2)
    assert found == [("e@0.5", "f@0.1")]
    both = [row(), row("d@0.85")]  # the same, said by two rows
    assert negatives(both, count=2)[0] == [("e@0.5", "f@0.1")] * 2


def test_order_and_fields_of_the_rows_are_kept():
    rows = [
        TrainingRow(query=f"q{i}", positive="good@0.9", positive_id="x", reasoning=f"r{i}", negatives=("old",))
        for i in range(5)
    ]
    mined, _ = mine(rows, Angles(), MiningSettings(count=1), corpus=CORPUS)
    assert [(r.query, r.reasoning, r.positive_id) for r in mined] == [(f"q{i}", f"r{i}", "x") for i in range(5)]
    assert {r.negatives for r in mined} == {("d@0.85",)}


def test_each_text_is_encoded_once_with_the_batch_size_that_was_set():
    encoder = Angles()
    negatives([row(), row()], encoder, count=1, batch_size=7)
    kinds = [(kind, len(texts), len(set(texts)), size) for kind, texts, size in encoder.encoded]
    assert sorted(kinds) == [("document", 8, 8, 7), ("query", 1, 1, 7)]


def test_the_random_strategy_is_seeded_and_leaves_the_global_generator_alone():
    rows = [TrainingRow(query=f"q{i}", positive="good@0.99") for i in range(20)]
    corpus = {str(i): f"n{i}@{i / 100}" for i in range(60)}
    random.seed(1)
    expected = random.random()
    random.seed(1)
    first, _ = negatives(rows, corpus=corpus, count=2, strategy="random", depth=40, seed=0)
    assert random.random() == expected
    again, _ = negatives(rows, corpus=corpus, count=2, strategy="random", depth=40, seed=0)
    other, _ = negatives(rows, corpus=corpus, count=2, strategy="random", depth=40, seed=1)
    assert first == again != other
    assert len(set(first)) > 1


def test_vectors_that_are_no_numbers_stop():
    class Broken(Angles):
        def encode_query(self, texts, *, batch_size):
            return np.full((len(texts), 2), np.nan)

    with pytest.raises(ValueError, match="NaN or infinity"):
        negatives(encoder=Broken(), count=1)
    with pytest.raises(ValueError, match="no rows to mine"):
        mine([], Angles(), MiningSettings(), corpus=CORPUS)


@pytest.fixture
def pairs(tmp_path):
    topics = ["red apple", "red cherry", "green apple", "blue sea", "blue sky", "green sea"]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"query": t, "positive": f"about the {t}"}) + "\n" for t in topics))
    return SourceSettings(kind="jsonl", path=str(path), weight=2.5)


def test_mined_sources_replace_the_originals(pairs, tmp_path):
    world = SourceSettings(kind="hopworld", documents=500, hops=(1,))
    data = DataSettings(sources=(pairs, world), hard_negatives=2, mining=MiningSettings(count=2, relative_margin=0.0))
    mined = mine_sources(data, Hashing(), tmp_path / "mined")
    assert [(s.kind, s.label, s.weight) for s in mined.sources] == [
        ("jsonl", "pairs.jsonl", 2.5),
        ("jsonl", "hopworld-1-traces", 1.0),
    ]
    assert mined.sources[1].decontaminate == ()
    originals = {row.query: row for row in all_rows(open_source(pairs))}
    rows = list(all_rows(open_source(mined.sources[0])))
    assert len(rows) == 6
    assert all(r.positive == originals[r.query].positive and len(r.negatives) == 2 for r in rows)
    assert all(r.positive not in r.negatives for r in rows)
    assert "about the red cherry" in next(r for r in rows if r.query == "red apple").negatives
    hop = next(all_rows(open_source(mined.sources[1])))
    original = next(all_rows(open_source(world)))
    assert (hop.query, hop.reasoning, hop.positive_id) == (original.query, original.reasoning, original.positive_id)
    batch = load_training_data(mined, batch_size=32, seed=0).next_batch()
    assert max(len(r.negatives) for r in batch) == 2
    report = json.loads((tmp_path / "mined" / "report.json").read_text())
    assert report["sources"]["pairs.jsonl"]["negatives"] == 12


def test_a_resumed_run_takes_what_was_mined_before(pairs, tmp_path):
    data = DataSettings(sources=(pairs,), hard_negatives=2, mining=MiningSettings(count=2))
    first = mine_sources(data, Hashing(), tmp_path / "mined")

    class Gone:
        """A model that was trained meanwhile must not be asked."""

    assert mine_sources(data, Gone(), tmp_path / "mined") == first
    other = DataSettings(sources=(pairs,), hard_negatives=2, mining=MiningSettings(count=1))
    with pytest.raises(AttributeError):
        mine_sources(other, Gone(), tmp_path / "mined")
    with pytest.raises(ValueError, match=r"Add a \[data.mining\] section"):
        mine_sources(DataSettings(sources=(pairs,)), Hashing(), tmp_path / "mined")


def test_the_whole_corpus_of_a_beir_folder_is_searched(tmp_path):
    write_beir(
        tmp_path / "set",
        corpus=[("1", "Red", "apple"), ("2", "", "red apple pie"), ("3", "", "blue sky")],
        queries=[("q", "red apple")],
        qrels={"train": [("q", "1", 1)]},
    )
    source = SourceSettings(kind="beir", path=str(tmp_path / "set"))
    rows = list(all_rows(open_source(source)))
    corpus = corpus_of(source, rows)
    assert corpus == {"1": "Red apple", "2": "red apple pie", "3": "blue sky"}
    mined, _ = mine(rows, Hashing(), MiningSettings(count=1), corpus=corpus)
    assert mined[0].negatives == ("red apple pie",)


def test_written_rows_are_read_without_a_mapping(tmp_path):
    rows = [
        TrainingRow("q", "p", "id", ("n1", "n2"), "because", "s", "q7"),
        TrainingRow("r", "p2", source="s"),
    ]
    write_rows(rows, tmp_path / "x.jsonl")
    back = list(all_rows(open_source(SourceSettings(kind="jsonl", path=str(tmp_path / "x.jsonl"), name="s"))))
    assert [(r.query, r.positive, r.positive_id, r.negatives, r.reasoning, r.query_id) for r in back] == [
        ("q", "p", "id", ("n1", "n2"), "because", "q7"),
        ("r", "p2", None, (), None, None),
    ]


def test_search_r3_encoders_mine_through_the_command(tiny_folder, pairs, tmp_path, capsys):
    (tmp_path / "x.toml").write_text(
        f'[model]\npath = "m"\n[data]\nhard_negatives = 2\n[data.mining]\ncount = 2\nrelative_margin = 0.0\n'
        f'[[data.sources]]\nkind = "jsonl"\npath = "{pairs.path}"\n'
    )
    main(["--config", str(tmp_path / "x.toml"), "--model", str(tiny_folder), "--output", str(tmp_path / "mined")])
    assert "negatives for 6 rows among 6 documents" in capsys.readouterr().out
    texts = {row.positive for row in all_rows(open_source(pairs))}
    for mined in all_rows(
        open_source(SourceSettings(kind="jsonl", path=str(tmp_path / "mined" / "pairs.jsonl.jsonl")))
    ):
        assert set(mined.negatives) <= texts - {mined.positive}


def test_mined_negatives_do_not_undo_decontamination(pairs, tmp_path):
    write_beir(
        tmp_path / "held",
        corpus=[("1", "", "elsewhere")],
        queries=[("t", "Red apple?")],
        qrels={"test": [("t", "1", 1)]},
    )
    held_out = JudgedSetSettings(kind="beir", path=str(tmp_path / "held"), split="test")
    data = DataSettings(
        sources=(pairs,), evaluation=(held_out,), hard_negatives=1, mining=MiningSettings(count=1, relative_margin=0)
    )
    mined = mine_sources(data, Hashing(), tmp_path / "mined")
    assert mined.decontamination == DecontaminationSettings()
    rows = load_training_data(mined, batch_size=10, seed=0).next_batch()
    assert "red apple" not in {r.query for r in rows}
