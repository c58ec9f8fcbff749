"""What tests of kernels share: the sets that this CPU has, and matrices as the kernels see them.

Inputs and outputs lie between guard pages (``memory``), so that a read or write out of bounds ends the test run.
"""

import numpy as np

from elutq_formats.block_kind import KIND_NUMBERS, BlockKind
from elutq_formats.hlq import HLQTensor, pack
from elutq_native import ffi, lib

F16, Q8 = lib.ELUTQ_CACHE_F16, lib.ELUTQ_CACHE_Q8
CHUNK, STRIDE = lib.ELUTQ_CHUNK_ROWS, lib.ELUTQ_CHUNK_STRIDE


def kernel_sets():
    sets, i = [], 0
    while (kernels := lib.elutq_kernels_at(i)) != ffi.NULL:
        sets.append(kernels)
        i += 1
    return {ffi.string(kernels.name).decode(): kernels for kernels in sets if lib.elutq_kernels_supported(kernels)}


SETS = kernel_sets()
SCALAR = SETS["scalar"]
SHAPES = [(bits, group) for bits in (1, 2, 3, 4) for group in (32, 64, 128, 256)]
OTHER_KINDS = [kind for kind in KIND_NUMBERS if kind != "free16"]


def floats(array):
    return ffi.from_buffer("float[]", array)


def random_tensor(rng, rows, bits, group_size, n_groups=3, kind="free16"):
    half_scales = rng.uniform(0.0, 0.02, (rows, n_groups, bits)).astype(np.float16)
    centers = rng.normal(0, 0.004, (rows, n_groups)).astype(np.float16)
    codes = rng.integers(0, 2**bits, (rows, n_groups * group_size), dtype=np.uint8)
    blocks = BlockKind.fitting(kind, half_scales, centers, center=-3 if kind in ("even16", "even8") else 0)
    return HLQTensor(*blocks.nearest(half_scales, centers), codes, group_size, blocks)


class Matrix:
    """An HLQ matrix as the kernels see it."""

    def __init__(self, tensor, memory):
        self.blocks = memory.copy(pack(tensor))
        self.struct = ffi.new(
            "struct elutq_matrix *",
            {
                "data": ffi.from_buffer("uint8_t[]", self.blocks),
                "n_rows": tensor.rows,
                "n_columns": tensor.columns,
                "bits": tensor.bits,
                "group_size": tensor.group_size,
                "kind": tensor.kind.number,
                "exponent": tensor.kind.exponent,
                "center": tensor.kind.center,
            },
        )
        self.n_rows, self.n_columns, self.group_size = tensor.rows, tensor.columns, tensor.group_size
        self.n_chunks = -(-tensor.rows // CHUNK)

    def part(self, chunk):
        return chunk_part(self.n_rows, chunk)

    def padded_rows(self, chunk):
        return min(CHUNK, -(-(self.n_rows - chunk * CHUNK) // 32) * 32)


def chunk_part(n_rows, chunk):
    """All tiles of a superblock."""
    return ffi.new("struct elutq_part *", [8 * chunk, min(8, -(-(n_rows - chunk * CHUNK) // 32))])[0]


def rows_of(y, n_tokens, n_rows):
    padded = np.concatenate([y, np.zeros(STRIDE, np.float32)])
    return padded[: n_tokens * STRIDE].reshape(n_tokens, STRIDE)[:, :n_rows]
