"""A matrix of a GGUF file whose type has evenly spaced levels, as one whose levels can be kept."""

import numpy as np

from elutq_formats.even_levels import EvenLevels
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

    def open_rows(self) -> ReadRows:
        """See ``QuantizedMatrix``."""
        group_of = np.arange(self.shape[1]) // self.group_size

        def read(rows: slice) -> EvenLevels:
            stored = self._weights.read_rows(self.name, *rows.indices(self.shape[0])[:2])
            scales, codes = self._levels.read(stored)
            if not np.isfinite(scales).all():
                self.refuse("it holds a scale that is not finite: the file is damaged")
            zeros = np.full_like(scales, self._levels.zero)
            return EvenLevels(scales, zeros, codes, self.bits, group_of)

        return read


def gguf_tensor(weights: GGUFWeights, name: str) -> Tensor:
    """Return a tensor of an open file, with its levels where they can be kept."""
    if len(weights.shapes[name]) == 2 and weights.dtype(name) in LEVELS:
        return GGUFMatrix(weights, name)
    return StoredTensor(weights, name)
