"""Make tests/data/quantized: tiny random checkpoints that other quantizers wrote, with the logits of what they mean.

usage: make_quantized_golden.py [FOLDER]        (default: tests/data/quantized beside this script's parent)

Needs torch, transformers, gptqmodel, autoawq, auto-round and compressed-tensors, which the package and its tests do
not; the committed files were made with torch 2.13.0 (CPU), transformers 5.24.0, gptqmodel 7.7.0, autoawq 0.2.9,
auto-round 0.16.1 and compressed-tensors 0.20.1. Each variant is one folder:

    config.json, tokenizer.json, model.safetensors    as the package writes such checkpoints
    expected.npz      tokens (8,) int64 and logits (8, vocab_size) float32

gptqmodel, autoawq and compressed-tensors pack matrices whose levels are chosen here, by the range of each group, with
their own code, and say what those stand for; auto-round quantizes and saves the model itself, and what its linears
compute says what they stand for. The logits are those of transformers in float32.
"""

from __future__ import annotations

import json
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from golden_variants import BASE
from make_golden import random_tensor, tokenizer_json, write_json
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

DEFAULT_FOLDER = Path(__file__).resolve().parent.parent / "tests" / "data" / "quantized"

CONFIG = BASE | {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "tie_word_embeddings": True,
    "torch_dtype": "float16",
}

N_TOKENS = 8

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Variant:
    """One checkpoint: its name, and the function that writes it and returns what it stands for, by name."""

    name: str
    write: Callable[[Path, Weights], Weights]


def linears(weights: Weights) -> Iterator[tuple[str, nn.Linear]]:
    """Yield the name of each linear of the blocks, and a module with its weight in float32."""
    for name, weight in weights.items():
        if "_proj" in name:
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            linear.weight.data = weight.float()
            yield name.removesuffix(".weight"), linear


def ranges(weight: torch.Tensor, bits: int, group_size: int, symmetric: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the scale, of float16, and the zero point of each group of a row, by its range: (rows, groups) each."""
    groups = weight.reshape(len(weight), -1, group_size)
    if symmetric:
        scales = 2 * groups.abs().amax(-1) / (2**bits - 1)
        return scales.half().float(), torch.full_like(scales, 2 ** (bits - 1))
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    scales = ((high - low) / (2**bits - 1)).half().float()
    return scales, (-low / scales).round().clamp(0, 2**bits - 1)


def gptqmodel(bits: int, group_size: int, symmetric: bool) -> Callable[[Path, Weights], Weights]:
    """Write with gptqmodel's linear, in version 1 of the format."""

    def write(folder: Path, weights: Weights) -> Weights:
        from gptqmodel.nn_modules.qlinear.torch import TorchLinear
        from gptqmodel.quantization import QuantizeConfig
        from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

        stored, meant = dict(weights), dict(weights)
        settings = QuantizeConfig(bits=bits, group_size=group_size, sym=symmetric, desc_act=False)
        for name, linear in linears(weights):
            rows, columns = linear.weight.shape
            packed = TorchLinear(bits, group_size, symmetric, False, columns, rows)
            scales, zeros = ranges(linear.weight.data, bits, group_size, symmetric)
            packed.pack(linear, scales, zeros, torch.arange(columns, dtype=torch.int32) // group_size)
            packed.eval()
            packed.post_init()
            meant[f"{name}.weight"] = packed.dequantize_weight().T.float()
            convert_gptq_v2_to_v1_format_module(packed, settings)
            parts = {part: getattr(packed, part).contiguous() for part in ("qweight", "qzeros", "scales", "g_idx")}
            add_parts(stored, name, parts)
        save(
            folder,
            stored,
            {
                "bits": bits,
                "group_size": group_size,
                "desc_act": False,
                "sym": symmetric,
                "lm_head": False,
                "quant_method": "gptq",
                "checkpoint_format": "gptq",
            },
        )
        return meant

    return write


def autoawq(folder: Path, weights: Weights) -> Weights:
    """Write with AutoAWQ's linear of the version GEMM."""
    from awq.modules.linear.gemm import WQLinear_GEMM
    from awq.utils.packing_utils import dequantize_gemm

    stored, meant = dict(weights), dict(weights)
    for name, linear in linears(weights):
        scales, zeros = (part.T.contiguous() for part in ranges(linear.weight.data, 4, 32, False))
        packed = WQLinear_GEMM.from_linear(linear, 4, 32, scales=scales, zeros=zeros)
        meant[f"{name}.weight"] = dequantize_gemm(packed.qweight, packed.qzeros, packed.scales.float(), 4, 32).T
        add_parts(stored, name, {part: getattr(packed, part) for part in ("qweight", "qzeros", "scales")})
    settings = {"bits": 4, "group_size": 32, "zero_point": True, "version": "gemm", "modules_to_not_convert": None}
    save(folder, stored, settings | {"quant_method": "awq"})
    return meant


def auto_round(folder: Path, weights: Weights) -> Weights:
    """Quantize and write with AutoRound, in its own format."""
    from auto_round import AutoRound

    with tempfile.TemporaryDirectory() as work:
        plain = Path(work) / "plain"
        plain.mkdir()
        save(plain, weights, None)
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(plain / "tokenizer.json"))
        rounding = AutoRound(str(plain), tokenizer, bits=2, group_size=32, sym=False, iters=0)
        rounding.quantize_and_save(f"{work}/made", format="auto_round")
        (made,) = Path(work).glob("made/**/model.safetensors")
        settings = json.loads((made.parent / "config.json").read_text())["quantization_config"]
        save(folder, load_file(made), settings)
    return read_by_transformers(folder, weights)


def compressed_tensors(bits: int, group_size: int | None, symmetric: bool) -> Callable[[Path, Weights], Weights]:
    """Compress with compressed-tensors, by group or by channel."""

    def write(folder: Path, weights: Weights) -> Weights:
        from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
        from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

        strategy = "channel" if group_size is None else "group"
        arguments = QuantizationArgs(num_bits=bits, symmetric=symmetric, strategy=strategy, group_size=group_size)
        scheme = QuantizationScheme(targets=["Linear"], weights=arguments)
        stored, meant = dict(weights), dict(weights)
        for name, linear in linears(weights):
            columns = linear.weight.shape[1]
            scales, zeros = ranges(linear.weight.data, bits, group_size or columns, symmetric)
            state = {
                "weight": linear.weight.data,
                "weight_scale": scales,
                "weight_zero_point": (zeros - 2 ** (bits - 1)).to(torch.int8),
            }
            parts = PackedQuantizationCompressor.compress(state, scheme)
            meant[f"{name}.weight"] = PackedQuantizationCompressor.decompress(dict(parts), scheme)["weight"]
            add_parts(stored, name, parts | {"weight_scale": scales.half()})
        settings = {
            "config_groups": {"group_0": scheme.model_dump()},
            "format": "pack-quantized",
            "ignore": ["lm_head"],
            "quant_method": "compressed-tensors",
            "quantization_status": "compressed",
        }
        save(folder, stored, settings)
        return meant

    return write


def add_parts(stored: Weights, name: str, parts: Weights) -> None:
    """Replace a weight by its parts, by suffix."""
    del stored[f"{name}.weight"]
    stored |= {f"{name}.{suffix}": part.contiguous() for suffix, part in parts.items()}


def save(folder: Path, tensors: Weights, settings: dict[str, Any] | None) -> None:
    """Write a checkpoint folder."""
    write_json(folder / "config.json", CONFIG | ({} if settings is None else {"quantization_config": settings}))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json()) + "\n", encoding="utf-8")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def read_by_transformers(folder: Path, weights: Weights) -> Weights:
    """Return what transformers' linears make of a checkpoint, whose weights were once these."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map="cpu")
    modules = {name: module for name, module in model.named_modules() if name.endswith("_proj")}
    inputs = {name: torch.eye(weights[f"{name}.weight"].shape[1]) for name in modules}
    with torch.no_grad():
        found = {f"{name}.weight": module(inputs[name]).T.float() for name, module in modules.items()}
    plain = load_file(folder / "model.safetensors")
    return {name: tensor for name, tensor in plain.items() if "_proj" not in name} | found


VARIANTS = (
    Variant("gptq-4bit", gptqmodel(4, 32, False)),
    Variant("gptq-3bit-symmetric", gptqmodel(3, 64, True)),
    Variant("awq-gemm", autoawq),
    Variant("auto-round-2bit", auto_round),
    Variant("compressed-tensors-4bit", compressed_tensors(4, 32, False)),
    Variant("compressed-tensors-3bit-channel", compressed_tensors(3, None, True)),
)


def make_variant(folder: Path, variant: Variant) -> None:
    """Write one variant's checkpoint, and the logits of what it stands for."""
    folder.mkdir(parents=True, exist_ok=True)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**CONFIG), dtype=torch.float32)
    rng = np.random.default_rng(zlib.crc32(variant.name.encode()))
    weights = {
        name: random_tensor(rng, name, tuple(parameter.shape), torch.float16)
        for name, parameter in sorted(model.named_parameters())
    }
    meant = variant.write(folder, weights)
    meant = {name: tensor.float() for name, tensor in meant.items()}
    model.load_state_dict(meant | {"lm_head.weight": meant["model.embed_tokens.weight"]})
    tokens = rng.integers(0, CONFIG["vocab_size"], N_TOKENS)
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(tokens)[None]).logits[0].numpy()
    np.savez(folder / "expected.npz", tokens=tokens, logits=logits)
    print(f"{variant.name:32s} logits rms {np.sqrt(np.mean(logits**2)):6.3f}")


def main() -> None:
    """Write every variant under the folder named on the command line."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_FOLDER
    torch.set_num_threads(1)
    for variant in VARIANTS:
        make_variant(folder / variant.name, variant)


if __name__ == "__main__":
    main()
