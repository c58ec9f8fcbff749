"""`elutq quantize`: makes a model file from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from elutq_cli.commands.making import make_file, print_forecast
from elutq_cli.commands.options import ForceOutput, GGUFFile, MaxMemory, Resume, Threads, one_of
from elutq_cli.pipeline.compute.blas import configure_blas
from elutq_formats.errors import ElutqError


def _methods(incomplete: str) -> list[str]:
    from elutq_cli.pipeline.methods import METHODS

    return one_of(*METHODS)(incomplete)


def quantize_command(
    model: Annotated[
        Path,
        typer.Argument(metavar="MODEL", help="Checkpoint folder, GGUF file, or org/name[:FILE] on the hub."),
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Model file to make; not needed with --dry-run.")
    ] = None,
    bits: Annotated[
        int | None,
        typer.Option(
            help="Bits per weight of the blocks' linears: 1 to 4; default: 2.", autocompletion=one_of(1, 2, 3, 4)
        ),
    ] = None,
    group_size: Annotated[
        int,
        typer.Option(
            help="Columns that share their levels: 32, 64, 128 or 256.", autocompletion=one_of(32, 64, 128, 256)
        ),
    ] = 64,
    scale_bits: Annotated[
        int,
        typer.Option(
            help="Bits of each half scale and center of a group: 8, a byte, or 16, float16.",
            autocompletion=one_of(8, 16),
        ),
    ] = 8,
    output_bits: Annotated[
        int | None,
        typer.Option(
            help="Bits of the output head: 1 to 4, or 16 for float16; default: 4, or where bits are chosen for each "
            "linear what is best for it and them together.",
            autocompletion=one_of(1, 2, 3, 4, 16),
        ),
    ] = None,
    embedding_bits: Annotated[
        int | None,
        typer.Option(
            help="Bits of the embedding: 1 to 4, or 16 for float16; default: 4, or where it is the head, too, what is "
            "chosen for that.",
            autocompletion=one_of(1, 2, 3, 4, 16),
        ),
    ] = None,
    target_bpw: Annotated[
        float | None,
        typer.Option(
            help="Total to choose within, in bits per weight of the blocks; default: that of --bits, and the head's."
        ),
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
        str | None,
        typer.Option(
            help="What linears go through: fit (with a text, columns weighted by their inputs), feedback, refine, "
            "correct (those three, all with the same bits) or allocate (with bits chosen for each at the same total "
            "size); default: allocate with --calibration, fit without.",
            autocompletion=_methods,
        ),
    ] = None,
    tune: Annotated[
        str | None,
        typer.Option(
            metavar="block,e2e",
            help="Then learn by gradients, with torch: block (levels and bits of each block by its output), e2e (all "
            "levels by the predictions), or both.",
            autocompletion=one_of("block", "e2e", "block,e2e"),
        ),
    ] = None,
    tune_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens of the text that --tune e2e learns from; default: 262144, or --tune-minutes alone."),
    ] = None,
    tune_minutes: Annotated[
        float | None,
        typer.Option(help="End --tune e2e after so many minutes: the file then depends on the machine's speed."),
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            help="Where to compute and to tune: cpu, or with torch cuda or cuda:N.",
            autocompletion=one_of("cpu", "cuda"),
        ),
    ] = "cpu",
    rotate: Annotated[
        bool, typer.Option("--rotate", help="Rotate the residual stream and value heads first; unties the head.")
    ] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub; default: main.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Use only what the hub's cache holds.")] = False,
    gguf_file: GGUFFile = None,
    num_samples: Annotated[int | None, typer.Option(help="Calibration sequences; default: 64.")] = None,
    sequence_length: Annotated[int | None, typer.Option(help="Tokens in a calibration sequence; default: 512.")] = None,
    seed: Annotated[int, typer.Option(help="Chooses the calibration sequences.")] = 0,
    threads: Threads = None,
    executor: Annotated[
        str,
        typer.Option(
            metavar="threads|ray[:HOST:PORT]",
            help="Who computes: threads of this process, or a Ray cluster, --threads of it for each unit of work.",
            autocompletion=one_of("threads", "ray"),
        ),
    ] = "threads",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan: tensors, sizes, memory, disk and time; make nothing.")
    ] = False,
    max_memory: MaxMemory = None,
    resume: Resume = True,
    force: ForceOutput = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Log each tensor's error to stderr.")] = False,
) -> None:
    """Quantize a checkpoint to a model file.

    Bits per weight, size and time are printed at the end; after calibration also how far the model's predictions are
    from the checkpoint's, on that text and on text of the same kind that it has not seen.

    Example: elutq quantize checkpoint -o model-2bit.gguf --calibration text.txt
    """
    configure_blas(1)  # the stages run products on threads of their own
    from elutq_cli.hub_sources import open_headers
    from elutq_cli.pipeline.recipe import Recipe
    from elutq_formats.atomic import check_output

    asked = {"num_samples": num_samples, "sequence_length": sequence_length}
    given = {name: value for name, value in asked.items() if value is not None}
    if given and not calibration:
        raise ElutqError(f"--{next(iter(given)).replace('_', '-')} is of calibration sequences: add --calibration")
    if bits is not None and target_bpw is not None:
        raise ElutqError("--bits and --target-bpw are two totals for the same linears: leave one out")
    recipe = Recipe(
        bits=Recipe.bits if bits is None else bits,
        group_size=group_size,
        scale_bits=scale_bits,
        target_bpw=target_bpw,
        tensor_types=tuple(tensor_type or ()),
        method=method,
        tune=(tune,) if tune else (),
        tune_tokens=tune_tokens,
        tune_minutes=tune_minutes,
        rotate=rotate,
        output_bits=output_bits,
        embedding_bits=embedding_bits,
        seed=seed,
        **given,
    ).resolved(bool(calibration))
    if dry_run:
        if output is not None:
            check_output(output, force)
        with open_headers(model, revision, offline, gguf_file) as checkpoint:
            text = calibration or []
            print_forecast(
                checkpoint, output, recipe, text, device, threads, max_memory, json_output, resume, force, executor
            )
        return
    if output is None:
        raise ElutqError("say where the model file goes: -o FILE (or --dry-run to see the plan alone)")
    make_file(
        model,
        output,
        recipe,
        json_output,
        verbose,
        revision=revision,
        offline=offline,
        gguf_file=gguf_file,
        calibration=calibration,
        device=device,
        threads=threads,
        executor=executor,
        max_memory=max_memory,
        force=force,
        resume=resume,
    )
