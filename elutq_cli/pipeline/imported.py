"""What ``elutq import`` keeps of a checkpoint: levels that others have quantized it to, or trained it on."""

from elutq_cli.pipeline.layout import Layout
from elutq_formats.errors import ElutqError
from elutq_formats.even_levels import EVEN_WITH_CENTERS
from elutq_formats.model_tensors import EMBEDDING, HEAD
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
    if not any(source.quantized(name) for name in source.names):
        _look_at_weights(source, run)
    found = {}
    for name in source.names:
        matrix = source.quantized(name)
        if matrix is not None:
            found[name] = Layout(matrix.bits, matrix.fitting_group_size(), EVEN_WITH_CENTERS)
    if source.config.tie_word_embeddings and EMBEDDING in found:
        found[HEAD] = found[EMBEDDING]
    return found


def _look_at_weights(source: ModelSource, run: Run) -> None:
    """Find the levels of a model that was trained on them and is stored as floats.

    Raises:
        ElutqError: one of the blocks' matrices is on none.
    """
    for layer in range(source.config.num_hidden_layers):
        for name in source.config.linear_names(layer):
            if not source.find_levels(name, run):
                raise ElutqError(
                    f"{source.path} has no levels to keep: weights of {name} are neither -s, 0 and s nor -s and s in "
                    "groups of 32 columns or more; elutq quantize makes a model file of it"
                )
    for name in (EMBEDDING, HEAD):
        if source.has(name):
            source.find_levels(name, run)
