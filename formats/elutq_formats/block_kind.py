"""Kinds of HLQ blocks: which numbers a group of a row has beside its bits, and how they are stored.

A weight is ``c + sum_k h_k * (2 * bit_k - 1)`` in every kind. ``formats/SPEC.md`` has the table; this module
knows nothing of planes, rows or files.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from elutq_formats.constants import (
    CENTER_SHIFT,
    HALF_SCALE_SHIFT,
    KIND_BYTES,
    KIND_CENTERS,
    KIND_EVEN,
    MAX_EXPONENT,
    TILE_ROWS,
)
from elutq_formats.errors import FormatError

KIND_NUMBERS = {
    "free16": 0,
    "free8": KIND_BYTES,
    "even16": KIND_EVEN,
    "even8": KIND_EVEN | KIND_BYTES,
    "even16c": KIND_EVEN | KIND_CENTERS,
    "even8c": KIND_EVEN | KIND_BYTES | KIND_CENTERS,
}

CENTER_UNIT = 0.25
"""What centers of even kinds are counted in, of the group's half scale h_1. With whole half scales the squared error at
4 bits and groups of 128 is 14 % above that of free centers, with halves 3 %, with quarters 1 %."""

LARGEST_HALF = 65504.0

HalfScales = npt.NDArray[np.float16]
Centers = npt.NDArray[np.float16] | npt.NDArray[np.float32]
"""Of even kinds float32: products of a half scale and a whole number."""

_Floats = npt.NDArray[np.floating[Any]]
_Stored = npt.NDArray[np.uint16] | npt.NDArray[np.uint8] | npt.NDArray[np.int8]


class Numbers(NamedTuple):
    """Numbers of the groups of some rows as a file stores them.

    Attributes:
        half_scales: (rows, groups, bits, or 1 where the kind is even) uint16 or uint8.
        centers: (rows, groups, 1) uint16, uint8 or int8; (rows, groups, 0) where the matrix has one for all.
    """

    half_scales: _Stored
    centers: _Stored


@dataclass(frozen=True)
class BlockKind:
    """How the blocks of a matrix hold their numbers.

    Attributes:
        name: one of ``KIND_NUMBERS``.
        exponent: numbers that are bytes are multiplied by two to this power; 0 for kinds without.
        center: of every group, in quarters of its half scale, where the kind has no centers of groups; 0 for others.
    """

    name: str = "free16"
    exponent: int = 0
    center: int = 0

    def __post_init__(self) -> None:
        if self.name not in KIND_NUMBERS:
            raise FormatError(f"no HLQ matrix is of kind {self.name!r:.40}: kinds are {', '.join(KIND_NUMBERS)}")
        if not 0 <= self.exponent <= (MAX_EXPONENT if self.has_bytes else 0):
            raise FormatError(f"an exponent of {self.exponent}, which the kind {self.name} cannot have")
        if not -128 <= self.center < 128 or (self.center and self.has_centers):
            raise FormatError(f"a center of {self.center} quarters of h_1, which the kind {self.name} cannot have")

    @classmethod
    def numbered(cls, number: int, exponent: int, center: int) -> "BlockKind":
        """Return the kind that a file's numbers name.

        Raises:
            FormatError: there is none.
        """
        names = [name for name, known in KIND_NUMBERS.items() if known == number]
        return cls(names[0] if names else str(number), exponent, center)

    @classmethod
    def fitting(
        cls, name: str, half_scales: npt.ArrayLike, centers: npt.ArrayLike = 0.0, center: int = 0
    ) -> "BlockKind":
        """Return the kind with the smallest exponent that has room for these numbers, of any shape."""
        kind = cls(name, center=center)
        if not kind.has_bytes:
            return kind
        reach = np.max(half_scales) / _value_of(np.uint8(255), HALF_SCALE_SHIFT)
        if not kind.is_even:
            reach = max(reach, np.max(np.abs(centers)) / _value_of(np.uint8(127), CENTER_SHIFT))
        exponent = int(np.ceil(np.log2(reach))) if reach > 1 else 0
        return cls(name, min(exponent, MAX_EXPONENT), center)

    @property
    def number(self) -> int:
        """What a file calls it."""
        return KIND_NUMBERS[self.name]

    @property
    def has_bytes(self) -> bool:
        """Whether half scales are bytes, and centers if they are free."""
        return bool(self.number & KIND_BYTES)

    @property
    def is_even(self) -> bool:
        """Whether levels are evenly spaced: each half scale is twice that of the plane before."""
        return bool(self.number & KIND_EVEN)

    @property
    def has_centers(self) -> bool:
        """Whether each group of a row has its own center."""
        return not self.is_even or bool(self.number & KIND_CENTERS)

    @property
    def centers_type(self) -> np.dtype[Any]:
        """What centers are held in: of even kinds float32, as products of a half scale and a whole number."""
        return np.dtype(np.float32 if self.is_even else np.float16)

    def scales_bytes(self, bits: int) -> int:
        """Bytes of a block's half scales and centers: a multiple of 32."""
        width = 1 if self.has_bytes else 2
        if not self.is_even:
            return TILE_ROWS * width * (bits + 1)
        return TILE_ROWS * (width + self.has_centers)

    def nearest(self, half_scales: _Floats, centers: _Floats) -> tuple[HalfScales, Centers]:
        """Round numbers to those that the kind has; beyond the largest, to that.

        Args:
            half_scales: (rows, groups, bits), finite and not negative. Of an even kind their sum decides.
            centers: (rows, groups), finite.
        """
        return self.decode(self._round(half_scales, centers), half_scales.shape[-1])

    def round_half_scales(self, values: _Floats) -> HalfScales:
        """Round half scales one by one, of any shape, as ``nearest`` does where the kind is not even."""
        return self.restore_half_scales(self.stored_half_scales(values))

    def round_centers(self, values: _Floats) -> npt.NDArray[np.float16]:
        """Round centers one by one, of any shape, as ``nearest`` does where the kind is not even."""
        return self._free_centers(self._stored_centers(values))

    def encode(self, half_scales: HalfScales, centers: Centers) -> Numbers:
        """Return what a file stores of numbers, (rows, groups, bits) and (rows, groups), that the kind has.

        Raises:
            FormatError: it has not all of them, or one is negative or not finite.
        """
        check_numbers(half_scales, centers)
        if self == FREE16:
            return Numbers(half_scales.view(np.uint16), np.ascontiguousarray(centers[..., None]).view(np.uint16))
        numbers = self._round(half_scales, centers)
        back = self.decode(numbers, half_scales.shape[-1])
        if not (np.array_equal(back[0], half_scales) and np.array_equal(back[1], centers)):
            raise FormatError(f"half scales or centers that {self} blocks do not have: they must be rounded first")
        return numbers

    def decode(self, numbers: Numbers, bits: int) -> tuple[HalfScales, Centers]:
        """Return half scales (rows, groups, bits) and centers (rows, groups).

        Raises:
            FormatError: one is negative, not finite, or would be in a higher plane.
        """
        half_scales = self.restore_half_scales(numbers.half_scales)
        centers: Centers
        if self.is_even:
            first = half_scales.astype(np.float32)
            with np.errstate(over="ignore", invalid="ignore"):
                half_scales = (first * 2.0 ** np.arange(bits, dtype=np.float32)).astype(np.float16)
                counts = numbers.centers.astype(np.float32) if self.has_centers else np.float32(self.center)
                centers = (first * (counts * np.float32(CENTER_UNIT)))[..., 0]
        else:
            centers = self._free_centers(numbers.centers)[..., 0]
        check_numbers(half_scales, centers)
        return half_scales, centers

    @property
    def factor(self) -> np.float32:
        """What numbers that are bytes are multiplied by; of a type that float16 arrays are not divided in."""
        factor: np.float32 = np.float32(1 << self.exponent)
        return factor

    def restore_half_scales(self, stored: _Stored) -> HalfScales:
        """Return the half scales, of any shape, that a file stores so."""
        if self.has_bytes:
            return (_value_of(stored, HALF_SCALE_SHIFT) * self.factor).astype(np.float16)
        return stored.view(np.float16)

    def _free_centers(self, stored: _Stored) -> npt.NDArray[np.float16]:
        if self.has_bytes:
            signs = np.where(stored >= 128, -self.factor, self.factor)
            values: npt.NDArray[np.float16] = (signs * _value_of(stored & 127, CENTER_SHIFT)).astype(np.float16)
            return values
        return stored.view(np.float16)

    def stored_half_scales(self, values: _Floats) -> _Stored:
        """Return what a file stores of the nearest half scales, of any shape."""
        if self.has_bytes:
            return _to_bytes(values / self.factor, HALF_SCALE_SHIFT, 255)
        return _to_half(values).view(np.uint16)

    def _stored_centers(self, values: _Floats) -> _Stored:
        if self.has_bytes:
            magnitudes = _to_bytes(np.abs(values) / self.factor, CENTER_SHIFT, 127)
            stored: npt.NDArray[np.uint8] = magnitudes | np.where(values < 0, np.uint8(128), np.uint8(0))
            return stored
        return _to_half(values).view(np.uint16)

    def _round(self, half_scales: _Floats, centers: _Floats) -> Numbers:
        """Return what stands for the nearest numbers: (rows, groups, bits) and (rows, groups)."""
        if self.is_even:
            half_scales = half_scales.sum(axis=-1, keepdims=True, dtype=np.float64) / (2 ** half_scales.shape[-1] - 1)
        stored = self.stored_half_scales(half_scales)
        centers = centers[..., None]
        if self.is_even:
            unit = CENTER_UNIT * self.restore_half_scales(stored).astype(np.float64)
            counts = np.divide(centers, unit, out=np.zeros_like(unit), where=unit > 0)
            return Numbers(stored, np.clip(np.rint(counts), -128, 127).astype(np.int8)[..., : int(self.has_centers)])
        return Numbers(stored, self._stored_centers(centers))

    def __str__(self) -> str:
        """The kind's name."""
        return self.name


FREE16 = BlockKind()


def check_numbers(half_scales: HalfScales, centers: Centers) -> None:
    """Refuse numbers with which the kernels' error bounds, and any arithmetic, are meaningless.

    Raises:
        FormatError: one is not finite, or a half scale negative.
    """
    if not (np.isfinite(half_scales).all() and np.isfinite(centers).all()):
        raise FormatError("an HLQ matrix holds a scale or center that is not finite")
    if (half_scales < 0).any():
        raise FormatError("an HLQ matrix holds a negative half scale")


def _value_of(bytes_: npt.ArrayLike, shift: int) -> npt.NDArray[np.float32]:
    """Return the fp16 numbers whose bits are those of bytes, shifted left: the same shape, float32."""
    bits = np.left_shift(np.asarray(bytes_), shift, dtype=np.uint16)
    values: npt.NDArray[np.float32] = bits.view(np.float16).astype(np.float32)
    return values


def _to_bytes(values: _Floats, shift: int, largest: int) -> npt.NDArray[np.uint8]:
    """Return the bytes whose values are nearest to numbers that are not negative; beyond the largest, that.

    The bits of fp16 numbers, read as integers, have their order, and steps of one size between powers of two. Of two
    bytes equally near to the fp16 number it is the larger. The quantizer's C code (grid.h) does the same.
    """
    halves = _to_half(np.minimum(values, 1.0)).view(np.uint16).astype(np.int32)
    found: npt.NDArray[np.uint8] = np.minimum((halves + (1 << (shift - 1))) >> shift, largest).astype(np.uint8)
    return found


def _to_half(values: _Floats) -> npt.NDArray[np.float16]:
    """Round to fp16 by way of float32, as C does; too large values to the largest."""
    return np.clip(values, -LARGEST_HALF, LARGEST_HALF).astype(np.float32).astype(np.float16)
