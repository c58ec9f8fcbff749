"""Writes small model files for the C programs of this folder: every family, 1 to 4 bits, every group size, fp16.

make_models.py FOLDER
"""

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from elutq_formats.block_kind import KIND_NUMBERS, BlockKind
from elutq_formats.checkpoint import Checkpoint
from elutq_formats.config import ModelConfig
from elutq_formats.hlq import HLQTensor, pack
from elutq_formats.model_writer import write_model
from elutq_formats.names import gguf_name
from elutq_formats.origin import Origin
from elutq_formats.tensor_record import TensorRecord

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


EXPONENT, CENTER = 5, -2
"""Of kinds that have one."""


def block_kind(name: str) -> BlockKind:
    """Return a kind with numbers for all that it can have."""
    kind = BlockKind(name)
    return BlockKind(name, EXPONENT if kind.has_bytes else 0, 0 if kind.has_centers else CENTER)


def matrix_bytes(
    seed: int, rows: int, columns: int, bits: int, group_size: int | None, kind: str = "free16"
) -> np.ndarray:
    """Return a random matrix as it lies in a file."""
    rng = np.random.default_rng(seed)
    if group_size is None:
        return rng.normal(0, columns**-0.5, (rows, columns)).astype(np.float16)
    groups = rows, columns // group_size
    half_scales = rng.uniform(0, columns**-0.5, (*groups, bits)).astype(np.float16)
    centers = rng.normal(0, 0.1 * columns**-0.5, groups).astype(np.float16)
    codes = rng.integers(0, 1 << bits, (rows, columns), dtype=np.uint8)
    numbers = half_scales, centers
    if kind != "free16":
        numbers = block_kind(kind).nearest(*numbers)
    return pack(HLQTensor(*numbers, codes, group_size, block_kind(kind)))


def write_random(
    path: Path, config: ModelConfig, bits: int, group_size: int, half: str = "none", kind: str = "free16"
) -> None:
    """Write a model of random weights. Matrices whose name contains `half`, or that no group fits, are fp16."""
    layouts = {}
    for name, shape in config.tensor_shapes().items():
        quantized = half not in name and shape[-1] % group_size == 0
        layouts[name] = (bits, group_size, kind) if quantized else (16, None, kind)
    write_stored(path, config, layouts)


def write_stored(path: Path, config: ModelConfig, layouts: Mapping[str, tuple[int, int | None, str]]) -> None:
    """Write a model of random weights, its matrices with these bits, group sizes (None: fp16) and kinds."""
    tensors, plain = [], config.float_names()
    for i, (name, shape) in enumerate(config.tensor_shapes().items()):
        stored = gguf_name(name)
        if name in plain:
            rng = np.random.default_rng(i)
            values = rng.uniform(0.5, 1.5, shape) if len(shape) == 1 else rng.normal(0, 2 * shape[1] ** -0.5, shape)
            tensors.append((TensorRecord.of_floats(stored, shape), lambda values=values: values))
            continue
        bits, group_size, kind = layouts[name]
        *stack, rows, columns = shape
        n_experts = stack[0] if stack else None
        record = TensorRecord(stored, bits, rows, columns, group_size, n_experts=n_experts)
        if group_size is not None:
            record = replace(record, kind=block_kind(kind))
        seeds = [i] if n_experts is None else [1000 * (i + 1) + expert for expert in range(n_experts)]
        arguments = rows, columns, bits, group_size, kind
        tensors.append(
            (record, lambda seeds=seeds, rest=arguments: np.concatenate([matrix_bytes(s, *rest) for s in seeds]))
        )
    write_model(path, config, tensors, origin=Origin(path.stem, path.stem), tokenizer_json=None)


def expert_config(**changes: object) -> ModelConfig:
    """Return the configuration of a small mixture: experts of which a prompt sends some rows to each, one shared."""
    config = ModelConfig(
        model_type="qwen2_moe",
        hidden_size=128,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        vocab_size=256,
        max_position_embeddings=256,
        rms_norm_eps=1e-6,
        rope_theta=10000.0,
        n_experts=5,
        n_experts_used=2,
        expert_intermediate_size=64,
        shared_expert_intermediate_size=96,
    )
    return replace(config, **changes)


def golden_config(family: str) -> ModelConfig:
    """Return the configuration of a golden checkpoint."""
    with Checkpoint.open(GOLDEN / family) as checkpoint:
        return checkpoint.config


def main(folder: Path) -> None:
    """Write the files."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, family in enumerate(sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())):
        write_random(folder / f"{family}.gguf", golden_config(family), bits=1 + i % 4, group_size=32)
    wide = replace(golden_config("llama2-gqa-sharded"), hidden_size=256, intermediate_size=384, vocab_size=301)
    for bits, kind in enumerate([name for name in KIND_NUMBERS if name != "free16"]):
        write_random(folder / f"{kind}.gguf", wide, 1 + bits % 4, 128 if bits % 2 else 64, kind=kind)
    write_random(
        folder / "experts.gguf", expert_config(n_experts_used=4, normalize_expert_weights=True), bits=4, group_size=32
    )
    half = expert_config(n_experts=3, shared_expert_intermediate_size=0, expert_layers=(True, False), norm_after=True)
    write_random(folder / "experts-half.gguf", half, bits=4, group_size=64, half="gate_proj")
    write_random(folder / "odd-width.gguf", replace(wide, intermediate_size=260), bits=2, group_size=32)
    odd = expert_config(hidden_size=64, head_dim=16, shared_expert_intermediate_size=100)
    write_random(folder / "experts-odd-width.gguf", odd, bits=2, group_size=32)
    windows = replace(golden_config("gemma3"), max_position_embeddings=700)  # more than its layers with a window hold
    write_random(folder / "windows.gguf", windows, bits=4, group_size=32)
    for bits in (1, 2, 3, 4):
        for group_size in (64, 128):
            write_random(
                folder / f"{bits}bit-g{group_size}.gguf", wide, bits, group_size, half="embed" if bits > 2 else "none"
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
