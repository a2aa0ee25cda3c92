"""Settings of the model that is trained: where it comes from, its adapter, or the shape of a model from nothing."""

from typing import Annotated, Literal

from pydantic import Field

from search_r3_mteb.extensions import PROFILES, Extension
from train.config.settings import Count, Names, Positive, Settings, Share, StrictBool

ProfileName = Annotated[str, Field(strict=True), Names(PROFILES)]


class LoraSettings(Settings):
    """Low-rank adapters (arXiv 2106.09685) through peft; absent = every weight is trained."""

    rank: Count = 16
    """Rank of the update. Our choice: peft's example value; the paper names none."""
    alpha: Positive = 32.0
    """The update is scaled by alpha / rank. Our choice: twice the rank, the usual pairing."""
    dropout: Share = 0.0
    """Dropout before the adapter. Our choice: 0, so that a policy's log-probabilities equal the sampler's."""
    target_modules: tuple[str, ...] = ("all-linear",)
    """Module names that get an adapter. Our choice: every linear layer, as in QLoRA (arXiv 2305.14314)."""
    train_embed_token: StrictBool = True
    """Train the embed token's own rows (embedding, and a head of its own) beside the adapter. Our choice: a new token
    without training stays noise, and without the head's row it is never said."""

    def check(self) -> None:
        """An adapter has at least one module."""
        if not self.target_modules:
            raise ValueError(
                'target_modules is empty, so nothing would be trained. Set target_modules = ["all-linear"].'
            )


class ScratchSettings(Settings):
    """The shape of a Qwen2 causal LM with random weights: how the bundled nano model begins."""

    hidden_size: Count = 128
    """Width, also the dimension of the vectors. Our choice: the smallest that learns hopworld in minutes."""
    intermediate_size: Count = 512
    """Width inside the feed-forward layers. Our choice: four times the width, as in GPT-2."""
    layers: Count = 4
    """Number of blocks. Our choice: enough for a lookup after a lookup."""
    heads: Count = 4
    """Attention heads; must divide hidden_size. Our choice: heads of 32."""
    key_value_heads: Count = 4
    """Heads of keys and values; must divide heads. Our choice: no sharing at this size."""

    def check(self) -> None:
        """Attention splits the width evenly."""
        if self.hidden_size % self.heads:
            raise ValueError(
                f"heads = {self.heads} does not divide hidden_size = {self.hidden_size}: heads have equal width."
            )
        if self.heads % self.key_value_heads:
            raise ValueError(f"key_value_heads = {self.key_value_heads} does not divide heads = {self.heads}.")


class ModelSettings(Settings):
    """The model that is trained."""

    path: str | None = None
    """Folder, bundled name or hub id of the model to start from. The paper's: Qwen2.5-1.5B-Instruct [P]."""
    revision: str | None = None
    """Commit of a hub id. Our choice: absent is the newest, pin it for a result that is published."""
    scratch: ScratchSettings | None = None
    """Instead of `path`: random weights of this shape. Our choice: only nano uses it."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the weights. "auto": float32 where every weight is trained, else the checkpoint's; bfloat16 is for the
    frozen weights under an adapter, which itself is float32. Our choice: no float16, its range overflows in training: a
    checkpoint in float16 is trained in float32."""
    gradient_checkpointing: StrictBool = False
    """Recompute activations in backward (arXiv 1604.06174): less memory, a third more time. Our choice: off."""
    trust_remote_code: StrictBool = False
    """Run the checkpoint's own Python. Our choice: off, a model folder is not code that you have read."""
    verify: StrictBool = False
    """Compare the weights, too, with the folder's manifest, which it must have. Our choice: off, it reads them twice;
    sizes, and all other files, are always compared where there is one."""
    profile: ProfileName | None = None
    """Prompts of a base without search_r3.json: a profile of another package (docs/extend.md). Our choice: absent is
    Search-R3's own."""
    freeze: tuple[str, ...] = ()
    """Endings of the names of parameters that are not trained. Our choice: none; mini freezes the word embeddings,
    which its head shares: the reply's gradient moves every row at every step, and with them all vectors."""
    lora: LoraSettings | None = None
    """Adapter instead of full fine-tuning. Our choice: absent, the paper trains all weights as far as is known [S]."""

    @property
    def own_profile(self) -> Extension | None:
        """The profile of another package that this model begins with."""
        return None if self.profile is None else PROFILES.find(self.profile)

    def check(self) -> None:
        """Exactly one origin; an adapter needs weights that mean something."""
        if self.path is None and self.scratch is None:
            raise ValueError(
                "neither path nor scratch is set, so there are no weights. Set path to a folder or hub id."
            )
        if self.path is not None and self.scratch is not None:
            raise ValueError(
                "path and scratch exclude each other: weights are loaded or random. Remove path or [model.scratch]."
            )
        if self.scratch is not None and self.lora is not None:
            raise ValueError(
                "scratch and lora exclude each other: LoRA freezes the base, and a random frozen base never learns. "
                "Remove [model.lora] to train every weight."
            )
        if self.dtype == "bfloat16" and self.lora is None:
            raise ValueError(
                'dtype = "bfloat16" with every weight trained: it has 8 bits of precision, an update below 1/256 of a '
                'weight is rounded away, and the model silently learns nothing. Set dtype = "float32" (and '
                'optimization.mixed_precision = "bf16" to compute in it), or add [model.lora].'
            )
        if self.freeze and self.lora is not None:
            raise ValueError("freeze and lora exclude each other: an adapter trains nothing but itself. Remove freeze.")
        if self.scratch is not None and self.verify:
            raise ValueError("verify compares a folder's files, but the weights come from scratch. Remove verify.")
        if self.scratch is not None and self.profile is not None:
            raise ValueError("profile belongs to a base, but the weights come from scratch. Remove profile.")
        if self.scratch is not None and self.revision is not None:
            raise ValueError("revision belongs to a hub id, but the weights come from scratch. Remove revision.")
