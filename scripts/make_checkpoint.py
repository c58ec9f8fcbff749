"""Writes a checkpoint of a well-known shape with random weights, so that real sizes can be tried without a download.

The folder looks as it does on the hub: bfloat16 safetensors, in shards with an index, config.json, and the tokenizer of
the bundled model, whose ids every shape's vocabulary has. Some rows at a time are in memory.

    python scripts/make_checkpoint.py llama3-8b --blocks 2 -o /tmp/llama3-8b
"""

import argparse
import json
import math
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from checkpoint_folder import WEIGHTS_AT_ONCE, write_safetensors

from elutq_cli.shapes import SHAPES, named_shape
from elutq_formats.config import ModelConfig
from elutq_formats.errors import ElutqError
from elutq_formats.expert_names import expert_names
from elutq_formats.huggingface_config import read_parts
from elutq_formats.part import Part
from elutq_formats.tensor_record import STACK_DIMENSIONS

TOKENIZER = Path(__file__).parent.parent / "tests" / "data" / "novels-6m" / "tokenizer.json"


def random_rows(name: str, shape: tuple[int, ...], config: ModelConfig, seed: int) -> Iterator[npt.NDArray[np.float32]]:
    """Yield a tensor some rows at a time, with the spread that trained weights have.

    Linears are normal with a deviation of 1 / sqrt(columns), times a factor for each row that is log-normal, and one
    column in 128 is three times as large. What adds to the residual stream is divided by sqrt(2 * blocks), so that
    activations stay of one size through the model. Norms lie around 1, biases around 0.
    """
    rng = np.random.default_rng([seed, *name.encode()])
    if len(shape) == 1:
        center = 0.0 if name.endswith("bias") else 1.0
        yield rng.normal(center, 0.1, shape).astype(np.float32)
        return
    rows, columns = shape
    deviation = 0.02 if name.startswith("model.embed") else 1.0 / math.sqrt(columns)
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        deviation /= math.sqrt(2 * config.num_hidden_layers)
    by_column = np.where(rng.random(columns) < 1 / 128, np.float32(3), np.float32(1)) * np.float32(deviation)
    step = max(1, WEIGHTS_AT_ONCE // columns)
    for first in range(0, rows, step):
        part = rng.standard_normal((min(step, rows - first), columns), dtype=np.float32)
        part *= by_column
        part *= np.exp(rng.normal(0.0, 0.25, (len(part), 1))).astype(np.float32)
        yield part


def to_bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Round finite values to the nearest bfloat16, ties to even."""
    bits = values.view(np.uint32)
    rounded: npt.NDArray[np.uint16] = ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype("<u2")
    return rounded


def split_shards(shapes: dict[str, tuple[int, ...]], shard_bytes: int) -> list[list[str]]:
    """Fill shards in the order of the tensors; a tensor larger than a shard has one of its own."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, shape in shapes.items():
        n_bytes = 2 * math.prod(shape)
        if shards[-1] and filled + n_bytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += n_bytes
    return shards


def single_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the model's tensors, each expert's by itself."""
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in config.tensor_shapes().items():
        is_stack = len(shape) == STACK_DIMENSIONS
        found |= dict.fromkeys(expert_names(name, shape[0]), shape[1:]) if is_stack else {name: shape}
    return found


def write_shard(path: Path, parts: dict[str, Part], config: ModelConfig, seed: int) -> None:
    """Write one safetensors file: what is stored for tensors of the model, by their names there."""
    shapes = single_shapes(config)
    names = {part.name: name for name, part in parts.items()}

    def rows(stored: str) -> Iterator[npt.NDArray[np.uint16]]:
        name = names[stored]
        for values in random_rows(name, shapes[name], config, seed):
            yield to_bfloat16(values / np.float32(parts[name].factor) - np.float32(parts[name].added))

    write_safetensors(path, "BF16", {stored: shapes[name] for stored, name in names.items()}, rows)


def make_checkpoint(shape: str, blocks: int | None, folder: Path, seed: int, shard_bytes: int) -> None:
    """Write the whole folder; config.json comes last, so that an interrupted run is not mistaken for a checkpoint.

    Raises:
        ElutqError: there is no such shape, the folder is not empty, or the disk has no room.
    """
    config = named_shape(shape, blocks)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ElutqError(f"{folder} is not empty")
    shapes = single_shapes(config)
    n_bytes = 2 * sum(map(math.prod, shapes.values()))
    if shutil.disk_usage(folder).free < n_bytes:
        raise ElutqError(f"{shape} takes {n_bytes / 1e9:.1f} GB, more than is free in {folder}")
    parts = read_parts(SHAPES[shape], config)
    shards = split_shards(shapes, shard_bytes)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else "model.safetensors"
        print(f"{folder / file}", file=sys.stderr)
        stored = {name: parts.get(name, Part(name)) for name in names}
        write_shard(folder / file, stored, config, seed)
        weight_map |= dict.fromkeys((part.name for part in stored.values()), file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": n_bytes}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    shutil.copy(TOKENIZER, folder / "tokenizer.json")
    settings = SHAPES[shape] | {"num_hidden_layers": config.num_hidden_layers, "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(settings, indent=2))


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("shape", metavar="SHAPE", help=f"one of {', '.join(SHAPES)}")
    parser.add_argument("--blocks", type=int, help="decoder blocks, fewer than the model has; default: all")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to make")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard-size", type=float, default=5.0, help="most GB in a shard; the hub's is 5")
    arguments = parser.parse_args()
    try:
        make_checkpoint(
            arguments.shape, arguments.blocks, arguments.output, arguments.seed, int(arguments.shard_size * 1e9)
        )
    except (ElutqError, OSError) as error:
        sys.exit(f"make_checkpoint: {error}")


if __name__ == "__main__":
    main()
