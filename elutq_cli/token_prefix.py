"""What two sequences of tokens begin with in common: of that much, keys and values need not be computed again."""

from collections.abc import Sequence
from typing import Any

STEP = 256
"""Tokens that are compared at once: slices compare many times as fast as their entries do one by one."""


def common_length(left: Sequence[Any], right: Sequence[Any]) -> int:
    """Return how many tokens, or characters, two sequences begin with in common."""
    first, end = 0, min(len(left), len(right))
    while first < end and left[first : first + STEP] == right[first : first + STEP]:
        first += STEP
    return next((at for at in range(first, end) if left[at] != right[at]), end)
