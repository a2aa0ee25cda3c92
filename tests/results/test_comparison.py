"""The comparison's plans, sample, weights and page are made by its scripts, from what was measured."""

import json
import shutil
from pathlib import Path

import pytest

from results.comparison import page, plans, run, squad_sample
from search_r3_mteb.compare.plan import read_plan
from search_r3_mteb.encoder.options import parse_settings
from search_r3_mteb.evaluation.system_checks import check_settings
from search_r3_mteb.expansion.settings import ExpansionSettings
from search_r3_mteb.tasks.beir_folder import choose_split, read_corpus, read_queries, read_relevance, write_beir

CHOSEN = {
    "anchor": 0.5,
    "difference": 0.012,
    "interval": [0.001, 0.02],
    "queries": 100,
    "split": "train",
    "commit": "c",
}


@pytest.fixture
def folder(tmp_path):
    """This repository's folder, without what was measured."""
    shutil.copy(plans.HERE / "own.md", tmp_path)
    return tmp_path


# ---- plans ----


def test_the_plans_are_up_to_date(folder, capsys):
    assert plans.main(["--check"]) == 0
    assert plans.main(["--folder", str(folder)]) == 0
    path = folder / "squad.toml"
    path.write_text(path.read_text().replace("samples = 4", "samples = 5"))
    assert plans.main(["--check", "--folder", str(folder)]) == 1
    assert "squad.toml: not what plans.py says" in capsys.readouterr().err


@pytest.mark.parametrize("task", plans.TASKS)
def test_every_plan_has_every_row(task):
    plan = read_plan(plans.HERE / f"{task}.toml")
    models = {each.model.partition(":")[0] for each in plan.systems if ":" in each.model}
    assert models == {"rocchio", "gar", "query2doc", "hyde", "mugi", "feedback"}
    for each in plan.systems:  # each is compared with its own encoder
        assert plan.baselines()[each.name] == ("mini" if each.model.endswith("mini") else "MiniLM")
    controlled = {each.name for each in plan.systems if each.control == plans.CONTROLS}
    assert controlled == {"mini", "HyDE, MiniLM", "six titles at 1, MiniLM"}
    assert plan.budgets == (48,)
    titles = {each.name: each for each in plan.systems if each.name.startswith("six titles")}
    plain, chat = titles["six titles at 1, MiniLM"], titles["six titles at 1 in a chat, MiniLM"]
    assert plain.settings == {"samples": 6, "temperature": 0.7, "anchor": 1.0}
    assert chat.settings == {**plain.settings, "prompt": plans.TITLES_PROMPT}
    assert plain.model == chat.model.replace("Instruct", "Instruct-plain")
    assert plans.TITLES_PROMPT.count("Title and sentence:") == 3
    assert plan.split != plans.TASKS[task].tuned_on


def test_a_chosen_weight_makes_a_row_and_none_does_not():
    chosen = {
        "HyDE anchored, mini": CHOSEN,
        plans.OWN: {**CHOSEN, "anchor": 0.25},
        "title anchored, mini": {"anchor": None},
    }
    found = {each["label"]: each for each in plans.systems(chosen)}
    assert found["HyDE anchored, mini"]["settings"] == {"samples": 4, "anchor": 0.5}
    assert found["HyDE, mini"]["settings"] == {"samples": 4}
    assert found[plans.OWN]["settings"] == {"anchor": 0.25}
    assert [each for each in found if "anchored" in each] == [plans.OWN, "HyDE anchored, mini"]
    assert set(chosen) < set(plans.tuned())


# ---- the sample of SQuAD ----


def test_the_sample_depends_on_ids_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(squad_sample, "TEST", 2)
    monkeypatch.setattr(squad_sample, "DEV", 1)

    def sampled(name, ids):
        write_beir(
            tmp_path / name,
            corpus=[(f"p{each}", "t", f"paragraph {each}") for each in "abcd"],
            queries=[(each, f"question {each}") for each in ids],
            qrels={"dev": [(each, f"p{each}", 1) for each in ids]},
        )
        squad_sample.main(["--data", str(tmp_path / name), "--output", str(tmp_path / f"{name}-sample")])
        return tmp_path / f"{name}-sample"

    # By sha256sum: d 18ac3e73, c 2e7d2c03, b 3e23e816, a ca978112.
    for name, ids in (("one", "abcd"), ("two", "cbda")):
        found = sampled(name, ids)
        assert list(read_relevance(found, "test")) == ["d", "c"]
        assert read_relevance(found, "dev") == {"b": {"pb": 1}}
        assert {each.id for each in read_queries(found)} == {"b", "c", "d"}
        assert len(list(read_corpus(found))) == 4
        assert choose_split(found, "test") == "test"
    with pytest.raises(ValueError, match="has 2 judged questions, and 3 are needed"):
        sampled("few", "ab")


# ---- weights ----


def test_a_weight_that_was_chosen_is_not_chosen_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task = plans.TASKS["cosqa"]
    rows = [
        {"anchor": 0.5, "difference": 0.012, "interval": [0.001, 0.02]},
        {"anchor": None, "difference": 0, "interval": [0, 0]},
    ]
    record = {"chosen": {"anchor": 0.5}, "anchors": rows, "queries": 100, "split": "train", "commit": "c"}
    asked = []
    for folder, file, held in (
        (plans.WRITER, "config.json", '{"architectures": ["LlamaForCausalLM"]}'),
        (plans.ENCODERS["MiniLM"], "modules.json", "[]"),
    ):
        Path(folder).mkdir(parents=True)
        Path(folder, file).write_text(held)

    def command(*arguments):
        pairs = [arguments[place + 1] for place, part in enumerate(arguments) if part == "--set"]
        model = arguments[arguments.index("--model") + 1]
        check_settings([model], parse_settings(pairs, ExpansionSettings))  # as `tune` does: nothing is refused
        asked.append(arguments)
        output = tmp_path / arguments[arguments.index("--output") + 1]
        output.mkdir(parents=True)
        (output / "tune.json").write_text(json.dumps(record))

    monkeypatch.setattr(run, "search_r3", command)
    run.choose(task)
    assert len(asked) == len(plans.tuned())
    hyde = next(each for each in asked if any(part.startswith("hyde:") for part in each))
    assert hyde[:5] == ("tune", "--task", "beir:../shared/data/cosqa", "--split", "dev")
    assert "samples=4" in hyde
    for each in asked:
        model = each[each.index("--model") + 1]
        assert ("max_reasoning_tokens=48" in each) != model.startswith("rocchio:")
        assert ("max_length=256" in each) != model.endswith("MiniLM-L6-v2")
    assert plans.read_anchors(tmp_path / plans.RUNS)["cosqa"] == dict.fromkeys(plans.tuned(), CHOSEN)
    first = len(asked)
    run.choose(task)
    assert len(asked) == first
    shutil.rmtree(tmp_path / plans.RUNS / "cosqa" / "tune" / plans.OWN)  # killed before the last one
    run.choose(task)
    assert len(asked) == first + 1


# ---- the page ----


def measured():
    """comparison.json of three systems, one of them with a control."""
    common = {"task": "t", "split": "test", "recall_at_10": 0.5, "queries": 300, "documents": 5183, "commit": "abc",
              "milliseconds_per_query": 21.0, "interval": [0.6, 0.7], "files": {"x": 1}}  # fmt: skip

    def row(model, mode, ndcg, tokens=0.0, control=None):
        system = model.removesuffix("-other")
        return {**common, "model": model, "mode": mode, "ndcg_at_10": ndcg, "reasoning_tokens_per_query": tokens,
                "system": system, "control": control}  # fmt: skip

    def pair(family, first, second, difference, p):
        return {"family": family, "first": first, "second": second, "difference": difference, "p_adjusted": p,
                "interval": [difference - 0.01, difference + 0.01], "time_ratio": 21.0}  # fmt: skip

    names = ("Rocchio", "title", "query2doc", "feedback", "six titles at 1")
    rows = [row("MiniLM", "direct", 0.645), row("mini", "direct", 0.65), row("mini", "reason", 0.64, 19.1)]
    pairs = [pair("reasoning", "mini (reason)", "mini (direct)", -0.01, 0.3)]
    for name in names:
        mode = "direct" if name == "Rocchio" else "reason"
        rows.append(row(f"{name}, MiniLM", mode, 0.665, 48.0))
        p = 0.001 if name == "Rocchio" else 0.2
        pairs.append(pair("baseline", f"{name}, MiniLM ({mode})", "MiniLM (direct)", 0.02, p))
    rows.append(row("six titles at 1, MiniLM-other", "reason", 0.647, 48.0, "other"))
    pairs.append(
        pair("control", "six titles at 1, MiniLM (reason)", "six titles at 1, MiniLM-other (reason)", 0.018, 0.01)
    )
    return {"version": 1, "command": "search-r3 compare x.toml", "commit": "abc", "systems": rows, "pairs": pairs,
            "failures": []}  # fmt: skip


def gathered(tmp_path, folder, record):
    (tmp_path / "runs" / "scifact").mkdir(parents=True)
    (tmp_path / "runs" / "scifact" / "comparison.json").write_text(json.dumps(record))
    anchors = {"scifact": {"Rocchio anchored, MiniLM": CHOSEN}, "squad": {"Rocchio anchored, mini": CHOSEN}}
    (tmp_path / "runs" / plans.ANCHORS).write_text(json.dumps(anchors))
    run.gather(tmp_path / "runs", folder)
    return (folder / "README.md").read_text()


def test_the_page_is_up_to_date():
    assert page.main(["--check"]) == 0


def test_a_finished_task_has_numbers_and_the_others_have_none(tmp_path, folder, capsys):
    text = gathered(tmp_path, folder, measured())
    assert "Under way, without numbers yet: NFCorpus, dev, SQuAD, 400 questions, CosQA." in text
    assert "## SciFact\n\n300 queries, 5,183 documents." in text
    assert "## SQuAD" not in text
    assert "| MiniLM | 0.645 (0.600 to 0.700) | – | – | 0.500 | 0.0 | 21.0 | – |" in text
    assert "| Rocchio, MiniLM | 0.665 (0.600 to 0.700) | **+0.020 (+0.010 to +0.030)** | 0.001 |" in text
    assert "| mini, own reasoning | 0.640 (0.600 to 0.700) | -0.010 (-0.020 to +0.000) | 0.3 |" in text
    assert "19.1 | 21.0 | × 21 |" in text
    assert "| six titles at 1, MiniLM | other | 0.647 | **+0.018 (+0.008 to +0.028)** | 0.01 |" in text
    assert "| Rocchio anchored, MiniLM | 0.5 | +0.012 (+0.001 to +0.020) | 100 (train) |" in text
    assert (
        "better than it after Holm's correction: 1 (Rocchio, MiniLM); worse: none; not decided by these queries: 5."
        in text
    )
    assert (
        "of 6 rows below that add something to an encoder, better than it are 1 (Rocchio, MiniLM on SciFact), worse 0"
        in text
    )
    assert "another query's in their place +0.002" in text
    assert "commit abc" in text
    assert set(plans.read_anchors(folder)) == {"scifact"}
    assert "files" not in json.loads((folder / "scifact.json").read_text())["systems"][0]
    assert page.main(["--check", "--folder", str(folder)]) == 0
    path = folder / "scifact.json"
    path.write_text(path.read_text().replace("0.665", "0.666"))
    assert page.main(["--check", "--folder", str(folder)]) == 1
    assert "is not what the JSON files say" in capsys.readouterr().err


def test_names_are_those_of_the_plan_also_where_an_older_version_wrote_into_the_folder(tmp_path, folder):
    record = measured()
    for row in record["systems"]:
        if "six titles" in row["model"]:
            row["model"] += "@19b22e84"
    text = gathered(tmp_path, folder, record)
    assert "@" not in text.replace("nDCG@10", "").replace("recall@10", "")
    assert "| six titles at 1, MiniLM | other | 0.647 |" in text


def test_a_task_with_a_failure_is_not_finished(tmp_path, folder):
    record = measured() | {"failures": [{"system": "HyDE, mini", "task": "t", "error": "broken"}]}
    with pytest.raises(ValueError, match="HyDE, mini failed, so the task is not finished"):
        gathered(tmp_path, folder, record)
    assert not (folder / "scifact.json").exists()
