"""The GGUF v3 container, little-endian: what its reader and its writer share.

A file is a header (magic, version, number of tensors, number of metadata entries), the metadata entries, one record
per tensor, padding to the alignment, and the tensors' data, each at a multiple of the alignment. ``formats/SPEC.md``
has the bytes.
"""

import math
import struct
from dataclasses import dataclass
from enum import IntEnum

DEFAULT_ALIGNMENT = 32
ALIGNMENT_KEY = "general.alignment"


@dataclass(frozen=True)
class GGMLType:
    """An element type of GGML.

    Attributes:
        name: as GGUF tools write it.
        block: elements along the fastest dimension that are stored together.
        block_bytes: that they take.
    """

    name: str
    block: int
    block_bytes: int


GGML_TYPES = {
    number: GGMLType(name, block, block_bytes)
    for number, name, block, block_bytes in (
        (0, "F32", 1, 4),
        (1, "F16", 1, 2),
        (2, "Q4_0", 32, 18),
        (3, "Q4_1", 32, 20),
        (6, "Q5_0", 32, 22),
        (7, "Q5_1", 32, 24),
        (8, "Q8_0", 32, 34),
        (9, "Q8_1", 32, 40),
        (10, "Q2_K", 256, 84),
        (11, "Q3_K", 256, 110),
        (12, "Q4_K", 256, 144),
        (13, "Q5_K", 256, 176),
        (14, "Q6_K", 256, 210),
        (15, "Q8_K", 256, 292),
        (16, "IQ2_XXS", 256, 66),
        (17, "IQ2_XS", 256, 74),
        (18, "IQ3_XXS", 256, 98),
        (19, "IQ1_S", 256, 50),
        (20, "IQ4_NL", 32, 18),
        (21, "IQ3_S", 256, 110),
        (22, "IQ2_S", 256, 82),
        (23, "IQ4_XS", 256, 136),
        (24, "I8", 1, 1),
        (25, "I16", 1, 2),
        (26, "I32", 1, 4),
        (27, "I64", 1, 8),
        (28, "F64", 1, 8),
        (29, "IQ1_M", 256, 56),
        (30, "BF16", 1, 2),
        (34, "TQ1_0", 256, 54),
        (35, "TQ2_0", 256, 66),
        (39, "MXFP4", 32, 17),
        (40, "NVFP4", 64, 36),
        (41, "Q1_0", 128, 18),
    )
}
"""By GGML's numbers. Source: ggml's ggml-common.h, as gguf-py's ``GGML_QUANT_SIZES`` has it, which a test compares."""


class ValueType(IntEnum):
    """Type of a metadata value, with GGUF's number for it."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


SCALAR_LAYOUTS = {
    value_type: struct.Struct("<" + code)
    for value_type, code in {
        ValueType.UINT8: "B",
        ValueType.INT8: "b",
        ValueType.UINT16: "H",
        ValueType.INT16: "h",
        ValueType.UINT32: "I",
        ValueType.INT32: "i",
        ValueType.FLOAT32: "f",
        ValueType.BOOL: "B",
        ValueType.UINT64: "Q",
        ValueType.INT64: "q",
        ValueType.FLOAT64: "d",
    }.items()
}
"""How each scalar is stored; strings and arrays have a length before them."""


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a container.

    Attributes:
        name: its name, unique in the file.
        dims: elements along each dimension, the fastest first (the reverse of numpy's shape).
        ggml_type: GGML's number of the element type.
        offset: where its data begin, in bytes from the start of the data section.
    """

    name: str
    dims: tuple[int, ...]
    ggml_type: int
    offset: int

    @property
    def n_bytes(self) -> int:
        """Size of the data."""
        kind = GGML_TYPES[self.ggml_type]
        return math.prod(self.dims) // kind.block * kind.block_bytes


def align(position: int, alignment: int) -> int:
    """Round a position up to a multiple of the alignment."""
    return -(-position // alignment) * alignment
