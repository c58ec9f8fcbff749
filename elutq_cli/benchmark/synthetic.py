"""Model files of a given shape with random weights, written directly in the format.

Speed does not depend on values, but that a prompt's tokens go to all of the experts, as those of a text do.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from elutq_cli.pipeline.layout import Layout
from elutq_cli.pipeline.recipe import OUTER_BITS, Recipe
from elutq_formats.block_kind import BlockKind
from elutq_formats.config import ModelConfig
from elutq_formats.constants import TILE_ROWS
from elutq_formats.hlq import block_bytes, check_geometry
from elutq_formats.model_writer import TensorSource, write_model
from elutq_formats.names import gguf_name
from elutq_formats.origin import Origin
from elutq_formats.tensor_record import TensorRecord

SPREAD = 0.02
"""Standard deviation of the weights, about that of a trained model's."""

LARGEST = 1.2
"""Half scales are up to this many times what they are on average."""

LAYOUT = Recipe().layout(Recipe.bits)
"""How `elutq quantize` stores a matrix of the blocks where nobody says otherwise."""

UNIQUE_BLOCKS = 4096
"""Random blocks made; a matrix repeats them. 5 MB at 2 bits, so that no cache makes the repetition faster."""


QUIET = 1 / 2048
"""What the norms of blocks multiply by where there are experts. What random blocks add to the stream makes all tokens
alike, so that a few experts had all of them: so little leaves them what their embeddings are."""


def plan_records(config: ModelConfig, layout: Layout = LAYOUT) -> list[TensorRecord]:
    """Returns the tensors of a synthetic model: the blocks' linears as given, head and embedding so but at 4 bits.

    Raises:
        FormatError: The group size or the kind is none of the format's, or the size does not divide a matrix's columns.
    """
    records = []
    kind, plain = BlockKind.fitting(layout.kind, SPREAD * LARGEST), config.float_names()
    for name, shape in config.tensor_shapes().items():
        if name in plain:
            records.append(TensorRecord.of_floats(gguf_name(name), shape))
            continue
        planes = OUTER_BITS if name in ("model.embed_tokens.weight", "lm_head.weight") else layout.bits
        *stack, rows, columns = shape
        check_geometry(rows, columns, planes, layout.group_size)
        record = TensorRecord(gguf_name(name), planes, rows, columns, layout.group_size, kind=kind)
        records.append(replace(record, n_experts=stack[0] if stack else None))
    return records


def synthetic_bytes(config: ModelConfig, layout: Layout = LAYOUT) -> int:
    """Returns about how large the file will be.

    Raises:
        FormatError: See ``plan_records``.
    """
    return sum(record.n_bytes for record in plan_records(config, layout))


def write_synthetic(path: Path, config: ModelConfig, layout: Layout = LAYOUT, seed: int = 0) -> None:
    """Writes a model file with random weights; at most one matrix is in memory.

    Args:
        path: Where to; replaced if it is there.
        config: The model's shape.
        layout: Of the blocks' linears; head and embedding have its groups and kind.
        seed: Seeds the weights.
    """
    random = np.random.default_rng(seed)
    kind, group_size = BlockKind.fitting(layout.kind, SPREAD * LARGEST), layout.group_size
    blocks = {planes: _random_blocks(random, planes, group_size, kind) for planes in {layout.bits, OUTER_BITS}}
    sources: list[TensorSource] = [
        (record, _floats(record, config.n_experts > 0, [seed, *record.name.encode()]))
        if record.group_size is None
        else (record, _repeated(blocks[record.bits], math.prod(record.dims[1:])))
        for record in plan_records(config, layout)
    ]
    origin = Origin("synthetic", f"synthetic-{layout.bits}bit")
    write_model(path, config, sources, origin=origin, tokenizer_json=None, force=True)


def _floats(record: TensorRecord, has_experts: bool, seed: list[int]) -> Callable[[], NDArray[np.float32]]:
    """Ones, as norms are, or QUIET; what chooses among experts is random, so that it chooses all of them."""
    if len(record.shape) > 1:
        spread = 1 / math.sqrt(record.columns)
        return lambda: np.random.default_rng(seed).standard_normal(record.shape, np.float32) * np.float32(spread)
    of_block = record.name.endswith((".attn_norm.weight", ".ffn_norm.weight"))
    return lambda: np.full(record.shape, QUIET if has_experts and of_block else 1.0, np.float32)


def _repeated(blocks: NDArray[np.uint8], n_blocks: int) -> Callable[[], NDArray[np.uint8]]:
    return lambda: np.resize(blocks, (n_blocks, blocks.shape[1]))


def _random_blocks(random: np.random.Generator, bits: int, group_size: int, kind: BlockKind) -> NDArray[np.uint8]:
    """Returns (UNIQUE_BLOCKS, block bytes): random planes, half scales that double by plane, centers near 0."""
    blocks = random.integers(0, 256, (UNIQUE_BLOCKS, block_bytes(bits, group_size, kind)), dtype=np.uint8)
    doubling = 2.0 ** np.arange(bits)
    sizes = random.uniform(2 - LARGEST, LARGEST, (UNIQUE_BLOCKS, TILE_ROWS, bits))
    half_scales = SPREAD * doubling / np.sqrt((doubling**2).sum()) * sizes
    numbers = kind.encode(*kind.nearest(half_scales, np.zeros((UNIQUE_BLOCKS, TILE_ROWS))))
    by_number = [np.ascontiguousarray(part.transpose(0, 2, 1)).view(np.uint8) for part in numbers]
    header = [part.reshape(UNIQUE_BLOCKS, -1) for part in by_number]
    blocks[:, : kind.scales_bytes(bits)] = np.concatenate(header, axis=1)
    return blocks
