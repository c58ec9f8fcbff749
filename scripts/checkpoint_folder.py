"""Writes checkpoint folders in Hugging Face's form: weights some rows at a time, configuration, tokenizer."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from elutq_formats.config import ModelConfig
from elutq_formats.errors import ElutqError
from elutq_formats.sampling_defaults import OPTIONS
from elutq_formats.source import ModelSource

WEIGHTS_AT_ONCE = 1 << 22
CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}

OURS = (
    *("sliding_layers", "rope_layers", "rotary_dim", "local_rope_theta"),
    *("qk_norm", "qk_norm_spans_heads", "norm_before", "norm_after"),
    *("n_experts", "n_experts_used", "expert_intermediate_size", "shared_expert_intermediate_size"),
    *("normalize_expert_weights", "expert_layers"),
)
"""Fields of a configuration that no ``config.json`` has: they follow from the family."""

Rows = Callable[[str], Iterable[npt.NDArray[Any]]]


def write_safetensors(path: Path, dtype: str, shapes: Mapping[str, tuple[int, ...]], rows: Rows) -> None:
    """Write a safetensors file.

    Args:
        path: of the file.
        dtype: F16 or BF16, of all its tensors.
        shapes: of the tensors, by name.
        rows: yields a tensor's values, of 16 bits each, some at a time.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + 2 * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in shapes:
            for piece in rows(name):
                file.write(piece.data)


def save_checkpoint(source: ModelSource, folder: Path) -> None:
    """Write a model as a new folder: its weights rounded to float16, and what is said about it in files of their own.

    Raises:
        ElutqError: the source cannot be read, or has what float16 or ``config.json`` cannot hold.
    """
    folder.mkdir()
    shapes = {name: source.shape(name) for name in source.names}
    write_safetensors(folder / "model.safetensors", "F16", shapes, lambda name: _as_float16(source, name))
    sampling = {each.huggingface: source.sampling[each.name] for each in OPTIONS if each.name in source.sampling}
    special = {"tokenizer_class": "PreTrainedTokenizerFast", **(source.special_tokens or {})}
    files = {"config.json": to_huggingface(source.config), "tokenizer_config.json": special}
    for file, settings in (files | ({"generation_config.json": sampling} if sampling else {})).items():
        (folder / file).write_text(json.dumps(settings, indent=2, ensure_ascii=False), encoding="utf-8")
    (folder / "tokenizer.json").write_text(source.tokenizer_json, encoding="utf-8")
    if source.chat_template is not None:
        (folder / "chat_template.jinja").write_text(source.chat_template, encoding="utf-8", newline="")


def _as_float16(source: ModelSource, name: str) -> Iterator[npt.NDArray[np.float16]]:
    n_rows, *others = source.shape(name)
    step = max(1, WEIGHTS_AT_ONCE // math.prod(others))
    for first in range(0, n_rows, step):
        with np.errstate(over="ignore"):
            rounded = source.load(name, rows=slice(first, first + step)).astype("<f2")
        if not np.isfinite(rounded).all():
            raise ElutqError(f"{source.path}: {name} has weights that float16 does not hold")
        yield rounded


def to_huggingface(config: ModelConfig) -> dict[str, Any]:
    """Return the ``config.json`` of a configuration.

    Raises:
        ElutqError: none says the same.
    """
    if config.model_type not in CLASSES:
        raise ElutqError(f"of a {config.model_type} model no config.json is written here: {', '.join(CLASSES)} are")
    own = asdict(config)
    for name in (*OURS, "eos_token_ids", "attention_output_bias", "rope_theta", "rope_scaling"):
        del own[name]
    scaling = {"rope_type": "default"} if config.rope_scaling is None else config.rope_scaling.to_huggingface()
    found = {
        "architectures": [CLASSES[config.model_type]],
        **own,
        "attention_bias": config.attention_output_bias,
        "dtype": "float16",
        "eos_token_id": list(config.eos_token_ids),
        "hidden_act": "silu",
        "rope_parameters": {"rope_theta": config.rope_theta, **scaling},
    }
    if config.sliding_window is not None and config.model_type != "mistral":
        found |= {"use_sliding_window": True, "max_window_layers": 0}
    if ModelConfig.from_huggingface(found) != config:
        raise ElutqError(f"a {config.model_type} model of this kind has no config.json")
    return found
