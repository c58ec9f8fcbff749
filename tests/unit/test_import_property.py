"""elutq import of quantized models with random damage: a file that opens, or a refusal, and nothing else is left.

ELUTQ_EXAMPLES=100000 looks further than the few hundred that the suite does, in another order each time.
"""

import json
import shutil
import struct

import numpy as np
import pytest
from conftest import DATA
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st
from random_damage import looking
from ternary_folders import write_gguf

from elutq_cli.pipeline.compute.backend import native_backend
from elutq_cli.pipeline.recipe import IMPORT, Recipe
from elutq_cli.pipeline.run.quantize import quantize
from elutq_formats.errors import ElutqError
from elutq_formats.gguf_reader import GGUFReader
from elutq_formats.open_source import open_source
from elutq_native import Model, NativeError

look = looking(80)
FOLDERS = [*sorted((DATA / "quantized").iterdir()), DATA / "ternary" / "bitnet", DATA / "ternary" / "bitnet-online"]
NEW_KEYS = ["dynamic", "extra_config", "desc_act", "zero_point", "w_bit", "q_group_size", "version", "act_bits"]
WORDS = ["gptq", "gptq_v2", "awq", "gemv", "auto-round", "compressed-tensors", "bitnet", "online", "autobitlinear"]
WEIGHTS, CONFIG = "model.safetensors", "config.json"


@pytest.fixture(scope="module")
def backend():
    with native_backend(1) as made:
        yield made


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where a damaged folder is made, beside the file that may be made of it."""
    return tmp_path_factory.mktemp("damaged")


def import_damaged(place, backend, original, config=None, weights=None):
    """Import a folder with another config.json, or weights; both are bytes."""
    shutil.rmtree(place)
    folder = place / "model"
    folder.mkdir(parents=True)
    for name, contents in (("tokenizer.json", None), (CONFIG, config), (WEIGHTS, weights)):
        (folder / name).write_bytes((original / name).read_bytes() if contents is None else contents)
    return import_model(folder, place / "made.gguf", backend)


def import_model(model, output, backend):
    """Import a model that lies alone beside the output: whether that was possible."""
    try:
        with open_source(model) as source:
            quantize(source, output, Recipe(method=IMPORT, group_size=32), None, backend)
    except ElutqError as error:
        assert str(error) and "\n" not in str(error)
        assert list(output.parent.iterdir()) == [model], error
        return False
    assert set(output.parent.iterdir()) == {model, output}
    with Model(output) as model, model.session(4, 1, "f16") as session:
        try:
            assert not np.isnan(session.eval([1, 2, 3])).any()
        except NativeError as error:
            assert str(error) == "the model computes numbers too large for its formats"
    return True


def test_all_of_them_are_imported_undamaged(place, backend):
    assert [import_damaged(place, backend, folder) for folder in FOLDERS] == [True] * len(FOLDERS)


folders = st.sampled_from(FOLDERS)
numbers = st.sampled_from([0, -1, 1, 2, 3, 4, 8, 16, 31, 32, 64, 128, 2**31, 2**63, -(2**63), 10**30, 4.0, 0.5, 1e308])
scalars = st.one_of(
    numbers, st.sampled_from([None, True, False, "", "4", *WORDS]), st.just(float("nan")), st.text(max_size=3)
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(NEW_KEYS), inner, max_size=2)
)
positions = st.floats(0, 1, exclude_max=True)


def places_of(value):
    """Every entry of an object and of those within it, each with what holds it; those of config.json last."""
    found = [(value, key) for key in value]
    inner = [entry for entry in value.values() if isinstance(entry, dict)]
    return [*(each for entry in inner for each in places_of(entry)), *found]


@look
@given(
    folders, st.lists(st.tuples(positions, st.sampled_from(["set", "remove", "add"]), values), min_size=1, max_size=3)
)
def test_damage_to_the_configuration(place, backend, folder, changes):
    config = json.loads((folder / CONFIG).read_text())
    for position, what, value in changes:
        entries = places_of(config)
        holder, key = entries[int(position * len(entries))]
        if what == "set":
            holder[key] = value
        elif what == "remove":
            del holder[key]
        else:
            holder[NEW_KEYS[int(position * 97) % len(NEW_KEYS)]] = value
    import_damaged(place, backend, folder, config=json.dumps(config).encode())


def split(weights):
    """The header of a safetensors file, and its data."""
    start = 8 + int.from_bytes(weights[:8], "little")
    return json.loads(weights[8:start]), weights[start:]


def joined(header, data):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def change_header(header, position, what, number, dtype):
    """Change an entry of a header, most often so that its tensor has as many bytes as before."""
    names = [name for name in header if name != "__metadata__"]
    name = names[int(position * len(names))]
    entry = header[name]
    shape = entry["shape"]
    if what == "dtype":
        entry["dtype"] = dtype
    elif what == "shape" and shape:
        shape[int(position * 97) % len(shape)] = number
    elif what == "reshape":
        entry["shape"] = {0: shape[::-1], 1: [int(np.prod(shape))], 2: [*shape, 1], 3: [1, *shape]}[number % 4]
    elif what == "swap":
        other = names[number % len(names)]
        header[name], header[other] = header[other], header[name]
    elif what == "rename":
        header[f"{name.rpartition('.')[0]}.{['scales', 'weight', 'qweight', 'bias'][number % 4]}"] = header.pop(name)
    elif what == "remove":
        del header[name]


kinds = st.sampled_from(["dtype", "shape", "reshape", "swap", "rename", "remove"])
dtypes = st.sampled_from(["F16", "BF16", "F32", "F64", "I8", "U8", "I16", "I32", "I64", "U32", "BOOL", "F8_E4M3", "X"])
sizes = st.integers(0, 300) | st.sampled_from([2**31, 2**62, 2**64 - 1])


@look
@given(folders, st.lists(st.tuples(positions, kinds, sizes, dtypes), min_size=1, max_size=2))
def test_damage_to_names_shapes_and_types_of_tensors(place, backend, folder, changes):
    header, data = split((folder / WEIGHTS).read_bytes())
    for change in changes:
        change_header(header, *change)
    import_damaged(place, backend, folder, weights=joined(header, data))


halves = st.sampled_from([0, 1, 0x8000, 0x3C00, 0xBC00, 0x7BFF, 0x7C00, 0xFC00, 0x7E00, 0xFFFF])
damage = st.tuples(positions, halves, st.integers(1, 64))


@look
@given(folders, st.lists(damage, min_size=1, max_size=4))
def test_damage_to_the_contents_of_tensors(place, backend, folder, changes):
    header, data = split((folder / WEIGHTS).read_bytes())
    names = [name for name in header if ".layers." in name]
    changed = bytearray(data)
    for position, half, length in changes:
        begin, end = header[names[int(position * len(names))]]["data_offsets"]
        first = begin + int(position * 997) % (end - begin) // 2 * 2
        changed[first : min(first + 2 * length, end)] = struct.pack("<H", half) * min(length, (end - first) // 2)
    assert len(changed) == len(data)
    import_damaged(place, backend, folder, weights=joined(header, bytes(changed)))


@look
@given(folders, positions, st.binary(max_size=8))
def test_damage_to_the_bytes_of_a_weight_file(place, backend, folder, position, new):
    weights = (folder / WEIGHTS).read_bytes()
    at = int(position**3 * len(weights))  # its header, as a rule
    import_damaged(
        place, backend, folder, weights=weights[:at] + new + weights[at + len(new) :] if new else weights[:at]
    )


@pytest.fixture(scope="module")
def gguf_files(tmp_path_factory):
    """Files of every type whose levels are kept, and where the data of each begins."""
    folder, found = tmp_path_factory.mktemp("sound"), []
    for kind, others in (("Q4_0", {"attn": "Q4_1"}), ("TQ2_0", {"ffn": "TQ1_0"}), ("Q1_0", {})):
        path = folder / f"{kind}.gguf"
        write_gguf(path, np.random.default_rng(0), GGMLQuantizationType[kind], others)
        raw = path.read_bytes()
        reader = GGUFReader(path)
        found.append((raw, len(raw) - max(tensor.offset + tensor.n_bytes for tensor in reader.tensors.values())))
    return found


@settings(look, max_examples=look.max_examples // 2)
@given(st.integers(0, 2), st.lists(st.tuples(positions, st.booleans(), halves), min_size=1, max_size=3))
def test_damage_to_a_gguf_file(place, backend, gguf_files, which, changes):
    raw, start = gguf_files[which]
    changed = bytearray(raw)
    for position, in_header, half in changes:
        at = int(position * start) if in_header else start + int(position * (len(raw) - start - 2))
        changed[at : at + 2] = struct.pack("<H", half)
    shutil.rmtree(place)
    place.mkdir()
    (place / "model.gguf").write_bytes(changed)
    import_model(place / "model.gguf", place / "made.gguf", backend)
