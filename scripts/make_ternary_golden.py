"""Make tests/data/ternary: tiny checkpoints of ternary and binary weights with the logits of transformers.

usage: make_ternary_golden.py [FOLDER]        (default: tests/data/ternary beside this script's parent)

Needs torch, transformers and accelerate; the committed files were made with torch 2.13.0 (CPU) and transformers 5.24.0.
Each is one folder as make_golden.py's, whose draws and files these are, of a kind that Hugging Face's hub has:

    bitnet, bitnet-auto    packed by transformers' own pack_weights; the scale is a divisor, or a factor
    bitnet-online          floats that transformers rounds in each forward pass
    ternary, binary        a model trained so, stored as floats: a scale for 64 columns of a row

`logits` in expected.npz are those of the dequantized weights in float32, `as_published` what transformers makes of the
folder itself. With BitNet that rounds inputs to 8 bits too; the script checks that the two are near all the same.
"""

from __future__ import annotations

import os

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # what is compiled there takes a compiler, and gives the same

import json
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from golden_variants import BASE
from make_golden import N_TOKENS, random_tensor, tokenizer_json, write_json
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM
from transformers.integrations.bitnet import WeightQuant, pack_weights, unpack_weights

DEFAULT_FOLDER = Path(__file__).resolve().parent.parent / "tests" / "data" / "ternary"
GROUP_SIZE = 64
NEAR = 0.05

CONFIG = {**BASE, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "tie_word_embeddings": True}
SETTINGS: dict[str, dict[str, Any]] = {
    "bitnet": {"quant_method": "bitnet", "modules_to_not_convert": None},
    "bitnet-auto": {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"},
    "bitnet-online": {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"},
}

Tensors = dict[str, torch.Tensor]


def ternary(rng: np.random.Generator, shape: torch.Size) -> torch.Tensor:
    """Draw -1, 0 and 1."""
    return torch.from_numpy(rng.integers(-1, 2, tuple(shape)).astype(np.float32))


def store_packed(rng: np.random.Generator, weight: torch.Tensor, divides: bool) -> tuple[Tensors, torch.Tensor]:
    """Return the tensors that BitNet stores of a matrix, by suffix, and what they stand for."""
    codes, mean = ternary(rng, weight.shape), weight.float().abs().mean()
    packed = pack_weights(codes.clone())
    scale = (1 / mean if divides else mean).to(torch.bfloat16).reshape(1)
    unpacked = unpack_weights(packed, torch.float32)
    assert torch.equal(unpacked, codes)
    stands_for = unpacked / scale.float() if divides else unpacked * scale.float()
    return {"weight": packed, "weight_scale": scale}, stands_for


def store_levels(rng: np.random.Generator, weight: torch.Tensor, binary: bool) -> tuple[Tensors, torch.Tensor]:
    """Return a matrix on levels of its own in each group of a row, and the same again."""
    codes = ternary(rng, weight.shape)
    if binary:
        codes = torch.where(codes > 0, 1.0, -1.0)
    grouped = weight.float().reshape(weight.shape[0], -1, GROUP_SIZE)
    stored = (codes.reshape(grouped.shape) * grouped.abs().mean(dim=-1, keepdim=True)).reshape(weight.shape)
    stored = stored.to(torch.float16 if binary else torch.bfloat16)
    return {"weight": stored}, stored.float()


def store(name: str, rng: np.random.Generator, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """Return the tensors that a folder stores of a matrix, by suffix, and what they stand for in float32."""
    if name == "bitnet-online":
        return {"weight": weight}, WeightQuant.apply(weight.float())
    if name in SETTINGS:
        return store_packed(rng, weight, divides=name == "bitnet")
    return store_levels(rng, weight, binary=name == "binary")


def logits_of(model: LlamaForCausalLM, tokens: np.ndarray) -> np.ndarray:
    """Run a model in float32, to which from_pretrained does not take all that is quantized."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.float()
    with torch.no_grad():
        return model.eval()(torch.from_numpy(tokens)[None]).logits[0].numpy()


def make(folder: Path, name: str) -> None:
    """Write one checkpoint, and the logits of what it stands for and of what transformers makes of it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json()) + "\n", encoding="utf-8")
    write_json(folder / "config.json", CONFIG)
    plain = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    if name in SETTINGS:
        write_json(folder / "config.json", CONFIG | {"quantization_config": SETTINGS[name]})
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    stored, stand_for = {}, {}
    for key, parameter in sorted(plain.named_parameters()):
        drawn = random_tensor(rng, key, tuple(parameter.shape), torch.bfloat16)
        if "_proj" in key:
            parts, stand_for[key] = store(name, rng, drawn)
            stored |= {key.removesuffix("weight") + suffix: part for suffix, part in parts.items()}
        else:
            stored[key], stand_for[key] = drawn, drawn.float()
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    plain.load_state_dict(stand_for, strict=False)
    tokens = rng.integers(0, CONFIG["vocab_size"], N_TOKENS)
    published = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    logits, as_published = logits_of(plain, tokens), logits_of(published, tokens)
    np.savez(folder / "expected.npz", tokens=tokens, logits=logits, as_published=as_published)
    apart = np.sqrt(np.mean((logits - as_published) ** 2) / np.mean(logits**2))
    print(f"{name:16s} logits rms {np.sqrt(np.mean(logits**2)):6.3f}, as published {apart:.4f} apart")
    assert apart < NEAR


def main() -> None:
    """Write all of them under the folder named on the command line."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_FOLDER
    torch.set_num_threads(1)
    for name in (*SETTINGS, "ternary", "binary"):
        make(folder / name, name)


if __name__ == "__main__":
    main()
