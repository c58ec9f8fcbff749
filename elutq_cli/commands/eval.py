"""`elutq eval`: perplexity of a text, agreement with the checkpoint a model was made from, answers to questions."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from elutq_cli.commands.eval_report import print_json, print_text
from elutq_cli.commands.model_argument import Offline
from elutq_cli.commands.options import CacheType, Threads, one_of
from elutq_cli.commands.runtime import prepare_runtime
from elutq_cli.pipeline.compute.blas import configure_blas
from elutq_cli.streams import printable, shown_line
from elutq_cli.text_input import read_text
from elutq_formats.errors import ElutqError

if TYPE_CHECKING:
    from elutq_cli.evaluation import Evaluation, Windows
    from elutq_cli.evaluation.models import EvaluatedModel
    from elutq_cli.evaluation.tasks import Question, TaskResult


DEFAULT_WINDOW = 512


def eval_command(
    models: Annotated[
        list[Path],
        typer.Argument(
            metavar="MODEL",
            help="Model files of elutq, checkpoint folders, GGUF files of other tools, or org/name[:FILE] on the hub.",
        ),
    ],
    file: Annotated[Path | None, typer.Option("-f", "--file", help="UTF-8 text to evaluate on.")] = None,
    tasks: Annotated[
        list[Path] | None,
        typer.Option(help="JSONL of multiple-choice questions, answered by log-likelihood; repeatable."),
    ] = None,
    ctx_size: Annotated[
        int | None,
        typer.Option("-c", "--ctx-size", help="Tokens in a window: 512; for questions the model's context."),
    ] = None,
    chunks: Annotated[int | None, typer.Option(help="Evaluate only the first so many windows.")] = None,
    stride: Annotated[
        int | None, typer.Option(help="Tokens from one window to the next; default: windows do not overlap.")
    ] = None,
    rule: Annotated[
        str,
        typer.Option(
            help="Which tokens are scored: papers (all but each window's first) or llama.cpp.",
            autocompletion=one_of("papers", "llama.cpp"),
        ),
    ] = "papers",
    reference: Annotated[
        Path | None,
        typer.Option(
            metavar="CHECKPOINT",
            help="Also measure this checkpoint, and on a text KL divergence from it and top-1 agreement with it.",
        ),
    ] = None,
    of_runtime: Annotated[
        bool,
        typer.Option(
            "--of-runtime", help="Also measure KL divergence of the C runtime from the file's own weights in float32."
        ),
    ] = False,
    token_by_token: Annotated[
        bool,
        typer.Option("--token-by-token", help="Have the C runtime compute a text as it generates one: slower."),
    ] = False,
    offline: Offline = False,
    threads: Threads = None,
    cache_type: CacheType = "f16",
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure perplexity, and what quantization changed.

    The latter with --reference: KL divergence and top-1 agreement. Several models make a table. Perplexities compare
    only under the same text, window size and rule; the rule is part of the output. --tasks has questions answered, as
    lm-evaluation-harness does: acc and acc_norm.

    Example: elutq eval model.gguf -f text.txt -c 256
    """
    configure_blas(threads)
    from elutq_cli.evaluation.models import open_dequantized, open_model, tokenize_windows
    from elutq_cli.evaluation.tasks import read_questions
    from elutq_cli.evaluation.windows import check_sizes, checked_rule
    from elutq_cli.generation.context_size import checked_cache_type

    prepare_runtime()
    checked_cache_type(cache_type)
    check_options(file, tasks, chunks, stride, rule, token_by_token)
    check_of_runtime(of_runtime, models, reference, file)
    window = DEFAULT_WINDOW if ctx_size is None else ctx_size
    if file is not None:
        check_sizes(window, chunks, stride, checked_rule(rule))
    elif ctx_size is not None and ctx_size < 1:
        raise ElutqError(f"context size {ctx_size} has no room for a question: use a larger -c")
    text = None if file is None else read_text(file)
    questions = {path: read_questions(path) for path in tasks or []}
    with ExitStack() as stack:
        n_tokens = ctx_size if text is None else window
        paths = [*models, *([] if reference is None else [reference])]
        settings = (n_tokens, threads, cache_type, token_by_token, offline)
        rows = [stack.enter_context(open_model(path, *settings)) for path in paths]
        if of_runtime:
            rows.append(stack.enter_context(open_dequantized(models[0], n_tokens, offline)))
        opened, other = rows[: len(models)], rows[-1] if len(rows) > len(models) else None
        check_runtime_flags(rows, cache_type, token_by_token)
        for row in rows:
            for note in row.notes:
                print(shown_line(f"{row.name}: {note}"), file=sys.stderr)
        windows, results = None, []
        if text is not None:
            windows = tokenize_windows(opened, other, text, window, chunks, stride, checked_rule(rule))
            results = measure(opened, other, windows)
        answers = {path: [answer(row, found, ctx_size) for row in rows] for path, found in questions.items()}
    if json_output:
        given: dict[str, Any] = {} if file is None else {"file": printable(file), "rule": rule, "stride": stride}
        given |= {} if other is None else {"reference": printable(other.name)}
        print_json(given, rows, len(models), results, answers)
    else:
        print_text(rows, len(models), windows, results, answers)


def check_options(
    file: Path | None, tasks: list[Path] | None, chunks: int | None, stride: int | None, rule: str, token_by_token: bool
) -> None:
    """Refuse a call that measures nothing, and what is said about a text that is not given.

    Raises:
        ElutqError: it is one.
    """
    if file is None and not tasks:
        raise ElutqError("there is nothing to measure: give a text (-f) or questions (--tasks)")
    about_text = {
        "--chunks": chunks is not None,
        "--stride": stride is not None,
        "--rule": rule != "papers",
        "--token-by-token": token_by_token,
    }
    given = [flag for flag, is_given in about_text.items() if is_given]
    if file is None and given:
        raise ElutqError(f"{given[0]} is about windows of a text: give one with -f, or leave it out")


def check_of_runtime(of_runtime: bool, models: list[Path], reference: Path | None, file: Path | None) -> None:
    """Refuse --of-runtime where there is not one model, or something else to compare it with, or no text.

    Raises:
        ElutqError: it is so.
    """
    if of_runtime and (len(models) != 1 or reference is not None or file is None):
        raise ElutqError("--of-runtime is about one model file and a text (-f), without --reference")


def check_runtime_flags(rows: list[EvaluatedModel], cache_type: str, token_by_token: bool) -> None:
    """Refuse what only the C runtime does where it computes none of the models.

    Raises:
        ElutqError: it is so.
    """
    flags = {"--cache-type": cache_type != "f16", "--token-by-token": token_by_token}
    given = [flag for flag, is_given in flags.items() if is_given]
    if given and not any(row.is_native for row in rows):
        raise ElutqError(f"{given[0]} is about the C runtime, and a checkpoint is computed in float32: leave it out")


def answer(model: EvaluatedModel, questions: list[Question], ctx_size: int | None) -> TaskResult:
    """Have a model answer questions, with progress where stderr is a terminal."""
    from tqdm import tqdm

    from elutq_cli.evaluation.tasks import answer_questions

    total = sum(len(question.choices) for question in questions)
    form = "{l_bar}{bar}| {n:.0f}/{total_fmt} choices [{elapsed}<{remaining}]"
    with tqdm(total=total, bar_format=form, disable=not sys.stderr.isatty(), file=sys.stderr) as bar:
        room = ctx_size or model.config.max_position_embeddings
        result = answer_questions(model.continuations, model.tokenizer, questions, room, bar.update)
    if result.n_cut:
        cut = (
            f"{result.n_cut} of {result.n_questions} questions are longer than {room} tokens: their beginnings are cut"
        )
        print(shown_line(f"{model.name}: {cut}"), file=sys.stderr)
    return result


def measure(models: list[EvaluatedModel], reference: EvaluatedModel | None, windows: Windows) -> list[Evaluation]:
    """Evaluate, with progress and the time left where stderr is a terminal; the reference's figures come last."""
    from tqdm import tqdm

    from elutq_cli.evaluation import evaluate_all

    total = len(windows) * (len(models) + (reference is not None))
    form = "{l_bar}{bar}| {n:.0f}/{total_fmt} windows [{elapsed}<{remaining}]"
    with tqdm(total=total, bar_format=form, disable=not sys.stderr.isatty(), file=sys.stderr) as bar:
        return evaluate_all(
            [model.logits_model for model in models],
            windows,
            None if reference is None else reference.logits_model,
            advance=lambda n_windows: bar.update(n_windows),
        )
