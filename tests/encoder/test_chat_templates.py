"""Chat templates: prompts that no clock changes, system prompts without a role, and thinking decided once."""

import locale
from datetime import datetime
from types import SimpleNamespace

import numpy as np
import pytest

from search_r3_mteb import SearchR3Encoder
from search_r3_mteb.encoder import chat_templates
from search_r3_mteb.encoder.chat_templates import SLOT, facts, wrap
from search_r3_mteb.encoder.checkpoints import Checkpoint
from search_r3_mteb.encoder.profiles import Profile, Template
from search_r3_mteb.encoder.prompts import Renderer
from tests.conftest import CHAT_TEMPLATE, build_model, build_tokenizer

# Cut from the templates of the models named: what they do with system prompts, dates and thinking is unchanged.
LLAMA = (
    "{%- if not date_string is defined %}\n    {%- if strftime_now is defined %}\n"
    '        {%- set date_string = strftime_now("%d %b %Y") %}\n    {%- else %}\n'
    '        {%- set date_string = "26 Jul 2024" %}\n    {%- endif %}\n{%- endif %}\n'
    "Today Date: {{ date_string }}\n\n" + CHAT_TEMPLATE
)
MISTRAL = (
    '{%- set today = strftime_now("%Y-%m-%d") %}\n'
    "[SYSTEM_PROMPT]The current date is {{ today }}, year {{ today[:4]|int - 1 }}.[/SYSTEM_PROMPT]" + CHAT_TEMPLATE
)
GPT_OSS = (
    "{%- macro header() %}Current date: {{ strftime_now('%A, %-d. %B %Y, %H:%M') }}\n{% endmacro %}\n"
    "  {% if true %}\n    {{- header() }}\n  {% endif %}\n" + CHAT_TEMPLATE
)
GEMMA = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
)
SILENT = "{% for m in messages if m.role == 'user' %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
QWEN3 = CHAT_TEMPLATE.replace(
    "{% endif %}",
    "{% if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{% endif %}",
)
R1 = CHAT_TEMPLATE.replace("assistant\n", "assistant\n<think>\n")
DEEPSEEK_V31 = (
    "{% if not thinking is defined %}{% set thinking = false %}{% endif %}"
    + CHAT_TEMPLATE.replace("assistant\n", "assistant\n{% if thinking %}<think>{% else %}</think>{% endif %}")
)  # fmt: skip
HARMONY = CHAT_TEMPLATE.replace("assistant\n", "assistant\n<|channel|>analysis<|message|>")
# The tag is named in the user's turn, and opens nothing.
NAMED = CHAT_TEMPLATE.replace(
    "<|im_end|>", "{% if m['role'] == 'user' %} Write your thoughts after <think>.{% endif %}<|im_end|>"
)
DATED = [LLAMA, MISTRAL, GPT_OSS]
SHORT = Profile(
    reason=Template("\nThink.\n", "{reasoning}{embed_token}"), direct=Template("Embed.", "It is {embed_token}")
)


def tokenizer_with(template):
    tokenizer = build_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def set_clock(monkeypatch, *when):
    """The clock that transformers gives to templates."""
    from transformers.utils import chat_template_utils

    monkeypatch.setattr(chat_template_utils, "datetime", SimpleNamespace(now=lambda: datetime(*when)))


def library_text(tokenizer, system="Embed."):
    messages = [{"role": "system", "content": system}, {"role": "user", "content": SLOT}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


# ---- the date ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", DATED, ids=["llama", "mistral", "gpt-oss"])
def test_two_days_give_equal_prompts_vectors_and_fingerprints(template, monkeypatch):
    model, seen, library = build_model(), [], []
    for day in (datetime(2026, 1, 31, 23, 59), datetime(2026, 2, 1)):
        set_clock(monkeypatch, *day.timetuple()[:5])
        checkpoint = Checkpoint(model, tokenizer_with(template), SHORT, "tests/dated")
        encoder = SearchR3Encoder(checkpoint, max_reasoning_tokens=3)
        prompts = [encoder.renderer.render("x", name).token_ids for name in ("direct", "reason")]
        vectors = [encoder.encode_document(["x"]), encoder.encode_query(["x"])]
        seen.append((prompts, np.concatenate(vectors).tobytes(), encoder.fingerprint, checkpoint.fingerprint()))
        library.append(library_text(checkpoint.tokenizer))
    assert seen[0] == seen[1]
    assert library[0] != library[1], "control: left to the clock, the prompt changes at midnight"


@pytest.mark.parametrize(
    "template", [*DATED, "\n  {% if true %}\n a{% endif %}{{ strftime_now('%j') }}" + CHAT_TEMPLATE]
)
def test_the_fixed_date_is_what_the_clock_would_have_given_on_that_day(template, monkeypatch):
    set_clock(monkeypatch, 2024, 2, 9)
    tokenizer = tokenizer_with(template)
    assert wrap(tokenizer, Profile(date="2024-02-09"), "Embed.") == library_text(tokenizer)
    assert wrap(tokenizer, Profile(date="2024-02-10"), "Embed.") != library_text(tokenizer)


def test_a_profile_without_a_date_has_the_day_of_the_paper():
    assert "Today Date: 08 Oct 2025" in wrap(tokenizer_with(LLAMA), Profile(), "s")
    own_default = '{% if not date_string is defined %}{% set date_string = "26 Jul 2024" %}{% endif %}{{ date_string }}'
    assert wrap(tokenizer_with(own_default + CHAT_TEMPLATE), Profile(), "s").startswith("08 Oct 2025")  # Llama 3.1
    assert "The current date is 2025-10-08, year 2024" in wrap(tokenizer_with(MISTRAL), Profile(), "s")
    assert "Wednesday, 8. October 2025, 00:00" in wrap(tokenizer_with(GPT_OSS), Profile(), "s")


def test_every_directive_is_that_of_the_library_in_english():
    """Against strftime in the C locale, which is what Python has unless a program asks for another."""
    assert locale.setlocale(locale.LC_TIME) == "C"
    for day in (datetime(2025, 10, 8), datetime(2024, 2, 29), datetime(1999, 12, 31)):
        for directive, text in chat_templates._directives(day.date()).items():
            assert text == day.strftime(directive), directive


def test_a_directive_without_a_fixed_value_is_refused():
    with pytest.raises(ValueError, match=r"a directive that has no fixed value: %s"):
        wrap(tokenizer_with("{{ strftime_now('%s') }}" + CHAT_TEMPLATE), Profile(), "s")


def test_a_template_that_is_one_of_several_by_name_is_fixed_too(monkeypatch):
    tokenizer = tokenizer_with({"default": MISTRAL, "tool_use": CHAT_TEMPLATE})
    set_clock(monkeypatch, 2026, 1, 1)
    assert "The current date is 2025-10-08" in wrap(tokenizer, Profile(), "s")


def test_an_exported_tokenizer_keeps_the_date(monkeypatch):
    """Its template is a string with the date in it, and its renderer has the profile."""
    from search_r3_mteb.integrations.transformers_tokenizer import SearchR3Tokenizer

    profile = Profile(SHORT.embed_token, SHORT.reason, SHORT.direct, date="2020-05-01")
    exported = SearchR3Tokenizer.wrap(tokenizer_with(LLAMA), profile)
    set_clock(monkeypatch, 2026, 1, 1)
    ids = exported.apply_chat_template([{"role": "user", "content": "x"}], tokenize=True)["input_ids"]
    assert ids == Renderer(tokenizer_with(LLAMA), profile, 900).render("x").token_ids
    text = exported.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    assert "Today Date: 01 May 2020" in text
    assert exported.decode(ids) == text


# ---- the system prompt ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [GEMMA, SILENT], ids=["refused", "dropped"])
def test_without_a_system_role_the_system_prompt_stands_in_the_users_turn(template):
    tokenizer = tokenizer_with(template)
    renderer = Renderer(tokenizer, SHORT, 900)
    assert not facts(tokenizer).system_role
    for name, system in (("direct", "Embed."), ("reason", "Think.")):
        rendered = renderer.render("the text", name, instruction="find")
        parts = {key: tokenizer.decode(rendered.token_ids[start:end]) for key, (start, end) in rendered.spans.items()}
        assert parts["system"].strip() == system
        assert parts["user"] == "Instruct: find\nQuery: the text"
        whole = tokenizer.decode(rendered.token_ids)
        assert f"{system}\n" in whole
        assert whole.index(system) < whole.index("the text")
        assert whole.count("<|im_start|>") == (2 if template is GEMMA else 1)
    gemma = tokenizer.decode(Renderer(tokenizer, SHORT, 900).render("hi").token_ids)
    if template is GEMMA:
        assert gemma == ("<|im_start|>user\nEmbed.\n\nhi<|im_end|>\n<|im_start|>model\nIt is <|embed_token|>")


def test_a_template_with_a_system_role_uses_it():
    tokenizer = tokenizer_with(CHAT_TEMPLATE)
    assert facts(tokenizer).system_role
    assert wrap(tokenizer, SHORT, "S.") == library_text(tokenizer, "S.")


# ---- thinking ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "thinking", "ending"),
    [
        (QWEN3, None, "assistant\n"),
        (QWEN3, True, "assistant\n"),
        (QWEN3, False, "assistant\n<think>\n\n</think>\n\n"),
        (R1, None, "assistant\n<think>\n"),
        (R1, True, "assistant\n<think>\n"),
        (R1, False, "assistant\n<think>\n\n</think>\n\n"),
        (R1.replace("<think>\n", "<think>"), False, "assistant\n<think>\n\n</think>\n\n"),
        (R1.replace("think", "thought"), False, "assistant\n<thought>\n\n</thought>\n\n"),
        (DEEPSEEK_V31, None, "assistant\n</think>"),
        (DEEPSEEK_V31, True, "assistant\n<think>"),
        (DEEPSEEK_V31, False, "assistant\n</think>"),
        (CHAT_TEMPLATE, False, "assistant\n"),
        (R1.replace("think>", "reasoning>"), False, "assistant\n<reasoning>\n\n</reasoning>\n\n"),
        (R1.replace("<think>", "<seed:think>"), False, "assistant\n<seed:think>\n\n</seed:think>\n\n"),
        (R1.replace("<think>", "◁think▷"), False, "assistant\n◁think▷\n\n◁/think▷\n\n"),
        (R1.replace("<think>\n", "<think>\nOkay, "), None, "assistant\n<think>\nOkay, "),
        (R1.replace("<think>\n", "<think>\nOkay, "), False, "assistant\n<think>\n\n</think>\n\n"),
        (HARMONY, None, "assistant\n<|channel|>analysis<|message|>"),
        (
            HARMONY,
            False,
            "assistant\n<|channel|>analysis<|message|><|end|><|start|>assistant<|channel|>final<|message|>",
        ),
        (NAMED, False, "assistant\n"),
        (NAMED.replace("assistant\n", "assistant\n<think>\n"), False, "assistant\n<think>\n\n</think>\n\n"),
    ],
)
def test_thinking_is_as_the_profile_says(template, thinking, ending):
    text = wrap(tokenizer_with(template), Profile(thinking=thinking), "s")
    assert text.endswith(f"<|im_start|>{ending}")


@pytest.mark.parametrize("profile", [Profile(thinking=True), Profile(thinking=True, plain="{system}{text}")])
def test_thinking_that_a_model_does_not_have_is_refused(profile):
    with pytest.raises(ValueError, match=r"'thinking' is true in the profile .* cannot be told to think"):
        Renderer(tokenizer_with(CHAT_TEMPLATE), profile, 900)


def test_thinking_is_the_same_in_training_and_inference():
    """The training sequence begins with the inference prompt, and thinking changes both and the fingerprint."""
    tokenizer, model = tokenizer_with(QWEN3), build_model()
    shown, prints = [], []
    for thinking in (False, True):
        profile = Profile(SHORT.embed_token, SHORT.reason, SHORT.direct, thinking=thinking)
        renderer = Renderer(tokenizer, profile, 900)
        prompt = renderer.render("x", "reason").token_ids
        assert renderer.render_reply("x", "reason", "so").token_ids[: len(prompt)] == prompt
        shown.append(prompt)
        prints.append(Checkpoint(model, tokenizer, profile, "tests/qwen3").fingerprint())
    assert shown[0] != shown[1]
    assert prints[0] != prints[1]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHAT_TEMPLATE, (True, False, None, None)),
        (LLAMA, (True, True, None, None)),
        (MISTRAL, (True, True, None, None)),
        (GEMMA, (False, False, None, None)),
        (QWEN3, (True, False, "switch", "<think>")),
        (R1, (True, False, "open", "<think>")),
        (DEEPSEEK_V31, (True, False, "switch", "<think>")),
        (NAMED, (True, False, None, None)),
        (HARMONY, (True, False, "open", "<|channel|>analysis")),
        (R1.replace("think>", "reasoning>"), (True, False, "open", "<reasoning>")),
        (R1.replace("<think>", "◁think▷"), (True, False, "open", "◁think▷")),
        (R1.replace("<think>", "<seed:think>"), (True, False, "open", "<seed:think>")),
        (R1.replace("<think>\n", "<think>\nOkay, "), (True, False, "open", "<think>")),
    ],
)
def test_what_a_template_does_is_read_from_what_it_prints(template, expected):
    found = facts(tokenizer_with(template))
    assert (found.system_role, found.prints_date, found.thinking, found.tag) == expected


# ---- chance --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "drawn",
    ["{{ ['a', 'b'] | random }}", "{{['a','b']|random}}", "{{ lipsum(1) }}", "{{ ['ab'] | map('random') | join }}"],
)
def test_a_template_that_draws_by_chance_is_refused(drawn):
    tokenizer = tokenizer_with(drawn + CHAT_TEMPLATE)
    for read in (lambda: facts(tokenizer), lambda: Renderer(tokenizer, SHORT, 900)):
        with pytest.raises(ValueError, match="The chat template uses random values"):
            read()


@pytest.mark.parametrize("kept", ["a | random", "{# x | random, lipsum #}", "{% set random = 'no' %}{{ random }}"])
def test_what_only_looks_like_chance_is_taken(kept):
    assert wrap(tokenizer_with(kept + CHAT_TEMPLATE), SHORT, "S.").count("<|im_start|>") == 3
