"""What a family of models is: what its ``config.json`` says, under which name a model file has it.

It knows no family by name: those are the files of ``families``, each named after its ``model_type``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, TypeAlias

from elutq_formats.config import ModelConfig
from elutq_formats.errors import CheckpointError, UnsupportedModelError
from elutq_formats.fields import Fields
from elutq_formats.gguf_keys import Keys
from elutq_formats.model_tensors import EMBEDDING, FINAL_NORM
from elutq_formats.part import Part
from elutq_formats.rope import RopeScaling

FULL, SLIDING = "full_attention", "sliding_attention"
"""What ``layer_types`` of transformers calls layers without and with a window."""

Settings: TypeAlias = dict[str, Any]
"""Fields of a ``ModelConfig`` by name."""

Parts: TypeAlias = dict[str, Part]
"""How a checkpoint stores tensors of the model, by the model's names."""


def as_named(fields: Fields, config: ModelConfig) -> Parts:
    """Return no parts: every tensor is stored as it is, under the model's own name."""
    return {}


def as_stored(keys: Keys, config: ModelConfig) -> Parts:
    """Return no parts: every tensor of a GGUF file is the model's."""
    return {}


@dataclass(frozen=True)
class InGGUF:
    """How llama.cpp's converter writes a family.

    Attributes:
        settings: reads what its keys say in the family's own way, or do not say.
        keys: the names of those keys, without the architecture.
        parts: tells how the file stores the tensors that it does not store as they are.
        permuted: rows of queries and keys are in the order in which llama.cpp turns neighbours.
    """

    settings: Callable[[Keys], Settings]
    keys: tuple[str, ...] = ()
    parts: Callable[[Keys, ModelConfig], Parts] = as_stored
    permuted: bool = False


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        architecture: llama.cpp's name of it, which is the prefix of its keys in a model file.
        settings: reads what the family says in its own way, or does not say; the rest is read as a Llama's.
        defaults: what transformers assumes when ``config.json`` leaves a key out.
        parts: tells from the configuration how a checkpoint stores the tensors that it does not store as they are.
        gguf: how llama.cpp's converter writes it; None: such a file is not read, or another family reads it.
    """

    architecture: str
    settings: Callable[[Fields], Settings]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    parts: Callable[[Fields, ModelConfig], Parts] = as_named
    gguf: InGGUF | None = None


def renamed(config: ModelConfig, names: Mapping[str, str]) -> Parts:
    """Return the parts of a family that has other names for some tensors of a block.

    Args:
        config: of the model.
        names: the stored name of each tensor, by the model's, without ``model.layers.N.`` and ``.weight``.
    """
    return {
        f"model.layers.{layer}.{ours}.weight": Part(f"model.layers.{layer}.{theirs}.weight")
        for layer in range(config.num_hidden_layers)
        for ours, theirs in names.items()
    }


def one_more(config: ModelConfig, parts: Parts) -> Parts:
    """Return the parts of a family that stores the weights of norms less one."""
    norms = [name for name in config.tensor_shapes() if name.endswith("norm.weight")]
    return parts | {name: replace(parts.get(name, Part(name)), added=1.0) for name in norms}


def fused(config: ModelConfig, names: Mapping[str, tuple[str, ...]]) -> Parts:
    """Return the parts of a family that stores some linears of a block one below the other in one tensor.

    Args:
        config: of the model.
        names: the linears in a stored tensor, in their order, by its name; without ``model.layers.N.`` and ``.weight``.
    """
    found, shapes = {}, config.tensor_shapes()
    for layer in range(config.num_hidden_layers):
        for (theirs, ours), kind in product(names.items(), ("weight", "bias")):
            first = 0
            for name in (f"model.layers.{layer}.{linear}.{kind}" for linear in ours):
                if name in shapes:
                    rows = range(first, first + shapes[name][0])
                    found[name], first = Part(f"model.layers.{layer}.{theirs}.{kind}", rows), rows.stop
    return found


def fused_queries(config: ModelConfig) -> Parts:
    """Return the parts of a family whose queries, keys and values a GGUF file has in one tensor, ``attn_qkv``."""
    linears = tuple(f"self_attn.{part}_proj" for part in "qkv")
    parts = fused(config, {"attn_qkv": linears})
    return {name: replace(part, name=part.name.replace("model.layers.", "blk.")) for name, part in parts.items()}


def multiplied(
    config: ModelConfig,
    parts: Parts,
    embedding: float = 1.0,
    queries: float = 1.0,
    added: float = 1.0,
    logits: float = 1.0,
) -> Parts:
    """Return parts that hold what a family multiplies its activations by, so that nothing else need know of it.

    In exact arithmetic nothing changes: each factor goes into weights that the activation passes, or comes from.

    Args:
        config: of the model.
        parts: without the factors.
        embedding: of the embedding's rows; a tied head's are taken back from the last norm.
        queries: of what queries and keys come to, beyond one over the root of a head's width.
        added: of what a branch adds to the residual stream.
        logits: of the logits.
    """
    factors = {EMBEDDING: embedding, FINAL_NORM: logits / (embedding if config.tie_word_embeddings else 1.0)}
    shapes = config.tensor_shapes()
    for layer in range(config.num_hidden_layers):
        block = f"model.layers.{layer}."
        query = "self_attn.q_norm" if config.qk_norm else "self_attn.q_proj"
        last = [branch.after or branch.writer for branch in config.layer(layer).branches]
        for stem, factor in ((query, queries), *((name, added) for name in last)):
            factors |= {f"{block}{stem}.{kind}": factor for kind in ("weight", "bias")}
    found = dict(parts)
    for name, factor in factors.items():
        if name in shapes and factor != 1.0:
            found[name] = replace(found.get(name, Part(name)), factor=factor)
    return found


def read_rope(fields: Fields, partial: float | None = None) -> Settings:
    """Read RoPE from ``rope_parameters`` (transformers 5) or ``rope_theta`` and ``rope_scaling`` (before).

    Args:
        fields: of ``config.json``.
        partial: the share of a head that turns where it does not say; None: in this family heads turn whole.

    Raises:
        UnsupportedModelError: it turns in a way that is not implemented.
        CheckpointError: a field is impossible, or two contradict each other.
    """
    settings, context = fields.mapping("rope_parameters"), fields.integer("max_position_embeddings")
    if added := fields.mapping("rope_scaling"):
        if settings and RopeScaling.from_huggingface(added) != RopeScaling.from_huggingface(settings):
            raise CheckpointError(
                "config.json has rope_scaling beside rope_parameters, and they differ: write what is meant into "
                "rope_parameters, and leave rope_scaling out"
            )
        settings = {**added, **settings}
    if any(isinstance(value, dict) for value in settings.values()):
        raise UnsupportedModelError("RoPE settings that differ between layers are not supported")
    theta = Fields(settings, "config.json").number("rope_theta", fields.number("rope_theta", 10000.0))
    found = {"rope_theta": theta, "rope_scaling": RopeScaling.from_huggingface(settings, context)}
    name = "partial_rotary_factor"
    said = Fields({name: settings.get(name) or fields[name]}, "config.json")
    if partial is None and said[name] not in (None, 1):
        raise UnsupportedModelError(f"{name} is not supported in {fields['model_type']}: RoPE covers whole heads")
    if partial is not None and (share := said.number(name, partial)) != 1.0:
        found["rotary_dim"] = int(head_dim(fields) * share)
    return found


def read_ropes(fields: Fields, theta: float, local_theta: float | None) -> Settings:
    """Read RoPE of a family whose layers with a window turn in another way than those without, and unscaled.

    Args:
        fields: of ``config.json``.
        theta: base of the frequencies of layers without a window, where it does not say.
        local_theta: the same of layers with one; None: as the others.

    Raises:
        UnsupportedModelError: layers with a window are scaled, or it is not said which are.
        CheckpointError: a field is impossible.
    """
    both, context = fields.mapping("rope_parameters"), fields.integer("max_position_embeddings")
    of_kind = {kind: Fields(both, "config.json: rope_parameters").mapping(kind) for kind in (FULL, SLIDING)}
    if RopeScaling.from_huggingface(of_kind[SLIDING], context) is not None:
        raise UnsupportedModelError("RoPE scaling in layers with a window is not supported")
    of_all = {name: value for name, value in both.items() if name not in of_kind}
    if of_all and not of_kind[FULL] and RopeScaling.from_huggingface(of_all, context) is not None:
        raise UnsupportedModelError(
            f"config.json: rope_parameters do not say which layers of {fields['model_type']} are scaled: "
            f"write what is meant under {FULL}"
        )
    base = Fields(of_all, "config.json: rope_parameters").number("rope_theta", fields.number("rope_theta", theta))
    full, local = (Fields(of_kind[kind], "config.json: RoPE") for kind in (FULL, SLIDING))
    return {
        "rope_theta": full.number("rope_theta", base),
        "rope_scaling": RopeScaling.from_huggingface({**of_kind[FULL], **fields.mapping("rope_scaling")}, context),
        "local_rope_theta": local.number("rope_theta", base if local_theta is None else local_theta),
    }


def flags(fields: Fields, name: str, default: tuple[bool, ...]) -> tuple[bool, ...]:
    """Return a list of a flag for each layer, written as true and false or 1 and 0.

    Raises:
        CheckpointError: it is another list.
    """
    value = fields[name]
    if value is None:
        return default
    if not isinstance(value, list) or len(value) < len(default) or not all(flag in (0, 1) for flag in value):
        raise CheckpointError(f"config.json: {name} must be a list of 0 and 1, one for each of {len(default)} layers")
    return tuple(bool(flag) for flag in value[: len(default)])


def layers_of_kind(fields: Fields, default: int | tuple[bool, ...]) -> Settings:
    """Read the window and which layers have it, from ``layer_types`` where that says.

    Args:
        fields: of ``config.json``.
        default: which layers have it otherwise; a number: all but every such.

    Raises:
        UnsupportedModelError: there are layers of another kind.
        CheckpointError: the kinds are not one for each layer.
    """
    layers, kinds = fields.integer("num_hidden_layers"), fields["layer_types"]
    slides = tuple((at + 1) % default != 0 for at in range(layers)) if isinstance(default, int) else default
    if kinds is not None:
        if not isinstance(kinds, list) or len(kinds) != layers:
            raise CheckpointError(f"config.json: layer_types must be a list, one for each of {layers} layers")
        for kind in kinds:
            if kind not in (FULL, SLIDING):
                raise UnsupportedModelError(f"layers of type {kind!r:.60} are not supported: {FULL} and {SLIDING} are")
        slides = tuple(kind == SLIDING for kind in kinds)
    if not any(slides):
        return {}
    window = {"sliding_window": fields.integer("sliding_window")}
    return window if all(slides) else {**window, "sliding_layers": slides}


OTHER_ROUTERS: Mapping[str, Any] = {
    "routed_scaling_factor": 1,
    "scoring_func": "softmax",
    "topk_method": "greedy",
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 0,
    "first_k_dense_replace": 0,
    "moe_layer_freq": 1,
}
"""What other families say of their routers, and the value that changes nothing."""


def read_experts(fields: Fields, n_experts: int, n_used: int, width: str, normalized: bool) -> Settings:
    """Read how many experts there are, and which layers have them: all, or as ``decoder_sparse_step`` says.

    Args:
        fields: of ``config.json``.
        n_experts: in a layer, where it does not say.
        n_used: for a token, where it does not say.
        width: the name of the field that has the width of one.
        normalized: whether their weights come to one.

    Raises:
        UnsupportedModelError: the router does what no supported one does.
        CheckpointError: a field is impossible, or two contradict each other.
    """
    for name, usual in OTHER_ROUTERS.items():
        if (value := fields[name]) not in (None, usual):
            raise UnsupportedModelError(f"{name} {value!r:.60} is not supported in {fields['model_type']}")
    said = {
        fields.integer(name, minimum=0) for name in ("num_experts", "num_local_experts") if fields[name] is not None
    }
    if len(said) > 1:
        raise CheckpointError("config.json: num_experts and num_local_experts differ")
    found = next(iter(said), n_experts)
    layers, step = range(fields.integer("num_hidden_layers")), fields.integer("decoder_sparse_step", 1)
    dense = [] if (value := fields["mlp_only_layers"]) is None else value
    if not isinstance(dense, list) or not all(type(layer) is int for layer in dense):
        raise CheckpointError(f"config.json: mlp_only_layers must be a list of layers, found {value!r:.60}")
    has_experts = tuple(layer not in dense and (layer + 1) % step == 0 for layer in layers)
    if found == 0 or not any(has_experts):
        return {"n_experts": 0}
    return {
        "n_experts": found,
        "n_experts_used": fields.integer("num_experts_per_tok", n_used),
        "expert_intermediate_size": fields.integer(width),
        "normalize_expert_weights": normalized,
        "expert_layers": None if all(has_experts) else has_experts,
    }


def head_dim(fields: Fields) -> int:
    """Return the features of a head."""
    return fields.integer("head_dim", max(1, fields.integer("hidden_size") // fields.integer("num_attention_heads")))
