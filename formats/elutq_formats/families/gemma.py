"""Gemma 1, and CodeGemma: a Llama with a GELU gate, norms stored less one, and an embedding that is multiplied."""

from elutq_formats.config import ModelConfig
from elutq_formats.errors import UnsupportedModelError
from elutq_formats.family import Family, InGGUF, Parts, Settings, multiplied, one_more
from elutq_formats.fields import Fields
from elutq_formats.gguf_keys import Keys

DEFAULTS = {
    "num_key_value_heads": 16,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "bos_token_id": 2,
    "eos_token_id": 1,
}


def read(fields: Fields) -> Settings:
    """Read the biases that attention may have; what early files call gelu is the approximation, too."""
    activation = fields["hidden_activation"] or "gelu_pytorch_tanh"
    if activation != "gelu_pytorch_tanh":
        raise UnsupportedModelError(f"hidden_activation {activation!r:.60} is not supported in gemma")
    biased = fields.boolean("attention_bias", False)
    return {"hidden_act": activation, "attention_bias": biased, "attention_output_bias": biased}


def parts(fields: Fields, config: ModelConfig) -> Parts:
    """Norms are stored less one, and the embedding is multiplied by the root of its width."""
    return multiplied(config, one_more(config, {}), embedding=config.hidden_size**0.5)


def gguf_parts(keys: Keys, config: ModelConfig) -> Parts:
    """The norms are whole there."""
    return multiplied(config, {}, embedding=config.hidden_size**0.5)


FAMILY = Family(
    "gemma", read, DEFAULTS, parts, InGGUF(lambda keys: {"hidden_act": "gelu_pytorch_tanh"}, parts=gguf_parts)
)
