"""Models of ternary and binary weights: the golden folders, and GGUF files that are made of such weights."""

import json
import shutil

import gguf
import numpy as np
from conftest import DATA, GOLDEN
from foreign_gguf import describe
from gguf import GGMLQuantizationType
from quantized_folders import CONFIG
from safetensors.numpy import save_file

from elutq_formats.config import ModelConfig

TERNARY = DATA / "ternary"
WIDE = CONFIG | {"hidden_size": 256, "num_hidden_layers": 1}
Q1_0 = GGMLQuantizationType.Q1_0


def draw_levels(rng, rows, columns, group_size, binary=False, dtype=np.float16):
    """Weights that are -s, 0 or s, or -s or s, with an s for every group of a row."""
    codes = rng.integers(0, 2, (rows, columns)) * 2 - 1 if binary else rng.integers(-1, 2, (rows, columns))
    scales = rng.uniform(0.02, 0.06, (rows, columns // group_size, 1)).astype(dtype)
    return (codes.reshape(rows, -1, group_size) * scales).reshape(rows, columns).astype(dtype)


def write_floats(folder, rng, group_size=256, binary=False, changes=None):
    """Write a checkpoint of 256 columns whose linears are on levels, stored as float16; return its tensors."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(WIDE))
    shutil.copy(GOLDEN / "llama1-mha" / "tokenizer.json", folder)
    tensors = {}
    for name, shape in ModelConfig.from_huggingface(WIDE).tensor_shapes().items():
        if "_proj" in name:
            tensors[name] = draw_levels(rng, *shape, group_size, binary)
        else:
            tensors[name] = (rng.standard_normal(shape) * 0.1 + (len(shape) == 1)).astype(np.float16)
    tensors |= changes or {}
    save_file(tensors, folder / "model.safetensors")
    return tensors


def q1_0_rows(weights):
    """Pack rows of blocks of 128 weights, each -s or s: a scale in float16, and a bit for each that is s."""
    blocks = weights.reshape(-1, 128)
    scales = np.abs(blocks[:, :1]).astype("<f2").view(np.uint8)
    bits = np.packbits(blocks > 0, axis=1, bitorder="little")
    return np.concatenate([scales, bits], axis=1).reshape(len(weights), -1)


def write_gguf(path, rng, kind, others=None):
    """Write a GGUF file whose linears have a type; return their weights by name. No such type here loses any of them.

    Args:
        path: to make.
        rng: draws everything.
        kind: of the blocks' matrices.
        others: types of matrices that have another, by a part of their names; they are of random bytes or numbers.
    """
    binary = kind == Q1_0
    folder = path.parent / f"{path.stem}-floats"
    weights = write_floats(folder, rng, 128 if binary else 256, binary)
    described = describe(folder)
    for name, array in described.tensors.items():
        other = next((each for part, each in (others or {}).items() if part in name and array.ndim == 2), None)
        if other is not None:
            described.tensors[name] = (random_blocks(rng, array.shape, other), GGMLQuantizationType[other])
        elif name.startswith("blk.") and array.ndim == 2:
            stored = q1_0_rows(array) if binary else gguf.quantize(array.astype(np.float32), kind)
            described.tensors[name] = (stored, kind)
    described.write(path)
    return {name: array.astype(np.float32) for name, array in weights.items() if "_proj" in name}


def random_blocks(rng, shape, kind):
    """Return a matrix of some type: of numbers where gguf-py writes it, else of random codes with small scales."""
    try:
        return gguf.quantize(rng.standard_normal(shape).astype(np.float32) * 0.05, GGMLQuantizationType[kind])
    except NotImplementedError:
        block, block_bytes = gguf.GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
        stored = rng.integers(0, 256, (shape[0] * shape[1] // block, block_bytes), dtype=np.uint8)
        stored[:, -2:] = np.array([1e-5], "<f2").view(np.uint8)  # of Q6_K, whose scale comes last
        return stored.reshape(shape[0], -1)


def read_stored(folder):
    """A folder's tensors by name: bytes as integers, bfloat16, of which numpy has no type, widened."""
    data = (folder / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    found = {}
    for name, entry in json.loads(data[8:start]).items():
        if name == "__metadata__":
            continue
        begin, end = (start + offset for offset in entry["data_offsets"])
        if entry["dtype"] == "BF16":
            array = (np.frombuffer(data[begin:end], "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            array = np.frombuffer(data[begin:end], {"U8": np.uint8, "F16": np.float16}[entry["dtype"]])
        found[name] = array.reshape(entry["shape"])
    return found
