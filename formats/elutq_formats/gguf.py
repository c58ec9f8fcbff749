"""The GGUF v3 container, little-endian: what its reader and its writer share.

A file is a header (magic, version, number of tensors, number of metadata entries), the metadata entries, one record
per tensor, padding to the alignment, and the tensors' data, each at a multiple of the alignment. ``formats/SPEC.md``
has the bytes.
"""

import math
import struct
from dataclasses import dataclass
from enum import IntEnum

from elutq_formats.constants import GGML_TYPE_F16, GGML_TYPE_F32, GGML_TYPE_I8

DEFAULT_ALIGNMENT = 32
ALIGNMENT_KEY = "general.alignment"

GGML_ELEMENT_BYTES = {GGML_TYPE_F32: 4, GGML_TYPE_F16: 2, GGML_TYPE_I8: 1}
GGML_TYPE_NAMES = {GGML_TYPE_F32: "F32", GGML_TYPE_F16: "F16", GGML_TYPE_I8: "I8"}


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
        return math.prod(self.dims) * GGML_ELEMENT_BYTES[self.ggml_type]


def align(position: int, alignment: int) -> int:
    """Round a position up to a multiple of the alignment."""
    return -(-position // alignment) * alignment
