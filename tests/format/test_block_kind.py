"""Kinds of blocks against a loop that follows the words of formats/SPEC.md, and what they round to."""

import re
from pathlib import Path

import numpy as np
import pytest
from samples import random_matrix
from test_hlq import PLACE

from elutq_formats.block_kind import KIND_NUMBERS, BlockKind
from elutq_formats.errors import FormatError
from elutq_formats.hlq import block_bytes, pack, tensor_bytes, unpack

KINDS = sorted(KIND_NUMBERS)


def byte_value(byte, mantissa_bits):
    """Three bits of exponent, then the mantissa; an exponent of 0 has no leading one."""
    exponent, mantissa = byte >> mantissa_bits, byte % 2**mantissa_bits / 2**mantissa_bits
    return (mantissa * 2 if exponent == 0 else 1 + mantissa) * 2.0 ** (exponent - 15)


HALF_SCALES = np.array([byte_value(byte, 5) for byte in range(256)])
CENTERS = np.array([(-1 if byte & 128 else 1) * byte_value(byte & 127, 4) for byte in range(256)])


def naive_numbers(block, kind, bits, row):
    """Half scales and center of a row, from the bytes that a block begins with."""
    width = 1 if "8" in kind.name else 2
    n = 1 if "even" in kind.name else bits

    def number(i):
        at = width * (32 * i + row)
        return HALF_SCALES[block[at]] * 2.0**kind.exponent if width == 1 else float(block[at : at + 2].view("<f2")[0])

    half_scales = [number(0) * 2**plane if n == 1 else number(plane) for plane in range(bits)]
    if kind.name.endswith("c"):
        return half_scales, half_scales[0] * int(block[width * 32 + row : width * 32 + row + 1].view("i1")[0]) / 4
    if n == 1 and "even" in kind.name:
        return half_scales, half_scales[0] * kind.center / 4
    return half_scales, CENTERS[block[32 * bits + row]] * 2.0**kind.exponent if width == 1 else number(bits)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(("bits", "group_size"), [(1, 256), (2, 128), (3, 64), (4, 32)])
@pytest.mark.parametrize("rows", [1, 33, 300])
def test_blocks_of_every_kind_are_those_of_the_specification_and_come_back(name, bits, group_size, rows):
    tensor = random_matrix(rows, 2 * group_size, bits, group_size, name)
    blocks = pack(tensor)
    assert blocks.nbytes == tensor_bytes(rows, 2 * group_size, bits, group_size, tensor.kind)
    for row in {0, rows // 2, rows - 1}:
        tile, in_tile = row // 32, row % 32
        n_tiles = min(8, -(-rows // 32) - tile // 8 * 8)
        block = blocks[tile // 8 * 16 + n_tiles + tile % 8]  # of group 1
        half_scales, center = naive_numbers(block, tensor.kind, bits, in_tile)
        assert half_scales == tensor.half_scales[row, 1].tolist()
        assert center == tensor.centers[row, 1]
        byte, first_bit = PLACE[in_tile]
        cells = block[-4 * group_size * bits :].reshape(bits, group_size // 4, 16)[:, :, byte] >> first_bit
        codes = sum(((cells[plane, :, None] >> np.arange(4)) & 1).reshape(-1) << plane for plane in range(bits))
        np.testing.assert_array_equal(codes, tensor.codes[row, group_size:])
    back = unpack(blocks, rows, 2 * group_size, bits, group_size, tensor.kind)
    assert back.kind == tensor.kind
    for part in ("half_scales", "centers", "codes"):
        np.testing.assert_array_equal(getattr(back, part), getattr(tensor, part))


@pytest.mark.parametrize(
    ("name", "bits_per_weight"),
    [
        ("free16", 2.375),
        ("free8", 2.1875),
        ("even16", 2.125),
        ("even8", 2.0625),
        ("even16c", 2.1875),
        ("even8c", 2.125),
    ],
)
def test_published_bits_per_weight_at_two_bits_and_groups_of_128(name, bits_per_weight):
    assert block_bytes(2, 128, BlockKind(name)) * 8 / (32 * 128) == bits_per_weight


def test_the_sizes_in_the_guide_hold():
    guide = (Path(__file__).parents[2] / "docs" / "choosing.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| .* \| ([\d. /]+) \| ([\d. /]+) \| ([\d. /]+) \|$", guide, re.MULTILINE)
    assert sorted(name for name, *_ in rows) == KINDS
    for name, *cells in rows:
        for group_size, cell in zip((64, 128, 256), cells, strict=True):
            found = [BlockKind(name).scales_bytes(bits) * 8 / (32 * group_size) for bits in (2, 3, 4)]
            listed = [float(number) for number in cell.split(" / ")]
            assert found == (listed if len(listed) == 3 else 3 * listed)


@pytest.mark.parametrize("exponent", [0, 3, 23])
def test_bytes_are_the_nearest_of_all_that_there_are(exponent):
    rng = np.random.default_rng(exponent)
    kind = BlockKind("free8", exponent)
    wanted = np.exp(rng.uniform(np.log(1e-7), np.log(0.0085), (500, 1, 2))) * 2.0**exponent
    centers = np.exp(rng.uniform(np.log(1e-7), np.log(0.008), (500, 1))) * rng.choice([-1, 1], (500, 1)) * 2.0**exponent
    half_scales, found = kind.nearest(wanted, centers)
    for values, given, rounded in ((HALF_SCALES, wanted, half_scales), (CENTERS, centers, found)):
        nearest = np.abs(values * 2.0**exponent - given[..., None]).min(axis=-1)
        by_way_of_fp16 = np.abs(given) * 2.0**-11 + 2.0 ** (exponent - 25)
        assert (np.abs(rounded.astype(float) - given) <= nearest + 2 * by_way_of_fp16).all()
    assert np.isfinite(half_scales).all()


def test_the_exponent_is_the_smallest_that_has_room():
    largest = HALF_SCALES[255]
    assert BlockKind.fitting("free8", [largest]).exponent == 0
    assert BlockKind.fitting("free8", [largest * 1.01]).exponent == 1
    assert BlockKind.fitting("free8", [largest], [-largest * 3]).exponent == 2
    assert BlockKind.fitting("even8c", [largest], [-largest * 3]).exponent == 0
    assert BlockKind.fitting("free8", [65504.0]).exponent == 23
    assert BlockKind.fitting("even16", [65504.0]).exponent == 0


@pytest.mark.parametrize("name", [name for name in KINDS if name != "free16"])
def test_numbers_that_a_kind_does_not_have_are_refused(name):
    tensor = random_matrix(40, 64, 2, 32, name)
    pack(tensor)
    tensor.half_scales[33, 1, 0] = 0.123
    with pytest.raises(FormatError, match=f"that {name} blocks do not have"):
        pack(tensor)
    tensor = random_matrix(40, 64, 2, 32, name)
    tensor.centers[33, 1] += 0.0123
    with pytest.raises(FormatError, match=f"that {name} blocks do not have"):
        pack(tensor)


def test_an_even_matrix_whose_highest_plane_overflows_is_refused():
    blocks = np.zeros((1, block_bytes(4, 32, BlockKind("even16"))), np.uint8)
    blocks[0, :2] = np.array([9000], "<f2").view(np.uint8)
    with pytest.raises(FormatError, match="not finite"):
        unpack(blocks, 32, 32, 4, 32, BlockKind("even16"))
    unpack(blocks[:, : block_bytes(3, 32, BlockKind("even16"))], 32, 32, 3, 32, BlockKind("even16"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("free4",), "no HLQ matrix is of kind 'free4': kinds are free16, free8, even16, even8, even16c, even8c"),
        (("free8", 24), "an exponent of 24, which the kind free8 cannot have"),
        (("even16", 1), "an exponent of 1, which the kind even16 cannot have"),
        (("free16", 0, 1), "a center of 1 quarters"),
        (("even16c", 0, 1), "a center of 1 quarters"),
        (("even8", 0, 128), "a center of 128 quarters"),
    ],
)
def test_impossible_kinds_are_refused(arguments, message):
    with pytest.raises(FormatError, match=message):
        BlockKind(*arguments)


@pytest.mark.parametrize("number", [4, 5, 8, 2**32 - 1])
def test_unknown_numbers_are_refused(number):
    with pytest.raises(FormatError, match=f"no HLQ matrix is of kind '{number}'"):
        BlockKind.numbered(number, 0, 0)


def test_ternary_and_binary_levels_are_exact():
    """{-1, 0, 1} s has a center of + s / 2 = h_1 at two bits; +-s none at one."""
    ternary = BlockKind("even16", center=4)
    half_scales, centers = ternary.nearest(np.array([[[0.05, 0.1]]]), np.zeros((1, 1)))
    levels = centers[0, 0] + half_scales[0, 0].astype("f4") @ np.array([[-1, 1, -1, 1], [-1, -1, 1, 1]])
    np.testing.assert_array_equal(levels, 2 * np.float32(half_scales[0, 0, 0]) * np.array([-1, 0, 1, 2]))
    assert block_bytes(2, 128, ternary) * 8 / (32 * 128) == 2.125
    assert block_bytes(1, 128, BlockKind("even16")) * 8 / (32 * 128) == 1.125
