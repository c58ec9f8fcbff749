"""Ways in which a model file can lie: each returns, or is, what changes a parsed container."""

import struct

from gguf_container import ARRAY, INT32, STRING, UINT32, text


def add_extra(container):
    container.tensors.append([b"blk.0.extra", [16], 0, container.tensors[-1][3]])
    container.tensors[-1][3] = -(-len(container.data) // 64) * 64
    container.data = container.data.ljust(container.tensors[-1][3], b"\0") + bytes(64)


def name_twice(container):
    container.tensor("blk.1.attn_norm.weight")[0] = b"blk.0.attn_norm.weight"


def key_twice(container):
    container.entries.append(list(container.entry("llama.block_count")))


def names_too_many(container):
    entry = container.entry("hlq.tensor.names")
    n = struct.unpack_from("<Q", entry[2], 4)[0]
    entry[2] = struct.pack("<IQ", STRING, n + 1) + entry[2][12:] + text(b"more")


def another_name(container):
    entry = container.entry("hlq.tensor.names")
    entry[2] = entry[2].replace(b"blk.0.ffn_up.weight", b"blk.9.ffn_up.weight")


def number_of(key, value):
    """The first matrix's number in an hlq.tensor array: the embedding's, 128 x 32, 2 bits in groups of 32."""

    def lie(container):
        entry = container.entry(f"hlq.tensor.{key}")
        entry[2] = entry[2][:12] + struct.pack("<I", value) + entry[2][16:]

    return lie


def second_version(kind=0, exponent=0, center=0):
    """Version 2, whose arrays say this of the first matrix and nothing unusual of the others."""

    def lie(container):
        n = struct.unpack_from("<Q", container.entry("hlq.tensor.bits")[2], 4)[0]
        container.set("hlq.version", "<I", 2)
        for key, element, first in (
            ("kinds", UINT32, kind),
            ("exponents", UINT32, exponent),
            ("centers", INT32, center),
        ):
            numbers = struct.pack("<IQ", element, n) + struct.pack("<i", first) + bytes(4 * (n - 1))
            container.entries.append([f"hlq.tensor.{key}".encode(), ARRAY, numbers])

    return lie


def second_version_with(key, element, n):
    """Version 2, but that one of its arrays has another type or length."""

    def lie(container):
        second_version()(container)
        container.entry(f"hlq.tensor.{key}")[2] = struct.pack("<IQ", element, n) + bytes(4 * n)

    return lie


def float_of(key, value):
    return lambda container: container.set(f"llama.{key}", "<f", value)


def integer_of(key, value):
    return lambda container: container.set(f"llama.{key}", "<I", value)


def add_entry(key, kind, value):
    return lambda container: container.entries.append([key, kind, value])


def dims_of(name, *dims):
    return lambda container: container.tensor(name).__setitem__(1, list(dims))


def type_of(name, kind):
    return lambda container: container.tensor(name).__setitem__(2, kind)


def offset_of(name, offset):
    return lambda container: container.tensor(name).__setitem__(3, offset)


def matrix_as_floats(container):
    container.tensor("blk.0.attn_k.weight")[1:3] = [16], 0


def patched(name, at, form, value):
    return lambda container: container.patch(name, at, struct.pack(form, value))
