"""A log of some rollouts for reading: `rollouts.jsonl`, one rollout per line."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from search_r3_mteb.disk import naming
from train.config.run import RlOutputSettings
from train.losses.grpo import Advantages
from train.run.log import cut, due
from train.stage2.environment import Judged
from train.stage2.rollouts import Groups


class RolloutLog:
    """Query, reasoning, reward and top documents of a few rollouts, every so many steps; nothing unless `active`."""

    def __init__(self, folder: Path, tokenizer: Any, settings: RlOutputSettings, *, step: int, active: bool) -> None:
        self._path, self._tokenizer, self._settings = folder / "rollouts.jsonl", tokenizer, settings
        self._active = active
        if active:
            cut(self._path, step)  # later than the checkpoint that the run resumed from

    def write(self, groups: Groups, judged: Judged, advantages: Advantages, step: int) -> None:
        """Append some of the step's rollouts where they are due: the first of each prompt, then the second ones."""
        if not (self._active and due(step, self._settings.rollouts_every)):
            return
        with naming(self._path), self._path.open("a", encoding="utf-8") as file:
            for rollout in _by_turns(groups.prompt)[: self._settings.rollouts]:
                record = {"step": step} | self._record(groups, judged, advantages, rollout)
                file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def _record(self, groups: Groups, judged: Judged, advantages: Advantages, rollout: int) -> dict[str, Any]:
        row = groups.query(rollout)
        return {
            "query": row.query,
            "hops": row.hops,
            "reasoning": self._tokenizer.decode(groups.rollouts.token_ids[rollout][:-1]),
            "finished": groups.rollouts.finished[rollout],
            "reward": float(judged.rewards.total[rollout]),
            **({} if judged.direct is None else {"direct_reward": float(judged.direct[groups.prompt[rollout]])}),
            "advantage": float(advantages.values[rollout]),
            "relevant": sorted(judged.relevance[groups.prompt[rollout]]),
            "top": judged.top(rollout, 5),
        }


def _by_turns(prompts: Sequence[int]) -> list[int]:
    """The rollouts in the order of their place within their prompt's group, then of the prompt."""
    seen: Counter[int] = Counter()
    turns = []
    for rollout, prompt in enumerate(prompts):
        turns.append((seen[prompt], prompt, rollout))
        seen[prompt] += 1
    return [rollout for _, _, rollout in sorted(turns)]
