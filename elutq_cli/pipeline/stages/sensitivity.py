"""How much the model's predictions mind an error in each output of its linears: one pass back through the exact model.

With ``g`` the gradient of ``-log p`` at a linear's output, for a token that the model itself draws, errors ``D`` of its
rows move the predictions by a KL divergence of about

    sum over rows r of  E[g_r^2] (D H D^T)_rr / 2

to second order, where gradients do not depend on inputs and errors, as those of rounding do not, on other rows': the
diagonal of a Kronecker-factored Fisher information (Martens and Grosse 2015). (D H D^T, not W H W^T times a relative
error: what most of a row's output is made of, the mean of the inputs, feedback keeps exact.)
"""

import math
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from elutq_cli.pipeline.compute.backend import Backend
from elutq_cli.pipeline.compute.levels import FloatArray
from elutq_cli.pipeline.compute.products import map_few, pieces, quiet
from elutq_cli.reference import Array, Block, Head, Positions, Transformer, block_gradients, prediction_gradient
from elutq_formats.errors import CalibrationError
from elutq_formats.model_tensors import EMBEDDING, HEAD
from elutq_formats.names import called

BACK_AT_ONCE = 2
"""Sequences on their way back through a block together: each takes twice what it does on its way forwards."""

EXPERT_SEQUENCES = 4
"""The same where a block has experts, whose weights are read again for each of such batches."""

Squares: TypeAlias = dict[str, npt.NDArray[np.float64]]
"""By a linear's name, for each of its outputs."""


def gradient_squares(
    model: Transformer,
    inputs: FloatArray,
    outputs: FloatArray,
    seed: int,
    backend: Backend,
    note: Callable[[str], None] = lambda text: None,
) -> Squares:
    """Return the mean square of every output's gradient, over all tokens.

    Args:
        model: the exact one; its blocks are read from the last to the first, one in memory at a time.
        inputs: (layers, sequences, n, hidden_size) float32, the stream before every block.
        outputs: (sequences, n, hidden_size) float32, the stream after the last.
        seed: of the tokens that the model draws.
        backend: runs a unit of work for each sequence, the predictions here.
        note: is told how far it is.

    Returns:
        (rows,) float64 for each of the blocks' linears, by the name of its weights in the checkpoint; of experts under
        their own names, where any token is sent to them. Under HEAD that of the logits, under EMBEDDING (hidden_size,)
        that of what it gives the first block.

    Raises:
        CalibrationError: gradients overflow; the message names the linear.
    """
    n_sequences, n_tokens, _ = outputs.shape
    positions = Positions.of(model.config, n_tokens, convert=backend.arrays.place)
    numbers = [np.random.default_rng((seed, index)).random(n_tokens, np.float32) for index in range(n_sequences)]
    predict = quiet(partial(_of_predictions, model.load_head(), backend))
    predicted = map_few(predict, list(zip(outputs, numbers, strict=True)), backend.crew)
    gradients = [gradient for gradient, _ in predicted]
    found: Squares = {HEAD: _mean_of(HEAD, [squares for _, squares in predicted], outputs)}
    del predict, predicted
    for layer in reversed(range(len(inputs))):
        note(f"backwards through block {layer}")
        back = quiet(partial(_of_block, model.block(layer), positions, backend))
        if model.config.has_experts(layer):
            batches = pieces(n_sequences, EXPERT_SEQUENCES)
            passed = [back((inputs[layer][few], np.stack(gradients[few]))) for few in batches]
            gradients = [gradient for several, _ in passed for gradient in several]
        else:
            pairs = zip(inputs[layer], gradients, strict=True)
            passed = list(backend.executor.map(back, pairs, BACK_AT_ONCE))
            gradients = [gradient for gradient, _ in passed]
        del back
        for linear in dict.fromkeys(linear for _, squares in passed for linear in squares):
            name = f"model.layers.{layer}.{linear}.weight"
            found[name] = _mean_of(name, [squares[linear] for _, squares in passed if linear in squares], outputs)
    found[EMBEDDING] = _mean_of(EMBEDDING, [np.einsum("nc,nc->c", own, own) for own in gradients], outputs)
    return found


def _mean_of(name: str, sums: list[npt.NDArray[np.float64]], outputs: FloatArray) -> npt.NDArray[np.float64]:
    """Return the mean of squares over all tokens, from the sums over those of a sequence."""
    total = np.sum(sums, axis=0, dtype=np.float64)
    if not np.isfinite(total).all():
        raise CalibrationError(f"{called(name)}: gradients overflow on the calibration text: use other text, or none")
    return np.asarray(total / math.prod(outputs.shape[:2]))


def _of_predictions(
    head: Head, backend: Backend, sequence: tuple[FloatArray, FloatArray]
) -> tuple[FloatArray, npt.NDArray[np.float64]]:
    """Return the gradient at the last block's output, and the sums of squares over tokens at the logits.

    Args:
        head: the exact one.
        backend: has the arrays.
        sequence: (n, hidden_size) float32, the last block's output, and the numbers that draw the tokens.
    """
    sums = np.zeros(head.config.vocab_size)

    def observe(gradient: Array) -> None:
        np.add(sums, backend.arrays.fetch(backend.arrays.xp.einsum("nv,nv->v", gradient, gradient)), out=sums)

    x, uniform = (backend.arrays.place(part) for part in sequence)
    gradient = backend.arrays.fetch(prediction_gradient(head, x, uniform, observe))
    return gradient, sums


def _of_block(
    block: Block, positions: Positions, backend: Backend, sequence: tuple[FloatArray, FloatArray]
) -> tuple[FloatArray, Squares]:
    """Return the gradient at a block's input, and the sums of squares over tokens at its linears' outputs.

    Args:
        block: the exact one.
        positions: of the tokens.
        backend: has the arrays.
        sequence: (n, hidden_size) float32, the stream before the block, and the gradient after it.
    """
    sums: Squares = {}

    def observe(name: str, gradient: Array) -> None:
        squares = (gradient * gradient).reshape(-1, gradient.shape[-1])
        total = squares.sum(axis=0, dtype=backend.arrays.xp.float64)  # so that not all of it has to leave a device
        sums[name] = backend.arrays.fetch(total).astype(np.float64)

    x, gradient = (backend.arrays.place(np.array(part)) for part in sequence)
    return backend.arrays.fetch(block_gradients(block, x, gradient, positions, observe)[0]), sums
