"""An ordinary causal LM becomes a reason-then-embed checkpoint: the token, the profile, and nothing else is changed."""

import gc
import shlex
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from search_r3_mteb.atomic import replaced_folder, write_json
from search_r3_mteb.encoder import checkpoints, model_names
from search_r3_mteb.encoder.adapters import ADAPTER_CONFIG
from search_r3_mteb.encoder.chat_templates import TemplateFacts, facts, has_template, wrap
from search_r3_mteb.encoder.checkpoints import Checkpoint, Dtype
from search_r3_mteb.encoder.family import known_tokens
from search_r3_mteb.encoder.manifest import check_files
from search_r3_mteb.encoder.profiles import DATE, EMBED_TOKEN, PLAIN, PROFILE_FILE, Profile, named_profile
from search_r3_mteb.encoder.prompts import Renderer
from search_r3_mteb.encoder.special_tokens import list_special_tokens, shown_tokens

RECORD_FILE = "search_r3_init.json"  # what was found; it marks the folder as one that may be written again


@dataclass(frozen=True)
class Initialised:
    """What was found in the base, what was decided, and the new checkpoint's folder.

    `rows` is the height of the embedding matrix before, `used` how many rows the tokenizer had a token for. `row` says
    where the token's row came from: "free" (padding), "new" (the matrix grew) or "known" (the base had the token).
    """

    folder: Path
    base: str
    architecture: str
    parameters: int
    dtype: str
    profile: Profile
    template: TemplateFacts | None
    token_id: int
    row: str
    rows: int
    used: int
    tied: bool
    special_tokens: tuple[str, ...]
    dim: int

    def lines(self) -> list[tuple[str, str]]:
        """Pairs of a name and what was found, for people."""
        where = {
            "free": f"free row {self.token_id} of {self.rows:,}, of which {self.used:,} were used; set to their mean",
            "new": f"row {self.token_id}: all {self.rows:,} rows were used, the matrix was enlarged",
            "known": f"row {self.token_id}, which the base had; it was left as it is",
        }[self.row]
        found = [
            (
                "base",
                f"{self.base}, {self.architecture}, {self.parameters / 1e6:,.2f} million parameters, {self.dtype}",
            ),
            ("embed token", f"{self.profile.embed_token}, {where}"),
            ("input and output", "tied: one row is both" if self.tied else "untied: both matrices have the row"),
            ("special tokens", shown_tokens(self.special_tokens)),
        ]
        return [*found, *self._template_lines()]

    def next_steps(self) -> list[str]:
        """What was written, that it is untrained, and the commands that train it."""
        folder = shlex.quote(str(self.folder))
        token = self.profile.embed_token
        state = "but it is untrained: nothing has taught it to say the token, and its vectors rank badly."
        if self.row == "known":
            state = f"under Search-R3's prompts; whether the base says {token} under them is not known."
            state += known_tokens([token])
        return [
            f"Written to {self.folder}: {self.dim} dimensions. It encodes now, {state}",
            f"Next: python train/sft.py --config CONFIG.toml --set model.path={folder}",
            "      python train/rl.py --config CONFIG.toml --set model.path=(the folder that stage 1 wrote)",
        ]

    def _template_lines(self) -> list[tuple[str, str]]:
        if self.template is None:
            return [("chat template", "none: the layout 'plain' of the profile is used")]
        thinking = {
            None: "no known tag",
            "switch": f"{self.template.tag or 'a switch'}: switched off (enable_thinking)",
            "open": f"the template always opens {self.template.tag}: closed at once",
        }[self.template.thinking]
        return [
            ("chat template", "yes"),
            (
                "system role",
                "yes" if self.template.system_role else "none: the system prompt stands in the user's turn",
            ),
            ("thinking", thinking if self.template.thinking is None else f"{thinking}; 'thinking' in {PROFILE_FILE}"),
            (
                "date",
                f"the template prints today's: fixed to {self.profile.date}; 'date' in {PROFILE_FILE}"
                if self.template.prints_date
                else "none",
            ),
        ]


def initialise(
    base: str | Path,
    output: str | Path,
    *,
    embed_token: str | None = None,
    dtype: Dtype = "auto",
    profile: Profile | None = None,
) -> Initialised:
    """Write to `output` the causal LM `base` (a folder or hub id) with an embed token and a profile.

    A free row of a padded vocabulary is used before the matrix is enlarged; the token starts at the mean of the used
    rows, and nothing is trained. What the template leaves to the moment is decided in the profile (our choices): the
    date is `DATE`, and thinking is off, because a query's reasoning is the reply itself. The folder is complete or
    absent; it is read again and one text embedded before it takes its place. `dtype` "auto" keeps the base's. `profile`
    takes the place of Search-R3's own, and `embed_token` that of the profile's token.

    Raises FileNotFoundError for a base that is not there; ValueError for one that is a checkpoint already or an
    adapter, for a token that cannot be one, and for an `output` that exists and is not an earlier result.
    """
    dtype, target = checkpoints.check_dtype(dtype), Path(output).absolute()
    profile = Profile() if profile is None else profile
    embed_token = profile.embed_token if embed_token is None else embed_token
    folder = model_names.resolve(base).absolute()  # "." has no name, and messages need one
    _check_places(folder, target)
    check_files(folder)
    tokenizer = checkpoints.load_tokenizer(folder, False)
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"{folder.name}: {type(tokenizer).__name__} is slow; a fast tokenizer.json is needed.")
    special = tuple(list_special_tokens(tokenizer))
    known = _check_token(tokenizer, embed_token)
    template, profile = profile_for(tokenizer, replace(profile, embed_token=embed_token))
    model = checkpoints.load_model(folder, dtype, False)
    rows, used = model.get_input_embeddings().weight.shape[0], len(tokenizer)
    token_id = checkpoints.add_embed_token(model, tokenizer, embed_token)
    row = "new" if token_id >= rows else "known" if known else "free"
    checkpoint = Checkpoint(model, tokenizer, profile, str(base))
    _check_room(checkpoint)
    head = model.get_output_embeddings()
    done = Initialised(
        folder=Path(output),
        base=model_names.display_name(str(base), folder),
        architecture=type(model).__name__,
        parameters=sum(each.numel() for each in model.parameters()),
        dtype=str(model.dtype).removeprefix("torch."),
        profile=profile,
        template=template,
        token_id=token_id,
        row=row,
        rows=rows,
        used=used,
        tied=head is not None and head.weight is model.get_input_embeddings().weight,
        special_tokens=special,
        dim=0,
    )
    with replaced_folder(target) as unfinished:
        checkpoints.save(checkpoint, unfinished)
        del checkpoint, model, head  # the weights are read again, and two copies need twice the memory
        gc.collect()
        done = replace(done, dim=_try(unfinished, token_id))
        write_json(unfinished / RECORD_FILE, _record(done))
    return done


def profile_for(tokenizer: Any, profile: Profile) -> tuple[TemplateFacts | None, Profile]:
    """What the tokenizer's chat template does, and the profile with everything decided that both leave open."""
    if not has_template(tokenizer, profile):
        return None, profile if profile.plain is not None else replace(profile, plain=PLAIN)
    found = facts(tokenizer)
    wrap(tokenizer, profile, profile.reason.system)  # refuses what would be refused once the weights are read
    thinking, date = False if found.thinking else None, DATE if found.prints_date else None
    thinking = thinking if profile.thinking is None else profile.thinking
    return found, replace(profile, thinking=thinking, date=profile.date or date)


def profile_of(folder: Path, tokenizer: Any, name: str | None) -> Profile:
    """The profile in the folder; for a base without one Search-R3's own, or another package's of that name.

    Raises ValueError for a name where the folder has a profile.
    """
    if not (folder / PROFILE_FILE).exists():
        return profile_for(tokenizer, Profile() if name is None else named_profile(name))[1]
    if name is not None:
        raise ValueError(
            f"The profile {name!r} would have no effect: {folder.name} has its own, {PROFILE_FILE}. Leave it out, or "
            "begin from a base without one."
        )
    return Profile.load(folder)


def _check_places(folder: Path, target: Path) -> None:
    if (folder / ADAPTER_CONFIG).exists():
        raise ValueError(
            f"{folder.name} is a LoRA adapter; a whole model is needed. Merge it into its base first, or give the base."
        )
    if (folder / PROFILE_FILE).exists():
        raise ValueError(
            f"{folder.name} has a {PROFILE_FILE}: it is a reason-then-embed checkpoint already. Use it as it is, or "
            "train it further."
        )
    if target.exists() and not target.is_dir():
        raise ValueError(f"The output {target} is a file; name a folder.")
    if folder.resolve() == target.resolve() or target.resolve() in folder.resolve().parents:
        raise ValueError(
            f"The output {target} holds the base {folder.name}, which would be replaced. Name another one."
        )
    if target.exists() and any(target.iterdir()) and not (target / RECORD_FILE).exists():
        raise ValueError(
            f"The output {target} exists and was not written by `search-r3 init` (it has no {RECORD_FILE}), so its "
            "content would be lost. Name another folder, or remove it."
        )


def _check_token(tokenizer: Any, token: str) -> bool:
    """Whether the tokenizer has the token already; ValueError for one that cannot be the embed token."""
    if not token.strip() or token != token.strip():
        raise ValueError(
            f"The embed token {token!r} is empty or begins or ends with white space; name it like <embed>."
        )
    known = token in tokenizer.get_vocab()
    if known and token not in tokenizer.get_added_vocab():
        raise ValueError(
            f"The embed token {token!r} is an ordinary word of this vocabulary, so texts would hold it. Name a token "
            f"of its own, such as {EMBED_TOKEN}."
        )
    duty = next(
        (f"is this tokenizer's {name}" for name, each in tokenizer.special_tokens_map.items() if each == token), None
    )
    if duty is None and token in str(tokenizer.chat_template or ""):
        duty = "stands in the chat template"
    if duty is not None:
        raise ValueError(f"The embed token {token!r} {duty}, so it has another task. Name a token of its own.")
    return known


def _check_room(checkpoint: Checkpoint) -> None:
    """Raises ValueError when the prompts leave no room for a text in the model's window."""
    renderer = Renderer(checkpoint.tokenizer, checkpoint.profile, checkpoint.window or 2**31)
    renderer.check_room("reason", "direct")


def _try(folder: Path, token_id: int) -> int:
    """Load the folder and embed one text; returns the vectors' dimension. ValueError when it is not what was meant."""
    from search_r3_mteb.encoder.encoder import SearchR3Encoder

    encoder = SearchR3Encoder(checkpoints.load(folder, device="cpu"), mode="direct", show_progress_bar=False)
    vector = encoder.encode_document(["A farmer grows wheat in the valley."])[0]
    if encoder.checkpoint.embed_token_id != token_id or not np.isfinite(vector).all():
        raise ValueError(
            f"The new checkpoint does not embed: the token has id {encoder.checkpoint.embed_token_id} after loading "
            f"({token_id} when it was added), finite values {int(np.isfinite(vector).sum())} of {len(vector)}. Nothing "
            "was written; check the base's tokenizer and weights."
        )
    return len(vector)


def _record(done: Initialised) -> dict[str, Any]:
    beside = ("folder", "profile")  # the one is where it stands, the other a file of its own
    return {name: value for name, value in asdict(done).items() if name not in beside}
