"""The reference transformer against the logits of Hugging Face transformers, and against itself."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from single_linears import shared_inputs

from elutq_cli.reference import Block, Positions, Transformer, attention, block_tensor_names, experts, transformer
from elutq_cli.reference.activation import activate
from elutq_formats.checkpoint import Checkpoint
from elutq_formats.config import ModelConfig
from elutq_formats.families import MODEL_TYPES
from elutq_formats.rope import RopeScaling
from elutq_formats.safetensors_file import ALL_ROWS

GOLDEN = Path(__file__).parent.parent / "data" / "golden"
VARIANTS = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())


def expected(variant):
    arrays = np.load(GOLDEN / variant / "expected.npz")
    return arrays["tokens"], arrays["logits"]


def relative_error(actual, wanted):
    return np.abs(actual - wanted).max() / np.sqrt(np.mean(wanted**2))


YARN = Checkpoint.open(GOLDEN / "qwen3-yarn").config.rope_scaling


class Overridden:
    """A weight source with another configuration, that counts what is read and forbids writing to it."""

    def __init__(self, source, **changes):
        self.source = source
        self.config: ModelConfig = replace(source.config, **changes)
        self.reads = Counter()
        self.rows = {}
        self.changed = {}

    def has(self, name):
        return self.source.has(name)

    def load(self, name, rows=ALL_ROWS):
        self.reads[name] += 1
        tensor = self.changed.get(name, lambda weights: weights)(self.source.load(name, rows=rows))
        self.rows[name] = len(tensor)
        tensor.flags.writeable = False
        return tensor


@pytest.fixture(params=VARIANTS)
def variant(request):
    return request.param


def test_every_family_has_golden_logits():
    families = {Checkpoint.open(GOLDEN / name).config.model_type for name in VARIANTS}
    assert families == set(MODEL_TYPES)


def test_logits_are_those_of_transformers(variant):
    tokens, logits = expected(variant)
    with Checkpoint.open(GOLDEN / variant) as checkpoint:
        actual = Transformer(checkpoint).logits(tokens)
    assert actual.dtype == np.float32
    assert relative_error(actual, logits) < 1e-4


@pytest.mark.parametrize(
    ("variant", "change"),
    [
        ("llama31-rope-scaling", {"rope_scaling": None}),
        ("llama-linear-rope", {"rope_scaling": None}),
        ("llama31-rope-scaling", {"rope_theta": 10000.0}),
        ("mistral-sliding-window", {"sliding_window": None}),
        ("mistral-sliding-window", {"sliding_window": 6}),
        ("mistral-sliding-window", {"sliding_window": 8}),
        ("qwen2", {"attention_bias": False}),
        ("llama-biases", {"attention_output_bias": False}),
        ("llama-biases", {"mlp_bias": False}),
        ("qwen3", {"qk_norm": False}),
        ("qwen3-biases", {"attention_output_bias": False}),
        ("llama2-gqa-sharded", {"rms_norm_eps": 1e-2}),
        ("qwen2-some-windows", {"sliding_layers": None}),
        ("qwen2-some-windows", {"sliding_layers": (True, False)}),
        ("qwen3-yarn", {"rope_scaling": None}),
        ("qwen3-yarn", {"rope_scaling": replace(YARN, attention_factor=1.0)}),
        ("qwen3-yarn", {"rope_scaling": replace(YARN, beta_slow=0.1)}),
        ("qwen3-yarn", {"rope_scaling": RopeScaling("linear", 4.0)}),
        ("gemma", {"hidden_act": "silu"}),
        ("gemma2", {"attention_softcap": None}),
        ("gemma2", {"logit_softcap": None}),
        ("gemma2", {"sliding_layers": None}),
        ("gemma3", {"hidden_act": "silu"}),
        ("gemma3", {"norm_after": False}),
        ("gemma3", {"sliding_window": None}),
        ("gemma3", {"sliding_layers": None}),
        ("gemma3", {"local_rope_theta": None}),
        ("gemma3", {"rope_scaling": None}),
        ("gemma3", {"qk_norm": False}),
        ("olmo2", {"qk_norm": False}),
        ("olmo3", {"rope_scaling": None}),
        ("olmo3", {"local_rope_theta": None}),
        ("olmo3", {"sliding_layers": (False, True)}),
        ("smollm3", {"rope_layers": None}),
        ("smollm3", {"sliding_layers": None}),
        ("smollm3", {"mlp_bias": False}),
        ("phi3-long", {"rotary_dim": None, "rope_scaling": None}),
        ("phi3-long", {"rope_scaling": None}),
        ("phi3-long", {"sliding_window": None}),
        ("phi3-short", {"rope_scaling": None}),
        ("glm4", {"rotary_dim": None}),
        ("glm4", {"norm_after": False}),
        ("glm4", {"attention_bias": False}),
        ("exaone4", {"rope_layers": None}),
        ("exaone4", {"sliding_layers": None}),
        ("exaone4", {"qk_norm": False}),
        ("ministral3", {"rope_scaling": None}),
        ("ministral3", {"rope_scaling": YARN}),
        ("ministral", {"sliding_layers": None}),
        ("ministral", {"sliding_window": None}),
        ("seed-oss", {"attention_bias": False}),
        ("qwen3-moe", {"normalize_expert_weights": False}),
        ("qwen3-moe", {"n_experts_used": 1}),
        ("qwen3-moe", {"n_experts_used": 3}),
        ("qwen3-moe", {"qk_norm": False}),
        ("mixtral", {"normalize_expert_weights": False}),
        ("mixtral", {"sliding_window": None}),
        ("olmoe", {"normalize_expert_weights": True}),
        ("olmoe", {"qk_norm": False}),
        ("olmoe", {"attention_output_bias": False}),
        ("qwen2-moe", {"normalize_expert_weights": True}),
        ("qwen2-moe", {"shared_expert_intermediate_size": 0}),
        ("qwen2-moe", {"sliding_layers": (False, True)}),
        ("qwen2-moe", {"attention_bias": False}),
    ],
)
def test_golden_logits_notice_a_missing_feature(variant, change):
    tokens, logits = expected(variant)
    with Checkpoint.open(GOLDEN / variant) as checkpoint:
        actual = Transformer(Overridden(checkpoint, **change)).logits(tokens)
    assert relative_error(actual, logits) > 1e-2


@pytest.mark.parametrize(
    ("variant", "change"),
    [
        ("gemma3", {"added": 0.0}),
        *((variant, {"factor": 1.0}) for variant in ("gemma", "gemma2", "gemma3", "granite")),
        *((variant, {"rows": None}) for variant in ("phi3-long", "glm4")),
        ("glm4", {"neighbours": None}),
    ],
)
def test_golden_logits_notice_how_each_tensor_is_stored(variant, change):
    """Without what a family does to each stored tensor logits are others, or a tensor has another shape."""
    tokens, logits = expected(variant)
    with Checkpoint.open(GOLDEN / variant) as checkpoint:
        stored = {part.name: part.of for part in checkpoint.parts.values()}
        assert stored
        changed = [name for name, part in checkpoint.parts.items() if replace(part, **change) != part]
        assert changed
        for name in changed:
            tensor = checkpoint._tensors[name]
            checkpoint._tensors[name] = replace(tensor, part=replace(tensor.part, **change))
            if "rows" in change:
                assert checkpoint.shape(name) != checkpoint.config.tensor_shapes()[name]
            else:
                assert relative_error(Transformer(checkpoint).logits(tokens), logits) > 3e-3, name
            checkpoint._tensors[name] = tensor


def test_rope_divisors_of_llama3_are_those_of_the_published_formula():
    """Frequencies of three bands: kept, blended, divided by the factor."""
    with Checkpoint.open(GOLDEN / "llama31-rope-scaling") as checkpoint:
        divisors = checkpoint.config.rope.divisors()
    assert divisors[0] == 1.0
    assert 1.0 < divisors[1] < 8.0
    assert np.all(divisors[2:] == 8.0)


def test_batch_of_sequences_is_each_sequence(variant):
    tokens, _ = expected(variant)
    batch = np.stack((tokens, tokens[::-1]))
    with Checkpoint.open(GOLDEN / variant) as checkpoint:
        model = Transformer(checkpoint, keep=True)
        together = model.logits(batch)
        for index in range(2):
            assert relative_error(together[index], model.logits(batch[index])) < 1e-4


@pytest.mark.parametrize("steps", [(1,) * 20, (7, 1, 12), (20,)])
def test_cache_continues_a_sequence(variant, steps):
    tokens, logits = expected(variant)
    cache, start, parts = {}, 0, []
    with Checkpoint.open(GOLDEN / variant) as checkpoint:
        model = Transformer(checkpoint, keep=True)
        for n_tokens in steps:
            hidden = model.hidden(tokens[start : start + n_tokens], start, cache, len(tokens))
            parts.append(model.head(hidden))
            start += n_tokens
    assert relative_error(np.concatenate(parts), logits) < 1e-4


@pytest.mark.parametrize("query_rows", [1, 3, 19])
def test_attention_in_pieces_is_attention(variant, query_rows, monkeypatch):
    monkeypatch.setattr(attention, "QUERY_ROWS", query_rows)
    tokens, logits = expected(variant)
    with Checkpoint.open(GOLDEN / variant) as checkpoint:
        assert relative_error(Transformer(checkpoint).logits(tokens), logits) < 1e-4


def test_observe_sees_the_input_of_every_linear(variant):
    tokens, _ = expected(variant)
    with Checkpoint.open(GOLDEN / variant) as checkpoint:
        model = Transformer(checkpoint)
        block, x = model.block(0), model.embed(np.stack((tokens, tokens[::-1])))
    seen = {}
    y = block(x, observe=lambda name, value: seen.setdefault(name, []).append(value))
    groups = [linears for linears in shared_inputs(block.data, block.config.n_experts) if linears[0] in seen]
    assert list(seen) == [linears[0] for linears in groups]
    assert all(len(values) == 1 for values in seen.values())
    n_sent = 0
    for linears in groups:
        for linear in linears:
            *n_tokens, columns = seen[linears[0]][0].shape
            assert columns == block.weight(linear).shape[1]
            if ".experts." not in linear:
                assert n_tokens in ([2, len(tokens)], [2 * len(tokens)])
        n_sent += np.prod(n_tokens) if ".experts." in linears[0] else 0
    if block.data.routed is not None:
        assert n_sent == 2 * (2 * len(tokens)) * block.config.n_experts_used
        return
    # The two inputs that close a residual branch give the block's output.
    for branch in block.data.branches:
        x = x + block.finish(branch, block.linear(branch.writer, seen[branch.writer][0]))
    np.testing.assert_array_equal(y, x)


def test_a_layer_names_every_tensor_of_its_block(variant):
    with Checkpoint.open(GOLDEN / variant) as checkpoint:
        names, layer = block_tensor_names(checkpoint.config, 0), checkpoint.config.layer(0)
    assert sum(name.endswith(("mlp.gate.weight", "expert_gate.weight")) for name in names) == (
        0 if layer.routed is None else 1 + (layer.routed.shared is not None)
    )
    assert [name for name in names if name.endswith("_proj.weight")] == [f"{name}.weight" for name in layer.linears]
    assert {f"{norm}.weight" for norm in layer.norms} == {name for name in names if name.endswith("layernorm.weight")}


def test_replaced_weights_are_used():
    tokens, _ = expected("llama-biases")
    with Checkpoint.open(GOLDEN / "llama-biases") as checkpoint:
        model = Transformer(checkpoint)
        block, x = model.block(0), model.embed(tokens)
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        block.weights[f"{name}.weight"] = np.zeros_like(block.weights[f"{name}.weight"])
        block.weights[f"{name}.bias"] = np.zeros_like(block.weights[f"{name}.bias"])
    np.testing.assert_array_equal(block(x), x)


def test_window_logits_read_each_block_once():
    tokens, logits = expected("llama2-gqa-sharded")
    windows = np.stack((tokens, tokens[::-1], tokens))
    done = []
    with Checkpoint.open(GOLDEN / "llama2-gqa-sharded") as checkpoint:
        source = Overridden(checkpoint)
        streamed = list(Transformer(source).window_logits(windows, done.append))
    assert set(source.reads.values()) == {1}
    assert sum(done) == pytest.approx(3)
    np.testing.assert_array_equal(streamed[0], streamed[2])
    assert relative_error(streamed[0], logits) < 1e-4


def test_window_logits_in_groups_are_the_same(monkeypatch):
    tokens, _ = expected("qwen3")
    windows = np.stack((tokens, tokens[::-1], tokens))
    done = []
    with Checkpoint.open(GOLDEN / "qwen3") as checkpoint:
        together = list(Transformer(checkpoint).window_logits(windows))
        monkeypatch.setattr(transformer, "HIDDEN_BYTES", 1)
        one_by_one = list(Transformer(checkpoint).window_logits(windows, done.append))
        some = list(Transformer(checkpoint).window_logits(windows, n_logits=[1, 5, 2]))
    np.testing.assert_array_equal(together, one_by_one)
    assert sum(done) == pytest.approx(3)
    for logits, whole, n_wanted in zip(some, together, (1, 5, 2), strict=True):
        np.testing.assert_allclose(logits, whole[-n_wanted:], rtol=1e-5, atol=1e-6)


def test_keep_reads_each_tensor_once():
    tokens, _ = expected("smollm-tied")
    with Checkpoint.open(GOLDEN / "smollm-tied") as checkpoint:
        kept, streamed = Overridden(checkpoint), Overridden(checkpoint)
        for source, keep in ((kept, True), (streamed, False)):
            model = Transformer(source, keep=keep)
            model.logits(tokens)
            model.logits(tokens)
    assert set(kept.reads.values()) == {1}
    assert min(streamed.reads.values()) == 2


def test_only_names_that_torch_shares_are_called(variant):
    """Torch is no dependency: a namespace of just the names (and keywords) that both modules have stands in for it.

    Weights are read-only, and so is the input: nothing is written in place.
    """
    shared = ("amax", "asarray", "concatenate", "exp", "mean", "moveaxis", "sqrt", "sum", "tanh", "where")
    shared += ("arange", "argmax", "zeros_like")
    namespace = SimpleNamespace(**{name: getattr(np, name) for name in shared})
    tokens, _ = expected(variant)
    with Checkpoint.open(GOLDEN / variant) as checkpoint:
        source = Overridden(checkpoint)
        weights = {name: source.load(f"model.layers.0.{name}") for name in block_tensor_names(source.config, 0)}
        x = source.load("model.embed_tokens.weight")[tokens]
        x.flags.writeable = False
        wanted = Transformer(checkpoint).block(0)(x)
    np.testing.assert_array_equal(Block(source.config, 0, weights, namespace)(x), wanted)


def test_extreme_activations_stay_finite():
    assert np.array_equal(activate("silu", np.float32([-1e4, 0, 1e4]), np), [0, 0, 1e4])
    x = np.zeros((3, 8), dtype=np.float32)
    assert np.all(transformer.rms_norm(x, np.ones(8, np.float32), 1e-5, np) == 0)


def test_positions_continue():
    with Checkpoint.open(GOLDEN / VARIANTS[0]) as checkpoint:
        config = checkpoint.config
    whole, tail = Positions.of(config, 10), Positions.of(config, 4, start=6)
    for rope, (cos, sin) in whole.turns.items():
        np.testing.assert_array_equal(cos[6:], tail.turns[rope][0])
        np.testing.assert_array_equal(sin[6:], tail.turns[rope][1])
    np.testing.assert_array_equal(whole.keys, tail.keys)


EXPERTS = "qwen3-moe", "mixtral", "olmoe", "qwen2-moe"


@pytest.mark.parametrize("variant", EXPERTS)
def test_experts_that_are_read_one_by_one_compute_the_same(variant, monkeypatch):
    tokens, _ = expected(variant)
    with Checkpoint.open(GOLDEN / variant) as checkpoint:
        whole = Transformer(checkpoint).logits(tokens)
        monkeypatch.setattr(transformer, "STACK_BYTES", 0)
        source = Overridden(checkpoint)
        np.testing.assert_array_equal(Transformer(source).logits(tokens), whole)
        layer = checkpoint.config.num_hidden_layers - 1
        stack = f"model.layers.{layer}.mlp.experts.up_proj.weight"
        assert source.reads[stack] > 1
        assert source.rows[stack] == 1


def test_of_equal_experts_the_first_are_chosen():
    """As llama.cpp's and transformers' sorts do; a token is sent to so many, and no more."""
    same = np.full((3, 6), 1 / 6, np.float32)
    same[2] = [0.0, 0.25, 0.25, 0.0, 0.25, 0.25]
    found = experts.chosen(same, 3, np)
    assert found.tolist() == [[True] * 3 + [False] * 3] * 2 + [[False, True, True, False, True, False]]


@pytest.mark.parametrize("variant", EXPERTS)
def test_what_each_expert_is_given_matters(variant):
    """Every expert, its last row too, and the router show in the logits."""
    tokens, logits = expected(variant)
    with Checkpoint.open(GOLDEN / variant) as checkpoint:
        config = checkpoint.config
        layer = next(layer for layer in range(config.num_hidden_layers) if config.has_experts(layer))
        for part in ("experts.gate_proj", "experts.up_proj", "experts.down_proj"):
            for expert in range(config.n_experts):
                source = Overridden(checkpoint)
                source.changed[f"model.layers.{layer}.mlp.{part}.weight"] = lambda w, at=expert: zeroed(w, at)
                assert relative_error(Transformer(source).logits(tokens), logits) > 1e-3, (part, expert)


def zeroed(weights, number):
    changed = weights.copy()
    changed[number, -4:] = 0.0
    return changed
