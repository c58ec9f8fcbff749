"""`elutq serve`: an endpoint for the clients of OpenAI, Anthropic and Ollama."""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import Annotated, Literal

import typer

from elutq_cli.commands.model_argument import HubRepository, ModelArgument, Offline, find_model_file
from elutq_cli.commands.options import CacheType, ChatTemplateFile, TextThreads
from elutq_cli.commands.runtime import prepare_runtime
from elutq_cli.pipeline.compute.blas import configure_blas
from elutq_cli.streams import printable, shown_line
from elutq_cli.text_input import read_template
from elutq_formats.errors import ElutqError

API_KEY_VARIABLE = "ELUTQ_API_KEY"


def serve_command(
    model: ModelArgument = None,
    hf_repo: HubRepository = None,
    offline: Offline = False,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0: any that is free.", min=0, max=65535)] = 8080,
    ctx_size: Annotated[
        int | None,
        typer.Option("-c", "--ctx-size", help="Context of each slot in tokens; default: what fits into memory."),
    ] = None,
    parallel: Annotated[
        int | None,
        typer.Option("-np", "--parallel", help="Texts made at a time; default: what memory and cores allow.", min=1),
    ] = None,
    threads: TextThreads = None,
    cache_type: CacheType = "f16",
    chat_template: ChatTemplateFile = None,
    alias: Annotated[
        str | None, typer.Option(metavar="NAME", help="What clients call the model; default: the file's name for it.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Most tokens of one text; default: what the context has room for.", min=1)
    ] = None,
    reasoning_budget: Annotated[
        int, typer.Option(help="Most tokens of a text's thoughts, after which it answers; -1: no limit.", min=-1)
    ] = -1,
    max_seconds: Annotated[
        float | None, typer.Option(help="Most seconds of one text; default: as long as it takes.")
    ] = None,
    pooling: Annotated[
        Literal["mean", "last"], typer.Option(help="How an embedding is made of the hidden states of a text's tokens.")
    ] = "mean",
    max_queue: Annotated[int, typer.Option(help="Requests that may wait; more get status 429.", min=1)] = 512,
    shutdown_timeout: Annotated[
        int, typer.Option(help="Seconds that texts have to come to their end after SIGTERM.", min=0, max=86_400)
    ] = 25,
    api_key: Annotated[
        str | None, typer.Option(envvar=API_KEY_VARIABLE, help="What clients must present as a bearer token.")
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Name by which clients may call this server, beside localhost and its address; may be given again. "
            "*: any name, the default unless --host is an address of this machine's own.",
        ),
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            help="Web pages that may use this server, as https://chat.example.com; may be given again. *: all pages.",
        ),
    ] = None,
    ui: Annotated[bool, typer.Option("--ui/--no-ui", help="Whether there is a page to chat on, at /.")] = True,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Log every request to stderr.")] = False,
) -> None:
    """Serve a model to the clients of OpenAI, Anthropic and Ollama.

    The routes are those of OpenAI (/v1/chat/completions, /v1/completions, /v1/responses, /v1/embeddings), Anthropic
    (/v1/messages) and Ollama (/api/chat, /api/generate, /api/embed); at / is a page to chat on in a browser. Several
    texts are made at a time, each in a slot with a context of its own. Unless told otherwise the server can be reached
    from this machine only.

    Example: elutq serve model.gguf --port 8080
    """
    configure_blas(1)
    if api_key is None:  # typer takes an empty variable for none
        api_key = os.environ.get(API_KEY_VARIABLE)
    if max_seconds is not None and not max_seconds > 0:
        raise ElutqError(f"--max-seconds is {max_seconds:g}: it must be above 0")
    if alias is not None and not alias.strip():
        raise ElutqError("--alias is empty: give the model a name, or leave it out")
    try:
        from elutq_cli.server.access import checked_hosts, checked_key, checked_origins
        from elutq_cli.server.endpoint import make_app
        from elutq_cli.server.engine import Engine
        from elutq_cli.server.listener import is_local, listen, run, url
    except ImportError as error:
        raise ElutqError(f"elutq serve needs {error.name}: pip install 'elutq[serve]'") from error
    from elutq_cli.api import load
    from elutq_cli.generation.statistics import describe_context, describe_threads
    from elutq_cli.generation.thinking import check_budget

    api_key = checked_key(api_key)
    names = checked_hosts(name for name in allowed_host or () if name != "*")
    origins = checked_origins(cors_origin or ())
    source = read_template(chat_template)
    path = find_model_file(model, hf_repo, offline)
    prepare_runtime()
    with (
        listen(host, port) as listener,
        load(path, threads=threads, cache_type=cache_type, chat_template=source, parallel=parallel) as language_model,
    ):
        language_model.start(ctx_size)
        name = printable(alias or language_model.file.name)
        template = language_model.chat_template  # a broken one is told now, not to the first client
        check_budget(reasoning_budget, template)
        n_slots = len(language_model.scheduler.contexts)
        context = describe_context(language_model.ctx_size, language_model.kv_bytes, n_slots)
        engine_threads = language_model.scheduler.engine.threads, language_model.scheduler.engine.decode_threads
        lines = [f"{shown_line(name)}: {url(listener)}, {context}, {describe_threads(*engine_threads)}"]
        if ui:
            lines.append(f"chat in a browser: {url(listener).removesuffix('v1')}")
        if template is None:
            lines.append("no chat template in the file: texts are continued, /v1/chat/completions is refused")
        if not is_local(listener) and api_key is None:
            lines.append("anyone who can reach this address can use the model: see --api-key")
        anything = "*" in (allowed_host or ()) or not (names or is_local(listener))
        with Engine(language_model, max_queue, max_seconds) as engine:
            app = make_app(
                engine,
                name,
                api_key,
                None if anything else [*names, host.lower()],
                max_tokens,
                origins=origins,
                ui=ui,
                pooling=pooling,
                reasoning_budget=reasoning_budget,
            )
            announce = partial(print, *lines, sep="\n", file=sys.stderr)
            run(app, engine, listener, verbose, announce, shutdown_timeout)
