"""From logits to text: models ready to generate, sampling, texts and their scheduler, templates and conversations."""

from elutq_cli.generation.continuation import Continuation
from elutq_cli.generation.conversation import Conversation
from elutq_cli.generation.generation import Generation
from elutq_cli.generation.language_model import LanguageModel
from elutq_cli.generation.sampling import Sampler, SamplingOptions
from elutq_cli.generation.scheduler import Scheduler
from elutq_cli.generation.template import ChatTemplate, Message
from elutq_cli.generation.text import Alternative, GeneratedToken, TextOptions

__all__ = [
    "Alternative",
    "ChatTemplate",
    "Continuation",
    "Conversation",
    "GeneratedToken",
    "Generation",
    "LanguageModel",
    "Message",
    "Sampler",
    "SamplingOptions",
    "Scheduler",
    "TextOptions",
]
