"""Second moments of what linears take on calibration sequences."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np

from elutq_cli.pipeline.compute.backend import Backend
from elutq_cli.pipeline.compute.divided import less_product, sum_moments
from elutq_cli.pipeline.compute.levels import FloatArray
from elutq_cli.pipeline.compute.products import (
    AT_ONCE,
    add_gram,
    add_product,
    mirror_upper,
    multiply_rounded,
    pieces,
    quiet,
)
from elutq_cli.reference import Array, Block
from elutq_cli.reference.transformer import rms_norm
from elutq_formats.block import Branch
from elutq_formats.config import ModelConfig

TOKENS_AT_ONCE = 1024

Linear: TypeAlias = Callable[[Array], Array]
"""What computes a linear's input (..., columns) from the residual stream, or its output from that."""


@dataclass(frozen=True)
class InputStatistics:
    """Second moments of the input x of a linear, divided by the number of tokens.

    Attributes:
        hessian: (columns, columns) float32, X^T G X, where G is the identity where there is no lack; else diagonal, and
            weighs a token by one over the root mean square of its row of Y': by what the next norm will do to errors.
        lack: (hidden_size, columns) float32, (Y' - Y)^T G X, Y' the exact model's residual stream after the linear and
            Y what the exact weights would make of X and the stream here; None where the linear is not corrected, where
            its output is not added to the stream as it is, and where no exact stream is kept.
    """

    hessian: Array
    lack: Array | None = None


@dataclass(frozen=True)
class Writer:
    """An exact linear that writes to the residual stream.

    Attributes:
        weights: (hidden_size, columns) float32.
        bias: (hidden_size,) float32, or None.
        epsilon: that norms add to the mean square of the stream.
        corrected: whether it is to make up for what the stream lacks, which is wanted then.
        finish: makes of its output (tokens, hidden_size) what is added to the stream; None: it is added as it is.
    """

    weights: Array
    bias: Array | None
    epsilon: float
    corrected: bool
    finish: Linear | None

    @classmethod
    def of(cls, block: Block, branch: Branch, corrected: bool) -> "Writer":
        """Take a branch's from a block."""
        weights, bias = block.weights[f"{branch.writer}.weight"], block.weights.get(f"{branch.writer}.bias")
        finish = None if branch.after is None else partial(with_linears(block).finish, branch)
        return cls(weights, bias, block.config.rms_norm_eps, corrected and finish is None, finish)


MakeRoom: TypeAlias = Callable[[tuple[int, ...]], FloatArray]
"""Returns room for activations: float32 of a shape, of undefined contents."""


def in_memory(shape: tuple[int, ...]) -> FloatArray:
    """Make room for activations in memory: float32 of this shape."""
    return np.empty(shape, dtype=np.float32)


def with_linears(block: Block, *linears: str) -> Block:
    """Return a block as it is now, for units of work: with the matrices of these linears alone, and all vectors."""
    now, matrices = block.copy(), {f"{linear}.weight" for linear in linears}
    now.weights = {name: own for name, own in block.weights.items() if len(own.shape) == 1 or name in matrices}
    return now


def input_of_readers(block: Block, branch: Branch) -> Linear:
    """Return the function from the residual stream to what a branch's readers take."""
    return partial(_read, with_linears(block), branch)


def input_of_head(config: ModelConfig, norm: FloatArray, backend: Backend) -> Linear:
    """Return the function from the last block's output to the head's input; norm is the weight of the last norm."""
    weight = backend.arrays.place(norm)
    return partial(rms_norm, weight=weight, epsilon=config.rms_norm_eps, xp=backend.arrays.xp)


def head_statistics(
    config: ModelConfig, norm: FloatArray, hidden: FloatArray, backend: Backend, make_room: MakeRoom = in_memory
) -> InputStatistics:
    """Return the second moments of the head's input, from the last block's output (sequences, n, hidden_size)."""
    inputs = [input_of_head(config, norm, backend)]
    return input_statistics(inputs, [token_batches(hidden)], backend, make_room=make_room)


def _read(block: Block, branch: Branch, stream: Array) -> Array:
    return block.read(branch, stream)


def input_statistics(
    inputs: Sequence[Linear],
    streams: Sequence[Sequence[FloatArray]],
    backend: Backend,
    writer: Writer | None = None,
    kept: FloatArray | None = None,
    make_room: MakeRoom = in_memory,
) -> InputStatistics:
    """Return the second moments of a linear's input, accumulated in float32 in the order of the tokens.

    One worker adds the products of AT_ONCE batches at a time; for several, inputs are kept until all are there.

    Args:
        inputs: computes the linear's input from the residual stream, on the quantized prefix and, where it is kept, in
            the exact model.
        streams: ``token_batches`` of each; the exact model's only with ``writer``.
        backend: runs AT_ONCE batches of sequences, then their products.
        writer: where the linear writes to the residual stream: the exact model's goes on from here.
        kept: (sequences, n, columns) float32, becomes the inputs on the quantized prefix; None: nobody asks for them.
        make_room: for what several workers need of all tokens.
    """
    assert writer is not None or len(streams) == 1
    waves, hidden = list(zip(*streams, strict=True)), streams[0]
    shape = sum(map(len, hidden)), hidden[0].shape[1]
    n_tokens, hidden_size, divides = math.prod(shape), hidden[0].shape[2], backend.light.workers > 1
    adds = len(streams) == 2 and writer is not None and writer.corrected
    wants = token_batches(make_room((*shape, hidden_size))) if divides and adds else []
    all_scales: list[Array] = []
    hessian = lack = None
    unit = quiet(partial(_inputs_of, inputs, writer if len(streams) == 2 else None, backend))
    units = backend.light.map(unit, waves, AT_ONCE)
    for few in pieces(len(waves), AT_ONCE):
        batches = [next(units) for _ in waves[few]]
        found = [(x, wanted) for x, wanted, _, _ in batches]
        scales = [scale for _, _, scale, _ in batches if scale is not None]
        for wave, (_, _, _, after) in zip(waves[few], batches, strict=True):
            if after is not None:
                wave[1][...] = after.reshape(wave[1].shape)
        del batches
        columns = found[0][0].shape[1]
        if divides and kept is None:
            kept = make_room((*shape, columns))
        room = [] if kept is None else token_batches(kept)
        for place, (x, _) in zip(room[few], found, strict=bool(room)):
            place[...] = backend.arrays.fetch(x).reshape(place.shape)
        if divides:
            for place, (_, wanted) in zip(wants[few], found, strict=bool(wants)):
                assert wanted is not None  # where it adds
                place[...] = wanted.reshape(place.shape)
            all_scales += scales
            continue
        if hessian is None:
            hessian = backend.arrays.zeros((columns, columns))
            lack = backend.arrays.zeros((hidden_size, columns)) if adds else None
        _scale(found, scales)
        add_gram(hessian, [x for x, _ in found], backend)
        for x, wanted in found:
            if wanted is not None:
                add_product(lack, wanted, x, backend)
    del found
    if divides:
        assert kept is not None
        wanted_of_all = list(map(_flat, wants)) if adds else None
        hessian, lack = sum_moments(list(map(_flat, token_batches(kept))), wanted_of_all, backend, all_scales or None)
    assert hessian is not None
    for total in (hessian, lack):
        if total is not None:
            total /= n_tokens
    mirror_upper(hessian, backend)
    if writer is not None and lack is not None:
        lack = less_product(lack, writer.weights, hessian, backend)  # what the linear itself adds to the stream here
    return InputStatistics(hessian, lack)


def token_batches(sequences: FloatArray) -> list[FloatArray]:
    """Cut sequences (sequences, n, ...) into views of about TOKENS_AT_ONCE tokens, at least one sequence each."""
    step = max(1, TOKENS_AT_ONCE // sequences.shape[1])
    return [sequences[first : first + step] for first in range(0, len(sequences), step)]


def _inputs_of(
    inputs: Sequence[Linear], writer: Writer | None, backend: Backend, batch: tuple[FloatArray, ...]
) -> tuple[Array, Array | None, Array | None, FloatArray | None]:
    """Return a batch's inputs X (tokens, columns); beside an exact stream, what X W^T should be, and that stream after.

    Where the output is not added to the stream as it is, what X W^T should be is not known, and where the linear is not
    corrected nobody asks: None. Otherwise comes with it the root of what the next norm will multiply each token by,
    (tokens, 1): by that itself few tokens would decide.
    """
    xp = backend.arrays.xp
    streams = [backend.arrays.place(stream) for stream in batch]
    x, *exact = [_flat(linear_input(stream)) for linear_input, stream in zip(inputs, streams, strict=True)]
    if writer is None or not exact:  # an exact stream comes with a writer
        return x, None, None, None
    product = multiply_rounded(exact[0], writer.weights.T, backend)
    if writer.finish is not None:
        added = writer.finish(product if writer.bias is None else product + writer.bias)
        return x, None, None, backend.arrays.fetch(_flat(streams[1]) + added)
    after = _flat(streams[1]) + product
    wanted = after - _flat(streams[0]) if writer.corrected else None
    if writer.bias is not None:
        after = after + writer.bias
    if wanted is None:
        return x, None, None, backend.arrays.fetch(after)
    root_mean_square = xp.sqrt(xp.mean(after * after, axis=-1, keepdims=True) + writer.epsilon)
    scale = 1.0 / xp.sqrt(root_mean_square)
    return x, wanted, scale, backend.arrays.fetch(after)


def _scale(found: list[tuple[Array, Array | None]], scales: Sequence[Array]) -> None:
    """Multiply tokens of batches, one after the other and not in place: what another process returns is read-only."""
    for number, scale in enumerate(scales):
        x, wanted = found[number]
        found[number] = x * scale, None if wanted is None else wanted * scale


def _flat(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])
