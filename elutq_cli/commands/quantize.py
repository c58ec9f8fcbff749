"""`elutq quantize`: makes a model file from a checkpoint."""

from __future__ import annotations

import json
import logging
import signal
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from elutq_cli.pipeline.blas import configure_blas

if TYPE_CHECKING:
    from elutq_cli.pipeline.quantize import Summary
    from elutq_cli.pipeline.recipe import Recipe


def quantize_command(
    model: Annotated[
        Path,
        typer.Argument(metavar="MODEL", help="Checkpoint folder with safetensors weights, or org/name on the hub."),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Model file to make.")],
    bits: Annotated[int, typer.Option(help="Bits per weight of the blocks' linears: 1 to 4.")] = 2,
    group_size: Annotated[int, typer.Option(help="Columns that share their levels: 32, 64 or 128.")] = 128,
    output_bits: Annotated[int, typer.Option(help="Bits of the output head: 1 to 4, or 16 for float16.")] = 4,
    embedding_bits: Annotated[int, typer.Option(help="Bits of the embedding: 1 to 4, or 16 for float16.")] = 4,
    target_bpw: Annotated[
        float | None,
        typer.Option(help="Choose bits and group size of each linear to reach so many bits per weight of the blocks."),
    ] = None,
    tensor_type: Annotated[
        list[str] | None,
        typer.Option(metavar="REGEX=BITS[gGROUP]", help="Bits of matrices whose name matches; may be repeated."),
    ] = None,
    calibration: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Text, or .jsonl with a text field, to calibrate on (without: weights alone); may be repeated.",
        ),
    ] = None,
    method: Annotated[
        str, typer.Option(help="What calibrated linears go through: fit, feedback, refine or correct (all).")
    ] = "correct",
    rotate: Annotated[
        bool, typer.Option("--rotate", help="Rotate the residual stream and value heads first; unties the head.")
    ] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub; default: main.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Use only what the hub's cache holds.")] = False,
    num_samples: Annotated[int, typer.Option(help="Calibration sequences.")] = 64,
    sequence_length: Annotated[int, typer.Option(help="Tokens in a calibration sequence.")] = 512,
    seed: Annotated[int, typer.Option(help="Chooses the calibration sequences.")] = 0,
    threads: Annotated[
        int | None, typer.Option("-t", "--threads", help="Threads; default: all cores.", min=1, max=256)
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on after what a stopped run of the same command has done.")
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace the output if it exists.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Log each tensor's error to stderr.")] = False,
) -> None:
    """Quantize a checkpoint to a model file: bits per weight, size and time are printed at the end.

    Example: elutq quantize checkpoint -o model-2bit.gguf --bits 2 --calibration text.txt
    """
    configure_blas(1)  # the stages run products on threads of their own
    from elutq_cli.hub import find_checkpoint
    from elutq_cli.pipeline.recipe import Recipe
    from elutq_formats.atomic import check_output

    recipe = Recipe(
        bits=bits,
        group_size=group_size,
        target_bpw=target_bpw,
        tensor_types=tuple(tensor_type or ()),
        method=method,
        rotate=rotate,
        output_bits=output_bits,
        embedding_bits=embedding_bits,
        num_samples=num_samples,
        sequence_length=sequence_length,
        seed=seed,
    )
    check_output(output, force)
    folder = find_checkpoint(model, revision, offline)
    summary = run(folder, output, recipe, calibration, threads, force, verbose, resume)
    if json_output:
        print(json.dumps({"model": str(model), "output": str(output)} | asdict(summary)))
    else:
        print(
            f"{output}: {summary.bits_per_weight:.3f} bits per weight, {summary.size_bytes / 1e6:.2f} MB, "
            f"{summary.seconds:.1f} s"
        )


def run(
    model: Path,
    output: Path,
    recipe: Recipe,
    calibration: list[Path] | None,
    threads: int | None,
    force: bool,
    verbose: bool,
    resume: bool = True,
) -> Summary:
    """Check everything that can be checked at once, then quantize, with a progress bar where stderr is a terminal.

    Raises:
        ElutqError: the input is wrong, or the disk refuses.
        NativeError: the threads cannot be started.
    """
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    from elutq_cli.pipeline.backend import NativeBackend
    from elutq_cli.pipeline.calibration_text import CalibrationText
    from elutq_cli.pipeline.quantize import quantize, total_weights
    from elutq_formats.checkpoint import Checkpoint
    from elutq_formats.tokenizer import Tokenizer

    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.INFO if verbose else logging.WARNING)
    with ExitStack() as stack:
        stack.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, _exit_on_signal))
        checkpoint = stack.enter_context(Checkpoint.open(model))
        total = total_weights(checkpoint, recipe)
        text = None
        if calibration:
            tokenizer = Tokenizer.from_json(checkpoint.tokenizer_json, checkpoint.config)
            text = CalibrationText.read(calibration, tokenizer, checkpoint.config, recipe)
        backend = stack.enter_context(NativeBackend(threads))
        stack.enter_context(logging_redirect_tqdm())
        bar = stack.enter_context(
            tqdm(total=total, unit=" weights", unit_scale=True, disable=not sys.stderr.isatty(), file=sys.stderr)
        )
        return quantize(
            checkpoint, output, recipe, text, backend, force, lambda n_weights: bar.update(n_weights), resume
        )


def _exit_on_signal(number: int, frame: object) -> None:
    """Leave by an exception, so that temporary files are removed on the way."""
    raise SystemExit(128 + number)
