"""Models that can be evaluated: checkpoints by the float32 reference, model files by the C runtime."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elutq_cli.evaluation.continuations import ContinuationModel, NativeContinuations, ReferenceContinuations
from elutq_cli.evaluation.score import Advance, WindowLogitsModel
from elutq_cli.evaluation.windows import Rule, Windows, split_windows
from elutq_cli.hub_sources import find_evaluated
from elutq_cli.reference import Transformer
from elutq_cli.streams import printable
from elutq_formats.config import ModelConfig
from elutq_formats.errors import DamagedWeightsError, ElutqError
from elutq_formats.gguf_start import is_foreign_gguf
from elutq_formats.model_file import ModelFile
from elutq_formats.open_source import open_source
from elutq_formats.safetensors_file import ALL_ROWS
from elutq_formats.source import ModelSource
from elutq_formats.tokenizer import Tokenizer
from elutq_native import Engine, Model, NativeSequence, Run


@dataclass(frozen=True)
class EvaluatedModel:
    """A model opened for evaluation.

    Attributes:
        name: the path the user gave.
        kind: what computes it.
        config: its hyper-parameters.
        tokenizer: its tokenizer.
        logits_model: gives its logits.
        continuations: gives those of continuations.
        size_bytes: of its weight files.
        bits_per_weight: over all of them.
        block_bits_per_weight: over the matrices of the blocks; None for a checkpoint.
        is_native: whether the C runtime computes it.
        notes: what its user may not expect of how it was read, each in one line.
    """

    name: str
    kind: str
    config: ModelConfig
    tokenizer: Tokenizer
    logits_model: WindowLogitsModel
    continuations: ContinuationModel
    size_bytes: int
    bits_per_weight: float
    block_bits_per_weight: float | None = None
    is_native: bool = False
    notes: tuple[str, ...] = ()

    def describe(self) -> dict[str, Any]:
        """Return what ``--json`` says about the model beside its figures."""
        return {
            "model": printable(self.name),
            "size_bytes": self.size_bytes,
            "bits_per_weight": self.bits_per_weight,
            "block_bits_per_weight": self.block_bits_per_weight,
        }


class FiniteWeights:
    """The weights of a source as the reference reads them, refused where no logits can be made of them.

    Attributes:
        config: hyper-parameters of the model.
    """

    def __init__(self, source: ModelSource) -> None:
        self.config = source.config
        self._source = source

    def has(self, name: str) -> bool:
        """Whether the model has this tensor."""
        return self._source.has(name)

    def load(self, name: str, *, rows: slice = ALL_ROWS) -> NDArray[np.float32]:
        """Return a tensor, or some of its rows.

        Raises:
            DamagedWeightsError: a value is not finite.
        """
        tensor = self._source.load(name, rows=rows)
        if not math.isfinite(float(tensor.max()) - float(tensor.min())):
            raise DamagedWeightsError(f"{self._source.path} is damaged: tensor {name} holds values that are not finite")
        return tensor


class NativeLogits:
    """A model file in the C runtime, whose context begins afresh with every sequence."""

    def __init__(self, model: Model, threads: int | None, cache_type: str, token_by_token: bool = False) -> None:
        self._model, self._threads, self._cache_type = model, threads, cache_type
        self._token_by_token = token_by_token

    def window_logits(
        self, windows: NDArray[np.int64], advance: Advance, n_logits: Sequence[int]
    ) -> Iterator[NDArray[np.float32]]:
        """See ``WindowLogitsModel``."""
        with (
            Engine(self._model, self._threads) as engine,
            NativeSequence(self._model, windows.shape[1], self._cache_type) as sequence,
        ):
            for window, n_wanted in zip(windows, n_logits, strict=True):
                sequence.rewind(0)
                tokens = window.astype("int32")
                if self._token_by_token:
                    logits = np.empty((n_wanted, self._model.vocab_size), np.float32)
                    first = len(tokens) - n_wanted
                    for at in range(len(tokens)):
                        found = engine.eval([Run(sequence, tokens[at : at + 1], int(at >= first))])[0]
                        logits[max(at - first, 0) : max(at - first + 1, 0)] = found
                else:
                    logits = engine.eval([Run(sequence, tokens, n_wanted)])[0]
                advance(1.0)
                yield logits
                del logits  # before the next window's are made


@contextmanager
def open_model(
    path: Path,
    ctx_size: int | None,
    threads: int | None,
    cache_type: str = "f16",
    token_by_token: bool = False,
    offline: bool = False,
) -> Iterator[EvaluatedModel]:
    """Open a model file for the C runtime, or for the reference a checkpoint or GGUF file; each may be on the hub.

    Args:
        path: where it is.
        ctx_size: tokens that it will be given; None: no more than its context.
        threads: of the C runtime.
        cache_type: of the C runtime.
        token_by_token: whether the C runtime computes a window as it generates text, not as it reads a prompt.
        offline: use only what the hub's cache holds.

    Raises:
        ElutqError: there is no such file, it cannot be used, or its context is shorter than ctx_size.
    """
    name, path = str(path), find_evaluated(path, offline)
    if path.is_dir() or is_foreign_gguf(path):
        # Logits that overflow are reported at the end.
        with open_source(path) as checkpoint, np.errstate(over="ignore", invalid="ignore"):
            check_context(path, checkpoint.config, ctx_size)
            yield EvaluatedModel(
                name,
                "checkpoint, float32 reference",
                checkpoint.config,
                checkpoint.tokenizer(),
                transformer := Transformer(FiniteWeights(checkpoint)),
                ReferenceContinuations(transformer),
                size_bytes := sum(file.stat().st_size for file in checkpoint.weight_files()),
                8 * size_bytes / sum(math.prod(checkpoint.shape(name)) for name in checkpoint.names),
                notes=checkpoint.notes_on_measuring(),
            )
        return
    if not path.exists():
        raise ElutqError(f"{path} does not exist: give a model file or a checkpoint folder")
    model_file = ModelFile.open(path)
    check_context(path, model_file.config, ctx_size)
    with Model(path) as model:
        yield EvaluatedModel(
            name,
            f"C runtime, {model.info.isa} kernels",
            model_file.config,
            model_file.tokenizer(),
            NativeLogits(model, threads, cache_type, token_by_token),
            NativeContinuations(model, threads, cache_type),
            model_file.size_bytes,
            model_file.bits_per_weight(),
            model_file.block_bits_per_weight(),
            is_native=True,
        )


@contextmanager
def open_dequantized(path: Path, ctx_size: int | None, offline: bool = False) -> Iterator[EvaluatedModel]:
    """Open a model file for the float32 reference: what the C runtime would compute if it rounded nothing.

    Raises:
        ElutqError: there is no such file, or it is not a model file.
    """
    name, path = str(path), find_evaluated(path, offline)
    if not path.is_file():
        raise ElutqError(
            f"--of-runtime compares the C runtime with a model file's own weights: {path} is not such a file"
        )
    model_file = ModelFile.open(path)
    check_context(path, model_file.config, ctx_size)
    transformer = Transformer(model_file)
    yield EvaluatedModel(
        f"{name}, dequantized",
        "dequantized weights, float32 reference",
        model_file.config,
        model_file.tokenizer(),
        transformer,
        ReferenceContinuations(transformer),
        model_file.size_bytes,
        model_file.bits_per_weight(),
        model_file.block_bits_per_weight(),
    )


def check_context(path: Path, config: ModelConfig, ctx_size: int | None) -> None:
    """Refuse windows longer than the model was made for.

    Raises:
        ElutqError: they are.
    """
    if ctx_size is not None and ctx_size > config.max_position_embeddings:
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
