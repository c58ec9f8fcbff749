"""GGUF files as llama.cpp's converter writes them, made of checkpoints with gguf-py: sources of weights."""

import json
from dataclasses import dataclass

import gguf
import numpy as np
from conftest import GOLDEN
from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFValueType, GGUFWriter, get_tensor_name_map

from elutq_formats.names import gguf_name
from elutq_formats.stored_weights import open_weights

ARCHITECTURE_NUMBERS = {name: number for number, name in MODEL_ARCH_NAMES.items()}

ARCHITECTURES = {
    "mistral": "llama",
    "ministral": None,
    "ministral3": "mistral3",
    "gemma3_text": "gemma3",
    "olmo3": "olmo2",
    "mixtral": "llama",
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
    "granitemoehybrid": "granite",
}
"""Llama.cpp's name of a family, where it is another; None: such files are not read."""

MIXTURES = {
    "mixtral": ("num_local_experts", None),
    "olmoe": ("num_experts", None),
    "qwen2_moe": ("num_experts", "moe_intermediate_size"),
    "qwen3_moe": ("num_experts", "moe_intermediate_size"),
}
"""What a config.json calls the number of experts and the width of one, where the file has a key for that."""

ROUTER = ".ffn_gate_inp"
"""The converter keeps it in F32."""

PERMUTED = ("llama", "mistral3", "smollm3", "granite")
"""Architectures whose queries and keys the converter permutes."""


def architecture_of(folder):
    model_type = json.loads((folder / "config.json").read_text())["model_type"]
    return ARCHITECTURES.get(model_type, model_type)


CONVERTED = tuple(
    path.name
    for path in sorted(GOLDEN.iterdir())
    if architecture_of(path) is not None and path.name not in ("qwen2-some-windows", "qwen2-moe", "smollm3")
)
"""The golden folders that a GGUF file can say all of; not which layers slide in the others."""


@dataclass
class ForeignGGUF:
    """What a file is to hold.

    Attributes:
        metadata: values by key; a pair is a value and its type.
        tensors: arrays by name, as gguf-py takes them; a pair is bytes (rows, row_bytes) and the type that they are of.
    """

    metadata: dict
    tensors: dict

    def quantized(self, kind):
        """The same with its matrices quantized, where the columns fit."""
        block = gguf.GGML_QUANT_SIZES[kind][0]
        tensors = {
            name: (gguf.quantize(array, kind), kind)
            if array.ndim > 1 and array.shape[-1] % block == 0 and ROUTER not in name
            else array
            for name, array in self.tensors.items()
        }
        return ForeignGGUF(self.metadata, tensors)

    def write(self, path):
        """Write one file."""
        write_part(path, self.metadata, self.tensors)
        return path

    def write_parts(self, folder, name, n_parts):
        """Write a split file; the first part has the metadata, all of them tensors. Returns the parts."""
        names, paths = list(self.tensors), []
        for part in range(n_parts):
            split = {
                "split.no": (part, GGUFValueType.UINT16),
                "split.count": (n_parts, GGUFValueType.UINT16),
                "split.tensors.count": (len(names), GGUFValueType.INT32),
            }
            metadata = split if part else self.metadata | split
            paths.append(folder / f"{name}-{part + 1:05}-of-{n_parts:05}.gguf")
            write_part(paths[-1], metadata, {each: self.tensors[each] for each in names[part::n_parts]})
        return paths


def write_part(path, metadata, tensors):
    writer = GGUFWriter(path, metadata.get("general.architecture", "llama"))
    for key, value in metadata.items():
        if key == "general.architecture":
            continue
        if isinstance(value, tuple):
            writer.add_key_value(key, *value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    for name, tensor in tensors.items():
        array, kind = tensor if isinstance(tensor, tuple) else (tensor, None)
        writer.add_tensor(name, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def describe(folder, kind=GGMLQuantizationType.F32):
    """What llama.cpp's converter makes of a checkpoint folder, its matrices in F32, F16 or BF16."""
    config = json.loads((folder / "config.json").read_text())
    architecture = architecture_of(folder)
    heads, kv_heads = config["num_attention_heads"], config.get("num_key_value_heads", config["num_attention_heads"])
    names = get_tensor_name_map(ARCHITECTURE_NUMBERS[architecture], config["num_hidden_layers"])
    tensors = {}
    for name, array in stacked(folder).items():
        if name.endswith("rotary_emb.inv_freq"):
            continue
        if architecture in PERMUTED and ".q_proj." in name:
            array = permute(array, heads)
        if architecture in PERMUTED and ".k_proj." in name:
            array = permute(array, kv_heads)
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            array = array + 1
        stored = names.get_name(name, try_suffixes=(".weight", ".bias")) or gguf_name(name)
        tensors[stored] = encode(array, GGMLQuantizationType.F32 if ROUTER in stored else kind)
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    head_dim = config.get("head_dim", config["hidden_size"] // heads)
    theta = config.get("rope_theta", rope.get("full_attention", rope).get("rope_theta", 10000.0))
    if rope.get("rope_type") == "llama3":
        tensors["rope_freqs.weight"] = llama3_divisors(rope, head_dim, theta)
    values = {
        "vocab_size": config["vocab_size"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.freq_base": float(theta),
        "rope.dimension_count": head_dim,
    }
    tensors |= long_divisors(config)
    values |= own_keys(config, architecture, head_dim, rope)
    if "head_dim" in config:
        values |= {"attention.key_length": head_dim, "attention.value_length": head_dim}
    if config["model_type"] in ("mistral", "mixtral") and config["sliding_window"]:
        values["attention.sliding_window"] = config["sliding_window"]
    metadata = {"general.architecture": architecture, "general.name": folder.name, "general.license": "apache-2.0"}
    metadata |= {f"{architecture}.{key}": value for key, value in values.items()}
    return ForeignGGUF(metadata | vocabulary(folder, config), tensors)


def stacked(folder):
    """A checkpoint's tensors, those of experts as the converter stacks them, the shared expert's gate a vector.

    Source: convert_hf_to_gguf.py, Qwen2MoeModel.modify_tensors and LlamaModel's.
    """
    found = {}
    for name, tensor in sorted(open_weights(folder).items()):
        array = tensor.load()
        if "shared_mlp.input_linear" in name:  # gate and up
            for part, rows in zip(("gate", "up"), np.split(array, 2), strict=True):
                found[name.replace("shared_mlp.input_linear", f"mlp.{part}_proj")] = rows
            continue
        name = name.replace("shared_mlp.output_linear", "mlp.down_proj")
        module, _, rest = name.partition(".experts.")
        if name.endswith("shared_expert_gate.weight"):
            array = array[0]
        if not rest:
            found[name] = array
            continue
        if module.endswith(".block_sparse_moe"):
            module = module.removeprefix("model.").replace("block_sparse_moe", "feed_forward")
        stack = f"{module}.experts.{rest.partition('.')[2]}"
        found[stack] = np.concatenate((found.get(stack, array[None][:0]), array[None]))
    return found


def vocabulary(folder, config):
    """A checkpoint's tokens; those of the golden ones as byte-level BPE's, with a merge, filled up."""
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    tokens, merges = sorted(model["vocab"], key=model["vocab"].get), model["merges"]
    if not merges:
        tokens, merges = [*tokens, "ab"], [("a", "b")]
    types = [3 if len(token) > 1 and token.startswith("<") and token.endswith(">") else 1 for token in tokens]
    n_unused = config["vocab_size"] - len(tokens)
    generation = folder / "generation_config.json"
    places = [config, *([json.loads(generation.read_text())] if generation.exists() else [])]
    ends = [end for place in places for end in np.atleast_1d(place.get("eos_token_id", [])).tolist()]
    named = zip(("eos_token_id", "eot_token_id", "eom_token_id"), dict.fromkeys(ends), strict=False)
    found = {
        "model": "gpt2",
        "pre": "llama-bpe",
        "tokens": tokens + [f"[PAD{len(tokens) + at}]" for at in range(n_unused)],
        "token_type": types + [5] * n_unused,
        "merges": [" ".join(merge) for merge in merges],
        **dict(named),
    }
    if "bos_token_id" in config:
        found["bos_token_id"] = config["bos_token_id"]
    return {f"tokenizer.ggml.{key}": value for key, value in found.items()}


def own_keys(config, architecture, head_dim, rope):
    """The keys that one family or another has, and yarn's.

    Source: convert_hf_to_gguf.py, the set_gguf_parameters of each; which layers slide only for some architectures.
    """
    found = {}
    if architecture != "llama" and config.get("sliding_window") and config.get("use_sliding_window", True):
        found["attention.sliding_window"] = config["sliding_window"]
    if config["model_type"] in ("gemma3_text", "olmo3", "exaone4"):
        found["attention.sliding_window_pattern"] = [kind == "sliding_attention" for kind in config["layer_types"]]
    if "query_pre_attn_scalar" in config:
        found["attention.scale"] = config["query_pre_attn_scalar"] ** -0.5
    if architecture == "gemma2":
        found |= {name: config[name] for name in ("attn_logit_softcapping", "final_logit_softcapping")}
        found["attention.sliding_window_pattern"] = [True, False]
    if architecture == "gemma3":
        found["rope.freq_base_swa"] = float(rope["sliding_attention"]["rope_theta"])
    if architecture == "granite":
        found |= {
            "embedding_scale": config["embedding_multiplier"],
            "attention.scale": config["attention_multiplier"],
            "residual_scale": config["residual_multiplier"],
            "logit_scale": config["logits_scaling"],
        }
    if config["model_type"] == "granitemoehybrid":
        found |= {f"ssm.{name}": 4 for name in ("conv_kernel", "state_size", "group_count", "inner_size")}
        found |= {"ssm.time_step_rank": 8, "attention.head_count_kv": 2 * [config["num_key_value_heads"]]}
        found["expert_shared_feed_forward_length"] = config["shared_intermediate_size"]
    if config["model_type"] in MIXTURES:
        experts, width = MIXTURES[config["model_type"]]
        found |= {"expert_count": config[experts], "expert_used_count": config["num_experts_per_tok"]}
        found |= {} if width is None else {"expert_feed_forward_length": config[width]}
        if "shared_expert_intermediate_size" in config:
            found["expert_shared_feed_forward_length"] = config["shared_expert_intermediate_size"]
    if "partial_rotary_factor" in config:
        found["rope.dimension_count"] = int(head_dim * config["partial_rotary_factor"])
    full = rope.get("full_attention", rope)
    if full.get("rope_type", full.get("type")) in ("yarn", "linear"):
        found |= {"rope.scaling.type": full.get("rope_type", "linear")}
        found["rope.scaling.factor"] = full["factor"]
    if full.get("rope_type") == "yarn":
        found["rope.scaling.original_context_length"] = full["original_max_position_embeddings"]
        found["rope.scaling.yarn_beta_fast"] = full["beta_fast"]
    if config["model_type"] == "ministral3":
        found["rope.scaling.yarn_log_multiplier"] = full["mscale_all_dim"]
        found["attention.temperature_scale"] = full["llama_4_scaling_beta"]
    if full.get("type") == "longrope":
        context = config["original_max_position_embeddings"]
        found["rope.scaling.original_context_length"] = context
        found["rope.scaling.attn_factor"] = np.sqrt(
            1 + np.log(config["max_position_embeddings"] / context) / np.log(context)
        ).item()
    return found


def long_divisors(config):
    rope = config.get("rope_scaling") or {}
    kinds = ("short", "long") if "long_factor" in rope else ()
    return {f"rope_factors_{kind}.weight": np.array(rope[f"{kind}_factor"], np.float32) for kind in kinds}


def permute(array, n_heads):
    """Source: convert_hf_to_gguf.py, LlamaModel.permute."""
    rows = array.shape[0]
    halves = array.reshape(n_heads, 2, rows // n_heads // 2, *array.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(array.shape))


def encode(array, kind):
    """Vectors stay F32."""
    if array.ndim == 1 or kind == GGMLQuantizationType.F32:
        return array
    if kind == GGMLQuantizationType.F16:
        return array.astype(np.float16)
    return gguf.quantize(array, kind), kind


def llama3_divisors(rope, head_dim, theta):
    """Source: convert_hf_to_gguf.py, LlamaModel.generate_extra_tensors."""
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    context, factors = rope["original_max_position_embeddings"], []
    for frequency in 1.0 / theta ** (np.arange(0, head_dim, 2) / head_dim):
        wavelength = 2 * np.pi / frequency
        if wavelength < context / high:
            factors.append(1.0)
        elif wavelength > context / low:
            factors.append(rope["factor"])
        else:
            smooth = (context / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, dtype=np.float32)
