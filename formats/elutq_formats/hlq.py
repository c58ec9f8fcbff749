"""HLQ matrices: their three arrays, and the fixed-size blocks that hold them in a model file.

A weight is ``c + sum_k h_k * (2 * bit_k - 1)`` with one ``c``, and one ``h_k`` per bit-plane, for every group of
consecutive columns of a row. ``formats/SPEC.md`` describes the blocks byte by byte; ``pack`` and ``unpack`` are their
definition in code.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from elutq_formats.block_kind import FREE16, BlockKind, Numbers
from elutq_formats.constants import (
    CELL_BYTES,
    CELL_COLUMNS,
    HLQ_MAX_BITS,
    HLQ_MIN_BITS,
    SUPERBLOCK_TILES,
    TILE_ROWS,
)
from elutq_formats.errors import FormatError

GROUP_SIZES = (32, 64, 128, 256)

_ROWS_AT_ONCE = 1024

_Scalar = TypeVar("_Scalar", bound=np.generic)


@dataclass(frozen=True)
class HLQTensor:
    """A quantized matrix.

    Attributes:
        half_scales: (rows, groups, bits) float16, ``h_k >= 0`` of bit-plane k.
        centers: (rows, groups) float16, or where the kind is even float32, ``c``.
        codes: (rows, columns) uint8; bit k of a code is the weight's bit in plane k.
        group_size: columns that share a center and scales.
        kind: how a file stores half scales and centers.
    """

    half_scales: npt.NDArray[np.float16]
    centers: npt.NDArray[np.float16] | npt.NDArray[np.float32]
    codes: npt.NDArray[np.uint8]
    group_size: int
    kind: BlockKind = FREE16

    def __post_init__(self) -> None:
        if self.half_scales.ndim != 3 or self.codes.ndim != 2:
            raise ValueError(f"half_scales {self.half_scales.shape} must be 3-D and codes {self.codes.shape} 2-D")
        check_geometry(self.rows, self.columns, self.bits, self.group_size)
        groups = (self.rows, self.columns // self.group_size)
        if self.centers.shape != groups or self.half_scales.shape != (*groups, self.bits):
            raise ValueError(
                f"half_scales {self.half_scales.shape} and centers {self.centers.shape} do not fit codes "
                f"{self.codes.shape} in groups of {self.group_size}"
            )
        dtypes = [part.dtype for part in (self.half_scales, self.centers, self.codes)]
        expected = [np.dtype(np.float16), self.kind.centers_type, np.dtype(np.uint8)]
        if dtypes != expected:
            raise ValueError(f"half_scales, centers and codes are {dtypes}, not {[kind.name for kind in expected]}")

    @property
    def bits(self) -> int:
        """Bit-planes."""
        return int(self.half_scales.shape[-1])

    @property
    def rows(self) -> int:
        """Output features."""
        return int(self.codes.shape[0])

    @property
    def columns(self) -> int:
        """Input features."""
        return int(self.codes.shape[1])

    def of_rows(self, rows: slice) -> "HLQTensor":
        """Return some of the rows, as views."""
        return HLQTensor(self.half_scales[rows], self.centers[rows], self.codes[rows], self.group_size, self.kind)

    @classmethod
    def concatenate(cls, parts: Sequence["HLQTensor"]) -> "HLQTensor":
        """Put matrices of the same columns, bits, groups and kind on top of each other."""
        if len(parts) == 1:
            return parts[0]
        arrays = zip(*((part.half_scales, part.centers, part.codes) for part in parts), strict=True)
        half_scales, centers, codes = (np.concatenate(array) for array in arrays)
        return cls(half_scales, centers, codes, parts[0].group_size, parts[0].kind)

    def dequantize(self) -> npt.NDArray[np.float32]:
        """Return the matrix: (rows, columns) float32."""
        groups = (self.rows, self.columns // self.group_size, self.group_size)
        weights = np.empty(groups, dtype=np.float32)
        weights[...] = self.centers[..., None]
        codes = self.codes.reshape(groups)
        for first in range(0, self.rows, _ROWS_AT_ONCE):
            rows = slice(first, first + _ROWS_AT_ONCE)
            for plane in range(self.bits):
                half_scale = self.half_scales[rows, :, plane, None].astype(np.float32)
                weights[rows] += np.where((codes[rows] >> plane) & 1, half_scale, -half_scale)
        return weights.reshape(self.rows, self.columns)


def check_geometry(rows: int, columns: int, bits: int, group_size: int) -> None:
    """Check that a matrix of this shape can be stored as HLQ blocks.

    Raises:
        FormatError: bits or group size out of range, an empty matrix, or columns that the group does not divide.
    """
    if not HLQ_MIN_BITS <= bits <= HLQ_MAX_BITS:
        raise FormatError(f"{bits} bits per weight: an HLQ matrix has {HLQ_MIN_BITS} to {HLQ_MAX_BITS}")
    if group_size not in GROUP_SIZES:
        raise FormatError(f"group size {group_size}: an HLQ matrix has groups of {', '.join(map(str, GROUP_SIZES))}")
    if rows < 1 or columns < 1:
        raise FormatError(f"a matrix of {rows} x {columns} is empty")
    if columns % group_size:
        fitting = [str(size) for size in GROUP_SIZES if columns % size == 0]
        advice = f"use group size {' or '.join(fitting)}" if fitting else "no supported group size does"
        raise FormatError(f"groups of {group_size} do not divide {columns} columns: {advice}")


def block_bytes(bits: int, group_size: int, kind: BlockKind = FREE16) -> int:
    """Bytes of one block (32 rows by one group): half scales, centers, planes; a multiple of 32, of free16 of 64."""
    return kind.scales_bytes(bits) + bits * (group_size // CELL_COLUMNS) * CELL_BYTES


def block_count(rows: int, columns: int, group_size: int) -> int:
    """Blocks of a matrix: its tiles (rows rounded up to 32) times its groups."""
    return -(-rows // TILE_ROWS) * (columns // group_size)


def tensor_bytes(rows: int, columns: int, bits: int, group_size: int, kind: BlockKind = FREE16) -> int:
    """Bytes of a whole HLQ matrix in a model file."""
    return block_count(rows, columns, group_size) * block_bytes(bits, group_size, kind)


def pack(tensor: HLQTensor) -> npt.NDArray[np.uint8]:
    """Lay a matrix out as blocks, in the order of the file.

    Returns:
        (n_blocks, block_bytes) uint8.

    Raises:
        FormatError: a scale is negative or not finite or none of the matrix's kind, or a code has more bits than it.
    """
    numbers = tensor.kind.encode(tensor.half_scales, tensor.centers)
    if (highest := int(tensor.codes.max())) >> tensor.bits:
        raise FormatError(f"code {highest} does not fit in {tensor.bits} bits")
    bits, n_groups = tensor.bits, tensor.columns // tensor.group_size
    n_blocks = block_count(tensor.rows, tensor.columns, tensor.group_size)
    blocks = np.empty((n_blocks, block_bytes(bits, tensor.group_size, tensor.kind)), dtype=np.uint8)
    for rows, n_tiles, place in _superblocks(tensor.rows, n_groups):
        headers = [_by_tile(part[rows], n_tiles) for part in numbers]
        codes = _pad_rows(tensor.codes[rows], n_tiles)
        planes = np.stack([(codes >> plane) & 1 for plane in range(bits)])
        # Row 16h + 8o + p of a tile, column i of a cell: bit 4h + i of the cell's byte 2p + o.
        planes = planes.reshape(bits, n_tiles, 2, 2, 8, n_groups, -1, CELL_COLUMNS).transpose(5, 1, 0, 6, 4, 3, 2, 7)
        cells = np.packbits(planes.reshape(-1, 8), axis=-1, bitorder="little")
        parts = [part.reshape(n_groups * n_tiles, -1) for part in (*headers, cells)]
        np.concatenate(parts, axis=1, out=blocks[place])
    return blocks


def unpack(
    blocks: npt.NDArray[np.uint8], rows: int, columns: int, bits: int, group_size: int, kind: BlockKind = FREE16
) -> HLQTensor:
    """Read a matrix back from its blocks.

    Args:
        blocks: (n_blocks, block_bytes) uint8, or the same bytes in any shape.
        rows: output features, without padding.
        columns: input features.
        bits: bit-planes.
        group_size: columns that share a center and scales.
        kind: of the blocks.

    Raises:
        FormatError: the geometry is impossible, the number of bytes is not that of the matrix, or a scale is negative
            or not finite.
    """
    check_geometry(rows, columns, bits, group_size)
    if blocks.size != tensor_bytes(rows, columns, bits, group_size, kind):
        raise FormatError(
            f"a {rows} x {columns} matrix of {bits} bits in groups of {group_size}, {kind}, takes "
            f"{tensor_bytes(rows, columns, bits, group_size, kind)} bytes, found {blocks.size}"
        )
    n_groups = columns // group_size
    blocks = blocks.reshape(-1, block_bytes(bits, group_size, kind))
    header_bytes = kind.scales_bytes(bits)
    width = 1 if kind.has_bytes else 2
    n_half_scales = 1 if kind.is_even else bits
    center_type = np.int8 if kind.is_even else np.uint8 if kind.has_bytes else np.uint16
    numbers = Numbers(
        np.empty((rows, n_groups, n_half_scales), dtype=f"u{width}"),
        np.empty((rows, n_groups, int(kind.has_centers)), dtype=center_type),
    )
    centers_at = TILE_ROWS * width * n_half_scales
    codes = np.empty((rows, columns), dtype=np.uint8)
    for part, n_tiles, place in _superblocks(rows, n_groups):
        n_rows = part.stop - part.start
        for found, place_in_block in zip(numbers, (slice(centers_at), slice(centers_at, header_bytes)), strict=True):
            header = np.ascontiguousarray(blocks[place, place_in_block]).view(found.dtype.newbyteorder("<"))
            header = header.reshape(n_groups, n_tiles, -1, TILE_ROWS).transpose(1, 3, 0, 2)
            found[part] = header.reshape(n_tiles * TILE_ROWS, n_groups, -1)[:n_rows] if found.size else 0
        planes = np.unpackbits(np.ascontiguousarray(blocks[place, header_bytes:]), axis=-1, bitorder="little")
        planes = planes.reshape(n_groups, n_tiles, bits, -1, 8, 2, 2, CELL_COLUMNS).transpose(2, 1, 6, 5, 4, 0, 3, 7)
        planes = planes.reshape(bits, n_tiles * TILE_ROWS, columns)[:, :n_rows]
        codes[part] = np.bitwise_or.reduce(planes << np.arange(bits, dtype=np.uint8)[:, None, None], axis=0)
    return HLQTensor(*kind.decode(numbers, bits), codes, group_size, kind)


def _superblocks(rows: int, n_groups: int) -> Iterator[tuple[slice, int, slice]]:
    """Yield each superblock of a matrix: its rows, its tiles, and its blocks (ordered [group][tile])."""
    for start in range(0, rows, SUPERBLOCK_TILES * TILE_ROWS):
        stop = min(start + SUPERBLOCK_TILES * TILE_ROWS, rows)
        n_tiles = -(-(stop - start) // TILE_ROWS)
        first = start // TILE_ROWS * n_groups
        yield slice(start, stop), n_tiles, slice(first, first + n_tiles * n_groups)


def _pad_rows(part: npt.NDArray[_Scalar], n_tiles: int) -> npt.NDArray[_Scalar]:
    """Append rows of zeros to fill the last tile."""
    padding = [(0, n_tiles * TILE_ROWS - part.shape[0])] + [(0, 0)] * (part.ndim - 1)
    return np.pad(part, padding)


def _by_tile(numbers: npt.NDArray[_Scalar], n_tiles: int) -> npt.NDArray[np.uint8]:
    """Return the bytes of numbers, (rows, groups, n), in the order of blocks: (groups, tiles, n, 32)."""
    n_groups, n = numbers.shape[1:]
    by_tile = _pad_rows(numbers, n_tiles).reshape(n_tiles, TILE_ROWS, n_groups, n).transpose(2, 0, 3, 1)
    little = by_tile.astype(by_tile.dtype.newbyteorder("<"), order="C")
    return np.frombuffer(little.tobytes(), dtype=np.uint8)
