"""Search-R3 as a transformers model type, so that sentence-transformers' own modules run it.

The model's forward takes prompts and returns, at each row's last real position, the vector at the embed token: after
reasoning where the prompt leaves the assistant's turn open, directly where it ends in the token. Both go through the
engine, so the vectors are those of `SearchR3Encoder`.

Gradients: a direct prompt is differentiable (an ordinary forward of the backbone). Reasoning draws tokens, through
which no gradient flows; in training mode it is refused rather than silently detached (our choice).
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from search_r3_mteb.encoder.architecture import Architecture, first_position, positions_of
from search_r3_mteb.encoder.engine import Engine
from search_r3_mteb.encoder.folders import EXPORT_TYPE
from search_r3_mteb.encoder.manifest import check_files
from search_r3_mteb.encoder.sampling import Sampling

# The few lines that travel with a folder, for processes that never import this package.
CODE_FILE = Path(__file__).with_name("modeling_search_r3.py")
AUTO_MAP = {"AutoConfig": "modeling_search_r3.SearchR3Config", "AutoModel": "modeling_search_r3.SearchR3Model"}


class SearchR3Config(PreTrainedConfig):
    """A causal LM's configuration and reasoning settings. `batch_tokens` and `batch_invariant` are the encoder's.

    `reasoning_temperature` 0 is greedy (transformers refuses plain `temperature`, a generation setting, here).
    `backbone_config` is the causal LM's own configuration, of any model type. `anchor`: see `encoder/anchoring.py`;
    `frames` are then the token ids before and after a text in both prompts, by which one is made of the other.
    """

    model_type = EXPORT_TYPE
    sub_configs = {"backbone_config": AutoConfig}  # noqa: RUF012  # transformers' own form

    def __init__(  # noqa: PLR0913  transformers' own form
        self,
        backbone_config: dict[str, Any] | PreTrainedConfig | None = None,
        embed_token_id: int | None = None,
        stop_token_ids: list[int] | None = None,
        max_reasoning_tokens: int = 256,
        reasoning_temperature: float = 0.0,
        reasoning_seed: int = 0,
        batch_tokens: int = 16384,
        batch_invariant: bool = False,
        anchor: float | None = None,
        frames: dict[str, Sequence[Sequence[int]]] | None = None,
        **keywords: Any,
    ) -> None:
        if isinstance(backbone_config, dict):
            backbone_config = AutoConfig.for_model(**backbone_config)
        self.backbone_config = backbone_config
        self.embed_token_id = embed_token_id
        self.stop_token_ids = list(stop_token_ids or [])
        self.max_reasoning_tokens = max_reasoning_tokens
        self.reasoning_temperature = reasoning_temperature
        self.reasoning_seed = reasoning_seed
        self.batch_tokens = batch_tokens
        self.batch_invariant = batch_invariant
        self.anchor = anchor
        self.frames = None if frames is None else {name: list(map(list, ids)) for name, ids in frames.items()}
        super().__init__(**keywords)
        self.auto_map = dict(AUTO_MAP)  # a folder that came from a hub has the hub's name in front of each

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Do nothing: transformers would copy this package's source into every folder; we copy `CODE_FILE`."""


class SearchR3Model(PreTrainedModel):
    """A causal LM that returns vectors for prompts; see the module's docstring."""

    config_class = SearchR3Config
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: SearchR3Config) -> None:
        super().__init__(config)
        self.causal = AutoModelForCausalLM.from_config(config.backbone_config)
        self.post_init()

    def get_input_embeddings(self) -> Any:
        """The input embeddings of the causal LM."""
        return self.causal.get_input_embeddings()

    def set_input_embeddings(self, value: Any) -> None:
        """Replace the input embeddings of the causal LM."""
        self.causal.set_input_embeddings(value)

    def forward(
        self,
        input_ids: Int[Tensor, "rows positions"],
        attention_mask: Int[Tensor, "rows positions"] | None = None,
        max_reasoning_tokens: int | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutput:
        """`last_hidden_state` (rows, positions, dim); at a row's last real position is its vector, not normalised.

        Padding may be on either side. Without gradients every position of a row repeats its vector.
        `max_reasoning_tokens` replaces the configured budget of the rows that reason; direct rows never do. Raises
        ValueError for reasoning in training mode, prompts beyond the backbone's window, and vectors without direction.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        # One transfer for all rows; one per row would wait for the device each time.
        ids, real = input_ids.cpu(), mask.cpu().bool()
        prompts: list[list[int]] = [ids[row][real[row]].tolist() for row in range(len(ids))]
        direct = [bool(prompt) and prompt[-1] == self.config.embed_token_id for prompt in prompts]
        if torch.is_grad_enabled() and all(direct):
            self._check_window(prompts, [], 0)
            states = self._hidden_states(input_ids, mask)
        else:
            if torch.is_grad_enabled() and self.training:
                raise ValueError(
                    "A prompt with an open assistant's turn reached this model in training mode: reasoning draws "
                    "tokens, through which no gradient flows. sentence-transformers trains direct vectors (no task, or "
                    "task='document'); for queries with reasoning use `python train/sft.py` and `python train/rl.py`."
                )
            vectors = self._vectors(prompts, direct, max_reasoning_tokens).to(input_ids.device)
            states = vectors[:, None, :].expand(-1, input_ids.shape[1], -1)
        output = BaseModelOutput(last_hidden_state=states)
        return output.to_tuple() if return_dict is False else output

    def save_pretrained(self, save_directory: Any, *arguments: Any, **keywords: Any) -> None:
        """Save as transformers does, with the file that makes the folder load with `trust_remote_code=True`."""
        super().save_pretrained(save_directory, *arguments, **keywords)
        shutil.copyfile(CODE_FILE, Path(save_directory) / CODE_FILE.name)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *arguments: Any, **keywords: Any) -> Any:
        """Load as transformers does. Raises ValueError for a folder that differs from its manifest."""
        if pretrained_model_name_or_path is not None and Path(pretrained_model_name_or_path).is_dir():
            check_files(Path(pretrained_model_name_or_path))
        return super().from_pretrained(pretrained_model_name_or_path, *arguments, **keywords)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Do nothing, as in `SearchR3Config`."""

    def _vectors(
        self, prompts: list[list[int]], direct: list[bool], max_reasoning_tokens: int | None
    ) -> Float[Tensor, "rows dim"]:
        """Vectors of all prompts through the engine, float32, on the CPU."""
        config = self.config
        # A new one for each call: the engine is light, and the model may have moved to another device.
        engine = Engine(
            self.causal,
            config.embed_token_id,
            tuple(config.stop_token_ids),
            token_budget=config.batch_tokens,
            batch_invariant=config.batch_invariant,
        )
        sampling = Sampling(
            config.max_reasoning_tokens if max_reasoning_tokens is None else max_reasoning_tokens,
            config.reasoning_temperature,
            config.reasoning_seed,
        )
        thinking = [row for row, done in enumerate(direct) if not done]
        settled = [row for row, done in enumerate(direct) if done]
        self._check_window(prompts, thinking, sampling.max_reasoning_tokens)
        vectors = torch.empty(len(prompts), engine.dim)
        if settled:
            vectors[settled] = engine.embed([prompts[row] for row in settled])
        if thinking:
            vectors[thinking] = engine.reason([prompts[row] for row in thinking], sampling).vectors
            if config.anchor is not None:
                direct_ones = engine.embed([self._direct_prompt(prompts[row]) for row in thinking])
                units = (torch.nn.functional.normalize(each.double()) for each in (direct_ones, vectors[thinking]))
                vectors[thinking] = (next(units) + config.anchor * next(units)).float()
        norms = vectors.norm(dim=1)
        bad = (~(norms.isfinite() & (norms > 0))).nonzero()[:, 0].tolist()
        if bad:
            raise ValueError(
                f"The vectors of rows {bad[:5]} ({len(bad)} in all) are not finite or zero, so they have no direction. "
                f"The weights or the dtype ({self.dtype}) are at fault: load with "
                "model_kwargs={'dtype': 'float32'} and look again."
            )
        return vectors

    def _direct_prompt(self, prompt: list[int]) -> list[int]:
        """The direct prompt of the text in a prompt that leaves the assistant's turn open."""
        before, after = self.config.frames["reason"]
        end = len(prompt) - len(after)
        if prompt[: len(before)] != before or prompt[end:] != after:
            raise ValueError(
                f"The anchor {self.config.anchor} needs the direct prompt of a text as well, but this text has joined "
                "a token of the template around it, so that its own tokens are not known. Strip white space and "
                "punctuation from its ends, or use SearchR3Encoder."
            )
        first, last = self.config.frames["direct"]
        return [*first, *prompt[len(before) : end], *last]

    def _hidden_states(
        self, input_ids: Int[Tensor, "rows positions"], mask: Int[Tensor, "rows positions"]
    ) -> Float[Tensor, "rows positions dim"]:
        """The backbone's final-norm states, with gradients. Positions count real tokens, as in the engine."""
        positions = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
        architecture = Architecture(self.causal)
        output = architecture.backbone(
            input_ids=input_ids, attention_mask=mask, use_cache=False, **architecture.inputs(positions)
        )
        return output.last_hidden_state

    def _check_window(self, prompts: list[list[int]], thinking: list[int], budget: int) -> None:
        window = positions_of(self.config.backbone_config)
        if window is None:
            return
        needed = max(
            [len(prompt) for prompt in prompts] + [len(prompts[row]) + budget + 1 for row in thinking], default=0
        )
        window -= first_position(self.causal)
        if needed > window:
            raise ValueError(
                f"A prompt needs {needed} positions with its reasoning (max_reasoning_tokens={budget}) and embed "
                f"token, but the backbone was made for {window}. Lower max_reasoning_tokens or max_seq_length."
            )
