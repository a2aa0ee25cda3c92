"""`batch_invariant` for writers: words hang on a query alone, where without the setting they hang on its company."""

import numpy as np
import pytest
import torch

from search_r3_mteb.encoder.engine import Engine
from search_r3_mteb.encoder.options import parse_settings
from search_r3_mteb.evaluation.system_checks import check_settings
from search_r3_mteb.expansion.methods import METHODS
from search_r3_mteb.expansion.names import open_expansion, parse_name
from search_r3_mteb.expansion.settings import ExpansionSettings
from search_r3_mteb.expansion.writer import Writer
from search_r3_mteb.expansion.writer_encoder import WriterEncoder
from tests.conftest import build_tokenizer
from tests.encoder.test_engine import tiny

TEXTS = ["the query", "a document and an embedding", "x " * 20, "why", "the long " * 12, "system user", "assistant"]
INVARIANT = parse_settings(["batch_invariant=true"], ExpansionSettings)


def on_the_last_bit(engine, hidden):
    """All tokens tie but for the last bits of the state: what any rounding changes is another word."""
    bits, vocabulary = hidden.float().contiguous().view(torch.int32).long(), engine.head.vocabulary
    chosen = 3 + (bits * torch.arange(1, bits.shape[1] + 1)).sum(dim=1) % (vocabulary - 3)
    return torch.nn.functional.one_hot(chosen, vocabulary).float()


def company(folder, dtype, **settings):
    """The writer's words about all texts: together, in the other order, with another budget, and each alone."""
    for batch_tokens in (16384, 300):
        # Not probed: its logits are no longer the model's own.
        chosen = {"max_reasoning_tokens": 8, "samples": 2, "temperature": 0.7, "probe": False} | settings
        made = Writer(
            folder, METHODS["hyde"], ExpansionSettings(dtype=dtype, device="cpu", batch_tokens=batch_tokens, **chosen)
        )
        prompts = made.prompts(TEXTS, [None] * len(TEXTS), [[] for _ in TEXTS])
        yield made.write(prompts)
        yield made.write(prompts[::-1])[::-1]
        yield [made.write([prompt])[0] for prompt in prompts]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_words_are_the_same_whatever_the_batch(writer, dtype, monkeypatch):
    monkeypatch.setattr(Engine, "logits", on_the_last_bit)
    first, *others = company(writer, dtype, **INVARIANT)
    assert all(found == first for found in others)
    assert len({each.texts for each in first}) == len(TEXTS)
    first, *others = company(writer, dtype)
    assert any(found != first for found in others), "control: without the setting they hang on their company"


def test_the_setting_reaches_writer_and_encoder_and_is_part_of_both_identities(
    writer, sentences, tiny_folder, tmp_path
):
    settings = {"dtype": "bfloat16", "device": "cpu", "samples": 1, "temperature": 0, "max_reasoning_tokens": 4}
    name = parse_name(f"hyde:{writer}+{tiny_folder}")
    check_settings([f"hyde:{writer}+{tiny_folder}"], settings | INVARIANT)
    made = open_expansion(name, settings | INVARIANT)
    assert made.writer.engine.shapes is not None
    assert made.encoder.encoder.engine.shapes is not None
    together = made.encode_query(TEXTS)
    np.testing.assert_array_equal(together, np.stack([made.encode_query(text) for text in TEXTS]))
    plain = open_expansion(name, settings)
    assert plain.writer.engine.shapes is None
    assert plain.encoder.encoder.engine.shapes is None
    assert plain.fingerprint != made.fingerprint
    assert open_expansion(name, settings | INVARIANT | {"batch_tokens": 99}).fingerprint == made.fingerprint
    assert open_expansion(name, settings | {"batch_tokens": 99}).fingerprint != plain.fingerprint
    # Texts are kept apart, too, for an encoder that has no such setting.
    stores = set()
    for chosen in (INVARIANT, {}):
        beside = WriterEncoder(writer, sentences, cache_folder=tmp_path, **settings | chosen)
        stores.add(beside._store().fingerprint)
    assert len(stores) == 2
    with pytest.raises(TypeError, match="batch_invariant='yes' is of type str; it must be True, False or None"):
        WriterEncoder(writer, sentences, batch_invariant="yes")


def test_rocchio_writes_nothing_and_its_encoder_has_the_setting(sentences, tiny_folder):
    settings = {"dtype": "bfloat16", "device": "cpu"}
    name = parse_name(f"rocchio:{tiny_folder}")
    check_settings([f"rocchio:{tiny_folder}"], settings | INVARIANT)
    made, plain = open_expansion(name, settings | INVARIANT), open_expansion(name, settings)
    assert made.encoder.encoder.engine.shapes is not None
    assert plain.encoder.encoder.engine.shapes is None
    assert made.fingerprint != plain.fingerprint
    with pytest.raises(ValueError, match="batch_invariant would change nothing"):
        check_settings([f"rocchio:{sentences}"], INVARIANT)


def test_what_cannot_have_it_is_refused_by_name(writer, tmp_path):
    rows = Writer(writer, METHODS["hyde"], ExpansionSettings(device="cpu", **INVARIANT)).engine.shapes.rows
    with pytest.raises(ValueError, match=rf"samples={rows + 1}: .* decodes {rows} rows at once"):
        Writer(writer, METHODS["hyde"], ExpansionSettings(device="cpu", samples=rows + 1, **INVARIANT))
    tiny(
        "mixtral", num_local_experts=4, num_experts_per_tok=2, vocab_size=384, max_position_embeddings=2048
    ).save_pretrained(tmp_path)
    build_tokenizer(False).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="mixtral is a mixture of experts"):
        Writer(tmp_path, METHODS["hyde"], ExpansionSettings(device="cpu", **INVARIANT))


@pytest.mark.parametrize("invariant", [True, None])
def test_a_model_that_transformers_runs_then_writes_for_one_query_at_a_time(writer, invariant, monkeypatch):
    settings = ExpansionSettings(
        max_reasoning_tokens=3, samples=2, temperature=0.7, device="cpu", dtype="bfloat16", batch_invariant=invariant
    )
    made = Writer(writer, METHODS["hyde"], settings)
    made.engine = None
    assert ("batch_tokens" in made.arithmetic) == (invariant is None)
    shapes, original = [], made.checkpoint.model.generate

    def generate(**keywords):
        shapes.append(tuple(keywords["input_ids"].shape))
        return original(**keywords)

    monkeypatch.setattr(made.checkpoint.model, "generate", generate)
    prompts = made.prompts(["the query"] * 3, [None] * 3, [[]] * 3)
    assert len(made.write(prompts)) == 3
    assert [rows for rows, _ in shapes] == ([2, 2, 2] if invariant else [6])
