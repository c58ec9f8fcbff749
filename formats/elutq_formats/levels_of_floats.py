"""Ternary and binary matrices that are stored as floats: found by looking at every weight.

Models that are trained so, such as Bonsai, are also published unpacked: then all weights of a group of columns of a row
are -s, 0 or s, or without 0. The scale is a group's own, a row's, or that of the whole matrix.
"""

import numpy as np

from elutq_formats.even_levels import EvenLevels
from elutq_formats.hlq import GROUP_SIZES
from elutq_formats.quantized_matrix import PIECE_WEIGHTS, ReadRows, WholeMatrix
from elutq_formats.safetensors_file import Run
from elutq_formats.stored_weights import StoredTensor

TERNARY, BINARY = 2, 1
"""Bits of a code: of -s, 0 and s the middle level is 1 of four; of -s and s the middle lies between both."""


class FloatsOnLevels(WholeMatrix):
    """A matrix that ``find_levels`` has looked at: see ``QuantizedMatrix``."""

    def open_rows(self) -> ReadRows:
        """See ``QuantizedMatrix``."""
        group_of = np.arange(self.shape[1]) // self.group_size

        def read(rows: slice) -> EvenLevels:
            weights = self.tensor.load(rows=rows)
            scales = np.abs(weights).reshape(len(weights), -1, self.group_size).max(axis=-1)
            if self.bits == BINARY:
                return EvenLevels(2 * scales, np.full_like(scales, 0.5), (weights > 0).view(np.uint8), BINARY, group_of)
            codes = (np.sign(weights) + 1).astype(np.uint8)
            return EvenLevels(scales, np.ones_like(scales), codes, TERNARY, group_of)

        return read


def find_levels(name: str, tensor: StoredTensor, run: Run = map) -> FloatsOnLevels | None:
    """Look whether a matrix is ternary or binary in groups of ours.

    Args:
        name: of the matrix.
        tensor: that holds it.
        run: ``map``, or what does the same on several threads.

    Returns:
        The matrix in its largest groups; None: it is not.

    Raises:
        CheckpointError: it cannot be read.
    """
    n_rows, columns = tensor.shape
    sizes = {size for size in GROUP_SIZES if columns % size == 0}
    zeros: set[bool] = set()

    def look(first: int, end: int) -> None:
        magnitudes = np.abs(tensor.load(rows=slice(first, end)))
        zeros.add(bool((magnitudes == 0).any()))
        for size in tuple(sizes):
            grouped = magnitudes.reshape(-1, size)
            if not ((grouped == grouped.max(axis=1, keepdims=True)) | (grouped == 0)).all():
                sizes.discard(size)

    def look_from(first: int) -> None:
        if sizes:
            look(first, min(first + at_once, n_rows))

    at_once = max(1, PIECE_WEIGHTS // columns)
    look(0, 1)  # that of a matrix which is not, as a rule, shows it
    for _ in run(look_from, range(0, n_rows, at_once)):
        pass
    return FloatsOnLevels(name, tensor, TERNARY if True in zeros else BINARY, max(sizes)) if sizes else None
