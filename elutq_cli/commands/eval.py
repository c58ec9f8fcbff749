"""`elutq eval`: perplexity of a text, and agreement with the checkpoint a model was made from."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from elutq_cli.pipeline.blas import configure_blas
from elutq_formats.errors import ElutqError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from elutq_cli.evaluation import Evaluation, LogitsModel
    from elutq_formats.config import ModelConfig
    from elutq_native import Session


@dataclass(frozen=True)
class EvaluatedModel:
    """A model opened for evaluation.

    Attributes:
        name: the path the user gave.
        kind: what computes it.
        config: its hyper-parameters.
        tokenizer_json: its tokenizer.
        logits_model: gives its logits.
    """

    name: str
    kind: str
    config: ModelConfig
    tokenizer_json: str
    logits_model: LogitsModel


class NativeLogits:
    """A session of the C runtime, started afresh for every sequence."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def logits(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the logits (n, vocab_size) after each of tokens: (n,)."""
        self.session.rewind(0)
        return self.session.eval(tokens.astype("int32"), all_logits=True)


def eval_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Model file of elutq, or checkpoint folder.")],
    file: Annotated[Path, typer.Option("-f", "--file", help="UTF-8 text to evaluate on.")],
    ctx_size: Annotated[int, typer.Option("-c", "--ctx-size", help="Tokens in a window.")] = 512,
    chunks: Annotated[int | None, typer.Option(help="Evaluate only the first so many windows.")] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            metavar="CHECKPOINT", help="Also measure KL divergence from, and top-1 agreement with, this checkpoint."
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option("-t", "--threads", help="Threads; default: all cores.", min=1)] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure perplexity on a text: windows do not overlap, no BOS, every token of a window but its first is scored."""
    configure_blas(threads)
    from elutq_cli.evaluation import check_sizes

    check_sizes(ctx_size, chunks)
    text = read_text(file)
    with open_model(model, ctx_size, threads) as evaluated:
        if reference is None:
            result = measure(evaluated, None, text, ctx_size, chunks)
        else:
            with open_model(reference, ctx_size, threads) as other:
                result = measure(evaluated, other, text, ctx_size, chunks)
        kind = evaluated.kind
    if json_output:
        names = {"model": str(model), "file": str(file)} | ({"reference": str(reference)} if reference else {})
        print(json.dumps(names | result.to_dict()))
    else:
        print_result(result, f"{model} ({kind})", str(reference))


def read_text(path: Path) -> str:
    """Read a UTF-8 text exactly as it is, line ends included.

    Raises:
        ElutqError: the file cannot be read or is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise ElutqError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ElutqError(f"{path} is not UTF-8 text (byte {error.start}): convert it first") from error


@contextmanager
def open_model(path: Path, ctx_size: int, threads: int | None) -> Iterator[EvaluatedModel]:
    """Open a checkpoint folder for the reference transformer, or a model file for the C runtime.

    Raises:
        ElutqError: there is no such file, it cannot be used, or its context is shorter than a window.
    """
    if path.is_dir():
        from elutq_cli.reference import Transformer
        from elutq_formats.checkpoint import Checkpoint

        with Checkpoint.open(path) as checkpoint:
            check_context(path, checkpoint.config, ctx_size)
            yield EvaluatedModel(
                str(path),
                "checkpoint, float32 reference",
                checkpoint.config,
                checkpoint.tokenizer_json,
                Transformer(checkpoint),
            )
        return
    if not path.exists():
        raise ElutqError(f"{path} does not exist: give a model file or a checkpoint folder")
    from elutq_formats.model_file import ModelFile
    from elutq_native import Model

    model_file = ModelFile.open(path)
    check_context(path, model_file.config, ctx_size)
    with Model(path) as model, model.session(ctx_size, threads) as session:
        yield EvaluatedModel(
            str(path),
            f"C runtime, {model.info.isa} kernels",
            model_file.config,
            model_file.tokenizer_json,
            NativeLogits(session),
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


def measure(
    model: EvaluatedModel, reference: EvaluatedModel | None, text: str, ctx_size: int, chunks: int | None
) -> Evaluation:
    """Tokenize the text and evaluate, with a progress bar where stderr is a terminal.

    Raises:
        ElutqError: the text is too short, or model and reference do not share a vocabulary.
    """
    from tqdm import tqdm

    from elutq_cli.evaluation import evaluate, split_windows

    tokens = tokenize(model, text)
    if reference is not None and (
        reference.config.vocab_size != model.config.vocab_size or tokenize(reference, text) != tokens
    ):
        raise ElutqError(
            f"{model.name} and {reference.name} have different vocabularies: "
            "the reference has to be the checkpoint the model was made from"
        )
    windows = split_windows(tokens, ctx_size, chunks)
    total = len(windows) * (1 if reference is None else 2)
    with tqdm(total=total, unit="window", disable=not sys.stderr.isatty(), file=sys.stderr) as bar:
        return evaluate(
            model.logits_model,
            windows,
            None if reference is None else reference.logits_model,
            advance=lambda n_windows: bar.update(n_windows),
        )


def tokenize(model: EvaluatedModel, text: str) -> list[int]:
    """Turn the whole text into tokens, without special ones.

    Raises:
        ElutqError: the tokenizer is damaged, or gives tokens that the model does not have.
    """
    from elutq_formats.tokenizer import Tokenizer

    return Tokenizer.from_json(model.tokenizer_json, model.config).encode(text)


def print_result(result: Evaluation, model: str, reference: str) -> None:
    """Print the result for a reader."""
    from elutq_cli.evaluation import WINDOW_RULE

    print(f"model       {model}")
    print(f"perplexity  {result.ppl:.4f} +- {result.ppl_stderr:.4f}  (nll {result.nll:.5f} nats per token)")
    print(f"scored      {result.n_tokens} tokens in {result.windows} windows of {result.ctx}: {WINDOW_RULE}")
    if result.kl is not None and result.top1 is not None:
        print(f"reference   {reference}: KL divergence {result.kl:.5f} nats, top-1 agreement {100 * result.top1:.2f} %")
