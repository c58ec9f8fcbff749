"""The rotate stage: a checkpoint whose residual stream and value heads are rotated, with the same outputs.

An orthogonal matrix R that mixes all channels leaves no outliers among them. x R goes through the model in place of x:
the embedding and everything that writes to the stream is multiplied by R, everything that reads from it by R^T. Only a
norm's weights stand between; they are folded into the linears that follow, and without them a norm commutes with R.

Source: SliceGPT (Ashkboos et al. 2024) for the folding; QuaRot and SpinQuant for what it does to quantization.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from elutq_cli.pipeline.compute.levels import FloatArray
from elutq_cli.pipeline.compute.products import pieces
from elutq_formats.block import Branch
from elutq_formats.config import ModelConfig
from elutq_formats.errors import UnsupportedModelError
from elutq_formats.hlq import HLQTensor
from elutq_formats.model_tensors import EMBEDDING, FINAL_NORM, HEAD
from elutq_formats.safetensors_file import ALL_ROWS, Run
from elutq_formats.source import Weights
from elutq_formats.tensor_record import STACK_DIMENSIONS

DoubleArray = npt.NDArray[np.float64]

WEIGHTS_AT_ONCE = 1 << 18
"""Weights that are rotated together, or those of a value head when they are more."""


class Rotation:
    """A random orthogonal matrix R of any size n = 2^k m, m odd: signs, a Hadamard matrix of 2^k, a dense one of m."""

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        """Draw the signs and the dense part."""
        self.n_blocks = size & -size
        odd = size // self.n_blocks
        self.signs = rng.choice([-1.0, 1.0], size)
        triangular = np.linalg.qr(rng.normal(size=(odd, odd)))
        self.dense = triangular[0] * np.sign(np.diagonal(triangular[1]))

    def __call__(self, x: npt.NDArray[np.floating]) -> DoubleArray:
        """Return x R: (..., n) -> (..., n) float64."""
        y = (x * self.signs).reshape(-1, self.n_blocks, len(self.dense))
        width = 1
        while width < self.n_blocks:
            pairs = y.reshape(len(y), -1, 2, width * len(self.dense))
            y = np.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], axis=2)
            width *= 2
        y = y.reshape(-1, self.n_blocks, len(self.dense)) @ self.dense
        return np.asarray(y / np.sqrt(self.n_blocks)).reshape(x.shape)


def _replace(
    matrix: FloatArray, axis: int, multiple: int, function: Callable[[FloatArray], npt.NDArray[np.floating]]
) -> None:
    """Replace a matrix by a function of it, in place, rows (axis 0) or columns (1), a multiple of so many at a time.

    The function's values in float64 take several times the memory of what it is given.
    """
    lines = matrix if axis == 0 else matrix.T
    at_once = max(1, WEIGHTS_AT_ONCE // lines.shape[1] // multiple) * multiple
    for part in pieces(len(lines), at_once):
        place = matrix[part] if axis == 0 else matrix[:, part]
        place[...] = function(place)


def check_rotatable(config: ModelConfig) -> None:
    """Refuse a model that no rotation leaves as it is.

    Raises:
        UnsupportedModelError: a norm's weights stand where nothing can take them.
    """
    if any(branch.before is None or branch.after is not None for branch in config.layer(0).branches):
        raise UnsupportedModelError(
            f"{config.model_type} norms what its blocks add to the residual stream, and such a stream cannot be "
            "rotated: leave out --rotate"
        )


def _readers(branch: Branch) -> Iterator[str]:
    """Yield all that reads the stream behind a branch's norm: linears, and what chooses among experts."""
    yield from branch.readers
    if branch.router is not None:
        yield branch.router
    if branch.gate is not None:
        yield branch.gate
    if branch.shared is not None:
        yield from _readers(branch.shared)


class RotatedCheckpoint:
    """A checkpoint seen through a rotation; every tensor is rotated when it is loaded. Its head is never tied."""

    def __init__(self, checkpoint: Weights, seed: int) -> None:
        """Draw a rotation of the residual stream and one of the value heads, of each block its own."""
        check_rotatable(checkpoint.config)
        layers = [checkpoint.config.layer(layer) for layer in range(checkpoint.config.num_hidden_layers)]
        branches = dict.fromkeys(branch for layer in layers for branch in layer.branches)
        self._norms = {reader: branch.before for branch in branches for reader in _readers(branch)}
        self._writers = {own.writer for branch in branches for own in (branch, branch.shared) if own is not None}
        self.checkpoint = checkpoint
        self.config = replace(checkpoint.config, tie_word_embeddings=False)
        rng = np.random.default_rng(seed)
        self.stream = Rotation(self.config.hidden_size, rng)
        self.values = [Rotation(self.config.head_dim, rng) for _ in range(self.config.num_hidden_layers)]

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name."""
        return name == HEAD or self.checkpoint.has(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return self.checkpoint.shape(self._stored_name(name))

    def load(self, name: str, run: Run = map, rows: slice = ALL_ROWS) -> FloatArray:
        """Return a tensor, or some of its rows, rotated: float32; ``run`` may read it on several threads."""
        if name in (EMBEDDING, HEAD):
            norm = self.checkpoint.load(FINAL_NORM) if name == HEAD else None
            tensor = self.checkpoint.load(self._stored_name(name), run, rows)
            _replace(tensor, 0, 1, lambda part: self.stream(part if norm is None else part * norm.astype(np.float64)))
            return tensor
        is_stack = len(self.checkpoint.shape(name)) == STACK_DIMENSIONS  # whose matrices are rotated each by itself
        tensor = self.checkpoint.load(name, run, rows if is_stack else ALL_ROWS)
        if name == FINAL_NORM or name.endswith(tuple(f"{norm}.weight" for norm in self._norms.values())):
            return np.ones_like(tensor)[rows]
        prefix = name.partition(".self_attn." if ".self_attn." in name else ".mlp.")[0]
        linear, kind = name[len(prefix) + 1 :].rsplit(".", 1)
        for matrix in tensor if is_stack else (tensor,):
            self._rotate_linear(prefix, linear, matrix, kind == "bias")
        return tensor if is_stack else tensor[rows]

    def levels(self, name: str, run: Run = map) -> HLQTensor | None:
        """Return None: what is rotated is on no levels any more."""
        return None

    def _rotate_linear(self, prefix: str, linear: str, tensor: FloatArray, bias: bool) -> None:
        """Rotate a block's weight (rows, columns), bias (rows,), norm of heads or gate (columns,), in place.

        It is cut across the side that does not touch the stream, between value heads: each part is rotated by itself.
        """
        reads = linear in self._norms and not bias
        norm = self.checkpoint.load(f"{prefix}.{self._norms[linear]}.weight") if reads else None
        head_dim, values = self.config.head_dim, self.values[int(prefix.rsplit(".", 1)[1])]

        def rotate(part: FloatArray) -> DoubleArray:
            rotated: DoubleArray = part.astype(np.float64)
            if norm is not None:
                rotated = self.stream(rotated * norm)
            if linear == "self_attn.v_proj":
                by_head = rotated.reshape(-1, head_dim, *rotated.shape[1:])
                rotated = np.moveaxis(values(np.moveaxis(by_head, 1, -1)), -1, 1).reshape(rotated.shape)
            if linear == "self_attn.o_proj" and not bias:
                rotated = values(rotated.reshape(len(rotated), -1, head_dim)).reshape(rotated.shape)
            if linear in self._writers:
                rotated = self.stream(rotated.T).T
            return rotated

        if tensor.ndim == 1:
            tensor[:] = rotate(tensor)
        else:
            _replace(tensor, 1 if linear in self._writers else 0, head_dim, rotate)

    def _stored_name(self, name: str) -> str:
        return EMBEDDING if name == HEAD and self.checkpoint.config.tie_word_embeddings else name
