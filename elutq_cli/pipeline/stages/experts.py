"""Experts on the calibration text: which tokens each is sent, and the second moments of what its linears take.

Experts are taken one after the other, so that the weights of one are in memory, and its tokens some at a time.

One that few tokens reach has a Hessian of little rank. Each is therefore shrunk towards that of its layer: for the
first linears what all tokens make of their input, for the last what all experts make of theirs. With n tokens and c
columns

    H = (1 - a) H_own + a t H_layer        a = c / (c + n)        t = tr(H_own) / tr(H_layer)

so that the layer's part is all where no token comes, a half where as many come as there are columns, and below a ninth
from eight times as many on.

Source: shrinkage of covariance matrices towards a target (Ledoit and Wolf 2004), whose amount here is the ratio of
unknowns in a row to observations.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from elutq_cli.pipeline.compute.backend import Backend
from elutq_cli.pipeline.compute.levels import FloatArray
from elutq_cli.pipeline.compute.products import add_gram, mirror_upper, pieces, quiet
from elutq_cli.pipeline.stages.moments import (
    InputStatistics,
    MakeRoom,
    input_of_readers,
    input_statistics,
    token_batches,
)
from elutq_cli.reference import Array, Block
from elutq_cli.reference.experts import expert_branch, route, shared_values
from elutq_formats.block import Branch

EXPERT_TOKENS = 4096
"""Tokens of an expert that are in memory together."""

Tokens: TypeAlias = npt.NDArray[np.intp]
OfTokens = TypeVar("OfTokens", bound=np.generic)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Routes:
    """Where a router sends the tokens of a stream.

    Attributes:
        tokens: those of each expert, by their place in the stream.
        weights: (tokens,) float32, what multiplies that expert's part of each.
    """

    tokens: tuple[Tokens, ...]
    weights: tuple[FloatArray, ...]

    @classmethod
    def of(cls, block: Block, branch: Branch, stream: FloatArray, backend: Backend) -> "Routes":
        """Run the router on a stream: (tokens, hidden_size) float32."""

        def find(rows: slice) -> FloatArray:
            return backend.arrays.fetch(route(block, branch, _read(block, branch, stream, rows, backend)))

        weights = np.concatenate(backend.crew.map(quiet(find), pieces(len(stream), EXPERT_TOKENS)))
        tokens = tuple(np.flatnonzero(of_expert > 0.0) for of_expert in weights.T)
        return cls(tokens, tuple(weights[chosen, number] for number, chosen in enumerate(tokens)))

    @property
    def places(self) -> list[slice]:
        """Where each expert's are, when all follow each other."""
        ends = np.cumsum([len(chosen) for chosen in self.tokens]).tolist()
        return [slice(end - len(chosen), end) for end, chosen in zip(ends, self.tokens, strict=True)]

    def describe(self, columns: int) -> str:
        """Return how many experts see fewer tokens than they have columns."""
        counts = [len(chosen) for chosen in self.tokens]
        few = sum(count < columns for count in counts)
        return f"{few} of {len(counts)} experts saw fewer tokens than columns ({columns}), the fewest {min(counts)}"


def expert_statistics(
    block: Block, branch: Branch, hidden: FloatArray, backend: Backend, make_room: MakeRoom
) -> Iterator[tuple[tuple[str, ...], InputStatistics]]:
    """Run a stream through a branch with experts, pausing before each input is used: see ``block_statistics``.

    The weights that the caller gives an expert, under its own names, are forgotten when they have been used.

    Yields:
        The names of an expert's linears that share an input, and that input's statistics: all experts' first linears,
        then their last, then the shared expert's.
    """
    flat = hidden.reshape(-1, hidden.shape[-1])
    routes, added = Routes.of(block, branch, flat, backend), make_room(flat.shape)
    width = block.weights[f"{branch.writer}.weight"].shape[2]
    kept = make_room((routes.places[-1].stop, width))
    read = [input_of_readers(block, branch)]
    of_inputs = input_statistics(read, [token_batches(hidden)], backend, make_room=make_room).hessian
    log.info("blk.%d: %s", block.layer, routes.describe(flat.shape[1]))
    added[...] = 0.0
    for number, (tokens, place) in enumerate(zip(routes.tokens, routes.places, strict=True)):
        readers = expert_branch(branch, number).readers
        inputs = (_read(block, branch, flat, part, backend) for part in _some(tokens))
        # No name for what is yielded: the caller frees it.
        yield readers, InputStatistics(shrunk(moments(inputs, flat.shape[1], backend), len(tokens), of_inputs))
        _keep(block, branch, number, flat, routes, kept[place], backend)
        _forget(block, readers)
    of_layer = moments((backend.arrays.place(part) for part in _some(kept)), width, backend)
    for number, (tokens, place) in enumerate(zip(routes.tokens, routes.places, strict=True)):
        writer, mixed = expert_branch(branch, number).writer, kept[place]
        inputs = (backend.arrays.place(part) for part in _some(mixed))
        yield (writer,), InputStatistics(shrunk(moments(inputs, width, backend), len(tokens), of_layer))
        for part, chosen in zip(_some(mixed), _some(tokens), strict=True):
            added[chosen] += backend.arrays.fetch(block.linear(writer, backend.arrays.place(part)))
        _forget(block, (writer,))
    del kept
    if branch.shared is not None:
        yield branch.shared.readers, InputStatistics(of_inputs)
        yield from _shared_statistics(block, branch, branch.shared, flat, added, backend, make_room)
    _finish(block, branch, flat, added, backend)


def _shared_statistics(
    block: Block,
    branch: Branch,
    shared: Branch,
    flat: FloatArray,
    added: FloatArray,
    backend: Backend,
    make_room: MakeRoom,
) -> Iterator[tuple[tuple[str, ...], InputStatistics]]:
    """Yield the statistics of the shared expert's last linear; add to the stream what it makes."""
    kept = make_room((len(flat), block.weights[f"{shared.writer}.weight"].shape[1]))
    for rows in pieces(len(flat), EXPERT_TOKENS):
        kept[rows] = backend.arrays.fetch(shared_values(block, shared, _read(block, branch, flat, rows, backend)))
    inputs = (backend.arrays.place(part) for part in _some(kept))
    yield (shared.writer,), InputStatistics(moments(inputs, kept.shape[1], backend))
    for rows in pieces(len(flat), EXPERT_TOKENS):
        added[rows] += backend.arrays.fetch(block.linear(shared.writer, backend.arrays.place(kept[rows])))


def add_experts(block: Block, branch: Branch, stream: FloatArray, backend: Backend, make_room: MakeRoom) -> None:
    """Add to a stream, (sequences, n, hidden_size) float32, what a branch with experts makes of it: see ``Block.run``.

    Each expert's weights are read once for all tokens.
    """
    flat = stream.reshape(-1, stream.shape[-1])
    routes, added = Routes.of(block, branch, flat, backend), make_room(flat.shape)
    added[...] = 0.0
    for number, tokens in enumerate(routes.tokens):
        if len(tokens):
            expert = expert_branch(branch, number)
            own = block.copy()
            for linear in (*expert.readers, expert.writer):
                own.weights[f"{linear}.weight"] = block.weight(linear)
            for chosen, weights in zip(_some(tokens), _some(routes.weights[number]), strict=True):
                x = _read(block, branch, flat, chosen, backend)
                mixed = own.gated_values(expert.readers, x) * backend.arrays.place(weights)[:, None]
                added[chosen] += backend.arrays.fetch(own.linear(expert.writer, mixed))
    if branch.shared is not None:
        for rows in pieces(len(flat), EXPERT_TOKENS):
            mixed = shared_values(block, branch.shared, _read(block, branch, flat, rows, backend))
            added[rows] += backend.arrays.fetch(block.linear(branch.shared.writer, mixed))
    _finish(block, branch, flat, added, backend)


def moments(inputs: Iterator[Array], columns: int, backend: Backend) -> Array:
    """Return X^T X over the number of tokens: (columns, columns) float32.

    Args:
        inputs: (tokens, columns) float32 each.
        columns: of all of them.
        backend: runs the products.
    """
    hessian, n_tokens = backend.arrays.zeros((columns, columns)), 0
    for x in inputs:
        add_gram(hessian, [x], backend)
        n_tokens += len(x)
    hessian /= max(1, n_tokens)
    mirror_upper(hessian, backend)
    return hessian


def shrunk(own: Array, n_tokens: int, of_layer: Array) -> Array:
    """Return an expert's Hessian, shrunk towards its layer's: see above; both (columns, columns) float32."""
    columns = len(own)
    part = columns / (columns + n_tokens)
    size, size_of_layer = float(own.diagonal().sum()), float(of_layer.diagonal().sum())
    if not (size > 0.0 and size_of_layer > 0.0):
        return of_layer if size == 0.0 else own  # no token, or what is not finite and will be refused by name
    return own * (1.0 - part) + of_layer * (part * size / size_of_layer)


def _keep(
    block: Block,
    branch: Branch,
    number: int,
    flat: FloatArray,
    routes: Routes,
    kept: FloatArray,
    backend: Backend,
) -> None:
    """Keep what an expert's last linear takes: (its tokens, width)."""
    readers = expert_branch(branch, number).readers
    parts = zip(_some(routes.tokens[number]), _some(routes.weights[number]), _some(kept), strict=True)
    for chosen, weights, room in parts:
        mixed = block.gated_values(readers, _read(block, branch, flat, chosen, backend))
        room[...] = backend.arrays.fetch(mixed * backend.arrays.place(weights)[:, None])


def _read(block: Block, branch: Branch, flat: FloatArray, tokens: Tokens | slice, backend: Backend) -> Array:
    return block.read(branch, backend.arrays.place(flat[tokens]))


def _some(values: npt.NDArray[OfTokens]) -> list[npt.NDArray[OfTokens]]:
    """Cut what belongs to tokens into runs of EXPERT_TOKENS."""
    return [values[rows] for rows in pieces(len(values), EXPERT_TOKENS)]


def _forget(block: Block, linears: tuple[str, ...]) -> None:
    for linear in linears:
        block.weights.pop(f"{linear}.weight", None)


def _finish(block: Block, branch: Branch, flat: FloatArray, added: FloatArray, backend: Backend) -> None:
    for rows in pieces(len(flat), EXPERT_TOKENS):
        flat[rows] += backend.arrays.fetch(block.finish(branch, backend.arrays.place(added[rows])))
