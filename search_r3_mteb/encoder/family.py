"""Reason-then-embed models and their like: how each is read, where that is known from, and what can be run here."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from search_r3_mteb.encoder.profiles import PROFILE_FILE, Profile

Sureness = Literal["authors", "partly"]
"""Read in the authors' own files, or only a part of those could be read."""


@dataclass(frozen=True)
class FamilyMember:
    """A published model or method.

    `token` is the token at which it is read, None where there is none; `profile` is given when it can be run here, and
    `reason` says why not when it cannot. `read_out` is how its authors get a vector.
    """

    name: str
    checkpoints: tuple[str, ...]
    token: str | None
    read_out: str
    source: str
    sureness: Sureness
    profile: Profile | None = None
    reason: str = ""


_PROMPTS_UNKNOWN = (
    "its prompts are not known to us, and other prompts give other vectors: write those of its card into "
    f"{PROFILE_FILE} beside the weights"
)

FAMILY = (
    FamilyMember(
        name="Search-R3",
        checkpoints=("ytgui/Search-R3.0-Small", "ytgui/Search-R3.0-Large"),
        token=Profile().embed_token,
        read_out="the query reasons, then says the token; documents are a direct turn that ends with it; last state",
        source="arXiv 2510.07048; model card and example of ytgui/Search-R3.0-Small (the direct reply: a summary)",
        sureness="authors",
        profile=Profile(),
    ),
    FamilyMember(
        name="MRE-T1",
        checkpoints=("ForwardAILabs/MRE-T1",),
        token="<emb_token>",
        read_out="the query reasons under a prompt of its task, then the token; Qwen3-4B-Instruct-2507, dimension 2560",
        source="the first part of the model card of ForwardAILabs/MRE-T1; the rest could not be read",
        sureness="partly",
        reason=_PROMPTS_UNKNOWN,
    ),
    FamilyMember(
        name="CRE-T1 (Thought 1)",
        checkpoints=("CITech/CRE-T1-SFT-preview-1202",),
        token="<emb_token>",
        read_out="the query reasons, then the token; a document is instruction, text and token",
        source="abstract of arXiv 2603.17387, with `<embtoken>`: the spelling may differ; first part of the card",
        sureness="partly",
        reason=_PROMPTS_UNKNOWN,
    ),
    FamilyMember(
        name="O1-Embedder",
        checkpoints=(),
        token="<emb>",
        read_out=(
            "`<query>TEXT</query><thought>`, a sampled thought, the end token, then the token; the mean of three such "
            "vectors; a document is its text and the token"
        ),
        source="arXiv 2502.07555; `modeling_o1embedder.py` and `o1/dataset.py` in github.com/RuiranYan/o1embedder",
        sureness="authors",
        reason=(
            "a profile has one layout for both templates, and one vector per query, not the mean of several; no "
            "weights are published that we know of"
        ),
    ),
    FamilyMember(
        name="GRACE",
        checkpoints=(),
        token=None,
        read_out="queries and documents reason; the mean of all last states behind the system prompt",
        source="arXiv 2510.04506; `eval_mteb.py` in github.com/GasolSun36/GRACE",
        sureness="authors",
        reason="there is no embed token: the vector is a mean over the sequence",
    ),
    FamilyMember(
        name="ReasonEmbed",
        checkpoints=("hanhainebula/reason-embed-qwen3-8b-0928", "hanhainebula/reason-embed-llama-3.1-8b-0928"),
        token=None,
        read_out="no reasoning at inference: instruction and query in one pass, last-token pooling (FlagLLMModel)",
        source="arXiv 2510.08252; the first part of the model cards",
        sureness="partly",
        reason="it does not reason: it is an ordinary encoder, for FlagEmbedding or sentence-transformers",
    ),
    FamilyMember(
        name="UME-R1",
        checkpoints=("zhibinlan/UME-R1-2B", "zhibinlan/UME-R1-7B"),
        token="<gen_emb>",
        read_out="text, images or video, `<disc_emb>`, then the instruction; thinking, a summary, then the token",
        source="arXiv 2511.00405; README of github.com/XMUDeepLIT/UME-R1",
        sureness="authors",
        reason="a vision-language model, and its instruction stands behind the text; MTEB has an implementation",
    ),
    FamilyMember(
        name="LREM",
        checkpoints=(),
        token=None,
        read_out="the query reasons, then an embedding is produced; by which token is not known to us",
        source="abstract of arXiv 2510.14321",
        sureness="partly",
        reason="no weights are published that we know of",
    ),
)


def known_tokens(tokens: Sequence[str]) -> str:
    """A sentence for a message about those of `tokens` that belong to a member which needs a profile; or nothing."""
    found = [member for member in FAMILY if member.profile is None and member.token in tokens]
    if not found:
        return ""
    token = found[0].token
    same = [member for member in found if member.token == token]
    return f" {token} is the token of {' and '.join(member.name for member in same)}: {same[0].reason}."
