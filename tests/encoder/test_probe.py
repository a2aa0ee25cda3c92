"""The probe: right checkpoints pass, and with each repair taken back the same checkpoint is refused."""

import copy
import importlib.util
import inspect
import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers

from search_r3_mteb import SearchR3Encoder
from search_r3_mteb.encoder import architecture, backbone, checkpoints, head, masks, probe, probed
from search_r3_mteb.encoder.architecture import Architecture
from search_r3_mteb.encoder.checkpoints import Checkpoint, load, save
from search_r3_mteb.encoder.engine import Engine
from search_r3_mteb.encoder.model_names import ASSETS
from search_r3_mteb.encoder.profiles import Profile
from search_r3_mteb.encoder.sampling import Sampling
from tests.conftest import without_manifest

SCRIPTS = Path(__file__).resolve().parents[2] / "results" / "checkpoints"
EMBED = 300
SHARED = [5, 7, 9, 11, 203]
# With the lowest transformers that is allowed, the library's own RemBERT and RoFormer see later tokens, and its Moshi
# gives something else with a cache than without: nothing of ours can make them right, and they are refused.
REFUSED = {"5.10.4": {"rembert", "roformer", "moshi"}}
PROMPTS = [[*SHARED, 20, 33, 41, 57, 64, 78, 99, 103, 6], [*SHARED, 12, 55, 210, 9]]


def script(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


tiny = script("tiny_models")


def tiny_causal(kind, seed=0):
    if kind not in transformers.CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} does not know {kind}")
    return tiny.tiny_model(tiny.tiny_config(kind), seed)


def check(kind, dtype=torch.float32):
    probe.check_model(kind, tiny_causal(kind).to(dtype), EMBED, PROMPTS)


# ---- architectures: what is repaired, and the probe without the repair ---------------------------------------------


def projection_alone(patch):
    patch.setattr(head, "_path", lambda causal, embeddings: [embeddings])


def width_of_the_projection(patch):
    patch.setattr(head.Head, "dim", property(lambda self: int(self._embeddings.weight.shape[1])))


def positions_from_zero(patch):
    patch.setattr(architecture, "first_position", lambda causal: 0)


def rows_at_any_position(patch):
    patch.setattr(Architecture, "one_position", property(lambda self: False, lambda self, value: None), raising=False)


def the_named_base(patch):
    patch.setattr(architecture, "backbone_of", lambda causal: causal.base_model)


def the_old_name_of_the_cache(patch):
    old = property(lambda self: "past_key_values", lambda self, value: None)
    patch.setattr(Architecture, "_cache", old, raising=False)


def a_window_that_is_not_applied(patch):
    patch.setattr(masks, "_UNUSED_WINDOW", ())


@pytest.mark.filterwarnings("ignore:.*past_key_values.*:FutureWarning")
@pytest.mark.parametrize(
    ("kind", "taken_back", "message"),
    [
        ("modernbert-decoder", projection_alone, "the head's logits by"),
        ("electra", projection_alone, "cannot be run here.*size of the tensor"),
        ("electra", width_of_the_projection, "cannot be run here.*size of the tensor"),
        ("rembert", width_of_the_projection, "cannot be run here.*size of the tensor"),
        ("roberta", positions_from_zero, "hidden states at the embed token, read directly, by"),
        ("xlm-roberta", positions_from_zero, "hidden states at the embed token, read directly, by"),
        ("roformer", rows_at_any_position, "hidden states at the embed token, after reasoning, by"),
        ("bart", rows_at_any_position, "hidden states at the embed token, after reasoning, by"),
        ("llama4_text", the_named_base, "cannot be run here.*last_hidden_state"),
        ("dory", the_old_name_of_the_cache, "cannot be run here|these differ"),
        ("moshi", a_window_that_is_not_applied, "after reasoning, by"),
    ],
)
def test_what_was_wrong_is_right_and_is_refused_without_the_repair(kind, taken_back, message, monkeypatch):
    if kind not in transformers.CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {kind}")
    if kind in REFUSED.get(transformers.__version__, ()):
        with pytest.raises(ValueError, match="gives something else than its own forward over one text alone"):
            check(kind)
        return
    check(kind)
    taken_back(monkeypatch)
    with pytest.raises(ValueError, match=message):
        check(kind)


@pytest.mark.parametrize("kind", ["qwen2", "llama", "gemma2", "cohere", "granite", "bloom", "mpt", "bert", "opt"])
def test_what_was_right_stays_right(kind):
    check(kind)


def test_rows_of_models_that_see_distances_only_are_still_stepped_together():
    assert not Architecture(tiny_causal("bloom")).one_position
    assert not Architecture(tiny_causal("mpt")).one_position
    assert Architecture(tiny_causal("roformer")).one_position


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("xlnet", "XLNetLMHeadModel gives something else than its own forward.*read directly, by 0"),
        ("openai-gpt", "OpenAIGPTLMHeadModel cannot be run here"),
        ("mamba", "MambaForCausalLM keeps a recurrent or compressed state"),
    ],
)
def test_what_cannot_be_made_right_is_refused_by_name(kind, message):
    with pytest.raises(ValueError, match=message):
        check(kind)


def test_a_window_of_positions_leaves_out_those_before_the_first(tiny_tokenizer):
    roberta = Checkpoint(tiny_causal("roberta"), tiny_tokenizer, Profile.default(), "tests/roberta")
    assert roberta.window == 4096 - 2  # the padding id is 1
    assert Checkpoint(tiny_causal("qwen2"), tiny_tokenizer, Profile.default(), "tests/qwen2").window == 4096


@pytest.mark.slow
def test_every_architecture_of_transformers_works_or_is_refused():
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    architectures = script("architectures")
    found = {kind: architectures.verdict(kind)["verdict"] for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
    assert [kind for kind, verdict in found.items() if verdict == "silent mismatch"] == []
    published = json.loads((SCRIPTS / "architectures.json").read_text())
    if published["transformers"] == transformers.__version__:
        assert found == {kind: each["verdict"] for kind, each in published["kinds"].items()}


def test_the_longer_check_of_the_table_finds_what_the_probe_lets_through(monkeypatch):
    architectures = script("architectures")
    assert architectures.verdict("roberta")["verdict"] == "works"
    monkeypatch.setattr(architectures, "check_model", lambda *arguments: None)
    positions_from_zero(monkeypatch)
    assert architectures.verdict("roberta")["verdict"] == "silent mismatch"


# ---- rounding ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["qwen2", "modernbert-decoder", "roberta", "granitemoeshared"])
def test_half_precision_passes_and_faults_are_seen_in_it(kind, dtype, monkeypatch):
    check(kind, dtype)
    monkeypatch.setattr(backbone.Backbone, "logits", lambda self, hidden: self.head(hidden) * 1.2)
    with pytest.raises(ValueError, match="log-probabilities by"):
        check(kind, dtype)


def test_a_difference_in_half_precision_is_judged_in_float32(monkeypatch):
    model = tiny_causal("qwen2").to(torch.bfloat16)
    monkeypatch.setitem(probe.ALLOWED, torch.bfloat16, 1e-9)  # rounding is more than that
    probe.check_model("qwen2", model, EMBED, PROMPTS)
    assert model.dtype == torch.bfloat16
    monkeypatch.setitem(probe.ALLOWED, torch.float32, 1e-9)
    with pytest.raises(ValueError, match="allowed: 1e-09"):
        probe.check_model("qwen2", model, EMBED, PROMPTS)


def test_not_a_number_is_never_equal():
    model = tiny_causal("qwen2")
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="by nan of their size"):
        probe.check_model("qwen2", model, EMBED, PROMPTS)


# ---- large models --------------------------------------------------------------------------------------------------


def test_a_large_model_is_probed_on_its_first_layers(monkeypatch):
    config = tiny.tiny_config(
        "gemma2", num_hidden_layers=6, layer_types=["sliding_attention"] * 3 + ["full_attention"] * 3
    )
    model = tiny.tiny_model(config)
    layers = list(model.model.layers)
    with probe.first_layers(model) as count:
        assert count == len(model.model.layers) == 4  # up to the first full one
    assert list(model.model.layers) == layers
    passes = []
    handle = layers[4].register_forward_hook(lambda *arguments: passes.append(1))
    monkeypatch.setattr(probe, "WHOLE", 0)
    probe.check_model("gemma2", model, EMBED, PROMPTS)
    assert passes == []
    monkeypatch.setattr(probe, "WHOLE", 10**9)
    probe.check_model("gemma2", model, EMBED, PROMPTS)
    assert passes
    handle.remove()


def test_faults_are_seen_on_the_first_layers_too(monkeypatch):
    monkeypatch.setattr(probe, "WHOLE", 0)
    check("roberta")
    positions_from_zero(monkeypatch)
    with pytest.raises(ValueError, match="read directly, by"):
        check("roberta")


def test_a_model_whose_forward_wants_all_layers_is_probed_whole(monkeypatch):
    model = tiny.tiny_model(tiny.tiny_config("qwen2", num_hidden_layers=3, layer_types=["full_attention"] * 3))
    forward = model.model.forward

    def wants_all(*arguments, **keywords):
        if len(model.model.layers) < 3:
            raise IndexError("three layers are needed")
        return forward(*arguments, **keywords)

    wants_all.__signature__ = inspect.signature(forward)
    model.model.forward = wants_all
    monkeypatch.setattr(probe, "WHOLE", 0)
    probe.check_model("qwen2", model, EMBED, PROMPTS)


# ---- tokenizers and rows -------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tiny_folder):
    return tiny_folder


def test_a_tokenizer_that_reads_otherwise_than_its_file_is_refused(make_model, tmp_path):
    # transformers 5 gives a Qwen2-shaped folder Qwen2's own tokenizer, whatever the files say; these are BERT's.
    mini = ASSETS / "mini"
    make_model(vocab_size=30528).save_pretrained(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json", "search_r3.json"):
        shutil.copy(mini / name, tmp_path / "model")
    with pytest.raises(ValueError, match=r"Qwen2Tokenizer, the class .* its own tokenizer.json as .* token 0 on"):
        load(tmp_path / "model")
    assert load(tmp_path / "model", probe=False)
    settings = json.loads((mini / "tokenizer_config.json").read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(settings))
    assert load(tmp_path / "model")  # what the message advises


def test_a_tokenizer_that_loses_spaces_is_refused(folder, tiny_tokenizer):
    from tokenizers import pre_tokenizers

    probe.check_tokens("tests/tiny", tiny_tokenizer, folder)
    lossy = copy.deepcopy(tiny_tokenizer)
    parts = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    lossy.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    with pytest.raises(ValueError, match=r"they differ from token 2 on.*PreTrainedTokenizerFast"):
        probe.check_tokens("tests/tiny", lossy, folder)


def test_a_declared_class_that_loses_every_space_never_loads_in_silence(make_model, tiny_tokenizer, tmp_path):
    """Llama's class over a byte-level file: right in transformers 5.24, without any space in 5.10.4 and 5.17."""
    checkpoint = Checkpoint(make_model("llama"), tiny_tokenizer, Profile.default(), "tests/llama")
    without_manifest(save(checkpoint, tmp_path / "model"))
    config = tmp_path / "model" / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tokenizer_class": "LlamaTokenizerFast"}))
    found = load(tmp_path / "model", probe=False).tokenizer("the query and the document")["input_ids"]
    if found == tiny_tokenizer("the query and the document")["input_ids"]:
        load(tmp_path / "model")
    else:
        with pytest.raises(ValueError, match="LlamaTokenizer, the class that the folder's files name"):
            load(tmp_path / "model")


def test_padding_and_truncation_in_the_file_are_no_difference(folder, tiny_tokenizer):
    data = json.loads((folder / "tokenizer.json").read_text())
    data["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    (folder / "tokenizer.json").write_text(json.dumps(data))
    probe.check_tokens("tests/tiny", tiny_tokenizer, folder)


def test_tokens_without_a_row_are_refused(make_model, tiny_tokenizer):
    fits = Checkpoint(make_model(), tiny_tokenizer, Profile.default(), "tests/tiny")
    probe.check_rows(fits)
    larger = copy.deepcopy(tiny_tokenizer)
    larger.add_tokens([f"<extra{i}>" for i in range(200)])
    with pytest.raises(ValueError, match=r"ids up to \d+ .* but the input matrix has 384 rows"):
        probe.check_rows(replace(fits, tokenizer=larger))
    untied = make_model(tie_word_embeddings=False)
    untied.lm_head.weight = torch.nn.Parameter(untied.lm_head.weight[:290].clone())
    with pytest.raises(ValueError, match=r"but the output matrix has 290 rows"):
        probe.check_rows(replace(fits, model=untied))


@pytest.mark.parametrize(("value", "word"), [(0.0, "zero"), (float("nan"), "not finite")])
@pytest.mark.parametrize("which", ["input", "output"])
def test_a_row_of_the_embed_token_that_was_never_set_is_refused(make_model, tiny_tokenizer, which, value, word):
    checkpoint = Checkpoint(make_model(tie_word_embeddings=False), tiny_tokenizer, Profile.default(), "tests/tiny")
    probe.check_rows(checkpoint)
    layer = checkpoint.model.model.embed_tokens if which == "input" else checkpoint.model.lm_head
    with torch.no_grad():
        layer.weight[checkpoint.embed_token_id] = value
    with pytest.raises(ValueError, match=rf"of the {which} matrix is {word}"):
        probe.check_rows(checkpoint)


# ---- once per state ------------------------------------------------------------------------------------------------


@pytest.fixture
def probes(monkeypatch, tmp_path):
    """The names that were probed; what was remembered before is not known here."""
    monkeypatch.setenv("SEARCH_R3_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(probed, "_passed", set())
    names, real = [], probe.probe
    monkeypatch.setattr(
        probe, "probe", lambda checkpoint, folder: (names.append(checkpoint.name), real(checkpoint, folder))
    )
    return names


def test_a_state_is_probed_once_also_by_the_next_process(folder, probes):
    for expected in (1, 1):
        load(folder)
        assert len(probes) == expected
    probed.forget()
    load(folder)
    assert len(probes) == 1
    load(folder, dtype="bfloat16")
    assert len(probes) == 2


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_file_that_changed_is_probed_again(folder, probes, name):
    load(folder)
    path = folder / name
    times = path.stat()
    path.write_bytes(path.read_bytes())  # of the same length and, as `cp -p` leaves it, with the same time
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    load(folder)
    assert len(probes) == 2


def test_other_libraries_are_probed_again(folder, probes, monkeypatch):
    load(folder)
    assert probed.libraries()[1:] == [tokenizers.__version__, torch.__version__, transformers.__version__]
    monkeypatch.setattr(probed, "libraries", lambda: ["0"])
    load(folder)
    assert len(probes) == 2


def test_a_refused_state_is_not_remembered(folder, probes, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(backbone.Backbone, "logits", lambda self, hidden: -self.head(hidden))
        for _ in range(2):
            with pytest.raises(ValueError, match="greedy choices by"):
                load(folder)
    load(folder)
    assert len(probes) == 3


def test_a_cache_that_cannot_be_written_costs_a_probe(folder, probes, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("SEARCH_R3_CACHE", str(tmp_path / "file"))
    load(folder)
    load(folder)
    assert len(probes) == 1  # this process knows
    probed.forget()
    load(folder)
    assert len(probes) == 2


def test_the_probe_can_be_left_out(folder, probes):
    fingerprint = SearchR3Encoder(folder, probe=False).fingerprint
    assert probes == []
    assert SearchR3Encoder(folder).fingerprint == fingerprint
    assert len(probes) == 1
    assert "probe" not in SearchR3Encoder(folder).settings


def test_a_checkpoint_whose_vectors_would_be_wrong_is_not_loaded(tmp_path, tiny_tokenizer, monkeypatch):
    model = tiny_causal("modernbert-decoder")
    model.config.eos_token_id = None
    save(Checkpoint(model, tiny_tokenizer, Profile.default(), "tests/modernbert"), tmp_path / "model")
    encoder = SearchR3Encoder(tmp_path / "model", max_reasoning_tokens=12, max_length=600)
    prompt = encoder.renderer.render("iron rusts", "reason").token_ids
    ids = torch.tensor([prompt])
    said = encoder.model.generate(ids, max_new_tokens=12, do_sample=False, attention_mask=torch.ones_like(ids))
    assert encoder.engine.reason([prompt], Sampling(12)).token_ids[0][:-1] == said[0, len(prompt) :].tolist()
    monkeypatch.setattr(probed, "_passed", set())
    monkeypatch.setenv("SEARCH_R3_CACHE", str(tmp_path / "cache"))
    projection_alone(monkeypatch)
    with pytest.raises(ValueError, match="the head's logits by"):
        SearchR3Encoder(tmp_path / "model")
    assert checkpoints.load(tmp_path / "model", probe=False)
    assert Engine(model, EMBED).head.vocabulary == 384
