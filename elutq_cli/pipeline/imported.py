"""What ``elutq import`` keeps of a checkpoint that others have quantized."""

from elutq_cli.pipeline.layout import Layout
from elutq_formats.errors import ElutqError
from elutq_formats.even_levels import EVEN_WITH_CENTERS
from elutq_formats.model_tensors import EMBEDDING, HEAD
from elutq_formats.source import ModelSource


def kept_layouts(source: ModelSource) -> dict[str, Layout]:
    """Return how the matrices whose levels are kept will be stored, by name, as far as headers tell.

    Those that turn out to have one center for all groups need less.

    Raises:
        ElutqError: there is none, or no groups of ours fit one.
    """
    found = {}
    for name in source.names:
        matrix = source.quantized(name)
        if matrix is not None:
            found[name] = Layout(matrix.bits, matrix.fitting_group_size(), EVEN_WITH_CENTERS)
    if not found:
        raise ElutqError(f"{source.path} has no levels to keep: elutq quantize makes a model file of it")
    if source.config.tie_word_embeddings and EMBEDDING in found:
        found[HEAD] = found[EMBEDDING]
    return found
