"""Saving and resuming: bit-equal, refused where damaged or foreign, and complete whenever the process dies."""

import copy
import json
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.dying import killed_before
from tests.programs import mostly_slow, python
from tests.train.checkpoint.checkpoint_worker import CONFIG, Numbers, everything, new_state, one_step
from train.checkpoint.folders import CheckpointError, best, checkpoints, read
from train.checkpoint.save_load import TrainingState, load_latest, save
from train.checkpoint.weights import trained_tensors

WORKER = Path(__file__).with_name("checkpoint_worker.py")


def run(folder, steps, *, save_at=(), state=None, **keywords):
    state = new_state() if state is None else state
    for step in range(1, steps + 1):
        one_step(state)
        if step in save_at:
            save(folder, step, state, config=CONFIG, **keywords)
    return state


def equal(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("stop", [1, 5, 9])
def test_a_resumed_run_is_bit_equal(tmp_path, stop):
    whole = everything(run(tmp_path / "a", 10))
    run(tmp_path / "b", stop, save_at=[stop])
    torch.manual_seed(99)  # another process
    random.seed(99)
    resumed = new_state(seed=3)
    found = load_latest(tmp_path / "b", resumed, config=CONFIG)
    assert found.step == stop
    run(tmp_path / "b", 10 - stop, state=resumed)
    assert equal(everything(resumed), whole)


@pytest.mark.parametrize("forgotten", ["torch", "python", "numpy", "generator", "moments", "schedule", "data"])
def test_negative_control_each_part_of_the_state_matters(tmp_path, forgotten):
    whole = everything(run(tmp_path / "a", 10))
    run(tmp_path / "b", 5, save_at=[5])
    state = new_state()
    load_latest(tmp_path / "b", state, config=CONFIG)
    {
        "torch": lambda: torch.manual_seed(1),
        "python": lambda: random.seed(1),
        "numpy": lambda: np.random.seed(1),  # noqa: NPY002
        "generator": lambda: state.streams["rollouts"].generator.manual_seed(1),
        "moments": lambda: state.optimizer.state.clear(),
        "schedule": lambda: state.streams["schedule"].load_state_dict(
            {"last_epoch": 0, "_last_lr": [0.05], "base_lrs": [0.05]}
        ),
        "data": lambda: state.streams["data"].load_state_dict({"position": 0}),
    }[forgotten]()
    run(tmp_path / "b", 5, state=state)
    assert not equal(everything(state), whole)


def test_nothing_there_is_none(tmp_path):
    assert load_latest(tmp_path / "nothing", new_state(), config=CONFIG) is None
    assert best(tmp_path / "nothing") is None


def test_the_folder_holds_no_pickle(tmp_path):
    run(tmp_path, 1, save_at=[1])
    names = sorted(p.name for p in (tmp_path / "step-000001").iterdir())
    assert names == [
        "manifest.json",
        "optimizer.json",
        "optimizer.safetensors",
        "random-00000.json",
        "random-00000.safetensors",
        "state.json",
        "state.safetensors",
        "weights.safetensors",
    ]
    manifest = json.loads((tmp_path / "step-000001" / "manifest.json").read_text())
    assert manifest["step"] == 1
    assert set(manifest["files"]) == set(names) - {"manifest.json"}


def test_a_step_that_is_saved_again_replaces_the_old_one(tmp_path):
    state = run(tmp_path, 1, save_at=[1])
    with torch.no_grad():
        state.model[0].weight.fill_(7.0)
    save(tmp_path, 1, state, config=CONFIG)
    other = new_state()
    load_latest(tmp_path, other, config=CONFIG)
    assert torch.equal(other.model[0].weight, torch.full((16, 8), 7.0))
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]


def test_the_newest_and_the_best_are_kept(tmp_path):
    state = new_state()
    for step, score in enumerate([0.1, 0.9, 0.2, 0.9, None, 0.3], start=1):
        save(tmp_path, step, state, config=CONFIG, score=score, keep=2)
    assert [p.name for p in checkpoints(tmp_path)] == ["step-000002", "step-000005", "step-000006"]
    assert best(tmp_path).name == "step-000002"
    assert read(best(tmp_path)).score == 0.9
    with pytest.raises(ValueError, match=r"keep = 0"):
        save(tmp_path, 7, state, config=CONFIG, keep=0)
    with pytest.raises(ValueError, match=r"score = nan"):
        save(tmp_path, 7, state, config=CONFIG, score=float("nan"))


@pytest.fixture
def three(tmp_path):
    """Checkpoints of steps 1, 2 and 3, with a payload."""

    def payload(path):
        (path / "cache").mkdir()
        (path / "cache" / "vectors.npy").write_bytes(b"vectors" * 100)

    run(tmp_path, 3, save_at=[1, 2, 3], keep=3, extra=payload)
    return tmp_path


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


FILES = [
    "weights.safetensors",
    "optimizer.json",
    "optimizer.safetensors",
    "state.json",
    "state.safetensors",
    "random-00000.json",
    "random-00000.safetensors",
    "extra/cache/vectors.npy",
]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    ("damage", "reason"),
    [(cut_off, "has .* bytes, its manifest says"), (flip, "SHA-256"), (Path.unlink, "is missing")],
)
def test_a_damaged_checkpoint_is_refused_and_the_one_before_is_offered(three, file, damage, reason):
    damage(three / "step-000003" / file)
    state = new_state()
    untouched = copy.deepcopy(state.model.state_dict())
    with pytest.raises(CheckpointError, match=rf"step-000003 is refused: {file}.*{reason}.*step-000002") as caught:
        load_latest(three, state, config=CONFIG)
    assert caught.value.previous.name == "step-000002"
    assert caught.value.checkpoint.name == "step-000003"
    assert equal(state.model.state_dict().values(), untouched.values())
    found = load_latest(three, state, config=CONFIG, fallback=True)
    assert found.step == 2
    assert "step-000003 is refused" in found.refused[0]
    assert state.notes["drawn"] != []


def rewrite(path, **changes):
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | changes))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda p: (p / "manifest.json").unlink(), "there is no manifest.json, so it is not complete"),
        (lambda p: cut_off(p / "manifest.json"), "manifest.json is damaged|bytes"),
        (lambda p: (p / "manifest.json").write_text("[]"), "is not that of a search-r3 training checkpoint"),
        (lambda p: rewrite(p, format="another program"), "is not that of a search-r3 training checkpoint"),
        (lambda p: rewrite(p, version=99), "format version 99, this program reads 1"),
        (lambda p: rewrite(p, files="gone"), "manifest.json is damaged"),
        (lambda p: rewrite(p, step=7), "its manifest is of step 7, so the folder was renamed"),
        (lambda p: (p / "extra" / "more").write_text("x"), "extra/more is not in its manifest"),
    ],
)
def test_a_half_written_or_foreign_folder_is_refused(three, spoil, reason):
    spoil(three / "step-000003")
    if reason.startswith("manifest.json is damaged|"):
        (three / "step-000003" / "manifest.json").write_text('{"format": ')
    with pytest.raises(CheckpointError, match=rf"step-000003 is refused: .*({reason}).*step-000002"):
        load_latest(three, new_state(), config=CONFIG)
    assert load_latest(three, new_state(), config=CONFIG, fallback=True).step == 2


def test_without_a_good_one_before_fallback_does_not_invent_one(three):
    for step in (1, 2, 3):
        flip(three / f"step-00000{step}" / "weights.safetensors")
    with pytest.raises(CheckpointError, match=r"step-000003.*There is no good one before it") as caught:
        load_latest(three, new_state(), config=CONFIG, fallback=True)
    assert caught.value.previous is None


def test_other_settings_are_named(three):
    with pytest.raises(
        CheckpointError, match=r"written under other settings \(loss.kl: 1.0 -> 0.5; new: 'absent' -> 3\)"
    ):
        load_latest(three, new_state(), config={"loss.kl": 0.5, "new": 3, "output.folder": "free to change"})
    assert load_latest(three, new_state(), config=CONFIG | {"evaluate.every": 3}).step == 3


def with_model(model, lr=0.05):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    state = new_state()
    state.model, state.optimizer = model, optimizer
    state.streams["schedule"] = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)
    return state


def test_other_models_are_refused_by_tensor(three):
    def model(width=16, last=8):
        return nn.Sequential(
            nn.Linear(8, width), nn.Dropout(0.3), nn.BatchNorm1d(width), nn.GELU(), nn.Linear(width, last)
        )

    with pytest.raises(CheckpointError, match=r"another model: 0.weight is F32 \[16, 8\] there, F32 \[12, 8\] here"):
        load_latest(three, with_model(model(width=12)), config=CONFIG)
    with pytest.raises(CheckpointError, match=r"another model: 0.weight is F32 .* there, BF16 .* here"):
        load_latest(three, with_model(model().bfloat16()), config=CONFIG)
    with pytest.raises(CheckpointError, match=r"the model has, the checkpoint does not, the tensor 5.bias"):
        load_latest(three, with_model(model().append(nn.Linear(8, 8))), config=CONFIG)
    with pytest.raises(CheckpointError, match=r"the checkpoint has, the model does not, the tensor 4.bias"):
        load_latest(three, with_model(model()[:4]), config=CONFIG)
    state = with_model(model())
    state.optimizer = torch.optim.AdamW(reversed(list(state.model.parameters())))
    with pytest.raises(CheckpointError, match=r"its optimizer holds other parameters, or the same in another order"):
        load_latest(three, state, config=CONFIG)


def test_missing_parts_and_other_data_are_refused(three):
    state = new_state()
    del state.streams["data"]
    with pytest.raises(CheckpointError, match="written with a data state"):
        load_latest(three, state, config=CONFIG)
    state = new_state()
    state.streams["replay"] = Numbers()
    with pytest.raises(CheckpointError, match="written without a replay state"):
        load_latest(three, state, config=CONFIG)

    class Refusing(Numbers):
        def load_state_dict(self, state):
            raise ValueError("x.jsonl had 10 rows")

    state = new_state()
    state.streams["data"] = Refusing()
    with pytest.raises(CheckpointError, match=r"step-000003.*data state does not fit this run: x.jsonl had 10 rows"):
        load_latest(three, state, config=CONFIG)


def test_only_what_is_trained_is_stored_and_another_base_is_refused(tmp_path):
    def model(seed):
        torch.manual_seed(seed)
        base = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 2))
        base[0].requires_grad_(False)
        return base

    state = TrainingState(model(0), torch.optim.AdamW(model(0)[1].parameters()))
    state.optimizer = torch.optim.AdamW(state.model[1].parameters())
    save(tmp_path, 1, state, config=CONFIG)
    assert sorted(trained_tensors(state.model)) == ["1.bias", "1.weight"]
    assert (tmp_path / "step-000001" / "weights.safetensors").stat().st_size < 2000
    same, other = model(0), model(1)
    load_latest(tmp_path, TrainingState(same, torch.optim.AdamW(same[1].parameters())), config=CONFIG)
    with pytest.raises(CheckpointError, match="its frozen weights were others"):
        load_latest(tmp_path, TrainingState(other, torch.optim.AdamW(other[1].parameters())), config=CONFIG)


def test_tied_weights_stay_tied(tmp_path):
    def model():
        pair = nn.ModuleDict({"embed": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
        pair["head"].weight = pair["embed"].weight
        return pair

    first, second = model(), model()
    save(tmp_path, 1, TrainingState(first, torch.optim.AdamW(first.parameters())), config=CONFIG)
    load_latest(tmp_path, TrainingState(second, torch.optim.AdamW(second.parameters())), config=CONFIG)
    assert second["head"].weight is second["embed"].weight
    assert torch.equal(second["head"].weight, first["embed"].weight)


@pytest.mark.slow
def test_a_sharded_run_resumes_sharded_and_on_one_process(tmp_path):
    results = worker("sharded", tmp_path)
    assert results["resumed"] == results["whole"]
    assert results["alone"] == results["saved"]


def test_a_payload_that_fails_leaves_the_checkpoint_before(three):
    def failing(path):
        (path / "half").write_text("x")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        save(three, 4, new_state(), config=CONFIG, extra=failing)
    found = load_latest(three, new_state(), config=CONFIG)
    assert found.step == 3
    assert (found.extra / "cache" / "vectors.npy").read_bytes() == b"vectors" * 100
    save(three, 4, new_state(), config=CONFIG)  # and what was left behind is tidied up
    assert not list(three.glob(".*"))


def test_death_before_every_single_file_operation(tmp_path):
    """The n-th flush, rename or removal never happens, for every n: the old or the new step is there, complete."""
    reference = tmp_path / "reference"
    state = run(reference, 3, save_at=[1, 2, 3], keep=2)
    one_step(state)

    def dies_at(moment, step):
        """Whether a save of `step` died; then both what is there and the next save are checked."""
        folder = tmp_path / "folder"
        shutil.copytree(reference, folder)
        with killed_before(moment) as died:
            save(folder, step, state, config=CONFIG, keep=2)
        found = load_latest(folder, new_state(), config=CONFIG)
        assert found.refused == ()
        assert found.step in (3, step)
        save(folder, 5, state, config=CONFIG, keep=1)
        assert [p.name for p in folder.iterdir()] == ["step-000005"]
        shutil.rmtree(folder)
        return bool(died), found.step

    for step in (3, 4):  # the same step again, and a new one
        outcomes = []
        while not outcomes or outcomes[-1][0]:
            outcomes.append(dies_at(len(outcomes), step))
        assert len(outcomes) > 12
        assert {found for _, found in outcomes} == {3, step}


def worker(*arguments, timeout=100):
    return json.loads(python(WORKER, *arguments, timeout=timeout).splitlines()[-1])


@pytest.mark.parametrize("count", mostly_slow([4, 50]))
def test_a_run_killed_at_random_moments_ends_as_if_nothing_had_happened(tmp_path, count):
    result = worker("kills", tmp_path, count, timeout=300)
    assert result["kills"] == count
    assert result["equal"]
    assert not result["accelerate"]  # it works with it, and without
    assert result["left"] == ["step-000006", "step-000011", "step-000012"]  # best, and the newest two


def test_two_processes_save_and_any_number_resumes(tmp_path):
    results = worker("processes", tmp_path)
    saved = [results[f"save-2-{n}"]["next"] for n in range(2)]
    assert saved[0] != saved[1]  # each process has generators of its own
    for size in (1, 2, 3):
        resumed = [results[f"resume-{size}-{n}"] for n in range(size)]
        assert {r["step"] for r in resumed} == {1}
        assert len({r["weight"] for r in resumed}) == 1
        assert [r["next"] for r in resumed][:2] == saved[:size]
    assert results["resume-3-2"]["next"] not in saved
    for number in range(2):  # what fails on the main process is raised on all of them
        assert results[f"fail-2-{number}"]["error"] == "ZeroDivisionError"
        assert re.search(r"step-000001 is refused: .*loss.kl: 1.0 -> 2.0", results[f"fail-2-{number}"]["refused"])
