"""Tiny runs of both stages: settings, small models, and the results by which two runs are compared."""

import json
from pathlib import Path

import torch

from train.config.loading import load_config
from train.config.stages import RlConfig, SftConfig
from train.run.run import Run

SFT = """
[model.scratch]
hidden_size = 32
intermediate_size = 64
layers = 1
heads = 2
key_value_heads = 2
[data]
max_length = 96
[[data.sources]]
kind = "hopworld"
documents = 500
hops = [1, 2]
[loss]
kl = 0.0
triplet = 0.0
hard_negatives = false
[optimization]
steps = 3
batch_size = 8
learning_rate = 1e-2
[evaluate]
every = 2
max_queries = 6
max_reasoning_tokens = 8
[checkpoint]
every = 1
keep = 100
[output]
tensorboard = false
"""
EVALUATION = """
[[data.evaluation]]
kind = "hopworld"
documents = 500
split = "dev"
hops = [1, 2]
"""
RL = """
[model]
path = "MODEL"
[data]
max_length = 96
[[data.sources]]
kind = "hopworld"
documents = 500
hops = [2]
traces = false
[rollout]
prompts_per_step = 4
group_size = 4
temperature = 2.0
max_reasoning_tokens = 8
[reward]
k = 20
[contrastive]
weight = 0.5
hard_negatives = 3
[corpus_cache]
budget_tokens = 300
audit_every = 2
audit_rows = 16
top_k = 4
[optimization]
steps = 3
learning_rate = 3e-3
[evaluate]
every = 2
max_queries = 4
max_reasoning_tokens = 8
[checkpoint]
every = 1
keep = 100
[output]
tensorboard = false
rollouts_every = 2
"""
PATH = """
[model]
path = "MODEL"
[data]
"""

LORA = ["model.lora.rank=4", "model.lora.alpha=8.0"]
FORCED = ["rollout.max_reasoning_tokens=3"]


class StoppedError(Exception):
    """A run that a test ended after some step."""


def config(text, folder, overrides, cls):
    """The settings in `text`, writing to `folder`."""
    path = Path(f"{folder}.toml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return load_config(path, [f"output.folder={folder}", *overrides], cls)


def sft_config(folder, *overrides, model=None, evaluation=False, sources=None):
    """Stage 1 from random weights, or from the folder `model`; `sources` replaces hopworld (TOML)."""
    text = SFT + (EVALUATION if evaluation else "")
    if model is not None:
        text = PATH.replace("MODEL", str(model)) + text.split("[data]", 1)[1]
    if sources is not None:
        before, rest = text.split("[[data.sources]]", 1)
        text = before + sources + "\n[loss]" + rest.split("[loss]", 1)[1]
    return config(text, folder, overrides, SftConfig)


def rl_config(folder, model, *overrides, evaluation=False, sources=None):
    """Stage 2 from the folder `model`."""
    text = RL.replace("MODEL", str(model)) + (EVALUATION if evaluation else "")
    if sources is not None:
        before, rest = text.split("[[data.sources]]", 1)
        text = before + sources + "\n[rollout]" + rest.split("[rollout]", 1)[1]
    return config(text, folder, overrides, RlConfig)


def byte_folder(folder, *, with_embed_token=True, **shape):
    """A random two-layer Qwen2 with a byte-level tokenizer and short prompts, saved as a folder."""
    from search_r3_mteb.encoder.checkpoints import Checkpoint, save
    from tests.conftest import build_model, build_tokenizer
    from train.model.scratch import SCRATCH_PROFILE

    model, tokenizer = build_model(**shape), build_tokenizer(with_embed_token)
    if with_embed_token:
        return save(Checkpoint(model, tokenizer, SCRATCH_PROFILE, "tests/bytes"), folder)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    SCRATCH_PROFILE.save(folder)
    return folder


def events(folder, kind=None):
    """The events of the log, without clock times."""
    lines = (json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines())
    clock = ("seconds", "refresh_seconds")
    return [{k: v for k, v in e.items() if k not in clock} for e in lines if kind in (None, e["event"])]


def weights(folder):
    """Tensors of an exported model or adapter."""
    from safetensors.torch import load_file

    folder = Path(folder)
    return load_file(
        next(p for p in (folder / "model.safetensors", folder / "adapter_model.safetensors") if p.exists())
    )


def same_weights(one, other):
    """Whether two exported models are equal, bit for bit."""
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def cache_arrays(folder, step):
    """The corpus cache inside the checkpoint of `step`, with the scalars of its manifest."""
    from train.corpus_cache.files import open_folder

    opened, records = open_folder(Path(folder) / f"checkpoints/step-{step:06d}/extra/cache", writable=False)
    assert not records
    return {name: array.copy() for name, array in opened.arrays.items()}, opened.scalars


def largest_difference(a, b):
    """Over two dictionaries of tensors with the same names."""
    assert a.keys() == b.keys()
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


def stop_after(step):
    """A replacement of `Run.after_step` that ends the run once `step` has been logged and saved."""
    original = Run.after_step

    def after_step(self, number, values):
        original(self, number, values)
        if number == step:
            self.log.close()
            raise StoppedError

    return after_step


def train_until(step, train, settings, monkeypatch):
    """Run `train(settings)` until `step` has been saved, as if it were killed there."""
    with monkeypatch.context() as patch:
        patch.setattr(Run, "after_step", stop_after(step))
        try:
            train(settings)
        except StoppedError:
            return
    raise AssertionError("the run ended by itself")


def recording(gradients, logged=None):
    """A replacement of `Run.reduce_gradients` that keeps every step's gradient, as it is before it is clipped."""
    original = Run.reduce_gradients

    def reduce_gradients(self):
        norm = original(self)
        limit = self.config.optimization.max_gradient_norm or float("inf")
        scale = max(1.0, norm / limit)
        gradients.append(
            {
                n: p.grad.detach().clone() * scale
                for n, p in self.checkpoint.model.named_parameters()
                if p.grad is not None
            }
        )
        return norm

    return reduce_gradients


def recorded_gradients(train, config, monkeypatch):
    """Every step's gradient of a whole run."""
    found = []
    with monkeypatch.context() as patch:
        patch.setattr(Run, "reduce_gradients", recording(found))
        train(config)
    return found
