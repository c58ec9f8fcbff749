"""Options that several commands take, each said once."""

from collections.abc import Callable
from typing import Annotated

import typer


def one_of(*values: object) -> Callable[[str], list[str]]:
    """Return what completes an option's value in the shell: those of its possible values that begin as typed."""

    def complete(incomplete: str) -> list[str]:
        return [str(value) for value in values if str(value).startswith(incomplete)]

    return complete


Threads = Annotated[int | None, typer.Option("-t", "--threads", help="Threads; default: all cores.", min=1)]

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
