"""Model files with random damage: both readers refuse them with their own error or use them, and nothing else happens.

ELUTQ_EXAMPLES=100000 looks further than the few hundred that the suite does, in another order each time.
"""

import struct
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from random_damage import looking

from elutq_formats.errors import FormatError
from elutq_formats.gguf_reader import GGUFReader
from elutq_formats.model_file import ModelFile
from elutq_native import Model, NativeError

sys.path.insert(0, str(Path(__file__).parents[1] / "native"))
from make_models import golden_config, write_random

look = looking(200)
EDGES = [2**n for n in (0, 1, 5, 6, 7, 16, 22, 24, 28, 31, 32, 63, 64)]
NUMBERS = [0, 2**64 - 64, *EDGES[:-1], *(edge - 1 for edge in EDGES)]


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A model file, and about how many bytes lie before its data."""
    path = tmp_path_factory.mktemp("sound") / "model.gguf"
    write_random(path, golden_config("qwen3-biases"), bits=2, group_size=32)
    reader = GGUFReader(path)
    raw = path.read_bytes()
    return raw, len(raw) - max(tensor.offset + tensor.n_bytes for tensor in reader.tensors.values())


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("damaged") / "model.gguf"


def read_everything(path):
    """What the Python reader makes of a file: whether it opened."""
    try:
        model = ModelFile.open(path)
    except FormatError as error:
        assert str(error) and "\n" not in str(error)
        return False
    for name in model.config.tensor_shapes():
        try:
            model.load(name)
        except FormatError as error:
            assert "\n" not in str(error)
    return True


def run(path, isa):
    """What the C runtime makes of it: whether it opened."""
    try:
        model = Model(path, isa)
    except NativeError as error:
        assert "\n" not in str(error) and str(error).isprintable()
        return False
    with model, model.session(context_size=min(8, model.context_length), threads=1) as session:
        for tokens in [3] * min(5, model.context_length), [1]:
            try:
                session.rewind(0)
                session.eval([token % model.vocab_size for token in tokens])
            except NativeError as error:
                assert "\n" not in str(error) and str(error).isprintable()
    return True


def agree(path):
    """What Python accepts, the runtime accepts."""
    python, native = read_everything(path), run(path, None)
    assert native or not python


positions = st.floats(0, 1, exclude_max=True)
numbers = st.sampled_from(NUMBERS)
damage = st.one_of(
    st.tuples(st.just("overwrite"), positions, st.binary(min_size=1, max_size=8)),
    st.tuples(st.just("overwrite"), positions, st.integers(0, 12).map(lambda kind: bytes([kind]))),  # a type, perhaps
    st.tuples(st.just("overwrite"), positions, numbers.map(lambda n: struct.pack("<Q", n))),
    st.tuples(st.just("overwrite"), positions, numbers.map(lambda n: struct.pack("<I", n % 2**32))),
    st.tuples(st.just("overwrite"), positions, st.floats(width=32).map(lambda x: struct.pack("<f", x))),
    st.tuples(st.just("insert"), positions, st.binary(min_size=1, max_size=80)),
    st.tuples(st.just("remove"), positions, st.integers(1, 80).map(bytes)),
    st.tuples(st.just("repeat"), positions, st.integers(1, 80).map(bytes)),
    st.tuples(st.just("cut"), positions, st.just(b"")),
)


def apply(raw, end, kind, position, new):
    """Damage a file somewhere before `end`."""
    at = int(position * end)
    if kind == "overwrite":
        return raw[:at] + new + raw[at + len(new) :]
    if kind == "insert":
        return raw[:at] + new + raw[at:]
    if kind == "remove":
        return raw[:at] + raw[at + len(new) :]
    if kind == "repeat":
        return raw[:at] + raw[at : at + len(new)] + raw[at:]
    return raw[:at]


@look
@given(st.lists(damage, min_size=1, max_size=4))
def test_damage_to_the_header(sound, path, changes):
    raw, end = sound
    for change in changes:
        raw = apply(raw, end, *change)
    path.write_bytes(raw)
    agree(path)


@look
@given(st.lists(damage, min_size=1, max_size=4))
def test_damage_anywhere(sound, path, changes):
    raw, _ = sound
    for change in changes:
        raw = apply(raw, len(raw), *change)
    path.write_bytes(raw)
    agree(path)


@look
@given(st.binary(max_size=400))
@example(b"GGUF")
@example(b"GGUF" + struct.pack("<IQQ", 3, 0, 0))
def test_bytes_that_are_no_file_at_all(path, raw):
    path.write_bytes(raw)
    agree(path)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 2) + raw)
    agree(path)
