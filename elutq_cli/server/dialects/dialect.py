"""What an API is to this server: a translation to OpenAI's requests, and back from OpenAI's answers."""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from elutq_cli.generation import Generation, LanguageModel
from elutq_cli.server.errors import Fault, RequestError
from elutq_cli.server.limits import Limits
from elutq_cli.server.request import TextRequest, read_chat, read_completion
from elutq_cli.server.response import Body, ChatResponder, CompletionResponder, Responder


class Reader(Protocol):
    """Reads a body; see ``read_chat``."""

    def __call__(self, body: object, model: LanguageModel, limits: Limits) -> TextRequest:
        """Return what it asks for."""


@dataclass(frozen=True)
class Kind:
    """A kind of text that OpenAI has a route for: how its requests are read, and what answers them."""

    read: Reader
    responder: type[Responder]


CHAT = Kind(read_chat, ChatResponder)
COMPLETION = Kind(read_completion, CompletionResponder)


class Dialect(ABC):
    """One request of an API.

    What texts can do is read and written once, in OpenAI's form; a dialect only knows what its own calls it. Of a body
    it takes the fields that its API defines, and passes the others on: what nobody has is refused there by name.

    Attributes:
        media_type: of a stream.
        silence: what a stream says while nothing is made.
        names: OpenAI's names of fields that the API has under others, and these; errors tell them.
        kind: what the body asks for, once ``read``.
    """

    media_type = "text/event-stream"
    silence = b": still at work\n\n"
    names: Mapping[str, str] = {}
    kind = CHAT

    def __init__(self, model: LanguageModel, name: str) -> None:
        """Begin.

        Args:
            model: answers.
            name: what it is called.
        """
        self.model, self.name = model, name
        self.generations: Sequence[Generation] = ()

    def read(self, body: object, limits: Limits) -> TextRequest | None:
        """Return what a parsed body asks for; None: no text, and ``nothing`` is the answer.

        Args:
            body: parsed.
            limits: of any text on this server.

        Raises:
            ElutqError: see ``read_chat``.
        """
        translated = self.translate(body)
        if translated is None:
            return None
        try:
            wanted = self.kind.read(translated, self.model, limits)
        except RequestError as error:
            raise self._in_own_names(error, body) from error
        self.generations = wanted.generations
        return wanted

    def _in_own_names(self, error: RequestError, body: object) -> RequestError:
        own = self.names.get(error.parameter or "")
        if own is None or (isinstance(body, Mapping) and error.parameter in body):  # it came under OpenAI's name
            return error
        return RequestError(re.sub(rf"\b{error.parameter}\b", own, str(error)), own, error.code)

    @abstractmethod
    def translate(self, body: object) -> Body | None:
        """Return OpenAI's body of the same meaning; None: it asks for no text.

        Raises:
            RequestError: it is wrong.
        """

    def nothing(self) -> Body:
        """Return the answer to a body that asks for no text."""
        return {}

    @abstractmethod
    def whole(self, answer: Body) -> Body:
        """Return the answer of OpenAI's answer."""

    @abstractmethod
    def opening(self) -> Iterable[bytes]:
        """Yield what a stream begins with."""

    @abstractmethod
    def piece(self, chunk: Body) -> Iterable[bytes]:
        """Yield what a stream says of one of OpenAI's chunks.

        Args:
            chunk: of a stream that ends with its usage, in a chunk without choices.
        """

    def closing(self) -> Iterable[bytes]:
        """Yield what a stream ends with."""
        return ()

    @abstractmethod
    def failure(self, fault: Fault) -> bytes:
        """Return the last that a stream says when its text cannot be made."""


def event(body: Body) -> bytes:
    """Return a server-sent event."""
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"


def typed_event(body: Body) -> bytes:
    """Return a server-sent event that has a name, its ``type``."""
    return f"event: {body['type']}\n".encode() + event(body)
