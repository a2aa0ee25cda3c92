"""`search-r3 compare`: the runs, their differences, the page; killed and resumed; a system that fails."""

import base64
import gzip
import json
import re
from dataclasses import replace

import pytest

from search_r3_mteb.compare import compare
from search_r3_mteb.compare import run as running
from search_r3_mteb.compare.findings import family_pairs
from search_r3_mteb.compare.plan import ComparedSystem, ComparisonPlan
from search_r3_mteb.compare.run import ComparedRow
from search_r3_mteb.encoder.checkpoints import Checkpoint, save
from search_r3_mteb.evaluation.significance import holm
from search_r3_mteb.tasks.beir_folder import write_beir
from tests.conftest import build_model, save_sentence_transformer
from tests.dying import Killed
from tests.evaluation.conftest import SHORT

WORDS = ["silver", "river", "garden", "stone", "winter", "harbour", "letter", "engine"]
TIMES = ("seconds", "milliseconds_per_query", "queries_per_second", "documents_per_second", "checksum", "files")


@pytest.fixture
def beir(tmp_path):
    folder = tmp_path / "little"
    write_beir(
        folder,
        corpus=[(f"d{n}", "", f"the {WORDS[n % 8]} and the {WORDS[n // 3]} number {n}") for n in range(24)],
        queries=[(f"q{n}", f"where is the {WORDS[n]}") for n in range(8)],
        qrels={
            "train": [(f"q{n}", f"d{n}", 1) for n in range(4)],
            "test": [(f"q{n}", f"d{n}", 1) for n in range(4, 8)],
        },
    )
    return folder


@pytest.fixture
def short_folder(tiny_tokenizer, tmp_path):
    """The tiny random model with short prompts, in a folder."""
    folder = tmp_path / "short"
    save(Checkpoint(build_model(), tiny_tokenizer, SHORT, "tests/short"), folder)
    return folder


@pytest.fixture
def plan(beir, short_folder, tiny_tokenizer, tmp_path):
    """A reasoning model with two budgets and two controls, an encoder with a perceptron, and BM25."""
    encoder = save_sentence_transformer(tiny_tokenizer, tmp_path / "encoder", 0)
    return ComparisonPlan(
        systems=(
            ComparedSystem(f"tiny={short_folder}", budgets=(2, 4), control=("other", "empty")),
            ComparedSystem(str(encoder), label="st", control=("perceptron",), train=str(beir)),
            ComparedSystem("bm25"),
        ),
        tasks=(f"beir:{beir}",),
        output=tmp_path / "out",
        settings={"max_length": 64},
    )


def content(output):
    """comparison.json without what differs between two runs of the same."""
    record = json.loads((output / "comparison.json").read_text())
    record["systems"] = [{k: v for k, v in row.items() if k not in TIMES} for row in record["systems"]]
    for pair in record["pairs"]:
        del pair["time_ratio"], pair["time_ratio_note"], pair["sentence"]
    del record["plan"]["output"]
    return record


def test_every_system_budget_and_control_is_a_row_of_the_page(plan):
    result = compare(plan, "search-r3 compare ...")
    rows = [(each.row["model"].partition("@")[0], each.row["mode"], each.budget) for each in result.rows]
    controls = [("tiny-other", "reason"), ("tiny-empty", "reason")]
    assert rows == [
        ("tiny", "direct", None),
        *((name, mode, 2) for name, mode in [("tiny", "reason"), *controls]),
        *((name, mode, 4) for name, mode in [("tiny", "reason"), *controls]),
        ("st", "direct", None),
        ("st-perceptron", "direct", None),
        ("bm25", "direct", None),
    ]
    families = {family: [each for each in result.pairs if each.family == family] for family in ("reasoning", "control")}
    assert [each.pair.first.label for each in families["reasoning"]] == [
        "tiny (reason, at most 2 tokens)",
        "tiny (reason, at most 4 tokens)",
    ]
    assert [(each.pair.first.label, each.pair.second.label) for each in families["control"]] == [
        ("tiny (reason, at most 2 tokens)", "tiny-other (reason, at most 2 tokens)"),
        ("tiny (reason, at most 2 tokens)", "tiny-empty (reason, at most 2 tokens)"),
        ("tiny (reason, at most 4 tokens)", "tiny-other (reason, at most 4 tokens)"),
        ("tiny (reason, at most 4 tokens)", "tiny-empty (reason, at most 4 tokens)"),
        ("st-perceptron (direct)", "st (direct)"),
    ]
    baseline = [each for each in result.pairs if each.family == "baseline"]
    assert [each.pair.first.name for each in baseline] == ["st", "bm25"]
    assert {each.pair.second.label for each in baseline} == {"tiny (direct)"}
    page = (plan.output / "comparison.html").read_text()
    markdown = (plan.output / "comparison.md").read_text()
    for name in ("tiny-other", "st-perceptron", "bm25"):
        assert name in page
        assert f"| {name} |" in markdown
    assert "logarithmic" not in markdown  # the figure is the page's
    assert "Quality against time per query" in page
    assert all(f"- {each.sentence()}" in markdown for each in result.pairs)
    record = json.loads((plan.output / "comparison.json").read_text())
    assert record["failures"] == []
    assert [row["control"] for row in record["systems"]][1:4] == [None, "other", "empty"]
    empty = next(row for row in record["systems"] if row["control"] == "empty")
    assert empty["reasoning_tokens_per_query"] == 0


def test_killed_after_any_unit_it_goes_on_to_the_same_result(plan, monkeypatch):
    whole = replace(plan, output=plan.output.with_name("whole"))
    compare(whole, "the command")
    real, left, done = running.evaluate_unit, [5], []

    def dying(system, *arguments):
        if not left[0]:
            raise Killed
        left[0] -= 1
        done.append(system.label)
        return real(system, *arguments)

    monkeypatch.setattr(running, "evaluate_unit", dying)
    with pytest.raises(Killed):
        compare(plan, "the command")
    assert not (plan.output / "comparison.json").exists()
    left[0] = 100
    compare(plan, "the command")
    assert content(plan.output) == content(whole.output)
    assert done[:5] == done[5:10]  # they are looked at again, and read from disk


def test_a_system_that_fails_is_named_and_loses_no_other(plan, call, tmp_path, beir, short_folder):
    toml = tmp_path / "plan.toml"
    toml.write_text(
        f'tasks = ["beir:{beir}"]\noutput = "{plan.output.as_posix()}"\n'
        f'[[systems]]\nmodel = "tiny={short_folder.as_posix()}"\nsettings = {{max_reasoning_tokens = 1000000}}\n'
        f'[[systems]]\nmodel = "bm25"\n'
    )
    code, out, err = call("compare", toml)
    assert code == 1
    assert "tiny failed: " in out.replace("\n", " ")
    assert "tiny failed" in err
    record = json.loads((plan.output / "comparison.json").read_text())
    assert [row["model"] for row in record["systems"]] == ["bm25"]
    assert [each["system"] for each in record["failures"]] == ["tiny"]
    assert "tiny failed" in (plan.output / "comparison.md").read_text()
    assert "tiny failed" in (plan.output / "comparison.html").read_text()


def test_a_command_line_names_systems_and_shares_budgets_with_those_that_reason(call, beir, short_folder, tmp_path):
    output = tmp_path / "out"
    options = ["--task", f"beir:{beir}", "--budget", "3", "--control", "other", "--set", "max_length=64"]
    code, out, _ = call("compare", "--models", "bm25", "--models", f"tiny={short_folder}", *options, "--output", output)
    assert code == 0
    record = json.loads((output / "comparison.json").read_text())
    assert [(row["model"], row["mode"]) for row in record["systems"]] == [
        *[("bm25", "direct"), ("tiny", "direct"), ("tiny", "reason"), ("tiny-other", "reason")]
    ]
    assert [row.get("max_reasoning_tokens") for row in record["systems"]] == [None, None, 3, 3]
    assert record["command"].startswith("search-r3 compare --models bm25")
    assert "times the time per query" in out.replace("\n", " ")
    code, _, err = call("compare", tmp_path / "x.toml", "--models", "bm25")
    assert (code, "not both" in err) == (2, True)
    code, _, err = call("compare")
    assert (code, "Nothing to compare" in err) == (2, True)
    code, _, err = call("compare", "--models", "bm25", "--task", "no-such-task")
    assert (code, "no-such-task" in err) == (2, True)


def test_writers_and_searches_are_compared_with_their_controls(short_folder, beir, tiny_tokenizer, tmp_path):
    encoder = save_sentence_transformer(tiny_tokenizer, tmp_path / "encoder", 0)
    plan = ComparisonPlan(
        systems=(
            ComparedSystem(str(encoder), label="encoder"),
            ComparedSystem(f"hyde:{short_folder}+{encoder}", label="hyde"),
            ComparedSystem(f"feedback:{short_folder}+{encoder}", label="feedback"),
            ComparedSystem(f"rocchio:{encoder}", label="rocchio"),
        ),
        tasks=(f"beir:{beir}",),
        output=tmp_path / "out",
        budgets=(2, 4),
        control=("empty", "other"),
    )
    result = compare(plan)
    assert result.failures == []
    rows = [(each.row["model"].partition("@")[0], each.budget) for each in result.rows]
    of_writers = [
        (f"{name}{control}", budget)
        for name in ("hyde", "feedback")
        for budget in (2, 4)
        for control in ("", "-empty", "-other")
    ]
    assert rows == [("encoder", None), *of_writers, ("rocchio", None)]
    controls = [each for each in result.pairs if each.family == "control"]
    assert len(controls) == 8
    quality = {row: each.row["ndcg_at_10"] for row, each in zip(rows, result.rows, strict=True)}
    # With nothing written HyDE's vector is that of the query alone, and so is its quality.
    assert quality["hyde-empty", 4] == quality["encoder", None]
    generated = {row: each.row["reasoning_tokens_per_query"] for row, each in zip(rows, result.rows, strict=True)}
    assert generated["hyde", 4] > 0 == generated["hyde-empty", 4] == generated["rocchio", None]


# ---- families, by hand -----------------------------------------------------------------------------------------------


def row(tmp_path, model, mode, values, *, system, control=None, budget=None, milliseconds=1.0):
    name = f"{model}-{mode}-{budget}.jsonl"
    lines = [{"query_id": f"q{n}", "ndcg_at_10": value} for n, value in enumerate(values)]
    (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return ComparedRow(
        {
            "task": "T", "split": "test", "model": model, "mode": mode, "queries_file": name, "interval": [0, 1],
            "ndcg_at_10": sum(values) / len(values), "milliseconds_per_query": milliseconds,
            "reasoning_tokens_per_query": 0.0,
        },
        *(system, control, budget),
    )  # fmt: skip


def test_families_are_corrected_apart(tmp_path):
    low, high, noise = [0.1] * 40, [0.5] * 40, [0.1, 0.12] * 10 + [0.11, 0.09] * 10
    rows = [
        row(tmp_path, "m", "direct", low, system="a"),
        row(tmp_path, "m", "reason", high, system="a", budget=8, milliseconds=21.0),
        row(tmp_path, "m@01234567", "reason", noise, system="a", budget=16, milliseconds=40.0),
        row(tmp_path, "m-filler", "reason", low, system="a", control="filler", budget=8, milliseconds=2.0),
        row(tmp_path, "b", "direct", noise, system="b"),
    ]
    pairs = family_pairs(rows, tmp_path, {"a": "a", "b": "a"})
    assert [(each.family, each.pair.first.label, each.pair.second.label) for each in pairs] == [
        ("reasoning", "m (reason, at most 8 tokens)", "m (direct)"),
        ("reasoning", "m (reason, at most 16 tokens)", "m (direct)"),
        ("control", "m (reason, at most 8 tokens)", "m-filler (reason, at most 8 tokens)"),
        ("baseline", "b (direct)", "m (direct)"),
    ]
    first, second, control, other = pairs
    assert first.pair.difference == pytest.approx(0.4)
    assert [first.p_adjusted, second.p_adjusted] == holm([first.pair.result.p, second.pair.result.p])
    assert first.p_adjusted == pytest.approx(2 * first.pair.result.p)
    assert control.p_adjusted == control.pair.result.p  # alone in its family
    assert (first.size, control.size, other.size) == (2, 1, 1)
    assert first.significant
    assert first.sentence() == (
        "T, m: reasoning, at most 8 tokens +0.400 (+0.400 to +0.400) at 21 times the time per query. "
        "p = 0.0004 after Holm's correction over 2 pairs."
    )
    assert second.pair.times == 40.0
    assert control.pair.times == 10.5
    assert "times the time" not in control.sentence()  # a control need not write what it reads
    assert "times the time" in other.sentence()


def test_another_baseline_and_none_that_was_run(tmp_path):
    rows = [
        row(tmp_path, "m", "reason", [0.5] * 4, system="a"),
        row(tmp_path, "b", "direct", [0.4] * 4, system="b"),
        row(tmp_path, "c", "direct", [0.3] * 4, system="c"),
    ]

    def compared(**baselines):
        return [(each.pair.first.label, each.pair.second.label) for each in family_pairs(rows, tmp_path, baselines)]

    assert compared(a="b", b="b", c="b") == [("m (reason)", "b (direct)"), ("c (direct)", "b (direct)")]
    assert compared(a="a", b="a", c="a") == [("b (direct)", "m (reason)"), ("c (direct)", "m (reason)")]
    assert compared(a="c", b="b", c="b") == [("m (reason)", "c (direct)"), ("c (direct)", "b (direct)")]  # each its own
    assert compared(a="failed", b="failed", c="failed") == []


# ---- what the page says of writers and of settings ------------------------------------------------------------------


def explorer_of(page):
    packed = re.search(r'<script type="text/plain" id="data">(.*?)</script>', page, re.S).group(1)
    return json.loads(gzip.decompress(base64.b64decode(packed)))


def test_a_writer_stands_beside_its_baseline_with_its_texts_and_its_anchor(models, beir, tmp_path):
    encoder, writer = models / "minis", models / "smol"
    systems = (
        ComparedSystem(f"encoder={encoder}"),
        ComparedSystem(f"hyde=hyde:{writer}+{encoder}", settings={"samples": 3, "anchor": 0.5}),
        ComparedSystem(f"rocchio=rocchio:{encoder}"),
    )
    common = {"tasks": (f"beir:{beir}",), "output": tmp_path / "out", "budgets": (2,)}
    plan = ComparisonPlan(systems, settings={"anchor": 0.3}, control=("filler",), **common)
    result = compare(plan)
    assert result.failures == []
    assert [(row["model"], row["mode"]) for row in result.shown_rows()] == [
        ("encoder", "direct"),
        ("hyde", "reason ≤ 3 × 2, anchor 0.5"),
        ("hyde-filler", "reason ≤ 3 × 2, anchor 0.5"),
        ("rocchio", "direct, anchor 0.3"),
    ]
    page, markdown = ((plan.output / f"comparison.{ending}").read_text() for ending in ("html", "md"))
    for cell in ("reason ≤ 3 × 2, anchor 0.5", "direct, anchor 0.3"):
        assert cell in page
        assert f"| {cell} |" in markdown
    said = " ".join(each.sentence() for each in result.pairs)
    assert "hyde (reason) against encoder (direct)" in said  # one budget needs no name there
    data = explorer_of(page)
    assert "-filler" not in data["pairs"][0]["title"]
    titles = sorted(each["title"].partition(" · ")[2] for each in data["pairs"])
    assert titles == ["hyde against encoder", "hyde-filler against encoder", "rocchio against encoder"]
    for pair in data["pairs"]:
        assert pair["names"] == ["encoder", pair["title"].partition(" · ")[2].partition(" ")[0]]
        assert all(value is not None for side in ("direct", "reason") for value in pair[side]["ndcg"])
        assert pair["writes"] == (pair["names"][1] != "rocchio")
    captions = " ".join(each["caption"] for each in data["figures"].values())
    assert "text was cut where its budget ended" in captions
    assert "embed token" not in captions  # none of these has one
    assert "The search with the final vector is not timed" in page


def test_a_checkpoint_keeps_its_own_pair_and_its_token(plan, beir):
    small = replace(plan, systems=plan.systems[:1])
    compare(small)
    data = explorer_of((plan.output / "comparison.html").read_text())
    assert data["pairs"][0]["names"] == ["without reasoning", "with reasoning"]
    assert data["pairs"][0]["title"].endswith("tiny · reasoning against direct")
    assert not data["pairs"][0]["writes"]
    assert "The embed token was appended" in " ".join(each["caption"] for each in data["figures"].values())


def test_a_comparison_of_another_plan_is_kept(plan, beir, short_folder):
    first = replace(plan, systems=(ComparedSystem("bm25"),), settings={})
    compare(first)
    before = {each: (plan.output / f"comparison.{each}").read_bytes() for each in ("json", "md", "html")}
    compare(first)
    assert len(list(plan.output.glob("comparison*"))) == 3  # the same plan again: the same files
    compare(replace(first, systems=(ComparedSystem("bm25", label="other"),)))
    [aside] = plan.output.glob("comparison-*.json")
    for ending, content in before.items():
        kept = aside.with_suffix(f".{ending}").read_bytes()
        assert kept == content or ending == "json"
    assert json.loads(aside.read_text())["systems"][0]["model"] == "bm25"
    assert json.loads((plan.output / "comparison.json").read_text())["systems"][0]["model"] == "other"
