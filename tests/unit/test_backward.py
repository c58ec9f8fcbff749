"""The backward pass against torch's, and without torch against finite differences and exact expectations."""

from pathlib import Path

import numpy as np
import pytest
from single_linears import of_linear, shared_inputs

from elutq_cli.reference import (
    Block,
    Head,
    Positions,
    Transformer,
    attention,
    backward,
    block_gradients,
    prediction_gradient,
)
from elutq_formats.checkpoint import Checkpoint

GOLDEN = Path(__file__).parent.parent / "data" / "golden"
VARIANTS = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())


def read(variant, dtype=np.float32):
    """The last block and the head of a golden checkpoint, in another type; norms, biases that are not all alike."""
    rng = np.random.default_rng(5)
    with Checkpoint.open(GOLDEN / variant) as checkpoint:
        model = Transformer(checkpoint)
        block, head = model.block(checkpoint.config.num_hidden_layers - 1), model.load_head()
    for name, weight in block.weights.items():
        vary = rng.normal(size=weight.shape) / 4 if weight.ndim == 1 else 0.0
        block.weights[name] = (weight + vary).astype(dtype)
    norm = head.norm + rng.normal(size=head.norm.shape) / 4
    return block, Head(head.config, norm.astype(dtype), head.weight.astype(dtype))


def stream(block, shape, dtype=np.float32):
    """An input of a block, and a gradient at its output."""
    rng = np.random.default_rng(11)
    return rng.normal(size=(2, *shape, block.config.hidden_size)).astype(dtype)


def halves(block, positions):
    """What a block computes before and after its middle, as two functions."""
    first, second = block.data.branches
    return lambda x: x + block.run(first, x, positions), lambda x: x + block.run(second, x, positions)


def relative_error(actual, wanted):
    return np.abs(actual - wanted).max() / np.sqrt(np.mean(np.square(wanted)))


def noise(variant):
    """What float32 may lose: of the Gemmas, whose norms multiply twice a branch, up to 1.4e-5 was seen."""
    return 2e-5 if variant.startswith("gemma") else 1e-5


@pytest.mark.parametrize("query_rows", [5, 256])
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_of_a_block_are_those_of_torch(variant, query_rows, monkeypatch):
    torch = pytest.importorskip("torch", reason="needs torch: pip install 'elutq[torch]'")
    block, _ = read(variant)
    x, gradient = stream(block, (3, 23))
    exact = {name: torch.asarray(weight.astype(np.float64)) for name, weight in block.weights.items()}
    for weight in exact.values():
        weight.requires_grad_()
    attend, mlp = halves(
        Block(block.config, block.layer, exact, torch), Positions.of(block.config, 23, convert=torch.asarray)
    )
    into_block = torch.asarray(x.astype(np.float64)).requires_grad_()
    into_mlp = attend(into_block)
    into_mlp.retain_grad()
    mlp(into_mlp).backward(torch.asarray(gradient.astype(np.float64)))

    monkeypatch.setattr(attention, "QUERY_ROWS", query_rows)
    inputs, of_outputs = {}, {}
    block(x, observe=inputs.__setitem__)
    into = block_gradients(block, x, gradient, Positions.of(block.config, 23), of_outputs.__setitem__)
    stored = {name: weight.grad.numpy() for name, weight in exact.items() if weight.grad is not None}
    groups = shared_inputs(block.data, block.config.n_experts)
    assert set(of_outputs) == {name for group in groups if group[0] in inputs for name in group}
    for shared, *others in (group for group in groups if group[0] in inputs):
        for name in (shared, *others):  # the weight's gradient is the sum of the output's times the input
            of_output, of_input = (each.reshape(-1, each.shape[-1]) for each in (of_outputs[name], inputs[shared]))
            of_weight = of_output.T @ of_input
            assert relative_error(of_weight, of_linear(stored, name)) < noise(variant)
    for found, wanted in zip(into, (into_block, into_mlp), strict=True):
        assert found.dtype == np.float32
        assert relative_error(found, wanted.grad.numpy()) < noise(variant)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradient_of_a_prediction_is_that_of_torch(variant):
    torch = pytest.importorskip("torch", reason="needs torch: pip install 'elutq[torch]'")
    block, head = read(variant)
    x, _ = stream(block, (2 * backward.LOGIT_ROWS + 9,))
    found = prediction_gradient(head, x, np.random.default_rng(3).random(len(x)))

    input = torch.asarray(x.astype(np.float64)).requires_grad_()
    norm, weight = (torch.asarray(each.astype(np.float64)) for each in (head.norm, head.weight))
    scores = torch.log_softmax(Head(head.config, norm, weight, torch)(input), dim=-1)
    sums = np.cumsum(np.exp(scores.detach().numpy()), axis=-1)
    labels = [
        np.searchsorted(row, draw * row[-1], "right")
        for row, draw in zip(sums, np.random.default_rng(3).random(len(x)), strict=True)
    ]
    (-scores[np.arange(len(x)), labels].sum()).backward()
    assert found.dtype == np.float32
    assert relative_error(found, input.grad.numpy()) < noise(variant)


@pytest.mark.parametrize("variant", ["qwen3-biases", "mistral-sliding-window"])
def test_torch_computes_the_same_gradients(variant):
    torch = pytest.importorskip("torch", reason="needs torch: pip install 'elutq[torch]'")
    block, head = read(variant)
    x, gradient = stream(block, (18,))
    found = block_gradients(block, x, gradient, Positions.of(block.config, 18))
    there = Block(block.config, block.layer, {name: torch.asarray(each) for name, each in block.weights.items()}, torch)
    positions = Positions.of(block.config, 18, convert=torch.asarray)
    on_torch = block_gradients(there, torch.asarray(x), torch.asarray(gradient), positions)
    for ours, theirs in zip(found, on_torch, strict=True):
        assert relative_error(theirs.numpy(), ours) < 1e-5
    found = prediction_gradient(head, x, np.random.default_rng(3).random(len(x)))
    there = Head(head.config, torch.asarray(head.norm), torch.asarray(head.weight), torch)
    on_torch = prediction_gradient(there, torch.asarray(x), torch.asarray(np.random.default_rng(3).random(len(x))))
    assert relative_error(on_torch.numpy(), found) < 1e-5


@pytest.mark.parametrize("variant", ["qwen3-biases", "mistral-sliding-window"])
@pytest.mark.parametrize("query_rows", [4, 256])
def test_gradients_of_a_block_are_finite_differences(variant, query_rows, monkeypatch):
    """The derivative along random directions, with all weights in float64."""
    block, _ = read(variant, np.float64)
    x, gradient = stream(block, (2, 18), np.float64)
    positions = Positions.of(block.config, 18)
    attend, mlp = halves(block, positions)
    middle = attend(x)
    monkeypatch.setattr(attention, "QUERY_ROWS", query_rows)
    found = block_gradients(block, x, gradient, positions)
    rng, step = np.random.default_rng(1), 1e-5
    for function, at, wanted in ((block, x, found[0]), (mlp, middle, found[1])):
        for direction in rng.normal(size=(20, *x.shape)):
            change = function(at + step * direction) - function(at - step * direction)
            difference = np.sum(change * gradient) / (2 * step)
            scale = np.linalg.norm(wanted) * np.linalg.norm(direction) / np.sqrt(x.size)
            assert abs(np.sum(wanted * direction) - difference) < 1e-7 * scale


@pytest.mark.parametrize("variant", ["llama1-mha", "qwen3-biases"])
def test_gradient_of_a_prediction_is_a_finite_difference(variant):
    """The labels are known from what goes through the head's weight: the probabilities, less one at the label."""
    block, head = read(variant, np.float64)
    x, _ = stream(block, (19,), np.float64)
    seen = []
    spy = Head(head.config, head.norm, head.weight, multiply=lambda left, right: seen.append(left) or left @ right)
    found = prediction_gradient(spy, x, np.random.default_rng(2).random(len(x)))
    labels = np.argmin(seen[-1], axis=-1)

    def loss(x):
        logits = head(x)
        return np.sum(np.log(np.sum(np.exp(logits), axis=-1)) - logits[np.arange(len(x)), labels])

    step = 1e-5
    for direction in np.random.default_rng(1).normal(size=(20, *x.shape)):
        difference = (loss(x + step * direction) - loss(x - step * direction)) / (2 * step)
        assert abs(np.sum(found * direction) - difference) < 1e-7 * np.linalg.norm(found)


def test_labels_follow_the_distribution():
    probabilities = np.float32([0.5, 0.0, 0.3, 0.15, 0.05, 0.0])
    n_draws = 40_000
    labels = backward.draw(np.tile(7 * probabilities, (n_draws, 1)), np.random.default_rng(0).random(n_draws), np)
    counts = np.bincount(labels, minlength=6)
    assert counts.sum() == n_draws and counts[1] == counts[5] == 0
    deviation = np.sqrt(n_draws * probabilities * (1 - probabilities))
    assert np.all(np.abs(counts - n_draws * probabilities) <= 4 * deviation)
    assert backward.draw(np.float32([[0, 1]]), np.zeros(1), np) == [1]


def test_labels_reach_the_tail_of_a_long_vocabulary():
    """A sum in float32 would stay at 1 however many of the others are added one by one."""
    weights = np.full((8, 1 << 18), 2.0**-25, dtype=np.float32)
    weights[:, 0] = 1.0
    draws = np.linspace(0.993, 1.0, 8, endpoint=False)
    labels = backward.draw(weights, draws, np)
    tail = draws * (1 + (weights.shape[1] - 1) / 2**25) - 1
    np.testing.assert_allclose(labels, 2**25 * tail, atol=2)


def test_gradients_of_predictions_have_the_covariance_of_the_fisher_information():
    """The same token many times: the mean is none, the second moment J^T (diag(p) - p p^T) J."""
    _, head = read("llama1-mha", np.float64)
    rng = np.random.default_rng(4)
    x = rng.normal(size=head.config.hidden_size)
    n_draws = 20_000
    gradients = prediction_gradient(head, np.tile(x, (n_draws, 1)), rng.random(n_draws))
    step = 1e-5 * np.eye(x.size)
    jacobian = (head(x + step) - head(x - step)).T / 2e-5
    logits = head(x)
    p = np.exp(logits - logits.max())
    p /= p.sum()
    fisher = jacobian.T @ (np.diag(p) - np.outer(p, p)) @ jacobian
    assert np.linalg.norm(gradients.mean(axis=0)) < 2 * np.sqrt(np.trace(fisher) / n_draws)
    assert np.linalg.norm(gradients.T @ gradients / n_draws - fisher) < 0.1 * np.linalg.norm(fisher)
