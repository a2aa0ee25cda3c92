"""Checkpoints: which ones load, which errors refuse the others, and what changes a fingerprint."""

import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from search_r3_mteb.encoder import model_names
from search_r3_mteb.encoder.checkpoints import Checkpoint, add_embed_token, load, save
from search_r3_mteb.encoder.engine import Engine
from search_r3_mteb.encoder.model_names import resolve
from search_r3_mteb.encoder.profiles import Profile, Template
from search_r3_mteb.encoder.sampling import Sampling
from tests.conftest import without_manifest

PROMPT = [[5, 6, 7, 8], [9, 10]]


def vectors(checkpoint):
    engine = Engine(checkpoint.model, checkpoint.embed_token_id, checkpoint.stop_token_ids)
    return engine.reason(PROMPT, Sampling(4)).vectors


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A saved tiny checkpoint; tests change copies of it."""
    from tests.conftest import build_model, build_tokenizer

    folder = tmp_path_factory.mktemp("checkpoints") / "whole"
    save(Checkpoint(build_model(), build_tokenizer(), Profile.default(), "tests/tiny"), folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy that a test may damage."""
    return without_manifest(shutil.copytree(saved, tmp_path / "damaged"))


def change_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


# ---- what loads ----------------------------------------------------------------------------------------------------


def test_a_saved_checkpoint_loads_as_it_was(tiny_checkpoint, tmp_path):
    loaded = load(save(tiny_checkpoint, tmp_path / "again"))
    assert torch.equal(vectors(loaded), vectors(tiny_checkpoint))
    assert loaded.profile == tiny_checkpoint.profile
    assert loaded.tokenizer.get_vocab() == tiny_checkpoint.tokenizer.get_vocab()
    assert loaded.name == "local/again"
    assert loaded.revision is None
    assert not loaded.model.training
    assert (tmp_path / "again" / "model.safetensors").exists()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_other_architectures_keep_vectors_and_fingerprint(make_model, tiny_tokenizer, tmp_path, kind):
    checkpoint = Checkpoint(make_model(kind), tiny_tokenizer, Profile.default(), "tests/tiny")
    loaded = load(save(checkpoint, tmp_path / kind))
    assert torch.equal(vectors(loaded), vectors(checkpoint))
    assert loaded.fingerprint() == checkpoint.fingerprint()


def test_the_tokenizer_is_the_one_in_the_folder(saved):
    """transformers puts Qwen2's own pre-tokenizer in place of that of any folder whose model is Qwen2-shaped."""
    from transformers import AutoTokenizer

    def splitter(tokenizer):
        return json.loads(tokenizer.backend_tokenizer.to_str())["pre_tokenizer"]

    written = json.loads((saved / "tokenizer.json").read_text(encoding="utf-8"))["pre_tokenizer"]
    assert splitter(load(saved).tokenizer) == written
    assert splitter(AutoTokenizer.from_pretrained(saved)) != written  # control: the trap is there


def test_dtype_and_device(saved):
    assert load(saved).model.dtype == torch.float32  # the checkpoint's own
    assert load(saved, dtype="bfloat16").model.dtype == torch.bfloat16
    assert load(saved, dtype=torch.float16).model.dtype == torch.float16
    assert load(saved, device="cpu").model.device == torch.device("cpu")
    with pytest.raises(
        ValueError, match="dtype='float8' is not supported; it is one of auto, float32, bfloat16, float16"
    ):
        load(saved, dtype="float8")
    with pytest.raises(ValueError, match="device='toaster' cannot be used here"):
        load(saved, device="toaster")


def test_a_sharded_checkpoint_loads_and_a_missing_shard_is_named(tiny_checkpoint, tmp_path):
    folder = without_manifest(save(tiny_checkpoint, tmp_path / "sharded"))
    (folder / "model.safetensors").unlink()
    tiny_checkpoint.model.save_pretrained(folder, max_shard_size="40KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert torch.equal(vectors(load(folder)), vectors(tiny_checkpoint))
    shards[1].unlink()
    with pytest.raises(
        FileNotFoundError, match=f"sharded: {shards[1].name} is named in model.safetensors.index.json but missing"
    ):
        load(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": ', encoding="utf-8")
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json, line 1: not JSON"):
        load(folder)


# ---- LoRA folders --------------------------------------------------------------------------------------------------


@pytest.fixture
def adapted(saved):
    """A LoRA checkpoint on the saved base, with the token's row trained as well."""
    from peft import LoraConfig, get_peft_model

    base = load(saved)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], trainable_token_indices=[base.embed_token_id])
    model = get_peft_model(base.model, config)
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "trainable_tokens" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return Checkpoint(model.eval(), base.tokenizer, base.profile, "tests/adapter")


def test_an_adapter_folder_loads_on_its_base(adapted, saved, tmp_path):
    folder = save(adapted, tmp_path / "adapter")
    assert not (folder / "model.safetensors").exists()
    assert (folder / "adapter_model.safetensors").stat().st_size < 20_000  # the token's row, not the whole matrix
    loaded = load(folder)
    assert torch.allclose(vectors(loaded), vectors(adapted), atol=1e-6)
    assert (vectors(loaded) - vectors(load(saved))).abs().max() > 0.1
    assert loaded.name == "local/adapter"
    assert loaded.fingerprint() == adapted.fingerprint()


def test_an_adapter_beside_its_base_moves_with_it(adapted, saved, tmp_path):
    folder = without_manifest(save(adapted, tmp_path / "one" / "adapter"))
    shutil.copytree(saved, tmp_path / "one" / "base")
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    (folder / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": "../base"}), encoding="utf-8"
    )
    for name in ("tokenizer.json", "tokenizer_config.json", "search_r3.json"):
        (folder / name).unlink()  # the base has them
    moved = shutil.move(tmp_path / "one", tmp_path / "two")
    assert torch.allclose(vectors(load(f"{moved}/adapter")), vectors(adapted), atol=1e-6)


def test_adapters_that_cannot_work_are_refused(adapted, tmp_path):
    folder = without_manifest(save(adapted, tmp_path / "adapter"))
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    weights = load_file(folder / "adapter_model.safetensors")

    partial = {name: tensor for name, tensor in weights.items() if "layers.1" not in name}
    save_file(partial, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"adapter does not fit its base model whole: .*missing adapter keys"):
        load(folder)  # peft itself only warns

    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"weights are pickled \(adapter_model\.bin\)"):
        load(folder)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"no weights \(adapter_model\.safetensors\)"):
        load(folder)

    (folder / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": None}), encoding="utf-8"
    )
    (folder / "base_model.json").unlink()
    with pytest.raises(ValueError, match="names no base model"):
        load(folder)
    (folder / "adapter_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"adapter/adapter_config\.json, line 1: not JSON"):
        load(folder)


# ---- what is refused, by name --------------------------------------------------------------------------------------


def test_names_that_lead_nowhere(monkeypatch, tmp_path):
    monkeypatch.setattr(model_names, "ASSETS", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no model 'nano': not a folder.*bundled: none\)\. Check the path"):
        load("nano")
    with pytest.raises(FileNotFoundError, match="There is no model '/no/such/folder'"):
        load("/no/such/folder")
    with pytest.raises(FileNotFoundError, match="There is no model ''"):
        load("")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty: there is no config\.json, so this is not a model folder"):
        load(tmp_path / "empty")


def test_a_bundled_name_is_the_folder_of_that_name(saved, monkeypatch):
    monkeypatch.setattr(model_names, "ASSETS", saved.parent)
    assert resolve(saved.name) == saved
    assert load(saved.name).name == f"search-r3-mteb/{saved.name}"


def test_a_hub_id_without_network_says_what_to_do(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    message = (
        r"'ytgui/Search-R3.0-Small' \(revision main\) is neither a folder here nor found on the hub: .* download it"
    )
    with pytest.raises(FileNotFoundError, match=f"(?s){message}"):
        load("ytgui/Search-R3.0-Small")
    with pytest.raises(FileNotFoundError, match="'no such/model' "):
        load("no such/model")


def test_a_hub_download_is_known_by_its_commit(saved, tmp_path, monkeypatch):
    snapshot = shutil.copytree(saved, tmp_path / "models--a--b" / "snapshots" / "0123abcd")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **options: str(snapshot))
    assert (load("a/b").name, load("a/b").revision) == ("a/b", "0123abcd")
    assert load("a/b", revision="v1").revision == "v1"


class Bomb:
    """Unpickling this writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_nothing_is_ever_unpickled(folder, tmp_path):
    mark = tmp_path / "it-ran"
    bomb = pickle.dumps({"model.embed_tokens.weight": Bomb(mark)})
    for name in ("pytorch_model.bin", "model.pt", "training_args.bin", "tokenizer.pkl", "adapter_model.bin"):
        (folder / name).write_bytes(bomb)
    load(folder)  # safe weights lie beside them
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        ValueError,
        match=r"damaged: the weights are pickled \(.*pytorch_model\.bin.*a pickle can run any code.*save_pretrained",
    ):
        load(folder)
    assert not mark.exists()
    pickle.loads(bomb)  # control: it would have run
    assert mark.exists()


def test_a_folder_without_weights_is_named(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"damaged: there are no weights \(model\.safetensors\)"):
        load(folder)


@pytest.mark.parametrize(
    "kept", [0, 5, 200, 4000, -1], ids=["empty", "cut in the length", "in the header", "in the data", "by a byte"]
)
def test_a_truncated_file_is_named(folder, kept):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    assert int.from_bytes(whole[:8], "little") + 8 < 4000, "the header must be whole in the fourth case"
    path.write_bytes(whole[:kept])
    with pytest.raises(
        ValueError, match=r"damaged/model\.safetensors is damaged or truncated \(\d+ bytes\).*Copy it again"
    ):
        load(folder)


def test_tensors_that_are_missing_or_of_another_shape_are_refused(folder):
    """transformers fills in random numbers for what is missing, and says so only in a log."""
    name = "model.layers.1.mlp.up_proj.weight"
    kept = load_file(folder / "model.safetensors")[name]
    change_tensors(folder, lambda tensors: tensors.pop(name))
    with pytest.raises(ValueError, match=f"the weights lack 1 tensors that Qwen2ForCausalLM needs .{name}"):
        load(folder)
    change_tensors(folder, lambda tensors: tensors.update({name: kept[:5].contiguous()}))
    with pytest.raises(ValueError, match="transformers cannot load this folder as a causal LM"):
        load(folder)
    change_tensors(folder, lambda tensors: tensors.update({name: kept}))
    load(folder)


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "search_r3.json"]
)
def test_damaged_json_is_named(folder, name):
    text = (folder / name).read_text(encoding="utf-8")
    (folder / name).write_text(text[: len(text) // 2], encoding="utf-8")
    with pytest.raises(ValueError, match=rf"{name}, line \d+: not JSON"):
        load(folder)


def test_a_folder_without_a_tokenizer_is_named(folder):
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"damaged: there is no tokenizer\.json"):
        load(folder)


def test_a_folder_without_the_embed_token_is_named(make_model, tmp_path):
    from tests.conftest import build_tokenizer

    make_model().save_pretrained(tmp_path)
    build_tokenizer(with_embed_token=False).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError,
        match=r"The tokenizer has no token '<\|embed_token\|>'.*search-r3 init.*embed_token. in search_r3\.json",
    ):
        load(tmp_path)


def test_a_token_beyond_the_vocabulary_is_named(make_model, tiny_tokenizer):
    model = make_model()
    model.resize_token_embeddings(3, mean_resizing=False)
    with pytest.raises(ValueError, match="tests/tiny: the embed token has id 3, but the model's vocabulary has 3 rows"):
        Checkpoint(model, tiny_tokenizer, Profile.default(), "tests/tiny")


def test_code_in_a_folder_does_not_run_unless_asked_for(folder, tmp_path):
    mark = tmp_path / "it-ran"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "own.py").write_text(f"open({str(mark)!r}, 'w')\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"(?s)damaged: transformers cannot load this folder.*trust_remote_code"):
        load(folder)
    assert not mark.exists()


# ---- fingerprints --------------------------------------------------------------------------------------------------


def test_a_fingerprint_is_the_same_after_saving_and_after_use(tiny_checkpoint, tmp_path):
    before = tiny_checkpoint.fingerprint()
    tokenizer = tiny_checkpoint.tokenizer
    tokenizer(["a", "b b b"], padding=True, truncation=True, max_length=2)  # leaves its settings in the tokenizer
    vectors(tiny_checkpoint)
    again = Checkpoint(tiny_checkpoint.model, tokenizer, tiny_checkpoint.profile, "another/name", "another revision")
    assert again.fingerprint() == before
    assert load(save(tiny_checkpoint, tmp_path / "saved")).fingerprint() == before
    assert load(tmp_path / "saved", dtype="bfloat16").fingerprint() != before
    assert len(before) == 64


def one_weight(checkpoint):
    with torch.no_grad():
        checkpoint.model.model.layers[1].mlp.up_proj.weight[0, 0] += 1e-6


def one_step(checkpoint):
    optimizer = torch.optim.AdamW(checkpoint.model.parameters(), lr=1e-4)
    checkpoint.model(torch.tensor([[5, 6]])).logits.sum().backward()
    optimizer.step()


def rotary_base(checkpoint):
    checkpoint.model.config.rope_parameters["rope_theta"] = 1e6


def turn_end(checkpoint):
    checkpoint.model.generation_config.eos_token_id = [2, 7]


def chat_template(checkpoint):
    checkpoint.tokenizer.chat_template += " "


def added_token(checkpoint):
    checkpoint.tokenizer.add_tokens(["zebra"])


def profile(checkpoint):
    checkpoint.profile = Profile(direct=Template("Embed.", "{embed_token}"))


@pytest.mark.parametrize("change", [one_weight, rotary_base, turn_end, chat_template, added_token, profile])
def test_whatever_decides_a_vector_changes_the_fingerprint(make_model, change):
    from tests.conftest import build_tokenizer

    def fresh():
        return Checkpoint(make_model(), build_tokenizer(), Profile.default(), "tests/tiny")

    changed = fresh()
    assert changed.fingerprint() == fresh().fingerprint()
    again = fresh()
    change(again)
    assert again.fingerprint() != changed.fingerprint()


@pytest.mark.parametrize("change", [one_weight, one_step])
def test_a_checkpoint_that_trains_does_not_keep_its_fingerprint(tiny_checkpoint, change):
    before = tiny_checkpoint.fingerprint()
    assert tiny_checkpoint.fingerprint() == before
    change(tiny_checkpoint)
    assert tiny_checkpoint.fingerprint() != before


def test_an_adapters_strength_is_part_of_its_identity(adapted, tmp_path):
    folder = without_manifest(save(adapted, tmp_path / "adapter"))
    before = load(folder)
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    (folder / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 32}), encoding="utf-8")
    assert (vectors(load(folder)) - vectors(before)).abs().max() > 0.01  # equal weights, other vectors
    assert load(folder).fingerprint() != before.fingerprint()


# ---- adding the token ----------------------------------------------------------------------------------------------


def base_pair(make_model, rows=384, **options):
    from tests.conftest import build_tokenizer

    model, tokenizer = make_model("qwen2", **options), build_tokenizer(with_embed_token=False)
    model.resize_token_embeddings(rows, mean_resizing=False)
    return model, tokenizer


@pytest.mark.parametrize("tied", [True, False])
def test_the_token_takes_a_free_row_of_a_padded_vocabulary(make_model, tied):
    model, tokenizer = base_pair(make_model, tie_word_embeddings=tied)
    used, special = len(tokenizer), set(tokenizer.all_special_tokens)
    weights = [
        model.get_input_embeddings().weight.detach().clone(),
        model.get_output_embeddings().weight.detach().clone(),
    ]
    index = add_embed_token(model, tokenizer, "<|embed_token|>")
    assert index == used == tokenizer.convert_tokens_to_ids("<|embed_token|>")
    assert set(tokenizer.all_special_tokens) == special  # none was replaced
    assert tokenizer.added_tokens_decoder[index].special
    for layer, before in zip((model.get_input_embeddings(), model.get_output_embeddings()), weights, strict=True):
        assert layer.weight.shape == before.shape == (384, 32)  # no resize
        assert torch.allclose(layer.weight[index], before[:used].mean(dim=0), atol=1e-6)
        others = [row for row in range(384) if row != index]
        assert torch.equal(layer.weight[others], before[others])
    assert add_embed_token(model, tokenizer, "<|embed_token|>") == index
    checkpoint = Checkpoint(model, tokenizer, Profile.default(), "tests/added")
    assert checkpoint.embed_token_id == index


def test_the_vocabulary_grows_where_no_row_is_free(make_model):
    from tests.conftest import build_tokenizer

    rows = len(build_tokenizer(with_embed_token=False))
    model, tokenizer = base_pair(make_model, rows=rows)
    index = add_embed_token(model, tokenizer, "<|embed_token|>")
    assert index == rows
    assert model.get_input_embeddings().weight.shape[0] == model.config.vocab_size == rows + 1
    # A tokenizer that has the token already, beside weights that do not.
    model, _ = base_pair(make_model, rows=rows)
    assert add_embed_token(model, tokenizer, "<|embed_token|>") == index
    assert model.get_input_embeddings().weight.shape[0] == rows + 1
    assert torch.isfinite(model.get_input_embeddings().weight[index]).all()


@pytest.mark.parametrize("tied", [True, False])
def test_rows_that_are_added_hold_no_random_numbers(make_model, tied):
    """Also those between the weights' last row and the token's, where a tokenizer is ahead of its weights."""
    made = []
    for seed in (0, 1):
        model, tokenizer = base_pair(make_model, rows=280, tie_word_embeddings=tied)
        torch.manual_seed(seed)
        index = add_embed_token(model, tokenizer, "<|embed_token|>")
        made.append((model.get_input_embeddings().weight, model.get_output_embeddings().weight))
        assert index == len(tokenizer) - 1 > 282
    for first, second in zip(*made, strict=True):
        assert torch.equal(first, second)
        assert first.shape[0] == index + 1
        torch.testing.assert_close(first[280:], first[:280].mean(dim=0).expand(index - 279, -1))


def test_the_token_survives_saving(make_model, tmp_path):
    model, tokenizer = base_pair(make_model)
    index = add_embed_token(model, tokenizer, "<emb_token>")
    told = Profile("<emb_token>", Template("Think.", "{reasoning}{embed_token}"), Template("Embed.", "{embed_token}"))
    loaded = load(save(Checkpoint(model, tokenizer, told, "tests/other"), tmp_path / "other"))
    assert loaded.embed_token_id == index
    assert loaded.profile == told
    assert loaded.tokenizer.convert_tokens_to_ids("<|im_start|>") == tokenizer.convert_tokens_to_ids("<|im_start|>")
