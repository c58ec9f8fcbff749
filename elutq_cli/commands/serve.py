"""`elutq serve`: an endpoint for OpenAI's clients."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from elutq_cli.commands.options import CacheType, ChatTemplateFile, Threads
from elutq_cli.commands.runtime import prepare_runtime
from elutq_cli.pipeline.blas import configure_blas
from elutq_cli.text_input import read_template
from elutq_formats.errors import ElutqError


def serve_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Model file of elutq.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0: any that is free.", min=0, max=65535)] = 8080,
    ctx_size: Annotated[
        int | None, typer.Option("-c", "--ctx-size", help="Context in tokens; default: what fits into memory.")
    ] = None,
    threads: Threads = None,
    cache_type: CacheType = "f16",
    chat_template: ChatTemplateFile = None,
    max_queue: Annotated[int, typer.Option(help="Requests that may wait; more get status 503.", min=1)] = 512,
    api_key: Annotated[
        str | None, typer.Option(envvar="ELUTQ_API_KEY", help="What clients must present as a bearer token.")
    ] = None,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Log every request to stderr.")] = False,
) -> None:
    """Serve a model to OpenAI clients.

    The routes are /v1/models, /v1/completions and /v1/chat/completions. Requests are answered one after the other; a
    client that leaves frees its place. Unless told otherwise the server can be reached from this machine only.

    Example: elutq serve model.gguf --port 8080
    """
    configure_blas(1)
    try:
        from elutq_cli.server.endpoint import make_app
        from elutq_cli.server.engine import Engine
        from elutq_cli.server.listener import is_loopback, listen, run
    except ImportError as error:
        raise ElutqError(f"elutq serve needs {error.name}: pip install 'elutq[serve]'") from error
    from elutq_cli.api import load
    from elutq_cli.generation.statistics import describe_context

    local = is_loopback(host)
    source = read_template(chat_template)
    prepare_runtime()
    with (
        listen(host, port) as listener,
        load(model, threads=threads, cache_type=cache_type, chat_template=source) as language_model,
    ):
        language_model.start(ctx_size)
        name = language_model.file.name
        template = language_model.chat_template  # a broken one is told now, not to the first client
        context = describe_context(language_model.ctx_size, language_model.kv_bytes)
        address = listener.getsockname()
        shown = f"[{address[0]}]" if ":" in address[0] else address[0]
        lines = [f"{name}: http://{shown}:{address[1]}/v1, {context}"]
        if template is None:
            lines.append("no chat template in the file: texts are continued, /v1/chat/completions is refused")
        if not local and api_key is None:
            lines.append("anyone who can reach this address can use the model: see --api-key")
        with Engine(language_model, max_queue) as engine:
            app = make_app(engine, name, api_key, local)
            run(app, engine, listener, verbose, lambda: print(*lines, sep="\n", file=sys.stderr))
