"""A checkpoint's ``config.json``: the family that it names, and the configuration that this family reads in it."""

from collections.abc import Mapping
from typing import Any

from elutq_formats.config import ModelConfig, check_limits
from elutq_formats.errors import CheckpointError, UnsupportedModelError
from elutq_formats.families import find_family
from elutq_formats.family import Family, Parts, read_rope
from elutq_formats.fields import Fields
from elutq_formats.multimodal import text_model
from elutq_formats.special_tokens import BOS_NAME, END_OF_TEXT_NAMES
from elutq_formats.unsupported_families import refuse_family


def read_config(
    config: Mapping[str, Any], generation_config: Mapping[str, Any], tokenizer_ids: Mapping[str, int]
) -> ModelConfig:
    """Read a configuration: see ``ModelConfig.from_huggingface``."""
    config = text_model(config)
    model_type, family = _family(config)
    fields = Fields(config, "config.json", family.defaults)
    hidden_size, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    if fields["head_dim"] is None and hidden_size % heads:
        raise CheckpointError(f"config.json: hidden_size {hidden_size} is not a multiple of {heads} heads")
    vocab_size = fields.integer("vocab_size")
    settings: dict[str, Any] = {
        "model_type": model_type,
        "hidden_size": hidden_size,
        "intermediate_size": fields.integer("intermediate_size"),
        "num_hidden_layers": fields.integer("num_hidden_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": fields.integer("num_key_value_heads", heads),
        "head_dim": fields.integer("head_dim", max(1, hidden_size // heads)),
        "vocab_size": vocab_size,
        "max_position_embeddings": fields.integer("max_position_embeddings"),
        "rms_norm_eps": fields.number("rms_norm_eps", 1e-6),
        "tie_word_embeddings": fields.boolean("tie_word_embeddings", False),
    }
    check_limits(settings)
    settings |= family.settings(fields)
    for key in ("num_experts", "num_local_experts"):
        if fields[key] and "n_experts" not in settings:
            raise UnsupportedModelError(
                f"mixtures of experts ({key}) are not supported in {model_type}: it is, where it is dense"
            )
    if "hidden_act" not in settings:
        _check_silu(fields["hidden_act"])
    if "rope_theta" not in settings:
        settings |= read_rope(fields)
    bos, eos = _text_ends(fields, Fields(generation_config, "generation_config.json"), tokenizer_ids)

    def known(ids: list[int]) -> tuple[int, ...]:
        # Old checkpoints write -1 for "none"; an id past the vocabulary can be neither fed nor sampled.
        return tuple(token for token in dict.fromkeys(ids) if 0 <= token < vocab_size)

    return ModelConfig(**settings, bos_token_id=next(iter(known(bos)), None), eos_token_ids=known(eos))


def read_parts(config: Mapping[str, Any], model: ModelConfig) -> Parts:
    """Return how the checkpoint of a ``config.json`` stores tensors of the model that it does not store as they are.

    Args:
        config: contents of ``config.json``, which ``read_config`` has read.
        model: what it came to, tied as the checkpoint is.
    """
    config = text_model(config)
    _, family = _family(config)
    return family.parts(Fields(config, "config.json", family.defaults), model)


def _text_ends(fields: Fields, generation: Fields, tokenizer_ids: Mapping[str, int]) -> tuple[list[int], list[int]]:
    """Return the tokens that begin a text and those that end one.

    The tokenizer's own come first: text begins with its BOS, and templates write its EOS.
    """
    bos = [tokenizer_ids[BOS_NAME]] if BOS_NAME in tokenizer_ids else []
    bos += [*generation.token_ids("bos_token_id"), *fields.token_ids("bos_token_id")]
    eos = [tokenizer_ids[name] for name in END_OF_TEXT_NAMES if name in tokenizer_ids]
    eos += [*fields.token_ids("eos_token_id"), *generation.token_ids("eos_token_id")]
    return bos, eos


def _check_silu(activation: object) -> None:
    """Refuse another activation of an MLP's gate."""
    if activation not in (None, "silu", "swish"):
        raise UnsupportedModelError(f"hidden_act {activation!r:.60} is not supported: only silu is")


def _family(config: Mapping[str, Any]) -> tuple[str, Family]:
    model_type = config.get("model_type")
    family = find_family(model_type) if isinstance(model_type, str) else None
    if not isinstance(model_type, str) or family is None:
        raise refuse_family(config)
    return model_type, family
