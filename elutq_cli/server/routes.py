"""Which API is spoken at which route."""

from collections.abc import Callable

from elutq_cli.generation import LanguageModel
from elutq_cli.server.dialects import anthropic, ollama, ollama_models, tokens
from elutq_cli.server.dialects.dialect import Dialect
from elutq_cli.server.dialects.embeddings import EmbeddingRequest, OllamaEmbedding, OllamaEmbeddings, OpenAIEmbeddings
from elutq_cli.server.dialects.openai import ChatCompletions, Completions
from elutq_cli.server.dialects.responses import Responses
from elutq_cli.server.errors import Fault
from elutq_cli.server.response import Body

TEXTS: dict[str, type[Dialect]] = {
    "/v1/completions": Completions,
    "/v1/chat/completions": ChatCompletions,
    "/v1/responses": Responses,
    "/v1/messages": anthropic.Messages,
    "/v1/messages/count_tokens": anthropic.CountTokens,
    "/api/chat": ollama.Chat,
    "/api/generate": ollama.Generate,
}
"""Routes at which texts are asked for, and what is spoken there."""

VECTORS: dict[str, type[EmbeddingRequest]] = {
    "/v1/embeddings": OpenAIEmbeddings,
    "/api/embed": OllamaEmbeddings,
    "/api/embeddings": OllamaEmbedding,
}
"""Routes at which vectors of texts are asked for."""

TOLD: dict[str, Callable[[LanguageModel, str], Body]] = {
    "/api/version": ollama_models.version,
    "/api/tags": ollama_models.tags,
    "/api/ps": ollama_models.running,
}
"""Routes at which something is told of the model, and what makes it of the model and its name."""

ASKED: dict[str, Callable[[object, LanguageModel, str], Body]] = {
    "/api/show": ollama_models.show,
    "/tokenize": tokens.tokenize,
    "/detokenize": tokens.detokenize,
    "/apply-template": tokens.apply_template,
}
"""Routes at which something is asked for that is no text, and what makes it of the body, the model and its name."""

ERRORS: dict[str, Callable[[Fault], Body]] = {"/v1/messages": anthropic.error_body, "/api/": ollama.error_body}
"""Beginnings of paths, and what makes the bodies of errors there; OpenAI's elsewhere."""
