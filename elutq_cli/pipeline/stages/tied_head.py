"""A head that is the embedding, too: what the exact model gives it, known before anything is quantized.

One matrix is read twice. As the embedding each of its rows counts by itself; as the head it multiplies the normed
stream, a few channels of which are much larger than the others, and its errors there go straight into the predictions.
So it goes through the stages as a head does. At 4 bits in groups of 64 that leaves SmolLM2-135M, all else in float16,
a KL divergence of 0.015 nats where a fit to the weights alone leaves 0.076.
"""

from collections.abc import Callable

from elutq_cli.pipeline.compute.backend import Backend
from elutq_cli.pipeline.compute.levels import FloatArray
from elutq_cli.pipeline.stages.moments import InputStatistics, MakeRoom, head_statistics, in_memory
from elutq_cli.pipeline.stages.streams import run_block
from elutq_cli.reference import Transformer
from elutq_formats.model_tensors import FINAL_NORM


def tied_head_statistics(
    model: Transformer,
    hidden: FloatArray,
    backend: Backend,
    make_room: MakeRoom = in_memory,
    note: Callable[[str], None] = lambda text: None,
) -> InputStatistics:
    """Return the second moments of what the exact model gives its head.

    Allocate sums the same, where it runs; but a run that was stopped after it begins with the embedding.

    Args:
        model: the exact one; one block of it is in memory at a time.
        hidden: (sequences, n, hidden_size) float32, the first block's input; becomes the last one's output.
        backend: runs the blocks, and sums the moments.
        make_room: for activations.
        note: is told how far it is.
    """
    for layer in range(model.config.num_hidden_layers):
        note(f"forwards through block {layer}")
        run_block(model.block(layer), hidden, backend, make_room)
    return head_statistics(model.config, model.source.load(FINAL_NORM), hidden, backend, make_room)
