"""Batches of rows under a token budget, and the prompt prefix that all rows share."""

from collections.abc import Sequence

# Tokens of whole prompts that a CPU reads at once. Our choice: a batch's activations then stay within its caches
# (results/speed/tried.json compares with 16,384).
PROCESSOR_TOKENS = 2048


def prefill_budget(token_budget: int, device_type: str) -> int:
    """The token budget of a batch of whole prompts: `token_budget`, on a CPU at most `PROCESSOR_TOKENS`."""
    return min(token_budget, PROCESSOR_TOKENS) if device_type == "cpu" else token_budget


def length_sorted_batches(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Row numbers in batches whose padded size (rows x longest row, in tokens) stays within `token_budget`.

    The longest rows come first, so that a machine that is too small fails at once. A row above the budget, which cannot
    be split, is a batch of its own.
    """
    if token_budget < 1:
        raise ValueError(
            f"token_budget={token_budget} tokens cannot hold a row; set it to at least the longest prompt."
        )
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    batches: list[list[int]] = []
    for row in order:
        # The rows are sorted, so the first row of a batch is its longest.
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= token_budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def common_prefix_length(prompts: Sequence[Sequence[int]]) -> int:
    """Number of tokens that all prompts begin with, at most one less than the shortest prompt has.

    One token of each prompt stays outside, because its forward pass gives the row its own hidden state.
    """
    if not prompts:
        return 0
    # The lexicographically smallest and largest prompts differ first where any two of them do.
    first, last = min(map(tuple, prompts)), max(map(tuple, prompts))
    limit = min(len(prompt) for prompt in prompts) - 1
    for position in range(limit):
        if first[position] != last[position]:
            return position
    return max(limit, 0)
