"""Names of experts' own matrices, and of the stack that those of a kind are in a layer."""

import re

_OF_EXPERT = re.compile(r"(.+\.experts)\.(0|[1-9][0-9]{0,8})\.(.+)")


def of_expert(stack: str, number: int) -> str:
    """Return the name of an expert's own of a stack, ``experts.w1.weight``: ``experts.3.w1.weight``."""
    module, _, rest = stack.rpartition(".experts.")
    return f"{module}.experts.{number}.{rest}"


def expert_names(stack: str, n_experts: int) -> list[str]:
    """Return what a checkpoint calls the tensors of a stack."""
    return [of_expert(stack, number) for number in range(n_experts)]


def split_expert(name: str) -> tuple[str, int] | None:
    """Return the stack that an expert's own belongs to, and the expert's number; None: it is no expert's."""
    match = _OF_EXPERT.fullmatch(name)
    return None if match is None else (f"{match[1]}.{match[3]}", int(match[2]))
