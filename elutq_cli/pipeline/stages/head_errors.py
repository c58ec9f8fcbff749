"""What errors of the output head do to the predictions, in each layout that it can have.

Of its rows, one for each token, few are ever likely: those are what counts, and so rows are sampled in proportion to
what the divergence would be if all had the same relative error.
"""

from collections.abc import Iterable, Iterator
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from elutq_cli.pipeline.compute.backend import Backend
from elutq_cli.pipeline.layout import Layout, Sizes
from elutq_cli.pipeline.stages.by_rows import load_chosen, runs_of_rows
from elutq_cli.pipeline.stages.feedback import inverse_factor
from elutq_cli.pipeline.stages.row_errors import round_rows
from elutq_cli.pipeline.stages.sensitivity import Squares
from elutq_cli.reference import Array, WeightSource
from elutq_formats.model_tensors import EMBEDDING, HEAD
from elutq_formats.names import called

SAMPLED_ROWS = 128
"""Of the head: twice those of a linear, whose rows are more alike."""

RowValues: TypeAlias = npt.NDArray[np.float64]


def head_harms(
    source: WeightSource,
    hessian: Array,
    squares: Squares,
    damping: float,
    options: Iterable[Layout],
    backend: Backend,
) -> dict[Layout, float]:
    """Return the KL divergence of the predictions when the head alone is quantized, nats a token, by layout.

    With ``s`` the mean squares of the logits' gradient, an error ``d`` of row ``r`` costs ``s_r d H d^T / 2``. Where
    the head is the embedding, too, it costs ``f_r d G d^T / 2`` more, ``G`` the diagonal of the mean squares of the
    gradient at the first block's input, and ``f_r`` the token's frequency, for which ``s_r / sum(s)`` stands here.

    Args:
        source: the checkpoint.
        hessian: (hidden_size, hidden_size) float32, of the head's input in the exact model; is left as it is.
        squares: from ``gradient_squares``.
        damping: see ``inverse_factor``.
        options: the layouts, as far as it can have them.
        backend: runs the stages.
    """
    tied, of_rows = source.config.tie_word_embeddings, squares[HEAD]
    name = EMBEDDING if tied else HEAD
    factor = inverse_factor(hessian, damping, backend, called(HEAD))  # what it will be quantized by
    if tied:
        of_embedding = squares[EMBEDDING] / max(of_rows.sum(), np.finfo(np.float64).tiny)
        hessian = hessian + backend.arrays.place(np.diag(of_embedding).astype(np.float32))
    sizes = np.empty(source.config.vocab_size)
    of_weights = Sizes.of(_read_sizes(source, name, sizes, backend))
    layouts = tuple(dict.fromkeys(option.settle_for(of_weights) for option in options))
    shares = np.cumsum(sizes * of_rows)
    if not shares[-1] > 0.0:
        return {layout: 0.0 for layout, _ in layouts}
    places = (np.arange(SAMPLED_ROWS) + 0.5) / SAMPLED_ROWS
    sampled = np.searchsorted(shares, places * shares[-1])
    rows = np.empty((1, SAMPLED_ROWS, source.config.hidden_size), dtype=np.float32)
    load_chosen(source, name, sampled[None], rows)
    errors = round_rows(backend.arrays.place(rows[0]), layouts, hessian, factor, backend)
    return {layout: float(0.5 * shares[-1] * (own / sizes[sampled]).mean()) for layout, own in errors.items()}


def _read_sizes(source: WeightSource, name: str, sizes: RowValues, backend: Backend) -> Iterator[Array]:
    """Yield a matrix some rows at a time; note the squared norm of each row."""
    for rows in runs_of_rows(source.config.vocab_size):
        weights = source.load(name, rows=rows)
        sizes[rows] = np.einsum("rc,rc->r", weights, weights)
        yield backend.arrays.place(weights)
