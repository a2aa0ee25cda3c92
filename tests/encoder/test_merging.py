"""Merging: the merged model is the adapted one, also where head and embedding are tied; a difference is not kept."""

import shutil

import pytest
import torch

from search_r3_mteb.encoder import merging
from search_r3_mteb.encoder.checkpoints import Checkpoint, load, save
from search_r3_mteb.encoder.comparison import ROUNDED, SAME, ProbeOutputs, probe_prompts, refuse_difference
from search_r3_mteb.encoder.merging import merge, merged, outputs_of, save_compared
from tests.dying import killed_before
from tests.encoder.test_adapters import LAYERS, adapted, base_folder

ON_ONE_MATRIX = {
    "lora on the head": {"target_modules": [*LAYERS, "lm_head"]},
    "lora on the embedding": {"target_modules": [*LAYERS, "embed_tokens"]},
    "dora on the head": {"target_modules": [*LAYERS, "lm_head"], "use_dora": True},
    "whole head": {"modules_to_save": ["lm_head"]},
    "whole embedding": {"modules_to_save": ["embed_tokens"]},
}
pytestmark = pytest.mark.filterwarnings("ignore:.*ied:UserWarning:peft.*")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return base_folder(tmp_path_factory.mktemp("merging") / "base")


@pytest.mark.parametrize("kind", ON_ONE_MATRIX)
def test_an_adapter_on_one_of_two_tied_matrices(kind, base, tmp_path):
    checkpoint = adapted(base, **ON_ONE_MATRIX[kind])
    before = outputs_of(checkpoint)
    folder = merge(save(checkpoint, tmp_path / "adapter"), tmp_path / "merged")
    whole = load(folder)
    refuse_difference(before, outputs_of(whole), SAME, "the merged model")
    assert not whole.model.config.tie_word_embeddings
    assert not hasattr(whole.model, "peft_config")


@pytest.mark.parametrize("kind", ["lora on the head", "lora on the embedding"])
def test_peft_s_own_merge_would_change_both(kind, base):
    """Control: the comparison sees it."""
    checkpoint = adapted(base, **ON_ONE_MATRIX[kind])
    before = outputs_of(checkpoint)
    checkpoint.model = checkpoint.model.merge_and_unload()
    with pytest.raises(
        ValueError, match=r"The merge gives other (vectors|logits) than its source: by up to .* \(allowed"
    ):
        refuse_difference(before, outputs_of(checkpoint), SAME, "The merge")


@pytest.mark.parametrize("options", [{}, {"trainable_token_indices": [3]}, {"use_dora": True}, {"use_rslora": True}])
def test_what_does_not_part_the_matrices_leaves_them_tied(options, base, tmp_path):
    checkpoint = adapted(base, **options)
    before = outputs_of(checkpoint)
    whole = merged(checkpoint.model, keep=True)
    assert whole.get_output_embeddings().weight is whole.get_input_embeddings().weight
    assert whole.config.tie_word_embeddings
    after = outputs_of(checkpoint)
    assert torch.equal(before.logits, after.logits), "the caller's model is left alone"
    checkpoint.model = whole
    found = load(save(checkpoint, tmp_path / "whole"))
    refuse_difference(before, outputs_of(found), SAME, "the merged model")
    assert found.model.config.tie_word_embeddings


def test_half_precision_may_be_rounded(base, tmp_path):
    folder = save(adapted(base, move=0.05), tmp_path / "adapter")
    found = load(merge(folder, tmp_path / "merged", dtype="bfloat16"))
    assert found.model.dtype == torch.bfloat16
    before = outputs_of(load(folder, dtype="bfloat16"))
    refuse_difference(before, outputs_of(found), ROUNDED, "the merged model")
    with pytest.raises(ValueError, match="gives other"):
        refuse_difference(before, outputs_of(found), SAME, "the merged model")  # control: rounding is there


def test_what_peft_cannot_merge_is_refused(base, tmp_path):
    options = {"target_modules": [*LAYERS, "lm_head"], "trainable_token_indices": {"model.embed_tokens": [3]}}
    folder = save(adapted(base, **options), tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"peft cannot merge this adapter: lm_head.* keep"):
        merge(folder, tmp_path / "merged")
    with pytest.raises(ValueError, match="there is no adapter in this folder"):
        merge(base, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_layers_that_share_weights_are_not_merged(tiny_tokenizer, make_model, tmp_path):
    """peft would add the adapters of both copies to the weights that they share, and leave a model of another depth."""
    make_model("llama").save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    folder = save(adapted(tmp_path / "base", layer_replication=[[0, 2], [1, 2]]), tmp_path / "adapter")
    found = load(folder)
    assert len(found.model.base_model.model.model.layers) == 3
    before = outputs_of(found)
    for call in (lambda: merge(folder, tmp_path / "merged"), lambda: merged(found.model, keep=True)):
        with pytest.raises(ValueError, match=r"repeats layers of its base \(layer_replication\)"):
            call()
    assert not (tmp_path / "merged").exists()
    found.model = found.model.merge_and_unload()
    with pytest.raises(ValueError, match="gives other"):  # control
        refuse_difference(before, outputs_of(found), SAME, "peft's own merge")


# ---- folders -------------------------------------------------------------------------------------------------------


def test_a_difference_removes_the_new_folder_and_keeps_the_old(tiny_checkpoint, tmp_path, monkeypatch):
    folder = save_compared(tiny_checkpoint, tmp_path / "model")
    before = load(folder).fingerprint()
    real = save

    def damaged(checkpoint, place):
        with torch.no_grad():
            checkpoint.model.lm_head.weight[7] += 0.5
        return real(checkpoint, place)

    monkeypatch.setattr(merging, "save", damaged)
    with pytest.raises(ValueError, match=r"The folder model gives other logits .*was not kept"):
        save_compared(tiny_checkpoint, folder)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert load(folder).fingerprint() == before


def test_only_checkpoints_are_replaced(tiny_checkpoint, base, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(FileExistsError, match=r"holds no search_r3\.json"):
        save_compared(tiny_checkpoint, tmp_path / "mine")
    with pytest.raises(FileExistsError, match="is not empty, and merging would replace it"):
        merge(save(adapted(base), tmp_path / "adapter"), tmp_path / "mine")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"


def test_a_model_that_is_replaced_loads_after_a_kill_at_any_moment(tiny_checkpoint, make_model, tmp_path):
    old = save(tiny_checkpoint, tmp_path / "old")
    new = Checkpoint(make_model(seed=1), tiny_checkpoint.tokenizer, tiny_checkpoint.profile, "tests/new")
    prints, found = (tiny_checkpoint.fingerprint(), new.fingerprint()), set()
    for moment in range(200):
        folder = tmp_path / f"at-{moment}" / "model"
        shutil.copytree(old, folder)
        with killed_before(moment) as died:
            save_compared(new, folder)
        there = load(folder).fingerprint()
        assert there in prints, moment
        found.add((there == prints[1], folder.exists()))
        shutil.rmtree(folder.parent)
        if not died:
            break
    assert not died
    assert {new for new, _ in found} == {False, True}


# ---- the comparison ------------------------------------------------------------------------------------------------


def test_texts_of_different_lengths_end_in_the_token_and_without_it(tiny_tokenizer):
    index = tiny_tokenizer.convert_tokens_to_ids("<|embed_token|>")
    prompts = probe_prompts(tiny_tokenizer, index)
    assert sum(prompt[-1] == index for prompt in prompts) == len(prompts) / 2 == 4
    assert len({len(prompt) for prompt in prompts}) > 4


def test_one_logit_among_many_is_seen():
    logits = torch.randn(2, 100_000, generator=torch.Generator().manual_seed(0))
    other = logits.clone()
    other[1, 77] += 0.1
    vectors = torch.ones(2, 4)
    refuse_difference(ProbeOutputs(vectors, logits), ProbeOutputs(vectors, logits.clone()), SAME, "A copy")
    for changed in (other, torch.full_like(logits, float("nan")), logits[:, :-1]):
        with pytest.raises(ValueError, match=r"A copy gives (other )?logits"):
            refuse_difference(ProbeOutputs(vectors, logits), ProbeOutputs(vectors, changed), SAME, "A copy")
