"""GGUF's types of blocks whose levels are evenly spaced, read as the codes and scales that they store.

A weight is ``scale * (code - zero)``, or ``scale * code + minimum``, bit for bit what gguf-py makes of it, or
of ``Q1_0``, which that does not know, llama.cpp.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from elutq_formats.gguf import GGML_TYPES

Bytes = npt.NDArray[np.uint8]

_HALF_BYTES = 2
_POWERS_OF_3 = np.array([1, 3, 9, 27, 81], dtype=np.uint8)
_PAIRS_OF_BITS = np.array([0, 2, 4, 6], dtype=np.uint8)


@dataclass(frozen=True)
class BlockLevels:
    """How the blocks of a type hold them.

    Attributes:
        name: of the type.
        bits: that its codes need.
        zero: the code, or what lies between two, that stands for 0; None: a block has a minimum, in float16 as well,
            after its scale.
        step: from a level to the next, in scales as they are stored.
        scale_at: where a block's scale stands, in float16; all its other bytes are codes.
        unpack: makes codes, (n, weights of a block), of the bytes that hold those of n blocks.
    """

    name: str
    bits: int
    zero: float | None
    step: float
    scale_at: int
    unpack: Callable[[Bytes], Bytes]

    @property
    def block(self) -> int:
        """Weights of a block."""
        return _TYPES[self.name].block

    def read(self, rows: Bytes) -> tuple[npt.NDArray[np.float32], Bytes]:
        """Return the scales, (n, blocks) float32, and the codes, (n, columns) uint8, of rows: (n, row_bytes)."""
        blocks = rows.reshape(-1, _TYPES[self.name].block_bytes)
        scales = _halves(blocks, self.scale_at)
        end = self.scale_at + _HALF_BYTES * (2 if self.zero is None else 1)
        packed = blocks[:, end:] if self.scale_at == 0 else blocks[:, : self.scale_at]
        with np.errstate(invalid="ignore"):  # a damaged one may be no number: who uses it looks
            scales *= np.float32(self.step)
        return scales.reshape(len(rows), -1), self.unpack(packed).reshape(len(rows), -1)

    def read_minima(self, rows: Bytes) -> npt.NDArray[np.float32]:
        """Return the minima, (n, blocks) float32, of rows (n, row_bytes) of a type that has such."""
        return _halves(rows.reshape(-1, _TYPES[self.name].block_bytes), self.scale_at + _HALF_BYTES).reshape(
            len(rows), -1
        )

    def dequantize(self, rows: Bytes) -> npt.NDArray[np.float32]:
        """Return the weights, (n, columns) float32, of rows: (n, row_bytes)."""
        scales, codes = self.read(rows)
        weights = codes.reshape(*scales.shape, self.block).astype(np.float32)
        with np.errstate(invalid="ignore"):
            if self.zero is None:
                weights *= scales[..., None]
                weights += self.read_minima(rows)[..., None]
            else:
                weights -= np.float32(self.zero)
                weights *= scales[..., None]
        return weights.reshape(codes.shape)


def _halves(blocks: Bytes, at: int) -> npt.NDArray[np.float32]:
    """Return the numbers in float16 that stand at some place in blocks, (n, block_bytes): (n, 1) float32."""
    stored = np.ascontiguousarray(blocks[:, at : at + _HALF_BYTES])
    return np.asarray(stored.view("<f2"), dtype=np.float32)


def _nibbles(packed: Bytes) -> Bytes:
    """Low halves of all bytes, then high ones."""
    return np.concatenate([packed & 15, packed >> 4], axis=1)


def _single_bits(packed: Bytes) -> Bytes:
    """Bits of a byte from the lowest on."""
    return np.unpackbits(packed, axis=1, bitorder="little")


def _pairs_of_bits(packed: Bytes) -> Bytes:
    """Of every 32 bytes the lowest pairs of bits, then the next."""
    pairs: Bytes = packed.reshape(-1, 2, 1, 32) >> _PAIRS_OF_BITS[:, None] & np.uint8(3)
    return pairs.reshape(len(packed), -1)


def _base_3_digits(packed: Bytes) -> Bytes:
    """Of 32 bytes the first of five digits, then the second; so of 16; so of 4, of four digits."""
    parts = (packed[:, :32], 5), (packed[:, 32:48], 5), (packed[:, 48:], 4)
    return np.concatenate([_digits(bytes_, n_digits) for bytes_, n_digits in parts], axis=1)


def _digits(packed: Bytes, n_digits: int) -> Bytes:
    """Return the first digits of fractions of 256 in base 3: powers of 3 move each to the point, and bytes overflow."""
    fractions = packed[:, None] * _POWERS_OF_3[:n_digits, None]
    return (fractions.astype(np.uint16) * 3 >> 8).astype(np.uint8).reshape(len(packed), -1)


_TYPES = {kind.name: kind for kind in GGML_TYPES.values()}

LEVELS = {
    levels.name: levels
    for levels in (
        BlockLevels("Q1_0", 1, 0.5, 2, 0, _single_bits),
        BlockLevels("TQ1_0", 2, 1, 1, 52, _base_3_digits),
        BlockLevels("TQ2_0", 2, 1, 1, 64, _pairs_of_bits),
        BlockLevels("Q4_0", 4, 8, 1, 0, _nibbles),
        BlockLevels("Q4_1", 4, None, 1, 0, _nibbles),
    )
}
"""By the types' names. Source: ggml's ggml-common.h."""
