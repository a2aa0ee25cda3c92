import json

import pytest
import yaml

from search_r3_mteb.report.model_card import (
    Facts,
    facts_of_run,
    write_model_card,
)

CONFIG = """
[model]
path = "Qwen/Qwen2.5-1.5B-Instruct"
[[data.sources]]
kind = "hopworld"
hops = [1, 2]
weight = 1.0
[[data.sources]]
kind = "jsonl"
path = "data/pairs/arxiv.jsonl.gz"
weight = 2.0
[loss]
reply = 1.0
kl = 0.0
infonce = 2.0
triplet = 0.0
temperature = 0.05
margin = 0.1
kl_direction = "reverse"
[optimization]
seed = 3
[evaluate]
max_reasoning_tokens = 64
"""

ROW = {
    "task": "SciFact", "split": "test", "mode": "reason", "ndcg_at_10": 0.51234, "recall_at_10": 0.7,
    "interval": [0.47, 0.55], "queries": 300, "reasoning_tokens_per_query": 41.26, "seed": 0,
    "commit": "0123456789abcdef0",
}  # fmt: skip


def card(tmp_path, **changes):
    facts = Facts(**({"name": "nano", "license": "Apache-2.0", "stage": "sft", "results": (ROW,)} | changes))
    path = write_model_card(tmp_path, facts)
    text = path.read_text()
    _, header, body = text.split("---\n", 2)
    return facts, yaml.safe_load(header), body


def test_the_card_of_a_training_run(runs):
    run = runs.training("run", "sft")
    (run / "config.toml").write_text(CONFIG)
    facts = facts_of_run(run, name="mini", license="Apache-2.0", licences={"arxiv.jsonl.gz": "CC0"})
    (runs.root / "model").mkdir()
    text = write_model_card(runs.root / "model", facts).read_text()
    for expected in (
        "# mini", "trained from Qwen/Qwen2.5-1.5B-Instruct", "licence: CC0", "chains of 1 and 2 hops",
        "cross-entropy on the reply and the embed token; weight 1", "InfoNCE over cosine, temperature 0.05; weight 2",
        'kind = "hopworld"', "Optimizer steps: 80", "Seed: 3", "## Limits", "may not emit the embed token",
        "subject to the licence of the base model", "| held-out queries | dev | reason | 0.600 |",
    ):  # fmt: skip
        assert expected in text, expected
    assert "KL divergence" not in text  # its weight is 0
    assert "triplet" not in text.split("<details>")[0]
    assert json.loads((runs.root / "model" / "model_card.json").read_text())["config"] == facts.config == CONFIG


def test_what_a_run_replayed_is_training_data(runs):
    """Regression: the card of a second stage named its own questions alone."""
    run = runs.training("run", "rl")
    kept = '[[replay.sources]]\nkind = "hopworld"\nname = "facts"\nhops = [1]\nweight = 1.0\n'
    replay = f"[replay]\nrows_per_step = 0\n{kept}"
    (run / "config.toml").write_text(f"{CONFIG}\n{replay}")
    *own, replayed = facts_of_run(run, name="mini", license="Apache-2.0").data
    assert (replayed.name, replayed.note) == ("facts", "Generated: chains of 1 hop. Replayed in this stage.")
    assert [source.note for source in own] == ["Generated: chains of 1 and 2 hops.", ""]
    (run / "config.toml").write_text(CONFIG)
    assert list(facts_of_run(run, name="mini", license="Apache-2.0").data) == own, "the control"


def test_results_stand_in_the_header_and_in_the_table(tmp_path):
    _, header, body = card(tmp_path)
    [result] = header["model-index"][0]["results"]
    assert result["task"]["type"] == "Retrieval"
    assert {metric["type"]: metric["value"] for metric in result["metrics"]} == {
        "ndcg_at_10": 0.51234,
        "recall_at_10": 0.7,
    }
    assert header["license"] == "apache-2.0"
    assert "| SciFact | test | reason | 0.512 | 0.470 to 0.550 | 0.700 | 41.3 | 300 | 0 |" in body
    assert "Commit 0123456789ab." in body


def test_hops_and_modes_are_results_of_their_own(tmp_path):
    rows = tuple(ROW | {"mode": mode, "hops": hops} for mode in ("direct", "reason") for hops in (1, 2))
    _, header, body = card(tmp_path, results=rows)
    assert len(header["model-index"][0]["results"]) == 4
    assert "| SciFact, 2 hops |" in body


def test_a_card_without_results_says_so(tmp_path):
    _, header, body = card(tmp_path, results=())
    assert "Not evaluated yet" in body
    assert "model-index" not in header
    assert body.count("Not recorded.") == 2


def test_no_machine_path_in_a_card(runs):
    base = runs.root / "base-model"
    base.mkdir()
    run = runs.training("run", "sft")
    (run / "config.toml").write_text(CONFIG.replace("Qwen/Qwen2.5-1.5B-Instruct", str(base)))
    facts = facts_of_run(run, name="mini", license="Apache-2.0")
    assert facts.base_model == "base-model"
    assert str(runs.root) not in write_model_card(base, facts).read_text().split("<details>")[0]


def test_errors(tmp_path, runs):
    with pytest.raises(FileNotFoundError, match="save the checkpoint first"):
        write_model_card(tmp_path / "nowhere", Facts("a", "MIT", "sft"))
    with pytest.raises(ValueError, match="needs a license, got ''"):
        write_model_card(tmp_path, Facts("a", "", "sft"))
    with pytest.raises(FileNotFoundError, match=r"config\.toml is missing"):
        facts_of_run(runs.training("run", "sft"), name="a", license="MIT")
