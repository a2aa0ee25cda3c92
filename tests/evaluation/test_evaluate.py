"""Evaluation: the numbers are MTEB's, the files are complete or absent, and no model gets another's results."""

import json
import math
import time
from pathlib import Path

import pytest

from search_r3_mteb.encoder.checkpoints import Checkpoint
from search_r3_mteb.encoder.chunks import CHUNK
from search_r3_mteb.encoder.encoder import SearchR3Encoder
from search_r3_mteb.encoder.store import Store
from search_r3_mteb.evaluation.evaluate import evaluate
from search_r3_mteb.evaluation.queries import score
from search_r3_mteb.evaluation.summary import hop_rows, identity, quality, replace_rows, table
from search_r3_mteb.evaluation.systems import kind_of, open_systems, split_label
from search_r3_mteb.evaluation.tasks import resolve_task
from search_r3_mteb.tasks.beir_folder import write_beir
from tests.conftest import save_sentence_transformer
from tests.dying import Killed
from tests.mteb_running import made_task, mteb_scores
from tests.programs import mostly_slow, python, started

KEYS = {"task", "split", "model", "mode", "ndcg_at_10", "recall_at_10", "queries", "documents"} | {
    "reasoning_tokens_per_query",
    "forced_share",
    "seconds",
    "seed",
    "commit",
}
SETTINGS = {"max_reasoning_tokens": 4}
WORDS = ["silver", "river", "garden", "stone", "winter", "harbour", "letter", "engine"]


@pytest.fixture
def beir(tmp_path):
    """24 documents, every third with a title, and 8 queries with one or two judgements."""
    folder = tmp_path / "little"
    titles = ["" if n % 3 else f"About {WORDS[n % 8]}" for n in range(24)]
    texts = [f"the {WORDS[n % 8]} and the {WORDS[n // 3]} number {n}" for n in range(24)]
    judged = [(f"q{n}", f"d{n}", 2) for n in range(8)] + [(f"q{n}", f"d{n + 8}", 1) for n in range(4)]
    write_beir(
        folder,
        corpus=[(f"d{n}", titles[n], texts[n]) for n in range(24)],
        queries=[(f"q{n}", f"where is the {WORDS[n]}") for n in range(8)],
        qrels={"test": judged},
    )
    return folder


def run(models, tasks, output, **keywords):
    settings = SETTINGS if any(isinstance(model, Checkpoint) for model in models) else None
    return evaluate(models, tasks, output=output, settings=settings, **keywords)


def task_name(folder):
    return resolve_task(f"beir:{folder}").metadata.name


def read_queries(output, row):
    return [json.loads(line) for line in (Path(output) / row["queries_file"]).read_text().splitlines()]


def without_times(value):
    """The content of a result without what differs between two runs of the same: times, dates, versions of the tree."""
    if isinstance(value, dict):
        timed = (
            "seconds",
            "milliseconds_per_query",
            "queries_per_second",
            "documents_per_second",
            "date",
            "evaluation_time",
            "evaluation_phases",
            "checksum",  # of a row, with its times
        )
        value = {key: item for key, item in value.items() if not key.startswith("mteb/")}  # its checksum, with times
        return {key: without_times(item) for key, item in value.items() if key not in timed}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def without_checksums(row):
    """A row without what changes when another unit adds to a file that both share."""
    return {key: value for key, value in row.items() if key not in ("files", "checksum")}


def files_of(folder):
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file():
            name = str(path.relative_to(folder))
            if path.suffix in (".json", ".jsonl"):
                lines = [path.read_text()] if path.suffix == ".json" else path.read_text().splitlines()
                found[name] = [without_times(json.loads(line)) for line in lines]
            else:
                found[name] = path.read_bytes()
    return found


def test_one_run_writes_everything_that_was_promised(tiny_checkpoint, beir, tmp_path):
    output = tmp_path / "out"
    rows = run([tiny_checkpoint, "bm25"], [f"beir:{beir}"], output, command="search-r3 evaluate ...")
    assert json.loads((output / "summary.json").read_text()) == rows
    assert [(row["model"], row["mode"]) for row in rows] == [
        ("tests/tiny", "reason"),
        ("tests/tiny", "direct"),
        ("bm25", "direct"),
    ]
    reason, direct, bm25 = rows
    for row in rows:
        assert set(row) >= KEYS
        assert (row["task"], row["split"], row["queries"], row["documents"]) == (task_name(beir), "test", 8, 24)
        assert row["interval"][0] <= row["ndcg_at_10"] <= row["interval"][1]
        assert row["queries_file"] == f"queries/{row['task']}__{row['model'].replace('/', '__')}__{row['mode']}.jsonl"
        assert row["command"] == "search-r3 evaluate ..."
        records = read_queries(output, row)
        assert row["ndcg_at_10"] == pytest.approx(sum(each["ndcg_at_10"] for each in records) / 8, abs=1e-6)
        assert [len(each["top"]) for each in records] == [10] * 8
    assert reason["max_reasoning_tokens"] == 4
    assert 0 < reason["reasoning_tokens_per_query"] <= 4
    assert direct["reasoning_tokens_per_query"] == bm25["forced_share"] == 0
    assert reason["seconds"] > 0
    assert reason["queries_per_second"] > 0
    assert reason["milliseconds_per_query"] == pytest.approx(1000 / reason["queries_per_second"], rel=1e-3)
    thought = read_queries(output, reason)[3]
    assert thought["query_id"] == "q3"
    expected = SearchR3Encoder(tiny_checkpoint, **SETTINGS).think(["where is the stone"])[0]
    assert (thought["reasoning"], thought["finished"]) == (expected.text, expected.finished)
    assert thought["reasoning_tokens"] == len(expected.token_ids)
    assert thought["judged"][0] == {"id": "d3", "relevance": 2, "text": "About stone the stone and the river number 3"}
    assert read_queries(output, direct)[3]["reasoning"] is None


def test_scores_and_rankings_are_mtebs_own(tiny_checkpoint, beir, tmp_path):
    import mteb

    output = tmp_path / "out"
    [row] = run([tiny_checkpoint], [f"beir:{beir}"], output, mode="reason")
    encoder = SearchR3Encoder(tiny_checkpoint, **SETTINGS)
    plain = mteb.evaluate(
        encoder, resolve_task(f"beir:{beir}"), cache=None, co2_tracker=False, prediction_folder=tmp_path / "plain"
    )
    theirs = plain.task_results[0].scores["test"][0]
    assert row["ndcg_at_10"] == pytest.approx(theirs["ndcg_at_10"], abs=1e-5)
    assert row["recall_at_10"] == pytest.approx(theirs["recall_at_10"], abs=1e-5)
    name = f"{task_name(beir)}_predictions.json"
    kept = json.loads((output / "predictions" / "tests__tiny" / "reason" / name).read_text())
    full = json.loads((tmp_path / "plain" / name).read_text())
    assert kept["mteb_model_meta"] == full["mteb_model_meta"]
    for query, documents in full["default"]["test"].items():
        assert kept["default"]["test"][query] == pytest.approx(documents, abs=1e-5)
    [stored] = (output / "mteb" / "results").rglob(f"{task_name(beir)}.json")
    assert json.loads(stored.read_text())["scores"]["test"][0]["ndcg_at_10"] == pytest.approx(
        row["ndcg_at_10"], abs=1e-5
    )
    assert encoder.fingerprint[:16] in str(stored)


def test_ndcg_by_hand():
    judgements = {"q": {"a": 2, "b": 1}, "r": {"a": 1}}
    ranking = {"q": {"x": 0.9, "a": 0.8, "b": 0.7}, "r": {"x": 0.5}}
    found = score(judgements, ranking)
    gained = 2 / math.log2(3) + 1 / math.log2(4)
    ideal = 2 / math.log2(2) + 1 / math.log2(3)
    assert found["q"]["ndcg_cut_10"] == pytest.approx(gained / ideal)
    assert found["q"]["recall_10"] == 1.0
    assert found["r"]["ndcg_cut_10"] == 0.0


@pytest.mark.parametrize("chunks", mostly_slow(range(1, 10), 1, 5, 9))
def test_killed_at_any_chunk_and_started_again_gives_the_same_files(
    tiny_checkpoint, beir, tmp_path, monkeypatch, chunks
):
    monkeypatch.setitem(CHUNK, "query", 3)
    monkeypatch.setitem(CHUNK, "document", 8)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run([tiny_checkpoint], [f"beir:{beir}"], whole)
    write = Store._write_chunk
    written = []

    def dying(store, name, *arguments):
        if len(written) == chunks - 1:
            raise Killed
        written.append(name)
        write(store, name, *arguments)

    monkeypatch.setattr(Store, "_write_chunk", dying)
    with pytest.raises(Killed):
        run([tiny_checkpoint], [f"beir:{beir}"], killed)
    assert files_of(killed) != files_of(whole)
    again = []
    monkeypatch.setattr(
        Store, "_write_chunk", lambda store, name, *rest: (again.append(name), write(store, name, *rest))
    )
    run([tiny_checkpoint], [f"beir:{beir}"], killed)
    # 3 chunks each of reasoned queries, documents and direct queries: none is computed twice.
    assert len(written) + len(again) == 9
    assert files_of(killed) == files_of(whole)


KILLABLE = """
import sys
from search_r3_mteb.encoder.chunks import CHUNK
from search_r3_mteb.evaluation.evaluate import evaluate
CHUNK.update(query=3, document=8)
evaluate([sys.argv[1]], ["beir:" + sys.argv[2]], output=sys.argv[3], settings={"max_reasoning_tokens": 4})
"""


@pytest.mark.slow
def test_kill_minus_9_again_and_again_gives_the_same_files(tiny_folder, beir, tmp_path, monkeypatch):
    monkeypatch.setitem(CHUNK, "query", 3)
    monkeypatch.setitem(CHUNK, "document", 8)
    evaluate([tiny_folder], [f"beir:{beir}"], output=tmp_path / "whole", settings=SETTINGS)
    killed = tmp_path / "killed"
    command = ["-c", KILLABLE, tiny_folder, beir, killed]
    for wanted in (1, 3, 4, 7, 9):
        process = started(*command)
        while process.poll() is None and len(list(killed.glob("store/*/chunk-*"))) < wanted:
            time.sleep(0.005)
        process.kill()
        process.communicate()
    python(*command)
    assert files_of(killed) == files_of(tmp_path / "whole")


def test_a_finished_evaluation_is_read_and_not_run_again(tiny_checkpoint, beir, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "search_r3_mteb")
    first = run([tiny_checkpoint], [f"beir:{beir}"], tmp_path / "out")
    import mteb

    monkeypatch.setattr(mteb, "evaluate", None)
    caplog.clear()
    assert run([tiny_checkpoint], [f"beir:{beir}"], tmp_path / "out") == first
    assert [": complete in " in message for message in caplog.messages] == [True, True]


@pytest.mark.parametrize("lost", ["queries", "predictions"])
def test_what_is_missing_is_made_again(tiny_checkpoint, beir, tmp_path, lost):
    import shutil

    output = tmp_path / "out"
    run([tiny_checkpoint], [f"beir:{beir}"], output, mode="reason")
    before = files_of(output)
    shutil.rmtree(output / lost)
    run([tiny_checkpoint], [f"beir:{beir}"], output, mode="reason")
    assert files_of(output) == before


def test_changed_data_are_evaluated_again(tiny_checkpoint, beir, tmp_path):
    output = tmp_path / "out"
    [first] = run([tiny_checkpoint], [f"beir:{beir}"], output, mode="direct")
    with (beir / "qrels" / "test.tsv").open("a") as stream:
        stream.write("q7\td23\t1\n")
    [second] = run([tiny_checkpoint], [f"beir:{beir}"], output, mode="direct")
    assert second["dataset_revision"] != first["dataset_revision"]
    rows = json.loads((output / "summary.json").read_text())
    assert [without_checksums(row) for row in rows] == [without_checksums(row) for row in (first, second)]


def test_two_checkpoints_and_two_budgets_of_one_name_stand_side_by_side(tiny_checkpoint, make_model, beir, tmp_path):
    output = tmp_path / "out"
    retrained = Checkpoint(make_model(seed=7), tiny_checkpoint.tokenizer, tiny_checkpoint.profile, "tests/tiny")
    [first, second] = run([tiny_checkpoint, retrained], [f"beir:{beir}"], output, mode="reason")
    [third] = evaluate([tiny_checkpoint], [f"beir:{beir}"], "reason", output, settings={"max_reasoning_tokens": 2})
    names = [row["model"] for row in (first, second, third)]
    assert names == ["tests/tiny", *(f"tests/tiny@{row['fingerprint'][:8]}" for row in (second, third))]
    assert len({row["queries_file"] for row in (first, second, third)}) == 3
    [alone] = run([retrained], [f"beir:{beir}"], tmp_path / "alone", mode="reason")
    assert alone["ndcg_at_10"] == second["ndcg_at_10"]
    assert len(json.loads((output / "summary.json").read_text())) == 3
    # Asked again, each finds its own row.
    assert run([retrained], [f"beir:{beir}"], output, mode="reason") == [second]


@pytest.fixture
def sentence_transformers_folders(tiny_tokenizer, tmp_path):
    """Two ordinary models with different weights, in folders of the same name."""
    return [save_sentence_transformer(tiny_tokenizer, tmp_path / str(seed) / "encoder", seed) for seed in (0, 1)]


def test_ordinary_models_of_one_folder_name_get_their_own_scores(
    sentence_transformers_folders, beir, tmp_path, monkeypatch
):
    """MTEB gives all local folders one identity: the second model would get the first one's score."""
    import mteb
    from sentence_transformers import SentenceTransformer

    rows = run([str(folder) for folder in sentence_transformers_folders], [f"beir:{beir}"], tmp_path / "out")
    assert [row["mode"] for row in rows] == ["direct", "direct"]
    assert [row["model"] for row in rows] == ["0/encoder", "1/encoder"]
    cache = mteb.ResultCache(tmp_path / "trap")
    trapped = []
    for row, folder in zip(rows, sentence_transformers_folders, strict=True):
        task, model = resolve_task(f"beir:{beir}"), SentenceTransformer(str(folder), device="cpu")
        monkeypatch.setattr(SentenceTransformer, "get_sentence_embedding_dimension", lambda self: 32)  # mteb's old name
        assert row["ndcg_at_10"] == pytest.approx(mteb_scores(model, task)["ndcg_at_10"], abs=1e-5)
        trapped.append(mteb_scores(model, task, cache)["ndcg_at_10"])
    assert rows[0]["ndcg_at_10"] != rows[1]["ndcg_at_10"]
    assert trapped[0] == trapped[1]  # the trap is real: without an identity of its own the second is wrong


def test_an_ordinary_model_that_needs_a_missing_library_is_refused(sentence_transformers_folders, beir, tmp_path):
    folder = sentence_transformers_folders[0]
    config = json.loads((folder / "config.json").read_text())
    quantised = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}
    (folder / "config.json").write_text(json.dumps(config | quantised))
    with pytest.raises(
        ValueError, match=r"encoder: sentence-transformers .* cannot load this folder: ImportError: .*bits"
    ):
        run([folder], [f"beir:{beir}"], tmp_path / "out")


def test_an_exported_folder_reasons_and_scores_as_its_checkpoint(tiny_folder, beir, tmp_path):
    from search_r3_mteb.integrations.sentence_transformers import export

    exported = export(tiny_folder, tmp_path / "exported", max_reasoning_tokens=4)
    [theirs] = evaluate([str(exported)], [f"beir:{beir}"], output=tmp_path / "out")
    [ours] = evaluate([tiny_folder], [f"beir:{beir}"], "reason", tmp_path / "out", settings=SETTINGS)
    assert theirs["mode"] == "reason"
    assert theirs["ndcg_at_10"] == ours["ndcg_at_10"]
    with pytest.raises(ValueError, match="exported is an export, which always reasons about queries"):
        evaluate([str(exported)], [f"beir:{beir}"], "direct", tmp_path / "direct")
    with pytest.raises(ValueError, match="exported is an export for sentence-transformers, not a checkpoint"):
        SearchR3Encoder(exported)
    # sentence-transformers returns only vectors: the number of reasoning tokens is unknown, not zero.
    assert theirs["reasoning_tokens_per_query"] is None


def test_hop_counts_agree_with_mtebs_task_scores(tmp_path):
    rows = run(["bm25"], ["hopworld:500"], tmp_path)
    whole, *hops = rows
    assert [row["hops"] for row in hops] == [1, 2, 3, 4]
    [stored] = (tmp_path / "mteb").rglob(f"{whole['task']}.json")
    scores = json.loads(stored.read_text())["scores"]["test"][0]
    for row in hops:
        assert row["ndcg_at_10"] == pytest.approx(scores[f"ndcg_at_10_hop_{row['hops']}"], abs=1e-5)
        assert row["queries"] == scores[f"queries_hop_{row['hops']}"]
        assert row["seconds"] is None  # measured for all hop counts together
    assert whole["queries"] == sum(row["queries"] for row in hops)
    shown = table(rows)
    assert len(shown.rows) == 5


def test_splits_of_one_task_stand_side_by_side(tmp_path):
    dev, *_ = run(["bm25"], ["hopworld:500"], tmp_path, split="dev")
    test, *_ = run(["bm25"], ["hopworld:500"], tmp_path)
    assert (dev["split"], test["split"], dev["task"]) == ("dev", "test", test["task"])
    assert dev["queries_file"] == f"queries/{dev['task']}__bm25__direct.jsonl"
    assert test["queries_file"] == f"queries/{dev['task']}.test__bm25__direct.jsonl"
    assert len(read_queries(tmp_path, dev)) == dev["queries"] != test["queries"]
    assert len(json.loads((tmp_path / "summary.json").read_text())) == 10
    [stored] = (tmp_path / "mteb").rglob(f"{dev['task']}.json")
    assert set(json.loads(stored.read_text())["scores"]) == {"dev", "test"}
    assert run(["bm25"], ["hopworld:500"], tmp_path, split="dev")[0]["seconds"] == dev["seconds"]  # not run again


def test_identical_ids_are_left_out_where_the_task_says_so(tiny_checkpoint, beir, tmp_path):
    """As ArguAna needs: the query itself is in the corpus, and must not count as its own answer."""
    from search_r3_mteb.tasks.mteb_tasks import BeirFolder

    for name in ("queries.jsonl", "qrels/test.tsv"):
        path = beir / name
        path.write_text(path.read_text().replace("q", "d").replace("duery", "query"))
    rows = [
        run([tiny_checkpoint], [BeirFolder(beir, ignore_identical_ids=ignore)], tmp_path / "out", mode="direct")[0]
        for ignore in (False, True)
    ]
    kept, left_out = ([record["top"] for record in read_queries(tmp_path / "out", row)] for row in rows)
    assert any(hit["id"] == f"d{n}" for n, top in enumerate(kept) for hit in top)
    assert not any(hit["id"] == f"d{n}" for n, top in enumerate(left_out) for hit in top)


def test_subsets_count_alike(tmp_path):
    """A multilingual task: MTEB's score is the mean over its subsets, and ours must be the same."""
    documents = [{"id": f"d{n}", "title": "", "text": f"{WORDS[n]} {WORDS[0]}"} for n in range(8)]
    english = [{"id": f"q{n}", "text": WORDS[n]} for n in range(3)]
    german = [{"id": f"q{n}", "text": "nichts"} for n in range(6)]
    relevant = {f"q{n}": {f"d{n}": 1} for n in range(6)}
    first_three = {query["id"]: relevant[query["id"]] for query in english}
    task = made_task("Languages", {"en": (documents, english, first_three), "de": (documents, german, relevant)})
    [row] = run(["bm25"], [task], tmp_path)
    [stored] = (tmp_path / "mteb").rglob("Languages.json")
    scores = [entry["ndcg_at_10"] for entry in json.loads(stored.read_text())["scores"]["test"]]
    assert len(scores) == 2
    assert scores[0] != scores[1]
    assert row["ndcg_at_10"] == pytest.approx(sum(scores) / 2, abs=1e-5)
    assert (row["queries"], row["documents"]) == (9, 16)
    ids = [record["query_id"] for record in read_queries(tmp_path, row)]
    assert len(set(ids)) == 9
    assert ids[0] == "en/q0"


def test_an_encoder_in_memory_is_evaluated_as_it_is(tiny_checkpoint, beir, tmp_path):
    encoder = SearchR3Encoder(tiny_checkpoint, mode="direct", max_length=500)
    [row] = evaluate([encoder], [resolve_task(f"beir:{beir}")], output=tmp_path / "out")
    assert row["mode"] == "direct"
    assert not (tmp_path / "out" / "store").exists()  # it has no cache folder of its own


def test_direct_runs_that_differ_in_the_budget_only_are_one(tiny_checkpoint):
    def fingerprints(budget):
        return [s.fingerprint for s in open_systems(tiny_checkpoint, "both", {"max_reasoning_tokens": budget}, None)]

    (reason1, direct1), (reason2, direct2) = fingerprints(2), fingerprints(3)
    assert direct1 == direct2
    assert reason1 != reason2


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"mode": "fast"}, ValueError, "mode must be one of both, reason, direct, got 'fast'"),
        ({"models": []}, ValueError, "0 models and 1 tasks"),
        ({"tasks": ["SciFactt"]}, ValueError, r"no task 'SciFactt'\. Did you mean 'SciFact'\?"),
        ({"tasks": ["STS12"]}, ValueError, "STS12 is not a retrieval task"),
        ({"tasks": ["hopworld:many"]}, ValueError, "expected a number of documents as in hopworld:5000, got 'many'"),
        ({"tasks": ["beir:"]}, ValueError, "does not name a folder"),
        ({"tasks": ["beir:nowhere"]}, FileNotFoundError, "nowhere"),
        ({"tasks": ["hopworld"], "split": "train"}, ValueError, "'test' or 'dev', got 'train'"),
        ({"tasks": ["SciFact"], "split": "dev"}, ValueError, "no split 'dev'; it has test"),
        ({"models": ["./nowhere"]}, FileNotFoundError, "no model './nowhere'"),
        ({"settings": {"seed": 1, "device": "cpu"}}, ValueError, "^device, seed would change nothing"),
    ],
)
def test_what_is_not_there_is_refused_before_anything_is_written(tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        evaluate(**{"models": ["bm25"], "tasks": ["hopworld"], "output": tmp_path / "out", **arguments})
    assert not (tmp_path / "out").exists()


def test_a_broken_summary_is_named_and_kept(tmp_path):
    (tmp_path / "summary.json").write_text('[{"task": ')
    with pytest.raises(ValueError, match=r"summary\.json, line 1: not JSON"):
        run(["bm25"], ["hopworld:500"], tmp_path)
    assert (tmp_path / "summary.json").read_text() == '[{"task": '


def test_names_of_folders(tmp_path, monkeypatch):
    assert split_label("mini=models/a") == ("mini", "models/a")
    assert split_label("models/a") == (None, "models/a")
    monkeypatch.chdir(tmp_path)
    Path("a=b").mkdir()
    assert split_label("a=b") == (None, "a=b")
    assert kind_of("bm25") == "bm25"
    assert kind_of("a=b") == "search-r3"


def test_rows_are_replaced_in_their_place():
    row = {"task": "T", "split": "test", "model": "m", "mode": "direct", "ndcg_at_10": 0.1}
    others = [{**row, "model": "a"}, row, {**row, "hops": 1}, {**row, "model": "z"}]
    new = [{**row, "ndcg_at_10": 0.2}, {**row, "hops": 2}]
    assert replace_rows(others, new) == [others[0], *new, others[3]]
    assert replace_rows([], new) == new
    assert identity(row) == ("T", "test", "m", "direct")


def test_quality_by_hand_and_over_subsets():
    record = {"reasoning_tokens": 3, "finished": True, "ndcg_at_10": 1.0, "recall_at_10": 1.0}
    worse = {**record, "finished": False, "reasoning_tokens": 5, "ndcg_at_10": 0.0}
    found = quality({"default": [record, worse, worse, record]})
    assert found["ndcg_at_10"] == 0.5
    assert found["forced_share"] == 0.5
    assert found["reasoning_tokens_per_query"] == 4.0
    # MTEB's main score is the mean over subsets, not over queries.
    both = quality({"en": [record], "de": [worse, worse, worse]})
    assert both["ndcg_at_10"] == 0.5
    assert "interval" not in both
    untold = quality({"default": [{**record, "reasoning_tokens": None, "finished": None}]})
    assert untold["reasoning_tokens_per_query"] is None
    assert hop_rows({}, {"default": [record]}) == []
