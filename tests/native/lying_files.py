"""What a model file can lie about, one thing at a time, and what each of the two readers says of it."""

import math
import struct

from gguf_container import ARRAY, BOOL, FLOAT32, INT32, STRING, UINT32, text
from lies import (
    add_entry,
    add_extra,
    another_name,
    dims_of,
    float_of,
    integer_of,
    key_twice,
    matrix_as_floats,
    name_twice,
    names_too_many,
    number_of,
    offset_of,
    patched,
    second_version,
    second_version_with,
    type_of,
)

HEAD, LAST, HUGE = "token_embd.weight", "rope_freqs.weight", 2**64 - 1
TOO_LARGE = {
    "embedding_length": ("hidden_size", 2**22 + 32),
    "feed_forward_length": ("intermediate_size", 2**22 + 32),
    "block_count": ("num_hidden_layers", 1025),
    "attention.head_count": ("num_attention_heads", 4098),
    "vocab_size": ("vocab_size", 2**24 + 1),
    "context_length": ("max_position_embeddings", 2**26 + 1),
}

# What is changed; what the C runtime then says; what the Python reader does.
LYING = {
    "theta 0": (float_of("rope.freq_base", 0), "rope.freq_base is out of range", "rope.freq_base is 0.0, not a pos"),
    "theta -1": (float_of("rope.freq_base", -1), "rope.freq_base is out of range", "rope.freq_base is -1.0, not a"),
    "theta nan": (float_of("rope.freq_base", math.nan), "rope.freq_base is out of range", "rope.freq_base is nan, not"),
    "theta inf": (float_of("rope.freq_base", math.inf), "rope.freq_base is out of range", "rope.freq_base is inf, not"),
    "epsilon -1": (
        float_of("attention.layer_norm_rms_epsilon", -1),
        "rms_epsilon is out of range",
        "rms_epsilon is -1.0, not a positive number",
    ),
    "no layers": (
        integer_of("block_count", 0),
        "block_count is out of range",
        "block_count is 0, not an integer from 1",
    ),
    "2^32 - 1 layers": (
        integer_of("block_count", 2**32 - 1),
        "block_count is out of range",
        "block_count is 4294967295",
    ),
    "one layer more": (
        integer_of("block_count", 3),
        r"blk.2.attn_norm.weight is missing",
        r"tensor blk.2.\S+ is missing",
    ),
    "one layer less": (
        integer_of("block_count", 1),
        r"tensor blk.1.\S+ is not part of the model",
        r"tensor blk.1.\S+ is not part of the model",
    ),
    "no KV heads": (
        integer_of("attention.head_count_kv", 0),
        "head_count_kv is out of range",
        "head_count_kv is 0, not",
    ),
    "3 KV heads": (
        integer_of("attention.head_count_kv", 3),
        "head_count is not divisible",
        "is not a multiple of num_key_value_heads 3",
    ),
    "odd head": (integer_of("attention.key_length", 15), "key_length must be even", "differs from .*key_length"),
    "vocabulary": (integer_of("vocab_size", 4096), f"{HEAD} does not have the shape", rf"{HEAD} has shape \[128, 32\]"),
    "context 0": (integer_of("context_length", 0), "context_length is out of range", "context_length is 0, not"),
    "window 0": (
        add_entry(b"llama.attention.sliding_window", UINT32, bytes(4)),
        "sliding_window is out of range",
        "sliding_window is 0, not an integer from 1",
    ),
    "a key from the future": (
        add_entry(b"llama.attention.sinks", UINT32, bytes(4)),
        "llama.attention.sinks is not known here: a newer elutq may run this model",
        "'llama.attention.sinks' is not known here: a newer elutq may read it",
    ),
    "flags of too few layers": (
        add_entry(b"llama.attention.sliding_window_pattern", ARRAY, struct.pack("<IQ?", BOOL, 1, True)),
        "sliding_window_pattern is not an array of BOOL, one for each layer",
        "there are 2 layers, and sliding_layers names 1",
    ),
    "flags that are numbers": (
        add_entry(b"llama.rope.layers", ARRAY, struct.pack("<IQ2I", UINT32, 2, 1, 1)),
        "rope.layers is not an array of BOOL",
        "rope.layers is not an ARRAY of BOOL",
    ),
    "an activation from the future": (
        add_entry(b"llama.hidden_activation", STRING, text(b"relu2")),
        "hidden_activation names an activation that is not known here",
        "hidden_activation 'relu2' is unknown",
    ),
    "long divisors that are not there": (
        add_entry(b"llama.rope.scaling.original_context_length", UINT32, struct.pack("<I", 64)),
        "rope_factors_short.weight is missing",
        "original_context_length differs from what elutq.rope_scaling says",
    ),
    "another attention factor": (
        add_entry(b"llama.rope.scaling.attn_factor", FLOAT32, struct.pack("<f", 0.0)),
        "attn_factor is out of range",
        "attn_factor is 0.0, not a positive number",
    ),
    "half of a pair turns": (
        integer_of("rope.dimension_count", 7),
        "rope.dimension_count must be even",
        "rotary_dim 7 is odd",
    ),
    "more than a head turns": (
        integer_of("rope.dimension_count", 64),
        "rope.dimension_count must be even and no more than attention.key_length",
        "rotary_dim 64 is odd or not up to",
    ),
    "theta as integer": (
        lambda c: c.entry("llama.rope.freq_base").__setitem__(1, UINT32),
        "rope.freq_base is missing from the metadata or has the wrong type",
        "rope.freq_base is not of type FLOAT32",
    ),
    "KV heads as INT32": (
        lambda c: c.entry("llama.attention.head_count_kv").__setitem__(1, INT32),
        "head_count_kv is missing from the metadata or has the wrong type",
        "head_count_kv is not of type UINT32",
    ),
    "alignment as INT32": (
        lambda c: c.entry("general.alignment").__setitem__(1, INT32),
        "general.alignment is not 64",
        "general.alignment 64 is not of type UINT32",
    ),
    "bits as INT32": (
        lambda c: c.entry("hlq.tensor.bits").__setitem__(
            2, struct.pack("<I", INT32) + c.entry("hlq.tensor.bits")[2][4:]
        ),
        "hlq.tensor",
        "hlq.tensor.bits is not an ARRAY of UINT32",
    ),
    **{
        f"{key} too large": (integer_of(key, value), f"{key} is out of range", f"{name} {value} is more than")
        for key, (name, value) in TOO_LARGE.items()
    },
    "architecture": (
        lambda c: c.entry("general.architecture").__setitem__(2, text(b"phi3")),
        "phi3.vocab_size is missing from the metadata",
        "architecture 'phi3' of model type 'llama' is unknown",
    ),
    "escape codes": (
        lambda c: c.entry("general.architecture").__setitem__(2, text(b"\x1b[2J")),
        "general.architecture is missing, or no name of an architecture",
        r"architecture '\\x1b\[2J' of",
    ),
    "version 0": (lambda c: c.set("hlq.version", "<I", 0), "hlq.version is missing or not 1 or 2", "version is 0, not"),
    "version 3": (lambda c: c.set("hlq.version", "<I", 3), "hlq.version is missing or not 1 or 2", "has HLQ version 3"),
    "version 2 without kinds": (
        lambda c: c.set("hlq.version", "<I", 2),
        "hlq.tensor.kinds is missing, or has not one integer for each",
        "it has no hlq.tensor.kinds",
    ),
    "one kind": (
        second_version_with("kinds", UINT32, 1),
        "hlq.tensor.kinds is missing, or has not",
        "differ in length",
    ),
    "one center": (
        second_version_with("centers", INT32, 1),
        "hlq.tensor.centers is missing, or has not",
        "differ in length",
    ),
    "centers as UINT32": (
        second_version_with("centers", UINT32, 1),
        "hlq.tensor.centers is missing, or has not",
        "hlq.tensor.centers is not an ARRAY of INT32",
    ),
    "kind 4": (second_version(kind=4), f"{HEAD} has a kind, exponent or center", f"{HEAD}.* of kind '4'"),
    "kind 5": (second_version(kind=5), f"{HEAD} has a kind, exponent or center", f"{HEAD}.* of kind '5'"),
    "kind -1": (second_version(kind=-1), f"{HEAD} has a kind, exponent or center", f"{HEAD}.* of kind '4294967295'"),
    "another kind": (second_version(kind=1), f"{HEAD} does not have the number of bytes", f"{HEAD} has dimensions"),
    "exponent of fp16": (
        second_version(exponent=1),
        f"{HEAD} has a kind, exponent or center",
        f"{HEAD}.* exponent of 1, which the kind free16",
    ),
    "exponent 24": (
        second_version(kind=1, exponent=24),
        f"{HEAD} has a kind, exponent or center",
        f"{HEAD}.* exponent of 24, which the kind free8",
    ),
    "center of free16": (
        second_version(center=-1),
        f"{HEAD} has a kind, exponent or center",
        f"{HEAD}.* center of -1 quarters",
    ),
    "center 128": (
        second_version(kind=2, center=128),
        f"{HEAD} has a kind, exponent or center",
        f"{HEAD}.* center of 128 quarters",
    ),
    "alignment 32": (
        lambda c: c.set("general.alignment", "<I", 32),
        "general.alignment is not 64",
        "its alignment is 32, not 64",
    ),
    "key twice": (key_twice, "entries are called llama.block_count", "entries are called llama.block_count"),
    "key of 257 bytes": (
        add_entry(b"k" * 257, UINT32, bytes(4)),
        r"cut short at entry \d+",
        "257 bytes in a metadata key",
    ),
    "key not ASCII": (
        add_entry("\u00e9".encode(), UINT32, bytes(4)),
        "damaged or cut short at entry",
        "not printable ASCII",
    ),
    "value type 13": (add_entry(b"k", 13, b""), "damaged or cut short at entry", "the value of k has unknown type 13"),
    "array of arrays": (
        add_entry(b"k", ARRAY, struct.pack("<IQ", ARRAY, 1)),
        "damaged or cut short at entry",
        "the value of k is an array of arrays",
    ),
    "long array": (
        add_entry(b"k", ARRAY, struct.pack("<IQ", UINT32, 2**24 + 1)),
        "damaged or cut short at entry",
        "16777217 elements in k, more than 16777216",
    ),
    "array size wraps": (
        add_entry(b"k", ARRAY, struct.pack("<IQ", UINT32, 2**62)),
        "damaged or cut short at entry",
        "elements in k, more than 16777216",
    ),
    "long string": (
        add_entry(b"k", STRING, struct.pack("<Q", 2**28 + 1)),
        "damaged or cut short at entry",
        "268435457 bytes in the value of k",
    ),
    "string of 2^64 - 1 bytes": (
        add_entry(b"k", STRING, struct.pack("<Q", HUGE)),
        "damaged or cut short at entry",
        "bytes in the value of k, more than",
    ),
    "string past the end": (
        add_entry(b"k", STRING, struct.pack("<Q", 2**20)),
        "damaged or cut short at entry",
        "is truncated: it ends inside the header",
    ),
    "tensor twice": (
        name_twice,
        "two tensors are called blk.0.attn_norm.weight",
        "two tensors are called blk.0.attn_norm.weight",
    ),
    "extra tensor": (
        add_extra,
        "tensor blk.0.extra is not part of the model",
        "tensor blk.0.extra is not part of the model",
    ),
    "control characters": (
        lambda c: c.tensors[0].__setitem__(0, b"a\x1b[2J\n"),
        "tensor list is damaged or cut short at tensor 0",
        "a tensor's name is not printable ASCII",
    ),
    "overlap": (
        lambda c: c.tensors[1].__setitem__(3, 64),
        "tensor blk.0.attn_q.weight begins before the end of the one before it",
        f"tensor blk.0.attn_q.weight begins before the end of {HEAD}",
    ),
    "same place": (
        lambda c: c.tensors[2].__setitem__(3, c.tensors[1][3]),
        "tensor blk.0.attn_k.weight begins before the end of the one before it",
        "tensor blk.0.attn_k.weight begins before the end of blk.0.attn_q.weight",
    ),
    "misaligned": (
        lambda c: c.tensors[-1].__setitem__(3, c.tensors[-1][3] + 4),
        f"tensor {LAST} does not begin at a multiple of 64",
        f"tensor {LAST} begins at .* not a multiple of 64",
    ),
    "past the end": (offset_of(LAST, 2**40), f"tensor {LAST} lies past the end", f"tensor {LAST} ends .* past the end"),
    "offset wraps": (
        offset_of(LAST, 2**64 - 64),
        f"tensor {LAST} lies past the end",
        f"tensor {LAST} ends .* past the",
    ),
    "dims wrap": (
        dims_of(HEAD, 2**33, 2**33),
        f"tensor {HEAD} has impossible dimensions",
        f"tensor {HEAD} has impossible dimensions",
    ),
    "dims wrap to the right size": (
        dims_of(HEAD, 448, 2**58 + 4),
        f"tensor {HEAD} has impossible dimensions|lies past the end",
        f"tensor {HEAD} has impossible dimensions",
    ),
    "dims zero": (
        dims_of(HEAD, 0, 4),
        f"tensor {HEAD} has impossible dimensions",
        f"tensor {HEAD} has impossible dimensions",
    ),
    "dims negative": (
        dims_of(HEAD, 448, HUGE),
        f"tensor {HEAD} has impossible dimensions",
        f"tensor {HEAD} has impossible dimensions",
    ),
    "no dims": (dims_of(HEAD), "damaged or cut short at tensor 0", f"tensor {HEAD} has 0 dimensions"),
    "five dims": (dims_of(HEAD, 1, 1, 1, 1, 1), "damaged or cut short at tensor 0", f"tensor {HEAD} has 5 dimensions"),
    "one block less": (
        dims_of(HEAD, 448, 3),
        f"{HEAD} does not have the number of bytes",
        rf"{HEAD} .* \[448, 3\], not",
    ),
    "blocks of another size": (
        dims_of(HEAD, 896, 2),
        f"{HEAD} does not have the number of bytes",
        f"{HEAD} has dimensions",
    ),
    "norm too short": (
        dims_of("output_norm.weight", 31),
        "output_norm.weight is not a float vector of the length",
        r"output_norm.weight has shape \[31\]",
    ),
    "norm as fp16": (
        type_of("output_norm.weight", 1),
        "output_norm.weight is not a float vector",
        "output_norm.weight has",
    ),
    "matrix as floats": (
        matrix_as_floats,
        "hlq.tensor.names does not name as many tensors",
        "tensor blk.0.attn_k.weight is F32, but hlq.tensor.names says otherwise",
    ),
    "ggml type": (
        type_of(HEAD, 2),
        f"tensor {HEAD} has ggml type 2",
        f"tensor {HEAD} has GGML type Q4_0, which only other tools read",
    ),
    "names": (names_too_many, "hlq.tensor.names does not name as many tensors", "hlq.tensor arrays differ in length"),
    "another name": (
        another_name,
        "blk.0.ffn_up.weight is not among hlq.tensor.names",
        "'blk.9.ffn_up.weight', which is not",
    ),
    "no bits": (
        lambda c: c.set("hlq.tensor.bits", "<IQ", UINT32, 0),
        "hlq.tensor.bits is missing, or has not one integer for each",
        "hlq.tensor arrays differ in length",
    ),
    "0 bits": (number_of("bits", 0), f"{HEAD} has a number of bits that no", f"{HEAD}.* 0 bits per weight"),
    "5 bits": (number_of("bits", 5), f"{HEAD} has a number of bits that no", f"{HEAD}.* 5 bits per weight"),
    "3 bits": (number_of("bits", 3), f"{HEAD} does not have the number of bytes", f"{HEAD} has dimensions"),
    "groups of 0": (number_of("group_sizes", 0), f"{HEAD} has a group size that", f"{HEAD}.* group size 0"),
    "groups of 64": (
        number_of("group_sizes", 64),
        f"{HEAD} has a group size .* not divide",
        f"{HEAD}.* do not divide 32",
    ),
    "rows": (number_of("rows", 2**32 - 1), f"{HEAD} does not have the shape", f"{HEAD} has dimensions"),
    "columns": (number_of("columns", 2**32 - 32), f"{HEAD} does not have the shape", f"{HEAD} has dimensions"),
    "entry count": (
        lambda c: setattr(c, "counts", (1, HUGE)),
        "impossible number of tensors or metadata",
        "18446744073709551615 metadata entries, more than 65536",
    ),
    "tensor count": (
        lambda c: setattr(c, "counts", (2**63, 1)),
        "impossible number of tensors",
        "9223372036854775808 tensors, more than 65536",
    ),
    "nan norm": (
        patched("blk.1.ffn_norm.weight", 8, "<f", math.nan),
        "blk.1.ffn_norm.weight holds a value that is not a finite number",
        "blk.1.ffn_norm.weight holds a value that is not a finite number",
    ),
    "zero divisor": (
        patched(LAST, 0, "<f", 0),
        f"{LAST} holds a divisor that is not positive",
        f"{LAST} differs from what",
    ),
}
