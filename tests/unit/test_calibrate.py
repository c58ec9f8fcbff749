"""Calibration: Hessians of a block as it changes, sequences longer than a batch, more batches than memory holds."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import needs_rounded_products
from single_linears import shared_inputs

from elutq_cli.pipeline.compute.backend import native_backend, numpy_backend
from elutq_cli.pipeline.compute.products import AT_ONCE, multiply_rounded
from elutq_cli.pipeline.layout import Layout
from elutq_cli.pipeline.stages.calibrate import block_statistics
from elutq_cli.pipeline.stages.feedback import feedback, inverse_factor
from elutq_cli.pipeline.stages.moments import TOKENS_AT_ONCE
from elutq_cli.pipeline.stages.refine import refine
from elutq_cli.reference import Block, Transformer
from elutq_formats.checkpoint import Checkpoint
from elutq_formats.expert_names import split_expert

DATA = Path(__file__).parent.parent / "data"
FOLDER = DATA / "golden" / "llama2-gqa-sharded"
GOLDEN = sorted(path for path in (DATA / "golden").iterdir() if path.is_dir())


@pytest.fixture(scope="module")
def block():
    with Checkpoint.open(FOLDER) as checkpoint:
        return Transformer(checkpoint).block(0)


def streams(n_sequences, n_tokens):
    """A residual stream, and an exact one beside it."""
    rng = np.random.default_rng(7)
    hidden = rng.normal(size=(n_sequences, n_tokens, 64)).astype(np.float32)
    hidden *= rng.uniform(0.25, 4.0, size=(n_sequences, n_tokens, 1)).astype(
        np.float32
    )  # tokens count unlike each other
    return hidden, hidden + rng.normal(size=hidden.shape).astype(np.float32) / 16


def reference(block, hidden, exact):
    """Moments of every input in float64, from each sequence's own pass through the block: [H], or [H, L], by linear."""
    found = {}
    for x, other in zip(hidden, exact, strict=True):
        seen, wanted = {}, {}
        block(x, observe=seen.__setitem__)
        block(other, observe=wanted.__setitem__)
        after, writers = (x, other), [branch.writer for branch in block.data.branches]
        for linear in seen:
            here, there = seen[linear].astype(np.float64), wanted[linear].astype(np.float64)
            moments = found.setdefault(linear, [0.0, 0.0] if linear in writers else [0.0])
            counts = np.ones((len(here), 1))
            if linear in writers:
                weight = block.weights[f"{linear}.weight"].astype(np.float64)
                after = after[0] + here @ weight.T, after[1] + there @ weight.T
                counts = (np.square(after[1]).mean(axis=1, keepdims=True) + block.config.rms_norm_eps) ** -0.5
                moments[1] += (after[1] - after[0]).T @ (counts * here) / hidden[..., 0].size
            moments[0] += here.T @ (counts * here) / hidden[..., 0].size
    return found


SHAPES = [(3, TOKENS_AT_ONCE + 76), (2, 2 * TOKENS_AT_ONCE), (2 * AT_ONCE * 11 + 3, 93)]
"""Sequences and tokens in each: longer than a batch, a multiple of it, and more batches than run together."""


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rounds", [False, pytest.param(True, marks=needs_rounded_products)])
def test_moments_are_those_of_all_tokens(block, shape, rounds):
    hidden, exact = streams(*shape)
    expected = reference(block, hidden, exact)
    with native_backend(2, rounds) as backend:
        for (first, *_), statistics in block_statistics(block.copy(), hidden.copy(), exact.copy(), backend):
            moments = [of for of in (statistics.hessian, statistics.lack) if of is not None]
            for found, wanted in zip(moments, expected[first], strict=True):
                if rounds:
                    assert np.linalg.norm(found - wanted) < 0.03 * np.linalg.norm(wanted)
                else:
                    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=2e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("rounds", [False, pytest.param(True, marks=needs_rounded_products)])
def test_threads_do_not_change_a_bit(block, rounds):
    bits = set()
    several = [native_backend(threads, rounds) for threads in (1, 3, 2 * AT_ONCE + 1)]
    for backend in several if rounds else (numpy_backend(), *several):
        hidden, exact = streams(*SHAPES[2])
        own = Block(block.config, block.layer, block.weights, multiply=partial(multiply_rounded, backend=backend))
        moments = [statistics for _, statistics in block_statistics(own, hidden, exact, backend)]
        seconds = [of.lack for of in moments if of.lack is not None]
        bits.add(b"".join(array.tobytes() for array in (hidden, exact, *seconds, *(of.hessian for of in moments))))
    assert len(bits) == 1


def test_long_sequences_give_the_weights_of_a_reference_computation(block):
    """The first linears of a block, quantized with H accumulated by batches, and with H of all tokens in float64."""
    hidden, exact = streams(*SHAPES[0])
    expected = reference(block, hidden, exact)
    weights = block.weights["self_attn.q_proj.weight"]
    with native_backend(2) as backend:
        (_, statistics) = next(block_statistics(block.copy(), hidden, None, backend))
        hessian = expected["self_attn.q_proj"][0].astype(np.float32)
        tensors = []
        for used in (statistics.hessian, hessian):
            start = feedback(weights, inverse_factor(used, 0.1, backend), Layout(3, 32), backend)
            tensors.append(refine(weights, used, start, 0.1, backend))
    assert np.mean(tensors[0].codes == tensors[1].codes) > 0.99
    found, wanted = ((tensor.dequantize() - weights).astype(np.float64) for tensor in tensors)
    errors = [np.einsum("rc,cd,rd->", error, hessian.astype(np.float64), error) for error in (found, wanted)]
    assert errors[0] == pytest.approx(errors[1], rel=0.005)


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda folder: folder.name)
def test_hessians_are_those_of_the_block_as_changed_so_far(folder):
    """Every Hessian against a fresh pass through the whole block, with the weights replaced up to then."""
    rng = np.random.default_rng(0)
    with Checkpoint.open(folder) as checkpoint:
        model = Transformer(checkpoint)
        block = model.block(0)
        tokens = rng.integers(0, checkpoint.config.vocab_size, (5, 20))
        start = model.embed(tokens)
    hidden, backend, changed = start.copy(), numpy_backend(), block.copy()
    seen_linears = []
    for linears, statistics in block_statistics(block, hidden, None, backend):
        found = statistics.hessian
        inputs = {}
        changed(start, observe=inputs.__setitem__)
        expected = hessian_of_inputs(inputs, linears[0], found.shape[0])
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
        for linear in linears:
            weights = (rng.normal(size=block.weight(linear).shape) / 8).astype(np.float32)
            block.weights[f"{linear}.weight"] = changed.weights[f"{linear}.weight"] = weights
        seen_linears += linears
    groups = shared_inputs(block.data, block.config.n_experts)
    assert sorted(seen_linears) == sorted(name for group in groups for name in group)
    if block.data.routed is None:
        assert tuple(seen_linears) == block.data.linears
    np.testing.assert_allclose(hidden, changed(start), rtol=1e-4, atol=1e-5)


def hessian_of_inputs(inputs, linear, columns):
    """What a linear is given; of an expert shrunk towards what all of its layer are."""

    def moment(name):
        x = inputs[name].reshape(-1, columns).astype(np.float64)
        return x.T @ x, len(x)

    found = split_expert(linear)
    if found is None:
        total, n_tokens = moment(linear)
        return total / n_tokens
    kin = [name for name in inputs if split_expert(name) is not None and split_expert(name)[0] == found[0]]
    totals, counts = zip(*map(moment, kin), strict=True)
    of_layer = sum(totals) / sum(counts)
    if "down_proj" not in linear:  # the layer's is that of all tokens once, however many experts each is sent to
        rows = np.unique(np.concatenate([inputs[name] for name in kin]), axis=0).astype(np.float64)
        of_layer = rows.T @ rows / len(rows)
    if linear not in inputs:
        return of_layer
    total, n_tokens = moment(linear)
    own, part = total / n_tokens, columns / (columns + n_tokens)
    return (1 - part) * own + part * np.trace(own) / np.trace(of_layer) * of_layer
