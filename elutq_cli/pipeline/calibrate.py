"""The calibrate stage: calibration sequences, and the Hessians of a block's linears on them.

Activations are those of the quantized model so far: a linear's Hessian is taken after all linears before it, in its own
block too, have been quantized.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from elutq_cli.pipeline.levels import FloatArray
from elutq_cli.pipeline.products import add_gram, mirror_upper, quiet
from elutq_cli.pipeline.recipe import Recipe
from elutq_cli.pipeline.stage import Backend
from elutq_cli.reference import SHARED_INPUTS, Block, Positions
from elutq_formats.config import ModelConfig
from elutq_formats.errors import ElutqError
from elutq_formats.tokenizer import Tokenizer

TOKENS_AT_ONCE = 1024

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CalibrationText:
    """Sequences to calibrate on.

    Attributes:
        tokens: (num_samples or fewer, sequence_length) int64.
        file: where they come from.
        sha256: of that file.
    """

    tokens: npt.NDArray[np.int64]
    file: Path
    sha256: str

    @classmethod
    def read(cls, file: Path, tokenizer: Tokenizer, config: ModelConfig, recipe: Recipe) -> "CalibrationText":
        """Cut a text file into sequences that do not overlap, and choose some of them by the recipe's seed.

        A text that holds fewer than the recipe asks for is used whole, with a warning.

        Raises:
            ElutqError: the file cannot be read, is too short, or has a token that the model has not; or the sequences
                are longer than the model's context.
        """
        length = recipe.sequence_length
        if length > config.max_position_embeddings:
            raise ElutqError(
                f"calibration sequences of {length} tokens are longer than the model's context of "
                f"{config.max_position_embeddings}: use a smaller --sequence-length"
            )
        try:
            content = file.read_bytes()
            text = content.decode("utf-8")
        except OSError as error:
            raise ElutqError(f"cannot read {file}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ElutqError(f"{file} is not UTF-8 text (byte {error.start}): convert it first") from error
        tokens = np.array(tokenizer.encode(text, add_special_tokens=False), dtype=np.int64)
        n_sequences = len(tokens) // length
        if n_sequences == 0:
            raise ElutqError(
                f"{file} has {len(tokens)} tokens, less than one calibration sequence of {length}: "
                "use a longer text or a smaller --sequence-length"
            )
        if n_sequences < recipe.num_samples:
            log.warning(
                "%s has %d calibration sequences of %d tokens, not %d: all are used",
                file,
                n_sequences,
                length,
                recipe.num_samples,
            )
        chosen = np.random.default_rng(recipe.seed).choice(
            n_sequences, min(recipe.num_samples, n_sequences), replace=False
        )
        sequences = tokens[: n_sequences * length].reshape(n_sequences, length)[np.sort(chosen)]
        return cls(sequences, file, hashlib.sha256(content).hexdigest())


def block_hessians(block: Block, hidden: FloatArray, backend: Backend) -> Iterator[tuple[tuple[str, ...], FloatArray]]:
    """Run the calibration sequences through a block, pausing before each of its inputs is used.

    Between one step of the iterator and the next the caller replaces the weights of the linears just yielded in
    ``block.weights`` by their dequantized values; what follows sees those.

    Args:
        block: the block.
        hidden: (sequences, n, hidden_size) float32, the block's input; replaced by its output.
        backend: runs a batch of sequences on each of its threads.

    Yields:
        The names of the linears that share an input, and that input's Hessian: (columns, columns) float32,
        X^T X / tokens.
    """
    positions = Positions.of(block.config, hidden.shape[1])
    batches = token_batches(hidden)

    def normed(name: str) -> Callable[[FloatArray], FloatArray]:
        return lambda x: np.asarray(block.norm(name, x))

    def attended(x: FloatArray) -> FloatArray:
        seen: dict[str, FloatArray] = {}
        block.attention(block.norm("input_layernorm", x), positions, observe=seen.__setitem__)
        return seen["self_attn.o_proj"]

    def gated(x: FloatArray) -> FloatArray:
        seen: dict[str, FloatArray] = {}
        block.mlp(block.norm("post_attention_layernorm", x), observe=seen.__setitem__)
        return seen["mlp.down_proj"]

    def add_attention(pair: tuple[FloatArray, FloatArray]) -> None:
        x, value = pair
        x += block.linear("self_attn.o_proj", value)

    def add_mlp(x: FloatArray) -> None:
        x += block.mlp(block.norm("post_attention_layernorm", x))

    yield SHARED_INPUTS["self_attn.q_proj"], hessian(batches, normed("input_layernorm"), backend)
    values = backend.map(quiet(attended), batches)
    yield SHARED_INPUTS["self_attn.o_proj"], hessian(values, lambda value: value, backend)
    backend.map(quiet(add_attention), zip(batches, values, strict=True))
    del values
    yield SHARED_INPUTS["mlp.gate_proj"], hessian(batches, normed("post_attention_layernorm"), backend)
    yield SHARED_INPUTS["mlp.down_proj"], hessian(batches, gated, backend)
    backend.map(quiet(add_mlp), batches)


def hessian(
    batches: list[FloatArray], linear_input: Callable[[FloatArray], FloatArray], backend: Backend
) -> FloatArray:
    """Return X^T X / tokens: (columns, columns) float32, accumulated in float32 in the order of the batches.

    Args:
        batches: what the linear's inputs are computed from.
        linear_input: computes them: (..., columns) float32.
        backend: runs one batch on each of its threads, then the products.
    """
    total, n_tokens = np.zeros((0, 0), dtype=np.float32), 0
    for first in range(0, len(batches), backend.threads):
        wave = backend.map(quiet(linear_input), batches[first : first + backend.threads])
        inputs = [x.reshape(-1, x.shape[-1]) for x in wave]
        if first == 0:
            total = np.zeros((inputs[0].shape[1], inputs[0].shape[1]), dtype=np.float32)
        add_gram(total, inputs, backend)
        n_tokens += sum(map(len, inputs))
    total /= np.float32(n_tokens)
    mirror_upper(total)
    return total


def token_batches(sequences: FloatArray) -> list[FloatArray]:
    """Cut sequences (sequences, n, ...) into views of about TOKENS_AT_ONCE tokens, at least one sequence each."""
    step = max(1, TOKENS_AT_ONCE // sequences.shape[1])
    return [sequences[first : first + step] for first in range(0, len(sequences), step)]
