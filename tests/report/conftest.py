"""Made-up runs in the layout of `search-r3 evaluate`, `train/sft.py`, `train/rl.py` and MTEB: no model is run."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

TOPICS = ["river", "engine", "protein", "harbour", "novel", "bridge", "enzyme", "violin", "glacier", "satellite"]


@dataclass
class FakeRuns:
    """Writes run folders under `root`; what it wrote can be recomputed from its arguments."""

    root: Path
    commit: str = "0123456789abcdef"
    gains: dict[str, float] = field(default_factory=lambda: {"nano": 0.18})

    def evaluate(
        self,
        name="run",
        *,
        task="hopworld",
        models=("nano",),
        modes=("direct", "reason"),
        queries=60,
        seed=0,
        budget=64,
        hops=True,
        documents=1000,
        **extra,
    ) -> Path:
        """A complete run folder; `extra` overrides fields of every summary row."""
        folder = self.root / name
        (folder / "queries").mkdir(parents=True, exist_ok=True)
        summary_path = folder / "summary.json"
        rows = json.loads(summary_path.read_text()) if summary_path.exists() else []
        for model in models:
            for mode in modes:
                records = list(self.records(model, mode, queries, seed, budget, hops, documents))
                path = folder / "queries" / f"{task}__{model.replace('/', '_')}__{mode}.jsonl"
                path.write_text("".join(json.dumps(record) + "\n" for record in records))
                ndcg = float(np.mean([record["ndcg_at_10"] for record in records]))
                reasoning = mode == "reason"
                rows.append({
                    "task": task, "split": "test", "model": model, "mode": mode, "ndcg_at_10": ndcg,
                    "recall_at_10": float(np.mean([record["recall_at_10"] for record in records])),
                    "queries": queries, "documents": documents,
                    "reasoning_tokens_per_query": float(np.mean([r["reasoning_tokens"] for r in records])),
                    "forced_share": float(np.mean([not r["finished"] for r in records])) if reasoning else 0.0,
                    "seconds": 3.5, "queries_per_second": 8.0 if reasoning else 120.0, "seed": seed,
                    "commit": self.commit, "max_reasoning_tokens": budget if reasoning else None,
                    "command": f"search-r3 evaluate --model {model} --task {task} --mode {mode} --seed {seed}",
                    "fingerprint": f"{model}-{mode}-{seed}-{budget}", **extra,
                })  # fmt: skip
                self._mteb(folder, task, model, mode, ndcg)
        summary_path.write_text(json.dumps(rows, indent=1))
        return folder

    def records(self, model, mode, queries, seed, budget, hops, documents):
        """Per-query records: difficulty is shared by all runs, reasoning helps by `gains`, a seed adds noise."""
        difficulty = np.random.default_rng(7).normal(0.5, 0.3, queries)
        rng = np.random.default_rng([seed, budget, mode == "reason"])
        gain = self.gains.get(model, 0.0) * min(1.0, budget / 64) if mode == "reason" else 0.0
        quality = difficulty + gain + (rng.normal(0, 0.1, queries) if mode == "reason" else 0)
        lengths = rng.integers(4, 90, queries).tolist()
        quality = np.clip(np.round(quality, 2), 0, 1).tolist()
        for index in range(queries):
            ndcg = quality[index]
            rank = max(0, round((1 - ndcg) * 10))
            answer = f"d{index % documents}"
            ids = [f"d{(index * 7 + 13 * k) % documents}" for k in range(11)]
            ids = [key for key in ids if key != answer][:10]
            if rank < 10:
                ids.insert(rank, answer)
            topic = TOPICS[index % len(TOPICS)]
            length = min(lengths[index], budget)
            yield {
                "query_id": f"q{index}",
                "query": f"What is the country of the founder of the {topic} company number {index}?",
                "reasoning": f"The {topic} company number {index} was founded by person {index}. " * 2
                if mode == "reason" else None,
                "reasoning_tokens": length if mode == "reason" else 0,
                "finished": lengths[index] <= budget,
                "ndcg_at_10": ndcg,
                "recall_at_10": float(rank < 10),
                **({"hops": 1 + index % 4} if hops else {}),
                "top": [
                    {"id": d, "score": round(0.9 - 0.03 * k, 4), "relevance": int(d == answer), "text": self.text(d)}
                    for k, d in enumerate(ids[:10])
                ],
                "judged": [{"id": answer, "relevance": 1, "text": self.text(answer)}],
            }  # fmt: skip

    def peers(self) -> Path:
        """Published scores in the columns of the project's peers file: nine models on SciFact and on CosQA."""
        lines = [
            "model,revision,task,dataset_revision,mteb_version,split,subset,main_score,"
            "ndcg_at_10,mrr_at_10,recall_at_10"
        ]
        for task, revision in (("SciFact", "s1"), ("CosQA", "c1")):
            for rank in range(9):
                name = "sentence-transformers__all-MiniLM-L6-v2" if rank == 5 else f"org__peer-{rank}"
                ndcg = 0.6451 if (task, rank) == ("SciFact", 5) else round(0.9 - 0.05 * rank, 2)
                lines.append(f"{name},main,{task},{revision},2,test,default,{ndcg},{ndcg},{ndcg},{min(1, ndcg + 0.1)}")
        path = self.root / "peers.csv"
        path.write_text("\n".join(lines) + "\n")
        return path

    def broken(self) -> list[Path]:
        """Run folders with a missing task, half-written JSON, a model evaluated twice with two results, and NaN."""
        folders = [self.evaluate("whole"), self.evaluate("other-task", task="SciFact", models=("mini",), hops=False)]
        twice = self.evaluate("twice")
        for path in (twice / "queries").iterdir():
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            for row in rows:
                row["ndcg_at_10"] = row["ndcg_at_10"] / 2
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        summary = json.loads((twice / "summary.json").read_text())
        for row in summary:
            row["ndcg_at_10"] /= 2
        (twice / "summary.json").write_text(json.dumps(summary))
        half = self.evaluate("half", models=("half",))
        text = (half / "summary.json").read_text()
        (half / "summary.json").write_text(text[: len(text) // 2])
        queries = next((half / "queries").glob("*reason*"))
        queries.write_text(queries.read_text()[:-200])
        nan = self.evaluate("nan", models=("nan",), ndcg_at_10=float("nan"))
        queries = next((nan / "queries").glob("*direct*"))
        rows = [json.loads(line) for line in queries.read_text().splitlines()]
        rows[3]["ndcg_at_10"] = float("nan")
        queries.write_text("".join(json.dumps(row) + "\n" for row in rows))
        training = self.training("rl")
        log = (training / "log.jsonl").read_text().splitlines()
        log[5] = json.dumps(json.loads(log[5]) | {"loss": float("nan")})
        (training / "log.jsonl").write_text("\n".join(log)[:-30])
        empty = self.root / "empty"
        empty.mkdir()
        return [*folders, twice, half, nan, training, empty]

    @staticmethod
    def text(key):
        number = int(key[1:])
        topic, author, year = TOPICS[number % 10], number % 37, 1500 + number % 500
        return f"Document {number}. The {topic} was described by author {author} in the year {year}."

    def _mteb(self, folder, task, model, mode, ndcg):
        place = folder / "mteb" / "results" / f"search-r3__{model.replace('/', '_')}" / "0f0f" / "experiments"
        place /= f"mode_{mode}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{task}.json").write_text(json.dumps(self.mteb_result(task, ndcg)))
        meta = {"name": f"search-r3/{model}", "experiment_kwargs": {"mode": mode}}
        (place / "model_meta.json").write_text(json.dumps(meta))

    @staticmethod
    def mteb_result(task, ndcg):
        """A result file as MTEB writes it."""
        score = {"ndcg_at_10": ndcg, "recall_at_10": 0.8, "main_score": ndcg, "hf_subset": "default"}
        return {"dataset_revision": "r1", "task_name": task, "mteb_version": "2.26.24", "scores": {"test": [score]},
                "evaluation_time": 4.2, "kg_co2_emissions": None}  # fmt: skip

    def training(self, name="rl", kind="rl", steps=80) -> Path:
        """A training run folder with log.jsonl."""
        folder = self.root / name
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(1)
        events = []
        for step in range(1, steps + 1):
            row = {"event": "step", "step": step, "seconds": 0.2, "loss": 2 * 0.98**step + float(rng.normal(0, 0.02))}
            if kind == "sft":
                row |= {"loss_sft": 0.6 * row["loss"], "loss_kl": 0.01 * step, "loss_infonce": 0.3 * row["loss"]}
            else:
                row |= {"reward_mean": 0.4 + 0.004 * step, "forced_share": 0.2, "reasoning_tokens": 30.0 + step / 10}
            events.append(row)
            if step % 20 == 0:
                for mode, level in (("reason", 0.4), ("direct", 0.35)):
                    events.append({"event": "evaluate", "step": step, "mode": mode, "hops": None,
                                   "ndcg_at_10": level + step / 400})  # fmt: skip
                if kind == "rl":
                    error = {"recall_at_10": 0.97, "reward_error": 0.01 + step / 9000}
                    age = {"age_mean": step / 4, "age_max": float(step)}
                    events.append({"event": "audit", "step": step, **error, **age})
        (folder / "log.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
        return folder


@pytest.fixture
def runs(tmp_path):
    return FakeRuns(tmp_path)


@pytest.fixture(scope="session")
def make_runs():
    """FakeRuns for fixtures that live longer than one test."""
    return FakeRuns
