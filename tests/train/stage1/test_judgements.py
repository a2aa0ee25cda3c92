"""No document that any judgement calls relevant to a query is its negative: in one process, over two, hard and mined.

This file is also the program of the two processes: `python test_judgements.py RANK MEETING`.
"""

import json
import sys

import pytest
import torch

from search_r3_mteb.tasks.beir_folder import write_beir
from tests.programs import printed, started
from tests.train.loops import events, sft_config
from train.config.data import DataSettings, SourceSettings
from train.config.loss import LossSettings
from train.data.mixing import load_training_data
from train.data.sources import all_rows, open_source
from train.model.batches import text_ids
from train.processes import collectives
from train.run.run import Run
from train.sft import train
from train.stage1.contrastive import BatchContrast
from train.stage1.judgements import JudgedTexts
from train.stage1.step import SupervisedStep
from train.stage2.replay import Replay

DOCUMENTS = [f"document {letter}" for letter in "abcdefgh"]
A, B, C, D, E, F, G, H = DOCUMENTS


def beir(folder):
    """q0 has two documents and q1 one of them; d4 is a copy of d0; q3 asks what q0 asks, and is judged otherwise."""
    texts = [A, B, C, D, A, F]
    judged = [("q0", "d0", 1), ("q0", "d1", 2), ("q1", "d1", 1), ("q2", "d4", 1), ("q3", "d5", 1), ("q3", "d2", 0)]
    write_beir(
        folder,
        corpus=[(f"d{n}", "", text) for n, text in enumerate(texts)],
        queries=[("q0", "same"), ("q1", "other"), ("q2", "third"), ("q3", "same")],
        qrels={"train": judged},
    )
    return f'[[data.sources]]\nkind = "beir"\npath = "{folder}"\n'


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f'[[data.sources]]\nkind = "jsonl"\npath = "{path}"\n'


def source(path, kind):
    return SourceSettings(kind=kind, path=str(path))


WORLDS = {
    # The rows that meet in a batch by (query, positive), and the pairs that only judgements elsewhere know.
    "a folder's other judgements": (
        lambda f: beir(f / "beir"),
        [("same", A), ("other", B), ("third", A)],
        {("same", B), ("same", A)},
    ),
    "copies and another query id": (
        lambda f: beir(f / "beir"),
        [("same", F), ("third", A), ("other", B)],
        {("same", A), ("same", B)},
    ),
    "a list of positives": (
        lambda f: jsonl(f / "x.jsonl", [{"query": "q", "positive": [A, B]}, {"query": "r", "positive": B},
                                        {"query": "s", "positive": C}]),
        [("q", A), ("r", B), ("s", C)],
        {("q", B)},
    ),
    "another row of the query": (
        lambda f: jsonl(f / "x.jsonl", [{"query": "q", "positive": A}, {"query": "q", "positive": B},
                                        {"query": "r", "positive": B}, {"query": "s", "positive": C}]),
        [("q", A), ("r", B), ("s", C)],
        {("q", B)},
    ),
    "another source": (
        lambda f: jsonl(f / "x.jsonl", [{"query": "q", "positive": A}, {"query": "r", "positive": B}])
        + jsonl(f / "y.jsonl", [{"query": "q", "positive": {"title": "", "text": B}}, {"query": "s", "positive": C}]),
        [("q", A), ("r", B), ("s", C)],
        {("q", B)},
    ),
    "a hard negative": (
        lambda f: jsonl(f / "x.jsonl", [{"query": "q", "positive": A, "negatives": [B, C]},
                                        {"query": "q", "positive": B}]),
        [("q", A)],
        {("q", B)},
    ),
}  # fmt: skip


def picked(run, wanted):
    """The rows of these (query, positive), each once."""
    rows = {}
    for settings in run.config.data.sources:
        for row in all_rows(open_source(settings)):
            rows.setdefault((row.query, row.positive), row)
    return [rows[pair] for pair in wanted]


def negatives(contrast, rows):
    """The (query, document) pairs that the mask takes for negatives."""
    texts = [row.positive for row in rows] + [text for row in rows for text in row.negatives]
    mask = contrast._negatives([torch.arange(len(rows))], 0)
    return {(rows[i].query, texts[j]) for i, j in mask.nonzero().tolist()}


@pytest.mark.parametrize("name", WORLDS)
def test_what_is_judged_relevant_is_no_negative(tmp_path, name):
    write, wanted, relevant = WORLDS[name]
    run = Run.begin(
        sft_config(tmp_path / "run", "loss.hard_negatives=true", "data.hard_negatives=2", sources=write(tmp_path)),
    )
    rows = picked(run, wanted)
    _, contrast = SupervisedStep(run, run.config.loss).prepare(rows)
    found = negatives(contrast, rows)
    assert found, "the control: other documents are negatives"
    assert not found & relevant
    own = [(r.query, r.positive) for r in rows]
    contrast.relevant = contrast.relevant[:0]
    assert negatives(contrast, rows) & relevant - set(own), "the control: the rows alone do not know it"


def test_a_judgement_of_0_stays_a_negative(tmp_path):
    run = Run.begin(sft_config(tmp_path / "run", sources=beir(tmp_path / "beir")))
    data = run.data
    assert {pair.document for pair in data.judgements() if pair.query == "same"} == {A, B, F}
    table = JudgedTexts.of(data)
    same, other = text_ids(["same", "other"])
    assert len(table.of_queries(same[None])) == 3
    assert len(table.of_queries(other[None])) == 0  # its only document is known from its row
    assert table.of_queries(torch.stack([same, other, same])).shape == (3, 2)
    assert JudgedTexts([]).of_queries(same[None]).shape == (0, 2)


def test_a_loss_does_not_push_from_a_document_that_another_row_calls_relevant(tmp_path):
    """Through the loop: with the row (q, B) in the file, the batch without it has one negative less."""
    rows = [{"query": "q", "positive": A}, {"query": "r", "positive": B}]
    more = [*rows, {"query": "q", "positive": B}]
    losses = []
    for number, content in enumerate((rows, more)):
        text = jsonl(tmp_path / f"{number}.jsonl", content)
        run = Run.begin(sft_config(tmp_path / f"run{number}", "loss.reply=0", sources=text))
        losses.append(SupervisedStep(run, run.config.loss).backward(picked(run, [("q", A), ("r", B)]))["infonce"])
    assert losses[1] < losses[0] - 0.1


def test_mined_negatives_are_compared_with_all_positives_and_keep_them(tmp_path):
    """The source says A and B in one row: B is neither mined for q, nor lost from its positives."""
    text = jsonl(tmp_path / "x.jsonl", [{"query": "q", "positive": [A, B]}, {"query": "r", "positive": B},
                                        {"query": "s", "positive": C}, {"query": "t", "positive": D}])  # fmt: skip
    settings = [
        "data.hard_negatives=3", "loss.hard_negatives=true", "data.mining.count=3", "data.mining.relative_margin=0.0",
        "optimization.steps=1",
    ]  # fmt: skip
    train(sft_config(tmp_path / "run", *settings, sources=text))
    (mined,) = (tmp_path / "run/mined").glob("*.jsonl")
    rows = {row.query: row for row in all_rows(open_source(source(mined, "jsonl")))}
    assert [text for _, text in rows["q"].positives] == [A, B]
    assert not {A, B} & set(rows["q"].negatives)
    assert rows["r"].negatives or rows["s"].negatives
    second = {row.query: row for row in (open_source(source(mined, "jsonl")).parse(raw, 1)
                                         for raw in open_source(source(mined, "jsonl")).iterate())}  # fmt: skip
    assert second["q"].positive == B, "the second epoch takes the second positive"


def test_a_replay_knows_the_judgements_of_its_own_rows(tmp_path, model):
    from tests.train.loops import rl_config

    path = tmp_path / "x.jsonl"
    jsonl(path, [{"query": "q", "positive": A}, {"query": "q", "positive": B}, {"query": "r", "positive": B}])
    settings = ["replay.rows_per_step=2", f'replay.sources=[{{kind = "jsonl", path = "{path}"}}]']
    run = Run.begin(rl_config(tmp_path / "run", model, *settings), unit="query")
    replay = Replay.begin(run)
    assert len(replay.step.judgements.of_queries(text_ids(["q"]))) == 2


def test_rows_that_the_hub_streams_are_not_read_ahead(tmp_path, caplog):
    """What cannot be read without a download is said; a local dataset is read as a file is."""
    rows = jsonl(tmp_path / "x.jsonl", [{"query": "q", "positive": A}, {"query": "q", "positive": B}])
    assert rows
    data = load_training_data(DataSettings(sources=(source(tmp_path / "x.jsonl", "jsonl"),)), batch_size=2, seed=0)
    assert len(list(data.judgements())) == 2
    data.streams[0].source.local = False
    assert not list(data.judgements())
    JudgedTexts.of(data)
    assert "x.jsonl is streamed from the hub" in caplog.text


# ---- two processes ---------------------------------------------------------------------------------------------------

ROWS = [("q", A), ("r", B), ("s", C), ("t", A)]
KNOWN = [("q", A), ("q", B), ("s", A), ("s", C)]


def share(rank, size):
    """The (query, document) pairs that a process's mask takes for negatives."""
    part = len(ROWS) // size
    rows = ROWS[rank * part : (rank + 1) * part]
    queries, documents = text_ids([q for q, _ in rows]), text_ids([d for _, d in rows])
    contrast = BatchContrast(
        settings=LossSettings(),
        rows={"direct": torch.arange(part)},
        query_ids=queries,
        document_ids=documents,
        positives=torch.arange(part),
        owners=torch.arange(part),
        relevant=JudgedTexts(KNOWN).of_queries(queries),
    )
    mask = contrast._negatives([torch.arange(part)], collectives.rows_before(part))
    return sorted([rows[i][0], ROWS[j][1]] for i, j in mask.nonzero().tolist())


@pytest.mark.slow
def test_two_processes_know_what_one_knows(tmp_path):
    processes = [started(__file__, rank, tmp_path / "meeting") for rank in (0, 1)]
    found = [json.loads(output.splitlines()[-1]) for output in printed(*processes)]
    assert sorted(found[0] + found[1]) == share(0, 1)
    assert not {tuple(pair) for part in found for pair in part} & set(KNOWN)
    assert ["q", C] in found[0], "the control: the other process's documents are negatives"
    assert ["s", B] in found[1]


def test_a_process_without_negatives_has_a_backward_pass_too(tmp_path, monkeypatch):
    """All documents are relevant to this process's queries: its share is 0, and the others are not left waiting."""
    queries, documents = text_ids(["q"]), text_ids([A])
    shared = {"rows": {"direct": torch.arange(1)}, "query_ids": queries, "document_ids": documents}
    shared |= {"positives": torch.arange(1), "owners": torch.arange(1)}
    contrast = BatchContrast(settings=LossSettings(triplet=0.0), **shared)
    triplet_alone = BatchContrast(settings=LossSettings(infonce=0.0), **shared)
    vectors = {"documents": torch.ones(1, 2, requires_grad=True), "direct": torch.ones(1, 2, requires_grad=True)}
    for one in (contrast, triplet_alone):  # which would be a loss of 0, step after step
        with pytest.raises(ValueError, match="No query of any process has a negative"):
            one(vectors)
    monkeypatch.setattr(collectives, "shared_count", lambda here, device=None: 1.0)
    loss = contrast(vectors)
    loss.backward()
    assert loss.item() == 0
    assert all(not vector.grad.any() for vector in vectors.values())


def test_a_run_over_several_positives_goes_to_its_end(tmp_path):
    text = jsonl(tmp_path / "x.jsonl", [{"query": f"q{n}", "positive": DOCUMENTS[n : n + 3]} for n in range(6)])
    train(sft_config(tmp_path / "run", "optimization.batch_size=6", sources=text))
    assert len(events(tmp_path / "run", "step")) == 3


if __name__ == "__main__":
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=int(sys.argv[1]), world_size=2)
    print(json.dumps(share(int(sys.argv[1]), 2)))
    dist.destroy_process_group()
