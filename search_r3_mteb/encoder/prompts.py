"""Prompts as token ids: a profile's templates rendered around a text, with the spans of their parts."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from search_r3_mteb.encoder.beginnings import Beginnings, groups
from search_r3_mteb.encoder.frames import Frame, FrameMaker
from search_r3_mteb.encoder.profiles import PROFILE_FILE, TEMPLATES, Profile, TemplateName
from search_r3_mteb.encoder.special_tokens import embed_token_id, unknown_token
from search_r3_mteb.encoder.text_checks import check_text, check_texts
from search_r3_mteb.encoder.whole_texts import ORDINARY, Part, Surroundings, WholeTexts, encoded

_CHARACTERS = 8  # of a long text that are tokenised first, per token of `max_length` (our choice)
_TOGETHER = 1_000_000  # characters that are tokenised at once: some 150 MB (our choice)


@dataclass(frozen=True)
class Rendered:
    """Token ids of one prompt and where its parts lie.

    `spans` maps "system", "user", "assistant" and "embed" to half-open ranges of token positions. In an open
    turn the assistant's span is empty and "embed" is absent. `truncated_tokens` were cut from the user's text: all of
    them, or at least so many where only the beginning of a long text was tokenised.
    """

    token_ids: list[int]
    spans: dict[str, tuple[int, int]]
    truncated_tokens: int = 0


@dataclass
class Renderer:
    """Renders texts to token ids under a profile; `max_length` is in tokens and covers the whole prompt.

    A prompt that is too long is cut at the end of the *user's text* only. Markers or the embed token spelled out in a
    text stay text. Raises ValueError when the tokenizer is slow or lacks the embed token, the template drops or changes
    a part, or an earlier version's profile does not say how it is tokenised and that matters.
    """

    tokenizer: Any
    profile: Profile
    max_length: int = 512
    _frames: dict[TemplateName, Frame] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if not getattr(self.tokenizer, "is_fast", False):
            raise ValueError(
                f"{type(self.tokenizer).__name__} is a slow tokenizer: a text that spells a marker cannot be told from "
                "the marker. Load the fast version (tokenizer.json)."
            )
        self.embed_token_id = embed_token_id(self.tokenizer, self.profile.embed_token)
        self._beginnings = Beginnings(self.tokenizer)
        added = self.tokenizer.added_tokens_decoder.values()
        self._hard = tuple(token.content for token in added if not token.normalized)
        self.frame_maker = FrameMaker(self.tokenizer, self.profile)
        for name in TEMPLATES:
            self._frames[name] = self.frame_maker.frame(name)
        markers = self._markers()
        self._unknown = unknown_token(self.tokenizer)
        self._control = frozenset(self.tokenizer.convert_tokens_to_ids(markers)) - {*self._unknown}
        self._marker = re.compile("|".join(re.escape(token) for token in sorted({*markers, *self._unknown.values()})))
        self._whole = WholeTexts(self.tokenizer, self._control, self._marker, self._unknown)
        if self.profile.tokenization is None:
            self._check_undecided()

    def check_room(self, *templates: TemplateName) -> int:
        """Tokens that `max_length` leaves for a text within the largest of these; ValueError where there are none."""
        overheads = {}
        for template in templates:
            if template not in self._frames:
                raise ValueError(f"There is no template {template!r}; the templates are {', '.join(TEMPLATES)}.")
            frame = self._frames[template]
            overheads[template] = len(frame.before) + len(frame.after)
        overhead, largest = max((tokens, template) for template, tokens in overheads.items())
        if self.max_length <= overhead:
            raise ValueError(
                f"max_length={self.max_length} leaves no room for text: the {largest!r} template alone takes "
                f"{overhead} tokens. Set max_length to more than {overhead}."
            )
        return self.max_length - overhead

    def frame_ids(self, template: TemplateName) -> tuple[list[int], list[int]]:
        """The token ids before and after the user's text."""
        return self._frames[template].before, self._frames[template].after

    def render(self, text: str, template: TemplateName = "direct", instruction: str | None = None) -> Rendered:
        """One inference prompt: "direct" ends with the embed token, "reason" with the assistant's turn open."""
        return self.render_batch([text], template, None if instruction is None else [instruction])[0]

    def render_batch(
        self, texts: Sequence[str], template: TemplateName, instructions: Sequence[str | None] | None = None
    ) -> list[Rendered]:
        """Inference prompts for texts, tokenised together; `instructions` has one entry per text."""
        self.check_room(template)
        check_texts(texts)
        if instructions is not None and len(instructions) != len(texts):
            raise ValueError(f"{len(instructions)} instructions were given for {len(texts)} texts; give one for each.")
        frame = self._frames[template]
        filled = [""] * len(texts) if instructions is None else self._filled(instructions)
        starts = self._starts(frame, texts, _CHARACTERS * self.max_length)
        rendered: list[Rendered] = []
        for rows in groups(starts, _TOGETHER):
            rendered += self._render_rows(frame, [starts[row] for row in rows], [filled[row] for row in rows])
        for row, (text, start) in enumerate(zip(texts, starts, strict=True)):
            characters = len(start)
            # A beginning that is too short is lengthened. Tokens over the text's end are at most those of the closing.
            while len(start) < len(text) and rendered[row].truncated_tokens <= len(frame.after):
                characters *= 4
                [start] = self._starts(frame, [text], characters)
                [rendered[row]] = self._render_rows(frame, [start], [filled[row]])
        return rendered

    def _starts(self, frame: Frame, texts: Sequence[str], characters: int) -> list[str]:
        """Beginnings of long texts that give the same prompts as the texts, as long as they fill `max_length`."""
        around = frame.around
        if around is not None:
            # What follows the text must end its last word as what follows it in the whole does.
            ends = around.right[:1] in self._beginnings.followers or around.right.startswith(self._hard)
            if not ends or any(not character.isspace() for side in frame.trimmed for character in side):
                return list(texts)
        return [self._beginnings.cut(text, characters) for text in texts]

    def _render_rows(self, frame: Frame, texts: Sequence[str], filled: Sequence[str]) -> list[Rendered]:
        if frame.around is not None:
            return self._render_whole(frame, frame.around, texts, filled)
        bodies = self.tokenize_text(texts)
        heads = self.tokenize_text(filled) if any(filled) else [[]] * len(texts)
        return [self._assemble(frame, *each) for each in zip(heads, bodies, texts, strict=True)]

    def render_reply(
        self,
        text: str,
        template: TemplateName,
        reasoning: str | None = None,
        instruction: str | None = None,
        given: str | None = None,
    ) -> Rendered:
        """A training sequence that ends with the embed token; its "assistant" span is what a model learns to say.

        `reasoning` is the reasoning of a "reason" reply and is refused for a "direct" one. `given` is reasoning that
        stands before it as if it had been said, outside of the span.
        """
        if template == "direct":
            if reasoning is not None or given is not None:
                raise ValueError("A direct reply has no reasoning; use template='reason' or leave `reasoning` out.")
            return self.render(text, template, instruction)
        prompt = self.render(text, template, instruction)
        said, reply = self._reply(given, reasoning)
        start = len(prompt.token_ids) + len(said)
        end = start + len(reply)
        spans = prompt.spans | {"assistant": (start, end), "embed": (end - 1, end)}
        return Rendered(prompt.token_ids + said + reply, spans, prompt.truncated_tokens)

    def reply_frame(self) -> tuple[str, str]:
        """What the profile's "reason" reply puts before a reasoning and, up to the embed token, behind it."""
        before, after = self.profile.reason.reply.split("{reasoning}")
        return before, after.removesuffix("{embed_token}")

    def reply_ids(self, reasoning: str) -> list[int]:
        """Ids of the assistant's turn that says `reasoning`, the embed token last; they depend on no prompt's text."""
        return self._reply(None, reasoning)[1]

    def _reply(self, given: str | None, reasoning: str | None) -> tuple[list[int], list[int]]:
        before, after = self.reply_frame()
        whole = self._frames["reason"].around is not None
        return (self._reply_whole if whole else self._reply_apart)(
            before, given, reasoning, after + self.profile.embed_token
        )

    def _reply_apart(
        self, before: str, given: str | None, reasoning: str | None, after: str
    ) -> tuple[list[int], list[int]]:
        """Ids of what is given as if it had been said, and of what is to be said."""
        opening = self.control_ids(before)
        said = [*opening, *self.tokenize_text([given])[0]] if given else []
        spoken = f" {reasoning}" if reasoning and given and self._spaces_count else reasoning
        reply = [
            *([] if given else opening),
            *(self.tokenize_text([spoken])[0] if spoken else []),
            *self.control_ids(after),
        ]
        return said, reply

    def _reply_whole(
        self, before: str, given: str | None, reasoning: str | None, after: str
    ) -> tuple[list[int], list[int]]:
        """The same, as the continuation of the prompt, whose own ids stay as they are when it is asked."""
        for index, text in enumerate(each for each in (given, reasoning) if each is not None):
            check_text(text, index, "Reasoning")
        around = self._frames["reason"].around
        spoken = f" {reasoning}" if reasoning and given else reasoning or ""
        parts = [Part(before, True), Part(given or "", False), Part(spoken, False), Part(after, True)]
        ids, borders = self._whole.continued([around.said, ORDINARY] if around else [], parts)
        border = borders[1] if given else 0
        return ids[:border], ids[border:]

    @property
    def _spaces_count(self) -> bool:
        """Whether a continued text needs a space of its own; some tokenizers put one before every text."""
        first, second = self.tokenize_text(["a", " a"])
        return self.tokenizer.decode([*first, *first]) != self.tokenizer.decode([*first, *second])

    def tokenize_text(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts as plain text: a marker or embed token spelled out in one is cut into ordinary pieces.

        Raises TypeError for a text that is not a string and ValueError for a lone surrogate.
        """
        check_texts(texts)
        if not texts:
            return []
        # The full length is tokenised and cut afterwards; the tokenizer's own limit would only print a warning.
        encoded = self.tokenizer(
            list(texts),
            add_special_tokens=False,
            split_special_tokens=True,
            truncation=False,
            verbose=False,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        return [
            self._without_unknown(text, ids) if self._control.isdisjoint(ids) else self._spell_out(text)
            for text, ids in zip(texts, map(list, encoded["input_ids"]), strict=True)
        ]

    def _without_unknown(self, text: str, ids: list[int]) -> list[int]:
        """The ids of a text, without an unknown token that it spells and that can be spelled in another way.

        Models that read text and template apart were trained with versions that left it there.
        """
        apart = self.profile.tokenization != "whole"
        if apart or self._unknown.keys().isdisjoint(ids) or not self._whole.may_spell_unknown(text):
            return ids
        found = self.tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
        )
        if not self._whole.spells_unknown(text, found["input_ids"], found["offset_mapping"]):
            return ids
        spelled = self._spell_out(text)
        fewer = sum(each in self._unknown for each in spelled) < sum(each in self._unknown for each in ids)
        return spelled if fewer else ids

    def _markers(self) -> list[str]:
        """Tokens that a text must not produce: the embed token, special tokens, and added tokens of the templates.

        The last are not all declared special: DeepSeek's chat markers, for example, are not.
        """
        framing = {i for frame in self._frames.values() for i in (*frame.before, *frame.after)}
        added = [token for token, i in self.tokenizer.get_added_vocab().items() if i in framing and token.strip()]
        special = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        return sorted({self.profile.embed_token, *added, *special, *self.tokenizer.all_special_tokens})

    def _spell_out(self, text: str) -> list[int]:
        """Ids of a text that spells markers which the tokenizer does not split by itself: cut inside each one."""
        ids: list[int] = []
        start = 0
        for match in self._marker.finditer(text):
            ids += self._piece_ids(text[start : match.start() + 1])
            start = match.start() + 1
        ids += self._piece_ids(text[start:])
        if not self._control.isdisjoint(ids):
            raise ValueError(
                f"The tokenizer turns the text {text!r:.60} into a control token even in pieces. Remove the marker "
                "from the text."
            )
        return ids

    def _piece_ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def _filled(self, instructions: Sequence[str | None]) -> list[str]:
        """Each instruction in its own place before the text; an absent one gives nothing."""
        for index, instruction in enumerate(instructions):
            if instruction is not None:
                check_text(instruction, index, "Instruction")
        return [self.profile.instruction.replace("{instruction}", text) if text else "" for text in instructions]

    def _render_whole(
        self, frame: Frame, around: Surroundings, texts: Sequence[str], heads: Sequence[str]
    ) -> list[Rendered]:
        """Prompts tokenised as one text with their frames; `heads` are filled instructions."""
        check_texts(texts)
        if not texts:
            return []
        contents = [_trimmed(head, text, frame.trimmed) for head, text in zip(heads, texts, strict=True)]
        encoded_rows = self.tokenizer(
            [f"{around.left}{head}{text}{around.right}" for head, text in contents],
            add_special_tokens=False,
            truncation=False,
            verbose=False,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]
        first, last = len(around.opening), len(around.closing)
        room = self.max_length - (len(frame.before) - first) - len(around.rest)
        rendered = []
        for ids, (head, text) in zip(encoded_rows, contents, strict=True):
            if frame.nothing is not None and not head + text:
                rendered.append(self._assemble_nothing(frame, frame.nothing))
                continue
            opening, body, closing = ids[:first], ids[first : len(ids) - last], ids[len(ids) - last :]
            usual = opening == around.opening and closing == around.closing and first + last <= len(ids)
            forged = not self._control.isdisjoint(body) or (
                not self._unknown.keys().isdisjoint(body)
                and self._whole.may_spell_unknown(f"{around.left}{head}{text}{around.right}")
            )
            if usual and (not head or len(ids) <= room) and not forged:
                rendered.append(self._assemble(frame, [], body, text))
            else:
                rendered.append(self._render_parts(frame, around, head, text))
        return rendered

    def _assemble_nothing(self, frame: Frame, ids: list[int]) -> Rendered:
        end = len(ids) - frame.assistant
        spans = {"system": frame.system, "user": (frame.system[1], frame.system[1]), "assistant": (end, len(ids))}
        return Rendered(list(ids), spans | ({"embed": (len(ids) - 1, len(ids))} if frame.assistant else {}))

    def _render_parts(self, frame: Frame, around: Surroundings, head: str, text: str) -> Rendered:
        """One such prompt, with the place of each part looked up."""
        users = [Part(head, False), Part(text, False)] if head else [Part(text, False)]
        ids, borders = self._whole.encode([Part(around.left, True), *users, Part(around.right, True)])
        first, last = borders[0], borders[-1]
        if ids[: len(around.opening)] == around.opening:  # the same places as where they are not looked up
            first = len(around.opening)
        if ids[len(ids) - len(around.closing) :] == around.closing:
            last = max(first, len(ids) - len(around.closing))
        middle = min(max(first, borders[-2]), last) if head else first
        start = len(frame.before) - len(around.opening)
        lead, rest = frame.before[:start], around.rest
        own = Frame([*lead, *ids[:first]], [*ids[last:], *rest], frame.system, frame.assistant)
        if len(own.before) + last - first + len(own.after) > self.max_length:  # the text's end is lost, and its border
            own = Frame(own.before, frame.after, frame.system, frame.assistant)
        return self._assemble(own, ids[first:middle], ids[middle:last], text)

    def _assemble(self, frame: Frame, head: list[int], body: list[int], text: str) -> Rendered:
        room = self.max_length - len(frame.before) - len(frame.after) - len(head)
        if room < 1:
            raise ValueError(
                f"The instruction of {text!r:.60} takes {len(head)} tokens, which leaves no room for text within "
                f"max_length={self.max_length}. Shorten the instruction or raise max_length."
            )
        user = head + body[:room]
        ids = frame.before + user + frame.after
        spans = {
            "system": frame.system,
            "user": (len(frame.before), len(frame.before) + len(user)),
            "assistant": (len(ids) - frame.assistant, len(ids)),
        }
        if frame.assistant:
            spans["embed"] = (len(ids) - 1, len(ids))
        return Rendered(ids, spans, max(0, len(body) - room))

    def _check_undecided(self) -> None:
        """Raises ValueError for a profile that does not say how prompts are tokenised, where that gives other ids."""
        for name in TEMPLATES:
            _, before, after, reply = self.frame_maker.texts(name)
            frame, text = self._frames[name], "The storm moved over 12 hills."
            whole = [*self.frame_maker.leading_ids(), *encoded(self.tokenizer, before + text + after + reply)[0]]
            apart = [*frame.before, *self.tokenize_text([text])[0], *frame.after]
            if apart != whole:
                raise ValueError(
                    f"{PROFILE_FILE} does not say how prompts are tokenised, and with this tokenizer that matters: "
                    f"{text!r} in the {name!r} template has {len(whole)} tokens as one text, {len(apart)} others "
                    'where text and template are tokenised apart. Write "tokenization": "whole" into it for a model '
                    'that was trained elsewhere, "apart" for one that was trained with a version of this package '
                    "without that key."
                )

    def control_ids(self, text: str) -> list[int]:
        """Ids of the template's own text, in which markers are markers."""
        return self.frame_maker.control_ids(text)


def _trimmed(head: str, text: str, characters: tuple[str, str]) -> tuple[str, str]:
    """An instruction and a text without what the template takes from the two ends of both together."""
    left, right = characters
    kept = (head + text).lstrip(left)
    border = max(0, len(kept) - len(text))
    kept = kept.rstrip(right)
    return kept[:border], kept[border:]
