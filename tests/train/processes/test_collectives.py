"""Two processes (gloo, CPU) with a share of the batch each give the loss and gradients of one process with all of it.

This file is also the program of the two processes: `python test_collectives.py FOLDER RANK`.
"""

import sys
import time
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.programs import printed, started
from train.config.grpo import PolicySettings
from train.config.loss import LossSettings
from train.losses.gathered import gathered_info_nce
from train.losses.gradcache import Forward, cached_backward
from train.losses.grpo import PolicyBatch, gathered_advantages, grpo_loss
from train.losses.stage1 import info_nce, kl_to_base, reply_cross_entropy, token_scores, triplet_margin
from train.processes import collectives
from train.processes.collectives import average_gradients, gather_rows, rank, rows_before, shared_count, world_size
from train.stage1.contrastive import BatchContrast
from train.stage1.distillation import Distillation

ROWS, LENGTH, DIM, VOCABULARY = 8, 5, 6, 20
SPLITS = {"half": (4, 4), "uneven": (5, 3), "all on one": (8, 0)}
# In mini-batches of 4 the process with 5 rows has two per column and runs them twice; that with 3 runs its one once.
DDP_CASES = {"DDP, two each": ("half", 2), "DDP, one each": ("half", 8), "DDP, two and one": ("uneven", 4)}
DISTILLED = ("half", "uneven")
SETTINGS = {
    "token": PolicySettings(kl_weight=0.1),
    "sequence": PolicySettings(normalisation="sequence", standardise=True),
}


class TinyModel(torch.nn.Module):
    """Token ids (rows, length) to hidden states (rows, length, dim), with a head."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = torch.nn.Embedding(VOCABULARY, DIM)
        self.layer = torch.nn.Linear(DIM, DIM)
        self.head = torch.nn.Linear(DIM, VOCABULARY)

    def forward(self, ids):
        return torch.tanh(self.layer(self.embedding(ids).cumsum(dim=1)))


def data():
    generator = torch.Generator().manual_seed(3)
    # Three groups of rollouts, one after the other: any split of the rows cuts a group in two.
    return {
        "queries": torch.randint(0, VOCABULARY, (ROWS, LENGTH), generator=generator),
        "documents": torch.randint(0, VOCABULARY, (ROWS, LENGTH), generator=generator),
        "hard": torch.randint(0, VOCABULARY, (ROWS, LENGTH), generator=generator),
        "query_ids": torch.tensor([0, 1, 2, 3, 4, 0, 5, 6]),  # rows 0 and 5 ask the same
        "document_ids": torch.tensor([10, 11, 12, 13, 14, 15, 11, 17]),  # rows 1 and 6 share a document
        "hard_ids": torch.tensor([20, 21, 22, 20, 10, 25, 26, 27]),  # row 0's positive is mined again by row 4
        "reply": torch.rand(ROWS, LENGTH, generator=generator) > 0.4,
        "groups": torch.tensor([5, 5, 5, 9, 9, 9, 2, 2]),
        "rewards": torch.tensor([0.1, 0.9, 0.3, 0.5, 0.2, 0.8, 0.4, 0.4]),  # the last group has no variance
        "old": -1 - torch.rand(ROWS, LENGTH, generator=generator),
    }


def mine(rows):
    """This process's rows of the batch."""
    if world_size() == 1:
        return data()
    start = sum(rows[: rank()])
    return {name: value[start : start + rows[rank()]] for name, value in data().items()}


def stage_one(model, rows, *, size=2, gather=True, no_sync=nullcontext):
    """All four losses of stage 1 with cached gradients; the contrastive ones over the batch of all processes."""
    module = getattr(model, "module", model)
    base, batch = TinyModel(seed=1).requires_grad_(False), mine(rows)
    here = len(batch["queries"])
    tokens = shared_count(int(batch["reply"].sum()))

    def reply(ids, marks):
        def run():
            hidden = model(ids)

            def local():
                args = hidden[marks], module.head
                cross_entropy = reply_cross_entropy(*args, ids[marks], count=tokens)
                return cross_entropy + kl_to_base(*args, base(ids)[marks], base.head, count=tokens)

            return Forward(hidden[:, -1], local)

        return run

    def contrastive(vectors):
        queries, documents, hard = vectors["queries"], vectors["documents"], vectors["hard"]
        ids = torch.cat([batch["document_ids"], batch["hard_ids"]])
        everything = torch.cat([documents, hard])
        if gather:
            loss = gathered_info_nce(queries, everything, torch.arange(here), ids, batch["query_ids"])
        else:
            loss = info_nce(queries, everything)
        return loss + triplet_margin(queries, documents, hard[:, None], count=shared_count(here))

    def vectors_of(name):
        return [lambda ids=ids: Forward(model(ids)[:, -1]) for ids in batch[name].split(size)]

    columns = {"documents": vectors_of("documents"), "hard": vectors_of("hard")}
    columns["queries"] = [
        reply(ids, marks) for ids, marks in zip(batch["queries"].split(size), batch["reply"].split(size))
    ]
    return cached_backward(columns, contrastive, no_sync=no_sync)


def stage_two(model, rows, settings, *, by_position=False):
    """GRPO on groups that are split over the processes."""
    batch = mine(rows)
    mask = batch["reply"]
    hidden = model(batch["queries"])
    log_probs = torch.zeros(mask.shape).masked_scatter(
        mask, token_scores(hidden[mask], model.head, batch["queries"][mask], temperature=0.7).log_probs
    )
    groups = torch.arange(len(mask)) // 2 if by_position else batch["groups"]
    advantages = gathered_advantages(batch["rewards"], groups, standardise=settings.standardise)
    count = shared_count(int(mask.sum()) if settings.normalisation == "token" else len(mask))
    policy = PolicyBatch(log_probs, batch["old"], mask, groups, batch["rewards"], batch["old"] - 0.2)
    result = grpo_loss(policy, settings, advantages=advantages, count=count)
    result.loss.backward()
    return result


def distilled(model, rows):
    """Vectors and similarities of a teacher; a query's similarities are those to the documents of all processes."""
    batch, taught = mine(rows), TinyModel(seed=5)
    columns = {"direct": batch["queries"], "documents": batch["documents"]}
    with torch.no_grad():
        targets = {name: torch.nn.functional.normalize(taught(ids)[:, -1], dim=-1) for name, ids in columns.items()}
    loss = Distillation(targets, 1.0, 0.1)({name: model(ids)[:, -1] for name, ids in columns.items()})
    loss.backward()
    return loss


def nested(model, rows):
    """InfoNCE over the whole vectors and two sizes, in mini-batches, against the documents of all processes."""
    batch = mine(rows)
    here = torch.arange(len(batch["queries"]))
    settings = LossSettings(reply=0.0, kl=0.0, triplet=0.0, matryoshka_dims=[2, 4], matryoshka_weights=[0.5, 2.0])
    contrast = BatchContrast(settings, {"queries": here}, batch["query_ids"], batch["document_ids"], here, here)
    columns = {
        name: [lambda ids=ids: Forward(model(ids)[:, -1]) for ids in batch[name].split(2)]
        for name in ("documents", "queries")
    }
    return cached_backward(columns, contrast).contrastive


def results(model, loss):
    """Loss averaged over the processes, and the gradients as the optimizer finds them."""
    loss = loss.detach().clone()
    if world_size() > 1:
        dist.all_reduce(loss)
    gradients = {
        name.removeprefix("module."): p.grad.clone() for name, p in model.named_parameters() if p.grad is not None
    }
    return {"loss": loss / world_size(), "gradients": gradients}


def every_case():
    """Case name -> results, in one process or as one of two."""
    found = {}
    for split, rows in SPLITS.items():
        model = TinyModel()
        loss = stage_one(model, rows)
        average_gradients(model.parameters())
        found[f"stage one, {split}"] = results(model, loss.contrastive + loss.local)
        for name, settings in SETTINGS.items():
            model = TinyModel()
            outcome = stage_two(model, rows, settings)
            average_gradients(model.parameters())
            found[f"GRPO {name}, {split}"] = results(model, outcome.loss) | {
                "groups": (outcome.advantages.groups, outcome.advantages.zero_variance_groups)
            }
    for split in DISTILLED:
        model = TinyModel()
        loss = distilled(model, SPLITS[split])
        average_gradients(model.parameters())
        found[f"distillation, {split}"] = results(model, loss)
        model = TinyModel()
        loss = nested(model, SPLITS[split])
        average_gradients(model.parameters())
        found[f"nested, {split}"] = results(model, loss)
    for name, (split, size) in DDP_CASES.items():
        model = TinyModel()
        wrapped = torch.nn.parallel.DistributedDataParallel(model) if world_size() > 1 else model
        no_sync = wrapped.no_sync if world_size() > 1 else nullcontext
        loss = stage_one(wrapped, SPLITS[split], size=size, no_sync=no_sync)
        found[name] = results(wrapped, loss.contrastive + loss.local)
    rows = SPLITS["half"]
    model = TinyModel()
    loss = stage_one(model, rows, gather=False)
    average_gradients(model.parameters())
    found["negatives not gathered"] = results(model, loss.contrastive + loss.local)
    model = TinyModel()
    outcome = stage_two(model, rows, SETTINGS["token"], by_position=True)
    average_gradients(model.parameters())
    found["groups by position"] = results(model, outcome.loss)
    return found


class UnsentError(Exception):
    """An error that cannot be made again from its arguments, so that it cannot be sent to another process."""

    def __init__(self, one, other):
        super().__init__(one)


def refusal():
    """What every process gets when the main process's work fails."""

    def fail():
        raise UnsentError("no disk", 1)

    try:
        collectives.on_main(fail)
    except RuntimeError as error:
        return str(error)


def edge_cases():
    """Cases that only several processes show; one dict per process."""
    mine = torch.full((3 * rank(), 2), float(rank() + 1), requires_grad=True)  # process 0 has no row
    gathered = gather_rows(mine)
    (gathered.sum(dim=1) * (rank() + 1)).sum().backward()  # process 0 weighs rows 1, process 1 weighs them 2
    unused = torch.nn.Parameter(torch.zeros(1))
    one_sided = torch.nn.Parameter(torch.zeros(1))
    if rank() == 0:
        one_sided.grad = torch.ones(1)
    average_gradients([unused, one_sided])
    collectives.STEP_WAIT = timedelta(seconds=0.2)  # shorter than the main process works
    worked = collectives.on_main(lambda: time.sleep(1) or "done")
    collectives.barrier()
    return {
        "gathered": gathered.detach(),
        "gradient": mine.grad,
        "counts": shared_count(3 * rank()),
        "before": rows_before(5 - rank()),
        "unused": unused.grad,
        "one_sided": one_sided.grad,
        "maximum": collectives.maximum({"a": float(rank()), "b": -float(rank())}),
        "worked": worked,
        "refused": refusal(),
    }


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Results of the two processes, after both have ended."""
    folder = tmp_path_factory.mktemp("two")
    printed(*(started(__file__, folder, number) for number in range(2)), timeout=120)
    return [torch.load(folder / f"{number}.pt", weights_only=True) for number in range(2)]


@pytest.fixture(scope="module")
def single():
    return every_case()


def assert_equal(actual, expected):
    torch.testing.assert_close(actual["loss"], expected["loss"], rtol=1e-5, atol=1e-5)
    assert actual["gradients"].keys() == expected["gradients"].keys()
    for name, gradient in expected["gradients"].items():
        torch.testing.assert_close(actual["gradients"][name], gradient, rtol=1e-5, atol=1e-5, msg=name)


CASES = [f"stage one, {split}" for split in SPLITS] + list(DDP_CASES)
CASES += [f"{what}, {split}" for what in ("distillation", "nested") for split in DISTILLED]
CASES += [f"GRPO {name}, {split}" for name in SETTINGS for split in SPLITS]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one(both, single, case):
    for process in both:
        assert_equal(process[case], single[case])
        assert process[case].get("groups") == single[case].get("groups")
    gradients = single[case]["gradients"].values()
    assert all(gradient.abs().max() > 1e-3 for gradient in gradients)  # equal, and not because nothing happens


def test_one_process_counts_its_groups(single):
    assert single["GRPO token, half"]["groups"] == (3, 1)


@pytest.mark.parametrize("case", ["negatives not gathered", "groups by position"])
def test_negative_control(both, single, case):
    """Each process for itself trains something else: the comparison above can fail."""
    right = {"negatives not gathered": "stage one, half", "groups by position": "GRPO token, half"}[case]
    with pytest.raises(AssertionError):
        assert_equal(both[0][case], single[right])


def test_gather_with_unequal_rows_and_one_sided_gradients(both):
    first, second = (process["edge cases"] for process in both)
    assert first["gathered"].tolist() == second["gathered"].tolist() == [[2.0, 2.0]] * 3
    assert first["gradient"].shape == (0, 2)
    assert second["gradient"].tolist() == [[3.0, 3.0]] * 3  # 1 from process 0 and 2 from itself
    assert first["counts"] == second["counts"] == 1.5
    assert (first["before"], second["before"]) == (0, 5)
    assert first["unused"] is second["unused"] is None
    assert first["one_sided"].item() == second["one_sided"].item() == 0.5
    assert first["maximum"] == second["maximum"] == {"a": 1.0, "b": 0.0}


def test_the_main_process_s_work_may_outlast_a_step(both):
    """And its error reaches every process, whatever its class."""
    for process in both:
        assert process["edge cases"]["worked"] == "done"
        assert process["edge cases"]["refused"] == "UnsentError: no disk"


def test_one_process_is_the_identity():
    tensor = torch.ones(2, 3, requires_grad=True)
    assert gather_rows(tensor) is tensor
    assert shared_count(5) == 5


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, number = Path(sys.argv[1]), int(sys.argv[2])
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=number, world_size=2)
    torch.save(every_case() | {"edge cases": edge_cases()}, folder / f"{number}.pt")
    dist.destroy_process_group()
