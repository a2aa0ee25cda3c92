"""The report's section on diagnoses: what it shows, and what it says where a file cannot be used. No model is run."""

import json

import pytest

from search_r3_mteb.report import report
from search_r3_mteb.report.diagnose_section import diagnose_groups
from search_r3_mteb.report.records import Evidence
from search_r3_mteb.report.runs import read_runs
from tests.report.made_diagnosis import diagnosis, write


def test_a_section_with_the_verdict_and_its_figures(tmp_path):
    data = diagnosis(skipped=[{"max_reasoning_tokens": 256, "why": "the window is too short"}])
    [group] = diagnose_groups(read_runs([write(tmp_path / "run", data)]))
    assert group.title == "Does the reasoning matter? nano on Made"
    assert data["verdict"]["text"] in group.text
    assert "the reasoning matters and helps" in group.text
    assert "40 of 90 judged queries" in group.text
    assert "budget 256: the window is too short" in group.text
    captions = {figure.name.rpartition("-")[2]: figure.caption for figure in group.figures}
    assert list(captions) == ["controls", "cosines", "spread", "budgets", "pooling", "lengths"]
    own = data["groups"][0]["controls"]["other"]["own_minus_this"]
    assert f"another query's {own['difference']:+.3f} [{own['interval'][0]:+.3f}, " in captions["controls"]
    ratio = data["groups"][0]["movement"]["distance_ratio"]["mean"]
    assert f"{ratio:.0%} as far apart" in captions["cosines"]
    assert "(forced)" in captions["lengths"]
    bars = group.figures[0].plot["data"]
    assert [trace["name"] for trace in bars] == [
        "own reasoning", "another query's", "own, words shuffled", "empty reasoning", "direct template",
    ]  # fmt: skip
    assert bars[0]["x"] == ["all queries", "1 hop", "2 hops", "3 hops"]
    assert "<b>" not in json.dumps(group.figures[2].plot["data"])


def test_panels_of_a_diagnosis_that_would_show_nothing_are_left_out(tmp_path):
    data = json.loads(json.dumps(diagnosis()))
    for group in data["groups"]:
        group["budgets"] = group["budgets"][:1]
        for each in group["controls"].values():
            each["ndcg_at_10"] |= {"mean": 0.5, "interval": [0.5, 0.5]}
    data["groups"][0]["pooling"] = data["groups"][0]["pooling"][:1]
    data["groups"][0]["lengths"] = data["groups"][0]["lengths"][:1]
    columns = data["per_query"]
    columns["ndcg_spread"] = [0.0] * len(columns["query_id"])
    columns["cosine_same"] = columns["cosine_different"] = [1.0] * len(columns["query_id"])
    [group] = diagnose_groups(read_runs([write(tmp_path / "run", data)]))
    assert group.figures == []
    said = {each.title: each.why for each in group.left_out}
    assert len(said) == 6
    assert said["Quality by budget"].startswith("one budget was measured, 0 tokens (nDCG@10 ")
    assert said["What different rollouts are worth"].endswith("is 0.000 for every query.")
    assert said["Does the vector move with the reasoning?"] == "the cosine of any two vectors is 1.000."
    assert said["The same queries after another reasoning"] == "nDCG@10 is 0.500 with every reasoning."


def test_the_page_holds_one_section_per_diagnosis(tmp_path):
    write(tmp_path / "a", diagnosis())
    write(tmp_path / "b", diagnosis(model="mini"))
    output = tmp_path / "report.html"
    assert [str(each) for each in report([tmp_path / "a", tmp_path / "b"], output)] == []
    page = output.read_text()
    assert 'id="diagnose-0"' in page
    assert "Does the reasoning matter? mini on Made" in page
    assert output.stat().st_size < 5_000_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"version": 2}, "is not a diagnosis of version 1"),
        ({"groups": []}, "lacks a part of a diagnosis"),
        ({"per_query": None}, "lacks a part of a diagnosis"),
        ('{"version": 1, "gro', "is not valid JSON"),
    ],
)
def test_a_diagnosis_that_cannot_be_used_is_told_and_the_page_opens(tmp_path, content, message):
    write(tmp_path / "run", diagnosis(**content) if isinstance(content, dict) else content)
    write(tmp_path / "good", diagnosis())
    messages = report([tmp_path / "run", tmp_path / "good"], tmp_path / "report.html")
    assert [message in str(each) for each in messages] == [True]
    assert (tmp_path / "report.html").read_text().count("<figure aria-labelledby") == 6


def test_nothing_to_say_where_nothing_was_diagnosed():
    assert diagnose_groups(Evidence()) == []
