"""Model files that lie, through the C runtime: each is refused in one line that names what is wrong with it."""

import struct
from math import prod
from pathlib import Path

import pytest
from make_models import golden_config, write_random

from elutq_formats.errors import FormatError
from elutq_formats.model_file import ModelFile
from elutq_native import Model, NativeError

SEEDS = Path(__file__).parents[1] / "fuzz"
SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
UINT32, FLOAT32, STRING, ARRAY = 4, 6, 8, 9


def text(value):
    return struct.pack("<Q", len(value)) + value


class Container:
    """A GGUF file taken apart, so that a test can change any field of it and put it together again."""

    def __init__(self, raw):
        self.raw, self.at = raw, 0
        self.take(8)
        n_tensors, n_entries = self.number("<Q"), self.number("<Q")
        self.counts = None
        self.entries = [[self.string(), *self.value()] for _ in range(n_entries)]
        self.tensors = []
        for _ in range(n_tensors):
            name = self.string()
            dims = [self.number("<Q") for _ in range(self.number("<I"))]
            self.tensors.append([name, dims, self.number("<I"), self.number("<Q")])
        self.data = raw[-(-self.at // 64) * 64 :]

    def take(self, n_bytes):
        self.at += n_bytes
        return self.raw[self.at - n_bytes : self.at]

    def number(self, form):
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def string(self):
        return self.take(self.number("<Q"))

    def value(self):
        kind, start = self.number("<I"), self.at
        if kind == STRING:
            self.string()
        elif kind == ARRAY:
            element, n = self.number("<I"), self.number("<Q")
            for _ in range(n):
                self.string() if element == STRING else self.take(SCALAR_BYTES[element])
        else:
            self.take(SCALAR_BYTES[kind])
        return kind, self.raw[start : self.at]

    def entry(self, key):
        return next(entry for entry in self.entries if entry[0] == key.encode())

    def set(self, key, form, *values):
        self.entry(key)[2] = struct.pack(form, *values)

    def tensor(self, name):
        return next(tensor for tensor in self.tensors if tensor[0] == name.encode())

    def patch(self, name, at, new):
        start = self.tensor(name)[3] + at
        self.data = self.data[:start] + new + self.data[start + len(new) :]

    def bytes(self):
        n_tensors, n_entries = self.counts or (len(self.tensors), len(self.entries))
        header = b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_entries)
        header += b"".join(text(key) + struct.pack("<I", kind) + value for key, kind, value in self.entries)
        for name, dims, kind, offset in self.tensors:
            header += text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)
        return header + bytes(-len(header) % 64) + self.data


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path = tmp_path_factory.mktemp("sound") / "model.gguf"
    write_random(path, golden_config("llama31-rope-scaling"), bits=2, group_size=32)
    return path.read_bytes()


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


LYING = {
    "theta 0": (lambda c: c.set("llama.rope.freq_base", "<f", 0), "llama.rope.freq_base is out of range"),
    "theta nan": (lambda c: c.set("llama.rope.freq_base", "<f", float("nan")), "llama.rope.freq_base is out of range"),
    "theta inf": (lambda c: c.set("llama.rope.freq_base", "<f", float("inf")), "llama.rope.freq_base is out of range"),
    "epsilon -1": (lambda c: c.set("llama.attention.layer_norm_rms_epsilon", "<f", -1), "rms_epsilon is out of range"),
    "no layers": (lambda c: c.set("llama.block_count", "<I", 0), "llama.block_count is out of range"),
    "2^32 - 1 layers": (lambda c: c.set("llama.block_count", "<I", 2**32 - 1), "llama.block_count is out of range"),
    "one layer more": (lambda c: c.set("llama.block_count", "<I", 3), "blk.2.attn_norm.weight is missing"),
    "one layer less": (lambda c: c.set("llama.block_count", "<I", 1), "tensors that its model does not have"),
    "2^24 heads": (lambda c: c.set("llama.attention.head_count", "<I", 2**24), "head_count is out of range"),
    "3 KV heads": (lambda c: c.set("llama.attention.head_count_kv", "<I", 3), "head_count is not divisible"),
    "odd head": (lambda c: c.set("llama.attention.key_length", "<I", 15), "key_length must be even"),
    "vocabulary": (lambda c: c.set("llama.vocab_size", "<I", 4096), "token_embd.weight is not described"),
    "context 0": (lambda c: c.set("llama.context_length", "<I", 0), "context_length is out of range"),
    "window 0": (
        lambda c: c.entries.append([b"llama.attention.sliding_window", UINT32, bytes(4)]),
        "sliding_window is out of range",
    ),
    "theta as integer": (lambda c: c.entry("llama.rope.freq_base").__setitem__(1, UINT32), "has the wrong type"),
    "architecture": (
        lambda c: c.entry("general.architecture").__setitem__(2, text(b"phi3")),
        '"phi3" is not supported',
    ),
    "escape codes": (lambda c: c.entry("general.architecture").__setitem__(2, text(b"\x1b[2J")), '"" is not supported'),
    "version 2": (lambda c: c.set("hlq.version", "<I", 2), "hlq.version is missing or not 1"),
    "alignment 32": (lambda c: c.set("general.alignment", "<I", 32), "general.alignment is not 64"),
    "key twice": (key_twice, "two metadata entries are called llama.block_count"),
    "tensor twice": (name_twice, "two tensors are called blk.0.attn_norm.weight"),
    "extra tensor": (add_extra, "holds 1 tensors that its model does not have"),
    "control characters": (lambda c: c.tensors[0].__setitem__(0, b"a\x1b[2J\n"), "the tensor list is damaged"),
    "overlap": (lambda c: c.tensors[1].__setitem__(3, 0), "misaligned or overlaps"),
    "misaligned": (lambda c: c.tensors[-1].__setitem__(3, c.tensors[-1][3] + 32), "misaligned|past the end"),
    "past the end": (lambda c: c.tensors[-1].__setitem__(3, 2**40), "lies past the end of the file"),
    "offset wraps": (lambda c: c.tensors[-1].__setitem__(3, 2**64 - 64), "lies past the end of the file"),
    "dims wrap": (lambda c: c.tensors[0].__setitem__(1, [2**33, 2**33]), "has impossible dimensions"),
    "dims zero": (lambda c: c.tensors[0].__setitem__(1, [0, 4]), "has impossible dimensions"),
    "five dims": (lambda c: c.tensors[0].__setitem__(1, [1] * 5), "the tensor list is damaged"),
    "ggml type": (lambda c: c.tensors[0].__setitem__(2, 2), "has ggml type 2"),
    "names": (names_too_many, "hlq.tensor.names does not name as many tensors"),
    "bits": (lambda c: c.set("hlq.tensor.bits", "<IQ", UINT32, 0), "is not described by the hlq.tensor metadata"),
    "entry count": (lambda c: setattr(c, "counts", (1, 2**64 - 1)), "impossible number"),
    "tensor count": (lambda c: setattr(c, "counts", (2**63, 1)), "impossible number"),
    "nan norm": (
        lambda c: c.patch("blk.1.ffn_norm.weight", 8, struct.pack("<f", float("nan"))),
        "blk.1.ffn_norm.weight holds a value that is not a finite number",
    ),
    "zero divisor": (lambda c: c.patch("rope_freqs.weight", 0, bytes(4)), "rope_freqs.weight holds a divisor"),
}


def test_taking_apart_and_putting_together_changes_nothing(sound, tmp_path):
    assert Container(sound).bytes() == sound


@pytest.mark.parametrize("change", LYING)
def test_refused_by_name(change, sound, tmp_path):
    lie, message = LYING[change]
    container, path = Container(sound), tmp_path / "lie.gguf"
    lie(container)
    path.write_bytes(container.bytes())
    with pytest.raises(NativeError, match=message) as refused:
        Model(path)
    assert "\n" not in str(refused.value) and str(refused.value).isprintable()
    with pytest.raises(FormatError) as refused:
        ModelFile.open(path)
    assert "\n" not in str(refused.value) and str(refused.value).isprintable()


HALVES = {"nan": b"\x00\x7e", "infinite": b"\x00\x7c", "minus infinite": b"\x00\xfc"}


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize(
    "name", ["blk.0.attn_q.weight", "blk.1.attn_v.weight", "blk.0.ffn_down.weight", "token_embd.weight"]
)
def test_scales_that_are_not_numbers_are_found_when_they_matter(half, name, sound, tmp_path):
    """Looking at every scale would read the whole file at open, so it happens when a logit is not a number."""
    container, path = Container(sound), tmp_path / "lie.gguf"
    for at in range(64, 128, 2):  # of all rows of the first block, the second plane's scales
        container.patch(name, at, HALVES[half])
    path.write_bytes(container.bytes())
    row = 5  # of the embedding's damaged block
    with Model(path) as model, model.session(context_size=8, threads=1) as session:
        for tokens in [row], [1, 2, 3, row, 4]:
            with pytest.raises(NativeError, match=f"{name} holds a scale or weight that no model has") as refused:
                session.eval(tokens)
            assert refused.value.bad_input and session.position == 0
        if name == "token_embd.weight":
            session.eval([100])  # another row of it
    with pytest.raises(FormatError, match=name):
        ModelFile.open(path).hlq(name)


@pytest.mark.parametrize("isa", ["scalar", None])
def test_negative_scales_are_refused_in_batches(isa, sound, tmp_path):
    """Token by token their arithmetic is sound; a batch rounds scales to whole steps, which they do not have."""
    path = tmp_path / "lie.gguf"
    container = Container(sound)
    for at in range(0, 128, 2):
        container.patch("blk.0.attn_q.weight", at, struct.pack("<e", 1.0 if at < 64 else -0.999))
    path.write_bytes(container.bytes())
    with Model(path, isa) as model, model.session(context_size=8, threads=1) as session:
        session.eval([1])
        with pytest.raises(NativeError, match=r"blk\.0\.attn_q\.weight holds a scale or weight that no model has"):
            session.eval([1, 2, 3, 4, 5])
    with pytest.raises(FormatError, match=r"blk\.0\.attn_q\.weight"):
        ModelFile.open(path).hlq("blk.0.attn_q.weight")


def test_every_shorter_file_is_refused(sound, tmp_path):
    """Cut at every length in the header and at a few in the data."""
    path = tmp_path / "cut.gguf"
    container = Container(sound)
    _, dims, kind, offset = container.tensors[-1]
    end_of_header = len(sound) - len(container.data)
    end = end_of_header + offset + prod(dims) * {0: 4, 1: 2, 24: 1}[kind]
    for length in [*range(0, end_of_header, 7), *range(end_of_header, end, 997), end - 1]:
        path.write_bytes(sound[:length])
        with pytest.raises(NativeError):
            Model(path)


@pytest.mark.parametrize("path", sorted(SEEDS.glob("*/*.gguf")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_inputs_of_the_fuzzer(path):
    """Seeds run, findings are refused or run; neither ends the process."""
    try:
        with Model(path) as model, model.session(context_size=6, threads=1) as session:
            session.eval([1, 2, 3, 4, 5])
            session.eval([0])
    except NativeError:
        assert path.parent.name == "findings"
