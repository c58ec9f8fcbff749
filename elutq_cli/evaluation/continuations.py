"""What models hold of given continuations of given contexts."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from elutq_cli.evaluation.score import Advance
from elutq_cli.reference import Array, Block, Positions, Transformer
from elutq_cli.reference.transformer import HIDDEN_BYTES, KeyValueCache
from elutq_cli.token_prefix import common_length
from elutq_native import PIECE_TOKENS, Engine, Model, NativeSequence, Run

Logits = Generator[NDArray[np.float32], None, None]


@dataclass(frozen=True)
class Request:
    """Tokens whose probabilities are wanted.

    Attributes:
        context: token ids, at least one.
        continuation: token ids that may follow, at least one.
    """

    context: tuple[int, ...]
    continuation: tuple[int, ...]

    @property
    def n_evaluated(self) -> int:
        """Tokens that the model has to be given: the last one only has to be predicted."""
        return len(self.context) + len(self.continuation) - 1


class ContinuationModel(Protocol):
    """Anything that predicts continuations; requests of one context stand together, so that they can share its work."""

    def continuation_logits(self, requests: Sequence[Request], advance: Advance) -> Logits:
        """Yield for each request the logits (len(continuation), vocab_size) that predict its continuation.

        Args:
            requests: contexts and continuations.
            advance: progress; its calls add up to the number of requests.
        """


class NativeContinuations:
    """A model file in the C runtime: whole pieces of a context that the one before had too stay in its cache.

    A continuation is evaluated in the pieces that the whole text has when it is evaluated at once, because products of
    many tokens round otherwise than those of few: so its logits are those of a window of the same tokens, and those
    that a server gives of it (``echo``).
    """

    def __init__(self, model: Model, threads: int | None, cache_type: str) -> None:
        self._model, self._threads, self._cache_type = model, threads, cache_type

    def continuation_logits(self, requests: Sequence[Request], advance: Advance) -> Logits:
        """See `ContinuationModel`."""
        n_tokens = max(request.n_evaluated for request in requests)
        held: tuple[int, ...] = ()
        logits = np.empty((0, self._model.vocab_size), np.float32)
        with (
            Engine(self._model, self._threads) as engine,
            NativeSequence(self._model, n_tokens, self._cache_type) as sequence,
        ):
            for request in requests:
                tokens, n_logits = request.context + request.continuation[:-1], len(request.continuation)
                if tokens != held or n_logits != len(logits):  # choices of one token have all else in common
                    n_shared = min(common_length(held, tokens), len(request.context) - 1)
                    n_shared -= n_shared % PIECE_TOKENS
                    n_shared = n_shared if sequence.can_rewind(n_shared) else 0
                    sequence.rewind(n_shared)
                    logits = engine.eval([Run(sequence, tokens[n_shared:], n_logits)])[0]
                    held = tokens
                advance(1.0)
                yield logits


class _Prompt:
    """A context with its continuations, on their way through the blocks; the latter go side by side.

    Attributes:
        lengths: tokens of each continuation but its last.
        context: (n_context, hidden_size) float32
        hidden: (len(lengths), max(lengths), hidden_size) float32; what is behind a shorter one's end is not looked at.
    """

    def __init__(self, requests: Sequence[Request], embedding: Array) -> None:
        """Look up the tokens that the model has to be given; the requests have one context."""
        self.lengths = [len(request.continuation) - 1 for request in requests]
        given = np.zeros((len(requests), max(self.lengths)), np.int64)
        for row, request, length in zip(given, requests, self.lengths, strict=True):
            row[:length] = request.continuation[:-1]
        self.context, self.hidden = embedding[list(requests[0].context)], embedding[given]

    def run(self, block: Block, convert: Callable[[NDArray[np.float32]], Array]) -> None:
        """Run a block: the context's keys and values are those of each continuation's past."""
        cache: KeyValueCache = {}
        n_context, (n_continuations, n_tokens, _) = len(self.context), self.hidden.shape
        length = n_context + n_tokens
        before = Positions.of(block.config, n_context, convert=convert, length=length)
        self.context = block(self.context, before, cache=cache)
        if n_tokens == 0:
            return
        keys, values = (block.xp.stack([past] * n_continuations) for past in cache[block.layer])
        positions = Positions.of(block.config, n_tokens, n_context, convert)
        self.hidden = block(self.hidden, positions, cache={block.layer: (keys, values)})


class ReferenceContinuations:
    """A checkpoint, in float32; each of its blocks is read once for as many contexts as fit into memory."""

    def __init__(self, transformer: Transformer) -> None:
        self._transformer = transformer

    def continuation_logits(self, requests: Sequence[Request], advance: Advance) -> Logits:
        """See `ContinuationModel`."""
        together: list[list[Request]] = []
        n_tokens, most = 0, HIDDEN_BYTES // (4 * self._transformer.config.hidden_size)
        for context, group in groupby(requests, key=lambda request: request.context):
            asked = list(group)
            n_more = len(context) + len(asked) * max(len(request.continuation) - 1 for request in asked)
            if together and n_tokens + n_more > most:
                yield from self._run(together, advance)
                together, n_tokens = [], 0
            together.append(asked)
            n_tokens += n_more
        yield from self._run(together, advance)

    def _run(self, together: list[list[Request]], advance: Advance) -> Logits:
        """Yield the logits of some contexts' continuations."""
        model = self._transformer
        embedding = model.load("model.embed_tokens.weight")
        prompts = [_Prompt(asked, embedding) for asked in together]
        del embedding
        for block in model.blocks():
            for prompt in prompts:
                prompt.run(block, model.convert)
                advance(len(prompt.lengths) / model.config.num_hidden_layers)
        head = model.load_head()
        for prompt in prompts:
            last = prompt.context[-1:]
            of_one = head(last) if 0 in prompt.lengths else last  # the same for all continuations of one token
            for hidden, length in zip(prompt.hidden, prompt.lengths, strict=True):
                yield head(model.xp.concatenate((last, hidden[:length]))) if length else of_one
