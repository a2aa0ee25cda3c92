"""What a profile's templates put around a text, as token ids: the frames of prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from search_r3_mteb.encoder.chat_templates import INSTEAD, SLOT, around_nothing, has_template, trimmed, wrap
from search_r3_mteb.encoder.profiles import Profile, Template, TemplateName
from search_r3_mteb.encoder.whole_texts import Surroundings, encoded, surround


@dataclass(frozen=True)
class Frame:
    """The token ids around the user's text, for one template.

    `assistant` is the length of the assistant's part at the end of `after`. `around` is None where the text is
    tokenised apart; else `before` and `after` are as around an ordinary text, and `trimmed` are the characters that the
    template takes from the two ends of a text.
    """

    before: list[int]
    after: list[int]
    system: tuple[int, int]
    assistant: int
    around: Surroundings | None = None
    trimmed: tuple[str, str] = ("", "")
    nothing: list[int] | None = None
    """The ids of an empty text's prompt, where the template makes another one of it."""


@dataclass(frozen=True)
class FrameMaker:
    """Makes the frames of a profile's templates with one tokenizer."""

    tokenizer: Any
    profile: Profile

    def frame(self, name: TemplateName) -> Frame:
        """The ids around a text. Raises ValueError where the template drops or changes a part."""
        return self._whole(name) if self.profile.tokenization == "whole" else self._apart(name)

    def texts(self, name: TemplateName) -> tuple[str, str, str, str]:
        """System prompt, text before the user's, text behind it, reply."""
        template: Template = getattr(self.profile, name)
        system = template.system.replace("{embed_token}", self.profile.embed_token)
        before, after = wrap(self.tokenizer, self.profile, system).split(SLOT)
        reply = "" if name == "reason" else template.reply.replace("{embed_token}", self.profile.embed_token)
        return system, before, after, reply

    def leading_ids(self) -> list[int]:
        """A beginning-of-text id where the tokenizer adds one to plain text and no chat template writes it."""
        if has_template(self.tokenizer, self.profile):
            return []
        bos = self.tokenizer.bos_token_id
        return [bos] if bos is not None and self.tokenizer("a")["input_ids"][:1] == [bos] else []

    def control_ids(self, text: str) -> list[int]:
        """Ids of the template's own text, in which markers are markers."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    def _whole(self, name: TemplateName) -> Frame:
        system, before, after, reply = self.texts(name)
        around, offsets, replied = surround(self.tokenizer, before, after, reply)
        nothing = around_nothing(self.tokenizer, self.profile, system)
        return Frame(
            before=[*self.leading_ids(), *around.lead, *around.opening],
            after=[*around.closing, *around.rest],
            system=self._system_span(before, system, offsets),
            assistant=replied,
            around=around,
            trimmed=trimmed(self.tokenizer, self.profile, system),
            nothing=None if nothing is None else [*self.leading_ids(), *encoded(self.tokenizer, nothing + reply)[0]],
        )

    def _apart(self, name: TemplateName) -> Frame:
        system, before, after, reply = self.texts(name)
        prefix = self.tokenizer(before, add_special_tokens=False, return_offsets_mapping=True)
        reply_ids = self.control_ids(reply)
        return Frame(
            before=self.leading_ids() + list(prefix["input_ids"]),
            after=self.control_ids(after) + reply_ids,
            system=self._system_span(before, system, prefix["offset_mapping"]),
            assistant=len(reply_ids),
        )

    def _system_span(self, before: str, system: str, offsets: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """Token range of the system prompt; a template may have trimmed its edges."""
        stripped = system.strip()
        start = before.find(stripped)
        if start < 0:
            raise ValueError(f"The system prompt stands behind the text. {INSTEAD}")
        end = start + len(stripped)
        inside = [i for i, (first, last) in enumerate(offsets) if first < end and last > start]
        shift = len(self.leading_ids())
        return (inside[0] + shift, inside[-1] + 1 + shift) if inside else (shift, shift)
