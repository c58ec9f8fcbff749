"""A text as one vector: the model's final hidden states, pooled."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from elutq_cli.generation.generation import Generation
from elutq_cli.generation.language_model import LanguageModel
from elutq_cli.generation.sampling import Sampler, SamplingOptions
from elutq_cli.generation.text import TextOptions

Pooling = Literal["mean", "last"]


class Embedding(Generation):
    """A text that is read to its end, and nothing made after it.

    Attributes:
        vector: (hidden_size,) float32, of Euclidean length 1, once it is over: the mean of all tokens' hidden states,
            or the last token's, as the output norm leaves them.
    """

    def __init__(self, model: LanguageModel, tokens: list[int], pooling: Pooling) -> None:
        """Begin.

        Args:
            model: reads.
            tokens: one or more.
            pooling: how one vector is made of those of all tokens.

        Raises:
            ContextOverflowError: there are more tokens than a context holds.
            ElutqError: there are none.
        """
        sampler, options = Sampler(SamplingOptions()), TextOptions(0)
        model.check_text(tokens, sampler.options, options)
        super().__init__(tokens, sampler, options, model.tokenizer, model.ctx_size)
        self._pooling = pooling
        self._sum = np.zeros(model.native.info.hidden_size)
        self._n_read = 0
        self.vector = np.zeros(0, np.float32)

    @property
    def n_reusable(self) -> int:
        """None: what a context keeps of a token is not its hidden state."""
        return 0

    def hidden_room(self, n_tokens: int) -> NDArray[np.float32]:
        """Return an array for the hidden states of so many tokens: (n_tokens, hidden_size)."""
        return np.empty((n_tokens, len(self._sum)), np.float32)

    def feed(self, hidden: NDArray[np.float32]) -> None:
        """Take the (n, hidden_size) states of the next n tokens."""
        self._n_read += len(hidden)
        if self._pooling == "mean":
            self._sum += hidden.sum(axis=0, dtype=np.float64)
        else:
            self._sum[:] = hidden[-1]
        if self._n_read == self.prompt_tokens:
            length = float(np.linalg.norm(self._sum))
            self.vector = (self._sum / (length or 1.0)).astype(np.float32)
            self._end_prompt()
            self._end("stop")
