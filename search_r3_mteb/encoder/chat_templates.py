"""Chat templates: the prompt around a user's text, the same on every day, at training and at inference.

Three things that a template may leave to the moment are decided by the profile: today's date, thinking, and where a
system prompt stands when the template has no system role.
"""

import json
from dataclasses import dataclass
from datetime import date, datetime, time
from functools import cache
from itertools import pairwise
from typing import Any

from search_r3_mteb.encoder.profiles import DATE, PLAIN, PROFILE_FILE, Profile

# Placeholder of the user's text while a chat template is rendered; no template trims or escapes it.
SLOT = "USER-TEXT-4f1c9a"
INSTEAD = (
    "Restore it where it was changed (chat_template.jinja, or tokenizer_config.json), or else give the profile "
    "(search_r3.json) a 'plain' prompt."
)
# Every character that `str.strip`, and so Jinja's `trim`, takes from an edge.
_WHITE = " \n\t\v\f\r\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)
# What templates are known to change: quotes, markup, line breaks, runs of spaces, capitals, tags and commands of
# thinking (Qwen3, DeepSeek, GLM), long texts.
_INNER = (
    ' "It\'s"  <b>&amp;</b>\t{x} {{ y }}\r\n\n\\n [É東]\xa0END? <think>a</think> <reasoning>b</reasoning> /think '
    "/no_think /nothink! " + "and so on, " * 200
)
_ENDINGS = ("/think", "/no_think", "</think>", "?")
# What stands between the system prompt and the text in a user's turn: Gemma 3's own template puts the same there.
_BETWEEN = "\n\n"
# What closes gpt-oss's block: its message ends, and the one to the user begins.
_HARMONY = "<|end|><|start|>assistant<|channel|>final<|message|>"
# Tags of Qwen3 and DeepSeek-R1, of their imitators, of Seed-OSS, Kimi-VL, Magistral, Command A and gpt-oss.
_THINKING = (
    ("<think>", "</think>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("◁think▷", "◁/think▷"),
    ("<thinking>", "</thinking>"),
    ("<scratchpad>", "</scratchpad>"),
    ("<thought>", "</thought>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel|>analysis", _HARMONY),
)
_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


@dataclass(frozen=True)
class TemplateFacts:
    """What a tokenizer's chat template does with a system prompt, the date and thinking; read by rendering it.

    `thinking` is "switch" where `enable_thinking` changes the prompt, "open" where the assistant's turn begins inside
    of a thinking block whatever is asked, else None; `tag` is the tag that was seen.
    """

    system_role: bool
    prints_date: bool
    thinking: str | None
    tag: str | None


def has_template(tokenizer: Any, profile: Profile) -> bool:
    """Whether prompts are made by the tokenizer's chat template, and not by a plain layout."""
    return profile.plain is None and bool(getattr(tokenizer, "chat_template", None))


def wrap(tokenizer: Any, profile: Profile, system: str) -> str:
    """The prompt as text, up to where the assistant speaks, with `SLOT` in place of the user's text.

    A template without a system role gets the system prompt in the user's turn, before the text. Raises ValueError
    when neither can be shown, and for `thinking` true where the template has none.
    """
    if has_template(tokenizer, profile):
        text = _rendered(tokenizer, profile, system, profile.thinking)
        if profile.thinking is True and text == _rendered(tokenizer, profile, system, False):
            raise ValueError(_no_thinking("its chat template has neither a switch for it nor a thinking tag"))
    else:
        if profile.thinking is True:
            raise ValueError(_no_thinking("it is prompted without a chat template"))
        text = (PLAIN if profile.plain is None else profile.plain).replace("{text}", SLOT)
        text = text.replace("{system}", system)
    if text.count(SLOT) != 1:
        raise ValueError(
            f"The chat template shows the user's text {text.count(SLOT)} times; exactly one place is needed. {INSTEAD}"
        )
    return text


def trimmed(tokenizer: Any, profile: Profile, system: str) -> tuple[str, str]:
    """The characters that the chat template takes from the beginning and from the end of a user's text.

    Raises ValueError for a template that changes one of the texts that are tried in another way: prompts are made
    without running it again.
    """
    if not has_template(tokenizer, profile):
        return "", ""
    doubled = f"{SLOT}{_INNER}{SLOT}"
    if doubled not in _turns(tokenizer, profile, system, profile.thinking, doubled)[0]:
        raise ValueError(
            f"The chat template changes the user's text: {doubled!r:.160} is not in the prompt that it makes of that "
            f"text. {INSTEAD}"
        )
    plain = _turns(tokenizer, profile, system, profile.thinking)[0].partition(SLOT)
    for ending in _ENDINGS:
        found = _turns(tokenizer, profile, system, profile.thinking, SLOT + ending)[0]
        if found != f"{plain[0]}{SLOT}{ending}{plain[2]}":
            raise ValueError(f"The chat template changes the prompt of a text that ends with {ending!r}. {INSTEAD}")
    taken = ["", ""]
    for count, character in enumerate(_WHITE):
        if count == 3 and not any(taken):  # where the usual three stay, all do
            break
        edged = _turns(tokenizer, profile, system, profile.thinking, f"{character}{SLOT}{character}")[0].partition(SLOT)
        for side, kept in enumerate((plain[0] + character, character + plain[2])):
            if edged[2 * side] == plain[2 * side]:
                taken[side] += character
            elif edged[2 * side] != kept:
                raise ValueError(
                    f"The chat template changes the prompt around a text that begins and ends with {character!r}. Give "
                    "the profile a 'plain' prompt instead."
                )
    return taken[0], taken[1]


def around_nothing(tokenizer: Any, profile: Profile, system: str) -> str | None:
    """The prompt of an empty text, where it is not the one around other texts without the text; else None.

    Without a system role the system prompt stands before the text, and a template that trims takes what is between.
    """
    if not has_template(tokenizer, profile):
        return None
    found = _rendered(tokenizer, profile, system, profile.thinking, "")
    return None if found == _rendered(tokenizer, profile, system, profile.thinking).replace(SLOT, "") else found


def facts(tokenizer: Any) -> TemplateFacts:
    """What the chat template does. Raises ValueError for one that cannot show a prompt at all."""
    system = "You read texts."
    default = _rendered(tokenizer, Profile(), system, None)
    on, off = (_turns(tokenizer, Profile(), system, thinking)[0] for thinking in (True, False))
    _, role = _turns(tokenizer, Profile(), system, None)
    opened = _open_pair(tokenizer, Profile(), system, None)
    pair = opened or _open_pair(tokenizer, Profile(), system, True)
    if pair is None and on != off:
        pair = next((p for p in _THINKING if p[0] in on + off), None)
    return TemplateFacts(
        system_role=role,
        prints_date=default != _rendered(tokenizer, Profile(date="2001-02-03"), system, None),
        thinking="switch" if on != off else "open" if opened else None,
        tag=pair[0] if pair else None,
    )


def _rendered(tokenizer: Any, profile: Profile, system: str, thinking: bool | None, user: str = SLOT) -> str:
    text, _ = _turns(tokenizer, profile, system, thinking, user)
    pair = _open_pair(tokenizer, profile, system, thinking)
    if thinking is False and pair:  # as Qwen3 closes the block that it was told not to use
        before, tag, said = text.rpartition(pair[0])
        if pair[1] == _HARMONY:
            return before + tag + (said if "<|message|>" in said else "<|message|>") + _HARMONY
        text = f"{before}{tag}\n\n{pair[1]}\n\n"  # without what the template itself says in it
    return text


def _turns(
    tokenizer: Any, profile: Profile, system: str, thinking: bool | None, user: str = SLOT, generation: bool = True
) -> tuple[str, bool]:
    """The template's text for a user's text, and whether the system prompt has a role of its own in it."""
    from jinja2 import TemplateError

    day = date.fromisoformat(profile.date or DATE)
    template = tokenizer.chat_template
    if not isinstance(template, str):  # several, by name
        template = tokenizer.get_chat_template()
    _check_chance(template)
    if "strftime_now" in template:
        template = _clock(day) + template
    # DeepSeek-V3.1 and Granite call the switch `thinking`.
    switch = {} if thinking is None else {"enable_thinking": thinking, "thinking": thinking}

    def render(messages: list[dict[str, str]]) -> str:
        try:
            text: str = tokenizer.apply_chat_template(
                messages,
                chat_template=template,
                tokenize=False,
                add_generation_prompt=generation,
                date_string=_directives(day)["%d %b %Y"],
                **switch,
            )
        except TemplateError:
            raise
        except Exception as error:  # a template is a program: tools that are None, a division by zero
            raise TemplateError(f"{type(error).__name__}: {error}") from error
        return text

    refused: TemplateError | None = None
    try:
        text = render([{"role": "system", "content": system}, {"role": "user", "content": user}])
        if system.strip() in text:
            return text, True
    except TemplateError as error:  # Gemma's, for example, refuses system prompts by name
        refused = error
    try:
        text = render([{"role": "user", "content": f"{system}{_BETWEEN}{user}"}])
    except TemplateError as error:
        raise ValueError(
            f"The chat template cannot show a system prompt and a text: {refused or error}. {INSTEAD}"
        ) from error
    if system.strip() not in text:
        raise ValueError(f"The chat template drops the system prompt. {INSTEAD}")
    return text, False


def _open_pair(tokenizer: Any, profile: Profile, system: str, thinking: bool | None) -> tuple[str, str] | None:
    """The tags of the thinking block in which the assistant's turn begins; a tag named elsewhere opens nothing.

    The turn is what the template adds for generation, or, where it always does so, all behind the user's text.
    """
    whole = _turns(tokenizer, profile, system, thinking)[0].rpartition(SLOT)[2]
    prompt = _turns(tokenizer, profile, system, thinking, generation=False)[0].rpartition(SLOT)[2]
    turn = whole[len(prompt) :] if whole != prompt and whole.startswith(prompt) else whole
    return next((pair for pair in _THINKING if turn.rfind(pair[0]) > turn.rfind(pair[1])), None)


@cache
def _check_chance(template: str) -> None:
    """ValueError for a template that draws by chance: every prompt would be another one."""
    from jinja2 import Environment, TemplateSyntaxError

    try:
        words = [(kind, value) for _, kind, value in Environment().lex(template) if kind != "whitespace"]
    except TemplateSyntaxError:  # rendering says so
        return
    for (_, before), (kind, value) in pairwise([("", ""), *words]):
        named = kind == "string" and value[1:-1] == "random"  # map('random')
        if named or (kind, value) == ("name", "lipsum") or (before, value) == ("|", "random"):
            raise ValueError(
                f"The chat template uses random values ({value}), so no prompt or vector would be the same twice. "
                f"{INSTEAD}"
            )


def _clock(day: date) -> str:
    """A Jinja macro that takes the place of transformers' `strftime_now`: it is always midnight of `day`.

    transformers lets nothing callable into a template, so the directives are replaced in the template's language. The
    line break at the end belongs to the macro's tag: what follows begins a line, as it does without the macro.
    """
    replaced = "".join(f" | replace({json.dumps(key)}, {json.dumps(text)})" for key, text in _directives(day).items())
    unknown = json.dumps("strftime_now asks for a directive that has no fixed value: ")
    return (
        "{%- macro strftime_now(format) -%}"
        f"{{%- set text = format{replaced} -%}}"
        f"{{%- if '%' in text -%}}{{{{ raise_exception({unknown} ~ format) }}}}{{%- endif -%}}"
        "{{- text -}}{%- endmacro %}\n"
    )


def _directives(day: date) -> dict[str, str]:
    """The directives of strftime at midnight of `day`, in English under any locale; compound ones come first."""
    moment = datetime.combine(day, time())
    texts = {f"%{key}": moment.strftime(f"%{key}") for key in "dmyYHIMSjUWwuGVf"}
    texts |= {f"%-{key}": str(int(texts[f"%{key}"])) for key in "dmHIMSj"}
    month, weekday = _MONTHS[day.month - 1], _DAYS[day.weekday()]
    texts |= {"%B": month, "%b": month[:3], "%h": month[:3], "%A": weekday, "%a": weekday[:3], "%p": "AM"}
    texts |= {"%e": f"{day.day:2d}", "%F": day.isoformat(), "%T": "00:00:00", "%X": "00:00:00", "%R": "00:00"}
    texts |= {"%D": f"{texts['%m']}/{texts['%d']}/{texts['%y']}", "%Z": "", "%z": ""}
    texts["%x"] = texts["%D"]
    texts["%c"] = f"{texts['%a']} {texts['%b']} {texts['%e']} 00:00:00 {day.year}"
    return {"%d %b %Y": f"{texts['%d']} {texts['%b']} {day.year}"} | texts


def _no_thinking(why: str) -> str:
    return (
        f"'thinking' is true in the profile ({PROFILE_FILE}), but this model cannot be told to think: {why}. Set it to "
        "false, or leave it out."
    )
