"""The keys of one architecture in the metadata of a GGUF file that other tools made."""

from elutq_formats.errors import UnsupportedModelError
from elutq_formats.gguf import ValueType
from elutq_formats.metadata import Metadata


class Keys:
    """Keys ``architecture.name``, by name; those that the file lacks have defaults.

    Attributes:
        metadata: of the file.
        architecture: of the model.
    """

    def __init__(self, metadata: Metadata, architecture: str) -> None:
        self.metadata = metadata
        self.architecture = architecture

    def __contains__(self, name: str) -> bool:
        return self.full(name) in self.metadata

    def full(self, name: str) -> str:
        """Return a key as the file has it."""
        return f"{self.architecture}.{name}"

    def integer(self, name: str, default: int, minimum: int = 1) -> int:
        """Return an integer of at least ``minimum``."""
        return self.metadata.integer(self.full(name), minimum) if name in self else default

    def of_all_layers(self, name: str, default: int | None = None) -> int:
        """Return a positive integer, which a file may have for each layer, if it is the same for all.

        Args:
            name: of the key.
            default: where the file lacks it; None: it must not.

        Raises:
            UnsupportedModelError: it is not.
            FormatError: the file lacks it.
        """
        key = self.full(name)
        if not self.metadata.is_array(key):
            return self.metadata.integer(key) if default is None else self.integer(name, default)
        found = set(self.metadata.integers(key))
        if len(found) != 1 or not 0 < min(found) < 2**31:
            raise UnsupportedModelError(f"{key} differs from layer to layer, which is not supported")
        return int(found.pop())

    def number(self, name: str, default: float) -> float:
        """Return a positive number."""
        return self.metadata.number(self.full(name)) if name in self else default

    def number_or_zero(self, name: str) -> float:
        """Return a number that may be 0, which it also is where the file lacks it."""
        if name not in self or self.metadata.real(self.full(name)) == 0:
            return 0.0
        return self.number(name, 0.0)

    def string(self, name: str, default: str) -> str:
        """Return a text."""
        return self.metadata.string(self.full(name)) if name in self else default

    def flags(self, name: str, default: tuple[bool, ...]) -> tuple[bool, ...]:
        """Return a flag for each layer.

        Raises:
            UnsupportedModelError: it is no array of flags.
        """
        if name not in self:
            return default
        if not self.metadata.is_array(self.full(name)):
            raise UnsupportedModelError(f"{self.full(name)} that is no array of flags is not supported")
        return tuple(self.metadata.array(self.full(name), ValueType.BOOL))
