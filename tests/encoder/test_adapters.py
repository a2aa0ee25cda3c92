"""Adapters: every kind is loaded as it was saved, on the base that it was saved with, or refused by name."""

import json
import os
import shutil
import subprocess
import sys
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from search_r3_mteb.encoder import model_names
from search_r3_mteb.encoder.checkpoints import Checkpoint, add_embed_token, load, load_model, load_tokenizer, save
from search_r3_mteb.encoder.comparison import SAME, ProbeOutputs, refuse_difference
from search_r3_mteb.encoder.manifest import MANIFEST_FILE
from search_r3_mteb.encoder.merging import outputs_of
from search_r3_mteb.encoder.profiles import Profile
from search_r3_mteb.encoder.token_rows import ROWS_FILE
from search_r3_mteb.encoder.verification import accept
from tests.conftest import without_manifest

TOKEN = "<|embed_token|>"
LAYERS = ["q_proj", "v_proj"]
KINDS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "whole head": {"modules_to_save": ["lm_head"]},
    "whole embedding": {"modules_to_save": ["embed_tokens"]},
    "whole norm": {"modules_to_save": ["norm"]},
    "lora on the head": {"target_modules": [*LAYERS, "lm_head"]},
    "lora on both, tied by peft": {"target_modules": [*LAYERS, "embed_tokens"], "ensure_weight_tying": True},
    "token row": {"trainable_token_indices": [3]},
}
READ = """
import sys, torch
from search_r3_mteb.encoder.checkpoints import load
from search_r3_mteb.encoder.merging import outputs_of
for folder in sys.argv[1:]:
    found = load(folder, device="cpu")
    outputs = outputs_of(found)
    torch.save([outputs.vectors, outputs.logits, found.fingerprint()], folder + ".pt")
"""


def base_folder(folder, *, tied=True, token=True, rows=384):
    """A tiny base; without the token it has `rows` rows."""
    from tests.conftest import build_model, build_tokenizer

    model, tokenizer = build_model(tie_word_embeddings=tied, vocab_size=rows), build_tokenizer(token)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def adapted(base, *, multiple=None, move=0.2, **options):
    """An adapter whose every weight was moved; `multiple` resizes the base's vocabulary to one before."""
    from peft import LoraConfig, get_peft_model

    model, tokenizer = load_model(base, "float32", False), load_tokenizer(base, False)
    if multiple is None:
        add_embed_token(model, tokenizer, TOKEN)
    else:
        tokenizer.add_tokens([TOKEN, "<extra>"], special_tokens=True)
        model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=multiple)
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # peft's, on tied layers, which is what is tested here
        model = get_peft_model(model, LoraConfig(r=4, task_type="CAUSAL_LM", **({"target_modules": LAYERS} | options)))
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(move * torch.randn_like(parameter))
    return Checkpoint(model.eval(), tokenizer, Profile.default(), "tests/adapted")


def without_our_files(folder):
    """The folder as peft alone would have written it."""
    for name in (ROWS_FILE, "base_model.json", "search_r3.json", MANIFEST_FILE):
        (folder / name).unlink(missing_ok=True)
    return folder


# ---- what is loaded is what was saved ------------------------------------------------------------------------------


@pytest.mark.slow  # in one process: the tests before
@pytest.mark.filterwarnings("ignore:.*ied:UserWarning:peft.*")
def test_every_kind_is_the_same_in_another_process(tmp_path):
    """Vectors, logits and fingerprint; also where the vocabulary was resized to a multiple of 64."""
    made = {}
    for tied in (True, False):
        whole = base_folder(tmp_path / f"base {tied}", tied=tied)
        bare = base_folder(tmp_path / f"bare {tied}", tied=tied, token=False, rows=300)
        for kind, options in KINDS.items():
            if tied or kind in ("dora", "whole head", "token row"):
                made[f"{kind} {tied}"] = adapted(whole, **options)
        made[f"padded {tied}"] = adapted(bare, multiple=64)
        made[f"padded, whole head {tied}"] = adapted(bare, multiple=64, modules_to_save=["lm_head"])
    folders = {name: save(checkpoint, tmp_path / "adapters" / name) for name, checkpoint in made.items()}
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", READ, *map(str, folders.values())], env=environment, check=True
    )
    for name, checkpoint in made.items():
        *found, fingerprint = torch.load(f"{folders[name]}.pt")
        there, here = ProbeOutputs(*found), outputs_of(checkpoint)
        refuse_difference(here, there, 1e-5, name)
        assert fingerprint == checkpoint.fingerprint() == load(folders[name]).fingerprint(), name
        with (
            checkpoint.model.disable_adapter(),
            pytest.raises(ValueError, match="gives other"),
        ):
            refuse_difference(outputs_of(checkpoint), there, SAME, name)  # control: the adapter changes them
    assert all((folder / ROWS_FILE).stat().st_size < 60_000 for folder in folders.values())


def test_rows_added_at_load_are_the_same_at_every_load(tmp_path):
    """A folder that peft wrote names no rows: they are the mean, not transformers' random numbers."""
    base = base_folder(tmp_path / "base", tied=False, token=False, rows=300)
    checkpoint = adapted(base, multiple=1, trainable_token_indices={"embed_tokens": [300], "lm_head": [300]})
    folder = without_our_files(save(checkpoint, tmp_path / "adapter"))
    first, second = load(folder), load(folder)
    assert first.fingerprint() == second.fingerprint()
    rows = first.model.get_base_model().get_input_embeddings().original_module.weight
    assert rows.shape[0] == len(checkpoint.tokenizer) == 302
    torch.testing.assert_close(rows[301], rows[:300].mean(dim=0))
    # Only the row of the token that nobody trained may differ: it is never read, and no trained row moved.
    here, there = outputs_of(checkpoint), outputs_of(first)
    refuse_difference(here, ProbeOutputs(there.vectors, here.logits), SAME, "vectors")
    torch.testing.assert_close(here.logits[:, :301], there.logits[:, :301], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
def test_an_adapter_with_whole_matrices_from_a_padded_vocabulary(tied, tmp_path):
    """peft keeps whole matrices where a vocabulary was resized; the base gets as many rows as they have."""
    base = base_folder(tmp_path / "base", tied=tied, token=False, rows=300)
    checkpoint = adapted(base, multiple=64)
    checkpoint.model.save_pretrained(tmp_path / "adapter")
    checkpoint.tokenizer.save_pretrained(tmp_path / "adapter")
    found = load(tmp_path / "adapter")
    assert found.model.get_input_embeddings().weight.shape[0] == 320 > len(found.tokenizer)
    refuse_difference(outputs_of(checkpoint), outputs_of(found), SAME, "the adapter")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
def test_trained_rows_of_a_padded_vocabulary(tied, tmp_path):
    """peft keeps the whole matrix beside the rows: it says how many rows there were."""
    base = base_folder(tmp_path / "base", tied=tied, token=False, rows=300)
    rows = {"embed_tokens": [300, 301]} | ({} if tied else {"lm_head": [300, 301]})
    checkpoint = adapted(base, multiple=64, trainable_token_indices=rows)
    checkpoint.model.save_pretrained(tmp_path / "adapter")
    checkpoint.tokenizer.save_pretrained(tmp_path / "adapter")
    found = load(tmp_path / "adapter")
    assert found.model.get_input_embeddings().weight.shape[0] == 320 > len(found.tokenizer)
    refuse_difference(outputs_of(checkpoint), outputs_of(found), SAME, "the adapter")


def test_a_new_token_that_no_adapter_holds(tmp_path):
    """Without its row the vectors are lost: refused. Without the head's row it cannot be said: a warning names it."""
    base = base_folder(tmp_path / "base", tied=False, token=False)
    index = 300

    def foreign(name, **options):
        return without_our_files(save(adapted(base, **options), tmp_path / name))

    with pytest.raises(
        ValueError, match=r"none: its tokenizer has <\|embed_token\|>.*holds no row.*what it was trained"
    ):
        load(foreign("none"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load(foreign("input", trainable_token_indices={"embed_tokens": [index]}))
    told = [str(one.message) for one in caught if "but not the head's" in str(one.message)]
    assert len(told) == 1
    assert "'model.embed_tokens': [300], 'lm_head': [300]" in told[0]
    load(foreign("both", trainable_token_indices={"embed_tokens": [index], "lm_head": [index]}))
    load(foreign("whole", modules_to_save=["embed_tokens", "lm_head"]))
    base = base_folder(tmp_path / "tied", token=False)
    load(foreign("one matrix", trainable_token_indices=[index]))  # one matrix, one row


# ---- the base ------------------------------------------------------------------------------------------------------


def test_a_base_given_by_a_relative_path_is_found_from_anywhere(tmp_path, monkeypatch):
    base_folder(tmp_path / "models" / "base")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "models")
    from pathlib import Path

    checkpoint = adapted(Path("base"))
    assert checkpoint.model.peft_config["default"].base_model_name_or_path == "base"
    folder = save(checkpoint, tmp_path / "models" / "adapter")
    monkeypatch.chdir(tmp_path / "elsewhere")
    refuse_difference(outputs_of(checkpoint), outputs_of(load(folder)), SAME, "elsewhere")
    resaved = save(load(folder), tmp_path / "deep" / "er" / "again")
    assert load(resaved).fingerprint() == load(folder).fingerprint()
    moved = shutil.move(tmp_path / "models", tmp_path / "moved")  # both together: the absolute path is wrong now
    refuse_difference(outputs_of(checkpoint), outputs_of(load(f"{moved}/adapter")), SAME, "moved")
    with pytest.raises(
        FileNotFoundError,
        match=r"again: its base model '.*/base' was not found \((?!.*\.[;)]).*Write the .*, then accept it: search-r3",
    ):
        load(resaved)
    config = json.loads((resaved / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = f"{moved}/base"  # what the error says
    (resaved / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"again: adapter_config.json has .*verify .*again --accept"):
        load(resaved)
    accept(resaved)  # also what it says
    load(resaved)


def test_another_model_at_the_base_s_place_is_refused(tmp_path):
    base = base_folder(tmp_path / "base")
    folder = without_manifest(save(adapted(base), tmp_path / "adapter"))
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] += 1e-3
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"adapter: .*base is not the base that this adapter was saved with.*delete base_"
    ):
        load(folder)
    (folder / "base_model.json").unlink()
    load(folder)  # as the message says; and the control: nothing else notices


def test_the_same_weights_in_other_shards_are_the_same_base(tmp_path):
    base = base_folder(tmp_path / "base")
    folder = save(adapted(base), tmp_path / "adapter")
    model = load_model(base, "float32", False)
    model.save_pretrained(base, max_shard_size="40KB")
    assert len(list(base.glob("model-*.safetensors"))) > 2
    (base / "model.safetensors").unlink()
    load(folder)


def test_large_tensors_are_compared_in_slices(tmp_path, monkeypatch):
    from search_r3_mteb.encoder import adapters

    base = base_folder(tmp_path / "base")
    whole = adapters.weights_digest(base)
    monkeypatch.setattr(adapters, "_WHOLE", 1000)
    monkeypatch.setattr(adapters, "_SLICE", 16)
    sampled = adapters.weights_digest(base)
    assert sampled != whole
    model = load_model(base, "float32", False)
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight.mul_(1.001)  # as a merged adapter changes it: everywhere
    model.save_pretrained(base)
    assert adapters.weights_digest(base) != sampled


def test_a_bundled_or_hub_base_goes_by_its_name(tmp_path, monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    monkeypatch.setattr(model_names, "ASSETS", tmp_path / "assets")
    folder = save(adapted(base_folder(tmp_path / "assets" / "small")), tmp_path / "one" / "adapter")
    moved = shutil.move(folder, tmp_path / "adapter")
    shutil.move(tmp_path / "assets", tmp_path / "installed")
    monkeypatch.setattr(model_names, "ASSETS", tmp_path / "installed")
    load(moved)

    snapshot = base_folder(tmp_path / "hub" / "models--a--b-c" / "snapshots" / "0123abcd")
    folder = save(adapted(snapshot), tmp_path / "hubbed")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("a/b-c", "0123abcd")
    asked = []

    def download(name, revision=None, **options):
        asked.append((name, revision))
        if options.get("local_files_only"):
            raise LocalEntryNotFoundError("not here")
        return str(tmp_path / "other cache")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    shutil.move(snapshot, tmp_path / "other cache")
    load(folder)
    assert asked == [("a/b-c", "0123abcd")]


# ---- what is refused -----------------------------------------------------------------------------------------------


def test_adapters_that_act_outside_the_layers_are_refused(tmp_path):
    """The engine runs the layers; peft's wrapper would add prompts, or look for the invocation, around them."""
    from peft import LoraConfig, PromptTuningConfig, get_peft_model

    base = base_folder(tmp_path / "base")
    for name, config in {
        "prompts": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        "activated": LoraConfig(task_type="CAUSAL_LM", target_modules=LAYERS, alora_invocation_tokens=[5, 6]),
    }.items():
        model = get_peft_model(load_model(base, "float32", False), config)
        model.save_pretrained(tmp_path / name)
        with pytest.raises(ValueError, match=f"{name}: an adapter of the kind .* would silently do nothing"):
            load(tmp_path / name)
    with pytest.raises(ValueError, match=r"activated LoRA \(alora_invocation_tokens\)"):
        save(Checkpoint(model, load_tokenizer(base, False), Profile.default(), "tests/a"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_one_folder_cannot_hold_is_refused(tmp_path):
    from peft import LoraConfig

    base = base_folder(tmp_path / "base")
    several, merged = adapted(base), adapted(base)
    several.model.add_adapter("second", LoraConfig(r=2, target_modules=LAYERS))
    with pytest.raises(ValueError, match=r"has the adapters default, second .*but a folder holds one"):
        save(several, tmp_path / "out")
    merged.model.merge_adapter()
    with pytest.raises(ValueError, match=r"merged into its base at present.*unmerge_adapter"):
        save(merged, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    merged.model.unmerge_adapter()
    folder = save(merged, tmp_path / "out")
    with pytest.raises(FileExistsError, match="holds an adapter, and beside it this one would load as something else"):
        save(load(base), folder)
    with pytest.raises(FileExistsError, match="holds a whole model, and beside it"):
        save(load(folder), base)


def test_an_adapter_inside_its_base_s_folder_is_refused(tmp_path):
    """transformers puts an adapter that lies in a model's folder on the model by itself: it would act twice."""
    base = base_folder(tmp_path / "base")
    folder = save(adapted(base), tmp_path / "adapter")
    for path in folder.glob("adapter_*"):
        shutil.copy(path, base)
    from transformers import AutoModelForCausalLM

    doubled = AutoModelForCausalLM.from_pretrained(base)
    assert any("lora_" in name for name, _ in doubled.named_parameters())  # control: the trap is there
    with pytest.raises(ValueError, match="base: the folder of its base model, base, holds an adapter as well"):
        load(base)


def test_rows_of_an_untied_base_do_not_go_into_a_tied_one(tmp_path):
    folder = without_manifest(save(adapted(base_folder(tmp_path / "base", tied=False)), tmp_path / "adapter"))
    shutil.rmtree(tmp_path / "base")
    base_folder(tmp_path / "base", tied=True)
    (folder / "base_model.json").unlink()
    with pytest.raises(
        ValueError, match=r"holds rows of input, output, 32 wide, but the base model has input, 32 wide"
    ):
        load(folder)


def test_whole_weights_beside_an_adapter_are_refused(tmp_path):
    """The adapter was taken, and the folder's own weights were ignored without a word."""
    folder = without_manifest(save(adapted(base_folder(tmp_path / "base")), tmp_path / "adapter"))
    shutil.copy(tmp_path / "base" / "model.safetensors", folder)
    with pytest.raises(ValueError, match="adapter holds whole weights and an adapter"):
        load(folder)


def test_tensors_that_the_adapter_s_configuration_does_not_use_are_refused(tmp_path):
    """peft warns of missing tensors alone; what it drops was trained."""
    folder = without_manifest(save(adapted(base_folder(tmp_path / "base")), tmp_path / "adapter"))
    assert load(folder)
    config = folder / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"target_modules": ["q_proj"]}))
    with pytest.raises(ValueError, match=r"holds 4 tensors that adapter_config.json has no place for .*v_proj"):
        load(folder)


@pytest.mark.parametrize(("change", "refused"), [({"rope_theta": 500.0}, True), ({"transformers_version": "0"}, False)])
def test_a_base_whose_configuration_changed_is_another_model(change, refused, tmp_path):
    base = base_folder(tmp_path / "base")
    folder = save(adapted(base), tmp_path / "adapter")
    config = json.loads((base / "config.json").read_text())
    if refused:
        change = {"rope_parameters": config["rope_parameters"] | change}
    (base / "config.json").write_text(json.dumps(config | change))
    if not refused:
        assert load(folder)
        return
    with pytest.raises(ValueError, match="its weights or configuration are others"):
        load(folder)


def test_a_damaged_record_of_the_base_is_named(tmp_path):
    folder = without_manifest(save(adapted(base_folder(tmp_path / "base")), tmp_path / "adapter"))
    (folder / "base_model.json").write_text('{"path": "../base"}')
    with pytest.raises(ValueError, match=r"base_model.json lacks 'path' or 'digest'"):
        load(folder)


def test_an_adapter_that_changed_its_base_at_random_is_refused(tmp_path):
    """PiSSA by random SVD: two loads of one folder gave cosine 0.83 to each other."""
    folder = without_manifest(save(adapted(base_folder(tmp_path / "base")), tmp_path / "adapter"))
    config = folder / "adapter_config.json"
    for start, refused in (("pissa_niter_4", True), ("gaussian", False)):
        config.write_text(json.dumps(json.loads(config.read_text()) | {"init_lora_weights": start}))
        if refused:
            with pytest.raises(ValueError, match="every load would be another model"):
                load(folder)
        else:
            assert load(folder)


def test_no_warning_is_shown_that_no_user_can_follow(tmp_path):
    """peft asks transformers for a property by its old name whenever it wraps a model."""
    from peft import PeftModel

    folder = save(adapted(base_folder(tmp_path / "base")), tmp_path / "adapter")
    base = load_model(tmp_path / "base", "float32", False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        load(folder)
    with warnings.catch_warnings(record=True) as shown:  # the warning is as old as transformers 5.2x
        warnings.simplefilter("always")
        PeftModel.from_pretrained(base, str(folder))
    deprecated = isinstance(getattr(type(base), "is_activation_checkpointing", None), property)
    assert any("is_gradient_checkpointing" in str(each.message) for each in shown) == deprecated, "control"
