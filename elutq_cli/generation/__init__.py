"""From logits to text: sampling, and the loop that generates."""

from elutq_cli.generation.generate import GeneratedToken, Generation, generate
from elutq_cli.generation.sampling import Sampler, SamplingOptions

__all__ = ["GeneratedToken", "Generation", "Sampler", "SamplingOptions", "generate"]
