"""`elutq eval`: perplexity of a text, and agreement with the checkpoint a model was made from."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from elutq_cli.commands.options import CacheType, Threads
from elutq_cli.commands.runtime import prepare_runtime
from elutq_cli.pipeline.blas import configure_blas
from elutq_cli.streams import printable
from elutq_cli.text_input import read_text
from elutq_formats.errors import ElutqError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from elutq_cli.evaluation import AnyLogitsModel, Evaluation
    from elutq_cli.windows import Rule, Windows
    from elutq_formats.config import ModelConfig
    from elutq_formats.tokenizer import Tokenizer
    from elutq_native import Session


@dataclass(frozen=True)
class EvaluatedModel:
    """A model opened for evaluation.

    Attributes:
        name: the path the user gave.
        kind: what computes it.
        config: its hyper-parameters.
        tokenizer: its tokenizer.
        logits_model: gives its logits.
        size_bytes: of its weight files.
        bits_per_weight: over all of them.
        block_bits_per_weight: over the matrices of the blocks; None for a checkpoint.
    """

    name: str
    kind: str
    config: ModelConfig
    tokenizer: Tokenizer
    logits_model: AnyLogitsModel
    size_bytes: int
    bits_per_weight: float
    block_bits_per_weight: float | None = None

    def describe(self) -> dict[str, Any]:
        """Return what ``--json`` says about the model beside its figures."""
        return {
            "model": printable(self.name),
            "size_bytes": self.size_bytes,
            "bits_per_weight": self.bits_per_weight,
            "block_bits_per_weight": self.block_bits_per_weight,
        }


class NativeLogits:
    """A session of the C runtime, started afresh for every sequence."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def logits(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the logits (n, vocab_size) after each of tokens: (n,)."""
        self.session.rewind(0)
        return self.session.eval(tokens.astype("int32"), all_logits=True)


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
        str, typer.Option(help="Which tokens are scored: papers (all but each window's first) or llama.cpp.")
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
    from elutq_cli.generation.context import checked_cache_type
    from elutq_cli.windows import check_sizes

    checked_cache_type(cache_type)
    check_sizes(ctx_size, chunks, stride, checked_rule(rule))
    text = read_text(file)
    with ExitStack() as stack:
        opened = [stack.enter_context(open_model(path, ctx_size, threads, cache_type)) for path in models]
        other = None if reference is None else stack.enter_context(open_model(reference, ctx_size, threads, cache_type))
        windows = tokenize_windows(opened, other, text, ctx_size, chunks, stride, checked_rule(rule))
        results = measure(opened, other, windows)
    rows = [*opened, *([] if other is None else [other])]
    if json_output:
        names: dict[str, Any] = {"file": printable(file), "rule": rule, "stride": stride}
        names |= {} if reference is None else {"reference": printable(reference)}
        entries = [row.describe() | result.to_dict() for row, result in zip(rows, results, strict=True)]
        print(json.dumps(names | (entries[0] if len(models) == 1 else {"models": entries})))
    elif len(models) == 1:
        print_result(results[0], windows, opened[0], other)
    else:
        print_table(results, windows, rows)


def checked_rule(rule: str) -> Rule:
    """Return the rule of that name.

    Raises:
        ElutqError: there is none.
    """
    from elutq_cli.windows import RULES

    for known in RULES:
        if rule == known:
            return known
    raise ElutqError(f"--rule is {rule}: choose {' or '.join(RULES)}")


@contextmanager
def open_model(path: Path, ctx_size: int, threads: int | None, cache_type: str = "f16") -> Iterator[EvaluatedModel]:
    """Open a checkpoint, a folder or org/name on the hub, for the reference, or a model file for the C runtime.

    Raises:
        ElutqError: there is no such file, it cannot be used, or its context is shorter than a window.
    """
    from elutq_cli.hub import find_checkpoint

    name, path = str(path), find_checkpoint(path)
    if path.is_dir():
        from elutq_cli.reference import Transformer
        from elutq_formats.checkpoint import Checkpoint

        with Checkpoint.open(path) as checkpoint:
            check_context(path, checkpoint.config, ctx_size)
            for note in checkpoint.notes:
                print(f"{name}: {note}", file=sys.stderr)
            yield EvaluatedModel(
                name,
                "checkpoint, float32 reference",
                checkpoint.config,
                checkpoint.tokenizer(),
                Transformer(checkpoint),
                size_bytes := sum(file.stat().st_size for file in checkpoint.weight_files()),
                8 * size_bytes / sum(prod(checkpoint.shape(name)) for name in checkpoint.names),
            )
        return
    if not path.exists():
        raise ElutqError(f"{path} does not exist: give a model file or a checkpoint folder")
    from elutq_formats.model_file import ModelFile
    from elutq_native import Model

    model_file = ModelFile.open(path)
    check_context(path, model_file.config, ctx_size)
    prepare_runtime()
    with Model(path) as model, model.session(ctx_size, threads, cache_type) as session:
        yield EvaluatedModel(
            name,
            f"C runtime, {model.info.isa} kernels",
            model_file.config,
            model_file.tokenizer(),
            NativeLogits(session),
            model_file.size_bytes,
            model_file.bits_per_weight(),
            model_file.block_bits_per_weight(),
        )


def check_context(path: Path, config: ModelConfig, ctx_size: int) -> None:
    """Refuse windows longer than the model was made for.

    Raises:
        ElutqError: they are.
    """
    if ctx_size > config.max_position_embeddings:
        raise ElutqError(
            f"context size {ctx_size} is larger than the context of {path}, {config.max_position_embeddings} tokens: "
            "use a smaller -c"
        )


def tokenize_windows(
    models: list[EvaluatedModel],
    reference: EvaluatedModel | None,
    text: str,
    ctx_size: int,
    chunks: int | None,
    stride: int | None,
    rule: Rule,
) -> Windows:
    """Cut the text into windows of tokens.

    Raises:
        ElutqError: the text is too short, or the models do not share a vocabulary.
    """
    from elutq_cli.windows import split_windows

    first = models[0]
    tokenizer = first.tokenizer
    tokens = tokenizer.encode(text)
    for other in [*models[1:], *([] if reference is None else [reference])]:
        same_size = other.config.vocab_size == first.config.vocab_size
        if not same_size or other.tokenizer.encode(text) != tokens:
            raise ElutqError(
                f"{first.name} and {other.name} have different vocabularies: "
                "only models made from the same checkpoint, and that checkpoint, can be compared"
            )
    bos = None
    if rule == "llama.cpp" and tokenizer.prefix:
        bos = tokenizer.prefix[0]
        tokens = [bos, *tokens]
    return split_windows(tokens, ctx_size, chunks, stride, rule, bos)


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


def print_result(result: Evaluation, windows: Windows, model: EvaluatedModel, reference: EvaluatedModel | None) -> None:
    """Print one model's result for a reader."""
    print(f"model       {model.name} ({model.kind})")
    blocks = "" if model.block_bits_per_weight is None else f" ({model.block_bits_per_weight:.3f} in the blocks)"
    print(f"size        {model.size_bytes / 1e6:.2f} MB, {model.bits_per_weight:.3f} bits per weight{blocks}")
    print(f"perplexity  {result.ppl:.4f} +- {result.ppl_stderr:.4f}  (nll {result.nll:.5f} nats per token)")
    print(f"scored      {result.n_tokens} tokens in {result.windows} windows of {result.ctx}: {windows.description}")
    if reference is not None and result.kl is not None and result.top1 is not None:
        agreement = f"KL divergence {result.kl:.5f} nats, top-1 agreement {100 * result.top1:.2f} %"
        print(f"reference   {reference.name}: {agreement}")


def print_table(results: list[Evaluation], windows: Windows, rows: list[EvaluatedModel]) -> None:
    """Print several models' results for a reader."""
    n_scored = results[0].n_tokens
    print(f"{n_scored} tokens in {len(windows)} windows of {windows.ctx}: {windows.description}\n")
    width = max(len(row.name) for row in rows)
    compared = results[0].kl is not None
    heads = f"{'model':{width}} {'bits/weight':>11} {'MB':>10} {'perplexity':>20}"
    print(heads + (f" {'KL, nats':>9} {'top-1, %':>9}" if compared else ""))
    for row, result in zip(rows, results, strict=True):
        figures = f"{result.ppl:.4f} +- {result.ppl_stderr:.4f}"
        line = f"{row.name:{width}} {row.bits_per_weight:>11.3f} {row.size_bytes / 1e6:>10.2f} {figures:>20}"
        if result.kl is not None and result.top1 is not None:
            line += f" {result.kl:>9.5f} {100 * result.top1:>9.2f}"
        print(line)
