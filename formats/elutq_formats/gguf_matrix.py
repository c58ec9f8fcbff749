"""A matrix of a GGUF file whose type has evenly spaced levels, as one whose levels can be kept."""

import numpy as np

from elutq_formats.block_kind import FREE16
from elutq_formats.even_levels import EvenLevels, LevelsFromMinima, StoredLevels
from elutq_formats.gguf_levels import LEVELS
from elutq_formats.gguf_weights import GGUFWeights
from elutq_formats.quantized_matrix import ReadRows, WholeMatrix
from elutq_formats.stored_weights import StoredTensor, Tensor


class GGUFMatrix(WholeMatrix):
    """See ``QuantizedMatrix``."""

    def __init__(self, weights: GGUFWeights, name: str) -> None:
        """Take a matrix of an open file, of one of the types in ``LEVELS``, by the model's name."""
        self._weights, self._levels = weights, LEVELS[weights.dtype(name)]
        super().__init__(name, StoredTensor(weights, name), self._levels.bits, self._levels.block)
        if self._levels.zero is None:
            self.kind = FREE16.name

    def open_rows(self) -> ReadRows:
        """See ``QuantizedMatrix``."""
        group_of = np.arange(self.shape[1]) // self.group_size

        def read(rows: slice) -> StoredLevels:
            first, end, step = rows.indices(self.shape[0])
            stored = self._weights.read_rows(self.name, first, end)[::step]
            scales, codes = self._levels.read(stored)
            zero = self._levels.zero
            others = self._levels.read_minima(stored) if zero is None else np.full_like(scales, zero)
            if not (np.isfinite(scales).all() and np.isfinite(others).all()):
                self.refuse("it holds a scale that is not finite: the file is damaged")
            return (LevelsFromMinima if zero is None else EvenLevels)(scales, others, codes, self.bits, group_of)

        return read


def gguf_tensor(weights: GGUFWeights, name: str) -> Tensor:
    """Return a tensor of an open file, with its levels where they can be kept."""
    if len(weights.shapes[name]) == 2 and weights.dtype(name) in LEVELS:
        return GGUFMatrix(weights, name)
    return StoredTensor(weights, name)
