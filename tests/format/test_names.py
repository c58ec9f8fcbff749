"""Tensor names, both ways."""

import pytest
from gguf import MODEL_ARCH, get_tensor_name_map

from elutq_formats.errors import FormatError
from elutq_formats.names import gguf_name, huggingface_name

PARTS = ["q_proj", "k_proj", "v_proj", "o_proj"]
NAMES = [
    "model.embed_tokens.weight",
    "model.norm.weight",
    "lm_head.weight",
    *(f"model.layers.31.self_attn.{part}.{kind}" for part in PARTS for kind in ("weight", "bias")),
    *(f"model.layers.0.mlp.{part}_proj.{kind}" for part in ("gate", "up", "down") for kind in ("weight", "bias")),
    *(f"model.layers.7.self_attn.{part}_norm.weight" for part in "qk"),
    *(f"model.layers.7.{part}_layernorm.weight" for part in ("input", "post_attention")),
]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_those_of_llama_cpp_and_come_back(name):
    llama_cpp = get_tensor_name_map(MODEL_ARCH.QWEN3, 32)
    assert gguf_name(name) == llama_cpp.get_name(name, (".weight", ".bias"))
    assert huggingface_name(gguf_name(name)) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.layers.01.self_attn.q_proj.weight",
        "model.layers.x.self_attn.q_proj.weight",
        "model.layers.0.lm_head.weight",
        "self_attn.q_proj.weight",
        "transformer.h.0.attn.c_attn.weight",
        "blk.0.attn_q.weight",
    ],
)
def test_unknown_names_are_refused(name):
    with pytest.raises(FormatError, match="not part of a supported model"):
        gguf_name(name)


@pytest.mark.parametrize("name", ["rope_freqs.weight", "blk.0.ssm_in.weight", "blk.0.output.weight", "attn_q.weight"])
def test_names_of_a_file_without_counterpart_are_refused(name):
    with pytest.raises(FormatError, match="not part of a supported model"):
        huggingface_name(name)
