"""Containers that lie, built with struct.pack: each is refused in one line, and nothing else ever happens."""

import struct

import numpy as np
import pytest

from elutq_formats.errors import FormatError
from elutq_formats.gguf_reader import GGUFReader

UINT32, FLOAT32, BOOL, STRING, ARRAY = 4, 6, 7, 8, 9
HUGE = 2**64 - 1


def text(value):
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def entry(key, value_type, value):
    return text(key) + struct.pack("<I", value_type) + value


def tensor(name="w", dims=(64,), ggml_type=24, offset=0):
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, ggml_type, offset)


ALIGNMENT = entry("general.alignment", UINT32, struct.pack("<I", 64))
SOUND_TENSOR = tensor()


def container(entries=(ALIGNMENT,), tensors=(SOUND_TENSOR,), data=bytes(64), magic=b"GGUF", version=3, counts=None):
    """A sound container of one 64-byte tensor, but for what the arguments change."""
    n_tensors, n_entries = counts or (len(tensors), len(entries))
    header = magic + struct.pack("<IQQ", version, n_tensors, n_entries) + b"".join(entries) + b"".join(tensors)
    return header + bytes(-len(header) % 64) + data


SOUND = container()

HOSTILE = {
    "empty": (b"", "is empty"),
    "text": (b"hello, world, this is no model", "not a GGUF file: it begins with b'hell'"),
    "magic": (container(magic=b"GGML"), "not a GGUF file"),
    "version 0": (container(version=0), "version 0"),
    "version 2": (container(version=2), "version 2: only"),
    "version 99": (container(version=99), "version 99: only"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "tensor count": (container(counts=(HUGE, 1)), "18446744073709551615 tensors, more than 65536"),
    "tensor count in range": (container(counts=(65536, 1)), "tensor|truncated|damaged"),
    "entry count": (container(counts=(1, HUGE)), "metadata entries, more than 65536"),
    "entry count in range": (container(counts=(1, 65536)), "truncated|damaged"),
    "key length": (container([struct.pack("<Q", HUGE)]), "bytes in a metadata key, more than 256"),
    "key of 257 bytes": (container([entry("k" * 257, BOOL, b"\0")]), "257 bytes in a metadata key"),
    "key not UTF-8": (container([entry(b"\xff\xfe", BOOL, b"\0")]), "a metadata key is not UTF-8"),
    "key with newline": (container([entry("a\nb", BOOL, b"\0")]), "a metadata key is not printable ASCII"),
    "duplicate key": (container([ALIGNMENT, ALIGNMENT]), "two metadata entries are called general.alignment"),
    "value type": (container([entry("k", 13, b"")]), "the value of k has unknown type 13"),
    "bool": (container([entry("k", BOOL, b"\2")]), "the value of k is 2, neither true nor false"),
    "string length": (container([entry("k", STRING, struct.pack("<Q", HUGE))]), "bytes in the value of k, more than"),
    "string past the end": (container([entry("k", STRING, struct.pack("<Q", 1 << 20))]), "truncated"),
    "string not UTF-8": (container([entry("k", STRING, text(b"\xc3"))]), "the value of k is not UTF-8"),
    "array length": (container([entry("k", ARRAY, struct.pack("<IQ", UINT32, HUGE))]), "elements in k, more than"),
    "array past the end": (container([entry("k", ARRAY, struct.pack("<IQ", UINT32, 1 << 24))]), "truncated"),
    "strings past the end": (container([entry("k", ARRAY, struct.pack("<IQ", STRING, 1 << 24))]), "truncated"),
    "string in an array too long": (
        container([entry("k", ARRAY, struct.pack("<IQ3Q", STRING, 3, 0, HUGE - 7, 0))]),
        "bytes in the value of k, more than",
    ),
    "string in an array past the end": (
        container([entry("k", ARRAY, struct.pack("<IQ2Q", STRING, 2, 4000, 0))]),
        "truncated",
    ),
    "last string in an array past the end": (
        container([entry("k", ARRAY, struct.pack("<IQ2Q", STRING, 2, 0, 4000))]),
        "truncated",
    ),
    "string in an array not UTF-8": (
        container([entry("k", ARRAY, struct.pack("<IQQ", STRING, 1, 2) + b"\xff\xfe")]),
        "the value of k is not UTF-8",
    ),
    "truth in an array": (
        container([entry("k", ARRAY, struct.pack("<IQ2B", BOOL, 2, 1, 2))]),
        "neither true nor false",
    ),
    "array of arrays": (container([entry("k", ARRAY, struct.pack("<IQ", ARRAY, 1))]), "array of arrays"),
    "array type": (container([entry("k", ARRAY, struct.pack("<IQ", 77, 1))]), "unknown type 77"),
    "alignment 0": (container([entry("general.alignment", UINT32, bytes(4))]), "general.alignment 0"),
    "alignment 48": (container([entry("general.alignment", UINT32, struct.pack("<I", 48))]), "not a power of two"),
    "alignment 4": (container([entry("general.alignment", UINT32, struct.pack("<I", 4))]), "not a power of two from 8"),
    "alignment text": (container([entry("general.alignment", STRING, text("64"))]), "general.alignment '64'"),
    "alignment float": (
        container([entry("general.alignment", FLOAT32, struct.pack("<f", 64))]),
        "general.alignment 64.0",
    ),
    "alignment past the end": (
        container([entry("general.alignment", UINT32, struct.pack("<I", 1 << 31))]),
        "ends 2147483648 bytes past|truncated",
    ),
    "name length": (container(tensors=[struct.pack("<Q", HUGE)]), "bytes in a tensor's name, more than 256"),
    "name with escape": (container(tensors=[tensor("\x1b[2J")]), "a tensor's name is not printable ASCII"),
    "duplicate tensor": (container(tensors=[tensor(), tensor(offset=64)], data=bytes(128)), "two tensors are called w"),
    "no dimensions": (container(tensors=[tensor(dims=())]), "tensor w has 0 dimensions"),
    "five dimensions": (container(tensors=[tensor(dims=(1,) * 5)]), "tensor w has 5 dimensions"),
    "2^32 - 1 dimensions": (
        container(tensors=[text("w") + struct.pack("<I", 2**32 - 1)]),
        "tensor w has 4294967295 dimensions",
    ),
    "dimension 0": (container(tensors=[tensor(dims=(64, 0))]), "impossible dimensions"),
    "product overflow": (container(tensors=[tensor(dims=(2**32, 2**32))]), "impossible dimensions"),
    "product wraps to 64": (container(tensors=[tensor(dims=(2**63 + 32, 2))]), "impossible dimensions"),
    "type": (container(tensors=[tensor(ggml_type=99)]), "GGML type 99, which is not known here"),
    "rows of no whole block": (container(tensors=[tensor(ggml_type=12)]), "rows of 64, no multiple of a block"),
    "offset past the end": (container(tensors=[tensor(offset=64)]), "ends 64 bytes past the end"),
    "offset near 2^64": (container(tensors=[tensor(offset=2**64 - 64)]), "past the end of the file"),
    "misaligned": (container(tensors=[tensor(offset=32)], data=bytes(96)), "begins at 32, not a multiple of 64"),
    "overlap": (
        container(tensors=[tensor("a", (65,)), tensor("b", offset=64)], data=bytes(128)),
        "tensor b begins before the end of a",
    ),
    "backwards": (
        container(tensors=[tensor("a", offset=64), tensor("b")], data=bytes(128)),
        "tensor b begins before the end of a",
    ),
    "same place": (container(tensors=[tensor("a"), tensor("b")]), "tensor b begins before the end of a"),
    "no data": (container(data=b""), "ends 64 bytes past the end"),
    "one byte short": (SOUND[:-1], "ends 1 bytes past the end"),
}


def open_bytes(tmp_path, contents):
    path = tmp_path / "hostile.gguf"
    path.write_bytes(contents)
    return GGUFReader(path)


def test_the_container_that_the_others_spoil_is_sound(tmp_path):
    reader = open_bytes(tmp_path, SOUND)
    assert list(reader.tensors) == ["w"]
    assert reader.data("w").size == 64


@pytest.mark.parametrize("name", HOSTILE)
def test_refused_in_one_line(tmp_path, name):
    contents, message = HOSTILE[name]
    with pytest.raises(FormatError, match=message) as refusal:
        open_bytes(tmp_path, contents)
    assert str(refusal.value).isprintable()
    assert "hostile.gguf" in str(refusal.value)


def test_every_truncation_is_refused(tmp_path):
    for length in range(len(SOUND)):
        with pytest.raises(FormatError) as refusal:
            open_bytes(tmp_path, SOUND[:length])
        assert str(refusal.value).isprintable()


def test_random_damage_is_refused_or_harmless(tmp_path):
    entries = [
        ALIGNMENT,
        entry("k", STRING, text("value")),
        entry("n", ARRAY, struct.pack("<IQ3I", UINT32, 3, 1, 2, 3)),
    ]
    sound = container(entries, [tensor("a", (8, 8)), tensor("b", (16,), 0, 64)], bytes(128))
    header_bytes = len(sound) - 128
    seed = 20240817
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    refused = 0
    for _ in range(1500):
        damaged = bytearray(sound)
        for position in rng.integers(0, header_bytes, rng.integers(1, 4)):
            damaged[position] = rng.integers(0, 256)
        try:
            reader = open_bytes(tmp_path, damaged)
        except FormatError as error:
            assert str(error).isprintable()
            refused += 1
        else:
            assert all(reader.data(name).size == info.n_bytes for name, info in reader.tensors.items())
    assert refused > 500
