"""One full optimizer step of the real 1.5B architecture on the CPU, with random weights: the path that a GPU takes.

    python results/one_step.py build  # a folder like the hub's: Qwen2.5-1.5B's published shape in bfloat16, 3.1 GB
    python results/one_step.py sft    # train/sft.py: LoRA, 2 rows with a hard negative and a trace, all four losses
    python results/one_step.py rl     # train/rl.py: LoRA, 2 prompts x 2 rollouts, cache, KL, contrastive term

Everything is the ordinary program under the shipped configuration, cut down by --set; only the weights mean nothing.
The model folder and the runs lie in runs/one-step; `sft` and `rl` write one_step_1.5b.md in results/sft and results/rl.
"""

import json
import os
import resource
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

from results.measure import commit
from results.qwen import SHAPES

ROOT = Path(__file__).resolve().parent.parent
PLACE = Path("runs/one-step")
RANDOM_MODEL = PLACE / "qwen2.5-1.5b-random"
PUBLISHED_SHAPE = SHAPES["Qwen/Qwen2.5-1.5B-Instruct"] | {
    "max_position_embeddings": 32768,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    "rms_norm_eps": 1e-6,
}
ROWS = [
    {"query": "who wrote it?", "positive": "Anna did.", "negatives": ["Karl did."], "reasoning": "A book, a name."},
    {"query": "where is it?", "positive": "In the west.", "negatives": ["In May."], "reasoning": "A place."},
    {"query": "when was it?", "positive": "Last year.", "negatives": ["In Rome."], "reasoning": "A date."},
    {"query": "how far is it?", "positive": "Two miles.", "negatives": ["A week."], "reasoning": "A length."},
]
ADAPTER = ["model.dtype=bfloat16", "model.lora.rank=16", "model.lora.alpha=32.0", "optimization.mixed_precision=no"]
SMALL = [
    f"model.path={RANDOM_MODEL}",
    f'data.sources=[{{kind = "jsonl", path = "{PLACE / "rows.jsonl"}"}}]',
    "data.evaluation=[]",
    "data.max_length=64",
    "optimization.steps=1",
    "optimization.warmup_steps=0",
    "optimization.schedule=constant",
    "output.tensorboard=false",
]
SFT = ["data.mixing=rows", "optimization.batch_size=2", "optimization.mini_batch_size=none"]
RL = [
    "rollout.prompts_per_step=2",
    "rollout.group_size=2",
    "rollout.max_reasoning_tokens=8",
    "reward.k=4",
    "policy.kl_weight=0.01",
    "contrastive.hard_negatives=1",
    "corpus_cache.budget_tokens=128",
    "corpus_cache.audit_every=1",
    "corpus_cache.audit_rows=2",
    "corpus_cache.top_k=2",
    "optimization.mini_batch_size=none",
    "output.rollouts_every=1",
]


def build(folder: Path = RANDOM_MODEL, shape: dict[str, Any] = PUBLISHED_SHAPE) -> None:
    """Write the folder: weights drawn under seed 0, a byte-level tokenizer without the embed token, short prompts."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    from train.model.scratch import CHAT_TEMPLATE, SCRATCH_PROFILE

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=control, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(["who wrote it", "where is it", "system user assistant embed reason"] * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>", extra_special_tokens=["<|im_start|>"]
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model = Qwen2ForCausalLM(Qwen2Config(**shape))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    SCRATCH_PROFILE.save(folder)
    print(f"{folder}: {sum(p.numel() for p in model.parameters()):,} parameters")


def step(stage: str) -> None:
    """Run one step, and write down what it took."""
    from train import rl, sft

    config = f"train/configs/{'rl_' if stage == 'rl' else ''}qwen2.5-1.5b.toml"
    shutil.rmtree(PLACE / stage, ignore_errors=True)
    (PLACE / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    settings = [*ADAPTER, *SMALL, *(SFT if stage == "sft" else RL), f"output.folder={PLACE / stage}"]
    arguments = ["--config", config, *(part for one in settings for part in ("--set", one))]
    began = perf_counter()
    (sft if stage == "sft" else rl).main(arguments)
    seconds = perf_counter() - began
    event = next(e for e in map(json.loads, (PLACE / stage / "log.jsonl").open()) if e["event"] == "step")
    report(stage, config, settings, seconds, event)


def report(stage: str, config: str, settings: list[str], seconds: float, event: dict[str, Any]) -> None:
    """Write the page of one stage."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    adapter = sum(path.stat().st_size for path in (PLACE / stage / "last").glob("adapter_model*")) / 2**20
    losses = {k: v for k, v in event.items() if k not in ("event", "step", "seconds")}
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft"))
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    lines = [
        f"# One step of the real 1.5B architecture, {'stage 1' if stage == 'sft' else 'stage 2'}",
        "",
        f"`python results/one_step.py build` and `python results/one_step.py {stage}`: random weights of",
        "Qwen2.5-1.5B's published shape in bfloat16 with LoRA on every linear layer and the new token's row, through",
        f"the ordinary program and the shipped configuration. Commit {commit()}, {versions}.",
        "",
        "| what | |",
        "|---|---|",
        f"| whole program: load, {'encode the corpus, ' * (stage == 'rl')}step, checkpoint, export | {seconds:.0f} s |",
        f"| from the loaded model to the end of the step | {event['seconds']:.0f} s |",
        f"| peak resident memory | {peak:.1f} GiB of the machine's {total:.0f} GiB |",
        f"| processor | {os.cpu_count()} cores, {threads} threads, shared with other work |",
        f"| exported adapter | {adapter:.0f} MiB |",
        *(f"| {name.replace('_', ' ')} | {value:.4g} |" for name, value in losses.items()),
        "",
        "The command that the script runs:",
        "",
        "```",
        f"python train/{stage}.py --config {config} \\",
        *(f"  --set '{one}' \\" for one in settings[:-1]),
        f"  --set '{settings[-1]}'",
        "```",
        "",
    ]
    (ROOT / "results" / stage / "one_step_1.5b.md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    PLACE.mkdir(parents=True, exist_ok=True)
    if len(sys.argv) != 2 or sys.argv[1] not in ("build", "sft", "rl"):
        raise SystemExit("Say what to do: build, sft or rl.")
    build() if sys.argv[1] == "build" else step(sys.argv[1])
