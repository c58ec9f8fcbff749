"""`elutq info`: what a model file holds and where it came from."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from elutq_cli.commands.options import CacheType, Threads
from elutq_cli.commands.runtime import prepare_runtime
from elutq_cli.model_path import refuse_folder
from elutq_cli.pipeline.compute.blas import configure_blas
from elutq_cli.streams import printable, shown_line

if TYPE_CHECKING:
    from elutq_formats.model_file import ModelFile


def info_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Model file of elutq.")],
    ctx_size: Annotated[
        int | None,
        typer.Option("-c", "--ctx-size", help="Context to count memory for; default: what `elutq run` would take."),
    ] = None,
    threads: Threads = None,
    cache_type: CacheType = "f16",
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Read the weights a few times to find the speed's roof.")
    ] = True,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what a model file holds, and whether it runs here.

    The roof is the decode speed if reading the weights were all there is to do; elutq bench measures the real one.

    Example: elutq info model.gguf
    """
    configure_blas(1)
    from elutq_cli.generation.fitness import assess, describe_fitness, measure_roof
    from elutq_formats.model_file import ModelFile
    from elutq_native import Model

    refuse_folder(file)
    model = ModelFile.open(file)
    prepare_runtime()
    with Model(file) as native:
        fitness = assess(native, ctx_size, threads, cache_type)
        if not json_output:
            print_description(model)
            sys.stdout.flush()  # the measurement waits for the disk
        if measure:
            fitness = measure_roof(native, fitness)
    if json_output:
        print(json.dumps(describe(model) | {"here": fitness.to_dict()}))
    else:
        print(f"\n{describe_fitness(fitness)}")


def describe(model: ModelFile) -> dict[str, Any]:
    """Return everything ``--json`` prints."""
    tensors = [
        asdict(record) | {"n_bytes": record.n_bytes, "kind": record.kind.name if record.group_size else None}
        for record in model.tensors.values()
    ]
    return {
        "name": model.name,
        "path": printable(model.path),
        "size_bytes": model.size_bytes,
        "bits_per_weight": model.bits_per_weight(),
        "block_bits_per_weight": model.block_bits_per_weight(),
        "config": asdict(model.config),
        "chat_template": model.chat_template is not None,
        "sampling": dict(model.sampling),
        "tensors": tensors,
        "provenance": model.provenance,
    }


def print_description(model: ModelFile) -> None:
    """Print the same for a reader; tensors of the same kind in all blocks share a line."""
    config = model.config
    bits = f"{model.bits_per_weight():.3f} bits per weight ({model.block_bits_per_weight():.3f} in the blocks)"
    size = f"{model.size_bytes / 1e6:.1f} MB, {bits}"
    print(f"{shown_line(model.name)}: {config.model_type}, {size}")
    print(
        f"{config.num_hidden_layers} blocks, hidden size {config.hidden_size}, inner {config.intermediate_size}, "
        f"{config.num_attention_heads} heads of {config.head_dim} ({config.num_key_value_heads} KV), "
        f"vocabulary {config.vocab_size}, context {config.max_position_embeddings}, "
        f"{'a' if model.chat_template is not None else 'no'} chat template"
    )
    if model.sampling:
        print(f"the author's sampling: {', '.join(f'{name} {value:g}' for name, value in model.sampling.items())}")
    print(f"\n{'tensor':28} {'shape':>16} {'bits':>14} {'bytes':>14} {'error':>8}")
    for line in tensor_lines(model):
        print(shown_line(line))
    if model.provenance:
        print()
        for key, value in model.provenance.items():
            print(f"{shown_line(key):28} {shown_line(value)}")


def tensor_lines(model: ModelFile) -> list[str]:
    """Return one line for each kind of tensor: its place in a block, shape, bits, groups and kind of HLQ blocks.

    Bytes are summed, errors averaged.

    Kinds stand in the order of the file, those with the same place together.
    """
    kinds: dict[tuple[str, str, str], list[tuple[int, float | None]]] = {}
    for record in model.tensors.values():
        first, _, rest = record.name.partition(".")
        name = f"blk.*.{rest.partition('.')[2]}" if first == "blk" else record.name
        shape = " x ".join(map(str, record.shape))
        bits = f"{record.bits} g{record.group_size} {record.kind}" if record.group_size else f"{record.bits}"
        kinds.setdefault((name, shape, bits), []).append((record.n_bytes, record.error))
    names = list(dict.fromkeys(name for name, _, _ in kinds))
    lines = []
    for (name, shape, bits), entries in sorted(kinds.items(), key=lambda kind: (names.index(kind[0][0]), kind[0])):
        errors = [error for _, error in entries if error is not None]
        error = f"{sum(errors) / len(errors):.4f}" if errors else ""
        label = f"{name} ({len(entries)})" if len(entries) > 1 else name
        lines.append(f"{label:28} {shape:>16} {bits:>14} {sum(n for n, _ in entries):>14,} {error:>8}".rstrip())
    return lines
