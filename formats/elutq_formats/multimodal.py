"""The text model of a checkpoint that has others beside it, for images or sound."""

from collections.abc import Mapping
from typing import Any

WRAPPERS: Mapping[str, tuple[str, ...]] = {
    "gemma3": ("vision_tower.", "multi_modal_projector."),
    "mistral3": ("vision_tower.", "multi_modal_projector."),
}
"""What the names of other tensors begin with, by ``model_type``; there may be ``model.`` before."""

_TOKENS = "bos_token_id", "eos_token_id"


def text_model(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the ``config.json`` of the text model: the whole, or what a wrapper says of it."""
    inner = config.get("text_config")
    if str(config.get("model_type")) not in WRAPPERS or not isinstance(inner, dict):
        return config
    outer = {name: config[name] for name in (*_TOKENS, "tie_word_embeddings") if config.get(name) is not None}
    return {**outer, **{name: value for name, value in inner.items() if value is not None or name not in outer}}


def is_of_text(name: str, config: Mapping[str, Any]) -> bool:
    """Whether a stored tensor is of the text model of the checkpoint with this ``config.json``."""
    others = WRAPPERS.get(str(config.get("model_type")), ())
    return not name.removeprefix("model.").startswith(tuple(others))
