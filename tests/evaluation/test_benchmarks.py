"""Benchmarks by one name, tried on folders laid out as MTEB's own datasets: excluded ids, long documents, means."""

import json
import logging
from pathlib import Path
from statistics import fmean

import pytest

from search_r3_mteb import cli
from search_r3_mteb.evaluation.benchmarks import benchmark_means, benchmark_tasks
from search_r3_mteb.evaluation.diagnostics import diagnose
from search_r3_mteb.evaluation.evaluate import evaluate
from search_r3_mteb.evaluation.query_scorer import QueryScorer
from search_r3_mteb.evaluation.tasks import resolve_task, resolve_tasks

WORDS = ["silver", "river", "garden", "stone", "winter", "harbour", "letter", "engine"]
SHORT = ("biology", "earth_science", "economics", "psychology", "robotics", "stackoverflow", "sustainable_living",
         "pony", "leetcode", "aops", "theoremqa_theorems", "theoremqa_questions")  # fmt: skip
LONG = SHORT[:8]


def query(n):
    return f"why does the {WORDS[n]} fall beside the {WORDS[(n + 3) % 8]}"


def write_bright(root: Path, *, excluded=True, words=40):
    """The folder of mteb/BRIGHT: configurations "documents", "long_documents" and "examples", a split per domain.

    Queries 0 to 2 are documents themselves ("copy-N"), as a question's own page is; those are the excluded ids.
    """
    files: dict[str, list] = {"documents": [], "long_documents": [], "examples": []}
    for domain in SHORT:
        documents = [
            {"id": f"d{n}", "content": f"{WORDS[n]} {WORDS[(n + 3) % 8]} and a {WORDS[(n + 1) % 8]}"} for n in range(8)
        ]
        documents += [{"id": f"copy-{n}", "content": query(n)} for n in range(3)]
        long = [{"id": each["id"], "content": " ".join([each["content"], *WORDS * words])} for each in documents]
        examples = [
            {
                "id": str(n), "query": query(n), "gold_ids": [f"d{n}"], "gold_ids_long": [f"d{n}"],
                "excluded_ids": [f"copy-{n}"] if excluded and n < 3 else ["N/A"],
            }
            for n in range(4)
        ]  # fmt: skip
        for name, rows in (("documents", documents), ("long_documents", long), ("examples", examples)):
            if name != "long_documents" or domain in LONG:
                path = root / name / f"{domain}.jsonl"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("".join(json.dumps(row) + "\n" for row in rows))
                files[name].append(f"  - split: {domain}\n    path: {name}/{domain}.jsonl\n")
    configs = "".join(f"- config_name: {name}\n  data_files:\n{''.join(each)}" for name, each in files.items())
    (root / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    return root


@pytest.fixture
def bright(tmp_path, monkeypatch):
    """Makes MTEB's BRIGHT tasks read such a folder; what they do with it is their own code."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    def make(name="bright", **how):
        folder = write_bright(tmp_path / name, **how)
        for task in [*benchmark_tasks("BRIGHT"), *benchmark_tasks("BRIGHT-long")]:
            monkeypatch.setitem(type(task).metadata.dataset, "path", str(folder))
        return folder

    return make


def records(output, row):
    return [json.loads(line) for line in (Path(output) / row["queries_file"]).read_text().splitlines()]


def test_one_name_stands_for_all_tasks():
    assert [task.metadata.name for task in resolve_tasks(["BRIGHT"])] == [
        "BrightBiologyRetrieval", "BrightEarthScienceRetrieval", "BrightEconomicsRetrieval",
        "BrightPsychologyRetrieval", "BrightRoboticsRetrieval", "BrightStackoverflowRetrieval",
        "BrightSustainableLivingRetrieval", "BrightPonyRetrieval", "BrightLeetcodeRetrieval", "BrightAopsRetrieval",
        "BrightTheoremQATheoremsRetrieval", "BrightTheoremQAQuestionsRetrieval",
    ]  # fmt: skip
    assert {tuple(task.eval_splits) for task in resolve_tasks(["BRIGHT-long"])} == {("long",)}
    assert len(resolve_tasks(["BRIGHT-long"])) == 8
    assert len(resolve_tasks(["BRIGHT-Pro"])) == 7
    assert [task.metadata.name for task in resolve_tasks(["LitSearch"])] == ["LitSearchRetrieval"]
    assert len(resolve_tasks(["BEIR"])) == 14 + 12, "any benchmark of MTEB goes by its name; CQADupstack is 12 tasks"
    assert [task.metadata.name for task in resolve_tasks(["BRIGHT (long)"])] == ["BrightLongRetrieval"]


def test_a_task_that_is_named_twice_is_run_once():
    tasks = resolve_tasks(["BRIGHT", "BrightPonyRetrieval", "BRIGHT"])
    assert len(tasks) == 12


def test_tasks_are_not_shared_with_mteb():
    (first, *_), (second, *_) = benchmark_tasks("BRIGHT"), benchmark_tasks("BRIGHT")
    first.filter_eval_splits(["nothing"])
    assert list(second.eval_splits) == ["standard"]


def test_tasks_with_closed_data_are_left_out_by_name(caplog):
    with caplog.at_level(logging.WARNING, "search_r3_mteb"):
        names = {task.metadata.name for task in resolve_tasks(["RTEB"])}
    assert "AILAStatutes" in names
    assert "Code1Retrieval" not in names
    assert "Code1Retrieval" in caplog.text


def test_what_cannot_be_one_task_or_a_benchmark_is_refused_by_name(monkeypatch):
    with pytest.raises(ValueError, match="BRIGHT is a benchmark of 12 tasks, and this needs one: BrightBiology"):
        resolve_task("BRIGHT")
    with pytest.raises(ValueError, match="benchmark of 12 tasks"):
        diagnose("nano", "BRIGHT")
    with pytest.raises(ValueError, match=r"MTEB\(eng, v2\) holds \d+ tasks that are not retrieval"):
        resolve_tasks(["MTEB(eng, v2)"])
    with pytest.raises(ValueError, match=r"There is no task 'BRIHGT'.*BRIGHT-Pro"):
        resolve_tasks(["BRIHGT"])
    with pytest.raises(ValueError, match="has no split 'dev'"):
        resolve_tasks(["BRIGHT"], "dev")

    def older(name):
        raise KeyError(name)

    monkeypatch.setattr("mteb.get_benchmark", older)
    with pytest.raises(ValueError, match=r"installed mteb [\d.]+ has no benchmark 'BRIGHT\(v1.1\)'"):
        resolve_tasks(["BRIGHT"])


def test_excluded_ids_are_left_out_of_scores_and_records(bright, tmp_path, capsys):
    """The score is compared with MTEB's inside `evaluate`; without the exclusion it is another."""
    first = {}
    for name, excluded, tasks in (("with", True, "BRIGHT"), ("without", False, "BrightBiologyRetrieval")):
        bright(name, excluded=excluded)
        rows = evaluate(["bm25"], [tasks], output=tmp_path / name)
        first[name] = rows[0]["ndcg_at_10"]
        found = [{each["id"] for each in record["top"]} for record in records(tmp_path / name, rows[0])]
        assert [f"copy-{n}" in found[n] for n in range(3)] == [not excluded] * 3
        assert "copy-0" in found[3], "another query may find it"
    assert first["with"] > first["without"] + 0.02
    rows = evaluate(["bm25"], ["BRIGHT"], output=tmp_path / "with")
    assert len(rows) == 12
    mean = fmean(row["ndcg_at_10"] for row in rows)
    with pytest.raises(SystemExit) as end:  # all is there: the command only shows it
        cli.main(["evaluate", "--model", "bm25", "--task", "BRIGHT", "--output", str(tmp_path / "with")])
    shown = capsys.readouterr().out
    assert end.value.code == 0
    assert f"BRIGHT: mean nDCG@10 over 12 tasks {mean:.4f} (bm25, direct)" in shown
    assert "published, not measured here" in shown
    ((name, sentence),) = benchmark_means(["BRIGHT"], rows)
    assert name == "BRIGHT"
    assert sentence == f"BRIGHT: mean nDCG@10 over 12 tasks {mean:.4f} (bm25, direct)"
    assert list(benchmark_means(["BRIGHT"], rows[:11])) == [], "a part of the tasks has no mean"


def test_long_documents_and_our_encoder(bright, checkpoint, tmp_path):
    bright(words=30)
    settings = {"max_reasoning_tokens": 2, "max_length": 96}
    rows = evaluate([checkpoint], ["BrightPonyLongRetrieval"], output=tmp_path / "out", settings=settings)
    assert [(row["split"], row["mode"], row["documents"]) for row in rows] == [
        ("long", "reason", 11),
        ("long", "direct", 11),
    ]
    for row in rows:
        found = records(tmp_path / "out", row)
        assert all(f"copy-{n}" not in {each["id"] for each in found[n]["top"]} for n in range(3))
        assert len(found[3]["top"]) == 10
        assert len(found[0]["top"]) == 10, "11 documents, one of them excluded"
    again = evaluate([checkpoint], ["BrightPonyLongRetrieval"], output=tmp_path / "out", settings=settings)
    assert again == rows


@pytest.mark.parametrize("margin", [0.0, 2.0])
def test_a_search_of_our_own_leaves_them_out(bright, checkpoint, tmp_path, margin):
    bright()
    settings = {"max_reasoning_tokens": 2, "abstain_margin": margin}
    rows = evaluate([checkpoint], ["BrightPonyRetrieval"], "reason", tmp_path / "out", settings=settings)
    found = records(tmp_path / "out", rows[-1])
    assert all(f"copy-{n}" not in {each["id"] for each in found[n]["top"]} for n in range(3))


def test_diagnosis_ranks_the_candidates_alone(bright, checkpoint):
    from search_r3_mteb.encoder.encoder import SearchR3Encoder

    bright()
    encoder = SearchR3Encoder(checkpoint, mode="direct")
    scorer = QueryScorer(resolve_task("BrightPonyRetrieval"), encoder)
    part = scorer._parts[0]
    ranking = scorer._ranking(part, encoder.encode_query(scorer.texts))
    assert [f"copy-{n}" in ranking[str(n)] for n in range(4)] == [False, False, False, False]
    assert ["copy-0" in ranking[str(n)] for n in range(4)] == [False, True, True, True]


def write_configs(root, rows):
    """A folder of JSON lines per configuration, {configuration: (split, rows)}, as the hub's repositories describe."""
    lines = []
    for name, (split, each) in rows.items():
        (root / name).mkdir(parents=True)
        (root / name / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in each))
        lines.append(f"- config_name: {name}\n  data_files:\n  - split: {split}\n    path: {name}/rows.jsonl\n")
    (root / "README.md").write_text(f"---\nconfigs:\n{''.join(lines)}---\n")
    return root


def test_bright_pro_and_litsearch_on_folders_of_their_layout(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    documents = [f"{WORDS[n]} {WORDS[(n + 3) % 8]} and a {WORDS[(n + 1) % 8]}" for n in range(8)]
    pro = write_configs(
        tmp_path / "pro",
        {
            "corpus": ("standard", [{"id": f"d{n}", "text": text} for n, text in enumerate(documents)]),
            "queries": ("standard", [{"id": f"q{n}", "text": query(n)} for n in range(4)]),
            "qrels": ("standard", [{"query-id": f"q{n}", "corpus-id": f"d{n}", "score": 1} for n in range(3)]),
        },
    )
    papers = [{"corpusid": n, "title": text, "abstract": "about it"} for n, text in enumerate(documents)]
    lit = write_configs(
        tmp_path / "lit",
        {
            "query": ("full", [{"query": query(n), "corpusids": [n, n + 1]} for n in range(4)]),
            "corpus_clean": ("full", papers),
        },
    )
    for name, folder in (("BRIGHT-Pro", pro), ("LitSearch", lit)):
        for task in resolve_tasks([name]):
            monkeypatch.setitem(type(task).metadata.dataset, "path", str(folder))
    rows = evaluate(["bm25"], ["BRIGHT-Pro", "LitSearch"], output=tmp_path / "out")
    assert [row["queries"] for row in rows] == [3] * 7 + [4]
    assert all(row["ndcg_at_10"] > 0.5 for row in rows)
    (name,) = [name for name, _ in benchmark_means(["BRIGHT-Pro", "LitSearch"], rows)]
    assert name == "BRIGHT-Pro", "one task has no mean of its own"
