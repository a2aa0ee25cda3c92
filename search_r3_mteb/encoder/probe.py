"""The probe of a checkpoint: a few tokens both ways, ours and the library's, before any vector is given out.

Four things are compared, once for each state of a checkpoint's files and of the libraries:

    tokenizer  ids of probe texts from the loaded tokenizer, against those of the raw `tokenizer.json`
    rows       the tokenizer's ids against the rows of both matrices, and the embed token's own rows
    head       our logits (`head.py`) against those of the model's own forward
    engine     two prompts of different lengths in one batch, with shared prefix and cache, against the model's own
               forward over each alone, without a cache: hidden states, log-probabilities and greedy choices
"""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from search_r3_mteb.encoder.backbone import unwrap
from search_r3_mteb.encoder.engine import Engine
from search_r3_mteb.encoder.sampling import Sampling

TEXTS = (
    "The storm moved over the quiet harbour at night, and 12 boats were lost before the morning of 3 May 1907.",
    "The storm moved over   the hills:\n\n  two lines,\tand  spaces at the end  ",
    " Zürich, naïve café; 東京 Ελλάδα 😀 — 0123456789 3.14 -7e5",
)
# Tokens of the two prompts, and tokens that are generated before the embed token: enough to share a prefix, to pad, and
# to step rows that are at different positions.
LENGTHS, BUDGET = (14, 9), 2
_LAST = 4  # positions at which logits are compared
# Largest error, relative to the size of what is compared. Measured on tiny models of every architecture, three seeds
# each, and on nano and mini: right ones differ by at most 1e-5 in float32, 0.006 in float16 and 0.05 in bfloat16 (two
# layers; nano and mini 0.001 and 0.01), wrong ones by 0.01 or more. Rounding grows with depth, and a router's near tie
# may send a token to another expert (0.5 was seen), so a difference in half precision is not a verdict: it is a reason
# to look again in float32.
ALLOWED = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
# A larger model on a processor is probed on its first layers, those up to the last new kind of layer; number of
# parameters. Our choice: the whole would take seconds.
WHOLE = 20_000_000
# What a model's code raises when it is called in a way that it does not know.
_FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, AssertionError, IndexError, KeyError)


@dataclass(frozen=True)
class Comparison:
    """One thing computed both ways: its largest relative error, and what is allowed."""

    what: str
    error: float
    allowed: float

    @property
    def equal(self) -> bool:
        """Whether the error, which may be not a number, is within what is allowed."""
        return self.error <= self.allowed


class _Probed(Engine):
    """An engine that does not say the embed token by itself, so that every row takes all steps."""

    def logits(self, hidden: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows vocabulary"]:
        logits = super().logits(hidden)
        logits[:, self.embed_token_id] = -torch.inf
        return logits


def probe(checkpoint: Any, tokenizer_folder: Path) -> None:
    """Raises ValueError that names what differs, where and by how much, and what to do."""
    check_tokens(checkpoint.name, checkpoint.tokenizer, tokenizer_folder)
    check_rows(checkpoint)
    prompts = prompts_of(checkpoint.tokenizer)
    check_model(checkpoint.name, unwrap(checkpoint.model), checkpoint.embed_token_id, prompts)


def check_model(name: str, causal: Any, embed_token_id: int, prompts: Sequence[Sequence[int]]) -> None:
    """Raises ValueError when head or engine give something else than the causal LM's own forward, or cannot run."""
    kind = type(causal).__name__
    Engine(causal, embed_token_id)  # refuses by name what has no plain key-value cache
    try:
        compared = comparisons(causal, embed_token_id, prompts)
    except _FAILURES as error:
        raise ValueError(
            f"{name}: {kind} cannot be run here. A probe of a few tokens, batched and with a key-value cache as all "
            f"texts are, failed: {type(error).__name__}: {error}. Use a decoder with a plain key-value cache."
        ) from error
    wrong = [each for each in compared if not each.equal]
    if wrong:
        found = "; ".join(
            f"{each.what} by {each.error:.2g} of their size (allowed: {each.allowed:g})" for each in wrong
        )
        known = "Use another architecture, or another version of transformers if this one is known to work."
        if not all(math.isfinite(each.error) for each in wrong):
            known = "Numbers that are not finite come from damaged weights or a damaged config.json: restore them."
        raise ValueError(
            f"{name}: in a batch and with a key-value cache {kind} gives something else than its own forward over one "
            f"text alone. On a few tokens these differ: {found}. Vectors and reasoning would be wrong. {known}"
        )


def check_tokens(name: str, tokenizer: Any, folder: Path) -> None:
    """Raises ValueError when the loaded tokenizer gives other ids than the folder's `tokenizer.json`, if it has one."""
    if not (folder / "tokenizer.json").exists():
        return
    from tokenizers import Tokenizer

    raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    raw.no_padding()
    raw.no_truncation()
    for text in TEXTS:
        want = raw.encode(text, add_special_tokens=False).ids
        got = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        if got != want:
            at = next((i for i, (a, b) in enumerate(zip(got, want, strict=False)) if a != b), min(len(got), len(want)))
            raise ValueError(
                f"{name}: {type(tokenizer).__name__}, the class that the folder's files name, reads {text[:40]!r} as "
                f"{len(got)} tokens, its own tokenizer.json as {len(want)}; they differ from token {at} on: "
                f"{tokenizer.convert_ids_to_tokens(got[at : at + 4])} in place of "
                f"{[raw.id_to_token(i) for i in want[at : at + 4]]}. If the weights were trained with tokenizer.json, "
                'set "tokenizer_class": "PreTrainedTokenizerFast" in tokenizer_config.json, which means that file as '
                "it is; else save the tokenizer again with the one that they were trained with."
            )


def check_rows(checkpoint: Any) -> None:
    """Raises ValueError when a token has no row in one of the matrices, or the embed token's row was never set."""
    causal, tokenizer, embed = unwrap(checkpoint.model), checkpoint.tokenizer, checkpoint.embed_token_id
    last = max([len(tokenizer) - 1, *tokenizer.added_tokens_decoder])
    for which, layer in (("input", causal.get_input_embeddings()), ("output", causal.get_output_embeddings())):
        if layer is None:
            continue  # the head's own message follows
        rows = layer.weight.shape[0]
        if last >= rows:
            raise ValueError(
                f"{checkpoint.name}: the tokenizer has ids up to {last} "
                f"({tokenizer.convert_ids_to_tokens(last)!r}), but the {which} matrix has {rows} rows. Tokenizer and "
                "weights are from different states: use the pair that was saved together, or resize the matrix "
                "(model.resize_token_embeddings) and train the new rows."
            )
        row = layer.weight[embed] if layer.weight.device.type != "meta" else torch.ones(1)
        if row.is_floating_point() and not (row.isfinite().all() and row.any()):
            raise ValueError(
                f"{checkpoint.name}: the embed token's row ({embed}) of the {which} matrix is "
                f"{'zero' if row.isfinite().all() else 'not finite'}, so it was never trained, or was lost when the "
                "matrix was resized or saved. Save the checkpoint again from where it was trained."
            )


def prompts_of(tokenizer: Any) -> list[list[int]]:
    """Two prompts of different lengths with a common beginning, from the probe's texts."""
    rows = [list(tokenizer(text)["input_ids"]) for text in TEXTS[:2]]
    return [ids[:length] for ids, length in zip(rows, LENGTHS, strict=True)]


def comparisons(causal: Any, embed_token_id: int, prompts: Sequence[Sequence[int]]) -> list[Comparison]:
    """The head's and the engine's results beside the model's own, for a causal LM and prompts of token ids."""
    if causal.device.type == "cpu" and sum(parameter.numel() for parameter in causal.parameters()) > WHOLE:
        try:
            with first_layers(causal):
                return _judged(causal, _Probed(causal, embed_token_id, packing=False), prompts)
        except _FAILURES:  # its forward wants all layers
            pass
    return _judged(causal, _Probed(causal, embed_token_id), prompts)


def _judged(causal: Any, engine: Engine, prompts: Sequence[Sequence[int]]) -> list[Comparison]:
    compared = _compared(causal, engine, prompts)
    exact = causal.dtype == torch.float32 or getattr(causal, "is_quantized", False)
    if exact or all(each.equal for each in compared):
        return compared
    copied = copy.deepcopy(causal).float()
    return _compared(copied, _Probed(copied, engine.embed_token_id), prompts)


def _compared(causal: Any, engine: Engine, prompts: Sequence[Sequence[int]]) -> list[Comparison]:
    embed = engine.embed_token_id
    errors: dict[str, float] = {}

    def note(what: str, error: float) -> None:
        errors[what] = max(errors.get(what, 0.0), error) if error == error else error

    with engine.evaluating():
        rolled = engine.reason(prompts, Sampling(BUDGET))
        rows = [[*prompt, *ids] for prompt, ids in zip(prompts, rolled.token_ids, strict=True)]
        direct = engine.embed(rows)
        for row, ids in enumerate(rows):
            states, logits = own_forward(causal, engine.base_model, ids)
            note("the head's logits", _error(engine.head(states[-_LAST:]), logits[-_LAST:]))
            note("hidden states at the embed token, read directly,", _error(direct[row], states[-1]))
            note("hidden states at the embed token, after reasoning,", _error(rolled.vectors[row], states[-1]))
            said = logits[len(prompts[row]) - 1 : -2]
            size = float(said.std(correction=0)) or 1.0  # a model whose states are all zero
            said[:, embed] = -torch.inf
            # Two tokens may be equally good, up to rounding: what counts is how much worse the chosen one is.
            token = torch.tensor(rolled.token_ids[row][:-1], device=said.device)[:, None]
            log_probs = said.log_softmax(-1).gather(1, token)[:, 0].cpu()
            ours = torch.tensor(rolled.log_probs[row][:-1])
            note("log-probabilities", float((ours - log_probs).abs().max()) / size)
            note("greedy choices", float((said.max(-1).values - said.gather(1, token)[:, 0]).max()) / size)
    allowed = ALLOWED.get(causal.dtype, ALLOWED[torch.bfloat16])
    return [Comparison(what, error, allowed) for what, error in errors.items()]


def own_forward(causal: Any, backbone: Any, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    """States (length, dim) and logits (length, vocabulary), float32, of the model's own forward, without a cache."""
    caught: list[Tensor] = []
    handle = backbone.register_forward_hook(lambda module, args, output: caught.append(output[0]))
    try:
        logits = causal(input_ids=torch.tensor([list(ids)], device=causal.device), use_cache=False).logits
    finally:
        handle.remove()
    if len(caught) != 1:
        raise RuntimeError(f"its forward called {type(backbone).__name__} {len(caught)} times, not once")
    return caught[0][0], logits[0].float()


def _error(got: Tensor, want: Tensor) -> float:
    """Root mean square of the difference, relative to that of the wanted values' deviations from their mean."""
    got, want = got.float().cpu(), want.float().cpu()
    return float((got - want).square().mean().sqrt() / want.std(correction=0))


@contextmanager
def first_layers(causal: Any) -> Iterator[int]:
    """A context in which the model has its first layers only, up to the last new kind; gives their number."""
    config = causal.config.get_text_config()
    depth, kinds = config.num_hidden_layers, getattr(config, "layer_types", None)
    lists = [
        (parent, name, child)
        for parent in causal.modules()
        for name, child in parent.named_children()
        if isinstance(child, torch.nn.ModuleList) and len(child) == depth
    ]
    if len(lists) != 1:
        yield depth
        return
    parent, name, layers = lists[0]
    seen: dict[Any, int] = {}
    for i, layer in enumerate(layers):
        shapes = tuple((path, tuple(weight.shape)) for path, weight in layer.named_parameters())
        seen.setdefault((type(layer), shapes, kinds[i] if kinds else None), i)
    count = max(2, *(i + 1 for i in seen.values()))
    setattr(parent, name, layers[:count])
    try:
        yield count
    finally:
        setattr(parent, name, layers)
