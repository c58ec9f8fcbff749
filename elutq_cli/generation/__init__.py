"""From logits to text: models ready to generate, sampling, the generation loop, chat templates and conversations."""

from elutq_cli.generation.conversation import Conversation
from elutq_cli.generation.generate import Alternative, GeneratedToken, Generation, TextOptions
from elutq_cli.generation.language_model import LanguageModel
from elutq_cli.generation.sampling import Sampler, SamplingOptions
from elutq_cli.generation.template import ChatTemplate, Message

__all__ = [
    "Alternative",
    "ChatTemplate",
    "Conversation",
    "GeneratedToken",
    "Generation",
    "LanguageModel",
    "Message",
    "Sampler",
    "SamplingOptions",
    "TextOptions",
]
