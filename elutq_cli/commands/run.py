"""`elutq run`: generate text from a model file."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from elutq_formats.errors import ElutqError

if TYPE_CHECKING:
    from elutq_cli.generation import Generation
    from elutq_native import Session


def run_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Model file of elutq.")],
    prompt: Annotated[str | None, typer.Option("-p", "--prompt", help="Text to continue; - reads stdin.")] = None,
    file: Annotated[Path | None, typer.Option("-f", "--file", help="Read the prompt from a UTF-8 file.")] = None,
    n_predict: Annotated[
        int, typer.Option("-n", "--n-predict", help="Tokens to generate; -1: until the context is full.")
    ] = 128,
    ctx_size: Annotated[
        int | None, typer.Option("-c", "--ctx-size", help="Context in tokens; default: what the prompt and -n need.")
    ] = None,
    threads: Annotated[int | None, typer.Option("-t", "--threads", help="Threads; default: all cores.", min=1)] = None,
    seed: Annotated[int, typer.Option("-s", "--seed", help="Seed of the sampler.")] = 0,
    temp: Annotated[float, typer.Option(help="Temperature; 0 takes the likeliest token.")] = 0.8,
    top_k: Annotated[int, typer.Option(help="Keep the k likeliest tokens; 0: all.")] = 40,
    top_p: Annotated[float, typer.Option(help="Keep the likeliest tokens up to this probability; 1: all.")] = 0.95,
    min_p: Annotated[float, typer.Option(help="Drop tokens below this share of the likeliest's probability.")] = 0.05,
    repeat_penalty: Annotated[float, typer.Option(help="Penalty of repeated tokens; 1: off.")] = 1.0,
    repeat_last_n: Annotated[int, typer.Option(help="Tokens the penalties look back; -1: all.")] = 64,
    presence_penalty: Annotated[float, typer.Option(help="Taken off the logit of tokens that occur; 0: off.")] = 0.0,
    frequency_penalty: Annotated[float, typer.Option(help="The same, for each occurrence; 0: off.")] = 0.0,
    stop: Annotated[list[str] | None, typer.Option(help="String that ends the text; may be given again.")] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on past the end of text.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the text.")] = False,
) -> None:
    """Continue a prompt. Text goes to stdout as it is generated, statistics to stderr.

    Example: elutq run model.gguf -p "It was a dark night, and" -n 64 --temp 0
    """
    text = read_prompt(prompt, file)
    if n_predict < -1:
        raise ElutqError(f"-n is {n_predict}: give a number of tokens, or -1 to go on until the context is full")
    start = time.perf_counter()
    from elutq_cli.generation import Generation, Sampler, SamplingOptions, generate
    from elutq_formats.model_file import ModelFile
    from elutq_formats.tokenizer import Tokenizer
    from elutq_native import Model

    options = SamplingOptions(
        repeat_penalty=repeat_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        repeat_last_n=repeat_last_n,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        temp=temp,
        seed=seed,
    )
    model_file = ModelFile.open(model)
    tokenizer = Tokenizer.from_json(model_file.tokenizer_json, model_file.config)
    tokens = tokenizer.encode(text, add_special_tokens=True)
    context = choose_context(ctx_size, len(tokens), n_predict, model_file.config.max_position_embeddings)
    with Model(model) as native, native.session(context, threads) as session:
        load_seconds = time.perf_counter() - start
        generation = Generation()
        pieces = []
        for token in generate(
            session, tokenizer, tokens, Sampler(options), n_predict, generation, stop or (), ignore_eos
        ):
            pieces.append(token.text)
            if not json_output:
                print(token.text, end="", flush=True)
        if not json_output:
            print()
        statistics = summarize(generation, session, load_seconds)
    if json_output:
        print(json.dumps({"text": "".join(pieces), "tokens": generation.tokens} | statistics))
    else:
        print_statistics(statistics)


def read_prompt(prompt: str | None, file: Path | None) -> str:
    """Returns the prompt's text.

    Raises:
        ElutqError: There is none, it is empty, or it cannot be read.
    """
    if (prompt is None) == (file is None):
        raise ElutqError("give a prompt, either with -p TEXT (- for stdin) or with -f FILE")
    try:
        text = sys.stdin.read() if prompt == "-" else file.read_text("utf-8") if file is not None else prompt
    except OSError as error:
        raise ElutqError(f"cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ElutqError(f"the prompt is not UTF-8 text (byte {error.start}): convert it first") from error
    if not text:
        raise ElutqError("the prompt is empty: give some text to continue")
    return text


def choose_context(ctx_size: int | None, n_prompt: int, n_predict: int, maximum: int) -> int:
    """Returns the context size: as asked for, else what the prompt and the text to come need.

    Raises:
        ElutqError: The prompt is empty or does not fit, or the context is larger than the model's.
    """
    if n_prompt == 0:
        raise ElutqError("the prompt has no tokens: give some text to continue")
    if ctx_size is None:
        ctx_size = maximum if n_predict < 0 else min(maximum, n_prompt + n_predict)
    if not 1 <= ctx_size <= maximum:
        raise ElutqError(f"a context of {ctx_size} tokens is not between 1 and the model's {maximum}")
    if n_prompt > ctx_size:
        raise ElutqError(
            f"the prompt has {n_prompt} tokens, the context holds {ctx_size}: shorten the prompt"
            + (f" or raise -c (the model allows {maximum})" if ctx_size < maximum else "")
        )
    return ctx_size


def summarize(generation: Generation, session: Session, load_seconds: float) -> dict[str, int | float | str]:
    """Returns what ``--json`` reports beside the text; times in seconds, sizes in bytes."""
    info = session.model.info
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "finish_reason": generation.finish_reason,
        "n_prompt": generation.prompt_tokens,
        "n_gen": len(generation.tokens),
        "load_seconds": load_seconds,
        "prompt_seconds": generation.prompt_seconds,
        "prompt_tokens_per_second": generation.prompt_tokens_per_second,
        "generation_seconds": generation.seconds,
        "generation_tokens_per_second": generation.tokens_per_second,
        "peak_rss": peak if sys.platform == "darwin" else 1024 * peak,
        "ctx_size": session.context_size,
        "kv_bytes": session.context_size * info.kv_bytes_per_token,
        "n_threads": session.threads,
        "isa": info.isa,
    }


def print_statistics(statistics: dict[str, int | float | str]) -> None:
    """Prints the statistics for a reader, on stderr."""
    print(
        "\nload {load_seconds:.2f} s | prompt {n_prompt} tokens, {prompt_tokens_per_second:.1f}/s | "
        "generated {n_gen} tokens, {generation_tokens_per_second:.1f}/s | ".format(**statistics)
        + f"context {statistics['ctx_size']} tokens, KV cache {float(statistics['kv_bytes']) / 1e6:.1f} MB | "
        + f"peak memory {float(statistics['peak_rss']) / 1e6:.0f} MB | {statistics['isa']}, "
        + f"{statistics['n_threads']} threads",
        file=sys.stderr,
    )
