"""Checkpoint folders quantized at random, stored as other quantizers do: written from the formats' descriptions.

What a weight is follows from the codes, scales and zero points that were drawn, not from what is read back.
"""

import json
import re
import shutil
from dataclasses import dataclass

import numpy as np
from conftest import GOLDEN
from safetensors.numpy import save_file

from elutq_formats.config import ModelConfig
from elutq_formats.open_source import open_source

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

    @classmethod
    def nearest(cls, weights, bits, group_size):
        """Round weights (rows, columns) to levels over the range of each group."""
        groups = weights.reshape(len(weights), -1, group_size).astype(np.float64)
        low, high = np.minimum(groups.min(-1), 0), np.maximum(groups.max(-1), 0)
        scales = ((high - low) / (2**bits - 1)).astype(np.float16)
        steps = np.where(scales > 0, scales, 1).astype(np.float64)  # a group of zeros has none
        zeros = np.clip(np.rint(-low / steps), 1, 2**bits - 1).astype(int)
        codes = np.clip(np.rint(groups / steps[..., None]) + zeros[..., None], 0, 2**bits - 1).astype(int)
        return cls(codes.reshape(weights.shape), scales, zeros, bits, group_size)

    @classmethod
    def below(cls, several):
        """Put matrices one below the other."""
        joined = (np.concatenate([getattr(one, name) for one in several]) for name in ("codes", "scales", "zeros"))
        return cls(*joined, several[0].bits, several[0].group_size)

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


def write_folder(folder, rng, settings, draw, parts, skipped=(), config=None, stored_as=None):
    """Write a checkpoint whose blocks' linears are quantized.

    Args:
        folder: to make.
        rng: draws everything.
        settings: the ``quantization_config``.
        draw: returns a ``Drawn`` of rows and columns.
        parts: returns its tensors by suffix.
        skipped: linears that stay float16, by the last part of their names.
        config: entries of ``config.json`` that differ.
        stored_as: what linears are stored as, one below the other where they have one name.

    Returns:
        What every tensor stands for, by its name: float64.
    """
    folder.mkdir()
    values = CONFIG | (config or {})
    (folder / "config.json").write_text(json.dumps(values | {"quantization_config": settings}))
    shutil.copy(GOLDEN / "llama1-mha" / "tokenizer.json", folder)
    tensors, weights, quantized = {}, {}, {}
    for name, shape in ModelConfig.from_huggingface(values).tensor_shapes().items():
        module = name.removesuffix(".weight")
        if "_proj" in name and len(shape) == 2 and not module.endswith(skipped or ("none",)):
            drawn = draw(*shape)
            weights[name] = drawn.weights()
            block, linear = re.match(r"(model\.layers\.\d+\.)(.*)", module).groups()
            quantized.setdefault(block + (stored_as or {}).get(linear, linear), []).append(drawn)
        else:
            values_of = rng.standard_normal(shape) * 0.1 + (len(shape) == 1)
            tensors[name] = values_of.astype(np.float16)
            weights[name] = tensors[name].astype(np.float64)
    for module, several in quantized.items():
        stored = parts(Drawn.below(several))
        tensors |= {f"{module}.{suffix}": np.ascontiguousarray(part) for suffix, part in stored.items()}
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


def awq_gemm_parts(drawn):
    """Return the tensors of a matrix by suffix, as AutoAWQ's version GEMM stores it."""
    return {
        "qweight": _words_of_outputs(drawn.codes.T),
        "qzeros": _words_of_outputs(drawn.zeros.T),
        "scales": np.ascontiguousarray(drawn.scales.T),
    }


def awq_gemv_parts(drawn):
    """Return the same as its version GEMV stores it: groups are filled up to whole words, and more where they are many.

    The rest of the scales is what it is not read as: infinite.
    """
    groups = drawn.zeros.shape[1]
    more = -groups % (8 * max(1, 128 // drawn.group_size))
    return {
        "qweight": np.ascontiguousarray(stream_of_bits(drawn.codes.T, 4).T),
        "qzeros": np.ascontiguousarray(stream_of_bits(np.pad(drawn.zeros, ((0, 0), (0, more))).T, 4).T),
        "scales": np.pad(drawn.scales, ((0, 0), (0, more))),
    }


def _words_of_outputs(codes):
    """Pack codes (n, outputs) into words of eight outputs, in AWQ's order from the lowest bits on."""
    in_order = codes.reshape(len(codes), -1, 8)[:, :, [0, 2, 4, 6, 1, 3, 5, 7]]
    words = (in_order.astype(np.uint64) << np.arange(0, 32, 4, dtype=np.uint64)).sum(axis=-1)
    return words.astype(np.uint32).view(np.int32)


def compressed_parts(drawn, symmetric=False, pads=False):
    """Return the same as compressed-tensors does; ``pads``: as it did, 3 bits in ten codes a word."""

    def pack(codes):
        if not pads:
            return stream_of_bits(codes, drawn.bits)
        in_word = 32 // drawn.bits
        padded = np.pad(codes, ((0, -len(codes) % in_word), (0, 0))).reshape(-1, in_word, codes.shape[1])
        words = (padded.astype(np.uint64) << (drawn.bits * np.arange(in_word, dtype=np.uint64))[:, None]).sum(axis=1)
        return words.astype(np.uint32).view(np.int32)

    parts = {
        "weight_packed": np.ascontiguousarray(pack(drawn.codes.T).T),
        "weight_scale": drawn.scales,
        "weight_shape": np.array(drawn.codes.shape, dtype=np.int64),
    }
    return parts if symmetric else parts | {"weight_zero_point": pack(drawn.zeros)}


def compressed_settings(symmetric=False, bits=4, group_size=64, **scheme):
    """Return the ``quantization_config`` of compressed-tensors, its one scheme with these entries."""
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": "group", "group_size": group_size}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": group | scheme},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
    }


def write_rounded(folder, checkpoint, settings, parts, bits=4, group_size=64):
    """Write a checkpoint with the linears of its blocks rounded: ``parts`` returns the tensors of each by suffix."""
    folder.mkdir()
    shutil.copy(checkpoint / "tokenizer.json", folder)
    config = json.loads((checkpoint / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    tensors = {}
    with open_source(checkpoint) as source:
        for name in source.names:
            weight, module = source.load(name), name.removesuffix(".weight")
            if "_proj" in name and weight.ndim == 2:
                stored = parts(Drawn.nearest(weight, bits, group_size))
                tensors |= {f"{module}.{suffix}": np.ascontiguousarray(part) for suffix, part in stored.items()}
            else:
                tensors[name] = weight.astype(np.float16)
    save_file(tensors, folder / "model.safetensors")
