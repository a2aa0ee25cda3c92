"""Stage 2: reasoning that is rewarded for what it retrieves (GRPO, arXiv 2402.03300).

    python train/rl.py --config train/configs/rl_nano.toml [--set optimization.steps=100 ...] [--dry-run]
    accelerate launch train/rl.py --config ...                                           # several GPUs or machines

One step: sample a group of rollouts for each prompt -> refresh the corpus cache around the documents that they retrieve
-> reward each rollout for how its vector ranks the judged documents -> one forward with gradient over the rollouts
gives the policy loss, and the contrastive loss of the same vectors.

Departures from the paper, and what it leaves open (each value and its source: train/PAPER.md):
- "Selective local graph refresh" is the cache's `local` policy; by default every row that is not re-encoded also moves
  by a linear map fitted on those that were (`local+map`), which the paper does not have.
- The reward is our reading of "DCG_scaled"; no KL and no division by the group's deviation by default, as in GRACE.
- A contrastive term trains the vector beside the policy, in the same forward; whether the paper does so is not known.
- Old log-probabilities are the sampler's, whose weights are the trainer's; the gap is logged and bounded.
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Under `python train/rl.py` Python looks for modules here first: our `data` or `losses` would hide a library's.
_FOLDER = Path(__file__).resolve().parent
sys.path[:] = [str(_FOLDER.parent) if Path(entry).resolve() == _FOLDER else entry for entry in sys.path]

from search_r3_mteb.stopping import command_line, end_on_signals
from search_r3_mteb.threads import spin_briefly

if __name__ == "__main__":  # before torch is imported, which takes seconds
    spin_briefly()
    end_on_signals("rl.py", lambda: f"Nothing had begun. Start it again: {command_line('python train/rl.py')}")

import torch

from search_r3_mteb.encoder.engine import Engine
from train.config.stages import RlConfig
from train.corpus_cache.cache import CorpusCache
from train.data import direct_ranks
from train.data.rows import TrainingRow
from train.disk.token_ids import CorpusTokenizer
from train.model.model import Base, embed, evaluating
from train.plan.processor import check_processor
from train.processes import collectives
from train.processes.replicas import all_processes
from train.run.allocation import keep_freed_memory
from train.run.command import start
from train.run.optimizer import learning_rate, set_learning_rate
from train.run.run import Run
from train.stage2 import rollouts
from train.stage2.corpus import SearchedCorpus, encoding_flops
from train.stage2.documents import DocumentEncoder
from train.stage2.environment import Environment, OwnEffects
from train.stage2.replay import Replay
from train.stage2.rollout_log import RolloutLog
from train.stage2.rollouts import Groups
from train.stage2.step import PolicyStep

SILENT = 0.05
"""Share of rollouts that end with the embed token below which the first step warns. Our choice."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: see the module's docstring."""
    start("rl.py", RlConfig, train, arguments, corpus=SearchedCorpus)


def train(config: RlConfig) -> Path:
    """Run the stage; returns the folder of the final checkpoint."""
    run = Run.begin(config, unit="query")
    base = Base.of(run.checkpoint) if config.reads_start else None
    replay = Replay.begin(run)
    run.resume()
    environment = open_environment(run, base)
    left = choose_queries(run, environment)
    active = run.accelerator.is_main_process
    log = RolloutLog(run.folder, run.checkpoint.tokenizer, config.output, step=run.step, active=active)

    effects = OwnEffects.of(config)
    for number in run.steps():
        rows = run.data.next_batch()
        rate = learning_rate(number, config.optimization)
        set_learning_rate(run.optimizer, rate)
        with run.guard(number, rows):  # an error stops the run and leaves the batch behind
            groups = sample(run, environment.encoder.engine, rows, number)
            step = PolicyStep(run, environment, groups, base if config.policy.kl_weight else None)
            documents = step.documents()
            environment.encoder.know(documents.texts, documents.vectors)
            judged = environment.judge(groups, number)
            advantages = step.advantages(judged)
            for update in range(config.policy.updates_per_step):
                if update > 0:  # the weights have moved
                    documents = step.documents()
                losses = step.backward(judged, advantages, documents) | replay.backward()
                if update == 0:
                    gaps = step.check_gap(losses)
                norm = run.reduce_gradients()
                run.update()
        if (audit := environment.audit(number)) is not None:
            run.log.event("audit", number, **audit)
        log.write(groups, judged, advantages, number)
        shown = collectives.average(step.numbers(judged, advantages) | losses, run.device) | gaps
        shown |= {"cache_age": environment.age(number), "learning_rate": rate, "gradient_norm": norm}
        if number == 1 and shown["finished_share"] < SILENT:
            run.log.warn(number, _silent(config, shown["finished_share"]))
        if number == 1 and left:
            run.log.event("direct_rank", number, **left)
        for one in effects.used() if number == 1 else ():
            run.log.event("extension", number, **one)
        for text in effects.warnings(number, shown):
            run.log.warn(number, text)
        run.after_step(number, shown)
    return run.finish()


def open_environment(run: Run, base: Base | None) -> Environment:
    """The environment: its corpus encoded with the present weights, or the cache of the resumed checkpoint."""
    config: RlConfig = run.config
    checkpoint, cached = run.checkpoint, config.corpus_cache
    engine = Engine(
        checkpoint.model,
        checkpoint.embed_token_id,
        stop_token_ids=checkpoint.stop_token_ids,
        token_budget=config.rollout.batch_tokens,
    )
    encoder = DocumentEncoder(
        checkpoint.model,
        engine,
        run.renderer,
        frozen=base if cached.policy == "frozen" else None,
        autocast=run.accelerator.autocast,
    )
    tokens = CorpusTokenizer(encoder.tokenize, encoder.tokenizer_name(), cached.place_of_tokens(run.folder))
    corpus = SearchedCorpus(config.data, tokens, run.data.sources)
    device = cached.compute_device(run.device)
    if device is None:
        rollouts_here = config.rollout.prompts_per_step * config.rollout.group_size // collectives.world_size()
        parameters = sum(parameter.numel() for parameter in checkpoint.model.parameters())
        flops = encoding_flops(corpus.texts, parameters, config.data.max_length)
        warning = check_processor(len(corpus.texts), engine.dim, rollouts_here, cached, torch.get_num_threads(), flops)
        if warning:
            logging.getLogger(__name__).warning(warning)
    folder = run.folder / "cache"
    shared: Any = {"fingerprint": checkpoint.fingerprint(), "settings": cached, "replicas": all_processes()}
    if run.resumed_from is None:
        cache = CorpusCache.build(corpus.texts, encoder, folder=folder, seed=config.optimization.seed, **shared)
    else:
        saved = run.resumed_from.extra / "cache"
        cache = CorpusCache.load(saved, corpus.texts, dim=engine.dim, working=folder, **shared)
    cache.on(device)
    # On the main process, while the others wait for the checkpoint.
    run.extra = lambda place: cache.snapshot(place / "cache", fingerprint=checkpoint.fingerprint())
    return Environment(corpus, cache, encoder, cached, config.reward)


def choose_queries(run: Run, environment: Environment) -> dict[str, int]:
    """Leave out the queries outside of `data.direct_rank`; returns how many of each source there were, and are left.

    The starting model measures them, before the first step; a resumed run reads what it measured.
    """
    bounds = run.config.data.direct_rank
    if bounds is None:
        return {}
    documents = len(environment.corpus.texts)

    def measure(rows: Sequence[TrainingRow]) -> list[int | None]:
        with evaluating(run.checkpoint.model), run.accelerator.autocast():
            vectors = embed(environment.encoder.engine, run.renderer, [row.query for row in rows])
        return environment.ranks(rows, vectors, bounds[1])

    if run.resumed_from is None:
        ranks = direct_ranks.measured(run.data, measure, run.config.data.on_bad_row)
        direct_ranks.write(run.folder, ranks, bounds, documents)
    else:
        ranks = direct_ranks.read(run.folder, bounds, documents)
    left = direct_ranks.keep(run.data, ranks, bounds)
    run.notes.append(direct_ranks.said(left, list(ranks), bounds))
    return left


def _silent(config: RlConfig, share: float) -> str:
    return (
        f"{share:.1%} of the first rollouts ended with the embed token; the others were cut after "
        f"rollout.max_reasoning_tokens = {config.rollout.max_reasoning_tokens}. Such a model is rewarded for vectors "
        "that it never asks for. Train stage 1 until it says the token (reply weight, more steps), begin from its "
        "result, or raise the budget if its reasoning is longer."
    )


def sample(run: Run, engine: Engine, rows: Sequence[TrainingRow], number: int) -> Groups:
    """The step's rollouts on this process."""
    config: RlConfig = run.config
    with run.accelerator.autocast():  # sampling computes as training does
        groups = rollouts.sample(
            run.checkpoint.model,
            run.renderer,
            engine,
            rows,
            config.rollout,
            step=number,
            seed=config.optimization.seed,
            process=collectives.rank(),
        )
    return rollouts.anchored_groups(groups, config.reward.anchor)


if __name__ == "__main__":
    keep_freed_memory()
    main()
