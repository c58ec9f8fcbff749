"""Mixtures of experts, forwards and back: a router sends each token to some of a layer's gated MLPs.

Arrays, `xp` and shapes are those of `transformer`; a block's experts are stacks (n_experts, out_features, in_features).
What the router gives an expert for a token multiplies what its last linear takes, not what it returns, so that errors
of that linear count as much as its output does.

Source: Shazeer et al. 2017; Jiang et al. 2024 (Mixtral); Qwen1.5-MoE (the shared expert).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from elutq_cli.reference.activation import gated_gradients
from elutq_cli.reference.attention import Array, Namespace
from elutq_formats.block import Branch
from elutq_formats.expert_names import of_expert

if TYPE_CHECKING:
    from elutq_cli.reference.transformer import Block, Observe


class Stack:
    """Matrices of experts that are read when they are needed; it is indexed as an array of three dimensions is.

    Attributes:
        shape: (n_experts, out_features, in_features).
    """

    def __init__(self, shape: tuple[int, ...], load: Callable[[int], Array]) -> None:
        """Read nothing yet; ``load`` returns an expert's matrix by its number."""
        self.shape = shape
        self._load = load

    def __getitem__(self, number: int) -> Array:
        return self._load(number)


def expert_branch(branch: Branch, number: int) -> Branch:
    """Return the gated branch that an expert is, its linears under their own names."""
    readers = tuple(of_expert(reader, number) for reader in branch.readers)
    return Branch("gated", None, readers, of_expert(branch.writer, number))


def probabilities(block: Block, branch: Branch, x: Array) -> Array:
    """Return what the router makes of x: (n, hidden_size) -> (n, n_experts), each row's sum 1."""
    logits = x @ block.weights[f"{branch.router}.weight"].T
    exponentials = block.xp.exp(logits - block.xp.amax(logits, axis=-1, keepdims=True))
    return exponentials / block.xp.sum(exponentials, axis=-1, keepdims=True)


def chosen(of_experts: Array, n_used: int, xp: Namespace) -> Array:
    """Return which experts a token is sent to, those with the most, of equal ones the first: (n, n_experts) booleans.

    Args:
        of_experts: (n, n_experts) probabilities.
        n_used: how many.
        xp: numpy or torch.
    """
    places = xp.arange(of_experts.shape[-1])
    taken = of_experts < 0.0
    for _ in range(n_used):
        best = xp.argmax(xp.where(taken, -1.0, of_experts), axis=-1)
        taken = taken | (best[:, None] == places)
    return taken


def route(block: Block, branch: Branch, x: Array) -> Array:
    """Return what multiplies each expert's output for each token, 0 where it is not sent: (n, n_experts).

    Args:
        block: the block.
        branch: of it, with experts.
        x: (n, hidden_size), what the experts read.
    """
    of_experts = probabilities(block, branch, x)
    weights = of_experts * chosen(of_experts, block.config.n_experts_used, block.xp)
    return weights / total(weights, block) if block.config.normalize_expert_weights else weights


def total(weights: Array, block: Block) -> Array:
    """Return the sum of each row: (n, n_experts) -> (n, 1)."""
    return block.xp.sum(weights, axis=-1, keepdims=True)


def sent_to(weights: Array, number: int, xp: Namespace) -> Array:
    """Return the tokens that an expert is sent, by weights (n, n_experts)."""
    return xp.where(weights[:, number] > 0.0)[0]


def run_experts(block: Block, branch: Branch, x: Array, observe: Observe | None = None) -> Array:
    """Return what the experts make of x together: (..., hidden_size) -> (..., hidden_size).

    Each expert's linears are observed under their own names, with the tokens that it is sent: (tokens, in_features).
    """
    flat = x.reshape(-1, x.shape[-1])
    weights = route(block, branch, flat)
    y = block.xp.zeros_like(flat)
    for number in range(block.config.n_experts):
        tokens = sent_to(weights, number, block.xp)
        if len(tokens):
            expert, own = expert_branch(branch, number), flat[tokens]
            if observe is not None:
                observe(expert.readers[0], own)
            mixed = block.gated_values(expert.readers, own) * weights[tokens, number][:, None]
            if observe is not None:
                observe(expert.writer, mixed)
            y[tokens] = y[tokens] + block.linear(expert.writer, mixed)
    if branch.shared is not None:
        if observe is not None:
            observe(branch.shared.readers[0], flat)
        mixed = shared_values(block, branch.shared, flat)
        if observe is not None:
            observe(branch.shared.writer, mixed)
        y = y + block.linear(branch.shared.writer, mixed)
    return y.reshape(x.shape)


def shared_values(block: Block, shared: Branch, x: Array) -> Array:
    """Return what a shared expert's last linear takes: (n, hidden_size) -> (n, shared_expert_intermediate_size)."""
    return block.gated_values(shared.readers, x) * gate_of(block, shared, x)


def gate_of(block: Block, shared: Branch, x: Array) -> Array:
    """Return how much a shared expert has to say of each token: (n, hidden_size) -> (n, 1)."""
    weight = block.weights[f"{shared.gate}.weight"]
    return 0.5 * (1.0 + block.xp.tanh(0.5 * (x @ weight)))[:, None]


def experts_gradient(
    block: Block, branch: Branch, back: Callable[[str, Array], Array], x: Array, gradient: Array
) -> Array:
    """Go back through ``run_experts(block, branch, x)``: (..., hidden_size) -> (..., hidden_size).

    Which experts a token is sent to counts as given; how much each has to say does not.
    """
    flat, of_y = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, x.shape[-1])
    of_experts = probabilities(block, branch, flat)
    is_chosen = chosen(of_experts, block.config.n_experts_used, block.xp)
    weights = route(block, branch, flat)
    of_x, of_weights = block.xp.zeros_like(flat), block.xp.zeros_like(weights)
    for number in range(block.config.n_experts):
        tokens = sent_to(weights, number, block.xp)
        if len(tokens):
            expert, own = expert_branch(branch, number), flat[tokens]
            of_mixed, weight = back(expert.writer, of_y[tokens]), weights[tokens, number]
            of_weights[tokens, number] = (of_mixed * block.gated_values(expert.readers, own)).sum(-1)
            of_x[tokens] += gated_gradient(block, expert, back, own, of_mixed * weight[:, None])
    if block.config.normalize_expert_weights:
        of_weights = (of_weights - total(of_weights * weights, block)) / total(of_experts * is_chosen, block)
    of_weights = of_weights * is_chosen
    of_logits = of_experts * (of_weights - total(of_experts * of_weights, block))
    of_x = of_x + of_logits @ block.weights[f"{branch.router}.weight"]
    if branch.shared is not None:
        of_x = of_x + shared_gradient(block, branch.shared, back, flat, of_y)
    return of_x.reshape(x.shape)


def shared_gradient(
    block: Block, shared: Branch, back: Callable[[str, Array], Array], x: Array, gradient: Array
) -> Array:
    """Go back through a shared expert: (n, hidden_size) -> (n, hidden_size)."""
    gate, of_mixed = gate_of(block, shared, x), back(shared.writer, gradient)
    of_gate = total(of_mixed * block.gated_values(shared.readers, x), block) * gate * (1.0 - gate)
    through = gated_gradient(block, shared, back, x, of_mixed * gate)
    return through + of_gate * block.weights[f"{shared.gate}.weight"]


def gated_gradient(
    block: Block, branch: Branch, back: Callable[[str, Array], Array], x: Array, gradient: Array
) -> Array:
    """Go back through ``block.gated_values(branch.readers, x)``: (..., intermediate_size) -> (..., hidden_size)."""
    gate, up = (block.linear(name, x) for name in branch.readers)
    of_gate, of_up = gated_gradients(block.config.hidden_act, gate, up, gradient, block.xp)
    return back(branch.readers[0], of_gate) + back(branch.readers[1], of_up)
