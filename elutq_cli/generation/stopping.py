"""Text that ends at the first of several stop strings."""

from collections.abc import Sequence

from elutq_formats.tokenizer import TextStream


class StoppableText:
    """A text stream that ends at the first of several stop strings, holding back what may become one.

    Attributes:
        stopped: whether a stop string was found.
    """

    def __init__(self, stream: TextStream, stop: Sequence[str]) -> None:
        self._stream = stream
        self._stop = tuple(string for string in stop if string)
        self._pending = ""
        self.stopped = False

    def put(self, token: int, may_stop: bool = True) -> str:
        """Append a token; return the text that is now certain to belong to the result.

        Args:
            token: its id.
            may_stop: whether a stop string that this token completes ends the text.
        """
        return self._release(self._stream.put(token), may_stop, final=False)

    def finish(self) -> str:
        """Return the text still held back."""
        return "" if self.stopped else self._release(self._stream.finish(), may_stop=True, final=True)

    def _release(self, text: str, may_stop: bool, final: bool) -> str:
        self._pending += text
        found = [at for string in self._stop if (at := self._pending.find(string)) >= 0]
        if found and may_stop:
            self.stopped = True
            text, self._pending = self._pending[: min(found)], ""
            return text
        n_kept = 0 if final else self._possible_start()
        split = len(self._pending) - n_kept
        text, self._pending = self._pending[:split], self._pending[split:]
        return text

    def _possible_start(self) -> int:
        """Return the length of the longest end of the pending text that begins a stop string."""
        longest = max((len(string) for string in self._stop), default=1) - 1
        for length in range(min(longest, len(self._pending)), 0, -1):
            if any(string.startswith(self._pending[-length:]) for string in self._stop):
                return length
        return 0
