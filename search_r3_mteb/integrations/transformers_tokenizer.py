"""The tokenizer of an exported folder: chat messages to the token ids that the encoder's renderer gives.

sentence-transformers renders a text with the tokenizer's chat template and tokenises the resulting string; a marker or
the embed token spelled out in a *user's text* would become a control token, and truncation would cut the template's
end. This tokenizer keeps that interface (`apply_chat_template`) but renders the ids from the checkpoint's profile: the
user's text stays text, and only it is truncated. The chat template beside it, which branches on `task`, says the same.

Who calls plain `encode` gives no task. `QUERY_PROMPT`, which an exported folder holds as its prompt "query", then says
that the texts are queries: `encode(texts, prompt_name="query")`, and whatever a wrapper has to the same end. It is no
part of the prompt that the model reads; what stands after it is the instruction.
"""

import json
import sys
from typing import Any

import torch
from transformers import BatchEncoding, PreTrainedTokenizerFast
from transformers.utils import logging

from search_r3_mteb.encoder.chat_templates import SLOT, around_nothing, trimmed, wrap
from search_r3_mteb.encoder.profiles import Profile, Template, TemplateName
from search_r3_mteb.encoder.prompts import Renderer

QUERY_PROMPT = "[search-r3: reason about this query]"

_logger = logging.get_logger(__name__)
_TOKENIZER_KEYWORDS = ("padding_side", "pad_to_multiple_of", "return_attention_mask")
_CONTRADICTION = f"A text has the prompt {QUERY_PROMPT!r}, by which it is a query"
_SHAPE = "A Search-R3 prompt is one user message, and before it at most one system message, the instruction"


class SearchR3Tokenizer(PreTrainedTokenizerFast):
    """The backbone's tokenizer, with the profile and the backbone's own chat template among its init keywords.

    No `__init__`: transformers rebuilds the vocabulary of a class that has one instead of reading tokenizer.json.
    """

    _auto_map = {"AutoTokenizer": [None, "modeling_search_r3.SearchR3Tokenizer"]}  # noqa: RUF012

    @classmethod
    def wrap(cls, tokenizer: Any, profile: Profile) -> "SearchR3Tokenizer":
        """A tokenizer with the vocabulary and special tokens of `tokenizer` and the prompts of `profile`."""
        backbone = tokenizer.get_chat_template() if tokenizer.chat_template else None
        wrapped = cls(
            tokenizer_object=tokenizer.backend_tokenizer,
            **tokenizer.special_tokens_map,
            extra_special_tokens=list(getattr(tokenizer, "extra_special_tokens", [])),
            padding_side="left",
            clean_up_tokenization_spaces=False,
            search_r3_profile=profile.to_dict(),
            backbone_chat_template=backbone,
        )
        if wrapped.pad_token is None:  # a base model has none; padding is masked, so any token will do
            wrapped.pad_token = wrapped.eos_token or profile.embed_token
        wrapped.chat_template = chat_template(wrapped.renderer(sys.maxsize))
        return wrapped

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoTokenizer") -> None:
        """Do nothing: transformers would copy this package's source into every saved folder."""

    def renderer(self, max_length: int) -> Renderer:
        """The renderer of this tokenizer's profile for prompts of `max_length` tokens."""
        renderers: dict[int, Renderer] = self.__dict__.setdefault("_search_r3_renderers", {})
        if max_length not in renderers:
            profile = Profile.from_dict(self.init_kwargs["search_r3_profile"], "tokenizer_config.json")
            renderers.clear()  # one length is in use at a time
            renderers[max_length] = Renderer(_BackboneTokenizer(self), profile, max_length)
        return renderers[max_length]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_search_r3_renderers"}

    def apply_chat_template(  # noqa: PLR0913  # transformers' own signature
        self,
        conversation: Any,
        *,
        chat_template: str | None = None,
        tokenize: bool = True,
        task: str | None = None,
        padding: Any = False,
        truncation: Any = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        return_dict: bool = True,
        tokenizer_kwargs: dict[str, Any] | None = None,
        common_kwargs: dict[str, Any] | None = None,
        **keywords: Any,
    ) -> Any:
        """Token ids of one conversation or a list of them; `tokenize=False` gives the template's strings.

        A conversation is a user message, perhaps after a system message, which is the instruction. `task` "query", or
        `QUERY_PROMPT` at the beginning of the instruction, leaves the assistant's turn open, so that the model reasons;
        everything else ends in the embed token. Without either, `encode` says once that it takes texts for documents.
        `max_length` (default: the tokenizer's `model_max_length`) is in tokens and holds when `truncation` is set.
        Raises ValueError for other conversations, for keywords that could change nothing here, and for a document that
        `QUERY_PROMPT` calls a query.
        """
        if not tokenize:
            task_keyword = {} if task is None else {"task": task}
            return super().apply_chat_template(
                conversation, chat_template=chat_template, tokenize=False, **task_keyword, **keywords
            )
        options = {**(common_kwargs or {}), **(tokenizer_kwargs or {})}
        unknown = [key for key in options if key not in _TOKENIZER_KEYWORDS]
        unknown += [key for key, value in keywords.items() if value and key != "sanitize_control_tokens"]
        if chat_template is not None or unknown:
            given = ", ".join(unknown) or "chat_template"
            raise ValueError(
                f"{given} cannot change these prompts: their ids are rendered from the folder's profile, and `task` "
                "('query' or 'document') chooses among them. Leave it out, or export again with another profile."
            )
        single = not conversation or not isinstance(conversation[0], list | tuple)
        read = [_without_mark(messages) for messages in ([conversation] if single else conversation)]
        parsed = [_text_and_instruction(messages) for messages, _ in read]
        cut = truncation not in (False, None, "do_not_truncate")
        length = (max_length or self.model_max_length) if cut else sys.maxsize
        if any(marked for _, marked in read):
            _check_all_queries(task, [marked for _, marked in read])
            task = "query"
        elif task is None and not torch.is_grad_enabled():
            _logger.warning_once(
                "encode() without a task takes its texts for documents and embeds them without reasoning. For queries "
                "call encode_query(texts), or encode(texts, prompt_name='query'). This is said once."
            )
        template: TemplateName = "reason" if task == "query" else "direct"
        rendered = self.renderer(length).render_batch(
            [text for text, _ in parsed], template, [instruction for _, instruction in parsed]
        )
        rows = [prompt.token_ids for prompt in rendered]
        ids: Any = rows[0] if single and return_tensors is None else rows
        encoded = self.pad(
            BatchEncoding({"input_ids": ids}),
            padding=padding,
            max_length=max_length,
            return_tensors=return_tensors,
            **options,
        )
        return encoded if return_dict else encoded["input_ids"]


def _without_mark(messages: Any) -> tuple[Any, bool]:
    """A conversation without `QUERY_PROMPT` at its beginning, and whether it was there."""
    first = messages[0] if messages else {}
    said = _content(first.get("content")) if first.get("role") == "system" else None
    if not isinstance(said, str) or not said.strip().startswith(QUERY_PROMPT):
        return messages, False
    instruction = said.strip().removeprefix(QUERY_PROMPT).strip()
    return [*([{"role": "system", "content": instruction}] if instruction else []), *messages[1:]], True


def _check_all_queries(task: str | None, marked: list[bool]) -> None:
    """ValueError where `task`, or a text beside them, contradicts the texts that `QUERY_PROMPT` calls queries."""
    if task not in (None, "query") or not all(marked):
        got = f"the task is {task!r}" if all(marked) else "others beside it have not"
        raise ValueError(
            f"{_CONTRADICTION}, but {got}. Leave that prompt to queries, and encode queries and documents in calls of "
            "their own."
        )


class _BackboneTokenizer:
    """The tokenizer for the renderer: with the backbone's own chat template instead of ours."""

    def __init__(self, tokenizer: SearchR3Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.chat_template: str | None = tokenizer.init_kwargs["backbone_chat_template"]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, text: Any, **keywords: Any) -> Any:
        # No warning: a template longer than `model_max_length` gets the renderer's own error.
        return self._tokenizer(text, **({"verbose": False} | keywords))

    def apply_chat_template(self, conversation: Any, **keywords: Any) -> Any:
        return PreTrainedTokenizerFast.apply_chat_template(
            self._tokenizer, conversation, **({"chat_template": self.chat_template} | keywords)
        )


def chat_template(renderer: Renderer) -> str:
    """The profile as a Jinja template over `messages` and `task`: "query" leaves the assistant's turn open."""
    profile = renderer.profile
    head = " ~ ins.text ~ ".join(
        json.dumps(part, ensure_ascii=False) for part in profile.instruction.split("{instruction}")
    )
    return (
        "{#- Token ids are rendered from the profile in tokenizer_config.json; this says the same as a string. -#}"
        "{%- set ins = namespace(text='', query=task is defined and task == 'query') -%}"
        "{%- set user = namespace(text=none) -%}"
        "{%- for message in messages -%}"
        "{%- set content = message['content'] if message['content'] is string"
        " else message['content'] | map(attribute='text') | join -%}"
        "{%- if message['role'] == 'system' and user.text is none and not ins.text -%}"
        f"{{%- if loop.first and content.strip().startswith({json.dumps(QUERY_PROMPT)}) -%}}"
        "{%- if task is defined and task not in (none, 'query') -%}"
        f"{{{{ raise_exception({json.dumps(_CONTRADICTION)}) }}}}{{%- endif -%}}"
        f"{{%- set ins.query = true -%}}{{%- set ins.text = content.strip()[{len(QUERY_PROMPT)}:].strip() -%}}"
        "{%- else -%}{%- set ins.text = content -%}{%- endif -%}"
        "{%- elif message['role'] == 'user' and user.text is none -%}{%- set user.text = content -%}"
        f"{{%- else -%}}{{{{ raise_exception({json.dumps(_SHAPE)}) }}}}{{%- endif -%}}"
        "{%- endfor -%}"
        f"{{%- if user.text is none -%}}{{{{ raise_exception({json.dumps(_SHAPE)}) }}}}{{%- endif -%}}"
        f"{{%- set body = ({head} ~ user.text) if ins.text else user.text -%}}"
        "{%- if ins.query -%}"
        f"{_branch(renderer, profile.reason, with_reply=False)}"
        "{%- else -%}"
        f"{_branch(renderer, profile.direct, with_reply=True)}"
        "{%- endif -%}"
    )


def _branch(renderer: Renderer, template: Template, with_reply: bool) -> str:
    """One branch's expression: the fixed text before, the user's text, the fixed text after."""
    token = renderer.profile.embed_token
    before, after = wrap(renderer.tokenizer, renderer.profile, template.system.replace("{embed_token}", token)).split(
        SLOT
    )
    leading = renderer.tokenizer.convert_ids_to_tokens(renderer.frame_maker.leading_ids())
    before = "".join(leading) + before
    body, nothing = "body", None
    if renderer.profile.tokenization == "whole":
        for side, characters in zip("lr", trimmed(renderer.tokenizer, renderer.profile, template.system), strict=True):
            body += f".{side}strip({json.dumps(characters)})" if characters else ""
        nothing = around_nothing(renderer.tokenizer, renderer.profile, template.system.replace("{embed_token}", token))
    reply = template.reply.replace("{embed_token}", token) if with_reply else ""
    usual = f"{json.dumps(before, ensure_ascii=False)} ~ {body} ~ {json.dumps(after + reply, ensure_ascii=False)}"
    if nothing is None:
        return f"{{{{ {usual} }}}}"
    bare = json.dumps("".join(leading) + nothing + reply, ensure_ascii=False)
    return f"{{{{ ({usual}) if {body} else {bare} }}}}"


def _text_and_instruction(messages: Any) -> tuple[Any, str | None]:
    """The user's text and the instruction of one conversation; ValueError for any other shape."""
    roles = [message.get("role") for message in messages]
    if roles not in (["user"], ["system", "user"]):
        raise ValueError(f"{_SHAPE}; got the roles {roles}. Pass a text, and the instruction as `prompt`.")
    contents = [_content(message.get("content")) for message in messages]
    return contents[-1], contents[0] if len(contents) == 2 else None


def _content(content: Any) -> Any:
    """A message's text; ValueError for parts of other kinds. The renderer checks what is not a list."""
    if not isinstance(content, list):
        return content
    kinds = {part.get("type", "text") for part in content}
    if kinds != {"text"}:
        raise ValueError(f"This model reads text only, got content of the kinds {sorted(kinds)}. Pass the text alone.")
    return "".join(part["text"] for part in content)
