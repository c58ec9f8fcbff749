"""What two sequences of tokens begin with in common: of that much, keys and values need not be computed again."""

from collections.abc import Sequence


def common_length(left: Sequence[int], right: Sequence[int]) -> int:
    """Return how many tokens two sequences begin with in common."""
    differing = (at for at, (ours, theirs) in enumerate(zip(left, right, strict=False)) if ours != theirs)
    return next(differing, min(len(left), len(right)))
