"""What ``elutq import`` keeps of a checkpoint: levels that others have quantized it to, or trained it on."""

import math
from collections import Counter
from collections.abc import Sequence

from elutq_cli.pipeline.layout import Layout
from elutq_cli.pipeline.recipe import HALF_BITS, MatrixPlan, Plan
from elutq_formats.errors import ElutqError
from elutq_formats.model_tensors import EMBEDDING, HEAD
from elutq_formats.names import gguf_name
from elutq_formats.safetensors_file import Run
from elutq_formats.source import ModelSource


def kept_layouts(source: ModelSource, run: Run = map) -> dict[str, Layout]:
    """Return how the matrices whose levels are kept will be stored, by name, as far as headers tell.

    Those that turn out to have one center for all groups need less. Where headers tell of no levels, all weights are
    looked at.

    Args:
        source: the checkpoint.
        run: ``map``, or what does the same on several threads.

    Raises:
        ElutqError: there is none, or no groups of ours fit one.
    """
    linears = [name for layer in range(source.config.num_hidden_layers) for name in source.config.linear_names(layer)]
    if not any(source.quantized(name) for name in linears):
        _look_at_weights(source, linears, run)
    found = {}
    for name in source.names:
        matrix = source.quantized(name)
        if matrix is not None:
            found[name] = Layout(matrix.bits, matrix.fitting_group_size(), matrix.kind)
    if source.config.tie_word_embeddings and EMBEDDING in found:
        found[HEAD] = found[EMBEDDING]
    return found


def describe_others(source: ModelSource, plan: Plan) -> list[str]:
    """Say of the matrices whose levels are not kept what becomes of them, in a line for each fate."""
    others = [matrix for matrix in plan.matrices() if not matrix.kept]
    halves = [matrix for matrix in others if matrix.layout is None]
    anew = [matrix for matrix in others if matrix.layout is not None]
    lines = []
    if halves:
        n_weights = sum(math.prod(source.shape(_stored_name(source, matrix))) for matrix in halves)
        size = n_weights * HALF_BITS / 8e6
        lines.append(f"float16 in the file, {size:.2f} MB, levels not kept: {_name_all(source, halves)}")
    if anew:
        lines.append(
            f"quantized anew, levels not kept: {_name_all(source, anew)}; --embedding-bits and --output-bits "
            "say how, 16 as float16"
        )
    return lines


def _name_all(source: ModelSource, matrices: Sequence[MatrixPlan]) -> str:
    """Name matrices with their types, those of all blocks together."""
    counts: Counter[tuple[str, str]] = Counter()
    for matrix in matrices:
        first, _, rest = gguf_name(matrix.name).removesuffix(".weight").partition(".")
        name = f"blk.*.{rest.partition('.')[2]}" if rest else first
        counts[name, source.dtype(_stored_name(source, matrix))] += 1
    return ", ".join(
        f"{name} ({f'{n} of ' if name.startswith('blk.') else ''}{dtype})" for (name, dtype), n in counts.items()
    )


def _stored_name(source: ModelSource, matrix: MatrixPlan) -> str:
    return EMBEDDING if matrix.name == HEAD and not source.has(HEAD) else matrix.name


def _look_at_weights(source: ModelSource, linears: Sequence[str], run: Run) -> None:
    """Find the levels of a model that was trained on them and is stored as floats.

    Raises:
        ElutqError: one of the blocks' matrices is on none.
    """
    for name in linears:
        if not source.find_levels(name, run):
            raise ElutqError(
                f"{source.path} has no levels to keep: weights of {name} ({source.dtype(name)}) are neither -s, 0 and "
                "s nor -s and s in groups of 32 columns or more; elutq quantize makes a model file of it"
            )
    for name in (EMBEDDING, HEAD):
        if source.has(name):
            source.find_levels(name, run)
