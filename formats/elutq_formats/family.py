"""What a family of models is: what its ``config.json`` says, under which name a model file has it.

It knows no family by name: those are the files of ``families``, each named after its ``model_type``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from elutq_formats.errors import CheckpointError, UnsupportedModelError
from elutq_formats.fields import Fields
from elutq_formats.rope import RopeScaling

Settings: TypeAlias = dict[str, Any]
"""Fields of a ``ModelConfig`` by name."""


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        architecture: llama.cpp's name of it, which is the prefix of its keys in a model file.
        settings: reads what the family says in its own way, or does not say; the rest is read as a Llama's.
        defaults: what transformers assumes when ``config.json`` leaves a key out.
    """

    architecture: str
    settings: Callable[[Fields], Settings]
    defaults: Mapping[str, Any] = field(default_factory=dict)


def read_rope(fields: Fields) -> Settings:
    """Read RoPE from ``rope_parameters`` (transformers 5) or ``rope_theta`` and ``rope_scaling`` (before).

    Raises:
        UnsupportedModelError: it turns in a way that is not implemented.
        CheckpointError: a field is impossible, or two contradict each other.
    """
    settings = fields.mapping("rope_parameters")
    if added := fields.mapping("rope_scaling"):
        if settings and RopeScaling.from_huggingface(added) != RopeScaling.from_huggingface(settings):
            raise CheckpointError(
                "config.json has rope_scaling beside rope_parameters, and they differ: write what is meant into "
                "rope_parameters, and leave rope_scaling out"
            )
        settings = {**added, **settings}
    partial = "partial_rotary_factor"
    if any(isinstance(value, dict) for value in settings.values()):
        raise UnsupportedModelError("RoPE settings that differ between layers are not supported")
    if any(factor not in (None, 1) for factor in (settings.get(partial), fields[partial])):
        raise UnsupportedModelError("partial_rotary_factor is not supported: RoPE covers whole heads")
    theta = Fields(settings, "config.json").number("rope_theta", fields.number("rope_theta", 10000.0))
    return {"rope_theta": theta, "rope_scaling": RopeScaling.from_huggingface(settings)}
