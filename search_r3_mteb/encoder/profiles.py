"""Profiles of checkpoints: embed token, system prompts and replies.

A *profile* is data beside the weights (`search_r3.json`), so that other reason-then-embed models can be described
without code; a folder without one gets Search-R3's own.
"""

import json
import reprlib
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal, get_args

from search_r3_mteb.encoder.anchoring import check_anchor
from search_r3_mteb.extensions import PROFILES
from search_r3_mteb.json_files import kind, read_json

PROFILE_FILE = "search_r3.json"
EMBED_TOKEN = "<|embed_token|>"  # released tokenizer

# The two prompts of the released file, unchanged: both begin and end with a newline.
DIRECT_PROMPT = (
    "\nYou are a helpful AI assistant. Your task is to analyze input text and create a high-quality semantic vector "
    "embedding, which represents key concepts, relationships, and semantic meaning.\n"
)
REASON_PROMPT = """
You are a helpful AI assistant. Your task is to enrich user input for more effective embedding representation by \
adding semantic depth.
For each input, briefly enhance the content by:
1. Identifying core concepts and their relationships.
2. Including key terminology with essential definitions.
3. Adding contextually relevant synonyms and related terms.
4. Connecting to related topics and common applications without excessive elaboration.
To represent the final embedding, you MUST end every response with {embed_token}.
"""

TemplateName = Literal["reason", "direct"]
Tokenization = Literal["whole", "apart"]
TEMPLATES: tuple[TemplateName, ...] = ("reason", "direct")
DATE = "2025-10-08"  # our choice: the day of the paper's first version (arXiv 2510.07048)
PLAIN = "{system}\n\n{text}\n\n"  # our choice, for base models that have no chat template


@dataclass(frozen=True)
class Template:
    """A system prompt and a reply, with the slots `{embed_token}` and, in the reply, `{reasoning}`."""

    system: str
    reply: str


@dataclass(frozen=True)
class Profile:
    """The texts with which a checkpoint is prompted.

    `plain` is the prompt of a model without a chat template, with the slots `{system}` and `{text}`; None means that
    the tokenizer's chat template is used where it has one, and `PLAIN` where it has none. `instruction` precedes the
    user's text when a task gives one; its slot is `{instruction}`. `thinking` is given to the chat template as
    `enable_thinking`, and false also closes a thinking block that the template leaves open; None leaves the template's
    own default. `date` (year-month-day) is the day that the template sees as today; None is `DATE`.

    `tokenization` "whole" gives the ids of the rendered prompt tokenised as one text, as models that were trained
    elsewhere read it. "apart" tokenises the user's text alone, as earlier versions of this package did. None stands for
    a file of such a version, which does not say: it is read "apart", and refused where that gives other ids.

    `anchor` is recommended for queries that reason, see `anchoring`: an encoder whose own is "auto" takes it.
    """

    embed_token: str = EMBED_TOKEN
    reason: Template = Template(REASON_PROMPT, "{reasoning}{embed_token}")
    # The assistant's turn of stage 1 (arXiv 2510.07048), as quoted in a summary of the paper.
    direct: Template = Template(DIRECT_PROMPT, "The embedding is {embed_token}")
    instruction: str = "Instruct: {instruction}\nQuery: "  # our choice: the form that most instruction encoders share
    plain: str | None = None
    thinking: bool | None = None
    date: str | None = None
    tokenization: Tokenization | None = "whole"
    anchor: float | None = None

    def __post_init__(self) -> None:
        self._check_types()
        for name in TEMPLATES:
            reply = getattr(self, name).reply
            if reply.count("{embed_token}") != 1 or not reply.endswith("{embed_token}"):
                raise ValueError(
                    f"The {name} reply of a profile must end with '{{embed_token}}' and hold it once, got {reply!r}: "
                    "the vector is read at the last token of the sequence. Move the token to the end of the reply."
                )
        slots = (
            ("reason reply", self.reason.reply, ("{reasoning}",)),
            ("instruction", self.instruction, ("{instruction}",)),
            ("plain prompt", PLAIN if self.plain is None else self.plain, ("{system}", "{text}")),
        )
        for what, text, needed in slots:
            for slot in needed:
                if text.count(slot) != 1:
                    raise ValueError(
                        f"The {what} of a profile needs the slot {slot!r} exactly once, got {text!r}: what belongs "
                        "there would be lost or repeated."
                    )

    def _check_types(self) -> None:
        texts = {"embed_token": self.embed_token, "instruction": self.instruction}
        for name in TEMPLATES:
            texts |= {f"{name}.system": getattr(self, name).system, f"{name}.reply": getattr(self, name).reply}
        if self.plain is not None:
            texts["plain"] = self.plain
        if self.date is not None:
            texts["date"] = self.date
        wrong = next((name for name, text in texts.items() if not isinstance(text, str)), None)
        if wrong is not None:
            raise ValueError(f"{wrong!r} of a profile must be a text, got {reprlib.repr(texts[wrong])}.")
        if not self.embed_token.strip():
            raise ValueError(
                f"The embed token of a profile is empty, got {self.embed_token!r}; name the tokenizer's token."
            )
        if not isinstance(self.thinking, bool | None):
            raise ValueError(f"'thinking' of a profile must be true, false or null, got {reprlib.repr(self.thinking)}.")
        if self.date is not None:
            _check_date(self.date)
        if self.anchor is not None:
            try:
                check_anchor("anchor", self.anchor)
            except (TypeError, ValueError) as error:
                raise ValueError(f"'anchor' of a profile: {error}") from error
        if self.tokenization not in (*get_args(Tokenization), None):
            raise ValueError(f"'tokenization' of a profile must be 'whole' or 'apart', got {self.tokenization!r}.")

    @classmethod
    def default(cls) -> "Profile":
        """Search-R3's own profile."""
        return cls()

    @classmethod
    def load(cls, folder: Path | str) -> "Profile":
        """The profile in `folder`/search_r3.json, or Search-R3's own where the folder has none.

        Raises ValueError for a file that is not JSON, has unknown keys, or lacks a needed one.
        """
        path = Path(folder) / PROFILE_FILE
        if not path.exists():
            return cls.default()
        return cls.from_dict(read_json(path, "Repair the file or delete it to get the default."), str(path))

    @classmethod
    def from_dict(cls, data: Any, origin: str = PROFILE_FILE) -> "Profile":
        """A profile from its JSON form; absent keys keep Search-R3's values, but `tokenization` is then None."""
        known = sorted(cls.__dataclass_fields__)
        if not isinstance(data, dict):
            raise ValueError(f"{origin} must hold an object with the keys {', '.join(known)}, got {kind(data)}.")
        unknown = sorted(set(data) - set(known))
        if unknown:
            raise ValueError(
                f"{origin} holds {', '.join(map(repr, unknown))}, which no profile has. The valid keys are "
                f"{', '.join(known)}."
            )
        values: dict[str, Any] = {"tokenization": None} | data
        for name in TEMPLATES:
            if name in values:
                if not isinstance(values[name], dict) or set(values[name]) != {"system", "reply"}:
                    got = reprlib.repr(values[name])
                    raise ValueError(f"{origin}: {name!r} must hold 'system' and 'reply', got {got}.")
                values[name] = Template(**values[name])
        try:
            return cls(**values)
        except ValueError as error:
            raise ValueError(f"{origin}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, without what was not decided."""
        undecided = {name for name in ("thinking", "date", "tokenization", "anchor") if getattr(self, name) is None}
        return {name: value for name, value in asdict(self).items() if name not in undecided}

    def identity(self) -> dict[str, Any]:
        """The JSON form of what decides token ids; prompts as in earlier versions keep the identity that they had."""
        found = self.to_dict()
        found.pop("anchor", None)
        if self.tokenization != "whole":
            found.pop("tokenization", None)
        return found

    def save(self, folder: Path | str) -> None:
        """Write `folder`/search_r3.json."""
        (Path(folder) / PROFILE_FILE).write_text(self.to_text(), encoding="utf-8")

    def to_text(self) -> str:
        """The content of search_r3.json."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"


def named_profile(name: str) -> Profile:
    """The profile that another package brings under this name. Raises ExtensionError for none, or a broken one."""
    extension = PROFILES.find(name)
    found = extension()
    if not isinstance(found, Profile):
        raise extension.error(f"gave {kind(found)}, not a Profile")
    return found


def _check_date(text: str) -> None:
    try:
        if date.fromisoformat(text).isoformat() == text:
            return
    except ValueError:
        pass
    raise ValueError(f"'date' of a profile must be a day written as year-month-day ('{DATE}'), got {text!r}.")
