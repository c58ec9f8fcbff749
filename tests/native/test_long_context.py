"""Contexts past 32,768 tokens: positions, the cache's rows and a saved state, against the reference.

Keys and values of the tokens before are random, and the same in both: the runtime gets them as a state, the reference
as its cache. The reference computes angles in float64, the runtime, as the checkpoints' own code, in float: at position
p and frequency f <= 1 it rounds p f twice, so that an angle is off by p 2^-23 at most, 0.005 here.
"""

from dataclasses import replace

import numpy as np
import pytest
from make_models import golden_config, write_random

from elutq_cli.reference import Transformer
from elutq_formats.model_file import ModelFile
from elutq_native import Model, supported_kernels

CONTEXT = 40_000
N_NEW = 6
STARTS = [(1 << 15) - N_NEW // 2, CONTEXT - N_NEW]
"""Across 32,768, and to the end of the context."""
FAMILIES = ["llama2-gqa-sharded", "llama31-rope-scaling", "mistral-sliding-window", "gemma3"]
TOKENS = np.random.default_rng(6).integers(128, size=N_NEW)


@pytest.fixture(scope="module", params=FAMILIES)
def path(request, tmp_path_factory):
    """A model of fp16 matrices, so that only the cache rounds."""
    config = replace(golden_config(request.param), max_position_embeddings=CONTEXT)
    path = tmp_path_factory.mktemp("long") / f"{request.param}.gguf"
    write_random(path, config, bits=4, group_size=32, half="")
    return path


def past_rows(session, n_tokens):
    """Random rows of a cache, keys long enough that each query attends to few of them: a state, and its numbers."""
    rng, info = np.random.default_rng(n_tokens), session.model.info
    shape, size = (info.n_layers, 2, info.n_kv_heads, n_tokens, 0), info.head_dim
    if session.cache_type == "f16":
        values = rng.normal(0, 3, (*shape[:-1], size)).astype(np.float16)
        return values.view(np.uint8), values.astype(np.float32)
    codes = rng.integers(-127, 128, (*shape[:-1], size), dtype=np.int8)
    scales = np.full((*shape[:-1], 1), 5 / 127, np.float32)
    return np.concatenate((codes.view(np.uint8), scales.view(np.uint8)), axis=-1), codes * scales


def key_divisors(path):
    """What keys are divided by before they are rounded to int8 (key_balance.h): (layers, kv_heads, 1, head_dim)."""
    file = ModelFile.open(path)
    config = file.config
    found = []
    for layer in range(config.num_hidden_layers):
        name = f"model.layers.{layer}."
        if config.qk_norm:
            power = np.tile(file.load(f"{name}self_attn.k_norm.weight") ** 2, config.num_key_value_heads)
        else:
            rows = file.load(f"{name}self_attn.k_proj.weight") * file.load(f"{name}input_layernorm.weight")
            power = (rows**2).sum(axis=1)
        power = power.reshape(config.num_key_value_heads, 2, -1).sum(axis=1)
        times = power / np.sort(power, axis=1)[:, power.shape[1] // 2, None]
        found.append(np.tile(times**0.375, 2)[:, None])
    return np.array(found)


def reference(path, past, start):
    """Logits (n_new, vocab_size) after those tokens, and the first layer's new keys (kv_heads, n_new, head_dim)."""
    model = Transformer(ModelFile.open(path))
    cache = {layer: (keys.swapaxes(0, 1), values.swapaxes(0, 1)) for layer, (keys, values) in enumerate(past)}
    logits = model.head(model.hidden(TOKENS, start, cache))
    return logits, cache[0][0][start:].swapaxes(0, 1)


def relative_rms(found, wanted):
    return np.sqrt(np.mean((found - wanted) ** 2) / np.mean(wanted**2))


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize(("cache_type", "bound"), [("f16", 0.003), ("q8", 0.01)])
def test_tokens_past_32k_give_the_references_logits(path, cache_type, bound, start):
    with Model(path) as model, model.session(CONTEXT, 2, cache_type) as session:
        state, past = past_rows(session, start)
        if cache_type == "q8":
            past[:, 0] *= key_divisors(path)
        wanted, wanted_keys = reference(path, past, start)
        runs = []
        for isa in supported_kernels() if start == STARTS[1] else supported_kernels()[:1]:
            with Model(path, isa) as model_of_isa, model_of_isa.session(CONTEXT, 2, cache_type) as session:
                session.import_state(state, start)
                batch = session.eval(TOKENS, all_logits=True)
                session.rewind(start)
                single = np.stack([session.eval([token]) for token in TOKENS])
                assert session.position == start + N_NEW
                new = session.export_state(start, N_NEW).reshape(*state.shape[:3], N_NEW, -1)
                runs.append(single)
            errors = [relative_rms(found, wanted) for found in (batch, single)]
            print(f"{isa}: relative RMS {errors[0]:.5f} in a batch, {errors[1]:.5f} token by token")
            assert max(errors) < bound * model.info.n_layers / 2  # every layer's cache rounds
        assert all((run == runs[0]).all() for run in runs)
    if cache_type == "f16":
        keys = new[0, 0].view(np.float16).astype(np.float32)
        length = np.abs(wanted_keys).max()
        assert np.abs(keys - wanted_keys).max() < length * (CONTEXT * 2.0**-23 + 2.0**-10)


def test_these_logits_would_show_a_position_or_a_row_that_is_off_by_one(path):
    with Model(path) as model, model.session(CONTEXT, 1) as session:
        start = STARTS[1]
        _, past = past_rows(session, start)
    wanted, wanted_keys = reference(path, past, start)
    shifted_keys = past.copy()
    shifted_keys[:, 0] = np.roll(past[:, 0], 1, axis=2)
    assert relative_rms(reference(path, shifted_keys, start)[0], wanted) > 0.1
    logits, keys = reference(path, past[:, :, :, 1:], start - 1)
    assert relative_rms(logits, wanted) > 0.1
    assert np.abs(keys - wanted_keys).max() > 0.1 * np.abs(wanted_keys).max()


@pytest.mark.parametrize("cache_type", ["f16", "q8"])
def test_a_state_of_more_than_32k_tokens_goes_on_as_the_session_it_came_from(path, cache_type):
    start = STARTS[1]
    with (
        Model(path) as model,
        model.session(CONTEXT, 2, cache_type) as session,
        model.session(CONTEXT, 1, cache_type) as other,
    ):
        session.import_state(past_rows(session, start)[0], start)
        session.eval(TOKENS[:-1])
        for first in range(0, CONTEXT, 8_000):
            n_tokens = 8_000 - (first == 32_000)
            other.import_state(session.export_state(first, n_tokens), n_tokens)
        assert np.array_equal(other.export_state(0, CONTEXT - 1), session.export_state(0, CONTEXT - 1))
        np.testing.assert_array_equal(other.eval(TOKENS[-1:]), session.eval(TOKENS[-1:]))
        assert other.position == CONTEXT
