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
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

N_TOKENS = 20
VOCAB_SIZE = 128
DEFAULT_FOLDER = Path(__file__).resolve().parent.parent / "tests" / "data" / "golden"


@dataclass(frozen=True)
class Variant:
    """One checkpoint: what its config.json says beyond `BASE` (None removes a key) and how its tensors are stored."""

    name: str
    config: dict[str, Any]
    dtype: torch.dtype = torch.bfloat16
    n_shards: int = 1
    generation_config: dict[str, Any] | None = None
    extra_tensors: dict[str, tuple[int, ...]] = field(default_factory=dict)


BASE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
}

LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,  # wavelengths of head_dim 16 fall below, inside and above the blended band
}

VARIANTS = (
    # Llama 1 as first published: no key for KV heads, RoPE or tying, fp16, and inv_freq buffers that must be ignored.
    Variant(
        "llama1-mha",
        {"num_key_value_heads": None, "rope_theta": None, "tie_word_embeddings": None, "rms_norm_eps": 1e-6},
        dtype=torch.float16,
        extra_tensors={f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": (4,) for layer in range(2)},
    ),
    # Llama 2 70B, TinyLlama: grouped-query attention; two shards with an index.
    Variant("llama2-gqa-sharded", {"hidden_size": 64, "max_position_embeddings": 256}, n_shards=2),
    # Llama 3.1: rope_scaling, several ends of sequence.
    Variant(
        "llama31-rope-scaling",
        {
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "rope_theta": 500000.0,
            "rope_scaling": LLAMA3_SCALING,
            "max_position_embeddings": 512,
            "eos_token_id": [1, 2],
        },
        generation_config={"bos_token_id": 0, "eos_token_id": [1, 3], "do_sample": True},
    ),
    # Llama 3.2: the same in the key of transformers 5, tied head, explicit head_dim that is not hidden / heads.
    Variant(
        "llama32-tied-head-dim",
        {
            "head_dim": 16,
            "tie_word_embeddings": True,
            "max_position_embeddings": 512,
            "rope_theta": None,
            "rope_parameters": {"rope_theta": 500000.0, **LLAMA3_SCALING},
        },
    ),
    # Linear RoPE scaling under the old key `type`; fp32 tensors.
    Variant(
        "llama-linear-rope",
        {"rope_scaling": {"type": "linear", "factor": 4.0}, "num_hidden_layers": 1},
        dtype=torch.float32,
    ),
    # Biases everywhere Llama can have them.
    Variant("llama-biases", {"attention_bias": True, "mlp_bias": True, "num_hidden_layers": 1}),
    # SmolLM's shape: tied, three heads to one KV head, sizes that no large group divides.
    Variant(
        "smollm-tied",
        {
            "hidden_size": 96,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "tie_word_embeddings": True,
        },
    ),
    # Mistral 7B v0.1: a sliding window shorter than the text.
    Variant("mistral-sliding-window", {"model_type": "mistral", "sliding_window": 7}),
    # Mistral Nemo: no window, query rows narrower than the hidden size.
    Variant(
        "mistral-nemo",
        {
            "model_type": "mistral",
            "sliding_window": None,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 8,
        },
    ),
    # Qwen2.5: q, k and v biases that no key announces, no BOS, a window that is switched off.
    Variant(
        "qwen2",
        {
            "model_type": "qwen2",
            "rope_theta": 1000000.0,
            "rms_norm_eps": 1e-6,
            "use_sliding_window": False,
            "sliding_window": 8,
            "max_window_layers": 1,
            "bos_token_id": None,
        },
    ),
    # Qwen3: norms of each query and key head, explicit head_dim, tied.
    Variant(
        "qwen3",
        {
            "model_type": "qwen3",
            "rope_theta": 1000000.0,
            "rms_norm_eps": 1e-6,
            "head_dim": 16,
            "attention_bias": False,
            "use_sliding_window": False,
            "sliding_window": None,
            "max_window_layers": 2,
            "tie_word_embeddings": True,
        },
    ),
    # Qwen3 with attention_bias: q, k, v and o biases.
    Variant(
        "qwen3-biases",
        {"model_type": "qwen3", "num_hidden_layers": 1, "head_dim": 8, "attention_bias": True},
    ),
    # Qwen2.5 with a window in its last layer alone.
    Variant(
        "qwen2-some-windows",
        {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    ),
    # Qwen3 with yarn, as its page says for long contexts: frequencies kept, blended and divided; an attention factor.
    Variant(
        "qwen3-yarn",
        {
            "model_type": "qwen3",
            "num_hidden_layers": 1,
            "head_dim": 16,
            "max_position_embeddings": 256,
            "rope_theta": None,
            "rope_parameters": {
                "rope_theta": 10000.0,
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 64,
                "beta_fast": 4.0,
            },
        },
    ),
    # Gemma 3: everything that it has, each number far from what would do nothing.
    Variant(
        "gemma3",
        {
            "model_type": "gemma3_text",
            "hidden_act": None,
            "hidden_activation": "gelu_pytorch_tanh",
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
            "rope_theta": None,
            "rope_parameters": {
                "full_attention": {"rope_theta": 1000000.0, "rope_type": "linear", "factor": 8.0},
                "sliding_attention": {"rope_theta": 100.0, "rope_type": "default"},
            },
            "sliding_window": 6,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "query_pre_attn_scalar": 40,
        },
    ),
    # Gemma 1: the same gate, embedding and norms, and one key.
    Variant(
        "gemma",
        {
            "model_type": "gemma",
            "hidden_act": "gelu_pytorch_tanh",
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "tie_word_embeddings": True,
            "pad_token_id": 0,
        },
    ),
    # Gemma 2: softcaps that both bite.
    Variant(
        "gemma2",
        {
            "model_type": "gemma2",
            "hidden_act": None,
            "hidden_activation": "gelu_pytorch_tanh",
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "tie_word_embeddings": True,
            "pad_token_id": 0,
            "sliding_window": 6,
            "query_pre_attn_scalar": 40,
            "attn_logit_softcapping": 1.5,
            "final_logit_softcapping": 3.0,
        },
    ),
    # OLMo 2: grouped queries, so that the two norms of heads are of two widths.
    Variant("olmo2", {"model_type": "olmo2", "num_hidden_layers": 2}),
    # OLMo 3: yarn in the layers without a window alone.
    Variant(
        "olmo3",
        {
            "model_type": "olmo3",
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 256,
            "rope_theta": None,
            "rope_parameters": {
                "full_attention": {
                    "rope_theta": 500000.0,
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 64,
                    "beta_fast": 4.0,
                },
                "sliding_attention": {"rope_theta": 500000.0, "rope_type": "default"},
            },
            "sliding_window": 6,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    # SmolLM3: the last layer without RoPE, and with a window.
    Variant(
        "smollm3",
        {
            "model_type": "smollm3",
            "pad_token_id": 0,
            "rope_theta": 2000000.0,
            "no_rope_layer_interval": 2,
            "use_sliding_window": True,
            "sliding_window": 6,
            "tie_word_embeddings": True,
            "attention_bias": True,
            "mlp_bias": True,
        },
    ),
    # Granite 3: four multipliers, on a tied head.
    Variant(
        "granite",
        {
            "model_type": "granite",
            "tie_word_embeddings": True,
            "embedding_multiplier": 12.0,
            "attention_multiplier": 0.2,
            "residual_multiplier": 0.22,
            "logits_scaling": 3.0,
            "attention_bias": True,
            "mlp_bias": True,
        },
    ),
    # Phi-3.5 and Phi-4-mini: fused tensors, half of each head turns, longrope beyond its original context.
    Variant(
        "phi3-long",
        {
            "model_type": "phi3",
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "pad_token_id": 0,
            "partial_rotary_factor": 0.5,
            "max_position_embeddings": 64,
            "original_max_position_embeddings": 16,
            "sliding_window": 7,
            "rope_scaling": {
                "type": "longrope",
                "short_factor": [1.0, 1.5, 2.0, 3.0],
                "long_factor": [1.5, 4.0, 6.0, 9.0],
            },
        },
    ),
    # The same within it; Phi-3-mini's head, whole.
    Variant(
        "phi3-short",
        {
            "model_type": "phi3",
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "pad_token_id": 0,
            "max_position_embeddings": 256,
            "original_max_position_embeddings": 64,
            "sliding_window": None,
            "rope_scaling": {
                "type": "longrope",
                "short_factor": [1.0, 1.5, 2.0, 3.0],
                "long_factor": [1.5, 4.0, 6.0, 9.0],
            },
        },
    ),
    # GLM-4-0414: four norms, neighbours turn in half of each head.
    Variant(
        "glm4",
        {
            "model_type": "glm4",
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "pad_token_id": 0,
            "attention_bias": True,
            "partial_rotary_factor": 0.5,
        },
    ),
    # EXAONE 4 32B: a window and RoPE in one layer, neither in the other.
    Variant(
        "exaone4",
        {
            "model_type": "exaone4",
            "pad_token_id": 0,
            "sliding_window": 6,
            "sliding_window_pattern": 2,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    # Ministral 8B: a window in its first layer alone.
    Variant(
        "ministral",
        {
            "model_type": "ministral",
            "head_dim": 8,
            "sliding_window": 6,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    # Ministral 3: yarn whose attention factor DeepSeek's numbers say, within the context where scores do not grow.
    Variant(
        "ministral3",
        {
            "model_type": "ministral3",
            "num_hidden_layers": 1,
            "head_dim": 16,
            "pad_token_id": 0,
            "max_position_embeddings": 256,
            "rope_theta": None,
            "rope_parameters": {
                "rope_theta": 10000.0,
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 64,
                "beta_fast": 4.0,
                "beta_slow": 1.0,
                "mscale": 1.0,
                "mscale_all_dim": 0.5,
                "llama_4_scaling_beta": 0.1,
            },
        },
    ),
    # Seed-OSS: biases of two kinds.
    Variant(
        "seed-oss",
        {
            "model_type": "seed_oss",
            "pad_token_id": 0,
            "num_hidden_layers": 1,
            "head_dim": 8,
            "attention_bias": True,
            "attention_out_bias": False,
            "mlp_bias": True,
        },
    ),
)

ARCHITECTURES = {
    "exaone4": "Exaone4ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "glm4": "Glm4ForCausalLM",
    "granite": "GraniteForCausalLM",
    "llama": "LlamaForCausalLM",
    "ministral": "MinistralForCausalLM",
    "ministral3": "Ministral3ForCausalLM",
    "mistral": "MistralForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "olmo3": "Olmo3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "seed_oss": "SeedOssForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
}


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
    shapes = {name: tuple(parameter.shape) for name, parameter in sorted(skeleton.named_parameters())}
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
