"""Passes over several sequences, by sessions of the C runtime that are evaluated one after the other."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from elutq_native import Session


@dataclass(frozen=True)
class Run:
    """Tokens to append to one sequence.

    Attributes:
        sequence: what they are appended to.
        tokens: one or more.
        n_logits: of how many of them, the last ones, logits are wanted.
    """

    sequence: Session
    tokens: Sequence[int]
    n_logits: int


class SessionEngine:
    """Evaluates runs of its sessions."""

    def __init__(self, sessions: Sequence[Session]) -> None:
        """Begin.

        Args:
            sessions: of one model.
        """
        self._sessions = sessions

    @property
    def threads(self) -> int:
        """Threads that a pass is computed by."""
        return self._sessions[0].threads

    def eval(self, runs: Sequence[Run]) -> list[NDArray[np.float32]]:
        """Return the logits that each run wants, (n_logits, vocab_size)."""
        made = []
        for run in runs:
            logits = run.sequence.eval(run.tokens, all_logits=run.n_logits > 1)
            logits = logits.reshape(-1, logits.shape[-1])
            made.append(logits[len(logits) - run.n_logits :])
        return made

    def cancel(self) -> None:
        """End the pass under way; safe in any thread."""
        for session in self._sessions:
            session.cancel()

    def close(self) -> None:
        """Free everything."""
        for session in self._sessions:
            session.close()
