"""Texts as vectors: OpenAI's /v1/embeddings, and Ollama's /api/embed and /api/embeddings."""

import base64
from abc import ABC, abstractmethod
from collections.abc import Sequence

from elutq_cli.generation import LanguageModel
from elutq_cli.generation.embedding import Embedding, Pooling
from elutq_cli.server.dialects.ollama import check_context
from elutq_cli.server.errors import RequestError, TextFailedError
from elutq_cli.server.fields import Fields
from elutq_cli.server.limits import Limits
from elutq_cli.server.request import encode_prompt, prompts_of
from elutq_cli.server.response import Body

MOST_INPUTS = 2048
"""Of one request, as at OpenAI."""


class EmbeddingRequest(ABC):
    """One request for vectors.

    Attributes:
        embeddings: in the order of the inputs, once ``read``.
        source: the field that has the inputs.
    """

    source = "input"

    def __init__(self, model: LanguageModel, name: str, pooling: Pooling) -> None:
        """Begin.

        Args:
            model: reads.
            name: what it is called.
            pooling: how vectors are made.
        """
        self.model, self.name, self.pooling = model, name, pooling
        self.embeddings: list[Embedding] = []

    def read(self, body: object, _: Limits) -> list[Embedding]:
        """Return what a parsed body asks for.

        Raises:
            RequestError: it is wrong.
            ContextOverflowError: an input does not fit.
        """
        fields = Fields(body)
        fields.refuse(
            {
                "dimensions": (self.model.native.info.hidden_size,),
                "pooling": (self.pooling,),
                "embd_normalize": (2,),
                "normalize": (True,),
                "truncate_prompt_tokens": (-1,),
            }
        )
        self.check(fields)
        inputs = prompts_of(fields.get(self.source))
        if len(inputs) > MOST_INPUTS:
            raise RequestError(f"{self.source} may have at most {MOST_INPUTS} texts", self.source)
        tokens = [self.encode(one, fields) for one in inputs]
        if not all(tokens):
            raise RequestError("an input has no tokens", self.source)
        self.embeddings = [Embedding(self.model, ids, self.pooling) for ids in tokens]
        return self.embeddings

    def encode(self, given: object, _: Fields) -> list[int]:
        """Return the tokens of an input; see ``encode_prompt``."""
        return encode_prompt(given, self.model, self.source)

    def answer(self) -> Body:
        """Return the answer, once all are over.

        Raises:
            TextFailedError: one took too long.
        """
        if any(embedding.finish_reason != "stop" for embedding in self.embeddings):
            raise TextFailedError("an input took longer to read than this server allows: see elutq serve --max-seconds")
        return self.say([embedding.vector.tolist() for embedding in self.embeddings])

    @property
    def n_tokens(self) -> int:
        """Tokens of all inputs."""
        return sum(embedding.prompt_tokens for embedding in self.embeddings)

    @abstractmethod
    def check(self, fields: Fields) -> None:
        """Read what is the API's own."""

    @abstractmethod
    def say(self, vectors: Sequence[list[float]]) -> Body:
        """Return the API's form of vectors."""


class OpenAIEmbeddings(EmbeddingRequest):
    """A request of /v1/embeddings."""

    def check(self, fields: Fields) -> None:
        """Read the form of the vectors."""
        self._form = fields.get("encoding_format") or "float"
        if self._form not in ("float", "base64"):
            raise RequestError("encoding_format must be float or base64", "encoding_format")

    def say(self, vectors: Sequence[list[float]]) -> Body:
        """Return a list of embeddings."""
        written: list[object] = list(vectors)
        if self._form == "base64":
            written = [base64.b64encode(one.vector.astype("<f4").tobytes()).decode() for one in self.embeddings]
        return {
            "object": "list",
            "data": [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(written)],
            "model": self.name,
            "usage": {"prompt_tokens": self.n_tokens, "total_tokens": self.n_tokens},
        }


class OllamaEmbeddings(EmbeddingRequest):
    """A request of /api/embed."""

    def check(self, fields: Fields) -> None:
        """Look at the context that is asked for; no other option changes a vector."""
        check_context(Fields(fields.mapping("options"), "options"), self.model)

    def encode(self, given: object, fields: Fields) -> list[int]:
        """Return the tokens of an input, as many as the context holds unless ``truncate`` is false."""
        if isinstance(given, str) and fields.flag("truncate", True):
            return self.model.tokenizer.encode_beginning(given, self.model.ctx_size)
        return super().encode(given, fields)

    def say(self, vectors: Sequence[list[float]]) -> Body:
        """Return vectors and what they cost."""
        return {
            "model": self.name,
            "embeddings": list(vectors),
            "total_duration": int(1e9 * sum(embedding.prompt_seconds for embedding in self.embeddings)),
            "load_duration": 0,
            "prompt_eval_count": self.n_tokens,
        }


class OllamaEmbedding(OllamaEmbeddings):
    """A request of /api/embeddings: one text, the older way."""

    source = "prompt"

    def check(self, fields: Fields) -> None:
        """See that there is one text."""
        super().check(fields)
        if not isinstance(fields.get(self.source), str):
            raise RequestError("prompt must be a text", self.source)

    def say(self, vectors: Sequence[list[float]]) -> Body:
        """Return the vector."""
        return {"embedding": vectors[0]}
