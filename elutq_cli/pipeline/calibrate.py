"""The calibrate stage: calibration sequences, and the Hessians of a block's linears on them.

Activations are those of the quantized model so far: a linear's Hessian is taken after all linears before it, in its own
block too, have been quantized.
"""

import hashlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from elutq_cli.pipeline.levels import FloatArray
from elutq_cli.pipeline.recipe import Recipe
from elutq_cli.reference import SHARED_INPUTS, Block, Positions
from elutq_formats.config import ModelConfig
from elutq_formats.errors import ElutqError
from elutq_formats.tokenizer import Tokenizer

TOKENS_AT_ONCE = 4096

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


def block_hessians(block: Block, hidden: FloatArray) -> Iterator[tuple[tuple[str, ...], FloatArray]]:
    """Run the calibration sequences through a block, pausing before each of its inputs is used.

    Between one step of the iterator and the next the caller replaces the weights of the linears just yielded in
    ``block.weights`` by their dequantized values; what follows sees those.

    Args:
        block: the block.
        hidden: (sequences, n, hidden_size) float32, the block's input; replaced by its output.

    Yields:
        The names of the linears that share an input, and that input's Hessian: (columns, columns) float32,
        X^T X / tokens.
    """
    positions = Positions.of(block.config, hidden.shape[1])
    batches = [hidden[rows] for rows in token_batches(hidden)]
    yield SHARED_INPUTS["self_attn.q_proj"], hessian(block.norm("input_layernorm", x) for x in batches)
    attended = [_input_of_output(block, x, positions) for x in batches]
    yield SHARED_INPUTS["self_attn.o_proj"], hessian(iter(attended))
    for x, value in zip(batches, attended, strict=True):
        x += block.linear("self_attn.o_proj", value)
    del attended
    yield SHARED_INPUTS["mlp.gate_proj"], hessian(block.norm("post_attention_layernorm", x) for x in batches)
    yield SHARED_INPUTS["mlp.down_proj"], hessian(_input_of_down(block, x) for x in batches)
    for x in batches:
        x += block.mlp(block.norm("post_attention_layernorm", x))


def hessian(inputs: Iterable[FloatArray]) -> FloatArray:
    """Return X^T X / tokens of a linear's inputs, (..., columns) float32 each, accumulated in float32."""
    total, n_tokens = np.float32(0), 0
    for x in inputs:
        flat = x.reshape(-1, x.shape[-1])
        total = total + flat.T @ flat
        n_tokens += len(flat)
    return np.asarray(total / np.float32(n_tokens), dtype=np.float32)


def token_batches(sequences: FloatArray) -> list[slice]:
    """Cut sequences (sequences, n, ...) into runs of about TOKENS_AT_ONCE tokens, at least one sequence each."""
    step = max(1, TOKENS_AT_ONCE // sequences.shape[1])
    return [slice(first, first + step) for first in range(0, len(sequences), step)]


def _input_of_output(block: Block, x: FloatArray, positions: Positions) -> FloatArray:
    """Return the input of the attention's output projection."""
    seen: dict[str, FloatArray] = {}
    block.attention(block.norm("input_layernorm", x), positions, observe=seen.__setitem__)
    return seen["self_attn.o_proj"]


def _input_of_down(block: Block, x: FloatArray) -> FloatArray:
    """Return the input of the MLP's down projection."""
    seen: dict[str, FloatArray] = {}
    block.mlp(block.norm("post_attention_layernorm", x), observe=seen.__setitem__)
    return seen["mlp.down_proj"]
