"""Matrices with a row for each token of the vocabulary, some rows at a time: they need no more memory than others."""

from typing import Protocol

import numpy as np
import numpy.typing as npt

from elutq_cli.pipeline.levels import FloatArray
from elutq_cli.pipeline.products import ROWS_AT_ONCE, pieces
from elutq_cli.pipeline.recipe import EMBEDDING
from elutq_cli.reference.transformer import WeightSource
from elutq_formats.constants import SUPERBLOCK_TILES, TILE_ROWS
from elutq_formats.safetensors_file import ALL_ROWS

SUPERBLOCK_ROWS = SUPERBLOCK_TILES * TILE_ROWS
"""Rows whose blocks lie together in a file."""


class RowSource(WeightSource, Protocol):
    """Weights of which some rows can be read without the others."""

    def load(self, name: str, *, rows: slice = ALL_ROWS) -> FloatArray:
        """Return rows of a tensor, in one run."""


def runs_of_rows(n_rows: int) -> list[slice]:
    """Cut the rows of a matrix into runs that go through the stages one after the other."""
    return pieces(n_rows, max(1, ROWS_AT_ONCE // SUPERBLOCK_ROWS) * SUPERBLOCK_ROWS)


def look_up(out: FloatArray, tokens: npt.NDArray[np.int64], rows: slice, values: FloatArray) -> None:
    """Fill in the rows of a matrix that tokens (...) stand for, as far as they are here.

    Args:
        out: (..., columns) float32.
        tokens: (...) rows of the matrix.
        rows: those that are here.
        values: (rows, columns) float32, what they hold.
    """
    here = (tokens >= rows.start) & (tokens < rows.stop)
    out[here] = values[tokens[here] - rows.start]


def embed(source: RowSource, tokens: npt.NDArray[np.int64]) -> FloatArray:
    """Return what the embedding makes of tokens (...): (..., hidden_size) float32."""
    config = source.config
    found = np.empty((*tokens.shape, config.hidden_size), dtype=np.float32)
    for rows in runs_of_rows(config.vocab_size):
        if ((tokens >= rows.start) & (tokens < rows.stop)).any():
            look_up(found, tokens, rows, source.load(EMBEDDING, rows=rows))
    return found
