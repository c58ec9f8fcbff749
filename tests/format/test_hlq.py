"""HLQ blocks against a loop that follows the words of formats/SPEC.md bit by bit."""

import numpy as np
import pytest
from samples import random_matrix

from elutq_formats.errors import FormatError
from elutq_formats.hlq import HLQTensor, block_bytes, block_count, pack, tensor_bytes, unpack

# "Byte j has row (j >> 1) + 8 (j & 1) in its low nibble and that row + 16 in its high nibble": row -> byte, first bit.
PLACE = {(j >> 1) + 8 * (j & 1) + 16 * high: (j, 4 * high) for j in range(16) for high in (0, 1)}


def naive_blocks(tensor):
    """Pack one weight at a time, in the order of the file."""
    n_tiles, n_groups = -(-tensor.rows // 32), tensor.columns // tensor.group_size
    for superblock in range(0, n_tiles, 8):
        for group in range(n_groups):
            for tile in range(superblock, min(superblock + 8, n_tiles)):
                yield naive_block(tensor, tile, group)


def naive_block(tensor, tile, group):
    bits, g = tensor.bits, tensor.group_size
    block = bytearray(64 * (bits + 1) + 4 * g * bits)
    for row in range(min(32, tensor.rows - 32 * tile)):
        scales = [*tensor.half_scales[32 * tile + row, group], tensor.centers[32 * tile + row, group]]
        for plane, scale in enumerate(scales):
            block[64 * plane + 2 * row : 64 * plane + 2 * row + 2] = np.array(scale, "<f2").tobytes()
        byte, first_bit = PLACE[row]
        for column, code in enumerate(tensor.codes[32 * tile + row, group * g : (group + 1) * g].tolist()):
            for plane in range(bits):
                cell = 64 * (bits + 1) + 4 * g * plane + 16 * (column // 4)
                block[cell + byte] |= (code >> plane & 1) << (first_bit + column % 4)
    return bytes(block)


@pytest.mark.parametrize("rows", [1, 31, 33, 255, 257, 300])
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_blocks_are_those_of_the_specification_and_come_back(bits, group_size, rows):
    tensor = random_matrix(rows, 2 * group_size, bits, group_size)
    blocks = pack(tensor)
    assert blocks.shape == (block_count(rows, 2 * group_size, group_size), block_bytes(bits, group_size))
    assert blocks.nbytes == tensor_bytes(rows, 2 * group_size, bits, group_size)
    assert blocks.tobytes() == b"".join(naive_blocks(tensor))
    back = unpack(blocks, rows, 2 * group_size, bits, group_size)
    np.testing.assert_array_equal(back.codes, tensor.codes)
    np.testing.assert_array_equal(back.half_scales, tensor.half_scales)
    np.testing.assert_array_equal(back.centers, tensor.centers)


def test_the_naive_loop_sees_a_swapped_nibble():
    tensor = random_matrix(32, 32, 2, 32)
    blocks = pack(tensor)
    planes = blocks[:, 64 * 3 :]
    planes[...] = planes << 4 | planes >> 4
    assert blocks.tobytes() != b"".join(naive_blocks(tensor))


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_blocks_keep_64_byte_alignment(bits, group_size):
    assert block_bytes(bits, group_size) % 64 == 0


def test_published_block_sizes():
    assert [block_bytes(bits, 128) for bits in (2, 3, 4)] == [1216, 1792, 2368]
    assert block_bytes(2, 64) == 704


def test_dequantize_is_the_sum_over_planes():
    tensor = random_matrix(5, 64, 3, 32)
    weights = tensor.dequantize()
    assert weights.dtype == np.float32
    for row, column in np.ndindex(5, 64):
        code, group = int(tensor.codes[row, column]), column // 32
        signs = [2 * (code >> plane & 1) - 1 for plane in range(3)]
        exact = float(tensor.centers[row, group]) + np.dot(signs, tensor.half_scales[row, group].astype(float))
        assert weights[row, column] == pytest.approx(exact, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.5])
def test_impossible_half_scales_are_refused_both_ways(value):
    tensor = random_matrix(40, 64, 2, 32)
    blocks = pack(tensor)
    tensor.half_scales[33, 1, 0] = value
    with pytest.raises(FormatError, match="scale"):
        pack(tensor)
    blocks[3].view("<f2")[1] = value
    with pytest.raises(FormatError, match="scale"):
        unpack(blocks, 40, 64, 2, 32)


def test_impossible_centers_are_refused():
    tensor = random_matrix(40, 64, 2, 32)
    tensor.centers[0, 0] = np.inf
    with pytest.raises(FormatError, match="not finite"):
        pack(tensor)


def test_codes_wider_than_the_planes_are_refused():
    tensor = random_matrix(40, 64, 2, 32)
    tensor.codes[3, 3] = 4
    with pytest.raises(FormatError, match="code 4 does not fit in 2 bits"):
        pack(tensor)


@pytest.mark.parametrize(
    ("geometry", "message"),
    [
        ((32, 64, 0, 32), "0 bits per weight"),
        ((32, 64, 5, 32), "5 bits per weight"),
        ((32, 64, 2, 48), "group size 48"),
        ((0, 64, 2, 32), "empty"),
        ((32, 0, 2, 32), "empty"),
        ((32, 576, 2, 128), "groups of 128 do not divide 576 columns: use group size 32 or 64"),
        ((32, 40, 2, 32), "groups of 32 do not divide 40 columns: no supported group size does"),
        ((33, 64, 2, 32), "takes 1792 bytes, found 896"),
    ],
)
def test_impossible_geometry_is_refused(geometry, message):
    with pytest.raises(FormatError, match=message):
        unpack(np.zeros(2 * 448, np.uint8), *geometry)


def test_arrays_that_disagree_are_a_programming_error():
    half_scales, centers, codes = np.zeros((4, 2, 2), "f2"), np.zeros((4, 2), "f2"), np.zeros((4, 64), "u1")
    HLQTensor(half_scales, centers, codes, 32)
    for wrong in [
        (half_scales, centers[:3], codes, 32),
        (half_scales[:, :1], centers, codes, 32),
        (half_scales, centers, codes[:3], 32),
        (half_scales, centers, codes, 64),
        (half_scales.astype("f4"), centers, codes, 32),
        (half_scales, centers, codes.astype("i4"), 32),
        (half_scales[..., 0], centers, codes, 32),
    ]:
        with pytest.raises(ValueError, match="codes"):
            HLQTensor(*wrong)
