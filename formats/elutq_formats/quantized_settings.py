"""What ``config.json`` says of how others have quantized a checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from elutq_formats.errors import CheckpointError, UnsupportedModelError

BITS = (2, 3, 4)
"""Bits of codes that are read."""

_VARIES = ("dynamic", "extra_config")
"""Keys under which some matrices have other bits or groups than the rest."""


@dataclass(frozen=True)
class QuantizationSettings:
    """The settings, none of them checked before it is used.

    Attributes:
        method: by which the checkpoint calls itself quantized: ``quant_method``.
        values: all of them.
    """

    method: str
    values: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of_config(cls, config: Mapping[str, Any], beside: Mapping[str, Any]) -> "QuantizationSettings | None":
        """Return what a checkpoint says; None when it does not call itself quantized.

        Args:
            config: contents of ``config.json``.
            beside: contents of ``quantize_config.json``, where AutoGPTQ wrote them first; empty when there is none.

        Raises:
            CheckpointError: what it says is no object.
        """
        for key in ("quantization_config", "compression_config"):
            if (values := config.get(key)) is not None:
                if not isinstance(values, dict):
                    raise CheckpointError(f"config.json's {key} is {values!r:.40}, and not an object: it is damaged")
                return cls(str(values.get("quant_method") or key), values)
        return cls(str(beside.get("quant_method") or "gptq"), beside) if beside else None

    @property
    def varies(self) -> bool:
        """Whether some matrices have other bits or groups than the settings say of all."""
        exceptions = [self.mapping(key) for key in _VARIES]  # all of them: each is checked
        return any(exceptions)

    def mapping(self, key: str) -> Mapping[str, Any]:
        """Return a setting that is an object; an empty one where there is none.

        Raises:
            UnsupportedModelError: it is something else.
        """
        value = self.values.get(key)
        if value is not None and not isinstance(value, dict):
            self.refuse(f"config.json's {key} is {value!r:.40}, and not an object")
        return value or {}

    def check_bits(self, bits: int) -> None:
        """Refuse bits of codes that no HLQ matrix has, or other than the settings say.

        Raises:
            UnsupportedModelError: they are such.
        """
        said = self.values.get("bits", self.values.get("w_bit"))
        if not self.varies and said is not None and said != bits:
            self.refuse(f"config.json says {said!r:.20} bits, and the tensors are of {bits}")
        if bits not in BITS:
            self.refuse(f"{bits} bits a weight: {', '.join(map(str, BITS))} are read")

    def group_size(self, columns: int, n_groups: int) -> int:
        """Return how many columns share a scale.

        Args:
            columns: of a matrix.
            n_groups: that it has; at least 1.

        Raises:
            UnsupportedModelError: that is not what the settings say, or its groups are not all of one size.
        """
        if self.varies and columns % n_groups == 0:
            return columns // n_groups
        said = self.stated_group_size(columns)
        if -(-columns // said) != n_groups:
            self.refuse(f"{n_groups} groups in {columns} columns, and config.json has groups of {said}")
        return said

    def stated_group_size(self, columns: int) -> int:
        """Return how many columns share a scale as the settings say: all where they say nothing, or -1.

        Args:
            columns: of a matrix.

        Raises:
            UnsupportedModelError: they say what is no size of groups.
        """
        said = self.values.get("group_size", self.values.get("q_group_size"))
        if said in (-1, None):
            return columns
        if not isinstance(said, int) or said < 1:
            self.refuse(f"config.json has groups of {said!r:.20}")
        return min(said, columns)

    def text(self, key: str, usual: str) -> str:
        """Return a setting that is a word; the usual one where there is none."""
        value = self.values.get(key)
        return usual if value is None else str(value).lower()

    def refuse(self, reason: str) -> NoReturn:
        """Raise an UnsupportedModelError that names the method."""
        raise UnsupportedModelError(f"a checkpoint quantized by {self.method!r:.40}: {reason}")
