"""`elutq info`: what a model file holds and where it came from."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from elutq_formats.model_file import ModelFile


def info_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Model file of elutq.")],
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show a model file's hyper-parameters, tensors, size and provenance.

    Example: elutq info model.gguf
    """
    from elutq_formats.model_file import ModelFile

    model = ModelFile.open(file)
    if json_output:
        print(json.dumps(describe(model)))
    else:
        print_description(model)


def describe(model: ModelFile) -> dict[str, Any]:
    """Returns everything ``--json`` prints."""
    tensors = [asdict(record) | {"n_bytes": record.n_bytes} for record in model.tensors.values()]
    return {
        "name": model.name,
        "path": str(model.path),
        "size_bytes": model.size_bytes,
        "bits_per_weight": model.bits_per_weight(),
        "config": asdict(model.config),
        "chat_template": model.chat_template is not None,
        "tensors": tensors,
        "provenance": model.provenance,
    }


def print_description(model: ModelFile) -> None:
    """Prints the same for a reader; tensors of the same kind in all blocks share a line."""
    config = model.config
    print(
        f"{model.name}: {config.model_type}, {model.size_bytes / 1e6:.1f} MB, {model.bits_per_weight():.3f} bits per weight"
    )
    print(
        f"{config.num_hidden_layers} blocks, hidden size {config.hidden_size}, inner {config.intermediate_size}, "
        f"{config.num_attention_heads} heads of {config.head_dim} ({config.num_key_value_heads} KV), "
        f"vocabulary {config.vocab_size}, context {config.max_position_embeddings}"
    )
    print(f"\n{'tensor':28} {'shape':>16} {'bits':>8} {'bytes':>14} {'error':>8}")
    for line in tensor_lines(model):
        print(line)
    if model.provenance:
        print()
        for key, value in model.provenance.items():
            print(f"{key:28} {value}")


def tensor_lines(model: ModelFile) -> list[str]:
    """Returns one line for each kind of tensor: its place in a block, shape and bits; bytes summed, errors averaged."""
    kinds: dict[tuple[str, str, str], list[tuple[int, float | None]]] = {}
    for record in model.tensors.values():
        first, _, rest = record.name.partition(".")
        name = f"blk.*.{rest.partition('.')[2]}" if first == "blk" else record.name
        shape = f"{record.rows} x {record.columns}" if record.bits != 32 else str(record.rows)
        bits = f"{record.bits} g{record.group_size}" if record.group_size else f"{record.bits}"
        kinds.setdefault((name, shape, bits), []).append((record.n_bytes, record.error))
    repeats = Counter({kind: len(entries) for kind, entries in kinds.items()})
    lines = []
    for (name, shape, bits), entries in kinds.items():
        errors = [error for _, error in entries if error is not None]
        error = f"{sum(errors) / len(errors):.4f}" if errors else ""
        count = repeats[name, shape, bits]
        label = f"{name} ({count})" if count > 1 else name
        lines.append(f"{label:28} {shape:>16} {bits:>8} {sum(n for n, _ in entries):>14,} {error:>8}".rstrip())
    return lines
