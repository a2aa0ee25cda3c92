"""The order of rows: a keyed permutation and random draws, both computed from (seed, position) alone.

So the position is the whole state of a shuffled epoch: a resumed run goes on bit for bit, every process computes the
same order, and ten million rows cost no memory.
"""

from search_r3_mteb.keys import key_of

_MASK = (1 << 64) - 1
_ROUNDS = 4  # Luby and Rackoff 1988: four Feistel rounds of random functions are a strong pseudo-random permutation


def uniform(*parts: object) -> float:
    """A draw from [0, 1) that depends on every part."""
    return (key_of(*parts) >> 11) / (1 << 53)


def permuted(position: int, size: int, key: int) -> int:
    """The element at `position` (0 to size - 1) of the permutation of range(size) that `key` names.

    A Feistel network over the next even number of bits; a value that falls outside goes through it again until it falls
    inside (cycle walking, Black and Rogaway 2002), at most three times more on average.
    """
    if not 0 <= position < size:
        raise IndexError(f"position {position} is not in a permutation of {size}.")
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    value = position
    while True:
        left, right = value >> half, value & low
        for turn in range(_ROUNDS):
            left, right = right, left ^ (_mix(right + (turn << 32) + key) & low)
        value = left << half | right
        if value < size:
            return value


def choose(count: int, size: int, *parts: object) -> list[int]:
    """`count` different numbers below `size`, at most all of them, in increasing order."""
    if count >= size:
        return list(range(size))
    key = key_of(*parts)
    return sorted(permuted(position, size, key) for position in range(count))


def _mix(value: int) -> int:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014)."""
    value &= _MASK
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
    return value ^ (value >> 31)
