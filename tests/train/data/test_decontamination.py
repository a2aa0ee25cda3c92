import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_r3_mteb.near_duplicates import DuplicateIndex, Signer, words
from search_r3_mteb.tasks.beir_folder import write_beir
from train.config.data import DataSettings, DecontaminationSettings, JudgedSetSettings, SourceSettings
from train.data.decontamination import Decontaminator, decontaminator_for, evaluation_texts, main, roles_of, scan
from train.data.mixing import load_training_data
from train.data.rows import TrainingRow
from train.data.sources import open_source
from train.plan.first_rows import drops_of, read_first

SIGNER = Signer(3)


def index_of(*texts, threshold=0.8):
    return DuplicateIndex([SIGNER.sign(text) for text in texts], threshold)


def find(text, *texts, threshold=0.8):
    return index_of(*texts, threshold=threshold).find(SIGNER.sign(text))


# --- near duplicates --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What is X-ray?", ["what", "is", "x", "ray"]),
        ("Ｗhat  IS\n\tx_ray", ["what", "is", "x", "ray"]),  # full-width W, underscore
        ("東京は", ["東", "京", "は"]),
        ("abc東京123", ["abc", "東", "京", "123"]),
        ("Straße ﬁne", ["strasse", "fine"]),
        ("?!…", []),
        ("", []),
    ],
)
def test_words_ignore_case_punctuation_and_compatibility_forms(text, expected):
    assert words(text) == expected


@pytest.mark.parametrize(
    ("left", "right"),
    [("What is an X-ray?", "what is an x ray"), ("+ - *", "+-*"), ("Ｗhat is", "What is"), ("one", "ONE!")],
)
def test_equal_after_normalisation_is_exact(left, right):
    twin = find(left, "something else", right)
    assert (twin.number, twin.similarity, twin.exact) == (1, 1.0, True)


def test_signs_alone_are_compared_as_signs():
    assert find("+-*", "+-/") is None


def test_near_duplicates_by_hand():
    """Ten words have eight shingles; another last word changes one: 7 shared of 9, Jaccard 0.777..."""
    text = "a b c d e f g h i j"
    near = "a b c d e f g h i x"
    assert find(near, text, threshold=0.77).similarity == pytest.approx(7 / 9)
    assert find(near, text, threshold=0.78) is None
    assert find("a b c d e f g h i j k", text).similarity == pytest.approx(8 / 9)
    assert find("j i h g f e d c b a", text) is None  # the same words in another order


def test_the_most_similar_wins_and_the_earliest_among_equals():
    twin = find("a b c d e f g h i j", "a b c d e f g h i j k l", "a b c d e f g h i j k", "a b c d e f g h i j z")
    assert twin.number == 1


def brute_force(text, texts, threshold):
    def shingles(value):
        tokens = words(value)
        width = min(3, len(tokens))
        return {tuple(tokens[i : i + width]) for i in range(len(tokens) - width + 1)} if tokens else set()

    mine, best = shingles(text), 0.0
    for other in texts:
        theirs = shingles(other)
        if words(text) and words(text) == words(other):
            return 1.0
        if mine and theirs:
            best = max(best, len(mine & theirs) / len(mine | theirs))
    return best if best >= threshold - 1e-12 else None


@settings(max_examples=150)
@given(st.integers(0, 10**9), st.sampled_from([0.3, 0.5, 0.7, 0.8, 1.0]))
def test_the_index_finds_what_comparing_with_every_text_finds(seed, threshold):
    rng = random.Random(seed)

    def text():
        return " ".join(rng.choice("abcd") for _ in range(rng.randint(1, 9)))

    texts = [text() for _ in range(12)]
    index = index_of(*texts, threshold=threshold)
    for query in (text(), texts[0] + " a", texts[1][2:]):
        twin, expected = index.find(SIGNER.sign(query)), brute_force(query, texts, threshold)
        assert (twin and twin.similarity) == (pytest.approx(expected) if expected else None)


def test_an_empty_index_finds_nothing():
    assert DuplicateIndex([], 0.8).find(SIGNER.sign("a b c")) is None
    assert DuplicateIndex([SIGNER.sign("?")], 0.8).find(SIGNER.sign("a b c")) is None
    with pytest.raises(ValueError, match="a Jaccard similarity is above 0"):
        DuplicateIndex([], 0)
    with pytest.raises(ValueError, match="at least one word"):
        Signer(0)


# --- decontamination --------------------------------------------------------------------------------------------------

QUERY = "which proteins bind to the receptor of the immune cells"
DOCUMENT = "The receptor is bound by several proteins that were found in immune cells of mice."


@pytest.fixture
def held_out(tmp_path):
    """A BEIR folder with one judged test query, one train query, and two documents."""
    folder = tmp_path / "held"
    write_beir(
        folder,
        corpus=[("d1", "Binding", DOCUMENT), ("d2", "", "another document about nothing in particular")],
        queries=[("t1", QUERY), ("t2", "a query of the training split that may be trained on")],
        qrels={"test": [("t1", "d1", 1)], "train": [("t2", "d2", 1)]},
    )
    return JudgedSetSettings(kind="beir", path=str(folder), split="test")


@pytest.fixture
def pairs(tmp_path):
    """Three clean rows, an exact and a near copy of the query, and a copy of the document."""
    rows = [{"query": f"harmless question {i}", "positive": f"harmless answer {i}"} for i in range(3)]
    rows += [
        {"query": QUERY.upper() + "?", "positive": "x"},
        {"query": QUERY + " today", "positive": "y"},
        {"query": "z", "positive": f"binding {DOCUMENT}"},
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceSettings(kind="jsonl", path=str(path))


def test_only_what_the_split_judges_is_an_evaluation_text(held_out):
    assert list(evaluation_texts(held_out, "queries")) == [("t1", QUERY)]
    assert [id_ for id_, _ in evaluation_texts(held_out, "documents")] == ["d1"]
    assert dict(evaluation_texts(held_out, "documents"))["d1"] == f"Binding {DOCUMENT}"


def test_rows_that_repeat_evaluation_texts_are_dropped_and_counted(held_out, pairs):
    data = load_training_data(DataSettings(sources=(pairs,), evaluation=(held_out,)), batch_size=9, seed=0)
    rows = data.next_batch()
    assert {row.query for row in rows} == {f"harmless question {i}" for i in range(3)}
    (statistics,) = data.statistics()
    assert (statistics.exact_duplicates, statistics.near_duplicates, statistics.epoch) == (2, 1, 2)  # counted once
    report = data.decontamination_report()
    assert report.dropped == 3
    assert report.sources["pairs.jsonl"].rows == 6


def test_negative_control_nothing_is_dropped_without(held_out, pairs):
    off = DataSettings(sources=(pairs,), evaluation=(held_out,), decontamination=DecontaminationSettings(enabled=False))
    assert len({row.query for row in load_training_data(off, batch_size=6, seed=0).next_batch()}) == 6
    strict = DataSettings(
        sources=(pairs,), evaluation=(held_out,), decontamination=DecontaminationSettings(threshold=1.0)
    )
    assert scan(strict).sources["pairs.jsonl"].near == 0


def test_the_report_shows_examples_and_survives_json(held_out, pairs, tmp_path):
    report = scan(DataSettings(sources=(pairs,), evaluation=(held_out,)))
    report.write(tmp_path / "report.json")
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved["dropped"] == 3
    assert saved["evaluations"] == {"held/test": {"documents": 1, "queries": 1}}
    counts = saved["sources"]["pairs.jsonl"]
    assert (counts["rows"], counts["exact"], counts["near"]) == (6, 2, 1)
    exact, near, document = counts["examples"]
    assert exact == {
        "exact": True,
        "similarity": 1.0,
        "part": "query",
        "text": QUERY.upper() + "?",
        "evaluation": "held/test",
        "role": "queries",
        "id": "t1",
        "evaluation_text": QUERY,
    }
    assert (near["exact"], near["similarity"]) == (False, round(8 / 9, 4))
    assert (document["part"], document["role"], document["id"]) == ("positive", "documents", "d1")
    assert next(iter(report.lines())) == (
        "decontamination: pairs.jsonl: 6 rows, 2 exact and 1 near duplicates of evaluation texts dropped (50.00%): "
        "2 repeat judged queries, 1 relevant documents"
    )


def test_counts_survive_a_resume(held_out, pairs):
    settings_ = DataSettings(sources=(pairs,), evaluation=(held_out,))
    whole = load_training_data(settings_, batch_size=2, seed=0)
    part = load_training_data(settings_, batch_size=2, seed=0)
    part.next_batch()
    resumed = load_training_data(settings_, batch_size=2, seed=0)
    resumed.load_state_dict(json.loads(json.dumps(part.state_dict())))
    for _ in range(3):
        whole.next_batch()
    for _ in range(2):
        resumed.next_batch()
    assert resumed.decontamination_report().to_dict() == whole.decontamination_report().to_dict()


def test_beir_rows_may_repeat_documents_but_not_queries(held_out, tmp_path):
    assert roles_of(SourceSettings(kind="beir", path="x")) == ("queries",)
    assert roles_of(SourceSettings(kind="jsonl", path="x")) == ("queries", "documents")
    assert roles_of(SourceSettings(kind="hopworld")) == ()
    train = SourceSettings(kind="beir", path=held_out.path, split="train")
    report = scan(DataSettings(sources=(train,), evaluation=(held_out,)))
    assert report.dropped == 0  # t2 is trained on, though its document is in the evaluation corpus
    both = SourceSettings(kind="beir", path=held_out.path, split="train", decontaminate=("queries", "documents"))
    assert scan(DataSettings(sources=(both,), evaluation=(held_out,))).dropped == 0  # d2 is not judged in test


def test_pairs_over_the_corpus_of_the_test_are_trained_on_where_the_split_judges_others(held_out, tmp_path):
    """Training and test of one's own share a corpus: only what the test judges relevant is given away."""
    path = tmp_path / "own.jsonl"
    shared = {"query": "a harmless question", "positive": "another document about nothing in particular"}
    given_away = {"query": "another question", "positive": f"Binding {DOCUMENT}"}
    path.write_text(f"{json.dumps(shared)}\n{json.dumps(given_away)}\n")
    settings_ = DataSettings(sources=(SourceSettings(kind="jsonl", path=str(path)),), evaluation=(held_out,))
    data = load_training_data(settings_, batch_size=2, seed=0)
    assert {row.query for row in data.next_batch()} == {"a harmless question"}
    path.write_text(f"{json.dumps(given_away)}\n{json.dumps({'query': QUERY, 'positive': 'clean'})}\n")
    with pytest.raises(
        ValueError,
        match=r"none of its 2 rows .* 2 repeat evaluation texts \(1 repeat judged queries, 1 relevant documents\)"
        r'.* decontaminate = \["queries"\]',
    ):
        load_training_data(settings_, batch_size=2, seed=0).next_batch()


def test_the_dry_run_counts_drops_among_the_first_rows(held_out, pairs):
    settings_ = DataSettings(sources=(pairs,), evaluation=(held_out,))
    first = [read_first(open_source(pairs), pairs, settings_)]
    [line] = drops_of(first, settings_)
    assert "3 of its first 6 rows repeat evaluation texts" in line
    assert "(2 repeat judged queries, 1 relevant documents)" in line
    assert 'decontaminate = ["queries"] in the source' in line
    assert not [*drops_of(first, DataSettings(sources=(pairs,)))]
    assert [*drops_of(first, settings_, 0.5)] == [line]
    assert not [*drops_of(first, settings_, 0.51)]


def test_sets_of_one_name_are_counted_together():
    one, two = (JudgedSetSettings(kind="hopworld", hops=(hops,)) for hops in (1, 2))
    counts = [
        Decontaminator(sets, DecontaminationSettings(), ("queries",)).evaluations
        for sets in ((one,), (two,), (one, two))
    ]
    assert sum(c["hopworld/dev"]["queries"] for c in counts[:2]) == counts[2]["hopworld/dev"]["queries"]


def test_further_evaluation_sets_count_as_well(held_out, pairs):
    data = DataSettings(sources=(pairs,), decontamination=DecontaminationSettings(against=(held_out,)))
    assert scan(data).dropped == 3
    assert decontaminator_for(DataSettings(sources=(pairs,))) is None
    assert "no evaluation set is named" in next(iter(scan(DataSettings(sources=(pairs,))).lines()))


def test_hopworld_test_queries_are_no_training_queries():
    """By construction; checked exactly, for every hop count. By default they are not compared, as the report says."""
    dev, test = (JudgedSetSettings(kind="hopworld", split=split, hops=(1, 2, 3, 4)) for split in ("dev", "test"))
    checker = Decontaminator((dev, test), DecontaminationSettings(threshold=1.0), ("queries",))
    assert checker.evaluations["hopworld/test"]["queries"] > 500
    source = SourceSettings(kind="hopworld", hops=(1, 2, 3), decontaminate=("queries",), traces=False)
    data = DataSettings(
        sources=(source,), evaluation=(dev, test), decontamination=DecontaminationSettings(threshold=1.0)
    )
    assert scan(data).sources["hopworld-123"].exact == 0
    assert list(
        scan(DataSettings(sources=(SourceSettings(kind="hopworld", documents=500),), evaluation=(dev,))).lines()
    ) == ["decontamination: hopworld-12-traces: not compared with anything (decontaminate)"]


def test_the_command_writes_the_report(held_out, pairs, tmp_path, capsys):
    (tmp_path / "x.toml").write_text(
        f'[model]\npath = "m"\n[[data.sources]]\nkind = "jsonl"\npath = "{pairs.path}"\n'
        f'[[data.evaluation]]\nkind = "beir"\npath = "{held_out.path}"\nsplit = "test"\n'
    )
    main(["--config", str(tmp_path / "x.toml"), "--output", str(tmp_path / "r.json"), "--set", "data.on_bad_row=skip"])
    assert "2 exact and 1 near" in capsys.readouterr().out
    assert json.loads((tmp_path / "r.json").read_text())["dropped"] == 3


def test_rows_are_compared_by_query_and_positive_not_by_negatives(held_out):
    checker = Decontaminator((held_out,), DecontaminationSettings(), ("queries", "documents"))
    row = TrainingRow(query="clean", positive="clean too", negatives=(QUERY,))
    assert checker.find(row, ("queries", "documents")) is None
    assert checker.find(TrainingRow(query="clean", positive=QUERY), ("queries",)).part == "positive"
