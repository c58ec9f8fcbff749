"""What ``config.json`` says of how others have quantized a checkpoint."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from elutq_formats.errors import CheckpointError, UnsupportedModelError

SETTINGS_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
"""What AutoGPTQ and AutoAWQ write beside config.json, and wrote alone at first, with the method that each means."""

_MLX = "quantization"
"""Under which MLX has its settings, and repeats them under ``quantization_config``; they name no method."""

BITS = (2, 3, 4)
"""Bits of codes that are read."""

_VARIES = ("dynamic", "extra_config")
"""Keys under which some matrices have other bits or groups than the rest."""

_BITS_KEYS, _GROUP_KEYS = ("bits", "w_bit"), ("group_size", "q_group_size")
_FLAGS = ("desc_act", "sym", "zero_point", "is_marlin_format", "use_rms_norm")

_WHOLE_ROW = -1
"""A size of groups: all columns share a scale."""

_LARGEST = 2**31 - 1


@dataclass(frozen=True)
class QuantizationSettings:
    """The settings, none of them checked before ``check`` is called, or it is used.

    Attributes:
        method: by which the checkpoint calls itself quantized: ``quant_method``.
        values: all of them.
        file: that they stand in.
    """

    method: str
    values: Mapping[str, Any] = field(default_factory=dict)
    file: str = "config.json"

    @classmethod
    def of_config(
        cls, config: Mapping[str, Any], beside: Mapping[str, Mapping[str, Any]]
    ) -> "QuantizationSettings | None":
        """Return what a checkpoint says; None when it does not call itself quantized.

        Args:
            config: contents of ``config.json``.
            beside: contents of those of ``SETTINGS_FILES`` that there are, by name.

        Raises:
            CheckpointError: what it says is no object.
        """
        for key in ("quantization_config", "compression_config", _MLX):
            if (values := config.get(key)) is not None:
                if not isinstance(values, dict):
                    raise CheckpointError(f"config.json's {key} is {values!r:.40}, and not an object: it is damaged")
                return cls(str(values.get("quant_method") or _method(key, config, values)), values)
        for file, method in SETTINGS_FILES.items():
            if values := beside.get(file):
                return cls(str(values.get("quant_method") or method), values, file)
        return None

    def check(self) -> None:
        """Refuse numbers that are none, or no such, wherever the settings have them.

        Raises:
            UnsupportedModelError: they have some.
        """
        for values in (self.values, *self.exceptions):
            for key in _BITS_KEYS:
                self.integer(key, values)
            for key in _GROUP_KEYS:
                self.groups(key, values)
            for key in _FLAGS:
                self.flag(key, values)

    @property
    def exceptions(self) -> list[Mapping[str, Any]]:
        """What some matrices have in the place of what the settings say of all; where it is no object, they have none.

        Raises:
            UnsupportedModelError: what holds them is no object.
        """
        found = [values for key in _VARIES for values in self.mapping(key).values()]
        return [values for values in found if isinstance(values, dict)]

    @property
    def varies(self) -> bool:
        """Whether some matrices have other bits or groups than the settings say of all."""
        return any(self.mapping(key) for key in _VARIES)

    def mapping(self, key: str) -> Mapping[str, Any]:
        """Return a setting that is an object; an empty one where there is none.

        Raises:
            UnsupportedModelError: it is something else.
        """
        value = self.values.get(key)
        if value is not None and not isinstance(value, dict):
            self._refuse_value(key, value, "an object")
        return value or {}

    def check_bits(self, bits: int) -> None:
        """Refuse bits of codes that no HLQ matrix has, or other than the settings say.

        Raises:
            UnsupportedModelError: they are such.
        """
        said = next((found for key in _BITS_KEYS if (found := self.integer(key)) is not None), bits)
        if not self.varies and said != bits:
            self.refuse(f"{self.file} says {said} bits, and the tensors are of {bits}")
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
            self.refuse(f"{n_groups} groups in {columns} columns, and {self.file} has groups of {said}")
        return said

    def stated_group_size(self, columns: int) -> int:
        """Return how many columns share a scale as the settings say: all where they say nothing, or -1.

        Args:
            columns: of a matrix.

        Raises:
            UnsupportedModelError: they say what is no size of groups.
        """
        said = next((found for key in _GROUP_KEYS if (found := self.groups(key)) is not None), _WHOLE_ROW)
        return columns if said == _WHOLE_ROW else min(said, columns)

    def integer(self, key: str, values: Mapping[str, Any] | None = None) -> int | None:
        """Return a setting that is a whole number from 1 on; None where there is none.

        Args:
            key: of the setting.
            values: that hold it; None: the settings themselves.

        Raises:
            UnsupportedModelError: it is something else, or larger than any such number is.
        """
        value = (self.values if values is None else values).get(key)
        if value is not None and not (type(value) is int and 1 <= value <= _LARGEST):
            self._refuse_value(key, value, f"a whole number from 1 to {_LARGEST}")
        return value

    def groups(self, key: str, values: Mapping[str, Any] | None = None) -> int | None:
        """Return the same of one that is a size of groups, or -1."""
        value = (self.values if values is None else values).get(key)
        return value if type(value) is int and value == _WHOLE_ROW else self.integer(key, values)

    def flag(self, key: str, values: Mapping[str, Any] | None = None) -> bool:
        """Return a setting that is true or false; false where there is none.

        Raises:
            UnsupportedModelError: it is something else.
        """
        value = (self.values if values is None else values).get(key)
        if value is not None and not isinstance(value, bool):
            self._refuse_value(key, value, "true or false")
        return bool(value)

    def text(self, key: str, usual: str) -> str:
        """Return a setting that is a word, in small letters; the usual one where there is none.

        Raises:
            UnsupportedModelError: it is something else.
        """
        value = self.values.get(key)
        if value is not None and not isinstance(value, str):
            self._refuse_value(key, value, "a word")
        return usual if value is None else value.lower()

    def layout(self, names: Sequence[str], usual: str, read: Collection[str]) -> str:
        """Return a setting that tells how matrices are laid out, as a word.

        Args:
            names: of the setting: tools, and their versions, call it otherwise, and some write it twice.
            usual: the word where there is none.
            read: those that are read.

        Raises:
            UnsupportedModelError: it is none of them, or is told twice and not alike.
        """
        found = {name: self.text(name, usual) for name in names if self.values.get(name) is not None}
        for name, word in found.items():
            if word not in read:
                self.refuse(f"its {name} is {word!r:.40}, and {' and '.join(read)} are read")
        if len(set(found.values())) > 1:
            told = ", but its ".join(f"{name} is {word!r}" for name, word in found.items())
            self.refuse(f"its {told}: they are to be the same")
        return next(iter(found.values()), usual)

    def _refuse_value(self, key: str, value: object, wanted: str) -> NoReturn:
        self.refuse(f"{self.file}'s {key} is {value!r:.40}, and not {wanted}")

    def refuse(self, reason: str) -> NoReturn:
        """Raise an UnsupportedModelError that names the method."""
        raise UnsupportedModelError(f"a checkpoint quantized by {self.method!r:.40}: {reason}")


def _method(key: str, config: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    """Return the method of settings that name none; the key that they stand under where nothing tells it."""
    if "load_in_4bit" in values or "load_in_8bit" in values:
        return "bitsandbytes"
    return "MLX" if _MLX in config else key
