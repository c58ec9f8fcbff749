"""Options that several commands take, each said once."""

from typing import Annotated

import typer

Threads = Annotated[int | None, typer.Option("-t", "--threads", help="Threads; default: all cores.", min=1)]

CacheType = Annotated[str, typer.Option(metavar="TYPE", help="Keys and values as f16, or as q8 in half the memory.")]

ChatTemplateFile = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Jinja chat template (a file, or its source) instead of the model's own."),
]
