"""Make tests/data/golden: tiny random checkpoints of every supported family with the logits of transformers.

usage: make_golden.py [FOLDER [NAME ...]]        (default: tests/data/golden beside this script's parent, all variants)

Needs torch and transformers, which the package and its tests do not; the committed files were made with
torch 2.13.0 (CPU) and transformers 5.23.0. Each variant is one folder:

    config.json, generation_config.json (some), tokenizer.json    as such checkpoints are published
    model.safetensors, or two shards with model.safetensors.index.json
    expected.npz      tokens (20,) int64 and logits (20, vocab_size) float32, computed in float32 with eager attention

Weights come from numpy's PCG64 seeded with the variant's name and are rounded to the stored type; transformers then
loads the folder itself, so what it computes is what the files say. Two runs on one machine give identical bytes;
another CPU or version of torch may change the last bits of the logits. Weights are larger than a trained model's and
norms are far from one, so that attention is peaked and every bias, norm and rotation shows in the logits.
"""

from __future__ import annotations

import json
import string
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from golden_variants import BASE, VARIANTS, Variant
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

N_TOKENS = 20
DEFAULT_FOLDER = Path(__file__).resolve().parent.parent / "tests" / "data" / "golden"

ARCHITECTURES = {
    "exaone4": "Exaone4ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "glm4": "Glm4ForCausalLM",
    "granite": "GraniteForCausalLM",
    "granitemoehybrid": "GraniteMoeHybridForCausalLM",
    "llama": "LlamaForCausalLM",
    "ministral": "MinistralForCausalLM",
    "ministral3": "Ministral3ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "mistral": "MistralForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "olmo3": "Olmo3ForCausalLM",
    "olmoe": "OlmoeForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "seed_oss": "SeedOssForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
}
"""What transformers calls the model of each ``model_type``."""


def tokenizer_json() -> dict[str, Any]:
    """A tokenizer of single characters: BPE without merges over printable ASCII and the newline."""
    special = ["<s>", "</s>", "<|eot|>", "<|eom|>", "<unk>"]
    characters = [*string.ascii_letters, *string.digits, *string.punctuation, " ", "\n"]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": index,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for index, token in enumerate(special)
        ],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: index for index, token in enumerate([*special, *characters])},
            "merges": [],
        },
    }


def random_tensor(rng: np.random.Generator, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Draw one parameter at a scale that makes it matter, rounded to the type it is stored in."""
    values = rng.standard_normal(shape)
    if name.endswith("norm.weight"):
        values = 1.0 + 0.3 * values
    elif name.endswith("bias") or "embed_tokens" in name or "lm_head" in name:
        values = 0.3 * values
    elif "q_proj" in name or "k_proj" in name:
        values = 1.5 * values / np.sqrt(shape[-1])
    else:
        values = values / np.sqrt(shape[-1])
    return torch.from_numpy(values).to(dtype)


def published_shapes(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """Return what a published checkpoint stores: each expert by itself, which transformers has in one parameter."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        with safe_open(Path(folder) / "model.safetensors", "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in sorted(file.keys())}


def write_tensors(folder: Path, tensors: dict[str, torch.Tensor], n_shards: int) -> None:
    """Write one safetensors file, or shards of neighbouring tensors and their index."""
    if n_shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(tensors)
    per_shard = -(-len(names) // n_shards)
    weight_map = {}
    for shard in range(n_shards):
        file_name = f"model-{shard + 1:05d}-of-{n_shards:05d}.safetensors"
        chosen = names[shard * per_shard : (shard + 1) * per_shard]
        save_file({name: tensors[name] for name in chosen}, folder / file_name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(chosen, file_name))
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write indented JSON that ends in a newline."""
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def make_variant(folder: Path, variant: Variant) -> None:
    """Write one variant's checkpoint, let transformers load it, and store its logits."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**BASE, **variant.config}
    config["architectures"] = [ARCHITECTURES[config["model_type"]]]
    # A window of null is a statement (Mistral Nemo, Qwen3); any other None removes the key.
    config = {key: value for key, value in config.items() if value is not None or key == "sliding_window"}
    write_json(folder / "config.json", config)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json()) + "\n", encoding="utf-8")
    if variant.generation_config is not None:
        write_json(folder / "generation_config.json", variant.generation_config)

    rng = np.random.default_rng(zlib.crc32(variant.name.encode()))
    skeleton = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    shapes = published_shapes(skeleton)
    shapes.update(variant.extra_tensors)
    tensors = {name: random_tensor(rng, name, shape, variant.dtype) for name, shape in shapes.items()}
    write_tensors(folder, tensors, variant.n_shards)

    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    if report["missing_keys"] or report["mismatched_keys"]:
        raise RuntimeError(f"{variant.name}: transformers did not take the checkpoint: {report}")
    tokens = rng.integers(0, config["vocab_size"], N_TOKENS)
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(tokens)[None]).logits[0].numpy()
    np.savez(folder / "expected.npz", tokens=tokens, logits=logits)
    print(f"{variant.name:24s} logits rms {np.sqrt(np.mean(logits**2)):6.3f}")


def main() -> None:
    """Write every variant under the folder named on the command line."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_FOLDER
    torch.set_num_threads(1)
    for variant in VARIANTS:
        if len(sys.argv) < 3 or variant.name in sys.argv[2:]:
            make_variant(folder / variant.name, variant)


if __name__ == "__main__":
    main()
