"""What a model file can lie about its experts, one thing at a time, and what each of the two readers says of it.

The file has five experts of two layers, of which a token uses two, and one that is shared: `make_models.expert_config`.
"""

from gguf_container import UINT32
from lies import dims_of, patched, type_of

ROUTER, STACK, GATE = "blk.1.ffn_gate_inp.weight", "blk.0.ffn_up_exps.weight", "blk.1.ffn_gate_inp_shexp.weight"
BLOCK, BLOCKS = 448, 8
"""Bytes of one of the stack's blocks, and how many an expert has: 64 rows and 128 columns, 2 bits in groups of 32."""


def integer(key, value):
    return lambda container: container.set(f"qwen2moe.{key}", "<I", value)


def without_key(key):
    return lambda container: container.entries.remove(container.entry(f"qwen2moe.{key}"))


def without_tensor(name):
    return lambda container: container.tensors.remove(container.tensor(name))


def renamed(name, new):
    return lambda container: container.tensor(name).__setitem__(0, new.encode())


def only_how_many_are_used(container):
    for key in (
        "expert_count",
        "expert_feed_forward_length",
        "expert_shared_feed_forward_length",
        "expert_weights_norm",
    ):
        without_key(key)(container)


def without_routers(container):
    for layer in (0, 1):
        without_tensor(f"blk.{layer}.ffn_gate_inp.weight")(container)


# What is changed; what the C runtime then says; what the Python reader does.
LYING_EXPERTS = {
    "no experts": (
        integer("expert_count", 0),
        "expert_count is out of range",
        "expert_count is 0, not an integer from 1",
    ),
    "too many experts": (
        integer("expert_count", 1025),
        "expert_count is out of range",
        "n_experts 1025 is more than 1024",
    ),
    "none is used": (
        integer("expert_used_count", 0),
        "expert_used_count is out of range",
        "expert_used_count is 0, not an integer from 1",
    ),
    "more are used than there are": (
        integer("expert_used_count", 6),
        "expert_used_count is more than expert_count",
        "of 5 experts 6 are used",
    ),
    "2^32 - 1 are used": (
        integer("expert_used_count", 2**32 - 1),
        "expert_used_count is out of range",
        "expert_used_count is 4294967295, not an integer",
    ),
    "no width": (
        integer("expert_feed_forward_length", 0),
        "expert_feed_forward_length is out of range",
        "expert_feed_forward_length is 0, not an integer from 1",
    ),
    "too wide": (
        integer("expert_feed_forward_length", 2**22 + 32),
        "expert_feed_forward_length is out of range",
        "expert_intermediate_size 4194336 is more than",
    ),
    "another width": (
        integer("expert_feed_forward_length", 96),
        "ffn_gate_exps.weight does not have the shape",
        r"ffn_gate_exps.weight has shape \[5, 64, 128\]",
    ),
    "no shared width": (
        integer("expert_shared_feed_forward_length", 0),
        "expert_shared_feed_forward_length is out of range",
        "expert_shared_feed_forward_length is 0, not an",
    ),
    "another shared width": (
        integer("expert_shared_feed_forward_length", 64),
        "ffn_gate_shexp.weight does not have the shape",
        r"ffn_gate_shexp.weight has shape \[96, 128\]",
    ),
    "a shared expert that nobody speaks of": (
        without_key("expert_shared_feed_forward_length"),
        r"tensor blk.0.ffn_\S+shexp.weight is not part of the model",
        r"tensor blk.0.ffn_\S+shexp.weight is not part of the model",
    ),
    "how many are used is not said": (
        without_key("expert_used_count"),
        "expert_used_count is missing",
        "it has no qwen2moe.expert_used_count",
    ),
    "only how many are used is said": (
        only_how_many_are_used,
        "expert_count is missing",
        "it has no qwen2moe.expert_count",
    ),
    "a norm that is a number": (
        lambda container: container.entry("qwen2moe.expert_weights_norm").__setitem__(slice(1, 3), [UINT32, bytes(4)]),
        "expert_weights_norm is not of type BOOL",
        "expert_weights_norm is not of type BOOL",
    ),
    "one expert more": (
        integer("expert_count", 6),
        "ffn_gate_inp.weight is not a float matrix of the shape",
        r"blk.0.ffn_gate_exps.weight has shape \[5, 64, 128\]",
    ),
    "a layer without a router": (
        without_tensor(ROUTER),
        "blk.1.ffn_gate.weight is missing",
        "blk.1.ffn_gate.weight is missing",
    ),
    "a router that is a vector": (
        dims_of(ROUTER, 5 * 128),
        f"{ROUTER} is not a float matrix of the shape",
        r"has shape \[640\], the metadata say \[5, 128\]",
    ),
    "a router on its side": (
        dims_of(ROUTER, 5, 128),
        f"{ROUTER} is not a float matrix of the shape",
        r"has shape \[128, 5\], the metadata say \[5, 128\]",
    ),
    "a router of halves": (type_of(ROUTER, 1), f"{ROUTER} is not a float matrix of the shape", "has 16 bits"),
    "a router of infinity": (
        patched(ROUTER, 4 * 639, "<f", float("inf")),
        f"{ROUTER} holds a value that is not",
        "holds a value that is not a finite number",
    ),
    "a router of nan": (
        patched(ROUTER, 0, "<f", float("nan")),
        f"{ROUTER} holds a value that is not",
        "holds a value that is not a finite number",
    ),
    "no gate of the shared expert": (without_tensor(GATE), f"{GATE} is missing", f"{GATE} is missing"),
    "a gate of the shared expert that is a matrix": (
        dims_of(GATE, 64, 2),
        f"{GATE} is not a float vector",
        r"has shape \[2, 64\], the metadata say \[128\]",
    ),
    "a stack that is one matrix": (
        dims_of(STACK, BLOCK, 5 * BLOCKS),
        f"{STACK} does not have the number of bytes",
        r"has dimensions \[448, 40\], not \[448, 8\]",
    ),
    "a stack that has lost an expert": (
        dims_of(STACK, BLOCK, BLOCKS, 4),
        f"{STACK} does not have the number of bytes",
        r"has shape \[4, 64, 128\]",
    ),
    "a stack of stacks": (
        dims_of(STACK, BLOCK, BLOCKS // 2, 5, 2),
        f"{STACK} does not have the number of bytes",
        r"has dimensions \[448, 4, 5, 2\], not",
    ),
    "a stack whose size wraps": (
        dims_of(STACK, BLOCK, BLOCKS, 2**61),
        f"{STACK} has impossible dimensions",
        "has impossible dimensions",
    ),
    "experts that no layer has": (
        without_routers,
        "expert_count is above 0, but no layer has a router",
        "none of the layers has any of the 5 experts",
    ),
    "one expert's matrix": (
        renamed(STACK, "blk.0.ffn_up.weight"),
        f"{STACK} is missing",
        "lists 'blk.0.ffn_up_exps.weight', which is not there",
    ),
}
