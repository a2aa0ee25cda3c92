"""The beginning of a long text gives the prompt of the whole, for every kind of tokenizer."""

import random
from dataclasses import replace

import pytest
from tokenizers import Regex, normalizers, pre_tokenizers

from search_r3_mteb.encoder import prompts
from search_r3_mteb.encoder.beginnings import Beginnings
from search_r3_mteb.encoder.checkpoints import load_tokenizer
from search_r3_mteb.encoder.model_names import ASSETS
from search_r3_mteb.encoder.profiles import Profile
from search_r3_mteb.encoder.prompts import Renderer
from tests.conftest import CHAT_TEMPLATE
from tests.encoder import test_whole_texts as kinds
from tests.programs import mostly_slow

SPLIT = {"byte-level", "byte-level, prefix space", "byte-level, Qwen's pattern", "BERT", "Unigram"}
SPLIT |= {"Metaspace first", "Metaspace always", "Metaspace never"}
SHRINKING = {
    "Strip": normalizers.Strip(),
    "several spaces": normalizers.Replace(Regex(" {2,}"), " "),
    "NFKC": normalizers.NFKC(),
    "accents": normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()]),
    "BERT": normalizers.BertNormalizer(),
}
PIECES = [
    *(
        "the",
        "storm",
        "harbour",
        "12",
        "1907",
        "don't",
        "it's",
        "Zürich",
        "東京都",
        "中文。文",
        "привет",
        "e\u0301",
        "ﬁ",
    ),
    *(" ", " ", " ", "  ", "\n", "\n\n", " \n ", "\t", ".", ", ", "!?", "…", "\u00a0", "\u200b", "😀", "\u0308", "▁"),
    *("<|im_end|>", "<|embed_token|>", "[INST]", "'S", "\r\n", "a", "x" * 40, " " * 50),
]


def long_texts(seed, count, length=900):
    draw = random.Random(seed)
    return ["".join(draw.choices(PIECES, k=length)) for _ in range(count)] + ["q" * 5000, " " * 5000, "the sea " * 900]


def whole_ids(tokenizer, profile, texts, template, monkeypatch, instructions=None):
    with monkeypatch.context() as patch:
        patch.setattr(Beginnings, "cut", lambda self, text, characters: text)
        return Renderer(tokenizer, profile, 90).render_batch(texts, template, instructions)


def compare(tokenizer, monkeypatch, tokenization, texts, counts):
    profile = replace(kinds.SHORT, tokenization=tokenization)
    monkeypatch.setattr(prompts, "_CHARACTERS", 2)
    cut = Beginnings.cut

    def counted(self, text, characters):
        found = cut(self, text, characters)
        counts.append(len(found) < len(text))
        return found

    for template in ("direct", "reason"):
        for given in (None, ["Find it."] * len(texts)):
            wanted = whole_ids(tokenizer, profile, texts, template, monkeypatch, given)
            with monkeypatch.context() as patch:
                patch.setattr(Beginnings, "cut", counted)
                found = Renderer(tokenizer, profile, 90).render_batch(texts, template, given)
            for text, one, other in zip(texts, found, wanted, strict=True):
                assert one.token_ids == other.token_ids, text[:200]
                assert one.spans == other.spans


@pytest.mark.parametrize("tokenization", mostly_slow(["whole", "apart"], "whole"))
@pytest.mark.parametrize("kind", mostly_slow(kinds.KINDS, *list(kinds.KINDS)[:4]))
def test_long_texts_give_the_prompts_of_the_whole(kind, tokenization, monkeypatch):
    counts = []
    tokenizer = kinds.tokenizer_of(kind, CHAT_TEMPLATE)
    compare(tokenizer, monkeypatch, tokenization, long_texts(1, 12), counts)
    assert any(counts) == (kind in SPLIT)  # the others have no place that is proved: their texts stay whole


@pytest.mark.parametrize("name", SHRINKING)
@pytest.mark.parametrize("kind", ["byte-level", "BERT", "Metaspace always"])
def test_normalizers_that_shrink_a_text(kind, name, monkeypatch):
    made = kinds.tokenizer_of(kind)
    made.backend_tokenizer.normalizer = SHRINKING[name]
    counts = []
    compare(made, monkeypatch, "apart", [*long_texts(2, 6), "the" + " " * 9000 + "sea " * 400], counts)
    assert any(counts)


@pytest.mark.parametrize("model", ["nano", "mini"])
def test_the_bundled_models(model, monkeypatch):
    counts = []
    tokenizer = load_tokenizer(ASSETS / model, False)
    profile = Profile.load(ASSETS / model)
    compare(tokenizer, monkeypatch, profile.tokenization, long_texts(3, 8), counts)
    assert any(counts)


def test_what_is_not_proved_stays_whole():
    """Controls: each of these reads over a place, and the tokens before it change."""
    base = kinds.tokenizer_of("byte-level")
    assert Beginnings(base).followers == " \n\u3002"
    text = "the sea " * 100
    assert len(Beginnings(base).cut(text, 100)) <= 100
    for change in (
        {"normalizer": normalizers.Replace("a ", "o")},
        {"pre_tokenizer": None},
        {"pre_tokenizer": pre_tokenizers.Split(Regex(r"\w+ \w+|."), "isolated")},
        {"pre_tokenizer": pre_tokenizers.Split(Regex(r"[a-z ]+|\s+"), "isolated")},
        {"pre_tokenizer": pre_tokenizers.Metaspace(split=False)},
    ):
        made = kinds.tokenizer_of("byte-level")
        for name, part in change.items():
            setattr(made.backend_tokenizer, name, part)
        assert Beginnings(made).cut(text, 100) == text, change
    made = kinds.tokenizer_of("byte-level")
    made.add_tokens(["sea the"])
    assert Beginnings(made).cut(text, 100) == text
    assert made("the sea", add_special_tokens=False)["input_ids"] != made(text)["input_ids"][:2]


def test_texts_are_tokenised_in_groups_by_characters(monkeypatch):
    tokenizer = kinds.tokenizer_of("byte-level")
    renderer = Renderer(tokenizer, kinds.SHORT, 90)
    texts = ["the sea", "", "x" * 30, "a storm", "b"] * 3
    wanted = renderer.render_batch(texts, "direct")
    sizes = []
    rows = Renderer._render_rows

    def counted(self, frame, group, filled):
        sizes.append(sum(map(len, group)))
        return rows(self, frame, group, filled)

    monkeypatch.setattr(Renderer, "_render_rows", counted)
    monkeypatch.setattr(prompts, "_TOGETHER", 40)
    assert renderer.render_batch(texts, "direct") == wanted
    assert len(sizes) > 1
    assert max(sizes) <= 40
