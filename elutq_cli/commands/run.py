"""`elutq run`: continue a text, answer a question, or chat."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from elutq_cli.commands.model_argument import HubRepository, ModelArgument, Offline, check_given, find_model_file
from elutq_cli.commands.options import CacheType, ChatTemplateFile, TextThreads
from elutq_cli.commands.runtime import prepare_runtime
from elutq_cli.machine.signals import INTERRUPTED
from elutq_cli.pipeline.compute.blas import configure_blas
from elutq_cli.streams import shown_text
from elutq_cli.text_input import decode, decode_file, read_json, read_template, read_text
from elutq_formats.errors import ElutqError

if TYPE_CHECKING:
    from elutq_cli.generation import Conversation, GeneratedToken, LanguageModel, SamplingOptions, TextOptions
    from elutq_cli.generation.constraint import Rule

DEFAULT_N_PREDICT = 128
"""Tokens of a plain text, which has no end of its own."""

OWN = "Default: the model's own, else"

HOW_TO_PROMPT = "give a prompt, either with -p TEXT (- for stdin) or with -f FILE"


def run_command(
    model: ModelArgument = None,
    hf_repo: HubRepository = None,
    offline: Offline = False,
    prompt: Annotated[str | None, typer.Option("-p", "--prompt", help="Text to continue; - reads stdin.")] = None,
    file: Annotated[Path | None, typer.Option("-f", "--file", help="Read the prompt from a UTF-8 file.")] = None,
    system_prompt: Annotated[
        str | None,
        typer.Option("-sys", "--system-prompt", help="The message of the system, before the first."),
    ] = None,
    n_predict: Annotated[
        int | None,
        typer.Option(
            "-n",
            "--n-predict",
            "--max-tokens",
            help="Tokens at most; -1: no limit. Default: 128 for plain text, no limit for a reply.",
        ),
    ] = None,
    ctx_size: Annotated[
        int | None,
        typer.Option("-c", "--ctx-size", help="Context in tokens; default: what is needed, or fits into memory."),
    ] = None,
    threads: TextThreads = None,
    seed: Annotated[
        int,
        typer.Option(
            "-s", "--seed", help="Seed of the draws: the same one, the same text from an empty context; -1: a new one."
        ),
    ] = 0,
    temp: Annotated[
        float | None,
        typer.Option("--temp", "--temperature", help=f"Temperature; 0 takes the likeliest token. {OWN} 0.8."),
    ] = None,
    top_k: Annotated[int | None, typer.Option(help=f"Keep the k likeliest tokens; 0 or -1: all. {OWN} 40.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help=f"Keep the likeliest tokens up to this probability; 1: all. {OWN} 0.95.")
    ] = None,
    min_p: Annotated[
        float | None, typer.Option(help=f"Drop tokens below this share of the likeliest's probability. {OWN} 0.05.")
    ] = None,
    repeat_penalty: Annotated[float | None, typer.Option(help=f"Penalty of repeated tokens; 1: off. {OWN} 1.")] = None,
    repeat_last_n: Annotated[int, typer.Option(help="Tokens the penalties look back; -1: all.")] = 64,
    presence_penalty: Annotated[float, typer.Option(help="Taken off the logit of tokens that occur; 0: off.")] = 0.0,
    frequency_penalty: Annotated[float, typer.Option(help="The same, for each occurrence; 0: off.")] = 0.0,
    stop: Annotated[list[str] | None, typer.Option(help="String that ends the text; may be given again.")] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on past the end of text.")] = False,
    stop_token_id: Annotated[
        list[int] | None, typer.Option(help="Token that ends the text, by its id; may be given again.")
    ] = None,
    min_tokens: Annotated[int, typer.Option(help="Tokens before which the text does not end by itself.", min=0)] = 0,
    logit_bias: Annotated[
        list[str] | None,
        typer.Option(metavar="ID+BIAS", help="Add to a token's logit (ID-BIAS: take off); may be given again."),
    ] = None,
    json_schema: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The text is JSON that this schema describes.")
    ] = None,
    grammar: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The text matches this grammar (GBNF, or Lark's notation).")
    ] = None,
    reasoning_budget: Annotated[
        int, typer.Option(help="Most tokens of a reply's thoughts, after which it answers; -1: no limit.", min=-1)
    ] = -1,
    conversation: Annotated[
        bool | None,
        typer.Option("-cnv/-no-cnv", help="Chat, or one answer. Default: chat on a terminal without -p and -f."),
    ] = None,
    chat_template: ChatTemplateFile = None,
    raw: Annotated[bool, typer.Option("--raw", help="No chat template: the prompt is plain text.")] = False,
    cache_type: CacheType = "f16",
    prompt_cache: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keep the prompt's keys and values here; later runs begin with them."),
    ] = None,
    logprobs: Annotated[
        int | None, typer.Option(help="Report each token's log-probability, and those of the N likeliest.", min=0)
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the text.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Show the prompt as the model gets it.")] = False,
) -> None:
    """Continue a text, answer a question, or chat.

    With a chat template in the file the prompt is a message; without one, or with --raw, it is a text to continue.
    The text goes to stdout as it is made, statistics go to stderr.

    Example: elutq run model.gguf -p "It was a dark night, and" -n 64 --temp 0
    """
    configure_blas(1)
    begin = time.perf_counter()
    from elutq_cli.api import load
    from elutq_cli.generation import Conversation, SamplingOptions, TextOptions
    from elutq_cli.generation.terminal import prepare_stream
    from elutq_cli.generation.thinking import Thinking, check_budget

    check_given(model, hf_repo)  # before a prompt is waited for
    if raw and (chat_template is not None or system_prompt is not None):
        raise ElutqError("--raw means no chat template: leave out --chat-template and -sys")
    choose_sampling = partial(
        SamplingOptions.of,
        repeat_penalty=repeat_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        repeat_last_n=repeat_last_n,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        temp=temp,
        seed=seed,
        logit_bias=parse_logit_bias(logit_bias or []),
    )
    choose_sampling({})  # what is wrong is told before a prompt is waited for
    options = TextOptions(
        n_predict=-1 if n_predict is None else n_predict,
        stop=tuple(stop or ()),
        ignore_eos=ignore_eos,
        logprobs=logprobs,
        stop_token_ids=tuple(stop_token_id or ()),
        min_tokens=min_tokens,
    )
    if json_schema is not None and grammar is not None:
        raise ElutqError("a text matches a JSON schema or a grammar: give --json-schema or --grammar")
    schema = None if json_schema is None else read_json(json_schema)
    grammar_text = None if grammar is None else read_text(grammar)
    prepare_stream(sys.stdout)
    obstacle = why_no_chat(json_output, logprobs)
    if conversation and obstacle is not None:
        raise ElutqError(f"-cnv is a chat at a terminal, but {obstacle}: leave out -cnv for one answer")
    given = prompt is not None or file is not None
    chatting = obstacle is None and (not given if conversation is None else conversation)
    text = read_prompt(prompt, file) if given or not chatting else None
    prepare_runtime()
    path = find_model_file(model, hf_repo, offline)
    with load(
        path, threads=threads, cache_type=cache_type, chat_template=read_template(chat_template)
    ) as language_model:
        sampling = choose_sampling(language_model.file.sampling)
        template = None if raw else language_model.chat_template
        if template is None and not raw and (chatting or system_prompt is not None):
            raise ElutqError(f"{path} has no chat template: give one with --chat-template, or use --raw for plain text")
        check_budget(reasoning_budget, template)
        form: Rule | None = language_model.compile_grammar(schema, grammar_text)
        if chatting:
            dialogue = Conversation(language_model, template, system_prompt, reasoning_budget)
            chat(dialogue, text, ctx_size, prompt_cache, sampling, options, form, verbose)
            return
        if text is None:
            raise ElutqError(HOW_TO_PROMPT)
        messages = [("system", system_prompt), ("user", text)]
        if template is not None:
            options = replace(options, reply=True)
            text = template.render([{"role": role, "content": part} for role, part in messages if part is not None])
            tokenizer, vocab_size = language_model.tokenizer, language_model.native.vocab_size
            thinking = Thinking.for_reply(template, text, reasoning_budget, form, tokenizer, vocab_size)
            if thinking is not None:
                form, options = thinking, replace(options, shown_token_ids=thinking.marks.special(tokenizer))
        if n_predict is None and template is None and form is None:
            options = replace(options, n_predict=DEFAULT_N_PREDICT)
        tokens = language_model.encode_text(text, add_special_tokens=template is None)
        if verbose:
            print(f"{shown_text(text)}\n{tokens}\n", file=sys.stderr)
        one_shot(language_model, tokens, ctx_size, prompt_cache, sampling, options, form, json_output, begin)


def why_no_chat(json_output: bool, logprobs: int | None) -> str | None:
    """Return what there is that a chat cannot be had with, or None."""
    obstacles = {
        "--json prints one object": json_output,
        "--logprobs reports on one text": logprobs is not None,
        "stdin is not one": not sys.stdin.isatty(),
        "stdout is not one": not sys.stdout.isatty(),
    }
    return next((obstacle for obstacle, is_there in obstacles.items() if is_there), None)


def chat(
    conversation: Conversation,
    first: str | None,
    ctx_size: int | None,
    prompt_cache: Path | None,
    sampling: SamplingOptions,
    options: TextOptions,
    form: Rule | None,
    verbose: bool,
) -> None:
    """Chat at a terminal."""
    from elutq_cli.generation import Sampler
    from elutq_cli.generation.prompt_cache import PromptCache
    from elutq_cli.generation.terminal import Chat

    model = conversation.model
    model.start(ctx_size)
    cache = None if prompt_cache is None else PromptCache(prompt_cache, model)
    Chat(conversation, Sampler(sampling), options, cache, form, shows_prompts=verbose).run(first)


def one_shot(
    model: LanguageModel,
    tokens: list[int],
    ctx_size: int | None,
    prompt_cache: Path | None,
    sampling: SamplingOptions,
    options: TextOptions,
    form: Rule | None,
    json_output: bool,
    begin: float,
) -> None:
    """Make one text, and report its statistics: on stderr, or all in one JSON object on stdout.

    Raises:
        typer.Exit: the text was interrupted.
    """
    from elutq_cli.generation import Continuation, Sampler
    from elutq_cli.generation.context_size import choose_context
    from elutq_cli.generation.prompt_cache import PromptCache
    from elutq_cli.generation.statistics import describe_statistics, summarize
    from elutq_cli.generation.terminal import stream_text

    model.start(choose_context(ctx_size, len(tokens), options.n_predict, model.native.context_length))
    cache = None if prompt_cache is None else PromptCache(prompt_cache, model)
    load_seconds = time.perf_counter() - begin
    generation = Continuation(model, tokens, Sampler(sampling), options, form)
    made = stream_text(generation, quiet=json_output, cache=cache)
    if cache is not None:
        cache.keep(generation)
    statistics = summarize(generation, model, load_seconds)
    if json_output:
        result = {"text": generation.text, "tokens": generation.tokens} | statistics
        print(
            json.dumps(result | ({} if options.logprobs is None else {"logprobs": [asdict(token) for token in made]}))
        )
    else:
        print_logprobs(made)
        print(f"\n{describe_statistics(statistics)}", file=sys.stderr)
    if generation.finish_reason == "cancelled":
        raise typer.Exit(INTERRUPTED)


def print_logprobs(tokens: list[GeneratedToken]) -> None:
    """Print the log-probability of each token, where it was asked for, and its alternatives, to stderr."""
    for token in tokens:
        if token.logprob is not None:
            others = "  ".join(f"{other.text!r} {other.logprob:.3f}" for other in token.alternatives)
            print(f"{token.token_id:>7} {token.logprob:>8.3f}  {token.text!r:16} {others}".rstrip(), file=sys.stderr)


def parse_logit_bias(entries: list[str]) -> tuple[tuple[int, float], ...]:
    """Return token ids and their biases, from such as 15043+1.5 and 15043-100.

    Raises:
        ElutqError: one is something else.
    """
    parsed = []
    for entry in entries:
        found = re.fullmatch(r"(\d+)([+-](?:\d+\.?\d*|\.\d+))", entry, re.ASCII)
        if found is None:
            raise ElutqError(f"--logit-bias {entry} is not a token's id and a bias: write 15043+1.5, or 15043-100")
        parsed.append((int(found[1]), float(found[2])))
    return tuple(parsed)


def read_prompt(prompt: str | None, file: Path | None) -> str:
    """Return the prompt's text: exactly as given, or of a file, or of stdin when it is not a terminal.

    The line end at the end of a file or of what ``echo`` writes is not the user's and would begin a new line.

    Raises:
        ElutqError: there is none, it is empty, or it cannot be read.
    """
    if prompt is not None and file is not None:
        raise ElutqError("give one prompt, with -p TEXT or with -f FILE")
    if file is not None:
        text = read_text(file).removesuffix("\n")
    elif prompt not in (None, "-"):
        text = decode(os.fsencode(prompt or ""), "the prompt")
    elif prompt is None and sys.stdin.isatty():
        raise ElutqError(HOW_TO_PROMPT)
    else:
        text = decode_file(sys.stdin.buffer.read(), "the prompt").removesuffix("\n")
    if not text:
        raise ElutqError("the prompt is empty: give some text to continue")
    return text
