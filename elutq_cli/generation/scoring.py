"""What is told of a token beside its text: how likely the model thought it, and what could have come in its place."""

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from elutq_cli.generation.sampling import largest, log_probabilities
from elutq_cli.generation.text import Alternative, GeneratedToken

TokenMaker = Callable[[str], GeneratedToken]
"""Makes a token of its text, which is known later than the token."""


def scored(token: int, logits: NDArray[np.float32], n_likeliest: int | None, spell: Callable[[int], str]) -> TokenMaker:
    """Return what makes a token of its text.

    Args:
        token: its id.
        logits: (vocab_size,) float32 that it was chosen by.
        n_likeliest: of how many of the likeliest tokens to tell; None: of none, and not of this one.
        spell: returns a token's own text.
    """
    if n_likeliest is None:
        return partial(GeneratedToken, token)
    logprobs = log_probabilities(logits)
    alternatives = tuple(
        Alternative(int(other), spell(int(other)), float(logprobs[other])) for other in largest(logprobs, n_likeliest)
    )
    return partial(GeneratedToken, token, logprob=float(logprobs[token]), alternatives=alternatives)
