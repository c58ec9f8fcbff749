"""GGUF files as llama.cpp's converter writes them, made of checkpoints with gguf-py: sources of weights."""

import json
from dataclasses import dataclass

import gguf
import numpy as np
from conftest import GOLDEN
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter

from elutq_formats.checkpoint import Checkpoint

CONVERTED = tuple(
    path.name
    for path in sorted(GOLDEN.iterdir())
    if json.loads((path / "config.json").read_text())["model_type"] in ("llama", "mistral", "qwen2", "qwen3")
    and path.name not in ("qwen2-some-windows", "qwen3-yarn")
)
"""The golden folders of which a GGUF file can be made here."""

INNER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


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
            name: (gguf.quantize(array, kind), kind) if array.ndim == 2 and array.shape[1] % block == 0 else array
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
    with Checkpoint.open(folder) as checkpoint:
        found = {name: checkpoint.load(name) for name in checkpoint.names}
    architecture = {"mistral": "llama"}.get(config["model_type"], config["model_type"])
    heads, kv_heads = config["num_attention_heads"], config.get("num_key_value_heads", config["num_attention_heads"])
    tensors = {}
    for name, array in found.items():
        if architecture == "llama" and ".q_proj." in name:
            array = permute(array, heads)
        if architecture == "llama" and ".k_proj." in name:
            array = permute(array, kv_heads)
        tensors[converted_name(name)] = encode(array, kind)
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    head_dim = config.get("head_dim", config["hidden_size"] // heads)
    theta = config.get("rope_theta", rope.get("rope_theta", 10000.0))
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
    if "head_dim" in config:
        values |= {"attention.key_length": head_dim, "attention.value_length": head_dim}
    if config["model_type"] == "mistral" and config["sliding_window"]:
        values["attention.sliding_window"] = config["sliding_window"]
    if rope.get("type") == "linear":
        values |= {"rope.scaling.type": "linear", "rope.scaling.factor": rope["factor"]}
    metadata = {"general.architecture": architecture, "general.name": folder.name, "general.license": "apache-2.0"}
    metadata |= {f"{architecture}.{key}": value for key, value in values.items()}
    return ForeignGGUF(metadata | vocabulary(folder, config), tensors)


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


def converted_name(name):
    stem, kind = name.rsplit(".", 1)
    if stem in OUTER:
        return f"{OUTER[stem]}.{kind}"
    _, _, layer, inner = stem.split(".", 3)
    return f"blk.{layer}.{INNER[inner]}.{kind}"


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
