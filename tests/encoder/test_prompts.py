"""Prompts: the released texts unchanged, every part where the spans say, and nothing cut but the user's text."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from search_r3_mteb.encoder.profiles import EMBED_TOKEN, PROFILE_FILE, Profile, Template
from search_r3_mteb.encoder.prompts import Rendered, Renderer
from search_r3_mteb.encoder.special_tokens import embed_token_id

DIRECT = (
    "\nYou are a helpful AI assistant. Your task is to analyze input text and create a high-quality semantic "
    "vector embedding, which represents key concepts, relationships, and semantic meaning.\n"
)
REASON = (
    "\nYou are a helpful AI assistant. Your task is to enrich user input for more effective embedding representation "
    "by adding semantic depth.\n"
    "For each input, briefly enhance the content by:\n"
    "1. Identifying core concepts and their relationships.\n"
    "2. Including key terminology with essential definitions.\n"
    "3. Adding contextually relevant synonyms and related terms.\n"
    "4. Connecting to related topics and common applications without excessive elaboration.\n"
    "To represent the final embedding, you MUST end every response with <|embed_token|>.\n"
)
WORDS = [
    "<unk>",
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|embed_token|>",
    "system",
    "user",
    "assistant",
    "a",
    "b",
]


def chatml(system, user, reply=""):
    """What the released template prints, written out by hand."""
    return f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n{reply}"


def word_tokenizer(**options):
    """One token a word, split at white space only: a marker in a text is a word of the vocabulary."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    options = {"unk_token": "<unk>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"} | options
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)


def byte_tokenizer(special, added=(), **options):
    """256 bytes and these tokens, special or only added."""
    tokenizer = Tokenizer(
        models.BPE(vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in added])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)


@pytest.fixture(scope="module")
def renderer(tiny_tokenizer):
    return Renderer(tiny_tokenizer, Profile.default(), max_length=700)


def test_the_released_prompts_to_the_letter():
    profile = Profile.default()
    assert profile.direct.system == DIRECT
    assert profile.reason.system.replace("{embed_token}", "<|embed_token|>") == REASON
    assert profile.direct.reply == "The embedding is {embed_token}"
    assert EMBED_TOKEN == "<|embed_token|>"


def test_prompts_are_what_the_chat_template_gives_for_the_whole_conversation(renderer, tiny_tokenizer):
    def whole(text):
        return tiny_tokenizer(text, add_special_tokens=False)["input_ids"]

    assert renderer.render("the query", "reason").token_ids == whole(chatml(REASON, "the query"))
    direct = chatml(DIRECT, "the query", "The embedding is <|embed_token|>")
    assert renderer.render("the query", "direct").token_ids == whole(direct)
    reply = renderer.render_reply("the query", "reason", reasoning="about it")
    assert reply.token_ids == whole(chatml(REASON, "the query", "about it<|embed_token|>"))
    # A control: the comparison sees a lost newline.
    assert renderer.render("the query", "reason").token_ids != whole(chatml(REASON.strip(), "the query"))


def test_spans_hold_what_their_names_say(renderer, tiny_tokenizer):
    rendered = renderer.render("document of the user", "direct")
    parts = {name: tiny_tokenizer.decode(rendered.token_ids[a:b]) for name, (a, b) in rendered.spans.items()}
    assert parts["system"].strip() == DIRECT.strip()
    assert parts["user"] == "document of the user"
    assert parts["assistant"] == "The embedding is <|embed_token|>"
    assert parts["embed"] == "<|embed_token|>"
    assert rendered.spans["embed"] == (len(rendered.token_ids) - 1, len(rendered.token_ids))

    opened = renderer.render("document of the user", "reason")
    assert opened.spans["assistant"] == (len(opened.token_ids), len(opened.token_ids))
    assert "embed" not in opened.spans
    assert tiny_tokenizer.decode(opened.token_ids).endswith("<|im_start|>assistant\n")

    reply = renderer.render_reply("document of the user", "reason", reasoning="why")
    start, end = reply.spans["assistant"]
    assert tiny_tokenizer.decode(reply.token_ids[start:end]) == "why<|embed_token|>"
    assert reply.spans["user"] == opened.spans["user"]
    assert reply.token_ids[:start] == opened.token_ids  # what is learned continues what is prompted
    assert renderer.render_reply("t", "reason").token_ids[-1] == renderer.embed_token_id  # a reply without reasoning


def test_the_generation_prompt_names_the_token_so_ours_is_the_last_one(renderer):
    ids = renderer.render_reply("query", "reason", reasoning="thought").token_ids
    places = [i for i, token in enumerate(ids) if token == renderer.embed_token_id]
    assert len(places) == 2  # the first stands in the system prompt: a search for the first one reads the wrong vector
    assert places[0] < renderer.render("query", "reason").spans["user"][0]
    assert places[1] == len(ids) - 1


texts = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=300),
    st.lists(
        st.sampled_from(["<|embed_token|>", "<|im_end|>", "<|im_start|>", "\n", "a", "<|", "אב", "\0"]), max_size=60
    ).map("".join),
)


def check_only_the_text_is_cut(tokenizer, text, template, max_length):
    renderer = Renderer(tokenizer, Profile.default(), max_length)
    empty, rendered = renderer.render("", template), renderer.render(text, template)
    start, end = rendered.spans["user"]
    around = rendered.token_ids[:start] + rendered.token_ids[end:]
    assert around == empty.token_ids, "a part of the template was lost"
    assert len(rendered.token_ids) <= max_length
    body = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert rendered.token_ids[start:end] == body[: end - start], "the text lost something else than its end"
    assert rendered.truncated_tokens == len(body) - (end - start)
    assert rendered.truncated_tokens == 0 or len(rendered.token_ids) == max_length, "more was cut than needed"
    assert not {renderer.embed_token_id, tokenizer.eos_token_id} & set(rendered.token_ids[start:end])


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=texts, template=st.sampled_from(["reason", "direct"]), max_length=st.integers(480, 700))
def test_too_long_a_text_loses_its_own_end_only(tiny_tokenizer, text, template, max_length):
    check_only_the_text_is_cut(tiny_tokenizer, text, template, max_length)


def test_the_truncation_check_fails_when_the_whole_prompt_is_cut(tiny_tokenizer, monkeypatch):
    whole = Renderer._assemble

    def naive(self, frame, *parts):
        self.max_length, length = 10**9, self.max_length
        rendered, self.max_length = whole(self, frame, *parts), length
        return Rendered(rendered.token_ids[:length], rendered.spans, 0)

    check_only_the_text_is_cut(tiny_tokenizer, "long " * 200, "direct", 500)
    monkeypatch.setattr(Renderer, "_assemble", naive)
    with pytest.raises(AssertionError, match="template was lost"):
        check_only_the_text_is_cut(tiny_tokenizer, "long " * 200, "direct", 500)


def test_no_room_for_any_text_is_an_error_of_that_template_alone(tiny_tokenizer):
    needed = len(Renderer(tiny_tokenizer, Profile.default(), 700).render("", "reason").token_ids)
    with pytest.raises(
        ValueError, match=f"max_length={needed} leaves no room for text: the 'reason' template alone takes {needed}"
    ):
        Renderer(tiny_tokenizer, Profile.default(), needed).render("x", "reason")
    assert Renderer(tiny_tokenizer, Profile.default(), needed + 1).render("xyz", "reason").truncated_tokens == 2
    assert Renderer(tiny_tokenizer, Profile.default(), needed).render("x", "direct").truncated_tokens == 0


@pytest.mark.parametrize(
    ("tokenizer", "text"),
    [
        (
            word_tokenizer(extra_special_tokens=["<|im_start|>", "<|embed_token|>"]),
            "a <|embed_token|> b <|im_end|> <|im_start|>",
        ),
        (
            byte_tokenizer(["<|im_end|>"], ["<|embed_token|>", "<|im_start|>"], eos_token="<|im_end|>"),
            "a<|im_start|>b<|embed_token|>",
        ),
        (byte_tokenizer(["<|embed_token|>", "<|im_end|>"], eos_token="<|im_end|>"), "a<|embed_token|><|embed_token|>"),
    ],
    ids=["the marker is a word of the vocabulary", "the marker is added but not special", "the marker is special"],
)
def test_markers_in_a_text_stay_text(tokenizer, text):
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|> {{ m.role }} {{ m.content }} <|im_end|> {% endfor %}<|im_start|> "
    )
    renderer = Renderer(tokenizer, Profile.default(), 1000)
    control = {tokenizer.convert_tokens_to_ids(token) for token in ("<|embed_token|>", "<|im_end|>", "<|im_start|>")}
    ids = renderer.tokenize_text([text])[0]
    assert ids
    assert not control & set(ids)
    assert control & set(tokenizer(text, add_special_tokens=False)["input_ids"]), (
        "control: left alone, it would be a marker"
    )
    start, end = renderer.render(text, "direct", instruction=f"find {text}").spans["user"]
    rendered = renderer.render(text, "direct", instruction=f"find {text}")
    assert not control & set(rendered.token_ids[start:end]), "an instruction may spell a marker as well"


def test_an_instruction_stands_once_in_its_own_place(renderer, tiny_tokenizer):
    rendered = renderer.render("the question", "reason", instruction="find the document")
    start, end = rendered.spans["user"]
    assert tiny_tokenizer.decode(rendered.token_ids[start:end]) == "Instruct: find the document\nQuery: the question"
    assert tiny_tokenizer.decode(rendered.token_ids).count("find the document") == 1
    plain = renderer.render("the question", "reason")
    assert renderer.render("the question", "reason", instruction="").token_ids == plain.token_ids
    batch = renderer.render_batch(["one", "two"], "direct", [None, "find"])
    assert batch[0].token_ids == renderer.render("one").token_ids
    assert batch[1].token_ids == renderer.render("two", instruction="find").token_ids


def test_an_instruction_survives_a_text_that_is_too_long_and_may_not_crowd_it_out(renderer, tiny_tokenizer):
    rendered = renderer.render("word " * 500, "direct", instruction="find the document")
    assert "Instruct: find the document\nQuery: word" in tiny_tokenizer.decode(rendered.token_ids)
    assert len(rendered.token_ids) == 700
    with pytest.raises(ValueError, match=r"The instruction of 'two' takes \d+ tokens, .* within max_length=700"):
        renderer.render_batch(["one", "two"], "direct", ["find", "word " * 500])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((["a"], "direct", [3]), TypeError, "Instruction 0 is of type int"),
        ((["a"], "direct", ["\ud800"]), ValueError, "Instruction 0 holds a lone surrogate"),
        ((["a", "b"], "direct", ["x"]), ValueError, "1 instructions were given for 2 texts"),
        ((["a"], "directly"), ValueError, "no template 'directly'; the templates are reason, direct"),
        (("a", "direct"), TypeError, "A list of texts is needed"),
        ((["a", None], "direct"), TypeError, "Text 1 is of type NoneType"),
        ((["x\udfff"], "direct"), ValueError, "Text 0 holds a lone surrogate .* at character 1"),
    ],
)
def test_what_cannot_be_rendered_is_named(renderer, arguments, error, message):
    with pytest.raises(error, match=message):
        renderer.render_batch(*arguments)


def test_a_direct_reply_has_no_reasoning(renderer):
    assert renderer.render_reply("t", "direct") == renderer.render("t", "direct")
    with pytest.raises(ValueError, match="A direct reply has no reasoning"):
        renderer.render_reply("t", "direct", reasoning="because")


# ---- base models without a chat template, and other chat templates -------------------------------------------------


def bos_tokenizer(template=None):
    """A tokenizer that begins plain text with <s>, as Llama's does."""
    tokenizer = byte_tokenizer(["<s>", "</s>", "<|embed_token|>"], bos_token="<s>", eos_token="</s>")
    begin = tokenizer.convert_tokens_to_ids("<s>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", begin)]
    )
    tokenizer.chat_template = template
    return tokenizer


def test_a_base_model_gets_the_plain_layout():
    tokenizer = byte_tokenizer(["<|embed_token|>"])
    renderer = Renderer(tokenizer, Profile.default(), 2000)
    rendered = renderer.render("hello", "direct")
    assert tokenizer.decode(rendered.token_ids) == f"{DIRECT}\n\nhello\n\nThe embedding is <|embed_token|>"
    start, end = rendered.spans["system"]
    assert tokenizer.decode(rendered.token_ids[start:end]) == DIRECT.strip()
    own = Renderer(tokenizer, Profile(plain="S: {system} Q: {text} A:"), 2000).render("hello", "reason")
    assert tokenizer.decode(own.token_ids) == f"S: {REASON} Q: hello A:"


def test_the_beginning_of_text_stands_once():
    begin = bos_tokenizer().bos_token_id
    plain = Renderer(bos_tokenizer(), Profile.default(), 2000).render("hello", "direct")
    assert plain.token_ids[0] == begin
    assert plain.token_ids.count(begin) == 1
    start, end = plain.spans["system"]
    assert bos_tokenizer().decode(plain.token_ids[start:end]) == DIRECT.strip()  # spans are counted behind it
    template = "{{ bos_token }}{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}"
    written = Renderer(bos_tokenizer(template), Profile.default(), 2000).render("hello", "direct")
    assert written.token_ids.count(begin) == 1
    without = Renderer(byte_tokenizer(["<s>", "<|embed_token|>"], bos_token="<s>"), Profile.default(), 2000).render(
        "hello"
    )
    assert begin not in without.token_ids  # GPT-2 has such a token and does not begin with it


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages if m.role != 'system' %}{{ m.content[-17:] }}{% endfor %}", "drops the system prompt"),
        ("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}", "shows the user's text 2 times"),
        ("{{ messages[0].content }}", "shows the user's text 0 times"),
        (
            "{{ raise_exception('System role not supported') }}",
            "cannot show a system prompt and a text: System role not supported",
        ),
    ],
)
def test_chat_templates_that_lose_or_repeat_a_part_are_refused(template, message):
    tokenizer = byte_tokenizer(["<|embed_token|>"])
    tokenizer.chat_template = template
    with pytest.raises(ValueError, match=message):
        Renderer(tokenizer, Profile.default(), 2000)
    Renderer(tokenizer, Profile(plain="{system}\n{text}\n"), 2000)  # what the message says to do helps


def test_slow_tokenizers_are_refused(tiny_tokenizer):
    with pytest.raises(ValueError, match="SimpleNamespace is a slow tokenizer"):
        Renderer(SimpleNamespace(is_fast=False), Profile.default(), 600)


def test_an_ordinary_word_is_no_embed_token(tiny_tokenizer):
    """Any text may hold it, and behind a template it is another token: refused where the profile is read."""
    word = min(piece for piece in tiny_tokenizer.get_vocab() if piece.isascii() and piece.isalpha() and len(piece) == 1)
    with pytest.raises(ValueError, match=f'"embed_token" in search_r3.json is {word!r}, an ordinary piece of text'):
        Renderer(tiny_tokenizer, replace(Profile.default(), embed_token=word))


def test_a_tokenizer_without_the_token_is_refused_with_what_to_do():
    tokenizer = byte_tokenizer(["<s>", "</s>", "<emb_token>"], [f"<unused{n}>" for n in range(20)], eos_token="</s>")
    with pytest.raises(ValueError, match=re.escape("no token '<|embed_token|>'")) as raised:
        embed_token_id(tokenizer, "<|embed_token|>")
    message = str(raised.value)
    for part in (
        "search-r3 init",
        '"embed_token" in search_r3.json',
        "train/sft.py",
        "<emb_token>, <s>, </s>, <unused0>",
    ):
        assert part in message
    assert "<unused8> and 11 more." in message
    assert "<emb_token> is the token of MRE-T1 and CRE-T1 (Thought 1): its prompts are not known" in message
    with pytest.raises(ValueError, match="the special tokens found are none") as raised:
        embed_token_id(byte_tokenizer([]), "<|embed_token|>")
    assert "MRE-T1" not in str(raised.value)


# ---- profiles ------------------------------------------------------------------------------------------------------


def test_another_model_of_this_kind_is_described_without_code(tmp_path):
    described = {
        "embed_token": "<emb_token>",
        "reason": {"system": "Think, then say {embed_token}.", "reply": "<think>{reasoning}</think>{embed_token}"},
        "direct": {"system": "Embed.", "reply": "{embed_token}"},
        "plain": "{system}|{text}|",
    }
    (tmp_path / PROFILE_FILE).write_text(json.dumps(described), encoding="utf-8")
    profile = Profile.load(tmp_path)
    tokenizer = byte_tokenizer(["<emb_token>"])
    renderer = Renderer(tokenizer, profile, 200)
    assert tokenizer.decode(renderer.render("hi", "reason").token_ids) == "Think, then say <emb_token>.|hi|"
    assert tokenizer.decode(renderer.render("hi", "direct").token_ids) == "Embed.|hi|<emb_token>"
    reply = renderer.render_reply("hi", "reason", "so")
    assert tokenizer.decode(reply.token_ids).endswith("|<think>so</think><emb_token>")
    assert profile.instruction == Profile.default().instruction  # what is absent keeps Search-R3's value


def test_profiles_survive_saving_and_a_folder_without_one_gets_the_default(tmp_path):
    assert Profile.load(tmp_path) == Profile.default()
    profile = Profile("<e>", Template("s {embed_token} é", "{reasoning} {embed_token}"), plain="{system}{text}")
    profile.save(tmp_path)
    assert Profile.load(tmp_path) == profile
    assert Profile.load(tmp_path) != Profile.default()
    decided = Profile(thinking=False, date="2024-02-29")
    decided.save(tmp_path)
    assert Profile.load(tmp_path) == decided


def test_what_a_profile_leaves_undecided_is_not_part_of_its_identity():
    """Checkpoints of before these keys keep their fingerprints, which hash this form."""
    before = Profile(tokenization="apart")
    assert list(before.identity()) == ["embed_token", "reason", "direct", "instruction", "plain"]
    assert list(before.to_dict()) == [*before.identity(), "tokenization"]
    assert Profile(thinking=False).to_dict() == Profile.default().to_dict() | {"thinking": False}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"embed_tokn": "x"}',
            "'embed_tokn', which no profile has. The valid keys are anchor, date, direct, embed_token",
        ),
        ("[1]", "must hold an object"),
        ('{"embed', "line 1: not JSON"),
        ('{"embed_token": 5}', "'embed_token' of a profile must be a text, got 5"),
        ('{"embed_token": " "}', "embed token of a profile is empty"),
        ('{"direct": {"system": "s"}}', "'direct' must hold 'system' and 'reply'"),
        ('{"direct": {"system": "s", "reply": null}}', "'direct.reply' of a profile must be a text"),
        ('{"direct": {"system": "s", "reply": "{embed_token} !"}}', "must end with '{embed_token}'"),
        ('{"direct": {"system": "s", "reply": "no token"}}', "must end with '{embed_token}'"),
        ('{"reason": {"system": "s", "reply": "{embed_token}"}}', "needs the slot '{reasoning}' exactly once"),
        ('{"instruction": "Query: "}', "needs the slot '{instruction}' exactly once"),
        ('{"plain": "{system} {text} {text}"}', "needs the slot '{text}' exactly once"),
        ('{"thinking": "off"}', "'thinking' of a profile must be true, false or null, got 'off'"),
        ('{"thinking": 0}', "'thinking' of a profile must be true, false or null, got 0"),
        ('{"tokenization": "joined"}', "'tokenization' of a profile must be 'whole' or 'apart', got 'joined'"),
        ('{"date": "8 Oct 2025"}', "'date' of a profile must be a day written as year-month-day"),
        ('{"date": 2025}', "'date' of a profile must be a text, got 2025"),
    ],
)
def test_a_profile_that_would_lose_something_is_refused(tmp_path, content, message):
    (tmp_path / PROFILE_FILE).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        Profile.load(tmp_path)
