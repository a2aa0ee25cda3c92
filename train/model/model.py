"""The model that is trained: loaded or random, with the embed token, perhaps an adapter, and its frozen base."""

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from search_r3_mteb.encoder import checkpoints, model_names
from search_r3_mteb.encoder.adapters import ADAPTER_CONFIG, quiet_peft
from search_r3_mteb.encoder.architecture import backbone_of
from search_r3_mteb.encoder.backbone import unwrap
from search_r3_mteb.encoder.checkpoints import Checkpoint
from search_r3_mteb.encoder.engine import Engine
from search_r3_mteb.encoder.head import Head
from search_r3_mteb.encoder.initialise import profile_of
from search_r3_mteb.encoder.manifest import check_files
from search_r3_mteb.encoder.merging import merged
from search_r3_mteb.encoder.prompts import Renderer
from search_r3_mteb.encoder.token_rows import layer_name, token_layers
from search_r3_mteb.json_files import read_object
from train.config.model import LoraSettings, ModelSettings
from train.model import scratch

log = logging.getLogger(__name__)
_HEADS = ("classifier", "summary")  # dropout of heads that a causal LM does not have


@dataclass(frozen=True)
class Hidden:
    """One forward of right-padded rows: final-norm states, and the state at each row's last token (the embed token)."""

    states: Float[Tensor, "rows length dim"]
    vectors: Float[Tensor, "rows dim"]


def prepare(config: ModelSettings, seed: int, device: str | torch.device = "cpu") -> Checkpoint:
    """The checkpoint to train, in training mode: `config.path` or random weights, with the embed token.

    What is trained is float32: an adapter always, and with every weight trained the whole model.
    With LoRA only the adapter and, where asked, the token's own rows are trainable (peft's `trainable_token_indices`):
    one of the embedding, which a tied head shares, and one of a head that has its own matrix. Where `config.path` is an
    adapter already, `adapter_start` says whether it is merged or trained further.
    """
    checkpoint = _load(config) if config.scratch is None else scratch.build(config.scratch, seed)
    make_trainable(checkpoint, config, seed)
    checkpoint.model.to(device).train()
    return checkpoint


def make_trainable(checkpoint: Checkpoint, config: ModelSettings, seed: int) -> None:
    """Float32 where it is trained, gradient checkpointing, frozen parameters and a new adapter, as the settings say.

    An adapter that was loaded stays.
    """
    widen(checkpoint, adapted=config.lora is not None)
    if config.gradient_checkpointing:
        recompute_activations(checkpoint.model)
        checkpoint.model.enable_input_require_grads()  # a frozen embedding gives no gradient to recompute from
    freeze(checkpoint.model, config.freeze)
    if config.lora is not None and not hasattr(checkpoint.model, "peft_config"):
        checkpoint.model = add_adapter(checkpoint, config.lora, seed)


def recompute_activations(model: PreTrainedModel) -> None:
    """Gradient checkpointing, under its name since transformers 5.24 where it has that: the older one warns there."""
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def widen(checkpoint: Checkpoint, *, adapted: bool) -> None:
    """Turn weights below float32 into float32, and say so, unless they are bfloat16 and frozen under an adapter.

    Updates would be rounded away (bfloat16), and gradients overflow or vanish (float16), also on their way through
    frozen weights.
    """
    narrow = {parameter.dtype for parameter in checkpoint.model.parameters() if parameter.dtype.itemsize < 4}
    if narrow - ({torch.bfloat16} if adapted else set()):
        found = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in narrow))
        log.warning(
            "%s has weights in %s. They are trained in float32, in as much more memory: updates would be rounded away.",
            checkpoint.name,
            found,
        )
        checkpoint.model.float()


def refuse_dropout(model: Any) -> None:
    """ValueError where the model's forward in training mode is random.

    In stage 2 the policy's log-probabilities would not be its sampler's, and noise would go into the corpus cache.
    """
    inner = unwrap(model)
    config = inner.config.get_text_config()
    found = {
        name: value
        for name, value in config.to_dict().items()
        if "drop" in name and not name.startswith(_HEADS) and isinstance(value, float) and value > 0
    }
    found |= {
        name: module.p for name, module in inner.named_modules() if isinstance(module, torch.nn.Dropout) and module.p
    }
    if found:
        name, value = next(iter(found.items()))
        raise ValueError(
            f"The model's {name} = {value}: stage 2 samples without dropout what it trains with dropout, so that its "
            "log-probabilities, and the vectors in the corpus cache, would be random. Set it to 0 in the checkpoint's "
            "config.json."
        )


def freeze(model: Any, names: Sequence[str]) -> None:
    """Switch training off for parameters whose name ends in one of `names`. ValueError for an ending that fits none."""
    for name in names:
        found = [parameter for known, parameter in model.named_parameters() if known.endswith(name)]
        if not found:
            raise ValueError(
                f"model.freeze: no parameter's name ends in {name!r}. There are, among others, "
                f"{', '.join([known for known, _ in model.named_parameters()][:4])}."
            )
        for parameter in found:
            parameter.requires_grad_(False)


def add_adapter(checkpoint: Checkpoint, config: LoraSettings, seed: int) -> Any:
    """The model with a LoRA adapter (arXiv 2106.09685); its matrices are drawn under `seed`.

    Raises ValueError for a token matrix among the target modules beside the token's own rows, and for a target that no
    module of the model is called.
    """
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    modules, causal = config.target_modules, checkpoint.model
    # Without the head's row the model could never say the token: reasoning would always run until it is cut.
    rows = {layer_name(causal, layer): [checkpoint.embed_token_id] for layer in token_layers(causal).values()}
    both = (causal.get_input_embeddings(), causal.get_output_embeddings())
    matrices = [layer_name(causal, layer) for layer in both if layer is not None]
    twice = [name for name in modules if any(f".{matrix}".endswith(f".{name}") for matrix in matrices)]
    if twice and config.train_embed_token:
        raise ValueError(
            f"lora.target_modules names {twice[0]}, and lora.train_embed_token trains the embed token's row of that "
            "matrix: peft has one adapter per layer. Remove it from target_modules, or set train_embed_token = false "
            "where the base has learnt the token."
        )
    layers = [name for name, module in causal.named_modules() if isinstance(module, torch.nn.Linear | Conv1D)]
    unknown = [name for name in modules if not any(f".{layer}".endswith(f".{name}") for layer in (*layers, *matrices))]
    if unknown and modules != ("all-linear",):
        known = sorted({layer.rpartition(".")[2] for layer in layers})
        raise ValueError(
            f"lora.target_modules names {unknown[0]!r}, but no linear layer of {type(causal).__name__} has that name. "
            f'It has {", ".join(known)}; or write ["all-linear"].'
        )
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=modules[0] if modules == ("all-linear",) else list(modules),
        trainable_token_indices=rows if config.train_embed_token else None,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(seed)
    with quiet_peft():
        return get_peft_model(checkpoint.model, lora)


def forward(model: Any, token_ids: Int[Tensor, "rows length"], lengths: Int[Tensor, " rows"]) -> Hidden:
    """Run right-padded rows through the model without its head.

    `model` may be wrapped (DDP, FSDP, peft): the wrapper's own forward is called, so that its hooks run, and a hook
    takes the backbone's output. Right padding needs no mask: under causal attention nothing before it sees it.
    """
    backbone = backbone_of(unwrap(model))
    caught: list[Tensor] = []
    handle = backbone.register_forward_hook(lambda module, args, output: caught.append(output.last_hidden_state))
    try:
        # One logit per row, which is not used: the head over whole rows would be rows x length x vocabulary.
        model(input_ids=token_ids, use_cache=False, logits_to_keep=1)
    finally:
        handle.remove()
    states = caught[0]
    if hasattr(model, "unshard") and states.requires_grad:
        # FSDP would gather the weights beside the layers again where the gradient reaches the logits, which is never.
        states.register_hook(lambda gradient: model.unshard())
    return Hidden(states, states[torch.arange(len(token_ids), device=states.device), lengths - 1])


@dataclass
class Base:
    """The model before this run trains it, for KL terms and frozen documents.

    Of an adapter the `start` is kept, and put back while the base runs: a new one's is as good as none, and that of one
    whose training goes on is what an earlier stage has learnt. Of a fully trained model a frozen copy is `copied`, in
    as much memory again.
    """

    trained: Any
    copied: Any | None
    start: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "Base":
        """Of a model that has not been trained yet, nor resumed."""
        model = checkpoint.model
        if hasattr(model, "peft_config"):
            return cls(model, None, {name: parameter.detach().clone() for name, parameter in trainable(model)})
        return cls(model, copy.deepcopy(model).eval().requires_grad_(False))

    @property
    def model(self) -> Any:
        """The model to run inside `at_start`."""
        return self.trained if self.copied is None else self.copied

    @contextmanager
    def at_start(self) -> Iterator[None]:
        """The trained model is what it was before training in this context, in evaluation mode; a copy always is.

        Values are exchanged in place and unseen by autograd: a graph that was built before or is running goes on with
        the present ones afterwards.
        """
        if self.copied is not None:
            yield
            return
        present = {name: parameter.detach().clone() for name, parameter in trainable(self.trained)}
        with evaluating(self.trained):
            try:
                self._put(self.start)
                yield
            finally:
                self._put(present)

    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in trainable(self.trained):
            parameter.data.copy_(values[name])

    @torch.no_grad()
    def states(self, token_ids: Int[Tensor, "rows length"], lengths: Int[Tensor, " rows"]) -> Tensor:
        """Final-norm states (rows, length, dim) of the base."""
        with self.at_start():
            return forward(self.model, token_ids, lengths).states

    def head(self, hidden: Float[Tensor, "positions dim"]) -> Tensor:
        """The base's logits."""
        with self.at_start():
            return Head(unwrap(self.model))(hidden)


def head_of(model: Any) -> Head:
    """Hidden states to logits, with the model's current weights, as the engine computes them."""
    return Head(unwrap(model))


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode in this context; the mode before is restored."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def embed(engine: Engine, renderer: Renderer, texts: Sequence[str]) -> Float[np.ndarray, "texts dim"]:
    """Unit vectors of documents (or direct queries) under the present weights, all computed in this process."""
    return embed_prompts(engine, [prompt.token_ids for prompt in renderer.render_batch(texts, "direct")])


def embed_prompts(engine: Engine, prompts: Sequence[Sequence[int]]) -> Float[np.ndarray, "texts dim"]:
    """`embed` for rendered prompts, which end in the embed token."""
    vectors = engine.embed(prompts).numpy()
    unit: Float[np.ndarray, "texts dim"] = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit


def trainable(model: Any) -> list[tuple[str, torch.nn.Parameter]]:
    """Names and parameters that are trained."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def adapter_start(config: ModelSettings, folder: Path) -> Literal["continue", "merge"] | None:
    """What becomes of the adapter in `folder`, the model's; None where it holds none.

    With [model.lora] its training goes on: rank, alpha and target modules must be the adapter's own, ValueError
    otherwise; the dropout may be another. Without, it is merged into its base, and every weight is trained.
    """
    if not (folder / ADAPTER_CONFIG).is_file():
        return None
    if config.lora is None:
        return "merge"
    saved, lora = read_object(folder / ADAPTER_CONFIG), config.lora
    rows = bool(saved.get("trainable_token_indices"))
    differs: dict[str, tuple[Any, Any]] = {
        "rank": (saved.get("r"), lora.rank),
        "alpha": (saved.get("lora_alpha"), lora.alpha),
        "train_embed_token": (rows, lora.train_embed_token),
    }
    if lora.target_modules != ("all-linear",):  # peft saves the names that it stands for
        differs["target_modules"] = (sorted(saved.get("target_modules") or ()), sorted(lora.target_modules))
    for name, (theirs, ours) in differs.items():
        if theirs != ours:
            raise _other_adapter(config, f"{name} = {ours!r}", repr(theirs))
    return "continue"


def _other_adapter(config: ModelSettings, ours: str, theirs: str) -> ValueError:
    return ValueError(
        f"[model.lora] {ours}, but the adapter in {config.path} has {theirs}. Write the adapter's own values to "
        "continue it, leave [model.lora] out to merge it and train every weight, or write the merged model with "
        "`search-r3 merge` and begin a new adapter on that."
    )


def _load_adapter(config: ModelSettings, folder: Path, start: Literal["continue", "merge"]) -> Checkpoint:
    """The adapter in `folder` on its base, to be trained further, or merged into it."""
    adapted = checkpoints.load(
        folder,
        dtype=config.dtype,
        device="cpu",
        trust_remote_code=config.trust_remote_code,
        verify=config.verify,
        trainable=True,
    )
    model = adapted.model
    if start == "merge":
        adapted.model = merged(model, keep=False).requires_grad_(True)
        return adapted
    lora: Any = config.lora
    head = model.get_output_embeddings()
    plain = [
        n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m is not head and not _in_peft(n)
    ]
    if lora.target_modules == ("all-linear",) and plain:
        raise _other_adapter(config, 'target_modules = ["all-linear"]', f"nothing on {plain[0].rpartition('.')[2]}")
    for module in model.modules():
        if hasattr(module, "lora_dropout"):
            module.lora_dropout["default"] = torch.nn.Dropout(lora.dropout) if lora.dropout else torch.nn.Identity()
    model.peft_config["default"].lora_dropout = lora.dropout
    return adapted


def _in_peft(name: str) -> bool:
    """Whether a module of this name is a part of a layer that an adapter wraps."""
    return bool({"base_layer", "lora_A", "lora_B"} & set(name.split(".")))


def _load(config: ModelSettings) -> Checkpoint:
    """A checkpoint that has the token, or an ordinary causal LM that gets it."""
    if config.path is None:
        raise ValueError("model.path is empty, and there is no [model.scratch]: set one of the two.")
    folder = model_names.resolve(config.path, config.revision)
    if (start := adapter_start(config, folder)) is not None:
        if config.profile is not None:
            raise ValueError(
                f"model.profile = {config.profile!r} would have no effect: the adapter {folder.name} has a profile, or "
                "its base. Remove it."
            )
        return _load_adapter(config, folder, start)
    check_files(folder, verify=config.verify)
    model = checkpoints.load_model(folder, config.dtype, config.trust_remote_code)
    tokenizer = checkpoints.load_tokenizer(folder, config.trust_remote_code)
    profile = profile_of(folder, tokenizer, config.profile)
    known = profile.embed_token in tokenizer.get_vocab()
    checkpoints.add_embed_token(model, tokenizer, profile.embed_token)
    if not known and config.lora is not None and not config.lora.train_embed_token:
        raise ValueError(
            f"{folder.name} has no {profile.embed_token} yet, and lora.train_embed_token = false: its new row would "
            "neither be trained nor saved with the adapter. Set train_embed_token = true."
        )
    name = model_names.display_name(config.path, folder)
    checkpoint = Checkpoint(model, tokenizer, profile, name, config.revision)
    checkpoints.probe_once(checkpoint, folder, (folder,))  # what is trained must be what the library runs
    return checkpoint
