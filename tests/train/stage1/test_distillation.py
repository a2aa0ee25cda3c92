"""Distillation: both terms by hand, and a run whose vectors come nearer to a real sentence-transformers teacher."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from search_r3_mteb.encoder.prompts import Renderer
from tests.conftest import save_sentence_transformer
from tests.evaluation.conftest import SHORT
from tests.train.loops import events, sft_config
from train.config.loss import LossSettings
from train.data.rows import TrainingRow
from train.sft import train
from train.stage1.distillation import Distillation, Teacher, cosine_distance, similarity_divergence
from train.stage1.step import SupervisedStep


def test_cosine_distance_by_hand():
    vectors = torch.tensor([[3.0, 0.0], [0.0, 2.0]], requires_grad=True)
    targets = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert float(cosine_distance(vectors, targets).detach()) == pytest.approx(0.5)  # (0 + 1) / 2, whatever the lengths
    assert float(cosine_distance(vectors, targets, count=4).detach()) == pytest.approx(0.25)
    with pytest.raises(ValueError, match=r"shape \(2, 2\), the teacher \(2, 3\).*teacher of the model's width"):
        cosine_distance(vectors, torch.ones(2, 3))


def test_similarity_divergence_by_hand():
    documents = torch.eye(2)
    query, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    # Softmax of (1, 0) at temperature 1 is (p, 1 - p), the teacher's is the reverse, and ln(p / (1 - p)) = 1.
    p = math.e / (1 + math.e)
    found = similarity_divergence(query, documents, other, documents, temperature=1.0)
    assert float(found) == pytest.approx(p - (1 - p), abs=1e-6)
    assert float(similarity_divergence(query, documents, query, documents, temperature=1.0)) == pytest.approx(
        0, abs=1e-7
    )
    # A rotation of both spaces changes vectors and no similarity.
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    assert float(
        similarity_divergence(query @ turn, documents @ turn, query, documents, temperature=0.1)
    ) == pytest.approx(0, abs=1e-6)


def test_both_terms_of_a_batch_and_its_weight():
    torch.manual_seed(0)
    vectors = {"documents": torch.randn(3, 4), "direct": torch.randn(3, 4), "reason": torch.randn(1, 4)}
    targets = {name: torch.randn_like(rows) for name, rows in vectors.items()}
    whole = Distillation(targets, weight=2.0, temperature=0.5)
    loss = whole(vectors)
    cosine = sum(float(cosine_distance(vectors[n], targets[n])) * len(vectors[n]) for n in vectors) / 7
    similarity = (
        sum(
            float(
                similarity_divergence(
                    vectors[n], vectors["documents"], targets[n], targets["documents"], temperature=0.5
                )
            )
            * len(vectors[n])
            for n in ("direct", "reason")
        )
        / 4
    )
    assert whole.parts == pytest.approx({"distill": cosine, "distill_similarity": similarity}, abs=1e-5)
    assert float(loss) == pytest.approx(2 * (cosine + similarity), abs=1e-5)


def test_a_teacher_of_another_width_gives_similarities_alone():
    torch.manual_seed(0)
    vectors = {"documents": torch.randn(3, 4), "direct": torch.randn(3, 4)}
    targets = {name: torch.randn(3, 7) for name in vectors}
    alone = Distillation(targets, weight=2.0, temperature=0.5, vectors=False)
    found = float(alone(vectors))
    wanted = similarity_divergence(
        vectors["direct"], vectors["documents"], targets["direct"], targets["documents"], temperature=0.5
    )
    assert found == pytest.approx(2 * float(wanted), abs=1e-5)
    assert list(alone.parts) == ["distill_similarity"]
    with pytest.raises(ValueError, match="Take a teacher of the model's width"):
        Distillation(targets, weight=2.0, temperature=0.5)(vectors)


@pytest.mark.parametrize("matched", [True, False])
def test_whether_vectors_are_matched_reaches_the_step(teacher_folder, matched):
    loss = LossSettings(distill=1.0, teacher=str(teacher_folder), distill_vectors=matched)
    run = SimpleNamespace(renderer=SimpleNamespace(max_length=64), device=torch.device("cpu"))
    assert SupervisedStep(run, loss).distillation([TrainingRow(query="a", positive="b")]).vectors is matched


def test_the_direct_vector_can_have_the_target_of_query_and_reasoning(teacher_folder, tiny_tokenizer):
    rows = [TrainingRow(query="a", positive="b", reasoning="because of c"), TrainingRow(query="d", positive="e")]
    found = {}
    for direct in (False, True):
        loss = LossSettings(kl=0.0, distill=1.0, teacher=str(teacher_folder), distill_direct=direct)
        renderer = Renderer(tiny_tokenizer, SHORT, 64)
        run = SimpleNamespace(renderer=renderer, device=torch.device("cpu"))
        step = SupervisedStep(run, loss)
        step.__dict__["judgements"] = SimpleNamespace(of_queries=lambda ids: ids.new_zeros((0, 2)))
        columns, contrast = step.prepare(rows)
        found[direct] = step.distillation(rows).targets, columns, contrast.rows
    teacher = Teacher(str(teacher_folder), torch.device("cpu"))
    targets, columns, owners = found[True]
    torch.testing.assert_close(targets["direct"], teacher(["a because of c", "d"], 64))
    assert "reason" not in columns  # nothing is written, and nothing after it is embedded
    assert (len(targets["reason"]), len(owners["reason"])) == (0, 0)
    targets, columns, owners = found[False]
    # Together, since this tokenizer pads on the left, which moves the positions of the shorter texts.
    apart = teacher(["a", "d", "a because of c"], 64)
    torch.testing.assert_close(targets["direct"], apart[:2])
    torch.testing.assert_close(targets["reason"], apart[2:])
    assert (len(columns["reason"][0]), owners["reason"].tolist()) == (1, [0])
    with pytest.raises(ValueError, match="distill_direct = true changes what distill aims at"):
        LossSettings(distill_direct=True)


@pytest.fixture
def teacher_folder(tiny_tokenizer, tmp_path):
    """A sentence-transformers model as wide as the students, with random weights that tell texts apart."""
    return save_sentence_transformer(tiny_tokenizer, tmp_path / "teacher", seed=5)


def test_a_teacher_gives_unit_vectors_in_order_and_reads_equal_texts_once(teacher_folder):
    teacher = Teacher(str(teacher_folder), torch.device("cpu"))
    read = []
    teacher.model[0].register_forward_pre_hook(lambda module, given: read.append(len(given[0]["input_ids"])))
    found = teacher(["b river", "a stone", "b river"], max_length=512)
    assert sum(read) == 2
    assert found.shape == (3, 32)
    assert not found.requires_grad
    assert torch.equal(found[0], found[2])
    np.testing.assert_allclose(found.norm(dim=1), 1, atol=1e-5)
    np.testing.assert_allclose(found[1], teacher.model.encode("a stone", normalize_embeddings=True), atol=1e-5)
    assert float(found[0] @ found[1]) < 0.99


def test_a_teacher_reads_no_more_than_the_model_and_no_more_than_it_can(teacher_folder):
    teacher = Teacher(str(teacher_folder), torch.device("cpu"))
    whole, cut = (teacher(["river stone " * 20], max_length=length) for length in (10_000, 8))
    assert torch.equal(whole, teacher(["river stone " * 20], max_length=teacher.limit))
    assert float(whole[0] @ cut[0]) < 0.9999
    assert torch.equal(teacher(["a"], max_length=10_000), teacher(["a"], max_length=8))


def test_a_reasoned_query_aims_at_the_query_with_its_reasoning(teacher_folder):
    rows = [
        TrainingRow(query="b river", positive="a stone"),
        TrainingRow(query="a hill", positive="tree", given="stone", reasoning="river"),
    ]
    loss = LossSettings(distill=1.0, teacher=str(teacher_folder))
    run = SimpleNamespace(renderer=SimpleNamespace(max_length=64), device=torch.device("cpu"))
    targets = SupervisedStep(run, loss).distillation(rows).targets
    read = Teacher(str(teacher_folder), torch.device("cpu"))
    wanted = {"direct": ["b river", "a hill"], "reason": ["a hill stone river"], "documents": ["a stone", "tree"]}
    assert list(targets) == list(wanted)
    together = read([text for texts in wanted.values() for text in texts], max_length=64)  # it pads on the left
    for name, vectors in zip(wanted, together.split([2, 1, 2]), strict=True):
        torch.testing.assert_close(targets[name], vectors, atol=1e-5, rtol=0)
    assert float((targets["reason"][0] * targets["direct"][1]).sum()) < 0.99, "or the two aims could not be told apart"


@pytest.mark.slow
def test_a_run_comes_nearer_to_its_teacher(tmp_path, teacher_folder):
    """Against the same run without the term: a loss that is only logged would leave the vectors where they are."""
    near = {}
    for weight in (1.0, 0.0):
        chosen = [f"loss.distill={weight}", f"loss.teacher={teacher_folder}"] if weight else []
        few = ["optimization.steps=30", "optimization.batch_size=16", "loss.infonce=0.1", "evaluate.every=0"]
        run = tmp_path / f"run-{weight}"
        train(sft_config(run, *few, *chosen))
        near[weight] = agreement(run / "last", teacher_folder)
        logged = events(run, "step")
        assert ("distill" in logged[0]) == bool(weight)
        if weight:
            assert logged[-1]["distill"] < 0.8 * logged[0]["distill"]
    assert near[1.0] > near[0.0] + 0.2


def agreement(model, teacher):
    """Mean cosine between a model's direct vectors and the teacher's."""
    from search_r3_mteb import SearchR3Encoder
    from search_r3_mteb.tasks.hopworld import HopWorld

    texts = [document["text"] for document in list(HopWorld(500).corpus.values())[:40]]
    ours = SearchR3Encoder(model, mode="direct").encode_document(texts)
    theirs = Teacher(str(teacher), torch.device("cpu"))(texts, max_length=512).numpy()
    return float((ours * theirs).sum(axis=1).mean())


def test_a_teacher_and_its_weight_belong_together(tmp_path):
    with pytest.raises(ValueError, match=r"distill = 1.0 and teacher = None belong together"):
        sft_config(tmp_path, "loss.distill=1.0")
    with pytest.raises(ValueError, match=r"distill = 0.0 and teacher = 'x' belong together"):
        sft_config(tmp_path, "loss.teacher=x")
