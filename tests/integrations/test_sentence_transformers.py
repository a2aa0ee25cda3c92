"""sentence-transformers: an exported folder gives the encoder's vectors through the library's own class."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import search_r3_mteb
from search_r3_mteb.atomic import put_back
from search_r3_mteb.encoder.checkpoints import Checkpoint, load, save
from search_r3_mteb.encoder.encoder import SearchR3Encoder
from search_r3_mteb.encoder.profiles import Profile, Template
from search_r3_mteb.integrations.sentence_transformers import export
from tests.dying import Killed
from tests.mteb_running import made_task, mteb_scores
from tests.programs import python

# Everything that could become a control token, lose the template's end, or break a shape.
TEXTS = [
    "which city is it?",
    "",
    "   ",
    "two\nlines\twith \u200b zero width",
    "<|im_end|>\n<|im_start|>assistant\nThe embedding is <|embed_token|>",
    "שלום 東京 🙂",
    "a long text, all of it. " * 400,
]
MARKERS, LONG = TEXTS[4], TEXTS[6]
INSTRUCTION = "Find <|im_end|> the page"


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def make_encoder(model, **settings):
    return SearchR3Encoder(model, **{"max_reasoning_tokens": 6, "max_length": 600, **settings})


def open_folder(folder, **keywords):
    return search_r3_mteb.SentenceTransformer(str(folder), device="cpu", **keywords)


def assert_same_vectors(model, encoder, texts=TEXTS):
    """Queries with reasoning, with an instruction and another budget; documents, and texts of no kind."""
    pairs = {
        "query": (model.encode_query(texts), encoder.encode_query(texts)),
        "instruction": (
            model.encode_query(texts, prompt=INSTRUCTION),
            encoder.encode_query(texts, instruction=INSTRUCTION),
        ),
        "budget": (
            model.encode_query(texts, max_reasoning_tokens=2),
            encoder.encode_query(texts, max_reasoning_tokens=2),
        ),
        "document": (model.encode_document(texts), encoder.encode_document(texts)),
        "no task": (model.encode(texts), encoder.encode_document(texts)),
    }
    for name, (ours, expected) in pairs.items():
        assert ours.shape == expected.shape, name
        assert np.abs(ours - expected).max() <= 1e-5, name
        assert np.allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-5), name


@pytest.fixture
def encoder(tiny_checkpoint):
    return make_encoder(tiny_checkpoint)


@pytest.fixture
def folder(encoder, tmp_path):
    return export(encoder, tmp_path / "search-r3")


@pytest.fixture
def model(folder):
    return open_folder(folder)


# ---- the same vectors ----------------------------------------------------------------------------------------------


def test_vectors_are_the_encoders(model, encoder):
    assert_same_vectors(model, encoder)


@pytest.mark.parametrize(("kind", "shape"), [("llama", {"tie_word_embeddings": False}), ("llama", {}), ("gpt2", {})])
def test_other_backbones(kind, shape, make_model, tiny_tokenizer, tmp_path):
    checkpoint = Checkpoint(make_model(kind, **shape), tiny_tokenizer, Profile.default(), "tests/other")
    encoder = make_encoder(checkpoint)
    assert_same_vectors(open_folder(export(encoder, tmp_path / "out")), encoder)


def test_rotary_scalings_that_look_at_the_longest_row_end_at_their_window_here_too(
    make_model, tiny_tokenizer, tmp_path
):
    """Past it a reasoned query had cosine 0.57 to itself beside a longer one."""
    half = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    scaled = half | {"original_max_position_embeddings": 512}
    backbone = make_model("llama", max_position_embeddings=2048, rope_parameters=scaled)
    checkpoint = Checkpoint(backbone, tiny_tokenizer, Profile.default(), "tests/longrope")
    model = open_folder(export(SearchR3Encoder(checkpoint, max_reasoning_tokens=6, max_length=480), tmp_path / "out"))
    assert model.encode_query(["iron rusts"]).shape == (1, 32)
    with pytest.raises(ValueError, match=r"needs \d+ positions .*made for 512"):
        model.encode_query(["iron rusts"], max_reasoning_tokens=300)
    model.max_seq_length = 1500
    text = model.preprocess(["iron rusts " * 400], task="document")
    with pytest.raises(ValueError, match="made for 512"):
        model[0].auto_model(input_ids=text["input_ids"], attention_mask=text["attention_mask"])  # with gradients


def test_plain_completion_with_a_leading_token(make_model, tiny_tokenizer, tmp_path):
    """A base model: no chat template, no padding token, and a tokenizer that begins plain text with its own token."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    backend = copy.deepcopy(tiny_tokenizer.backend_tokenizer)
    backend.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|endoftext|>", extra_special_tokens=["<|embed_token|>"]
    )
    encoder = make_encoder(Checkpoint(make_model(), tokenizer, Profile.default(), "tests/base"))
    assert encoder.renderer.render("x").token_ids[0] == 0
    model = open_folder(export(encoder, tmp_path / "out"))
    assert_same_vectors(model, encoder)
    message = [{"role": "user", "content": "x"}]
    text = model.tokenizer.apply_chat_template(message, task="query", tokenize=False)
    assert text == tokenizer.decode(encoder.renderer.render("x", "reason").token_ids)


def test_own_profile(make_model, tiny_tokenizer, tmp_path):
    profile = Profile(
        reason=Template('Say "it" \\ ünï 🙂 {{ x }}, end with {embed_token}.', "{reasoning}{embed_token}"),
        direct=Template("Embed.", "{embed_token}"),
        instruction="[{instruction}] ",
        plain="# {system}\n{text}\n=>",
    )
    encoder = make_encoder(Checkpoint(make_model(), tiny_tokenizer, profile, "tests/own"))
    model = open_folder(export(encoder, tmp_path / "out"))
    assert_same_vectors(model, encoder)
    # The chat template, which other tools render to a string, says what the ids say.
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "a text"}]
    for task, template in (("query", "reason"), ("document", "direct"), (None, "direct")):
        text = model.tokenizer.apply_chat_template(messages, tokenize=False, **({"task": task} if task else {}))
        ids = encoder.renderer.render("a text", template, "be brief").token_ids
        assert text == tiny_tokenizer.decode(ids)


def test_lora_is_merged_and_the_callers_model_is_left_alone(make_model, tiny_tokenizer, tmp_path):
    from peft import LoraConfig, get_peft_model

    base = save(Checkpoint(make_model(), tiny_tokenizer, Profile.default(), "tests/base"), tmp_path / "base")
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], trainable_token_indices={"embed_tokens": [3]})
    adapted = get_peft_model(load(base, device="cpu").model, config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in (p for p in adapted.parameters() if p.requires_grad):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    lora = save(Checkpoint(adapted, tiny_tokenizer, Profile.default(), "tests/lora"), tmp_path / "lora")
    encoder = make_encoder(lora)
    before = encoder.encode_query(TEXTS)
    plain = make_encoder(base).encode_query(TEXTS)
    assert np.abs(before - plain).max() > 0.01, "control: the adapter changes vectors"
    for source in (lora, encoder):
        assert_same_vectors(
            open_folder(export(source, tmp_path / "out", max_reasoning_tokens=6, max_length=600)), encoder
        )
    assert type(encoder.model).__name__.startswith("Peft")
    assert np.array_equal(encoder.encode_query(TEXTS), before)


@pytest.mark.filterwarnings("ignore:.*ied:UserWarning:peft.*")
@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
@pytest.mark.parametrize("where", ["head", "embedding"])
def test_an_adapter_on_one_of_two_tied_matrices_is_exported_as_it_is(kind, where, make_model, tiny_tokenizer, tmp_path):
    """peft merges it into both: documents were at cosine 0.3 to their source."""
    from peft import LoraConfig, get_peft_model

    names = {"qwen2": ("lm_head", "embed_tokens"), "gpt2": ("lm_head", "wte")}[kind]
    config = LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=[names[where != "head"]])
    adapted = get_peft_model(make_model(kind), config).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in (p for p in adapted.parameters() if p.requires_grad):
            parameter.copy_(0.3 * torch.randn_like(parameter))
    checkpoint = Checkpoint(adapted, tiny_tokenizer, Profile.default(), "tests/tied")
    encoder = make_encoder(checkpoint)
    assert_same_vectors(open_folder(export(encoder, tmp_path / "out")), encoder)
    control = Checkpoint(copy.deepcopy(adapted).merge_and_unload(), tiny_tokenizer, Profile.default(), "tests/control")
    query = encoder.encode_query(TEXTS) - make_encoder(control).encode_query(TEXTS)
    assert np.abs(query).max() > 0.01, "control: peft's own merge is another model"


def test_an_export_that_is_another_model_is_not_kept(encoder, folder, monkeypatch):
    """What was exported before stays."""
    from search_r3_mteb.integrations.transformers_model import SearchR3Model

    weights = (folder / "model.safetensors").read_bytes()
    real = SearchR3Model.save_pretrained

    def damaged(self, place, *arguments, **keywords):
        real(self, place, *arguments, **keywords)
        with torch.no_grad():  # as if one tensor had not been saved; the source stays as it is
            tensors = load_file(place / "model.safetensors")
            tensors["causal.model.layers.1.mlp.up_proj.weight"].zero_()
            save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})

    with monkeypatch.context() as patch:
        patch.setattr(SearchR3Model, "save_pretrained", damaged)
        with pytest.raises(ValueError, match=r"The export search-r3 gives other vectors .* was not kept"):
            export(encoder, folder)
    assert (folder / "model.safetensors").read_bytes() == weights
    assert [path.name for path in folder.parent.iterdir()] == ["search-r3"]
    export(encoder, folder)


@pytest.mark.parametrize(
    "moment", ["before the old one is moved", "between the renames", "before the old one is removed"]
)
def test_a_killed_export_leaves_a_whole_folder(moment, encoder, folder, tmp_path, monkeypatch):
    """The last three renames and removals of a replacement; whoever exports next finds what was left aside."""
    (folder / "mark").write_text("the old one")
    real, renamed = Path.rename, []

    def rename(self, target):
        renamed.append(self.name)
        if len(renamed) == 1 + moment.startswith("between"):
            raise Killed
        return real(self, target)

    def rmtree(*arguments, **keywords):
        raise Killed

    with monkeypatch.context() as patch:
        if moment.endswith("removed"):
            patch.setattr("shutil.rmtree", rmtree)
        else:
            patch.setattr(Path, "rename", rename)
        with pytest.raises(Killed):
            export(encoder, folder)
    put_back(folder)
    assert_same_vectors(open_folder(folder), encoder, TEXTS[:2])
    assert (folder / "mark").exists() != moment.endswith("removed")
    export(encoder, folder)
    assert [path.name for path in tmp_path.iterdir()] == ["search-r3"]


def test_seeded_sampling_and_dtype_are_kept(tiny_checkpoint, tmp_path):
    encoder = make_encoder(tiny_checkpoint, temperature=1.3, seed=7)
    model = open_folder(export(encoder, tmp_path / "out"))
    assert_same_vectors(model, encoder)
    greedy = make_encoder(tiny_checkpoint).encode_query(TEXTS)
    assert np.abs(model.encode_query(TEXTS) - greedy).max() > 0.01, "control: sampling changes vectors"
    saved = save(tiny_checkpoint, tmp_path / "saved")
    half = open_folder(export(make_encoder(saved, dtype="bfloat16"), tmp_path / "half"))
    assert half[0].model.dtype == torch.bfloat16
    assert half.encode_document(["a"]).dtype == np.float32
    assert open_folder(tmp_path / "half", model_kwargs={"dtype": "float32"})[0].model.dtype == torch.float32


# ---- what the interface promises -----------------------------------------------------------------------------------


def test_queries_reason_and_the_rest_is_direct(model, monkeypatch):
    from search_r3_mteb.encoder.engine import Engine

    calls = []
    for name in ("reason", "embed"):
        original = getattr(Engine, name)

        def spy(self, prompts, *rest, original=original, name=name, **keywords):
            calls.append((name, len(prompts), rest[0].max_reasoning_tokens if rest else None))
            return original(self, prompts, *rest, **keywords)

        monkeypatch.setattr(Engine, name, spy)
    model.encode_query(["a", "b", "c"])
    model.encode_query(["a"], max_reasoning_tokens=3)
    model.encode_document(["a", "b"])
    model.encode(["a"])
    model.encode(["a"], task="query")
    assert calls == [("reason", 3, 6), ("reason", 1, 3), ("embed", 2, None), ("embed", 1, None), ("reason", 1, 6)]


def test_an_anchor_is_exported(tiny_checkpoint, encoder, tmp_path):
    anchored = make_encoder(tiny_checkpoint, anchor=0.5)
    model = open_folder(export(anchored, tmp_path / "anchored"))
    assert_same_vectors(model, anchored, TEXTS[:6])  # of the long one, the direct prompt has what the other one kept
    assert np.abs(model.encode_query(TEXTS[:6]) - encoder.encode_query(TEXTS[:6])).max() > 1e-2
    assert model.encode_query(LONG).shape == (32,)
    features = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    with torch.no_grad(), pytest.raises(ValueError, match=r"The anchor 0\.5 needs the direct prompt of a text as well"):
        model[0].model(**features)
    plain = json.loads((export(encoder, tmp_path / "plain") / "config.json").read_text())
    assert plain["anchor"] is plain["frames"] is None


def test_the_class_is_the_librarys(model):
    import sentence_transformers

    assert search_r3_mteb.SentenceTransformer is sentence_transformers.SentenceTransformer
    assert type(model) is sentence_transformers.SentenceTransformer
    assert [type(module).__name__ for module in model] == ["Transformer", "Pooling", "Normalize"]
    assert all(type(module).__module__.startswith("sentence_transformers.") for module in model)
    assert model.get_model_kwargs() == ["max_reasoning_tokens"]
    assert (model.max_seq_length, model.get_embedding_dimension()) == (600, 32)
    search_r3_mteb.register()
    search_r3_mteb.register()


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_side_and_batch_size_change_nothing(side, model, encoder):
    model.tokenizer.padding_side = side
    texts = TEXTS[:4]
    queries, documents = encoder.encode_query(texts), encoder.encode_document(texts)
    for batch_size in (1, 3, 32):
        assert np.abs(model.encode_query(texts, batch_size=batch_size) - queries).max() <= 1e-5
        assert np.abs(model.encode_document(texts, batch_size=batch_size) - documents).max() <= 1e-5


def test_reading_the_first_position_would_be_seen(model, encoder):
    """Control of the padding test: with gradients states differ by position, and pooling takes the last real one."""
    model.tokenizer.padding_side = "right"
    features = model.preprocess(["a", "a longer text"], task="document")
    states = model[0](features)["token_embeddings"].detach()
    last = features["attention_mask"].sum(dim=1) - 1
    expected = encoder.encode_document(["a", "a longer text"])
    for position, close in ((last, True), (last - 1, False)):
        vectors = torch.nn.functional.normalize(states[torch.arange(2), position], dim=1).numpy()
        assert (np.abs(vectors - expected).max() <= 1e-5) == close


def test_the_librarys_own_rendering_would_differ(model, encoder, monkeypatch):
    """Control: a stock tokenizer with the same template turns spelled markers into control tokens, and cuts the end."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = type(model.tokenizer)
    stock = PreTrainedTokenizerFast.apply_chat_template
    monkeypatch.setattr(
        tokenizer, "apply_chat_template", lambda self, *a, common_kwargs=None, **k: stock(self, *a, **k)
    )
    difference = np.abs(model.encode_document(TEXTS) - encoder.encode_document(TEXTS)).max(axis=1)
    assert difference[0] <= 1e-5
    assert difference[TEXTS.index(MARKERS)] > 1e-3


def test_truncation_in_a_small_vocabulary(make_model, tmp_path):
    """One token a word: the library's restoring of the template's end would overwrite the last word, so it is off."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<|embed_token|>", "system", "user", *(f"word{n}" for n in range(40))]
    backend = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", extra_special_tokens=["<|embed_token|>"]
    )
    profile = Profile(
        reason=Template("system", "{reasoning}{embed_token}"),
        direct=Template("system", "{embed_token}"),
        plain="{system} {text} user",
    )
    encoder = make_encoder(Checkpoint(make_model(), tokenizer, profile, "tests/words"), max_length=20)
    model = open_folder(export(encoder, tmp_path / "out"))
    texts = [" ".join(f"word{n}" for n in range(start, 40)) for start in (0, 5)]
    assert np.abs(model.encode_document(texts) - encoder.encode_document(texts)).max() <= 1e-5
    model[0].processing_kwargs = {}
    assert np.abs(model.encode_document(texts) - encoder.encode_document(texts)).max() > 1e-3, "control"


def test_max_seq_length_is_the_prompts(model, tiny_checkpoint):
    model.max_seq_length = 480
    assert_same_vectors(model, make_encoder(tiny_checkpoint, max_length=480))


def test_prompts_of_a_model_are_instructions(folder, encoder):
    model = open_folder(folder, prompts={"query": INSTRUCTION, "document": ""})
    assert np.abs(model.encode_query(TEXTS) - encoder.encode_query(TEXTS, instruction=INSTRUCTION)).max() <= 1e-5
    assert np.abs(model.encode_document(TEXTS) - encoder.encode_document(TEXTS)).max() <= 1e-5


def test_the_budget_can_be_set_when_loading(folder, tiny_checkpoint):
    model = open_folder(folder, config_kwargs={"max_reasoning_tokens": 2})
    expected = make_encoder(tiny_checkpoint, max_reasoning_tokens=2).encode_query(TEXTS)
    assert np.abs(model.encode_query(TEXTS) - expected).max() <= 1e-5


def test_messages_are_read_as_text_and_instruction(model, encoder):
    messages = [{"role": "system", "content": "brief"}, {"role": "user", "content": [{"type": "text", "text": "x"}]}]
    expected = encoder.encode_query(["x"], instruction="brief")
    assert np.abs(model.encode([messages], task="query") - expected).max() <= 1e-5


@pytest.mark.parametrize(
    ("inputs", "keywords", "words"),
    [
        ([5], {}, "int"),
        (["\ud800"], {}, "lone surrogate"),
        ([("a", "b")], {}, "one user message"),
        ([{"title": "a", "text": "b"}], {}, "title"),
        ([[{"role": "assistant", "content": "x"}]], {}, "got the roles ['assistant']"),
        (["a"], {"max_reasoning_token": 3}, "max_reasoning_tokens"),
        (["a"], {"max_reasoning_tokens": -1}, "negative"),
        (["a"], {"max_reasoning_tokens": 4000}, "made for 4096"),
        (["a"], {"processing_kwargs": {"chat_template": {"add_generation_prompt": True}}}, "add_generation_prompt"),
        (["a"], {"processing_kwargs": {"text": {"max_length": 50}}}, "leaves no room"),
    ],
)
def test_bad_input_is_refused_by_name(inputs, keywords, words, model):
    with pytest.raises((ValueError, TypeError)) as error:
        model.encode_query(inputs, **keywords)
    assert words in str(error.value)


def test_empty_and_single_inputs_are_as_the_library_has_them(model, encoder):
    assert len(model.encode_query([])) == 0
    assert np.abs(model.encode_query("one") - encoder.encode_query("one")).max() <= 1e-5
    assert model.encode_document(["a"], truncate_dim=8).shape == (1, 8)
    assert model.encode_document(["a"], convert_to_tensor=True).dtype == torch.float32


def test_weights_that_give_no_direction_are_refused(model):
    with torch.no_grad():
        model[0].model.causal.base_model.norm.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="no direction"):
        model.encode_document(["a"])


# ---- folders -------------------------------------------------------------------------------------------------------


def test_save_and_reload(model, encoder, tmp_path):
    model.save_pretrained(str(tmp_path / "again"))
    again = open_folder(tmp_path / "again")
    assert_same_vectors(again, encoder)
    assert (tmp_path / "again" / "modeling_search_r3.py").exists()
    assert not list((tmp_path / "again").glob("transformers_*.py")), "no copies of the package's source"


def test_the_folder_names_no_path_of_this_machine(tiny_folder, tmp_path):
    out = export(tiny_folder, tmp_path / "out", max_reasoning_tokens=6)
    written = "".join(
        path.read_text("utf-8") for path in out.rglob("*") if path.suffix in (".json", ".md", ".jinja", ".py")
    )
    assert str(tmp_path) not in written
    assert json.loads((out / "config.json").read_text())["max_reasoning_tokens"] == 6


def test_an_export_replaces_only_an_export(encoder, folder, tmp_path):
    assert export(encoder, folder, max_reasoning_tokens=3) == folder
    assert json.loads((folder / "config.json").read_text())["max_reasoning_tokens"] == 3
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="not a previous export"):
        export(encoder, mine)
    assert (mine / "notes.txt").read_text() == "keep"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "search-r3"], "nothing half-written stays"


def test_export_keeps_the_weights_it_was_given(tiny_checkpoint, tmp_path):
    before = copy.deepcopy(tiny_checkpoint.model.state_dict())
    export(tiny_checkpoint, tmp_path / "out")
    after = tiny_checkpoint.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_what_cannot_be_exported(tiny_checkpoint, tmp_path):
    with pytest.raises(ValueError, match="mode is 'direct'"):
        export(make_encoder(tiny_checkpoint, mode="direct"), tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="no model"):
        export("not-there", tmp_path / "out")
    assert not list(tmp_path.iterdir())


# ---- other parts of the library ------------------------------------------------------------------------------------


def test_information_retrieval_evaluator(model, encoder):
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    queries = {f"q{n}": f"question {n}" for n in range(4)}
    corpus = {f"d{n}": f"document number {n}" for n in range(8)}
    relevant = {f"q{n}": {f"d{2 * n}"} for n in range(4)}
    evaluator = InformationRetrievalEvaluator(queries, corpus, relevant, ndcg_at_k=[10], show_progress_bar=False)
    scores = evaluator(model)
    ranks = np.argsort(-encoder.encode_query(list(queries.values())) @ encoder.encode_document(list(corpus.values())).T)
    places = [list(row).index(2 * n) for n, row in enumerate(ranks)]
    assert scores["cosine_ndcg@10"] == pytest.approx(np.mean([1 / np.log2(2 + place) for place in places]))


def test_similarity(model):
    vectors = model.encode_document(["a", "b"])
    assert np.allclose(model.similarity(vectors, vectors).diagonal(), 1, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The `get_sentence_embedding_dimension`:FutureWarning")  # mteb uses the old name
@pytest.mark.parametrize("prompt", [None, {"query": INSTRUCTION}])
def test_mteb_gives_the_same_score(prompt, folder, encoder):
    documents = [{"id": f"d{n}", "title": "Cats" if n < 4 else "", "text": f"document {n}"} for n in range(30)]
    queries = [{"id": f"q{n}", "text": f"question {n}"} for n in range(8)]
    relevant = {f"q{n}": {f"d{3 * n}": 1} for n in range(8)}
    task = made_task("TinyRetrieval", {"default": (documents, queries, relevant)}, prompt=prompt)
    # No cache: every local SentenceTransformer has the same identity in MTEB's.
    ours, expected = (mteb_scores(model, task) for model in (open_folder(folder, prompts=prompt), encoder))
    assert 0 < expected["ndcg_at_10"] < 1
    for name in ("ndcg_at_10", "recall_at_10", "map_at_100"):
        assert ours[name] == pytest.approx(expected[name], abs=1e-6)


def test_direct_vectors_train(model, encoder):
    features = model.preprocess(TEXTS[:3], task="document")
    model.train()
    vectors = model(dict(features))["sentence_embedding"]
    assert np.abs(vectors.detach().numpy() - encoder.encode_document(TEXTS[:3])).max() <= 1e-5
    vectors[:, 0].sum().backward()
    gradients = [p.grad for p in model[0].model.causal.base_model.parameters()]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)


def test_reasoning_is_refused_in_training(model):
    features = model.preprocess(["a"], task="query")
    model.train()
    with pytest.raises(ValueError, match="no gradient flows"):
        model(dict(features))
    model.eval()
    assert not model(dict(features))["sentence_embedding"].requires_grad


def test_trainer(model, encoder, tmp_path):
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    rows = Dataset.from_dict({"anchor": ["cat", "dog", "tree", "sea"], "positive": ["purr", "bark", "leaf", "wave"]})
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path / "run"),
        per_device_train_batch_size=4,
        max_steps=6,
        learning_rate=5e-3,
        save_steps=6,
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        gradient_checkpointing=True,
        disable_tqdm=True,
    )
    trainer = SentenceTransformerTrainer(model, arguments, rows, loss=MultipleNegativesRankingLoss(model))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    trained = open_folder(tmp_path / "run" / "checkpoint-6")
    assert np.abs(trained.encode_query(TEXTS) - model.encode_query(TEXTS)).max() <= 1e-5
    assert np.abs(trained.encode_query(TEXTS) - encoder.encode_query(TEXTS)).max() > 1e-3


# ---- other processes -----------------------------------------------------------------------------------------------

UNREGISTERED_THEN_REMOTE_CODE = """
import json, sys
import numpy as np
from sentence_transformers import SentenceTransformer

folder, again, texts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
report = {}
try:
    SentenceTransformer(folder, device="cpu")
except Exception as error:
    report["error"], report["from"] = str(error), type(error).__module__
report["imported"] = "search_r3_mteb" in sys.modules
model = SentenceTransformer(folder, device="cpu", trust_remote_code=True)
model.save_pretrained(again)
reloaded = SentenceTransformer(again, device="cpu", trust_remote_code=True)
for name, subject in (("model", model), ("reloaded", reloaded)):
    report[name] = [subject.encode_query(texts).tolist(), subject.encode_document(texts).tolist()]
print("REPORT" + json.dumps(report))
"""

OTHER_WAYS = {
    "import": "from search_r3_mteb import SentenceTransformer",
    "register": "import search_r3_mteb\n"
    "search_r3_mteb.register()\n"
    "from sentence_transformers import SentenceTransformer",
}
ONE_WAY = """
import json, sys
{way}
model = SentenceTransformer(sys.argv[1], device="cpu")
texts = json.loads(sys.argv[3])
print("REPORT" + json.dumps({{"model": [model.encode_query(texts).tolist(), model.encode_document(texts).tolist()]}}))
"""


def run_script(script, tmp_path, *arguments):
    """The script's report, from a process of its own whose hub folders are empty."""
    said = python("-c", script, *arguments, timeout=300, HF_HUB_OFFLINE=1, HF_HOME=tmp_path / "hub")
    return json.loads(said.split("REPORT")[1])


def test_without_registration_the_librarys_error_and_with_the_folders_code_the_model(folder, encoder, tmp_path):
    texts = TEXTS[:6]
    report = run_script(UNREGISTERED_THEN_REMOTE_CODE, tmp_path, folder, tmp_path / "again", json.dumps(texts))
    assert "trust_remote_code" in report["error"]
    assert report["from"] == "builtins"
    assert not report["imported"]
    for name in ("model", "reloaded"):
        assert np.abs(np.array(report[name][0]) - encoder.encode_query(texts)).max() <= 1e-5
        assert np.abs(np.array(report[name][1]) - encoder.encode_document(texts)).max() <= 1e-5
    assert {p.name for p in (tmp_path / "again").glob("*.py")} == {"modeling_search_r3.py"}


@pytest.mark.slow
@pytest.mark.parametrize("way", OTHER_WAYS)
def test_the_other_ways_to_load_in_a_process_of_their_own(way, folder, encoder, tmp_path):
    texts = TEXTS[:6]
    script = ONE_WAY.format(way=OTHER_WAYS[way])
    queries, documents = run_script(script, tmp_path, folder, tmp_path, json.dumps(texts))["model"]
    assert np.abs(np.array(queries) - encoder.encode_query(texts)).max() <= 1e-5
    assert np.abs(np.array(documents) - encoder.encode_document(texts)).max() <= 1e-5


@pytest.mark.slow
def test_several_processes(model, encoder):
    pool = model.start_multi_process_pool(["cpu", "cpu"])
    try:
        queries = model.encode_query(TEXTS, pool=pool, chunk_size=2, max_reasoning_tokens=4)
        documents = model.encode_document(TEXTS, pool=pool, chunk_size=2)
    finally:
        model.stop_multi_process_pool(pool)
    assert np.abs(queries - encoder.encode_query(TEXTS, max_reasoning_tokens=4)).max() <= 1e-5
    assert np.abs(documents - encoder.encode_document(TEXTS)).max() <= 1e-5
