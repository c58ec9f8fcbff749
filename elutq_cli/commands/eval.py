"""`elutq eval`: perplexity of a text, and agreement with the checkpoint a model was made from."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from elutq_cli.commands.options import CacheType, Threads, one_of
from elutq_cli.commands.runtime import prepare_runtime
from elutq_cli.pipeline.blas import configure_blas
from elutq_cli.streams import printable, shown_line
from elutq_cli.text_input import read_text

if TYPE_CHECKING:
    from elutq_cli.evaluation import Evaluation, Windows
    from elutq_cli.evaluation.models import EvaluatedModel


def eval_command(
    models: Annotated[
        list[Path],
        typer.Argument(metavar="MODEL", help="Model files of elutq, checkpoint folders, or org/name on the hub."),
    ],
    file: Annotated[Path, typer.Option("-f", "--file", help="UTF-8 text to evaluate on.")],
    ctx_size: Annotated[int, typer.Option("-c", "--ctx-size", help="Tokens in a window.")] = 512,
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
            metavar="CHECKPOINT", help="Also measure KL divergence from, and top-1 agreement with, this checkpoint."
        ),
    ] = None,
    threads: Threads = None,
    cache_type: CacheType = "f16",
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure perplexity, and what quantization changed.

    The latter with --reference: KL divergence and top-1 agreement. Several models make a table. Perplexities compare
    only under the same text, window size and rule; the rule is part of the output.

    Example: elutq eval model.gguf -f text.txt -c 256
    """
    configure_blas(threads)
    from elutq_cli.evaluation.models import open_model, tokenize_windows
    from elutq_cli.evaluation.windows import check_sizes, checked_rule
    from elutq_cli.generation.context import checked_cache_type

    prepare_runtime()
    checked_cache_type(cache_type)
    check_sizes(ctx_size, chunks, stride, checked_rule(rule))
    text = read_text(file)
    with ExitStack() as stack:
        opened = [stack.enter_context(open_model(path, ctx_size, threads, cache_type)) for path in models]
        other = None if reference is None else stack.enter_context(open_model(reference, ctx_size, threads, cache_type))
        rows = [*opened, *([] if other is None else [other])]
        for row in rows:
            for note in row.notes:
                print(shown_line(f"{row.name}: {note}"), file=sys.stderr)
        windows = tokenize_windows(opened, other, text, ctx_size, chunks, stride, checked_rule(rule))
        results = measure(opened, other, windows)
    if json_output:
        names: dict[str, Any] = {"file": printable(file), "rule": rule, "stride": stride}
        names |= {} if reference is None else {"reference": printable(reference)}
        entries = [row.describe() | result.to_dict() for row, result in zip(rows, results, strict=True)]
        own = {} if other is None else {f"reference_{key}": entries[-1][key] for key in ("ppl", "ppl_stderr", "nll")}
        print(json.dumps(names | (entries[0] | own if len(models) == 1 else {"models": entries})))
    elif len(models) == 1:
        print_result(results, windows, opened[0], other)
    else:
        print_table(results, windows, rows)


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


def print_result(
    results: list[Evaluation], windows: Windows, model: EvaluatedModel, reference: EvaluatedModel | None
) -> None:
    """Print one model's result for a reader, and its reference's."""
    result, own = results[0], results[-1]
    print(f"model       {shown_line(model.name)} ({model.kind})")
    blocks = "" if model.block_bits_per_weight is None else f" ({model.block_bits_per_weight:.3f} in the blocks)"
    print(f"size        {model.size_bytes / 1e6:.2f} MB, {model.bits_per_weight:.3f} bits per weight{blocks}")
    print(f"perplexity  {result.ppl:.4f} +- {result.ppl_stderr:.4f}  (nll {result.nll:.5f} nats per token)")
    print(f"scored      {result.n_tokens} tokens in {result.windows} windows of {result.ctx}: {windows.description}")
    if reference is not None and result.kl is not None and result.top1 is not None:
        agreement = f"KL divergence {result.kl:.5f} nats, top-1 agreement {100 * result.top1:.2f} %"
        figures = f"perplexity {own.ppl:.4f} +- {own.ppl_stderr:.4f}, {agreement}"
        print(f"reference   {shown_line(reference.name)}: {figures}")


def print_table(results: list[Evaluation], windows: Windows, rows: list[EvaluatedModel]) -> None:
    """Print several models' results for a reader."""
    n_scored = results[0].n_tokens
    print(f"{n_scored} tokens in {len(windows)} windows of {windows.ctx}: {windows.description}\n")
    names = [shown_line(row.name) for row in rows]
    width = max(map(len, names))
    compared = results[0].kl is not None
    heads = f"{'model':{width}} {'bits/weight':>11} {'MB':>10} {'perplexity':>20}"
    print(heads + (f" {'KL, nats':>9} {'top-1, %':>9}" if compared else ""))
    for name, row, result in zip(names, rows, results, strict=True):
        figures = f"{result.ppl:.4f} +- {result.ppl_stderr:.4f}"
        line = f"{name:{width}} {row.bits_per_weight:>11.3f} {row.size_bytes / 1e6:>10.2f} {figures:>20}"
        if result.kl is not None and result.top1 is not None:
            line += f" {result.kl:>9.5f} {100 * result.top1:>9.2f}"
        print(line)
