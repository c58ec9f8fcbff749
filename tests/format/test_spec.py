"""The worked example of formats/SPEC.md, decoded byte by byte from the page itself."""

import re
import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader as PeerReader

from elutq_formats.block_kind import KIND_NUMBERS, BlockKind
from elutq_formats.gguf_reader import GGUFReader
from elutq_formats.gguf_writer import GGUFWriter
from elutq_formats.hlq import HLQTensor, block_bytes, pack, unpack

SPEC = (Path(__file__).parents[2] / "formats" / "SPEC.md").read_text(encoding="utf-8")


def read_hexdump(name="hexdump"):
    """The bytes of one of the page's dumps; a star repeats the line above up to the next offset."""
    (dump,) = re.findall(rf"```{name}\n(.*?)\n```", SPEC, re.DOTALL)
    contents = b""
    for line in dump.splitlines():
        if line == "*":
            continue
        offset, data = int(line[:4], 16), bytes.fromhex(line[4:].split("|")[0])
        while len(contents) < offset:
            contents += contents[-16:]
        contents += data
    return contents


def example_rows():
    """Rows of the page's table: (h_1, h_2, c, 32 codes), by row number."""
    rows = {row: (0.0, 0.0, 0.0, [0] * 32) for row in range(17)}
    rows[0] = (0.25, 0.5, 0.125, [0, 1, 2, 3] * 8)
    rows[9] = (1.0, 2.0, 0.0, [0] * 31 + [1])
    rows[16] = (0.5, 0.0, -1.0, [3] * 4 + [0] * 28)
    return rows


@pytest.fixture
def example(tmp_path):
    path = tmp_path / "example.gguf"
    path.write_bytes(read_hexdump())
    return path


def test_the_example_decodes_byte_by_byte():
    contents = read_hexdump()
    assert len(contents) == 0x240
    assert struct.unpack_from("<4sIQQ", contents) == (b"GGUF", 3, 1, 1)
    assert struct.unpack_from("<Q17sII", contents, 0x18) == (17, b"general.alignment", 4, 64)
    assert struct.unpack_from("<QsIQQIQ", contents, 0x39) == (1, b"w", 2, 448, 1, 24, 0)
    block = contents[0x80:]
    for row, (h_1, h_2, center, codes) in example_rows().items():
        assert [struct.unpack_from("<e", block, 64 * part + 2 * row)[0] for part in range(3)] == [h_1, h_2, center]
        byte, nibble = next(
            (j, high) for j in range(16) for high in (0, 1) if (j >> 1) + 8 * (j & 1) + 16 * high == row
        )
        for column, code in enumerate(codes):
            bits = [block[192 + 128 * k + 16 * (column // 4) + byte] >> (4 * nibble + column % 4) & 1 for k in (0, 1)]
            assert bits == [code & 1, code >> 1]


def test_every_row_of_the_annotation_holds():
    contents = read_hexdump()
    table = re.findall(r"^\| ([0-9a-f]{4}) \| ((?:`[^`]+`(?:, )?)+) \|", SPEC, re.MULTILINE)
    assert len(table) > 20
    for offset, cells in table:
        position = int(offset, 16)
        for cell in re.findall(r"`([^`]+)`", cells):
            listed = bytes.fromhex(cell.split("..")[0])
            assert contents[position : position + len(listed)] == listed, offset
            position += 8 if ".." in cell else len(listed)


def test_our_code_reads_the_example(example):
    reader = GGUFReader(example)
    assert reader.metadata == {"general.alignment": 64}
    tensor = unpack(reader.data("w"), 17, 32, 2, 32)
    weights = tensor.dequantize()
    np.testing.assert_array_equal(weights[0, :4], [-0.625, -0.125, 0.375, 0.875])
    np.testing.assert_array_equal(weights[9, 30:], [-3, -1])
    np.testing.assert_array_equal(weights[16, 3:5], [-0.5, -1.5])
    assert not weights[[1, 8, 10, 15]].any()


def test_our_code_writes_the_example(tmp_path):
    rows = example_rows().values()
    tensor = HLQTensor(
        half_scales=np.array([[row[:2]] for row in rows], np.float16),
        centers=np.array([[row[2]] for row in rows], np.float16),
        codes=np.array([row[3] for row in rows], np.uint8),
        group_size=32,
    )
    path = tmp_path / "written.gguf"
    with GGUFWriter(path) as writer:
        writer.add_tensor("w", (448, 1), 24)
        writer.write_header()
        writer.write_tensor("w", pack(tensor))
    assert path.read_bytes() == read_hexdump()


def test_another_reader_lists_the_example(example):
    (tensor,) = PeerReader(example).tensors
    assert (tensor.name, tensor.tensor_type.name, tensor.n_bytes) == ("w", "I8", 448)


def test_the_table_of_block_sizes_holds():
    rows = re.findall(r"^\| ([1-4]) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", SPEC, re.MULTILINE)
    assert len(rows) == 4
    for bits, *sizes in rows:
        assert [block_bytes(int(bits), group) for group in (32, 64, 128, 256)] == [int(size) for size in sizes]


def test_the_table_of_kinds_holds():
    rows = re.findall(r"^\| (\d) \| `(\w+)` \| .* \| (\d+)( \(B \+ 1\))? \| ([\d.]+) \|$", SPEC, re.MULTILINE)
    assert [name for _, name, *_ in rows] == list(KIND_NUMBERS)
    for number, name, n_bytes, by_plane, bits_per_weight in rows:
        kind = BlockKind(name)
        assert kind.number == int(number)
        for bits in (1, 2, 3, 4):
            assert kind.scales_bytes(bits) == int(n_bytes) * (bits + 1 if by_plane else 1)
        assert block_bytes(2, 128, kind) * 8 / (32 * 128) == float(bits_per_weight)


def test_the_block_of_bytes_holds():
    """Section 7: what its table says of the dump's bytes, and what the dump decodes to."""
    block = read_hexdump("blockdump")
    assert len(block) == 352
    listed = re.findall(r"^\| ([0-9a-f]{2}) \| `([0-9a-f]{2})` \|", SPEC, re.MULTILINE)
    assert len(listed) == 6
    for offset, byte in listed:
        assert block[int(offset, 16)] == int(byte, 16)
    rows = re.findall(
        r"^\| (0|16) \| ([\d.]+) \| ([\d.]+) \| (-?[\d.]+) \| \w", SPEC.partition("## 7.")[2], re.MULTILINE
    )
    codes = {0: [0, 1, 2, 3] * 8, 16: [3] * 4 + [0] * 28}
    tensor = unpack(np.frombuffer(block, np.uint8), 17, 32, 2, 32, BlockKind("free8", exponent=3))
    for row, h_1, h_2, center in rows:
        assert tensor.half_scales[int(row), 0].tolist() == [float(h_1), float(h_2)]
        assert tensor.centers[int(row), 0] == float(center)
        assert tensor.codes[int(row)].tolist() == codes[int(row)]
    assert len(rows) == 2 and not np.delete(tensor.dequantize(), [0, 16], axis=0).any()
    assert pack(tensor).tobytes() == block
