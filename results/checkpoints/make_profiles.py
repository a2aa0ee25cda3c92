"""The page about profiles: a complete search_r3.json, its keys, and the models of this kind.

    python results/checkpoints/make_profiles.py            # writes results/checkpoints/profiles.md

A test compares the page with what this gives, so neither the keys nor the models can go stale.
"""

import json
from dataclasses import fields
from pathlib import Path

from search_r3_mteb.encoder.family import FAMILY, FamilyMember
from search_r3_mteb.encoder.profiles import DATE, PLAIN, PROFILE_FILE, Profile

PAGE = Path(__file__).with_name("profiles.md")

KEYS = {
    "embed_token": "The token whose last hidden state is the vector. It must be one token of the tokenizer.",
    "reason": "A query that reasons. `system`: the system prompt, perhaps with `{embed_token}`. `reply`: what the "
    "model says, with `{reasoning}` once and `{embed_token}` once, at the end.",
    "direct": "A document, or a query without reasoning. `system` as above; `reply` ends with `{embed_token}` and is "
    "given, not generated.",
    "instruction": "What precedes the user's text when a task has an instruction; `{instruction}` once.",
    "plain": "The prompt of a model without a chat template, with `{system}` and `{text}` once each. null: the "
    f"tokenizer's chat template, or, where it has none, `{json.dumps(PLAIN)}`.",
    "thinking": "Given to the chat template as `enable_thinking` (and `thinking`). false also closes a thinking block "
    "that the template leaves open, as DeepSeek-R1's does. null: the template's own default.",
    "date": "The day, as year-month-day, that a template sees as today (`strftime_now`, `date_string`). null: "
    f"{DATE}, the day of the paper. A clock would change vectors and fingerprint at midnight.",
    "tokenization": "`whole`: token ids are those of the rendered prompt as one text, which is how a model trained "
    "elsewhere was prompted. `apart`: the user's text is tokenised by itself, as earlier versions of this package did; "
    "for a model trained with one of them. Absent: as `apart`, and refused where the two differ on an ordinary text. "
    "Without any file: `whole`.",
    "anchor": "The recommended weight of the reasoned vector in normalise(direct + anchor x reasoned), as `search-r3 "
    "tune --write-profile` has found it. null: the reasoned vector alone.",
}
SURENESS = {"authors": "from the authors' own files", "partly": "only partly: what could be read of them"}
BEFORE = f"""# Profiles

Written by `python results/checkpoints/make_profiles.py`; do not edit.

A *profile* says how a checkpoint is prompted and where its vector is read. It is the file `{PROFILE_FILE}` beside the
weights; `search-r3 init` writes one, and training keeps it. A key that is absent has the value of the file below, but
for `thinking`, `date` and `tokenization`, which are then null. The file is Search-R3's own profile, complete, with
thinking and date as `init` decides them for a chat template that has both.

"""
AFTER = """
A chat template without a system role (Gemma's refuses the message, others drop it) gets the system prompt in the user's
turn, before the text, with an empty line between; no key is needed. What the profile cannot say is refused by name when
the checkpoint is loaded.

## Models that reason and then embed, and their like

As far as their cards, code or papers could be read where this was written; what is not known is not guessed. A model
without a profile is not registered with MTEB. Where its token is in a tokenizer that has no profile beside it, the
error says what is missing.

"""


def page() -> str:
    """The whole page."""
    complete = Profile(thinking=False, date=DATE).to_dict() | {"anchor": None}
    names = [field.name for field in fields(Profile)]
    if list(KEYS) != names or list(complete) != names:
        raise ValueError(f"The keys explained here are {list(KEYS)}, those of a profile are {names}. Explain each one.")
    file = f"```json\n{json.dumps(complete, indent=2, ensure_ascii=False)}\n```\n"
    keys = _table(["key", "meaning"], [[f"`{name}`", text] for name, text in KEYS.items()])
    members = _table(["model", "token", "how it is read", "runs here", "source"], [_row(each) for each in FAMILY])
    return f"{BEFORE}{file}\n{keys}{AFTER}{members}"


def _row(member: FamilyMember) -> list[str]:
    runs = "yes, and is registered with MTEB" if member.profile else f"no: {member.reason}"
    where = f" ({', '.join(member.checkpoints)})" if member.checkpoints else ""
    token = f"`{member.token}`" if member.token else "none"
    source = f"{member.source}. How sure: {SURENESS[member.sureness]}"
    return [f"{member.name}{where}", token, member.read_out, runs, source]


def _table(head: list[str], rows: list[list[str]]) -> str:
    cells = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"Written to {PAGE}")
