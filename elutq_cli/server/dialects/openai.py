"""OpenAI's /v1/chat/completions and /v1/completions, which are nobody's translation."""

from collections.abc import Iterable
from typing import cast

from elutq_cli.server.dialects.dialect import COMPLETION, Dialect, event
from elutq_cli.server.errors import Fault
from elutq_cli.server.response import Body


class ChatCompletions(Dialect):
    """A request of /v1/chat/completions."""

    def translate(self, body: object) -> Body:
        """Return it as it came: its reader checks it."""
        return cast(Body, body)

    def whole(self, answer: Body) -> Body:
        """Return it as it is."""
        return answer

    def opening(self) -> Iterable[bytes]:
        """Yield nothing: the first chunks open the stream."""
        return ()

    def piece(self, chunk: Body) -> Iterable[bytes]:
        """Yield the chunk."""
        yield event(chunk)

    def closing(self) -> Iterable[bytes]:
        """Yield OpenAI's end of a stream."""
        yield b"data: [DONE]\n\n"

    def failure(self, fault: Fault) -> bytes:
        """Return the error as an event."""
        return event(fault.body)


class Completions(ChatCompletions):
    """A request of /v1/completions."""

    kind = COMPLETION
