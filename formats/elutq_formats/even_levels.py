"""Evenly spaced levels of a matrix that others have quantized, and the HLQ matrix that holds them.

A weight is ``scale * (code - zero)``. That is an even kind of HLQ (``formats/SPEC.md``, section 4): half scales
``h_k = 2**(k - 1) * scale / 2``, and a center of ``4 * (2**bits - 1 - 2 * zero)`` quarters of ``h_1``. A negative scale
counts the codes from the other end. Nothing is rounded but ``scale / 2`` to half precision: exact for a float16 scale
of at least 2**-13, and for a bfloat16 one between that and the largest.

Where a group has a smallest level of its own in the place of a zero point, its center is no whole number of quarters:
blocks of kind free16 hold it, rounded to half precision.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from elutq_formats.block_kind import CENTER_UNIT, FREE16, LARGEST_HALF, BlockKind
from elutq_formats.errors import UnsupportedModelError
from elutq_formats.hlq import GROUP_SIZES, HLQTensor

EVEN, EVEN_WITH_CENTERS = "even16", "even16c"
"""Kinds of blocks: one center for all groups of a matrix, or one for each."""

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class StoredLevels(ABC):
    """Some rows of a matrix, or all of them, as a checkpoint or file holds them.

    Attributes:
        scales: (rows, groups) float32, finite: the step from a level to the next; may be negative.
        offsets: (rows, groups) float32: what moves the levels, see the kinds of it.
        codes: (rows, columns) uint8.
        bits: of a code.
        group_of: (columns,) intp: the group of each column.
    """

    scales: FloatArray
    offsets: FloatArray
    codes: npt.NDArray[np.uint8]
    bits: int
    group_of: npt.NDArray[np.intp]

    @classmethod
    def concatenate(cls, parts: "Sequence[StoredLevels]") -> "StoredLevels":
        """Put matrices of the same columns, groups and bits on top of each other."""
        arrays = zip(*((part.scales, part.offsets, part.codes) for part in parts), strict=True)
        scales, offsets, codes = (np.concatenate(array) for array in arrays)
        return cls(scales, offsets, codes, parts[0].bits, parts[0].group_of)

    @abstractmethod
    def dequantize(self) -> FloatArray:
        """Return the weights: (rows, columns) float32."""

    @abstractmethod
    def to_hlq(self) -> HLQTensor:
        """Return the matrix in blocks of ours, in the largest groups that ours and the source's allow.

        Raises:
            UnsupportedModelError: no HLQ matrix has these levels.
        """


class EvenLevels(StoredLevels):
    """A weight is ``scale * (code - offset)``: the offset is the code, or what lies between two, that stands for 0."""

    def dequantize(self) -> FloatArray:
        """Return the weights, see ``StoredLevels``."""
        weights = self.codes.astype(np.float32)
        weights -= self.offsets[:, self.group_of]
        weights *= self.scales[:, self.group_of]
        return weights

    def to_hlq(self) -> HLQTensor:
        """Return the matrix in blocks of an even kind, see ``StoredLevels``."""
        group_size = fitting_group_size(self.group_of)
        groups = self.group_of[::group_size]
        scales, zeros = self.scales[:, groups], self.offsets[:, groups]
        planes = _half_scales(scales, self.bits)
        counts = (2**self.bits - 1 - 2 * zeros) / np.float32(CENTER_UNIT) * np.where(scales < 0, -1.0, 1.0)
        if not np.array_equal(counts, np.rint(counts)) or np.abs(counts).max() > np.iinfo(np.int8).max:
            raise UnsupportedModelError(
                f"a zero point of {zeros.flat[np.abs(counts).argmax()]:g}: centers are eighths of a step, as far "
                "from 0 as sixteen steps"
            )
        same = int(counts.flat[0]) if (counts == counts.flat[0]).all() else None
        kind = BlockKind(EVEN_WITH_CENTERS) if same is None else BlockKind(EVEN, center=same)
        first = planes[..., 0].astype(np.float32)
        centers = (first * (counts.astype(np.float32) * np.float32(CENTER_UNIT))).astype(np.float32)
        codes = _counted_upwards(self.codes, self.scales, self.bits, self.group_of)
        return HLQTensor(planes, centers, codes, group_size, kind)


class LevelsFromMinima(StoredLevels):
    """A weight is ``scale * code + offset``: the offset, finite, is what code 0 stands for."""

    def dequantize(self) -> FloatArray:
        """Return the weights, see ``StoredLevels``."""
        weights = self.codes.astype(np.float32)
        weights *= self.scales[:, self.group_of]
        weights += self.offsets[:, self.group_of]
        return weights

    def to_hlq(self) -> HLQTensor:
        """Return the matrix in blocks of kind free16, see ``StoredLevels``."""
        group_size = fitting_group_size(self.group_of)
        groups = self.group_of[::group_size]
        scales = self.scales[:, groups]
        centers = self.offsets[:, groups] + scales * np.float32((2**self.bits - 1) / 2)
        if (largest := float(np.abs(centers).max())) > LARGEST_HALF:
            raise UnsupportedModelError(f"a center of {largest:g}: half precision holds those up to {LARGEST_HALF:g}")
        codes = _counted_upwards(self.codes, self.scales, self.bits, self.group_of)
        return HLQTensor(_half_scales(scales, self.bits), centers.astype(np.float16), codes, group_size, FREE16)


def _half_scales(scales: FloatArray, bits: int) -> npt.NDArray[np.float16]:
    """Return the half scales, (rows, groups, bits), of steps: (rows, groups).

    Raises:
        UnsupportedModelError: half precision does not reach them.
    """
    half_scales = np.abs(scales) / 2
    if float(half_scales.max()) * 2.0 ** (bits - 1) > LARGEST_HALF:
        raise UnsupportedModelError(
            f"a scale of {2 * float(half_scales.max()):g}: at {bits} bits half precision holds those up to "
            f"{2 * LARGEST_HALF / 2 ** (bits - 1):g}"
        )
    first = half_scales.astype(np.float16).astype(np.float32)
    return np.asarray(first[..., None] * 2.0 ** np.arange(bits, dtype=np.float32), dtype=np.float16)


def _counted_upwards(
    codes: npt.NDArray[np.uint8], scales: FloatArray, bits: int, group_of: npt.NDArray[np.intp]
) -> npt.NDArray[np.uint8]:
    """Return codes with those of groups whose scale is negative counted from the other end."""
    if not (scales < 0).any():
        return codes
    flips = np.where(scales < 0, np.uint8(2**bits - 1), np.uint8(0))
    flipped: npt.NDArray[np.uint8] = np.bitwise_xor(codes, flips[:, group_of])
    return flipped


def fitting_group_size(group_of: npt.NDArray[np.intp]) -> int:
    """Return the columns of the largest group of ours that lies within one of the source's everywhere.

    Args:
        group_of: (columns,) intp: the source's group of each column.

    Raises:
        UnsupportedModelError: there is none.
    """
    columns = len(group_of)
    for size in sorted(GROUP_SIZES, reverse=True):
        if columns % size == 0 and (group_of.reshape(-1, size) == group_of[::size, None]).all():
            return size
    if (np.diff(group_of) < 0).any():
        raise UnsupportedModelError(
            "columns of a group do not lie side by side (act-order, desc_act), so inputs would have to change places "
            "at run time: elutq quantize makes a model file of it"
        )
    raise UnsupportedModelError(
        f"no groups of {', '.join(map(str, GROUP_SIZES))} fit its {columns} columns: elutq quantize may make a model "
        "file of it"
    )
