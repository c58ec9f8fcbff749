"""Mixtures of experts in the C runtime: against float64, in any company, and by the bytes that they read."""

import numpy as np
import pytest
from expert_oracle import Oracle, silence_attention
from gguf_container import Container
from make_models import expert_config, write_random, write_stored

from elutq_cli.benchmark import synthetic
from elutq_formats.model_file import ModelFile
from elutq_native import Engine, Model, NativeError, NativeSequence, Run, lib, supported_kernels

TOKENS = np.random.default_rng(24).integers(256, size=140).tolist()
MIXTURES = {
    "qwen3": expert_config(
        n_experts=16, n_experts_used=4, shared_expert_intermediate_size=0, normalize_expert_weights=True
    ),
    "mixtral": expert_config(n_experts=3, shared_expert_intermediate_size=0, normalize_expert_weights=True),
    "a shared expert": expert_config(),
    "norms after and a dense layer": expert_config(norm_after=True, expert_layers=(False, True)),
    "no norm before": expert_config(norm_before=False, norm_after=True),
    "gelus": expert_config(hidden_act="gelu_pytorch_tanh"),
    "a single one": expert_config(n_experts=1, n_experts_used=1),
    "all of them": expert_config(n_experts=3, n_experts_used=3),
}
LAYOUTS = {"gate": (2, 64, "free8"), "up": (3, 32, "free16"), "down": (4, 32, "even8")}
"""Of experts and MLPs: what shares an input differs."""


def relative_rms(found, wanted):
    return np.sqrt(np.mean((found - wanted) ** 2) / np.mean(wanted**2))


def hidden(path, tokens, isa=None, threads=1, step=None):
    """Hidden states of all tokens, given at once or `step` at a time."""
    step = step or len(tokens)
    with Model(path, isa) as model, Engine(model, threads) as engine, NativeSequence(model, len(tokens)) as sequence:
        found = np.full((len(tokens), model.info.hidden_size), np.nan, np.float32)
        for at in range(0, len(tokens), step):
            engine.eval([Run(sequence, tokens[at : at + step], 0, found[at : at + step])])
    return found


def write_quantized(path, config, parts=("gate", "up", "down")):
    """Writes a model in fp16, but for these parts of MLPs, which are of LAYOUTS."""
    layouts = {}
    for name in config.tensor_shapes():
        part = next((part for part in parts if f"{part}_proj" in name), None)
        layouts[name] = LAYOUTS[part] if part and "mlp" in name else (16, None, "free16")
    write_stored(path, config, layouts)


@pytest.fixture(scope="module", params=MIXTURES)
def half(request, tmp_path_factory):
    """A mixture in fp16 whose attention adds nothing, and its oracle's hidden states."""
    path = tmp_path_factory.mktemp("half") / "model.gguf"
    write_random(path, MIXTURES[request.param], bits=4, group_size=32, half="")
    silence_attention(path)
    return path, Oracle(path).hidden(TOKENS)


@pytest.fixture(scope="module", params=MIXTURES)
def quantized(request, tmp_path_factory):
    """The same, quantized, of one layer: what its router reads is not rounded."""
    path = tmp_path_factory.mktemp("quantized") / "model.gguf"
    config = MIXTURES[request.param]
    layers = None if config.expert_layers is None else (True,)
    write_quantized(path, expert_config(**{**vars(config), "num_hidden_layers": 1, "expert_layers": layers}))
    silence_attention(path)
    return path, Oracle(path).hidden(TOKENS)


@pytest.mark.parametrize("isa", supported_kernels())
@pytest.mark.parametrize("step", [None, 1, 3], ids=["batch", "tokens", "threes"])
def test_experts_in_fp16_give_what_float64_gives(half, step, isa):
    path, wanted = half
    assert relative_rms(hidden(path, TOKENS, isa, step=step), wanted) < 2e-6


@pytest.mark.parametrize("isa", supported_kernels())
@pytest.mark.parametrize("step", [None, 1, 30], ids=["batch", "tokens", "thirties"])
def test_quantized_experts_are_within_two_percent_of_float64(quantized, step, isa):
    path, wanted = quantized
    error = relative_rms(hidden(path, TOKENS, isa, step=step), wanted)
    print(f"{isa}: relative RMS {error:.4f}")
    assert error < 0.02


def test_another_expert_would_be_seen(quantized):
    """The bound above is far below what one wrong expert of a layer makes."""
    path, wanted = quantized
    oracle = Oracle(path)
    load = oracle.load
    oracle.load = lambda name: np.roll(load(name), 1, axis=0) if "experts.down" in name else load(name)
    if oracle.config.n_experts > 1:
        assert relative_rms(oracle.hidden(TOKENS), wanted) > 0.1


@pytest.mark.parametrize("isa", supported_kernels())
def test_threads_change_no_bit_of_experts(quantized, isa):
    path, _ = quantized
    for step, n in ((1, 3), (9, 27), (140, 140)):
        once = hidden(path, TOKENS[:n], isa, 1, step)
        for threads in (2, 3):
            assert np.array_equal(hidden(path, TOKENS[:n], isa, threads, step), once)


def test_decode_through_experts_gives_the_same_bits_on_every_isa(quantized):
    path, _ = quantized
    scalar = hidden(path, TOKENS[:40], "scalar", step=1)
    for isa in supported_kernels():
        assert np.array_equal(hidden(path, TOKENS[:40], isa, step=1), scalar), isa


def test_of_experts_that_are_equally_likely_the_first_are_used(tmp_path):
    path = tmp_path / "ties.gguf"
    write_random(path, expert_config(shared_expert_intermediate_size=0), bits=4, group_size=32, half="")
    silence_attention(path)
    container = Container(path.read_bytes())
    for layer in (0, 1):  # a router of zeros: experts 0 and 1, a fifth each
        container.patch(f"blk.{layer}.ffn_gate_inp.weight", 0, bytes(5 * 128 * 4))
    path.write_bytes(container.bytes())
    wanted = Oracle(path).hidden(TOKENS)
    assert relative_rms(hidden(path, TOKENS), wanted) < 2e-6
    for layer in (0, 1):
        for part in ("gate", "up", "down"):  # what is not used can be anything
            name = f"blk.{layer}.ffn_{part}_exps.weight"
            container.patch(name, 2 * 2 * 128 * 64, b"\x00\x7c" * (3 * 128 * 64))
    path.write_bytes(container.bytes())
    assert relative_rms(hidden(path, TOKENS), wanted) < 2e-6


def test_experts_of_odd_widths_in_fp16_lie_where_no_float_could(tmp_path):
    """The second expert begins two bytes behind a multiple of four: sanitizers see who takes it for floats."""
    path = tmp_path / "odd.gguf"
    mixture = expert_config(
        n_experts_used=3, hidden_size=127, expert_intermediate_size=63, shared_expert_intermediate_size=95
    )
    write_random(path, mixture, bits=4, group_size=32, half="")
    silence_attention(path)
    wanted = Oracle(path).hidden(TOKENS)
    for isa in supported_kernels():
        assert relative_rms(hidden(path, TOKENS, isa), wanted) < 2e-6
        with Model(path, isa) as model, Engine(model, 2) as engine:
            engine.read_weights()


@pytest.mark.parametrize("parts", [("gate",), ("up",), ("down",), ("gate", "up"), ("up", "down")], ids="+".join)
def test_some_parts_of_experts_may_be_fp16(parts, tmp_path):
    path = tmp_path / "model.gguf"
    write_quantized(path, expert_config(num_hidden_layers=1), parts)
    silence_attention(path)
    wanted = Oracle(path).hidden(TOKENS)
    for isa in supported_kernels():
        for step in (None, 1, 3):
            assert relative_rms(hidden(path, TOKENS, isa, step=step), wanted) < 0.02


@pytest.mark.parametrize("isa", supported_kernels())
def test_experts_need_not_begin_at_a_multiple_of_64_bytes(isa, tmp_path):
    path = tmp_path / "model.gguf"
    config = expert_config(
        num_hidden_layers=1, hidden_size=96, expert_intermediate_size=96, shared_expert_intermediate_size=96
    )
    write_stored(path, config, {n: (4, 32, "even8") if "mlp" in n else (16, None, "") for n in config.tensor_shapes()})
    assert ModelFile.open(path).tensors["blk.0.ffn_up_exps.weight"].matrix_bytes % 64 == 32
    silence_attention(path)
    wanted = Oracle(path).hidden(TOKENS)
    for step in (None, 1, 3):
        assert relative_rms(hidden(path, TOKENS, isa, step=step), wanted) < 0.02


@pytest.mark.parametrize("isa", supported_kernels())
def test_all_rows_may_use_the_same_expert(isa, tmp_path):
    """A router of zeros: the first expert has every row, more of them than its share, and the others none."""
    path = tmp_path / "crowded.gguf"
    config = expert_config(
        n_experts=2, n_experts_used=1, shared_expert_intermediate_size=0, num_hidden_layers=1, num_attention_heads=4
    )
    write_quantized(path, config)
    silence_attention(path)
    container = Container(path.read_bytes())
    container.patch("blk.0.ffn_gate_inp.weight", 0, bytes(2 * 128 * 4))
    path.write_bytes(container.bytes())
    tokens = TOKENS[:128]  # one piece, of 64 rows an expert
    assert relative_rms(hidden(path, tokens, isa), Oracle(path).hidden(tokens)) < 0.02


def test_a_damaged_expert_is_named_when_it_is_used(tmp_path):
    path = tmp_path / "damaged.gguf"
    write_random(path, expert_config(), bits=2, group_size=32)
    container = Container(path.read_bytes())
    of_one = ModelFile.open(path).tensors["blk.0.ffn_up_exps.weight"].matrix_bytes
    for at in range(0, 64, 2):  # of the last expert
        container.patch("blk.0.ffn_up_exps.weight", 4 * of_one + at, b"\x00\x7e")
    path.write_bytes(container.bytes())
    with (
        Model(path) as model,
        model.session(160, 1) as session,
        pytest.raises(NativeError, match=r"blk\.0\.ffn_up_exps\.weight holds a scale or weight that no model has"),
    ):
        session.eval(TOKENS)


@pytest.mark.parametrize("name", ["qwen3", "a shared expert", "norms after and a dense layer"])
def test_bytes_of_a_token_are_those_of_the_experts_that_it_is_sent_to(name, tmp_path):
    config, path = MIXTURES[name], tmp_path / "model.gguf"
    write_random(path, config, bits=2, group_size=32)
    expected = 0
    for record in ModelFile.open(path).tensors.values():
        if record.name == "token_embd.weight":
            expected += record.n_bytes // config.vocab_size
        elif record.n_experts is not None:
            expected += record.matrix_bytes * config.n_experts_used
        elif len(record.shape) > 1:
            expected += record.n_bytes
    with Model(path) as model, Engine(model, 3) as engine:
        assert model.info.bytes_per_token == expected
        engine.read_weights()


def test_rows_find_the_time_of_routing_under_its_name(tmp_path):
    path = tmp_path / "model.gguf"
    write_random(path, expert_config(), bits=2, group_size=32)
    with Model(path) as model, Engine(model, 2) as engine, NativeSequence(model, 40) as sequence:
        with engine.profile() as operations:
            engine.eval([Run(sequence, TOKENS[:40])])
        assert operations["route"] > 0 and operations["gate_up"] > 0
        assert len(operations) == lib.ELUTQ_N_OPERATIONS


def test_tokens_of_a_synthetic_mixture_stay_apart_so_that_all_experts_are_used(tmp_path, monkeypatch):
    """A benchmark's prompt reads the experts that a text's would: tokens alike would all be sent to the same few."""
    config = expert_config(num_hidden_layers=12, shared_expert_intermediate_size=128)
    path, likeness = tmp_path / "model.gguf", []
    for quiet in (synthetic.QUIET, 1.0):
        monkeypatch.setattr(synthetic, "QUIET", quiet)
        synthetic.write_synthetic(path, config)
        states = hidden(path, TOKENS)
        states /= np.linalg.norm(states, axis=1, keepdims=True)
        likeness.append(np.abs(np.mean(states @ states.T)))
    print(likeness)
    assert likeness[0] < 0.1 < 0.3 < likeness[1]
