"""Model files of a given shape with random weights, written directly in the format. Speed does not depend on values."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from elutq_formats.config import ModelConfig
from elutq_formats.constants import TILE_ROWS
from elutq_formats.hlq import block_bytes, block_count, check_geometry
from elutq_formats.model_writer import TensorSource, write_model
from elutq_formats.names import gguf_name
from elutq_formats.origin import Origin
from elutq_formats.tensor_record import TensorRecord

SPREAD = 0.02
"""Standard deviation of the weights, about that of a trained model's."""

HEAD_BITS = 4
"""Bit-planes of head and embedding, as `elutq quantize` gives them."""

UNIQUE_BLOCKS = 4096
"""Random blocks made; a matrix repeats them. 5 MB at 2 bits, so that no cache makes the repetition faster."""


def plan_records(config: ModelConfig, bits: int, group_size: int) -> list[TensorRecord]:
    """Returns the tensors of a synthetic model: head and embedding at 4 bits, the blocks' linears at ``bits``.

    Raises:
        FormatError: The group size is none of the format's, or does not divide the columns of a matrix.
    """
    records = []
    for name, shape in config.tensor_shapes().items():
        if len(shape) == 1:
            records.append(TensorRecord(gguf_name(name), 32, shape[0]))
        else:
            planes = HEAD_BITS if name in ("model.embed_tokens.weight", "lm_head.weight") else bits
            check_geometry(shape[0], shape[1], planes, group_size)
            records.append(TensorRecord(gguf_name(name), planes, shape[0], shape[1], group_size))
    return records


def synthetic_bytes(config: ModelConfig, bits: int, group_size: int) -> int:
    """Returns about how large the file will be.

    Raises:
        FormatError: The group size does not divide the columns of a matrix.
    """
    return sum(record.n_bytes for record in plan_records(config, bits, group_size))


def write_synthetic(path: Path, config: ModelConfig, bits: int, group_size: int = 128, seed: int = 0) -> None:
    """Writes a model file with random weights; at most one matrix is in memory.

    Args:
        path: Where to; replaced if it is there.
        config: The model's shape.
        bits: Bit-planes of the blocks' linears.
        group_size: Columns that share scales.
        seed: Seeds the weights.
    """
    random = np.random.default_rng(seed)
    blocks = {planes: _random_blocks(random, planes, group_size) for planes in {bits, HEAD_BITS}}
    sources: list[TensorSource] = [
        (record, _ones(record.rows))
        if record.group_size is None
        else (record, _repeated(blocks[record.bits], block_count(record.rows, record.columns, group_size)))
        for record in plan_records(config, bits, group_size)
    ]
    write_model(
        path, config, sources, origin=Origin("synthetic", f"synthetic-{bits}bit"), tokenizer_json=None, force=True
    )


def _ones(n: int) -> Callable[[], NDArray[np.float32]]:
    return lambda: np.ones(n, np.float32)


def _repeated(blocks: NDArray[np.uint8], n_blocks: int) -> Callable[[], NDArray[np.uint8]]:
    return lambda: np.resize(blocks, (n_blocks, blocks.shape[1]))


def _random_blocks(random: np.random.Generator, bits: int, group_size: int) -> NDArray[np.uint8]:
    """Returns (UNIQUE_BLOCKS, block bytes): random planes, half scales that double by plane, centers near 0."""
    blocks = random.integers(0, 256, (UNIQUE_BLOCKS, block_bytes(bits, group_size)), dtype=np.uint8)
    doubling = 2.0 ** np.arange(bits)
    half_scales = SPREAD * doubling / np.sqrt((doubling**2).sum())
    scales = np.concatenate([half_scales, [0.0]])[None, :, None] * random.uniform(
        0.8, 1.2, (UNIQUE_BLOCKS, bits + 1, TILE_ROWS)
    )
    blocks[:, : 2 * TILE_ROWS * (bits + 1)] = (
        scales.astype(np.float16).reshape(UNIQUE_BLOCKS, -1).view(np.uint8).reshape(UNIQUE_BLOCKS, -1)
    )
    return blocks
