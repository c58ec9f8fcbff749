"""The linears of a block by themselves: an expert's own in the place of its layer's stacks."""

from elutq_cli.pipeline.stages.row_errors import Sample, round_rows
from elutq_cli.reference.experts import expert_branch
from elutq_formats.expert_names import split_expert


def shared_inputs(layer, n_experts):
    """Those together that take the same input, in the order of their computation; an expert may have no tokens."""
    found = []
    for branch in layer.branches:
        if branch.mixer == "experts":
            found += [group for number in range(n_experts) for group in expert_branch(branch, number).shared_inputs]
            found += [] if branch.shared is None else branch.shared.shared_inputs
        else:
            found += branch.shared_inputs
    return found


def of_linear(weights, linear):
    """What a mapping or a loader from names of weights has for a linear."""
    stack, number = split_expert(linear) or (linear, ...)
    found = weights(f"{stack}.weight") if callable(weights) else weights[f"{stack}.weight"]
    return found[number]


def errors_of(weights, hessian, factor, options, backend):
    """What rounding does to some rows of a matrix in each layout."""
    sample = Sample.of(weights, options, backend)
    return sample.measured(round_rows(sample.rows, sample.layouts, hessian, factor, backend))
