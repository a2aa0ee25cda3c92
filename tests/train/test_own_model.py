"""A new user's way, by commands alone: an own model and own rows -> init -> stage 1 -> stage 2 -> evaluate."""

import json
from pathlib import Path

import pytest
import torch

from search_r3_mteb.tasks.beir_folder import write_beir
from tests.conftest import build_model, build_tokenizer
from tests.train.loops import events, weights
from train import rl, sft

CONFIGS = Path(__file__).resolve().parents[2] / "train" / "configs"
SMALL = ["--set", "data.max_length=1500", "--set", "optimization.mini_batch_size=none"]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A directory with an untied Llama without the token, rows with several positives, and a judged folder."""
    monkeypatch.chdir(tmp_path)
    build_model("llama", tie_word_embeddings=False).save_pretrained("base")
    build_tokenizer(with_embed_token=False).save_pretrained("base")
    facts = [(f"d{i}", "", f"city {i} lies on river {i % 7}") for i in range(24)]
    rows = [
        {
            "query": f"where is city {i}?",
            "positive": [facts[i][2], f"river {i % 7} flows by city {i}"],
            "negatives": [facts[(i + 1) % 24][2]],
            "reasoning": f"river {i % 7}",
        }
        for i in range(24)
    ]
    folder = Path("data/own")
    queries = [(f"q{i}", rows[i]["query"]) for i in range(6)]
    write_beir(folder, corpus=facts, queries=queries, qrels={"test": [(f"q{i}", f"d{i}", 1) for i in range(6)]})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_the_whole_way_by_commands(home, call, capsys, monkeypatch):
    code, _, _ = call("init", "base", "--output", "runs/own/start")
    assert code == 0

    stage_one = ["--config", str(CONFIGS / "own_sft.toml"), *SMALL]
    sft.main([*stage_one, "--dry-run"])
    assert "source rows.jsonl: 24 of 24 rows read; on average 2.0 relevant" in capsys.readouterr().out
    short = ["--set", "optimization.warmup_steps=2"]
    sft.main([*stage_one, "--set", "optimization.steps=12", "--set", "optimization.batch_size=4", *short])
    assert events("runs/own/sft", "warning") == []

    stage_two = ["--config", str(CONFIGS / "own_rl.toml"), *SMALL, "--set", "rollout.max_reasoning_tokens=8"]
    rl.main([*stage_two, "--dry-run"])
    shown = capsys.readouterr().out
    assert "# model: runs/own/sft/last is an adapter: its training goes on" in shown
    assert "# corpus cache: 48 documents of" in shown, "all positives of every row are searched"
    small = [
        "rollout.prompts_per_step=4",
        "rollout.group_size=2",
        "optimization.steps=2",
        "optimization.warmup_steps=0",
    ]
    rl.main([*stage_two, *[part for one in small for part in ("--set", one)]])
    assert "the training of the adapter runs/own/sft/last goes on" in capsys.readouterr().out
    assert len(events("runs/own/rl", "step")) == 2
    card = Path("runs/own/sft/last/README.md").read_text()
    assert 'SearchR3Encoder("runs/own/sft/last"' in card, "a path that works where the training ran"
    assert "# the path of this folder" in card
    before, after = weights("runs/own/sft/last"), weights("runs/own/rl/last")
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)

    elsewhere = home / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)  # the base was named by a relative path
    arguments = ["--task", f"beir:{home / 'data/own'}", "--mode", "both", "--max-reasoning-tokens", "8"]
    arguments += ["--set", "max_length=1500"]
    code, _, error = call("evaluate", "--model", home / "runs/own/rl/last", *arguments, "--output", "results")
    assert code == 0, error
    found = json.loads((elsewhere / "results/summary.json").read_text())
    assert "ndcg" in json.dumps(found).lower()
