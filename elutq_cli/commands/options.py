"""Options that several commands take, each said once."""

from collections.abc import Callable
from typing import Annotated

import typer


def one_of(*values: object) -> Callable[[str], list[str]]:
    """Return what completes an option's value in the shell: those of its possible values that begin as typed."""

    def complete(incomplete: str) -> list[str]:
        return [str(value) for value in values if str(value).startswith(incomplete)]

    return complete


MOST_THREADS = 256
"""ELUTQ_MAX_THREADS of native/src/threads.h."""

Threads = Annotated[
    int | None, typer.Option("-t", "--threads", help="Threads; default: all cores.", min=1, max=MOST_THREADS)
]

TextThreads = Annotated[
    int | None,
    typer.Option(
        "-t",
        "--threads",
        help="Threads; default: all cores, of more than eight the fastest number for decode.",
        min=1,
        max=MOST_THREADS,
    ),
]

CacheType = Annotated[
    str,
    typer.Option(
        metavar="TYPE", help="Keys and values as f16, or as q8 in half the memory.", autocompletion=one_of("f16", "q8")
    ),
]

ChatTemplateFile = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Jinja chat template (a file, or its source) instead of the model's own."),
]

GGUFFile = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="GGUF file to take of org/name, or of a folder; of a split one the first part."),
]

MaxMemory = Annotated[
    float | None, typer.Option(metavar="GB", help="Refuse to start when the run may take more memory.")
]

Resume = Annotated[
    bool, typer.Option("--resume/--no-resume", help="Go on after what a stopped run of the same command has done.")
]

ForceOutput = Annotated[
    bool,
    typer.Option("--force", help="Replace the output if it exists, and what a stopped run of another kind left."),
]
