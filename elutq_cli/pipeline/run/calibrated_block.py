"""A block on its way through the stages on a calibration text, one input of its linears at a time."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from elutq_cli.pipeline.compute.products import multiply_rounded
from elutq_cli.pipeline.recipe import MatrixPlan
from elutq_cli.pipeline.run.stacks import StackOnItsWay
from elutq_cli.pipeline.run.tensors import ToQuantize, log_done
from elutq_cli.pipeline.run.workbench import Workbench
from elutq_cli.pipeline.stages.calibrate import block_statistics
from elutq_cli.pipeline.stages.correct import correct
from elutq_cli.pipeline.stages.linear import LinearInputs, Matrix
from elutq_cli.pipeline.stages.measure import measure_block, sample_rows
from elutq_cli.pipeline.stages.moments import InputStatistics
from elutq_cli.pipeline.stages.streams import Pair, Streams, run_block
from elutq_cli.reference import Array, Block, block_tensor_names
from elutq_cli.reference.experts import Stack
from elutq_formats.expert_names import split_expert
from elutq_formats.hlq import HLQTensor
from elutq_formats.names import called
from elutq_formats.tensor_record import STACK_DIMENSIONS

log = logging.getLogger(__name__)


class CalibratedBlock:
    """A block whose linears are quantized by what they take.

    Attributes:
        layer: which block.
        block: its weights, as they are now.
        streams: its inputs, which become its outputs.
    """

    def __init__(self, bench: Workbench, layer: int, plans: Sequence[MatrixPlan], streams: Streams) -> None:
        """Read its weights.

        Args:
            bench: what there is to work with.
            layer: the block.
            plans: of its linears.
            streams: its inputs.
        """
        self.layer, self.streams = layer, streams
        self._bench, self._backend = bench, bench.backend
        self._prefix = f"model.layers.{layer}."
        self._plans = {plan.name: plan for plan in plans}
        self._stacks: dict[str, StackOnItsWay] = {}
        self._to_tune: dict[str, Matrix] = {}
        config, multiply = bench.tensors.config, partial(multiply_rounded, backend=self._backend)
        weights = {name: self._weights_of(self._prefix + name) for name in block_tensor_names(config, layer)}
        self.block = Block(config, layer, weights, self._backend.arrays.xp, multiply)

    def quantize(self) -> None:
        """Take it through the stages, and put its linears into the spool."""
        backend, make_room, recipe = self._backend, self._bench.spool.make_room, self._bench.recipe
        hidden, exact = self.streams.hidden, self.streams.exact if recipe.keeps_exact else None
        for stream in [self.streams.held_out_exact, self.streams.exact if exact is None else None]:
            if stream is not None:
                run_block(self.block, stream, backend, make_room)  # before its weights change
        before = np.array(hidden) if "block" in recipe.tune else None
        for linears, statistics in block_statistics(self.block, hidden, exact, backend, make_room, recipe.corrects):
            inputs, targets = self._prepare(linears, statistics)
            del statistics
            self._quantize_sharing(inputs, targets)
        for name, own in self._stacks.items():
            log_done(own.finish())
            self.block.weights[name.removeprefix(self._prefix)] = Stack(own.shape, own.restore_placed)
        if before is not None and exact is not None:
            self.tune((before, exact))
            hidden[...] = before
            self._add_tuned()
        if self.streams.held_out is not None:
            run_block(self.block, self.streams.held_out, backend, make_room)

    def _weights_of(self, name: str) -> Array | Stack:
        """Return a tensor of the checkpoint, on the backend; a stack's matrices are read when they are needed."""
        tensors, place = self._bench.tensors, self._backend.arrays.place
        shape = tensors.shape(name)
        if len(shape) < STACK_DIMENSIONS:
            return place(tensors.load(name))
        return Stack(shape, lambda number: place(tensors.load_expert(name, number)))

    def _prepare(self, linears: Sequence[str], statistics: InputStatistics) -> tuple[LinearInputs, dict[str, Array]]:
        """Return what is known of the input of some linears, and what each of them is to be near, by its name."""
        targets = {f"{self._prefix}{linear}.weight": self.block.weight(linear) for linear in linears}
        inputs = self._bench.tensors.prepare(called(next(iter(targets))), statistics)
        lack, factor = statistics.lack, inputs.factor
        if lack is not None and factor is not None:
            targets = {name: correct(weights, lack, factor, self._backend) for name, weights in targets.items()}
        return inputs, targets

    def _quantize_sharing(self, inputs: LinearInputs, targets: dict[str, Array]) -> None:
        """Quantize linears that share an input; the targets are taken out, so that each is freed when it is done."""
        tensors, names = self._bench.tensors, list(targets)
        found = tensors.quantize_sharing(self._to_quantize(targets), inputs)
        for name, matrix in zip(names, found, strict=True):
            own_name, expert = name.removeprefix(self._prefix), split_expert(name)
            if expert is not None:
                self._stack(expert[0]).add(matrix)
            elif "block" in self._bench.recipe.tune:
                self._to_tune[own_name] = matrix
            else:
                tensors.add_matrix(matrix)
            self.block.weights[own_name] = self._backend.arrays.place(matrix.restore(self._backend.crew))

    def _to_quantize(self, targets: dict[str, Array]) -> Iterator[ToQuantize]:
        """Yield linears as the stages are to have them, each when its turn comes."""
        for name in list(targets):
            expert, target = split_expert(name), targets.pop(name)
            exact = self.block.weights.get(name.removeprefix(self._prefix), target)
            sample = sample_rows(exact)
            if expert is not None:
                yield self._stack(expert[0]).to_quantize(target, sample)
            else:
                travels = target is exact and self._backend.light.workers > 1  # for the tokens, too
                yield ToQuantize(self._plans[name], target, sample, shared=travels)
            del target, exact, sample

    def _stack(self, name: str) -> StackOnItsWay:
        if name not in self._stacks:
            self._stacks[name] = self._bench.open_stack(self._plans[name])
        return self._stacks[name]

    def tune(self, train: Pair) -> None:
        """Tune the linears that are quantized, where that helps; the block's weights become theirs.

        Args:
            train: the block's input, and the exact block's output: (sequences, n, hidden_size) float32 each.
        """
        from elutq_cli.pipeline.stages.tune.block import tune_block

        bench, held_out = self._bench, self.streams.held_out_pair
        starts, seed = self._tensors_to_tune(), bench.recipe.seed
        if not starts:  # a recipe can keep all linears of a block as they are
            return
        tuned = tune_block(self.block, starts, train, held_out, seed, bench.device, bench.progress.note)
        log.info("blk.%d: output error %.4f, %.4f before tuning", self.layer, tuned.after, tuned.before)
        if tuned.after < tuned.before:
            for name, tensor in tuned.matrices.items():
                matrix = self._to_tune[name] = Matrix(self._to_tune[name].record, tensor)
                self.block.weights[name] = self._backend.arrays.place(matrix.restore(self._backend.crew))

    def _add_tuned(self) -> None:
        """Put tuned linears into the spool, with the errors that they have now; the stream goes through the block."""
        tensors, make_room = self._bench.tensors, self._bench.spool.make_room
        now, hidden = self._tensors_to_tune(), self.streams.hidden
        errors = measure_block(self.block, hidden, now, tensors.load, self._backend, make_room)
        for name, matrix in self._to_tune.items():
            tensors.add_matrix(Matrix(replace(matrix.record, error=errors.get(name)), matrix.contents))

    def _tensors_to_tune(self) -> dict[str, HLQTensor]:
        contents = {name: matrix.contents for name, matrix in self._to_tune.items()}
        return {name: of for name, of in contents.items() if isinstance(of, HLQTensor)}
