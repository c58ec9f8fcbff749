"""The calibrate stage: second moments of the inputs of a block's linears on calibration sequences.

Activations are those of the quantized model so far: a linear's Hessian is taken after all linears before it, in its own
block too, have been quantized. Beside them run, where they are asked for, the activations of the exact model.
"""

from collections.abc import Iterator
from functools import partial

from elutq_cli.pipeline.compute.backend import Backend
from elutq_cli.pipeline.compute.levels import FloatArray
from elutq_cli.pipeline.compute.products import AT_ONCE, quiet
from elutq_cli.pipeline.stages.experts import add_experts, expert_statistics
from elutq_cli.pipeline.stages.moments import (
    InputStatistics,
    Linear,
    MakeRoom,
    Writer,
    in_memory,
    input_of_readers,
    input_statistics,
    token_batches,
    with_linears,
)
from elutq_cli.reference import Array, Block, Positions
from elutq_formats.block import Branch


def block_statistics(
    block: Block,
    hidden: FloatArray,
    exact: FloatArray | None,
    backend: Backend,
    make_room: MakeRoom = in_memory,
    corrects: bool = True,
) -> Iterator[tuple[tuple[str, ...], InputStatistics]]:
    """Run the calibration sequences through a block, pausing before each of its inputs is used.

    Between one step of the iterator and the next the caller replaces the weights of the linears just yielded in
    ``block.weights`` by their dequantized values; what follows sees those.

    Args:
        block: the block, with its exact weights, on the backend.
        hidden: (sequences, n, hidden_size) float32, the block's input; replaced by its output.
        exact: the same in the exact model, or None.
        backend: runs AT_ONCE batches of sequences at a time.
        make_room: for the inputs of all tokens to a linear that is about to be quantized.
        corrects: whether linears are to make up for what the stream lacks beside the exact one.

    Yields:
        The names of the linears that share an input, and that input's statistics.
    """
    blocks, streams = [block], [hidden]
    if exact is not None:
        blocks.append(block.copy())
        streams.append(exact)
    positions = Positions.of(block.config, hidden.shape[1], convert=backend.arrays.place)
    for branch in block.data.branches:
        if branch.mixer == "experts":
            yield from expert_statistics(block, branch, hidden, backend, make_room)
            if exact is not None:
                add_experts(blocks[-1], branch, exact, backend, make_room)
            continue
        batches = [token_batches(stream) for stream in streams]
        read = [input_of_readers(block, branch)]
        yield branch.readers, input_statistics(read, batches[:1], backend, make_room=make_room)
        inputs = [partial(_mixed, with_linears(own, *branch.readers), branch, positions) for own in blocks]
        kept = make_room((*hidden.shape[:2], block.weights[f"{branch.writer}.weight"].shape[1]))
        moments = [input_statistics(inputs, batches, backend, Writer.of(blocks[-1], branch, corrects), kept, make_room)]
        del inputs
        if exact is not None:  # the exact weights up to here have done their work
            for name in [name for name in blocks[-1].weights if name.startswith(branch.writer.split(".")[0])]:
                del blocks[-1].weights[name]
        yield (branch.writer,), moments.pop()  # to be freed by the caller
        unit = quiet(partial(_output_of, partial(_written, with_linears(block, branch.writer), branch), backend))
        outputs = backend.light.map(unit, token_batches(kept), AT_ONCE)
        for stream, added in zip(batches[0], outputs, strict=True):
            stream += added
        del kept


def _mixed(block: Block, branch: Branch, positions: Positions, stream: Array) -> Array:
    return block.mix(branch, block.read(branch, stream), positions)


def _written(block: Block, branch: Branch, mixed: Array) -> Array:
    return block.finish(branch, block.linear(branch.writer, mixed))


def _output_of(linear: Linear, backend: Backend, x: FloatArray) -> FloatArray:
    return backend.arrays.fetch(linear(backend.arrays.place(x)))
