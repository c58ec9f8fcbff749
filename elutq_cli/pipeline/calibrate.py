"""The calibrate stage: second moments of the inputs of a block's linears on calibration sequences.

Activations are those of the quantized model so far: a linear's Hessian is taken after all linears before it, in its own
block too, have been quantized. Beside them run, where they are asked for, the activations of the exact model.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from elutq_cli.pipeline.levels import FloatArray
from elutq_cli.pipeline.products import add_gram, add_product, mirror_upper, quiet
from elutq_cli.pipeline.stage import Backend
from elutq_cli.reference import SHARED_INPUTS, Block, Positions

TOKENS_AT_ONCE = 1024
ADDED_TO_STREAM = ("self_attn.o_proj", "mlp.down_proj")


@dataclass(frozen=True)
class InputStatistics:
    """Second moments of the input x of a linear, divided by the number of tokens.

    Attributes:
        hessian: (columns, columns) float32, X^T X.
        cross: (columns, columns) float32, X^T (X' - X) with the exact model's inputs X'; None when they were not kept.
        drift: (columns, hidden_size) float32, X^T (S' - S), S and S' the residual streams that the linear's output is
            added to; None where it is not added to one.
    """

    hessian: FloatArray
    cross: FloatArray | None = None
    drift: FloatArray | None = None


def block_statistics(
    block: Block, hidden: FloatArray, exact: FloatArray | None, backend: Backend
) -> Iterator[tuple[tuple[str, ...], InputStatistics]]:
    """Run the calibration sequences through a block, pausing before each of its inputs is used.

    Between one step of the iterator and the next the caller replaces the weights of the linears just yielded in
    ``block.weights`` by their dequantized values; what follows sees those.

    Args:
        block: the block, with its exact weights.
        hidden: (sequences, n, hidden_size) float32, the block's input; replaced by its output.
        exact: the same in the exact model, or None.
        backend: runs a batch of sequences on each of its threads.

    Yields:
        The names of the linears that share an input, and that input's statistics.
    """
    blocks, streams = [block], [hidden]
    if exact is not None:
        blocks.append(Block(block.config, block.layer, block.weights))
        streams.append(exact)
    positions = Positions.of(block.config, hidden.shape[1])
    steps: tuple[tuple[str, Callable[[Block, FloatArray], FloatArray]], ...] = (
        ("self_attn.q_proj", lambda block, x: np.asarray(block.norm("input_layernorm", x))),
        ("self_attn.o_proj", lambda block, x: block.attention_values(block.norm("input_layernorm", x), positions)),
        ("mlp.gate_proj", lambda block, x: np.asarray(block.norm("post_attention_layernorm", x))),
        ("mlp.down_proj", lambda block, x: block.gated_values(block.norm("post_attention_layernorm", x))),
    )
    for linear, linear_input in steps:
        adds_to_stream = linear in ADDED_TO_STREAM
        inputs = [partial(linear_input, own) for own in blocks]
        finish_exact = partial(blocks[-1].linear, linear) if adds_to_stream and exact is not None else None
        moments = [input_statistics(inputs, streams, finish_exact, backend)]
        if finish_exact is not None:  # the exact weights up to here have done their work
            for name in [name for name in blocks[-1].weights if name.startswith(linear.split(".")[0])]:
                del blocks[-1].weights[name]
        yield SHARED_INPUTS[linear], moments.pop()  # to be freed by the caller
        if adds_to_stream:
            backend.map(quiet(partial(_add_output, block, linear, linear_input)), token_batches(hidden))


def _add_output(
    block: Block, linear: str, linear_input: Callable[[Block, FloatArray], FloatArray], x: FloatArray
) -> None:
    x += block.linear(linear, linear_input(block, x))


def _add_linear(linear: Callable[[FloatArray], FloatArray], stream_and_input: tuple[FloatArray, FloatArray]) -> None:
    stream, x = stream_and_input
    stream += linear(x)


def input_statistics(
    inputs: Sequence[Callable[[FloatArray], FloatArray]],
    streams: Sequence[FloatArray],
    finish_exact: Callable[[FloatArray], FloatArray] | None,
    backend: Backend,
) -> InputStatistics:
    """Return the second moments of a linear's input, accumulated in float32 in the order of the tokens.

    Args:
        inputs: computes the linear's input (..., columns) from the residual stream, on the quantized prefix and, where
            it is kept, in the exact model.
        streams: (sequences, n, hidden_size) float32 of each.
        finish_exact: the exact linear, where its output is added to the residual stream: the exact model's goes on
            from here. None where it is not, and where there is no exact stream.
        backend: runs a batch of sequences on each of its threads, then the products.
    """
    batches = list(zip(*map(token_batches, streams), strict=True))
    totals: list[FloatArray] = []
    for first in range(0, len(batches), backend.threads):
        wave = batches[first : first + backend.threads]
        found = backend.map(quiet(partial(_inputs_of, inputs)), wave)
        if first == 0:
            columns = found[0][0].shape[1]
            widths = (columns, columns, streams[0].shape[-1])[: len(streams) + (finish_exact is not None)]
            totals = [np.zeros((columns, width), dtype=np.float32) for width in widths]
        add_gram(totals[0], [found_inputs[0] for found_inputs in found], backend)
        for stream, found_inputs in zip(wave, found, strict=True):
            if len(found_inputs) == 2:
                x, exact = found_inputs
                add_product(totals[1], x, exact - x, backend)
                if finish_exact is not None:
                    add_product(totals[2], x, _flat(stream[1] - stream[0]), backend)
        if finish_exact is not None:
            finished = [(_flat(stream[1]), found_inputs[1]) for stream, found_inputs in zip(wave, found, strict=True)]
            backend.map(quiet(partial(_add_linear, finish_exact)), finished)
    for total in totals:
        total /= np.float32(streams[0].shape[0] * streams[0].shape[1])
    mirror_upper(totals[0], backend)
    return InputStatistics(*totals)


def token_batches(sequences: FloatArray) -> list[FloatArray]:
    """Cut sequences (sequences, n, ...) into views of about TOKENS_AT_ONCE tokens, at least one sequence each."""
    step = max(1, TOKENS_AT_ONCE // sequences.shape[1])
    return [sequences[first : first + step] for first in range(0, len(sequences), step)]


def _inputs_of(inputs: Sequence[Callable[[FloatArray], FloatArray]], batch: tuple[FloatArray, ...]) -> list[FloatArray]:
    return [_flat(linear_input(x)) for linear_input, x in zip(inputs, batch, strict=True)]


def _flat(x: FloatArray) -> FloatArray:
    return x.reshape(-1, x.shape[-1])
