"""`elutq import`: makes a model file from a checkpoint that others have quantized, with their levels."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from elutq_cli.commands.making import make_file, print_forecast
from elutq_cli.commands.options import ForceOutput, GGUFFile, MaxMemory, Resume, Threads, one_of
from elutq_cli.pipeline.compute.blas import configure_blas


def import_command(
    model: Annotated[
        Path,
        typer.Argument(metavar="MODEL", help="Quantized checkpoint folder, or org/name on the hub."),
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Model file to make; default: MODEL's name with .elutq.gguf, here."),
    ] = None,
    output_bits: Annotated[
        int,
        typer.Option(
            help="Bits of an output head that is not quantized: 1 to 4, or 16 for float16.",
            autocompletion=one_of(1, 2, 3, 4, 16),
        ),
    ] = 4,
    embedding_bits: Annotated[
        int,
        typer.Option(
            help="Bits of an embedding that is not quantized: 1 to 4, or 16 for float16.",
            autocompletion=one_of(1, 2, 3, 4, 16),
        ),
    ] = 4,
    group_size: Annotated[
        int,
        typer.Option(
            help="Columns that share their levels, in those two: 32, 64, 128 or 256.",
            autocompletion=one_of(32, 64, 128, 256),
        ),
    ] = 64,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub; default: main.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Use only what the hub's cache holds.")] = False,
    gguf_file: GGUFFile = None,
    threads: Threads = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan: tensors, sizes, memory and disk; make nothing.")
    ] = False,
    max_memory: MaxMemory = None,
    resume: Resume = True,
    force: ForceOutput = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Log each tensor's error to stderr.")] = False,
) -> None:
    """Make a model file of levels that others chose, kept as they are.

    The error that elutq info prints of a matrix is what rounding its scales, and of Q4_1 its centers, to half
    precision did, 0 as a rule of the others.
    Matrices of the blocks that are not quantized stay float16. What is read: GPTQ, AWQ, AutoRound and
    compressed-tensors (pack-quantized) of 2, 3 and 4 bits; BitNet; GGUF files in Q4_0, Q4_1, TQ1_0, TQ2_0 and Q1_0; and
    floats of which every weight is -s, 0 or s.

    Example: elutq import checkpoint-gptq -o imported.gguf
    """
    configure_blas(1)  # the stages run products on threads of their own
    from elutq_cli.hub import split_name
    from elutq_cli.hub_sources import open_headers
    from elutq_cli.pipeline.recipe import IMPORT, Recipe
    from elutq_formats.atomic import check_output
    from elutq_formats.gguf_parts import bare_name

    recipe = Recipe(method=IMPORT, output_bits=output_bits, embedding_bits=embedding_bits, group_size=group_size)
    if output is None:
        repository, file = split_name(model, gguf_file)
        place = os.path.abspath(repository)  # noqa: PTH100 (resolve would follow a link)
        output = Path(f"{bare_name(Path(file or place).name)}.elutq.gguf")
    if dry_run:
        check_output(output, force)
        with open_headers(model, revision, offline, gguf_file) as checkpoint:
            print_forecast(checkpoint, output, recipe, [], "cpu", threads, max_memory, json_output, resume, force)
        return
    make_file(
        model,
        output,
        recipe,
        json_output,
        verbose,
        revision=revision,
        offline=offline,
        gguf_file=gguf_file,
        threads=threads,
        max_memory=max_memory,
        force=force,
        resume=resume,
    )
