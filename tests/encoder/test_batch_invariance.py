"""Batch-invariant passes: a row's words and bits do not depend on what runs beside it; without them, they do."""

from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from search_r3_mteb.encoder import arithmetic, checkpoints, fixed_shapes
from search_r3_mteb.encoder.encoder import SearchR3Encoder
from search_r3_mteb.encoder.engine import Engine
from search_r3_mteb.encoder.fixed_shapes import FixedShapes
from search_r3_mteb.encoder.model_names import ASSETS
from search_r3_mteb.encoder.options import parse_settings
from search_r3_mteb.encoder.sampling import Sampling
from tests.encoder.test_engine import EMBED, END, KINDS, SAMPLED, VOCABULARY, check_everything, prompts_of, tiny
from tests.programs import mostly_slow

PROMPTS = prompts_of([5, 17, 9, 3, 30, 9, 2, 12, 41, 3, 70, 8, 6, 6, 25, 11, 19, 4, 33, 1])
DIRECT = [[*prompt, EMBED] for prompt in PROMPTS]
DTYPES = [torch.float32, torch.bfloat16]
SETTINGS = {"max_reasoning_tokens": 6, "max_length": 600}


class Tied(Engine):
    """All tokens tie but for the last bits of the state: what any rounding changes is another word.

    The next token is a sum over the state's bits, so that words are equal exactly where all states before them are.
    """

    def logits(self, hidden):
        bits = hidden.float().contiguous().view(torch.int32).long()
        chosen = 4 + (bits * torch.arange(1, bits.shape[1] + 1)).sum(dim=1) % (VOCABULARY - 4)
        return torch.nn.functional.one_hot(chosen, VOCABULARY).float()


@pytest.fixture
def model(make_model):
    """`model(kind, dtype)`: a random causal LM of 24 tokens, wide enough that sums round."""

    def build(kind="qwen2", dtype=torch.float32, seed=0):
        own = {"hidden_size": 64, "intermediate_size": 160} if kind != "gpt2" else {}
        built = make_model(kind, seed, **own)
        built.resize_token_embeddings(VOCABULARY, mean_resizing=False)
        return built.to(dtype)

    return build


def runs(engine, prompts=PROMPTS):
    """The engine's words and vectors of all prompts: other budgets, the other order, half of them, each alone."""
    for budget in (1, 150, 700, 16384):
        found = engine(token_budget=budget).reason(prompts, SAMPLED)
        yield list(range(len(prompts))), found.token_ids, found.vectors
    for rows in (list(range(len(prompts)))[::-1], list(range(0, len(prompts), 2)), *([i] for i in range(4))):
        found = engine().reason([prompts[i] for i in rows], SAMPLED)
        yield rows, found.token_ids, found.vectors


def differing(found):
    """Row numbers whose words, and whose vectors, are not the same in all runs."""
    first, words, bits = {}, set(), set()
    for rows, ids, vectors in found:
        for row, said, vector in zip(rows, ids, vectors, strict=True):
            kept = first.setdefault(row, (said, vector))
            words |= {row} if kept[0] != said else set()
            bits |= set() if torch.equal(kept[1], vector) else {row}
    return words, bits


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", mostly_slow(KINDS, KINDS[0]))
def test_words_that_hang_on_the_last_bit_are_the_same_in_every_batch(model, kind, dtype):
    engine = partial(Tied, model(kind, dtype), EMBED, (END,))
    assert differing(runs(partial(engine, batch_invariant=True))) == (set(), set())
    words, _ = differing(runs(engine))  # control: without the setting
    assert len(words) > 2


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_documents_have_the_same_bits_in_every_batch(model, dtype):
    def vectors(invariant):
        for rows in (list(range(len(DIRECT))), list(range(len(DIRECT)))[::-1], [3], [0, 10, 4], [7, 7, 7]):
            engine = Engine(model("qwen2", dtype), EMBED, batch_invariant=invariant, token_budget=40 * len(rows))
            yield rows, [[]] * len(rows), engine.embed([DIRECT[i] for i in rows])

    assert differing(vectors(True)) == (set(), set())
    assert len(differing(vectors(False))[1]) > 1  # control


@pytest.mark.parametrize("share_prefix", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_still_what_the_model_computes(model, kind, share_prefix):
    """Groups, sampling, refills: against Hugging Face's own forward."""
    rollouts = check_everything(model(kind), PROMPTS, batch_invariant=True, share_prefix=share_prefix)
    assert len({len(ids) for ids in rollouts.token_ids}) > 5


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("mistral", {"sliding_window": 6}),
        ("gpt_neo", {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 6}),
        ("bloom", {"n_layer": 2, "n_head": 4}),
    ],
)
def test_windows_and_models_whose_rows_step_at_one_position(name, own):
    built = tiny(name, **own)
    engine = partial(Tied, built, EMBED, (END,), batch_invariant=True)
    prompts = [prompt[:40] for prompt in PROMPTS]
    assert differing(runs(engine, prompts)) == (set(), set())
    assert (engine().shapes is fixed_shapes.ALONE) == (name == "gpt_neo")


def test_padding_stays_inside_the_models_positions(make_model):
    """A prompt that fills the window is padded beyond it, where a table of positions has no row."""
    built = tiny("gpt2", n_embd=32, n_layer=2, n_head=4, n_positions=83)
    whole = prompts_of([78], shared=4)[0] + [EMBED]
    invariant, plain = (Engine(built, EMBED, batch_invariant=each).embed([whole]) for each in (True, False))
    assert invariant.shape == plain.shape
    np.testing.assert_allclose(invariant, plain, atol=1e-5)
    assert fixed_shapes.SHAPES["cpu"].padded(83)[1] > 83


def test_shapes_depend_on_the_length_alone():
    shapes = FixedShapes(rows=16, columns=64, tokens=256, padding=32)
    assert [shapes.padded(length) for length in (1, 32, 33, 128, 129, 257)] == [
        *((8, 32), (8, 32), (4, 64), (2, 128), (1, 160), (1, 288))
    ]
    assert shapes.batches([5, 300, 30, 64, 40, *[9] * 8]) == [[1], [3, 4], [2, 5, 6, 7, 8, 9, 10, 11], [12, 0]]
    assert shapes.batches([]) == []


@contextmanager
def shapes_of(causal):
    """The shapes of the token ids that the causal LM's backbone is given inside the context."""
    seen = set()
    hook = causal.model.register_forward_pre_hook(
        lambda _, __, given: seen.add(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    yield seen
    hook.remove()


def test_every_step_and_every_prefill_has_its_shape(model):
    """Wired: the backbone sees nothing else, and the setting off gives other shapes."""
    built = model()
    for invariant in (True, False):
        with shapes_of(built) as seen:
            Engine(built, EMBED, (END,), batch_invariant=invariant).reason(PROMPTS[:5], SAMPLED)
        shapes = fixed_shapes.SHAPES["cpu"]
        assert (seen <= {(shapes.rows, 1), *(shapes.padded(len(prompt)) for prompt in PROMPTS[:5])}) == invariant


def test_what_cannot_be_invariant_is_refused(model):
    mixture = tiny("mixtral", num_local_experts=4, num_experts_per_tok=2)
    with pytest.raises(ValueError, match=r"mixtral is a mixture of experts \(.*'num_local_experts': 4"):
        Engine(mixture, EMBED, batch_invariant=True)
    Engine(mixture, EMBED)
    for part in ({"ffn_config": {"moe_num_experts": 4}}, {"text_config": {"part": {"num_experts": 4}}}):
        with pytest.raises(ValueError, match="is a mixture of experts"):  # DBRX and others say so in a part
            fixed_shapes.fixed_shapes(SimpleNamespace(model_type="x", to_dict=lambda part=part: part), "cpu", False)
    fixed_shapes.fixed_shapes(SimpleNamespace(model_type="x", to_dict=lambda: {"a": {"num_experts": 1}}), "cpu", False)
    rows = fixed_shapes.SHAPES["cpu"].rows
    with pytest.raises(ValueError, match=f"group_size={rows + 1}: a batch-invariant engine decodes {rows} rows"):
        Engine(model(), EMBED, batch_invariant=True).reason([[5, 6]], SAMPLED, group_size=rows + 1)
    assert (
        len(Engine(model(), EMBED, batch_invariant=True).reason([[5, 6]], Sampling(2), group_size=rows).finished)
        == rows
    )


# ---- the setting ---------------------------------------------------------------------------------------------------


@pytest.fixture
def half(tiny_folder):
    """The tiny checkpoint in bfloat16."""
    return checkpoints.load(tiny_folder, dtype="bfloat16", device="cpu")


def test_the_setting_reaches_the_engine_from_python_and_from_the_command_line(half, tiny_checkpoint):
    assert parse_settings(["batch_invariant=yes"]) == {"batch_invariant": True}
    assert parse_settings(["batch-invariant=none"]) == {"batch_invariant": None}
    texts = ["the query", "a", "document " * 30]
    found = [
        SearchR3Encoder(half, batch_tokens=tokens, **parse_settings(["batch_invariant=true"]), **SETTINGS)
        for tokens in (500, 16384)
    ]
    assert all(encoder.engine.shapes is not None for encoder in found)
    for method in ("encode_query", "encode_document"):
        together = getattr(found[1], method)(texts)
        alone = np.stack([getattr(found[0], method)(text) for text in texts])
        np.testing.assert_array_equal(together, alone)
    assert SearchR3Encoder(half, **SETTINGS).engine.shapes is None  # no model but the bundled ones by itself
    assert SearchR3Encoder(tiny_checkpoint, **SETTINGS).engine.shapes is None
    with pytest.raises(TypeError, match="batch_invariant='false' is of type str; it must be True, False or None"):
        SearchR3Encoder(half, batch_invariant="false")


def test_a_fingerprint_knows_what_decides_a_vector(half, tiny_checkpoint, monkeypatch, tmp_path):
    """In float32 no batch does, in half precision batches and the machine do, and the setting takes the batches out."""

    def prints(checkpoint, **settings):
        encoder = SearchR3Encoder(checkpoint, cache_folder=tmp_path, **SETTINGS, **settings)
        return encoder.fingerprint, encoder._store("document", "direct", None, given=False).fingerprint

    for one, two in zip(prints(tiny_checkpoint), prints(tiny_checkpoint, batch_tokens=99), strict=True):
        assert one == two
    for given in ({"batch_tokens": 99}, {"batch_invariant": True}):
        assert not set(prints(half)) & set(prints(half, **given))
    assert not set(prints(tiny_checkpoint)) & set(prints(tiny_checkpoint, batch_invariant=True))
    assert prints(half, batch_invariant=True) == prints(half, batch_invariant=True, batch_tokens=99)
    before = prints(half, batch_invariant=True), prints(tiny_checkpoint)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    after = prints(half, batch_invariant=True), prints(tiny_checkpoint)
    assert not set(before[0]) & set(after[0])
    assert before[1] == after[1]
    engine = Engine(half.model, EMBED)
    assert arithmetic.arithmetic(engine, reasons=False)["arithmetic"][-1] == "77 threads"
    # Rows that reason attend to their common beginning apart, in another order of summation.
    assert arithmetic.arithmetic(engine)["arithmetic"][-2:] == ["77 threads", "common beginning apart"]


def test_a_bundled_model_is_what_is_right_here(monkeypatch):
    """bfloat16 with batch invariance where the processor multiplies it, float32 elsewhere; what is given is taken."""
    for has, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(checkpoints, "cpu_multiplies_bfloat16", lambda has=has: has)
        encoder = SearchR3Encoder("mini", device="cpu")
        assert encoder.model.dtype == dtype
        assert encoder.engine.batch_invariant == has
    assert SearchR3Encoder("mini", device="cpu", dtype="bfloat16").model.dtype == torch.bfloat16
    assert not SearchR3Encoder("mini", device="cpu", dtype="bfloat16", batch_invariant=False).engine.batch_invariant
    own = SearchR3Encoder(ASSETS / "nano", device="cpu")
    assert (own.model.dtype, own.engine.batch_invariant) == (torch.float32, False)


def test_what_is_made_from_an_encoder_keeps_the_setting(half, tmp_path):
    from search_r3_mteb.evaluation.diagnosis_runs import again
    from search_r3_mteb.integrations.sentence_transformers import export
    from search_r3_mteb.integrations.transformers_model import SearchR3Config, SearchR3Model

    for chosen in (True, False):
        encoder = SearchR3Encoder(half, batch_invariant=chosen, batch_tokens=999, **SETTINGS)
        assert again(encoder, tmp_path / "store").engine.batch_invariant == chosen
        folder = export(encoder, tmp_path / f"export-{chosen}")
        config = SearchR3Config.from_pretrained(folder)
        assert (config.batch_invariant, config.batch_tokens) == (chosen, 999)
        model = SearchR3Model.from_pretrained(folder, dtype=torch.bfloat16)
        prompt = encoder.renderer.render("a", "direct").token_ids
        with shapes_of(model.causal) as seen, torch.no_grad():
            model(torch.tensor([prompt]))
        assert seen == {fixed_shapes.SHAPES["cpu"].padded(len(prompt)) if chosen else (1, len(prompt))}
