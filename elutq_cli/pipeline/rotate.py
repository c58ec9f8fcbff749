"""The rotate stage: a checkpoint whose residual stream and value heads are rotated, with the same outputs.

An orthogonal matrix R that mixes all channels leaves no outliers among them. x R goes through the model in place of x:
the embedding and everything that writes to the stream is multiplied by R, everything that reads from it by R^T. Only a
norm's weights stand between; they are folded into the linears that follow, and without them a norm commutes with R.

Source: SliceGPT (Ashkboos et al. 2024) for the folding; QuaRot and SpinQuant for what it does to quantization.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from elutq_cli.pipeline.levels import FloatArray
from elutq_cli.pipeline.recipe import EMBEDDING, HEAD
from elutq_formats.checkpoint import Checkpoint
from elutq_formats.safetensors_file import Run

DoubleArray = npt.NDArray[np.float64]

READERS = {
    "self_attn.q_proj": "input_layernorm",
    "self_attn.k_proj": "input_layernorm",
    "self_attn.v_proj": "input_layernorm",
    "mlp.gate_proj": "post_attention_layernorm",
    "mlp.up_proj": "post_attention_layernorm",
}
"""Linears that read the residual stream, and the norms before them."""

WRITERS = ("self_attn.o_proj", "mlp.down_proj")
NORMS = ("input_layernorm.weight", "post_attention_layernorm.weight")
FINAL_NORM = "model.norm.weight"


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


class RotatedCheckpoint:
    """A checkpoint seen through a rotation; every tensor is rotated when it is loaded. Its head is never tied."""

    def __init__(self, checkpoint: Checkpoint, seed: int) -> None:
        """Draw a rotation of the residual stream and one of the value heads, of each block its own."""
        self.checkpoint = checkpoint
        self.config = replace(checkpoint.config, tie_word_embeddings=False)
        rng = np.random.default_rng(seed)
        self.stream = Rotation(self.config.hidden_size, rng)
        self.values = [Rotation(self.config.head_dim, rng) for _ in range(self.config.num_hidden_layers)]

    @property
    def path(self) -> Path:
        """The checkpoint's folder."""
        return self.checkpoint.path

    @property
    def tokenizer_json(self) -> str:
        """The checkpoint's tokenizer.json."""
        return self.checkpoint.tokenizer_json

    @property
    def chat_template(self) -> str | None:
        """The checkpoint's chat template."""
        return self.checkpoint.chat_template

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name."""
        return name == HEAD or self.checkpoint.has(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return self.checkpoint.shape(self._stored_name(name))

    def load(self, name: str, run: Run = map) -> FloatArray:
        """Return a tensor, rotated: float32; ``run`` may read it on several threads."""
        tensor = self.checkpoint.load(self._stored_name(name), run)
        if name == EMBEDDING:
            return self.stream(tensor).astype(np.float32)
        if name == HEAD:
            return self.stream(tensor * self.checkpoint.load(FINAL_NORM).astype(np.float64)).astype(np.float32)
        if name == FINAL_NORM or name.endswith(NORMS):
            return np.ones_like(tensor)
        prefix = name.partition(".self_attn." if ".self_attn." in name else ".mlp.")[0]
        linear, kind = name[len(prefix) + 1 :].rsplit(".", 1)
        layer = int(prefix.rsplit(".", 1)[1])
        return self._rotate_linear(prefix, layer, linear, tensor, kind == "bias").astype(np.float32)

    def _rotate_linear(self, prefix: str, layer: int, linear: str, tensor: FloatArray, bias: bool) -> DoubleArray:
        """Rotate a block's weight (rows, columns) or bias (rows,) on the sides that touch the stream or the values."""
        rotated: DoubleArray = tensor.astype(np.float64)
        if linear in READERS and not bias:
            norm = self.checkpoint.load(f"{prefix}.{READERS[linear]}.weight")
            rotated = self.stream(rotated * norm)
        head_dim = self.config.head_dim
        if linear == "self_attn.v_proj":
            by_head = rotated.reshape(-1, head_dim, *rotated.shape[1:])
            rotated = np.moveaxis(self.values[layer](np.moveaxis(by_head, 1, -1)), -1, 1).reshape(rotated.shape)
        if linear == "self_attn.o_proj" and not bias:
            rotated = self.values[layer](rotated.reshape(len(rotated), -1, head_dim)).reshape(rotated.shape)
        if linear in WRITERS:
            rotated = self.stream(rotated.T).T
        return rotated

    def _stored_name(self, name: str) -> str:
        return EMBEDDING if name == HEAD and self.checkpoint.config.tie_word_embeddings else name
