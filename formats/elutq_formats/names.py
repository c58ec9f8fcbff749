"""Tensor names: Hugging Face's on the checkpoint side, llama.cpp's standard names in a model file."""

import re

from elutq_formats.errors import FormatError
from elutq_formats.expert_names import split_expert

_OUTER = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_INNER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "post_self_attn_layernorm": "post_attention_norm",
    "post_mlp_layernorm": "post_ffw_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.experts.gate_proj": "ffn_gate_exps",
    "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
}
_OUTER_BACK = {ours: theirs for theirs, ours in _OUTER.items()}
_INNER_BACK = {ours: theirs for theirs, ours in _INNER.items()}

_HF_NAME = re.compile(r"(?:model\.layers\.(0|[1-9][0-9]*)\.)?(.+)\.(weight|bias)")
_GGUF_NAME = re.compile(r"(?:blk\.(0|[1-9][0-9]*)\.)?(.+)\.(weight|bias)")

TOKEN_EMBEDDING = "token_embd.weight"

ROPE_FREQUENCIES = "rope_freqs.weight"
"""The divisors of the RoPE frequencies."""

ROPE_SHORT, ROPE_LONG = "rope_factors_short.weight", "rope_factors_long.weight"
"""The same where those of longer sequences are others."""

ROPE_TENSORS = ROPE_FREQUENCIES, ROPE_SHORT, ROPE_LONG
"""The tensors of a model file that no checkpoint has."""


def gguf_name(name: str) -> str:
    """Translate ``model.layers.3.self_attn.q_proj.weight`` to ``blk.3.attn_q.weight``.

    Raises:
        FormatError: the name is not one of a supported model's tensors.
    """
    match = _HF_NAME.fullmatch(name)
    if match:
        layer, stem, kind = match.groups()
        ours = _OUTER.get(stem) if layer is None else _INNER.get(stem)
        if ours is not None:
            return f"{ours}.{kind}" if layer is None else f"blk.{layer}.{ours}.{kind}"
    raise FormatError(f"tensor {name!r} has no name in a model file: it is not part of a supported model")


def called(name: str) -> str:
    """Return what messages call a tensor: its name in a model file; of an expert's own that of the stack, and which."""
    stack = split_expert(name)
    return gguf_name(name) if stack is None else f"{gguf_name(stack[0])}, expert {stack[1]}"


def huggingface_name(name: str) -> str:
    """Translate ``blk.3.attn_q.weight`` to ``model.layers.3.self_attn.q_proj.weight``.

    Raises:
        FormatError: the name is not one of a supported model's tensors.
    """
    match = _GGUF_NAME.fullmatch(name)
    if match:
        layer, stem, kind = match.groups()
        theirs = _OUTER_BACK.get(stem) if layer is None else _INNER_BACK.get(stem)
        if theirs is not None:
            return f"{theirs}.{kind}" if layer is None else f"model.layers.{layer}.{theirs}.{kind}"
    raise FormatError(f"tensor {name!r} is not part of a supported model")
