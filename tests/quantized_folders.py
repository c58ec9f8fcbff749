"""Checkpoint folders quantized at random, stored as other quantizers do: written from the formats' descriptions.

What a weight is follows from the codes, scales and zero points that were drawn, not from what is read back.
"""

import json
import shutil
from dataclasses import dataclass

import numpy as np
from conftest import GOLDEN
from safetensors.numpy import save_file

from elutq_formats.config import ModelConfig

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
}


@dataclass(frozen=True)
class Drawn:
    """A matrix (rows, columns) as it was drawn: codes and the scale and zero point of every group of a row."""

    codes: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray
    bits: int
    group_size: int

    @classmethod
    def draw(cls, rng, rows, columns, bits, group_size, symmetric=False, zeros=None):
        """Draw one with scales of float16; ``zeros``: first and last zero point, where they are not symmetric."""
        groups = -(-columns // group_size)
        low, high = zeros or (0, 2**bits - 1)
        drawn = rng.integers(low, high + 1, (rows, groups))
        return cls(
            rng.integers(0, 2**bits, (rows, columns)),
            rng.uniform(0.5, 1.5, (rows, groups)).astype(np.float16) * np.float16(0.1 / 2**bits),
            np.full((rows, groups), 2 ** (bits - 1)) if symmetric else drawn,
            bits,
            group_size,
        )

    def weights(self, group_of=None):
        """Return what it stands for: (rows, columns) float64."""
        if group_of is None:
            group_of = np.arange(self.codes.shape[1]) // self.group_size
        return self.scales.astype(np.float64)[:, group_of] * (self.codes - self.zeros[:, group_of])


def stream_of_bits(codes, bits):
    """Pack codes (n, streams) into words of 32 bits, the lowest bit first: (words, streams) int32."""
    stream = ((codes[:, None] >> np.arange(bits)[:, None]) & 1).reshape(-1, codes.shape[1]).astype(np.uint8)
    stream = np.pad(stream, ((0, -len(stream) % 32), (0, 0)))
    packed = np.packbits(np.ascontiguousarray(stream.T), axis=1, bitorder="little")
    return np.ascontiguousarray(packed).view("<i4").T.copy()


def gptq_parts(drawn, zero_offset=1, group_of=None):
    """Return the tensors of a matrix by suffix, as AutoGPTQ stores it (``zero_offset`` 1) or in version 2 (0)."""
    if group_of is None:
        group_of = np.arange(drawn.codes.shape[1]) // drawn.group_size
    stored = (drawn.zeros.T - zero_offset) & (2**drawn.bits - 1)
    return {
        "qweight": stream_of_bits(drawn.codes.T, drawn.bits),
        "qzeros": np.ascontiguousarray(stream_of_bits(stored.T, drawn.bits).T),
        "scales": np.ascontiguousarray(drawn.scales.T),
        "g_idx": group_of.astype(np.int32),
    }


def write_folder(folder, rng, settings, draw, parts, skipped=(), config=None):
    """Write a checkpoint whose blocks' linears are quantized.

    Args:
        folder: to make.
        rng: draws everything.
        settings: the ``quantization_config``.
        draw: returns a ``Drawn`` of rows and columns.
        parts: returns its tensors by suffix.
        skipped: linears that stay float16, by the last part of their names.
        config: entries of ``config.json`` that differ.

    Returns:
        What every tensor stands for, by its name: float64.
    """
    folder.mkdir()
    values = CONFIG | (config or {})
    (folder / "config.json").write_text(json.dumps(values | {"quantization_config": settings}))
    shutil.copy(GOLDEN / "llama1-mha" / "tokenizer.json", folder)
    tensors, weights = {}, {}
    for name, shape in ModelConfig.from_huggingface(values).tensor_shapes().items():
        module = name.removesuffix(".weight")
        if "_proj" in name and len(shape) == 2 and not module.endswith(skipped or ("none",)):
            drawn = draw(*shape)
            weights[name] = drawn.weights()
            tensors |= {f"{module}.{suffix}": part for suffix, part in parts(drawn).items()}
        else:
            values_of = rng.standard_normal(shape) * 0.1 + (len(shape) == 1)
            tensors[name] = values_of.astype(np.float16)
            weights[name] = tensors[name].astype(np.float64)
    save_file(tensors, folder / "model.safetensors")
    return weights


def write_gptq(folder, rng=None, **settings):
    """Write a checkpoint as AutoGPTQ does, of 4 bits in groups of 64 where ``settings`` are no others."""
    rng = rng or np.random.default_rng(0)
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": False, "sym": False} | settings
    offset, bits = 0 if settings.get("checkpoint_format") == "gptq_v2" else 1, settings["bits"]

    def draw(rows, columns):
        size = columns if settings["group_size"] == -1 else settings["group_size"]
        return Drawn.draw(rng, rows, columns, bits, size, settings["sym"], zeros=(offset, 2**bits - 1))

    return write_folder(folder, rng, settings, draw, lambda drawn: gptq_parts(drawn, offset))
