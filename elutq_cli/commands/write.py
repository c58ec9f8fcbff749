"""`elutq write`: has a model write a text to calibrate it on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from elutq_cli.commands.options import Threads
from elutq_cli.commands.runtime import prepare_runtime
from elutq_cli.pipeline.compute.blas import configure_blas
from elutq_cli.streams import shown_line


def write_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Model file of elutq; 4 bits by weights alone will do.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Text file to make.")],
    tokens: Annotated[
        int, typer.Option("-n", "--tokens", help="Tokens to write, in whole texts of 512.", min=1)
    ] = 40960,
    seed: Annotated[int, typer.Option(help="Of what is drawn.", min=0)] = 0,
    threads: Threads = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the output if it exists.")] = False,
) -> None:
    """Have a model write a text to calibrate it on.

    It is of what the model was made for, be it code, chats or other languages, which a text of yours may lack. Quantize
    with both: --calibration text.txt --calibration own.txt.

    Example: elutq write model.gguf -o own.txt
    """
    configure_blas(1)
    from tqdm import tqdm

    from elutq_cli.generation.language_model import LanguageModel
    from elutq_cli.generation.own_text import own_texts
    from elutq_formats.atomic import atomic_output, check_output

    check_output(output, force)
    prepare_runtime()
    with LanguageModel(file) as model, atomic_output(output, force) as temporary:
        texts = own_texts(model, tokens, seed, threads)
        with temporary.open("w", encoding="utf-8", newline="\n") as written:
            for text in tqdm(texts, unit=" texts", file=sys.stderr, disable=not sys.stderr.isatty()):
                written.write(f"{text}\n\n")
    print(f"{shown_line(output)}: {output.stat().st_size / 1e3:.0f} kB")
